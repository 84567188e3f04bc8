"""Searching for the fewest layers that must stay in higher precision for a network to lose no more than it may.

Layers are ranked by what each does alone, and only prefixes of a ranking are tried until one suffices: with few images
a search that is free to combine layers finds the combination that suits these images. Two rankings are tried, by the
noise of a layer and by its noise for each multiply-accumulate, since a layer that is cheap to keep may be worth more
than a noisy one. Then each layer that was kept is put back where that still suffices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from .summary import Candidate

_MOST_EVALUATIONS = 300
_MOST_CONFIRMATIONS = 6


@dataclass(frozen=True)
class RankedLayer:
    """A layer that may stay in higher precision.

    Attributes:
        name: of its output.
        macs: multiply-accumulates for one image.
        noise: what it does to the network's output alone in INT8, such that noises of layers add up.
    """

    name: str
    macs: int
    noise: float


@dataclass(frozen=True)
class Measurement:
    """What a choice of layers reaches.

    Attributes:
        drop: points lost on all images.
        choosing: the figure that choices are made by, in points.
        confirming: the figure that only confirms or refuses what was chosen, in points.
        snr_db: signal-to-noise ratio at the network's output, in decibels.
    """

    drop: float
    choosing: float
    confirming: float
    snr_db: float


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        kept_float: names of the layers that stay in higher precision, in graph order.
        met: whether the choice loses no more than it may, by both figures.
        candidates: every choice that was measured, in the order of the search.
        chosen: index of the choice among them.
    """

    kept_float: tuple[str, ...]
    met: bool
    candidates: tuple[Candidate, ...]
    chosen: int


Evaluate = Callable[[frozenset[str]], Measurement]


def search(
    evaluate: Evaluate,
    layers: Sequence[RankedLayer],
    max_drop: float,
    start: Collection[str] = (),
    most_evaluations: int = _MOST_EVALUATIONS,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
    confirm: Callable[[frozenset[str]], bool] | None = None,
) -> SearchResult:
    """Find few layers that must stay in higher precision.

    If evaluations are monotone (keeping more layers never loses more), no layer of the result can be put back without
    losing too much. If they are not, the result still loses no more than it may, as measured, wherever `met` is true.

    Args:
        evaluate: measures a network with some layers kept; called once for each choice
        layers: that may be kept, in graph order
        max_drop: points that may be lost
        start: names of layers that are kept in any case
        most_evaluations: choices to measure before the best found so far is taken
        seconds: after which the best found so far is taken
        clock: tells the seconds
        confirm: whether a choice holds where it will be used, which takes long to find out: asked of the best ones in
            turn, some of them, until one does; where none does, every layer is kept

    Returns:
        the choice; with every layer kept and `met` false where not even that suffices

    Raises:
        ValueError: if `max_drop` is no number of points from 0 to 100, or `start` names a layer that is not there
    """
    if not 0 <= max_drop <= 100:
        raise ValueError(f"max_drop is {max_drop}, expected points from 0 to 100")
    names = [layer.name for layer in layers]
    unknown = sorted(set(start) - set(names))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of the layers {', '.join(names)}")
    end = clock() + seconds
    book = _Book(evaluate, layers, max_drop, most_evaluations, lambda: clock() >= end)
    fixed, everything = frozenset(start), frozenset(names)
    if book.meets(fixed) and (confirm is None or confirm(fixed)):
        return book.result(fixed)
    if not book.meets(everything):
        return book.result(everything)
    free = [layer for layer in layers if layer.name not in fixed]
    found = [everything]
    for key in (_noise, _noise_per_mac):
        ranking = [layer.name for layer in sorted(free, key=key, reverse=True)]
        found.append(_shortest_prefix(book, fixed, ranking))
    best = _put_back(book, min(found, key=book.cost), fixed)
    if confirm is None:
        return book.result(best)
    others = [kept for kept in sorted(book.suitable(), key=book.cost) if kept not in (best, fixed, everything)]
    for kept in [best, *others][:_MOST_CONFIRMATIONS]:
        if confirm(kept):
            return book.result(kept)
    return book.result(everything)


def _noise(layer: RankedLayer) -> float:
    return layer.noise


def _noise_per_mac(layer: RankedLayer) -> float:
    return layer.noise / max(layer.macs, 1)


def _shortest_prefix(book: _Book, fixed: frozenset[str], ranking: Sequence[str]) -> frozenset[str]:
    """The shortest prefix of a ranking that suffices, by bisection on the one figure, confirmed by the other."""
    low, high = 0, len(ranking)  # `low` does not suffice, `high` does
    while high - low > 1 and not book.exhausted:
        middle = (low + high) // 2
        if book.looks_good(fixed | set(ranking[:middle])):
            high = middle
        else:
            low = middle
    while high < len(ranking) and not book.exhausted and not book.meets(fixed | set(ranking[:high])):
        high += 1
    chosen = fixed | set(ranking[:high])
    return chosen if book.known(chosen) and book.meets(chosen) else fixed | set(ranking)


def _put_back(book: _Book, kept: frozenset[str], fixed: frozenset[str]) -> frozenset[str]:
    """Put layers back to INT8 one at a time, those that do the most work first, until none can be."""
    changed = True
    while changed:
        changed = False
        for layer in sorted(book.layers, key=lambda layer: (-layer.macs, layer.noise)):
            without = kept - {layer.name}
            if layer.name not in kept or layer.name in fixed or book.exhausted:
                continue
            if book.meets(without):
                kept, changed = without, True
    return kept


class _Book:
    """Every choice that was measured, each once."""

    def __init__(
        self,
        evaluate: Evaluate,
        layers: Sequence[RankedLayer],
        max_drop: float,
        most_evaluations: int,
        late: Callable[[], bool],
    ) -> None:
        self.layers = tuple(layers)
        self._evaluate = evaluate
        self._max_drop = max_drop
        self._most = most_evaluations
        self._late = late
        self._seen: dict[frozenset[str], Measurement] = {}
        self._macs = sum(layer.macs for layer in layers)

    @property
    def exhausted(self) -> bool:
        return len(self._seen) >= self._most or self._late()

    def known(self, kept: frozenset[str]) -> bool:
        return kept in self._seen

    def looks_good(self, kept: frozenset[str]) -> bool:
        """Whether a choice loses no more than it may by the figure that choices are made by."""
        return self._measure(kept).choosing <= self._max_drop

    def meets(self, kept: frozenset[str]) -> bool:
        """The same by both figures."""
        return self.looks_good(kept) and self._measure(kept).confirming <= self._max_drop

    def suitable(self) -> list[frozenset[str]]:
        """The choices so far that lose no more than they may."""
        return [kept for kept in list(self._seen) if self.meets(kept)]

    def cost(self, kept: frozenset[str]) -> tuple[int, int]:
        """Fewer layers are better, and among as many those that do less work."""
        return len(kept), sum(layer.macs for layer in self.layers if layer.name in kept)

    def result(self, kept: frozenset[str]) -> SearchResult:
        return SearchResult(
            kept_float=self._in_order(kept),
            met=self.meets(kept),
            candidates=tuple(
                Candidate(self._in_order(choice), self._int8_share(choice), seen.drop, seen.snr_db)
                for choice, seen in self._seen.items()
            ),
            chosen=list(self._seen).index(kept),
        )

    def _measure(self, kept: frozenset[str]) -> Measurement:
        if kept not in self._seen:
            self._seen[kept] = self._evaluate(kept)
        return self._seen[kept]

    def _in_order(self, kept: frozenset[str]) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.name in kept)

    def _int8_share(self, kept: frozenset[str]) -> float:
        macs = sum(layer.macs for layer in self.layers if layer.name not in kept)
        return macs / self._macs if self._macs else 0.0
