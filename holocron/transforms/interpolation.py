"""Resizing that keeps the aspect ratio, for PIL images, tensors and tv_tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import Resize as TorchvisionResize
from torchvision.transforms.v2 import functional as F

__all__ = ["RandomZoomOut", "Resize", "ResizeMethod"]

PAD_MODES = ("constant", "edge", "reflect", "symmetric")


class ResizeMethod(StrEnum):
    """How an image is brought to a size of another aspect ratio."""

    SQUISH = "squish"
    """Stretch both sides, as torchvision does."""
    PAD = "pad"
    """Keep the aspect ratio and fill the rest."""


def _checked_size(size: Any) -> tuple[int, int]:
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or any(not isinstance(side, int) or isinstance(side, bool) or side <= 0 for side in size)
    ):
        raise ValueError(f"size is expected to be a sequence of 2 positive integers (height, width), got {size!r}")
    return size[0], size[1]


def _contained_size(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """Size of an image scaled to touch the target from inside.

    The rounding (half up) is in integers so that every implementation of the preprocessing, in whatever language,
    arrives at the same pixel.
    """
    target_h, target_w = target
    if target_h * width <= target_w * height:
        return target_h, max(1, (2 * width * target_h + height) // (2 * height))
    return max(1, (2 * height * target_w + width) // (2 * width)), target_w


def _source_index(length: int, before: int, after: int, pad_mode: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which row (or column) of the image each row of the padded image shows; NumPy's own padding says it.

    Unlike :func:`torch.nn.functional.pad`, this holds for borders wider than the image, which reflect repeatedly.
    """
    index = np.arange(length, dtype=np.int64)
    if pad_mode == "edge":
        return np.pad(index, (before, after), mode="edge")
    if pad_mode == "reflect":
        return np.pad(index, (before, after), mode="reflect")
    return np.pad(index, (before, after), mode="symmetric")


def _pad_pil(image: Image.Image, target: tuple[int, int], pad_mode: str) -> Image.Image:
    top, left = (target[0] - image.height) // 2, (target[1] - image.width) // 2
    if pad_mode == "constant":
        canvas = Image.new(image.mode, (target[1], target[0]), 0)
        if image.mode == "P":
            canvas.putpalette(image.getpalette() or [])
        canvas.paste(image, (left, top))
        return canvas
    if image.mode == "1":  # its raw bytes hold eight pixels each
        return _pad_pil(image.convert("L"), target, pad_mode).convert("1")
    rows = _source_index(image.height, top, target[0] - image.height - top, pad_mode)
    cols = _source_index(image.width, left, target[1] - image.width - left, pad_mode)
    padded = np.asarray(image)[rows[:, None], cols]
    result = Image.frombytes(image.mode, (target[1], target[0]), padded.tobytes())
    if image.mode == "P":
        result.putpalette(image.getpalette() or [])
    return result


def _pad_tensor(image: Tensor, target: tuple[int, int], pad_mode: str) -> Tensor:
    height, width = image.shape[-2:]
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    bottom, right = target[0] - height - top, target[1] - width - left
    if pad_mode == "constant":
        return torch.nn.functional.pad(image, (left, right, top, bottom))
    rows = torch.from_numpy(_source_index(height, top, bottom, pad_mode)).to(image.device)
    cols = torch.from_numpy(_source_index(width, left, right, pad_mode)).to(image.device)
    return image.index_select(-2, rows).index_select(-1, cols)


def _pad_centered(inpt: Any, target: tuple[int, int], pad_mode: str) -> Any:
    """Pad an image, or what describes one, to ``target`` with the image in the middle (the odd pixel goes last)."""
    height, width = F.get_size(inpt)
    if (height, width) == target:
        return inpt
    if isinstance(inpt, Image.Image):
        return _pad_pil(inpt, target, pad_mode)
    if isinstance(inpt, (tv_tensors.Image, tv_tensors.Video, tv_tensors.Mask)):
        return tv_tensors.wrap(_pad_tensor(inpt.as_subclass(Tensor), target, pad_mode), like=inpt)
    if isinstance(inpt, tv_tensors.TVTensor):
        # Boxes and keypoints only move: what a mirrored border repeats is not annotated twice.
        top, left = (target[0] - height) // 2, (target[1] - width) // 2
        return F.pad(inpt, [left, top, target[1] - width - left, target[0] - height - top])
    return _pad_tensor(inpt, target, pad_mode)


class Resize(TorchvisionResize):
    """Resize to an exact size, either stretching the image or keeping its aspect ratio and padding the rest.

    With ``mode=ResizeMethod.PAD``, an image of height h and width w is scaled to touch the target size (H, W) from
    inside, its other side rounded half up to at least one pixel, and placed in the middle; where the border is odd, the
    larger part goes to the right or the bottom. Takes what torchvision's transform takes: PIL images, tensors of shape
    (..., C, H, W), tv_tensors, and nested samples of them. Bounding boxes and keypoints follow the image, masks are
    padded like it.

    Args:
        size: the target (height, width) in pixels
        mode: :attr:`ResizeMethod.SQUISH` stretches as torchvision does, :attr:`ResizeMethod.PAD` keeps the aspect ratio
        pad_mode: what fills the border, as in :func:`numpy.pad`: ``constant`` (zeros), ``edge``, ``reflect`` or
            ``symmetric``
        **kwargs: ``interpolation`` and ``antialias`` of :class:`torchvision.transforms.v2.Resize`

    Raises:
        TypeError: if ``mode`` is not a :class:`ResizeMethod`
        ValueError: if ``size`` is not two positive integers, ``pad_mode`` is unknown, or ``max_size`` is given

    Example:
        >>> from PIL import Image
        >>> from holocron.transforms import Resize, ResizeMethod
        >>> transform = Resize((224, 224), mode=ResizeMethod.PAD)
        >>> transform(Image.new("RGB", (640, 480))).size
        (224, 224)
    """

    _v1_transform_cls = None  # torchvision would script its own transform in place of this one

    def __init__(
        self,
        size: tuple[int, int],
        mode: ResizeMethod = ResizeMethod.SQUISH,
        pad_mode: str = "constant",
        **kwargs: Any,
    ) -> None:
        if not isinstance(mode, ResizeMethod):
            raise TypeError(f"mode is expected to be a ResizeMethod, got {mode!r}")
        target = _checked_size(size)
        if pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode is expected to be one of {', '.join(PAD_MODES)}, got {pad_mode!r}")
        if kwargs.get("max_size") is not None:
            raise ValueError(f"max_size has no meaning when both sides are given, got {kwargs['max_size']!r}")
        super().__init__(target, **kwargs)
        self.mode: ResizeMethod = mode
        self.pad_mode: str = pad_mode
        self.size: tuple[int, int] = target

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image, mask, set of boxes or set of keypoints; torchvision calls this for each part of a sample.

        Args:
            inpt: the part
            params: unused, the transform draws nothing

        Returns:
            the part at the target size, of the type it came in
        """
        if self.mode is ResizeMethod.SQUISH:
            return super().transform(inpt, params)
        size = F.get_size(inpt)
        contained = _contained_size(size[0], size[1], self.size)
        resized = self._call_kernel(
            F.resize, inpt, list(contained), interpolation=self.interpolation, antialias=self.antialias
        )
        return _pad_centered(resized, self.size, self.pad_mode)


class RandomZoomOut(nn.Module):
    """Shrink an image by a random factor and centre it on a black canvas.

    The image keeps its aspect ratio. Its area on the canvas is drawn uniformly as a fraction of the canvas; where the
    aspect ratio leaves no room for that much, the image is as large as fits.

    Args:
        size: the (height, width) of the canvas in pixels
        scale: the range of the image's area relative to the canvas, within (0, 1]
        **kwargs: the keyword arguments of :func:`torchvision.transforms.functional.resize`

    Raises:
        ValueError: if ``size`` is not two positive integers, or ``scale`` is not an increasing couple within (0, 1]

    Example:
        >>> from PIL import Image
        >>> from holocron.transforms import RandomZoomOut
        >>> transform = RandomZoomOut((224, 224), scale=(0.3, 1.0))
        >>> transform(Image.new("RGB", (640, 480))).size
        (224, 224)
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float] = (0.5, 1.0), **kwargs: Any) -> None:
        target = _checked_size(size)
        if (
            not isinstance(scale, Sequence) or len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1  # NaN fails as well
        ):
            raise ValueError(
                f"scale is expected to be a couple of floats in (0, 1], the first at most the second, got {scale!r}"
            )
        super().__init__()
        self.size: tuple[int, int] = target
        self.scale: tuple[float, float] = (float(scale[0]), float(scale[1]))
        self._kwargs: Mapping[str, Any] = dict(kwargs)

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Zoom out of an image.

        Args:
            image: a PIL image or a tensor of shape (..., C, H, W)

        Returns:
            the canvas, of the type of the image; a tensor has shape (..., C, *size)
        """
        height, width = F.get_size(image)
        fraction = float(torch.empty(1).uniform_(*self.scale))
        limits = _contained_size(height, width, self.size)
        side = math.sqrt(fraction * self.size[0] * self.size[1])
        ratio = math.sqrt(height / width)
        shrunk = [min(limits[0], max(1, round(side * ratio))), min(limits[1], max(1, round(side / ratio)))]
        return _pad_centered(F.resize(image, shrunk, **self._kwargs), self.size, "constant")

    def extra_repr(self) -> str:
        """Show the arguments in ``repr``."""
        return f"size={self.size}, scale={self.scale}"
