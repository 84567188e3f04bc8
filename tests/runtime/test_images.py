"""Opening images: every kind that is taken, and every kind of bad input."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.errors import ImageError
from runtime.images import list_images, open_image


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def pixels(source):
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp"])
def test_a_lossless_file_gives_its_pixels(tmp_path, rgb, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels(path), rgb)
    np.testing.assert_array_equal(pixels(str(path)), rgb)


def test_a_jpeg_gives_what_pillow_gives(tmp_path, rgb):
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(pixels(path), np.asarray(Image.open(path)))


def test_the_content_counts_not_the_suffix(tmp_path, rgb):
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path, format="PNG")
    np.testing.assert_array_equal(pixels(path), rgb)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "1", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_converted(rgb, mode):
    middle = "RGBA" if mode == "PA" else mode
    image = Image.fromarray(rgb).convert(middle)
    if mode == "PA":
        image = Image.fromarray(rgb).convert("P").convert("PA")
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_are_converted_from_files(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_is_converted(tmp_path, rgb):
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "a.jpg")
    assert pixels(tmp_path / "a.jpg").shape == rgb.shape


@pytest.mark.parametrize("transparency", [b"\x00\xff\x80", 1])
@pytest.mark.filterwarnings("error")
def test_transparency_of_a_palette_is_dropped_without_a_warning(tmp_path, rgb, transparency):
    image = Image.fromarray(rgb).convert("P")
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "a.png", transparency=transparency)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), expected)
    image.info["transparency"] = transparency
    np.testing.assert_array_equal(pixels(image), expected)
    assert image.info["transparency"] == transparency


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_of_16_bit_grey_the_high_byte_is_taken(tmp_path, suffix):
    deep = np.array([[0, 255, 256, 0x1234], [0x80FF, 0xFEFF, 0xFF00, 0xFFFF]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(deep).save(path)
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(path), expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(deep)), expected)


def test_16_bit_colour_gives_the_high_byte_too(tmp_path):
    deep = np.array([[[0x1234, 0x80FF, 0xFFFF]]], ">u2")
    write_png(tmp_path / "a.png", 1, 1, deep.tobytes(), depth=16, colour=2)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused_with_the_reason(tmp_path, mode):
    image = Image.new(mode, (3, 2), 7)
    with pytest.raises(ImageError, match="whose range is unknown: convert it to 8-bit RGB"):
        open_image(image)
    image.save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"a\.tiff has .* whose range is unknown"):
        open_image(tmp_path / "a.tiff")


def test_a_mode_that_does_not_convert_is_refused():
    with pytest.raises(ImageError, match="mode La"):
        open_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_exif_orientation_is_applied(tmp_path, orientation, suffix):
    grey = np.zeros((16, 32), np.uint8)
    grey[:8, :8] = 255  # one bright corner tells all eight apart, together with the shape
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(grey).convert("RGB").save(path, exif=exif)
    expected = {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: np.rot90(grey, -1),
        7: grey[::-1, ::-1].T,
        8: np.rot90(grey, 1),
    }[orientation]
    for source in (path, Image.open(path)):
        found = pixels(source)
        assert found.shape[:2] == expected.shape
        assert np.abs(found[..., 0].astype(int) - expected).max() < 100


def test_damaged_exif_does_not_spoil_the_picture(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=b"Exif\x00\x00nonsense")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), rgb)


def test_an_upright_rgb_image_is_returned_itself(rgb):
    image = Image.fromarray(rgb)
    assert open_image(image) is image


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_arrays_are_taken(shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = np.broadcast_to(np.atleast_3d(array)[..., :3], (4, 6, 3))
    np.testing.assert_array_equal(pixels(array), expected)
    np.testing.assert_array_equal(pixels(np.flip(array, 0)), np.flip(expected, 0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "is float32: expected uint8"),
        (np.full((4, 4, 3), np.nan), "is float64: expected uint8"),
        (np.zeros((4, 4, 3), np.int64), "is int64: expected uint8"),
        (np.zeros((4, 4, 3), bool), "is bool: expected uint8"),
        (np.array([[object()]]), "is object: expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (np.zeros((4, 4, 0), np.uint8), "has no pixels"),
        (np.zeros((4, 4, 2), np.uint8), "has the shape"),
        (np.zeros(4, np.uint8), "has the shape"),
        (np.zeros((), np.uint8), "has the shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "has the shape"),
        (np.zeros((3, 8, 8), np.uint8), "move the channels last"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        open_image(array)


@pytest.mark.parametrize("source", [None, 3, b"a.png", [1, 2], {}, io.BytesIO()])
def test_other_types_are_refused(source):
    with pytest.raises(ImageError, match="expected a path, a Pillow image or a uint8 array"):
        open_image(source)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, width, height, rows=b"", depth=8, colour=0):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"\x00" + rows)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


# Between one and two times its limit Pillow warns, beyond it raises.
@pytest.mark.parametrize("height", [12_000, 30_000])
def test_a_decompression_bomb_is_refused_without_a_warning(tmp_path, height):
    write_png(tmp_path / "bomb.png", 10_000, height)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"bomb\.png has 10000 x \d+ pixels"):
            open_image(tmp_path / "bomb.png")


def test_the_limit_is_pillows_own(tmp_path, rgb, monkeypatch):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 34)
    with pytest.raises(ImageError, match="more than the 34 allowed"):
        open_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), rgb)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        open_image(path)


def test_what_is_not_an_image_is_refused(tmp_path):
    text, empty = tmp_path / "a.txt", tmp_path / "b.png"
    text.write_text("hello")
    empty.write_bytes(b"")
    for path, message in (
        (text, r"a\.txt is not an image"),
        (empty, r"b\.png is empty"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.png", r"cannot read .*none\.png.*No such file"),
        ("a\0b", "cannot read"),
        ("x" * 5000, "cannot read"),
    ):
        with pytest.raises(ImageError, match=message) as e:
            open_image(path)
        assert "\n" not in str(e.value)


def test_postscript_is_not_handed_to_an_interpreter(tmp_path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not an image of a known format"):
        open_image(tmp_path / "a.eps")


def test_a_lazy_image_that_is_truncated_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(path, compress_level=0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ImageError, match=r"cut\.png is truncated or damaged"):
        open_image(Image.open(path))


def saved(fmt):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(buffer, format=fmt)
    return buffer.getvalue()


VALID = [saved(fmt) for fmt in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_open_or_raise_image_error(tmp_path_factory, data, edits, draw):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    changed = bytearray(data)
    for place, byte in edits:
        changed[place % len(changed)] = byte
    path.write_bytes(changed[: draw.draw(st.integers(0, len(changed)))])
    with contextlib.suppress(ImageError):
        assert open_image(path).mode == "RGB"


def test_the_file_is_closed(tmp_path, rgb):
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    before = len(list(Path("/proc/self/fd").iterdir()))
    images = [open_image(tmp_path / "a.png") for _ in range(5)]
    for _ in range(5):
        with pytest.raises(ImageError):
            open_image(tmp_path / "bad.png")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(images) == 5


def test_a_folder_is_listed_sorted_and_recursively(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.png", "b.JPG", "sub/c.webp"]


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="has no images"):
        list_images(tmp_path)


def test_warnings_of_other_threads_are_not_touched(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    code = (
        "import sys, warnings; from runtime.images import open_image; before = list(warnings.filters);"
        "open_image(sys.argv[1]); assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)
