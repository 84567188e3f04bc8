"""From an image to the network's input, in numpy and Pillow: what torchvision computes, to the bit.

Resizing is Pillow's own, which is what torchvision calls for Pillow images; normalization takes the same float32 steps
in the same order as `ToTensor` followed by `Normalize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .images import ImageSource, OpenedImage, open_image, open_reduced
from .manifest import Preprocessing

__all__ = ["Preprocessor", "open_image", "padded_box", "padded_size", "resize", "resize_rows"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# A decoder reduces with a filter of its own. Twice the size leaves enough to ours to hide that.
_SPARE = 2
_PadMode = Literal["constant", "edge", "reflect", "symmetric"]


def padded_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the same aspect ratio that fits into another, in integer arithmetic.

    Args:
        height: of the image, in pixels
        width: of the image, in pixels
        size: height and width to fit into, in pixels

    Returns:
        height and width; the side that does not touch the frame is rounded half up, and is 1 at least
    """
    H, W = size
    if H * width <= W * height:
        return H, max(1, (2 * width * H + height) // (2 * height))
    return max(1, (2 * height * W + width) // (2 * width)), W


def padded_box(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Where an image lies in the network's input after resizing and, with `"pad"`, padding.

    Args:
        height: of the image, in pixels
        width: of the image, in pixels
        preprocessing: gives the network's size and what happens to the aspect ratio

    Returns:
        top, left, height and width in the network's pixels
    """
    H, W = preprocessing.size
    if preprocessing.resize == "squish":
        return 0, 0, H, W
    inner_height, inner_width = padded_size(height, width, (H, W))
    return (H - inner_height) // 2, (W - inner_width) // 2, inner_height, inner_width


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize an RGB image to the network's size.

    Args:
        image: of mode RGB
        preprocessing: gives the size, the filter, and what happens to the aspect ratio

    Returns:
        an image of `preprocessing.size`; the same object if it has that size already
    """
    return resize_opened(OpenedImage(image, (image.height, image.width)), preprocessing)


def resize_opened(opened: OpenedImage, preprocessing: Preprocessing) -> Image.Image:
    """Resize an image that may have been decoded at a fraction of its size.

    Args:
        opened: the image
        preprocessing: gives the size, the filter, and what happens to the aspect ratio

    Returns:
        as :func:`resize` does
    """
    image, box, (H, W) = opened.image, opened.box, preprocessing.size
    if opened.size == (H, W):
        return image
    top, left, height, width = padded_box(*opened.size, preprocessing)
    if opened.size != (height, width):
        image = image.resize((width, height), _FILTERS[preprocessing.interpolation], box)
    if (height, width) == (H, W):
        return image
    around = ((top, H - height - top), (left, W - width - left), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), around, mode=cast("_PadMode", preprocessing.pad_mode)))


def resize_rows(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Bring an RGB image to its final number of rows, padding left out, and leave its columns as they are.

    Args:
        image: of mode RGB
        preprocessing: gives the size, the filter, and what happens to the aspect ratio
    """
    _, _, height, _ = padded_box(image.height, image.width, preprocessing)
    return image.resize((image.width, height), _FILTERS[preprocessing.interpolation])


class Preprocessor:
    """Turns images into the network's input. Holds no state that a call changes: threads may share one.

    Args:
        preprocessing: size, resizing and normalization
        fast_decode: decode JPEG files at the smallest of 1/8, 1/4, 1/2 and 1/1 of their size that is twice the size
            they are resized to: two to four times faster, and the pixels are off by a fraction of one of 255 levels
    """

    def __init__(self, preprocessing: Preprocessing, fast_decode: bool = False) -> None:
        self.preprocessing = preprocessing
        self._enough = self._size_of_image if fast_decode else None
        # The float32 nearest to each decimal number, then float32 arithmetic: a float64 step would change last bits.
        self._mean = np.array(preprocessing.mean, np.float32)
        self._std = np.array(preprocessing.std, np.float32)

    def __call__(self, image: ImageSource) -> NDArray[np.float32]:
        """Preprocess one image.

        Args:
            image: what :func:`~runtime.images.open_image` takes

        Returns:
            array of shape `(3, H, W)`

        Raises:
            ImageError: if it is not an image that can be taken
        """
        out = np.empty((3, *self.preprocessing.size), np.float32)
        self._into(image, None, out)
        return out

    def batch(self, images: Sequence[ImageSource], first: int = 0) -> NDArray[np.float32]:
        """Preprocess several images into one array: the first of what :meth:`batch_with_sizes` gives."""
        return self.batch_with_sizes(images, first)[0]

    def batch_with_sizes(
        self, images: Sequence[ImageSource], first: int = 0
    ) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
        """Preprocess several images into one array, each written in place.

        Args:
            images: N images, as :func:`~runtime.images.open_image` takes them
            first: number of the first one, for the errors about images without a name

        Returns:
            array of shape `(N, 3, H, W)`, and the height and width of each image as it was, upright

        Raises:
            ImageError: if one is not an image that can be taken; images without a path are named by their number
        """
        out = np.empty((len(images), 3, *self.preprocessing.size), np.float32)
        sizes = []
        for i, image in enumerate(images):
            named = isinstance(image, (str, bytes)) or hasattr(image, "__fspath__") or getattr(image, "filename", None)
            sizes.append(self._into(image, None if named else f"image {first + i}", out[i]))
        return out, sizes

    def _into(self, image: ImageSource, name: str | None, out: NDArray[np.float32]) -> tuple[int, int]:
        opened = open_reduced(image, name, self._enough)
        # Plane by plane: Pillow separates the channels faster than numpy reads them with a stride of three.
        planes = resize_opened(opened, self.preprocessing).split()
        for plane, mean, std, target in zip(planes, self._mean, self._std, out, strict=True):
            np.divide(np.asarray(plane), np.float32(255), out=target, dtype=np.float32)
            target -= mean
            target /= std
        return opened.size

    def _size_of_image(self, height: int, width: int) -> tuple[int, int]:
        _, _, inner_height, inner_width = padded_box(height, width, self.preprocessing)
        return _SPARE * inner_height, _SPARE * inner_width
