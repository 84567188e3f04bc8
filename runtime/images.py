"""Opening an image from whatever holds it: a file, a Pillow image or an array becomes 8-bit RGB, or a clear error."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ImageError

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
EnoughPixels = Callable[[int, int], tuple[int, int]]

IMAGE_EXTENSIONS = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
    | {".ppm", ".tif", ".tiff", ".webp"}
)
"""Lower-case suffixes of the files of a folder that are taken for images."""

# Raster formats only (MPO comes with JPEG), decoded in process: Pillow hands EPS to an external interpreter, and the
# rarer plugins are attack surface that no camera needs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """An image that was opened, perhaps with fewer pixels than it has.

    Attributes:
        image: of mode RGB, upright.
        size: its height and width as it is, upright.
        box: left, top, right and bottom of the part of `image` that shows it, in pixels of `image`, where that is less
            than all: a reduced image ends within its last pixels. None for all.
    """

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float] | None = None


def open_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Open an image as 8-bit RGB, upright.

    The EXIF orientation is applied; alpha is dropped; grey, palette, CMYK and YCbCr images are converted; of 16-bit
    grey the high byte is taken, as Pillow does with 16-bit colour; of an animation the first frame.

    Args:
        source: a path, a Pillow image (left as it is; returned itself if it is upright RGB), or a uint8 array of shape
            `(H, W)`, `(H, W, 1)`, `(H, W, 3)` RGB or `(H, W, 4)` RGBA
        name: what to call the image in an error; by default its path

    Returns:
        a Pillow image of mode RGB

    Raises:
        ImageError: if it is not an image, is damaged, is larger than `PIL.Image.MAX_IMAGE_PIXELS`, or is of a type that
            has no single conversion to 8 bits
    """
    return open_reduced(source, name).image


def open_reduced(source: ImageSource, name: str | None = None, enough: EnoughPixels | None = None) -> OpenedImage:
    """Open an image as :func:`open_image` does, a JPEG file perhaps at a half, a quarter or an eighth of its size.

    A JPEG's blocks of 8 × 8 pixels are decoded to fewer pixels each, which takes a fraction of the time.

    Args:
        source: as above
        name: as above
        enough: given an image's height and width, the smallest that it may be decoded to; None for its own size

    Returns:
        the image, and its size as it was

    Raises:
        ImageError: as above
    """
    if isinstance(source, Image.Image):
        return _whole(_from_pillow(source, name or str(getattr(source, "filename", "")) or "the image"))
    if isinstance(source, np.ndarray):
        return _whole(_from_array(source, name or "the array"))
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if isinstance(path, str):
            return _from_file(path, name or path, enough)
    raise ImageError(
        f"{name or 'the image'} is a {type(source).__name__}: expected a path, a Pillow image or a uint8 array of "
        "shape (H, W, 3)"
    )


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder and of those below it, sorted by path.

    Args:
        folder: where to look; hidden files and folders are passed over

    Returns:
        the files whose suffix is in :data:`IMAGE_EXTENSIONS`

    Raises:
        ImageError: if there are none
    """
    found = sorted(_walk(folder))
    if not found:
        raise ImageError(f"{folder} has no images: expected files such as .jpg or .png")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            path = Path(root, file)
            if path.suffix.lower() in IMAGE_EXTENSIONS and not file.startswith(".") and path.is_file():
                yield path


def _whole(image: Image.Image) -> OpenedImage:
    return OpenedImage(image, (image.height, image.width))


def _from_file(path: str, name: str, enough: EnoughPixels | None) -> OpenedImage:
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed by the `with` below
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise ImageError(f"cannot read {name!r}: {getattr(e, 'strerror', None) or e}") from e
    with file:
        try:
            image = _identify(file, path)
        except Exception as e:  # whatever a decoder trips over in hostile bytes
            raise ImageError(f"{name} is damaged or not an image: {_reason(e)}") from e
        if image is None:
            empty = os.fstat(file.fileno()).st_size == 0
            raise ImageError(f"{name} is empty" if empty else f"{name} is not an image of a known format")
        width, height = image.size
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            raise ImageError(
                f"{name} has {width} x {height} pixels, more than the {Image.MAX_IMAGE_PIXELS} allowed against "
                "decompression bombs: raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            )
        if enough is None or image.format not in ("JPEG", "MPO"):
            return _whole(_from_pillow(image, name, file_format=image.format))
        return _reduced(image, name, enough)


def _reduced(image: Image.Image, name: str, enough: EnoughPixels) -> OpenedImage:
    """Open a JPEG that is not decoded yet with as few pixels as are enough."""
    orientation = _orientation(image)
    turned = orientation in range(5, 9)
    size = (image.width, image.height) if turned else (image.height, image.width)
    height, width = enough(*size)
    draft = image.draft(None, (height, width) if turned else (width, height))
    decoded = image.size
    upright = _from_pillow(image, name, file_format=image.format)
    box = None if draft is None else _upright_box(draft[1], decoded, orientation)
    return OpenedImage(upright, size, box)


def _upright_box(
    box: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """Where a part of an image of that width and height lies after the EXIF orientation is applied."""
    (left, top, right, bottom), (width, height) = box, size
    if orientation in range(5, 9):  # mirrored about the diagonal, and then as below
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _identify(file: IO[bytes], path: str) -> Image.Image | None:
    # What `Image.open` does, less its own check of the size: that one warns below twice the limit, and a warning can be
    # turned into a refusal only by changing the filters of the whole process, which is not safe with threads.
    prefix = file.read(16)
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in _FORMATS:
            if name not in Image.OPEN:
                continue
            factory, accept = Image.OPEN[name]
            try:
                if accept is None or accept(prefix) is True:
                    file.seek(0)
                    return factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # this plugin's way to say that the file is not its own
    return None


def _from_pillow(image: Image.Image, name: str, file_format: str | None = None) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: its size is {image.width} x {image.height}")
    try:
        image.load()
    except Exception as e:
        raise ImageError(f"{name} is truncated or damaged: {_reason(e)}") from e
    file_format = file_format or image.format
    if _orientation(image) in range(2, 9):
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode in _DEEP_GREY or (image.mode == "I" and file_format in ("PNG", "PPM")):
        # Those two formats have unsigned 16-bit grey only, whichever mode this Pillow gives it.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise ImageError(f"{name} has {kind} pixels, whose range is unknown: convert it to 8-bit RGB")
    if "transparency" in image.info:  # it would be dropped, after a warning or an error about its form
        image = image.copy()
        del image.info["transparency"]
    try:
        return image.convert("RGB")
    except ValueError as e:
        raise ImageError(f"{name} has the mode {image.mode}, which does not convert to RGB: {_reason(e)}") from e


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not spoil the pixels
        return 1


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(
            f"{name} is {array.dtype}: expected uint8 from 0 to 255; convert it, e.g. values from 0 to 1 by "
            "(x * 255).round().astype('uint8')"
        )
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels: its shape is {array.shape}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"{name} has the shape {array.shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}"
        )
    if array.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(array[..., 0])).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[..., :3]))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
