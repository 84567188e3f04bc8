"""Observers: from a stream of activations to the ranges that 8 bits should cover.

A quantizer of step `s` represents the multiples of `s` between two ends, zero among them, and clips what lies beyond. A
wide range wastes resolution on rare values; a narrow one clips them. The four methods strike that balance differently,
each in constant memory: `minmax` keeps two numbers, the others a :class:`~calib.histogram.Histogram`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import CalibrationError
from .histogram import Extremes, Histogram

METHODS = ("minmax", "percentile", "entropy", "mse")

SYMMETRIC_LEVELS = 127
"""Levels on each side of zero of symmetric int8: the lowest of the 256 codes is not used."""
ASYMMETRIC_LEVELS = 255
"""Steps between the ends of asymmetric uint8."""

# A range below this is no signal, and its scale times that of a weight would underflow float32.
_TINY = 2.0**-100
_PERCENTILE = 99.99

Array = NDArray[np.float64]
# Loss of the range from low to high when so many steps are spread over it.
_Loss = Callable[[float, float, int], float]


@dataclass(frozen=True)
class TensorRange:
    """What was seen of one tensor, and what 8 bits should cover of it.

    Attributes:
        minimum: smallest value observed.
        maximum: largest value observed.
        symmetric: where signed symmetric int8 clips, > 0: its scale is `symmetric / 127`.
        asymmetric: the ends of asymmetric uint8, low ≤ 0 ≤ high and low < high: its scale is `(high - low) / 255`.
    """

    minimum: float
    maximum: float
    symmetric: float
    asymmetric: tuple[float, float]


class Observer(Protocol):
    """Watches one tensor over a calibration run. Not to be shared between threads."""

    def observe(self, x: NDArray[Any]) -> None:
        """Take in the tensor's value for one batch.

        Args:
            x: floating-point values, any shape

        Raises:
            CalibrationError: if it is not floating point, or holds a NaN or an infinity
        """
        ...

    def ranges(self) -> TensorRange:
        """The ranges for all that was seen so far.

        Raises:
            CalibrationError: if nothing was
        """
        ...


def make_observer(method: str, name: str = "") -> Observer:
    """An observer of one tensor.

    Args:
        method: `"minmax"`: all that was seen; `"percentile"`: all but the outermost 0.01 %; `"entropy"`: the least
            Kullback-Leibler divergence between the values and their quantized form; `"mse"`: the least expected squared
            error
        name: the tensor's name, for errors

    Returns:
        the observer

    Raises:
        CalibrationError: if there is no such method
    """
    classes: dict[str, Callable[[str], Observer]] = {
        "minmax": MinMaxObserver,
        "percentile": PercentileObserver,
        "entropy": EntropyObserver,
        "mse": MSEObserver,
    }
    if method not in classes:
        raise CalibrationError(f"unknown calibration method {method!r}: expected one of {', '.join(METHODS)}")
    return classes[method](name)


class MinMaxObserver:
    """Covers everything that was seen.

    Args:
        name: the tensor's name, for errors
    """

    def __init__(self, name: str = "") -> None:
        self._seen = Extremes(name)

    def observe(self, x: NDArray[Any]) -> None:
        """Take in the tensor's value for one batch (see :class:`Observer`)."""
        self._seen.observe(x)

    def ranges(self) -> TensorRange:
        """The ranges for all that was seen so far (see :class:`Observer`)."""
        trivial = _trivial_range(self._seen)
        low, high = min(self._seen.minimum, 0.0), max(self._seen.maximum, 0.0)
        return trivial or TensorRange(self._seen.minimum, self._seen.maximum, max(-low, high), (low, high))


class _HistogramObserver(ABC):
    """An observer whose ranges follow from a histogram."""

    def __init__(self, name: str = "") -> None:
        self._seen = Histogram(name)

    def observe(self, x: NDArray[Any]) -> None:
        """Take in the tensor's value for one batch (see :class:`Observer`)."""
        self._seen.observe(x)

    def ranges(self) -> TensorRange:
        """The ranges for all that was seen so far (see :class:`Observer`)."""
        trivial = _trivial_range(self._seen)
        if trivial:
            return trivial
        low, high = min(self._seen.minimum, 0.0), max(self._seen.maximum, 0.0)
        symmetric, asymmetric = self._clip(low, high)
        return TensorRange(self._seen.minimum, self._seen.maximum, symmetric, asymmetric)

    @abstractmethod
    def _clip(self, low: float, high: float) -> tuple[float, tuple[float, float]]:
        """Where symmetric int8 clips, and the ends of asymmetric uint8, for values between `low` ≤ 0 ≤ `high`."""


class PercentileObserver(_HistogramObserver):
    """Covers all but the outermost 0.01 % of the values, zeros counted.

    Values of both signs lose half of that share at each end; values of one sign lose it at their far end.

    Args:
        name: the tensor's name, for errors
        percentile: share to cover, in percent, above 50 and up to 100
    """

    def __init__(self, name: str = "", percentile: float = _PERCENTILE) -> None:
        super().__init__(name)
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"expected a percentile above 50 and up to 100, got {percentile}")
        self._outside = 1.0 - percentile / 100.0

    def _clip(self, low: float, high: float) -> tuple[float, tuple[float, float]]:
        counts, edges = self._seen.density()
        largest = max(-low, high)
        outside = self._outside * self._seen.count
        zero = int(np.searchsorted(edges, 0.0))
        up, down = counts[zero:], counts[:zero][::-1]
        magnitudes = np.zeros(max(up.size, down.size), np.int64)
        magnitudes[: up.size] += up
        magnitudes[: down.size] += down
        width = self._seen.width
        share = outside / 2.0 if low < 0.0 < high else outside
        symmetric = min(_upper_quantile(magnitudes, width, outside), largest)
        top = min(_upper_quantile(up, width, share), high)
        bottom = -min(_upper_quantile(down, width, share), -low)
        # An empty range would erase a tensor that is zero nearly everywhere: there what is left counts.
        return symmetric or largest, ((bottom + 0.0, top) if bottom < top else (low, high))


def _upper_quantile(counts: NDArray[np.int64], width: float, outside: float) -> float:
    """Where `outside` values lie beyond, in bins of one width that start at zero; 0 if there are not as many."""
    beyond = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]]).astype(np.float64)  # at each edge; decreasing
    if outside >= beyond[0]:
        return 0.0
    # The last edge with more than that beyond it; the bin that starts there holds the quantile.
    edge = int(np.flatnonzero(beyond > outside)[-1])
    return width * (edge + (beyond[edge] - outside) / float(counts[edge]))


class EntropyObserver(_HistogramObserver):
    """Covers the range whose quantized distribution tells least apart from the distribution itself.

    The reference is the distribution clipped to the range, what lies beyond folded into its outermost bins. Its
    quantized form spreads what falls to each level, clipped values not counted, over those bins of the level that are
    not empty. The range with the least Kullback-Leibler divergence is kept. Exact zeros are left out on both sides:
    every range represents them, and their spike after a ReLU would outweigh the shape. What the divergence of so many
    bins from so many levels would be by chance alone is taken off, or few values would be clipped hard for the noise of
    their histogram.

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017.

    Args:
        name: the tensor's name, for errors
    """

    def _clip(self, low: float, high: float) -> tuple[float, tuple[float, float]]:
        counts, edges = self._seen.density()
        # With less than a bin to a level the quantized form is the distribution, whatever it clips.
        return _search(_divergence(counts, edges), low, high, floor=(SYMMETRIC_LEVELS + 1) * self._seen.width)


class MSEObserver(_HistogramObserver):
    """Covers the range with the least expected squared error of rounding and clipping together.

    The expectation is a closed form: within a bin the values count as uniform, and the squared error of a uniform
    density integrates exactly, wherever the levels and the ends of the range fall in the bin.

    Args:
        name: the tensor's name, for errors
    """

    def _clip(self, low: float, high: float) -> tuple[float, tuple[float, float]]:
        counts, edges = self._seen.density()
        return _search(_squared_error(counts, edges), low, high, floor=self._seen.width)


def _squared_error(counts: NDArray[np.int64], edges: Array) -> _Loss:
    """Mean squared error of the values of a histogram under a quantizer.

    With u = x/s and j its level, clipped, the error integrated from 0 to x is s³ (j/12 + (u − j)³/3): each whole level
    between adds s³/12, and the rest is the parabola of the level that x is in, or is clipped to.
    """
    # F is needed at the edges of bins that hold something; summed by parts, each edge has one weight.
    density = counts / ((edges[1] - edges[0]) * max(int(counts.sum()), 1))
    weights = np.concatenate([[0.0], density]) - np.concatenate([density, [0.0]])
    used = np.flatnonzero(weights)
    weights, points = weights[used], edges[used]

    def loss(low: float, high: float, levels: int) -> float:
        step = (high - low) / levels
        first = round(low / step)
        u = points / step
        j = np.clip(np.rint(u), first, first + levels)
        u -= j
        return float(step**3 * ((j / 12.0 + u * u * u / 3.0) @ weights))

    return loss


def _divergence(counts: NDArray[np.int64], edges: Array) -> _Loss:
    """Kullback-Leibler divergence of the values of a histogram from their quantized form."""
    width = edges[1] - edges[0]
    cumulative = np.concatenate([[0.0], np.cumsum(counts)]).astype(np.float64)
    # Length of the non-empty bins up to each edge: levels spread their mass over this, so that gaps stay empty.
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)]) * width

    def loss(low: float, high: float, levels: int) -> float:
        step = (high - low) / levels
        # The bins from edge `begin` to edge `end` are inside: those that the range reaches into.
        begin = max(int(np.searchsorted(edges, low, side="right")) - 1, 0)
        end = min(int(np.searchsorted(edges, high)), edges.size - 1)
        inside = counts[begin:end].astype(np.float64)
        occupied = np.flatnonzero(inside)
        if occupied.size == 0:
            return float("inf")
        reference = inside.copy()
        reference[occupied[0]] += cumulative[begin]
        reference[occupied[-1]] += cumulative[-1] - cumulative[end]
        first = round(low / step)
        bounds = np.clip((first + 0.5 + np.arange(levels)) * step, edges[begin], edges[end])
        bounds = np.concatenate([[edges[begin]], bounds, [edges[end]]])
        at = np.interp(bounds, edges, filled)
        mass = np.interp(bounds, edges, cumulative)
        # Flat in the filled length between the bounds of a level: the quantized form's cumulative distribution.
        quantized = np.diff(np.interp(filled[begin : end + 1], at, mass))[occupied] / inside.sum()
        p = reference[occupied] / cumulative[-1]
        by_chance = (occupied.size - np.count_nonzero(np.diff(at))) / (2.0 * cumulative[-1])
        return float(np.sum(p * np.log(p / quantized)) - by_chance)

    return loss


def _search(loss: _Loss, low: float, high: float, floor: float) -> tuple[float, tuple[float, float]]:
    """The symmetric and the asymmetric range of least loss.

    Args:
        loss: of ranges
        low: smallest value or zero
        high: largest value or zero
        floor: shortest side to try: within one bin the histogram knows nothing

    Returns:
        where symmetric int8 clips, and the ends of asymmetric uint8
    """
    largest = max(-low, high)
    symmetric = _minimize(lambda clip: loss(-clip, clip, 2 * SYMMETRIC_LEVELS), largest, floor)
    if low == 0.0:
        return symmetric, (0.0, _minimize(lambda clip: loss(0.0, clip, ASYMMETRIC_LEVELS), high, floor))
    if high == 0.0:
        return symmetric, (-_minimize(lambda clip: loss(-clip, 0.0, ASYMMETRIC_LEVELS), -low, floor), 0.0)

    def two_sided_loss(bottom: float, top: float) -> float:
        return loss(*_on_grid(bottom, top), ASYMMETRIC_LEVELS)

    def top_above(bottom: float) -> float:
        return _minimize(lambda clip: two_sided_loss(bottom, clip), high, floor)

    def bottom_below(top: float) -> float:
        return -_minimize(lambda clip: two_sided_loss(-clip, top), -low, floor)

    # Both ends shrink together first, so that neither hides the gain of the other; then each by itself.
    share = _minimize(lambda share: two_sided_loss(share * low, share * high), 1.0, floor / largest)
    bottom, top = share * low, share * high
    for _ in range(2):
        top = top_above(bottom)
        bottom = bottom_below(top)
    return symmetric, _on_grid(bottom, top)


def _on_grid(low: float, high: float) -> tuple[float, float]:
    """Move a range by less than a step so that zero is one of its levels."""
    step = (high - low) / ASYMMETRIC_LEVELS
    zero = round(-low / step)
    return 0.0 - zero * step, (ASYMMETRIC_LEVELS - zero) * step


def _minimize(loss: Callable[[float], float], largest: float, floor: float) -> float:
    """Search (0, largest] for the least loss: in geometric steps of 15 % or less, then twice between the neighbours."""
    candidates = np.geomspace(min(floor, largest), largest, 64)
    for _ in range(3):
        best = int(np.argmin([loss(float(c)) for c in candidates]))
        left, right = candidates[max(best - 1, 0)], candidates[min(best + 1, candidates.size - 1)]
        result = float(candidates[best])
        candidates = np.unique(np.append(np.linspace(left, right, 17), result))
    return result


def _trivial_range(seen: Extremes) -> TensorRange | None:
    """The range of a tensor that is nothing but zeros: any will do that is not empty."""
    if seen.count == 0:
        label = f"tensor {seen.name!r}" if seen.name else "the tensor"
        raise CalibrationError(f"{label} was never observed: no calibration image reached it")
    if max(-seen.minimum, seen.maximum) < _TINY:
        return TensorRange(seen.minimum, seen.maximum, 1.0, (0.0, 1.0))
    return None
