"""A histogram of a stream of unknown range, in constant memory and one pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CalibrationError

BINS = 4096
_CHUNK = 32768  # the scratch arrays of one chunk stay in the second-level cache; larger and smaller were slower
_SMALLEST_EXPONENT = -110  # bin widths stay far above float32's subnormals, so that their reciprocals are finite


class Extremes:
    """The smallest and largest value, as float32, of a stream of arrays.

    Args:
        name: the tensor's name, for errors
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.count = 0
        self.minimum = math.inf
        self.maximum = -math.inf

    def observe(self, x: NDArray[Any]) -> None:
        """Take in one array.

        Args:
            x: floating-point values, any shape

        Raises:
            CalibrationError: if it is not floating point, or holds a NaN or an infinity
        """
        if x.size == 0:
            return
        low, high = _extremes(x, self.name)
        self.count += x.size
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)


class Histogram(Extremes):
    """Counts of a stream of arrays over equal bins whose range grows with what arrives.

    Bin edges are the multiples of `width`, a power of two: the smallest with which zero and all values seen fit into
    the bins. When a value falls outside, the width doubles and pairs of neighbours merge. Every edge of the wider grid
    is an edge of the finer one and the scaling by a power of two is exact (short of underflow), so the counts are those
    that one pass with the final width would give, in whatever order the arrays come. Exact zeros, half of what follows
    a ReLU, are counted apart.

    Attributes:
        width: of one bin; 0 while nothing but zeros was seen.
        zeros: number of values that are exactly zero; they are in no bin.

    Args:
        name: the tensor's name, for errors
        bins: number of bins, even; with zero in range, between half of them and all are in use
    """

    def __init__(self, name: str = "", bins: int = BINS) -> None:
        super().__init__(name)
        if bins < 4 or bins % 2:
            raise ValueError(f"expected an even number of at least 4 bins, got {bins}")
        self.bins = bins
        self.width = 0.0
        self.zeros = 0
        self._first = 0  # index on the grid of `_counts[0]`: that bin starts at `_first * width`
        self._counts = np.zeros(bins, np.int64)

    def observe(self, x: NDArray[Any]) -> None:
        """Take in one array.

        Args:
            x: floating-point values, any shape

        Raises:
            CalibrationError: if it is not floating point, or holds a NaN or an infinity
        """
        super().observe(x)
        if x.size == 0:
            return
        if self.minimum == self.maximum == 0.0:
            self.zeros += x.size
            return
        self._fit()
        flat = x.reshape(-1)
        size = min(_CHUNK, flat.size)
        scaled, index, is_zero = np.empty(size, np.float32), np.empty(size, np.intp), np.empty(size, np.bool_)
        per_width = np.float32(1.0 / self.width)
        first = np.float32(self._first)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK].astype(np.float32, copy=False)
            f, i, z = scaled[: chunk.size], index[: chunk.size], is_zero[: chunk.size]
            np.multiply(chunk, per_width, out=f)
            np.floor(f, out=f)
            np.subtract(f, first, out=f)
            np.copyto(i, f, casting="unsafe")
            self._counts += np.bincount(i, minlength=self.bins)
            np.equal(chunk, 0, out=z)
            self.zeros += int(np.count_nonzero(z))

    def density(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The counts without the exact zeros, over the bins that are in use.

        Returns:
            counts of shape (B,), and the B + 1 edges, zero among them, in the unit of the tensor
        """
        if self.width == 0.0:
            return np.zeros(1, np.int64), np.array([0.0, 1.0])
        low = math.floor(min(self.minimum, 0.0) / self.width)
        high = math.floor(max(self.maximum, 0.0) / self.width) + 1
        counts = self._counts[low - self._first : high - self._first].copy()
        counts[-low] -= self.zeros
        return counts, np.arange(low, high + 1, dtype=np.float64) * self.width

    def _fit(self) -> None:
        """Widen the bins until the extremes are inside."""
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        width = self.width or _smallest_width(low, high, self.bins)
        first, last = math.floor(low / width), math.floor(high / width)
        while last - first >= self.bins:
            width *= 2.0
            first, last = math.floor(low / width), math.floor(high / width)
        if self.width == 0.0:
            self.width, self._first = width, first
            self._counts[-first] = self.zeros
            return
        doublings = round(math.log2(width / self.width))
        if doublings == 0 and first >= self._first and last < self._first + self.bins:
            return
        counts = np.zeros(self.bins, np.int64)
        used = np.flatnonzero(self._counts)
        np.add.at(counts, ((used + self._first) >> doublings) - first, self._counts[used])
        self.width, self._first, self._counts = width, first, counts


def _smallest_width(low: float, high: float, bins: int) -> float:
    """A power of two that is too fine or just fine enough for `bins` bins from `low` to `high`."""
    exponent = math.frexp((high - low) / bins)[1] - 1
    return math.ldexp(1.0, max(exponent, _SMALLEST_EXPONENT))


def _extremes(x: NDArray[Any], name: str) -> tuple[float, float]:
    label = f"tensor {name!r}" if name else "the tensor"
    if not np.issubdtype(x.dtype, np.floating):
        raise CalibrationError(f"{label} holds {x.dtype}: only floating-point activations have a range to quantize")
    with np.errstate(over="ignore"):
        low, high = float(np.float32(x.min())), float(np.float32(x.max()))
    if math.isnan(low) or math.isnan(high):
        raise CalibrationError(f"{label} holds NaN: check the model and the images")
    if math.isinf(low) or math.isinf(high):
        raise CalibrationError(f"{label} holds an infinity, or overflows float32: check the model and the images")
    return low, high
