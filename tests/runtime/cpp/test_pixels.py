"""The C++ library's pixels, beside Pillow, numpy and the Python runtime: every byte equal."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from calib import find_images, sample_folder
from runtime.manifest import INTERPOLATIONS, PAD_MODES, RESIZE_MODES, Preprocessing
from runtime.preprocess import Preprocessor, padded_box
from runtime.resampling import resize_matrices, resize_matrices_after_rows, rows_first

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB, BGR, RGBA, BGRA, GRAY, NV12 = range(6)
PILLOW_CHOOSES_THE_ORDER = rows_first(1000, 20, Preprocessing((10, 10), MEAN, STD))

pytestmark = pytest.mark.skipif(
    not PILLOW_CHOOSES_THE_ORDER, reason="the C++ library resizes as Pillow 13 does, which is not installed"
)


class FlatFrame(ctypes.Structure):
    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("chroma", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("chroma_stride", ctypes.c_int64),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("has_region", ctypes.c_int32),
        ("region", ctypes.c_int32 * 4),
    )


class FlatPreprocessing(ctypes.Structure):
    _fields_ = (
        ("mean", ctypes.c_double * 3),
        ("std", ctypes.c_double * 3),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("resize", ctypes.c_int32),
        ("pad_mode", ctypes.c_int32),
        ("interpolation", ctypes.c_int32),
    )


class Pixels:
    """The library's functions, with arrays in place of pointers."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        for name in ("shim_resize", "shim_pack", "shim_preprocess"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.shim_preprocessor.restype = ctypes.c_void_p

    def resize(self, image, height, width, interpolation, threads=1):
        out = np.empty((height, width, 3), np.uint8)
        sizes = (*image.shape[:2], height, width, INTERPOLATIONS.index(interpolation), threads)
        self._check(self._library.shim_resize(pointer(image), *sizes, pointer(out)))
        return out

    def pack(self, frame, height, width, bgr=False):
        out = np.empty((height, width, 3), np.uint8)
        self._check(self._library.shim_pack(ctypes.byref(frame), int(bgr), pointer(out)))
        return out

    def preprocess(self, frame, preprocessing, threads=1):
        out = np.empty((3, *preprocessing.size), np.float32)
        handle = ctypes.c_void_p(self._library.shim_preprocessor(ctypes.byref(flat(preprocessing))))
        try:
            self._check(self._library.shim_preprocess(handle, ctypes.byref(frame), threads, pointer(out)))
        finally:
            self._library.shim_preprocessor_free(handle)
        return out

    def needs_rows_first(self, height, width, preprocessing):
        return bool(self._library.shim_needs_rows_first(ctypes.byref(flat(preprocessing)), height, width))

    def matrices(self, height, width, preprocessing, after_rows=False):
        H, W = preprocessing.size
        left = padded_box(height, width, preprocessing)[2] if after_rows else height
        rows, columns = np.empty((H, left), np.float32), np.empty((width, W), np.float32)
        self._library.shim_matrices(
            ctypes.byref(flat(preprocessing)), height, width, int(after_rows), pointer(rows), pointer(columns)
        )
        return rows, columns

    @staticmethod
    def _check(message):
        if message is not None:
            raise ValueError(message.decode())


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def flat(preprocessing):
    return FlatPreprocessing(
        preprocessing.mean,
        preprocessing.std,
        *preprocessing.size,
        RESIZE_MODES.index(preprocessing.resize),
        PAD_MODES.index(preprocessing.pad_mode),
        INTERPOLATIONS.index(preprocessing.interpolation),
    )


def frame_of(array, pixel_format=RGB, region=None, height=None):
    """A frame of an array whose rows may lie apart: of shape (h, w) or (h, w, channels), each row contiguous."""
    height, width = height or array.shape[0], array.shape[1]
    frame = FlatFrame(array.ctypes.data, None, array.strides[0], 0, width, height, pixel_format)
    if region is not None:
        frame.has_region, frame.region = 1, region
    return frame


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def pixels(cpp_build):
    return Pixels(cpp_build.pixels_shim)


@pytest.fixture(scope="session")
def photographs():
    arrays = []
    for path in find_images(sample_folder(), 12):
        with Image.open(path) as image:
            arrays.append(np.asarray(image.convert("RGB")))
    return arrays


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_200_random_sizes_are_pillows_to_the_byte(pixels, interpolation):
    generator = np.random.default_rng(INTERPOLATIONS.index(interpolation))
    for i in range(200):
        # Sizes of every order of magnitude; one of ten keeps its height or its width, which skips a pass.
        h, w, H, W = (int(size) for size in np.exp(generator.uniform(0, np.log(700), 4)))
        H, W = (h if i % 10 == 0 else H), (w if i % 10 == 1 else W)
        image = noise(h, w, 3, seed=i)
        theirs = Image.fromarray(image).resize((W, H), getattr(Image.Resampling, interpolation.upper()))
        for threads in (1, 3):
            ours = pixels.resize(image, H, W, interpolation, threads)
            np.testing.assert_array_equal(ours, np.asarray(theirs), f"{h} x {w} to {H} x {W}, {threads} threads")


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("height", "width", "H", "W"), [(1080, 1920, 224, 224), (5, 3000, 7, 3), (3000, 5, 3, 7), (1, 1, 300, 2)]
)
def test_extreme_sizes_are_pillows_too(pixels, interpolation, height, width, H, W):
    image = noise(height, width, 3)
    theirs = Image.fromarray(image).resize((W, H), getattr(Image.Resampling, interpolation.upper()))
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(pixels.resize(image, H, W, interpolation, threads), np.asarray(theirs))


@pytest.mark.parametrize(("source", "target"), [(23, 5), (15, 7), (39, 7), (43, 7)])
def test_the_middle_of_hammings_bell(pixels, source, target):
    """Pillow takes 1 there, its formula in single precision gives a little more: one unit of a weight, which shows in
    one of 30 000 pixels.
    """
    image = noise(200_000, source, 3)
    theirs = Image.fromarray(image).resize((target, len(image)), Image.Resampling.HAMMING)
    np.testing.assert_array_equal(pixels.resize(image, len(image), target, "hamming"), np.asarray(theirs))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("value", [0, 255])
def test_filters_that_overshoot_are_clipped(pixels, interpolation, value):
    image = np.full((60, 60, 3), value, np.uint8)
    image[20:40, 20:40] = 255 - value
    theirs = Image.fromarray(image).resize((47, 83), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(pixels.resize(image, 83, 47, interpolation), np.asarray(theirs))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["squish", *PAD_MODES])
def test_photographs_are_preprocessed_as_in_python(pixels, photographs, mode, interpolation):
    squish = mode == "squish"
    spec = Preprocessing(
        (96, 128), MEAN, STD, "squish" if squish else "pad", "constant" if squish else mode, interpolation
    )
    for image in photographs:
        expected = Preprocessor(spec)(image)
        for threads in (1, 3):
            found = pixels.preprocess(frame_of(image), spec, threads)
            assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", PAD_MODES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (1, 40), (40, 1), (3, 90), (64, 64), (32, 64), (200, 7)])
def test_padding_wider_than_the_image(pixels, mode, height, width):
    spec = Preprocessing((32, 64), MEAN, STD, "pad", mode)
    image = noise(height, width, 3)
    assert pixels.preprocess(frame_of(image), spec).tobytes() == Preprocessor(spec)(image).tobytes()


def test_unusual_numbers_are_normalized_as_in_python(pixels):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    for mean, std in (((0.1, -7.3, 1e30), (1e-12, 1e30, 0.3)), ((0, 0, 0), (1, 3, 1 / 3))):
        spec = Preprocessing((16, 16), mean, std)
        with np.errstate(over="ignore"):
            assert pixels.preprocess(frame_of(image), spec).tobytes() == Preprocessor(spec)(image).tobytes()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("H", "W"), [(40, 30), (37, 53), (90, 110)])
def test_every_format_is_preprocessed_as_its_rgb(pixels, H, W, threads):
    """Resized before the channels are brought into their order: the same as the other way round."""
    spec = Preprocessing((H, W), MEAN, STD)
    image = noise(74, 106, 4)
    expected = Preprocessor(spec)(np.ascontiguousarray(image[..., :3])).tobytes()
    bgra = np.ascontiguousarray(image[..., [2, 1, 0, 3]])
    bgr = np.ascontiguousarray(bgra[..., :3])
    for array, pixel_format in ((image, RGBA), (bgra, BGRA), (bgr, BGR)):
        assert pixels.preprocess(frame_of(array, pixel_format), spec, threads).tobytes() == expected
    grey = image[..., 0]
    grey = np.ascontiguousarray(grey)
    assert pixels.preprocess(frame_of(grey, GRAY), spec, threads).tobytes() == Preprocessor(spec)(grey).tobytes()
    nv12 = noise(74 * 3 // 2, 106)
    converted = pixels.pack(frame_of(nv12, NV12, height=74), 74, 106)
    found = pixels.preprocess(frame_of(nv12, NV12, height=74), spec, threads)
    assert found.tobytes() == Preprocessor(spec)(converted).tobytes()


@pytest.mark.parametrize(("channels", "pixel_format"), [(3, RGB), (3, BGR), (4, RGBA), (4, BGRA), (1, GRAY)])
def test_a_region_of_rows_that_lie_apart(pixels, channels, pixel_format):
    around = noise(50, 80, channels)
    image = around[:, :60]  # the rows are 80 pixels apart
    order = [2, 1, 0] if pixel_format in (BGR, BGRA) else [0, 1, 2] if channels > 1 else [0, 0, 0]
    expected = image[7:40, 11:31][..., order]
    frame = frame_of(image, pixel_format, region=(11, 7, 20, 33))
    np.testing.assert_array_equal(pixels.pack(frame, 33, 20), expected)
    np.testing.assert_array_equal(pixels.pack(frame, 33, 20, bgr=True), expected[..., ::-1])
    spec = Preprocessing((24, 24), MEAN, STD, "pad", "reflect")
    assert pixels.preprocess(frame, spec).tobytes() == Preprocessor(spec)(np.ascontiguousarray(expected)).tobytes()


def test_nv12_is_the_formula_of_bt601(pixels):
    """Each fifth of all colours, rounded as the formula in float64 says wherever it is not next to a half."""
    luma = np.arange(256, dtype=np.float64)
    red_of_cr, blue_of_cb = 1.402 * 255 / 224, 1.772 * 255 / 224
    for cr in range(0, 256, 5):
        cb = np.repeat(np.arange(256, dtype=np.uint8), 2)  # a column of two pixels for each cb
        frame = np.empty((3 * 256, 512), np.uint8)
        frame[:512] = np.repeat(np.arange(256, dtype=np.uint8), 2)[:, None]
        frame[512:, 0::2], frame[512:, 1::2] = cb[::2], cr
        found = pixels.pack(frame_of(frame, NV12, height=512), 512, 512)[::2, ::2]
        y = (luma[:, None] - 16) * 255 / 219
        u, v = np.arange(256.0)[None] - 128, cr - 128.0
        exact = np.stack(
            np.broadcast_arrays(
                y + red_of_cr * v,
                y - blue_of_cb * 0.114 / 0.587 * u - red_of_cr * 0.299 / 0.587 * v,
                y + blue_of_cb * u,
            ),
            -1,
        )
        clear = np.abs(exact - np.floor(exact) - 0.5) > 0.001
        expected = np.clip(np.floor(exact + 0.5), 0, 255)
        np.testing.assert_array_equal(found[clear], expected[clear])
        assert np.abs(found - np.clip(exact, 0, 255)).max() < 0.501


def test_nv12_with_a_chroma_plane_of_its_own_and_a_region(pixels):
    whole = noise(36, 32)  # 24 rows of luma, 12 of chroma
    expected = pixels.pack(frame_of(whole, NV12, height=24), 24, 32)
    luma, chroma = noise(24, 40, seed=1), noise(12, 48, seed=2)
    luma[:, :32], chroma[:, :32] = whole[:24], whole[24:]
    apart = FlatFrame(luma.ctypes.data, chroma.ctypes.data, 40, 48, 32, 24, NV12)
    np.testing.assert_array_equal(pixels.pack(apart, 24, 32), expected)
    apart.has_region, apart.region = 1, (6, 10, 20, 8)
    np.testing.assert_array_equal(pixels.pack(apart, 8, 20), expected[10:18, 6:26])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["squish", *PAD_MODES])
def test_matrices_of_frame_inputs_are_those_of_python(pixels, mode, interpolation):
    squish = mode == "squish"
    spec = Preprocessing(
        (24, 36), MEAN, STD, "squish" if squish else "pad", "constant" if squish else mode, interpolation
    )
    for height, width in ((50, 70), (24, 36), (1, 1), (300, 20), (7, 90), (24, 100), (90, 36)):
        assert pixels.needs_rows_first(height, width, spec) == rows_first(height, width, spec)
        for after_rows, theirs in ((False, resize_matrices), (True, resize_matrices_after_rows)):
            expected = theirs(height, width, spec)
            rows, columns = pixels.matrices(height, width, spec, after_rows)
            np.testing.assert_array_equal(rows, expected.rows)
            np.testing.assert_array_equal(columns, expected.columns)


def test_a_fork_resizes_and_ends_without_the_threads_of_its_parent(cpp_build):
    script = """
import ctypes, os, sys
library = ctypes.CDLL(sys.argv[1])
image, out = bytes(range(250)) * 4 * 3 * 800, ctypes.create_string_buffer(90 * 90 * 3)
def resized():
    library.shim_resize(image, 800, 1000, 90, 90, 2, 3, out)
    return out.raw
expected = resized()
child = os.fork()
if child == 0:
    sys.exit(0 if resized() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script, str(cpp_build.pixels_shim)], check=True, timeout=60)


def test_what_cannot_be_taken_is_an_error(pixels):
    spec = Preprocessing((16, 16), MEAN, STD)
    image = noise(20, 30, 3)
    frame = frame_of(image)
    frame.stride = 89
    with pytest.raises(ValueError, match="the frame has a stride of 89 bytes, and its rows have 90"):
        pixels.preprocess(frame, spec)
    frame.pixels = None
    frame.stride = 90
    with pytest.raises(ValueError, match="its pointer is null"):
        pixels.preprocess(frame, spec)
