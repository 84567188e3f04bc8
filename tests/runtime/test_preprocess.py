"""Preprocessing, against torchvision and against the library's own transform: equal to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from holocron.transforms import Resize, ResizeMethod
from runtime.errors import ImageError
from runtime.images import open_reduced
from runtime.manifest import INTERPOLATIONS, PAD_MODES, Preprocessing
from runtime.preprocess import Preprocessor, padded_size, resize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalized(image, mean=MEAN, std=STD):
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return x.sub(mean).div(std).numpy()


@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0, 0, 0), (1, 1, 1)), ((0.1, 0.7, 1 / 3), STD)]
)
def test_every_value_is_normalized_as_torchvision_does(mean, std):
    values = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    found = Preprocessor(Preprocessing((16, 16), mean, std))(values)
    np.testing.assert_array_equal(found, normalized(values, mean, std))
    # `v2.ToDtype(scale=True)` multiplies by 1/255 instead and differs in the last bit of some values.
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    np.testing.assert_array_equal(found, to_tensor(Image.fromarray(values)).numpy())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(31, 47), (16, 24), (300, 20), (5, 5), (1, 1)])
def test_squish_is_torchvisions_resize(interpolation, shape):
    image = Image.fromarray(noise(*shape))
    found = Preprocessor(Preprocessing((16, 24), MEAN, STD, interpolation=interpolation))(image)
    resized = F.resize(image, [16, 24], interpolation=InterpolationMode(interpolation))
    np.testing.assert_array_equal(found, normalized(resized))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("shape", [(31, 47), (47, 31), (3, 300), (300, 3), (16, 24), (32, 48), (1, 1)])
def test_pad_is_the_librarys_resize(interpolation, pad_mode, shape):
    image = Image.fromarray(noise(*shape))
    theirs = Resize((16, 24), mode=ResizeMethod.PAD, pad_mode=pad_mode, interpolation=InterpolationMode(interpolation))(
        image
    )
    spec = Preprocessing((16, 24), MEAN, STD, resize="pad", pad_mode=pad_mode, interpolation=interpolation)
    np.testing.assert_array_equal(np.asarray(resize(image, spec)), np.asarray(theirs))
    np.testing.assert_array_equal(Preprocessor(spec)(image), normalized(theirs))


sizes = st.integers(1, 80)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, sizes, sizes, st.sampled_from(PAD_MODES), st.booleans())
def test_any_size_is_resized_as_the_library_does(height, width, target_height, target_width, pad_mode, squish):
    image = Image.fromarray(noise(height, width, seed=height * 81 + width))
    size = (target_height, target_width)
    method = ResizeMethod.SQUISH if squish else ResizeMethod.PAD
    theirs = Resize(size, mode=method, pad_mode=pad_mode)(image)
    spec = Preprocessing(size, MEAN, STD, resize="squish" if squish else "pad", pad_mode=pad_mode)
    found = resize(image, spec)
    assert found.size == (target_width, target_height)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(theirs))


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 2048), st.integers(1, 2048))
def test_the_padded_size_fits_touches_the_frame_and_keeps_the_aspect(height, width, H, W):
    h, w = padded_size(height, width, (H, W))
    assert 1 <= h <= H
    assert 1 <= w <= W
    assert h == H or w == W
    scale = min(H / height, W / width)
    assert abs(h - height * scale) <= 0.5 + 1e-6 or h == 1
    assert abs(w - width * scale) <= 0.5 + 1e-6 or w == 1


def test_padding_is_centred_and_black():
    spec = Preprocessing((4, 9), MEAN, STD, resize="pad", interpolation="nearest")
    found = np.asarray(resize(Image.new("RGB", (2, 2), "white"), spec))
    np.testing.assert_array_equal(found[:, :, 0] == 255, np.tile([False] * 2 + [True] * 4 + [False] * 3, (4, 1)))


def test_an_image_of_the_right_size_is_returned_itself():
    image = Image.fromarray(noise(8, 8))
    assert resize(image, Preprocessing((8, 8), MEAN, STD)) is image


def test_a_batch_is_the_single_images_in_one_array(tmp_path):
    Image.fromarray(noise(9, 9)).save(tmp_path / "a.png")
    images = [noise(20, 30), Image.fromarray(noise(5, 70)), tmp_path / "a.png", str(tmp_path / "a.png")]
    preprocess = Preprocessor(Preprocessing((16, 16), MEAN, STD))
    batch = preprocess.batch(images)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, np.stack([preprocess(image) for image in images]))
    assert preprocess.batch([]).shape == (0, 3, 16, 16)


def test_a_bad_image_of_a_batch_is_named(tmp_path):
    preprocess = Preprocessor(Preprocessing((16, 16), MEAN, STD))
    with pytest.raises(ImageError, match="image 33 is float64"):
        preprocess.batch([noise(4, 4), np.zeros((4, 4, 3))], first=32)
    with pytest.raises(ImageError, match="image 0 is a NoneType"):
        preprocess.batch([None])
    with pytest.raises(ImageError, match=r"none\.png"):
        preprocess.batch([tmp_path / "none.png"])


def test_the_callers_array_is_left_alone():
    array = noise(16, 16)
    before = array.copy()
    Preprocessor(Preprocessing((16, 16), MEAN, STD))(array)
    np.testing.assert_array_equal(array, before)


# Decoding at a fraction of the size.


@pytest.fixture(scope="module")
def large_jpeg(tmp_path_factory):
    """A photograph of 600 × 800."""
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("jpeg") / "coffee.jpg"
    Image.fromarray(data.coffee()).resize((800, 600), Image.Resampling.LANCZOS).save(path, quality=92)
    return path


def levels(difference):
    """A difference of normalized values in units of one of 255 levels."""
    return np.abs(difference) * np.array(STD)[:, None, None] * 255


@pytest.mark.parametrize("resize_mode", ["squish", "pad"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (150, 200)])
def test_fast_decoding_gives_almost_the_same(large_jpeg, size, resize_mode):
    spec = Preprocessing(size, MEAN, STD, resize_mode)
    (exact,), sizes = Preprocessor(spec).batch_with_sizes([large_jpeg])
    (fast,), sizes_of_fast = Preprocessor(spec, fast_decode=True).batch_with_sizes([large_jpeg])
    assert sizes_of_fast == sizes == [(600, 800)]
    assert levels(fast - exact).mean() < 1
    assert not np.array_equal(fast, exact)


@pytest.mark.parametrize(
    ("enough", "decoded"),
    [((600, 800), 1), ((301, 10), 1), ((300, 400), 2), ((150, 10), 4), ((75, 100), 8), ((1, 1), 8), ((900, 900), 1)],
)
def test_as_few_pixels_are_decoded_as_are_enough(large_jpeg, enough, decoded):
    opened = open_reduced(large_jpeg, enough=lambda height, width: enough)
    assert (opened.image.height, opened.image.width) == (600 // decoded, 800 // decoded)
    assert opened.size == (600, 800)


def test_a_turned_image_is_reduced_as_it_will_be_seen(large_jpeg, tmp_path):
    with Image.open(large_jpeg) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.jpg", exif=exif, quality=92)
    asked = []

    def enough(height, width):
        asked.append((height, width))
        return 400, 150  # a half of the height, a quarter of the width

    opened = open_reduced(tmp_path / "turned.jpg", enough=enough)
    assert asked == [(800, 600)]
    assert opened.size == (800, 600)
    assert (opened.image.height, opened.image.width) == (400, 300)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize_mode", ["squish", "pad"])
def test_a_reduced_image_is_not_shifted(large_jpeg, tmp_path, orientation, resize_mode):
    """Of 333 rows 166.5 are left, in 167 rows of pixels: wherever the half row lies after turning, it is left out."""
    with Image.open(large_jpeg) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.resize((491, 333)).save(tmp_path / "odd.jpg", exif=exif, quality=95, subsampling=0)
    spec = Preprocessing((60, 80), MEAN, STD, resize_mode)
    exact, fast = (Preprocessor(spec, fast_decode=fast)(tmp_path / "odd.jpg") for fast in (False, True))
    assert 0 < levels(fast - exact).mean() < 0.5


def test_what_is_no_large_jpeg_is_decoded_exactly(large_jpeg, tmp_path):
    spec = Preprocessing((64, 64), MEAN, STD)
    exact, fast = Preprocessor(spec), Preprocessor(spec, fast_decode=True)
    with Image.open(large_jpeg) as image:
        image.save(tmp_path / "a.png")
        image.resize((200, 120)).save(tmp_path / "small.jpg")
        for source in (tmp_path / "a.png", tmp_path / "small.jpg", np.asarray(image), image):
            np.testing.assert_array_equal(fast(source), exact(source))


def test_a_damaged_jpeg_is_an_error_all_the_same(large_jpeg, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(large_jpeg.read_bytes()[:20_000])
    with pytest.raises(ImageError, match=r"cut\.jpg is truncated or damaged"):
        Preprocessor(Preprocessing((64, 64), MEAN, STD), fast_decode=True)(tmp_path / "cut.jpg")
