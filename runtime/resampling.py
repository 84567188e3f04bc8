"""Resizing as two matrix products: the weights that Pillow resizes with, which depend on the sizes alone.

An image `X` of one channel, of h × w pixels, becomes `rows · X · columns`. Pillow rounds to 8 bits after each product,
in fixed point: a weight is a whole number of units of 2⁻²². Whoever does the same with these matrices, in the same
order, gets the same pixels, wherever the products are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import PIL
from numpy.typing import NDArray

from .manifest import Preprocessing
from .preprocess import padded_box

WEIGHT_BITS = 22
"""Weights are multiples of 2 to the minus this: what Pillow has left of 32 bits for pixels of 8 and a few of room."""

_CACHED_SIZES = 8
_CHOOSES_ORDER = int(PIL.__version__.partition(".")[0]) >= 13
_Float64 = NDArray[np.float64]
_Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ResizeMatrices:
    """What resizes images of one size, padding included.

    Attributes:
        rows: float32 of shape (H, h), from h rows of the image to the network's H; read-only.
        columns: float32 of shape (w, W), from w columns to the network's W; read-only.
    """

    rows: _Float32
    columns: _Float32


def rows_first(height: int, width: int, preprocessing: Preprocessing) -> bool:
    """Whether the Pillow installed here multiplies by the rows first, and by the columns then.

    Before release 13 it never does. From there on it does where that takes many more rows away than columns, which is
    less work. The order decides how the values in between are rounded, and nothing else: a pixel differs by 1 at most.

    Args:
        height: of the image, in pixels
        width: of the image, in pixels
        preprocessing: gives the network's size, the filter, and what happens to the aspect ratio
    """
    _, _, inner_height, inner_width = padded_box(height, width, preprocessing)
    fewer_rows, fewer_columns = height - inner_height, width - inner_width
    filtered = preprocessing.interpolation != "nearest"
    return _CHOOSES_ORDER and filtered and fewer_columns != 0 and fewer_rows > max(0, 2 * fewer_columns)


@lru_cache(maxsize=_CACHED_SIZES)
def resize_matrices(height: int, width: int, preprocessing: Preprocessing) -> ResizeMatrices:
    """The matrices that take an image to the network's size. Those of the latest few sizes are remembered.

    Args:
        height: of the image, in pixels
        width: of the image, in pixels
        preprocessing: gives the network's size, the filter, and what happens to the aspect ratio

    Returns:
        both matrices; padding is rows and columns of zeros, or repeated ones, as the mode has it
    """
    return _matrices(height, width, preprocessing, rows_done=False)


@lru_cache(maxsize=_CACHED_SIZES)
def resize_matrices_after_rows(height: int, width: int, preprocessing: Preprocessing) -> ResizeMatrices:
    """The same for an image whose rows were multiplied already: what is left is the columns and the padding.

    Args:
        height: of the image before that, in pixels
        width: of the image, in pixels
        preprocessing: gives the network's size, the filter, and what happens to the aspect ratio
    """
    return _matrices(height, width, preprocessing, rows_done=True)


def _matrices(height: int, width: int, preprocessing: Preprocessing, rows_done: bool) -> ResizeMatrices:
    H, W = preprocessing.size
    top, left, inner_height, inner_width = padded_box(height, width, preprocessing)
    height = inner_height if rows_done else height
    rows = _padded(axis_weights(height, inner_height, preprocessing.interpolation), top, H, preprocessing)
    columns = _padded(axis_weights(width, inner_width, preprocessing.interpolation), left, W, preprocessing)
    columns = np.ascontiguousarray(columns.T)
    for matrix in (rows, columns):
        matrix.flags.writeable = False
    return ResizeMatrices(rows, columns)


def axis_weights(source: int, target: int, interpolation: str) -> _Float32:
    """What Pillow multiplies the pixels of one axis by.

    Args:
        source: number of pixels, 1 at least
        target: number of pixels afterwards, 1 at least
        interpolation: one of :data:`~runtime.manifest.INTERPOLATIONS`; all but nearest widen with the reduction

    Returns:
        float32 array of shape (target, source) whose rows are multiples of 2⁻²² and add up to 1, but for rounding
    """
    weights = np.zeros((target, source), np.float64)
    if interpolation == "nearest":
        # Added up one by one as Pillow does: the rounding errors decide which pixel is the nearest where two are.
        scale = source / target
        index = np.add.accumulate(np.array([0.5 * scale, *[scale] * (target - 1)])).astype(np.int64)
        inside = index < source
        weights[np.flatnonzero(inside), index[inside]] = 1
        return weights.astype(np.float32)
    radius, kernel = _KERNELS[interpolation]
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum((centres - radius * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + radius * stretch + 0.5).astype(np.int64), source)
    taps = first[:, None] + np.arange(int((last - first).max()))
    values = kernel((taps - centres[:, None] + 0.5) * (1 / stretch))
    values[taps >= last[:, None]] = 0
    total = np.add.accumulate(values, axis=1)[:, -1:]
    values = np.divide(values, total, out=values, where=total != 0)
    units = np.trunc(values * 2**WEIGHT_BITS + np.copysign(0.5, values))
    rows = np.broadcast_to(np.arange(target)[:, None], taps.shape)
    used = taps < last[:, None]
    weights[rows[used], taps[used]] = units[used] / 2**WEIGHT_BITS
    return weights.astype(np.float32)


def _padded(weights: _Float32, before: int, length: int, preprocessing: Preprocessing) -> _Float32:
    """Rows of weights for the pixels that padding adds on both sides."""
    inner = len(weights)
    around = (before, length - inner - before)
    if around == (0, 0):
        return weights
    if preprocessing.pad_mode == "constant":
        return np.pad(weights, (around, (0, 0)))
    shown = np.pad(np.arange(inner), around, mode=cast("Any", preprocessing.pad_mode))
    return weights[shown]


def _box(x: _Float64) -> _Float64:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _triangle(x: _Float64) -> _Float64:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _hamming(x: _Float64) -> _Float64:
    x = np.abs(x)
    raised, share = (float(np.float32(value)) for value in (0.54, 0.46))  # Pillow has these two in single precision
    window = np.where(x == 0.0, 1.0, raised + share * np.cos(math.pi * x))  # their sum is not 1
    return np.where(x < 1.0, _sinc(x) * window, 0.0)


def _cubic(x: _Float64) -> _Float64:
    """Cubic convolution with a = −1/2 (Keys, IEEE Transactions on Acoustics, Speech and Signal Processing, 1981)."""
    x = np.abs(x)
    a = -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos(x: _Float64) -> _Float64:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3.0), 0.0)


def _sinc(x: _Float64) -> _Float64:
    scaled = math.pi * x
    return np.divide(np.sin(scaled), scaled, out=np.ones_like(x), where=x != 0)


_KERNELS: dict[str, tuple[float, Callable[[_Float64], _Float64]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _triangle),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}
"""Radius and function of each antialiased filter."""
