"""Choosing which layers to run in INT8 by the time of the whole graph on the machine that is going to run it.

INT8 is not always faster: depthwise and small layers gain little or lose, and between a layer in INT8 and one in float
values are converted. So two things are known of a choice. What it should take is the time of each layer in the
precision that it has, plus a cost for each tensor that crosses from one precision to the other: the choice with the
least is a minimum cut of the graph. What it does take is measured on the whole graph. Cuts for several costs of a
conversion are measured side by side, and the fastest is improved by turning layers, and runs of neighbouring layers,
over, as long as that makes the whole faster and time is left.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

Measure = Callable[[Sequence[frozenset[str]], int], list[list[float]]]
"""Times graphs in turn, A B C A B C …: the layers kept float in each, and the number of rounds, to seconds of each."""

_SECONDS_PER_VALUE = (0.0, 1e-10, 3e-10, 1e-9, 3e-9)
"""What converting a value may cost: from nothing, where it is part of a kernel, to a slow core's pass over memory."""
_USUAL_SECONDS_PER_VALUE = 3e-10
_ROUNDS = 12
_LAST_ROUNDS = 30
_NOISE = 0.005
"""A graph counts as faster where it takes that much less: medians of the same graph differ by as much."""
_HOPELESS = 0.03
"""Moves that should cost that share of the whole, by the times of the layers, are not tried."""


@dataclass(frozen=True)
class TimedLayer:
    """A layer that can be in INT8.

    Attributes:
        name: of its output.
        int8_seconds: its time in INT8; None where it is not known.
        float_seconds: its time in float.
    """

    name: str
    int8_seconds: float | None = None
    float_seconds: float | None = None


@dataclass(frozen=True)
class Link:
    """A tensor that a layer reads.

    Attributes:
        producer: name of the layer that it comes from; None for the input of the graph, which is float.
        consumer: name of the layer that reads it.
        values: number of its elements.
    """

    producer: str | None
    consumer: str
    values: int


@dataclass(frozen=True)
class TuneResult:
    """What was chosen.

    Attributes:
        backend: that was timed.
        kept_float: names of the layers that are faster in float, in graph order.
        layers: all of them, with their times where the backend tells.
        float_ms: latency of the float graph, in milliseconds.
        int8_ms: latency with every layer in INT8.
        tuned_ms: latency of the choice, in the same run.
        measured: every choice that was timed and its latency in milliseconds, in the order of the search.
    """

    backend: str
    kept_float: tuple[str, ...]
    layers: tuple[TimedLayer, ...]
    float_ms: float
    int8_ms: float
    tuned_ms: float
    measured: tuple[tuple[tuple[str, ...], float], ...]

    def sentence(self) -> str:
        """What was found, for people."""
        times = f"float32 {self.float_ms:.2f} ms, all INT8 {self.int8_ms:.2f} ms"
        if len(self.kept_float) == len(self.layers):
            return f"nothing is faster in INT8 on {self.backend} ({times}): the tuned graph is all float"
        if not self.kept_float:
            return f"every layer stays INT8 on {self.backend} ({times}): no mixture was faster"
        kept, count = len(self.kept_float), len(self.layers)
        return f"{kept} of {count} layers are float on {self.backend}: {self.tuned_ms:.2f} ms ({times})"


def latency(seconds: Sequence[float]) -> float:
    """The time of a graph on a machine that does other things too: the median of the faster half of its rounds."""
    faster = sorted(seconds)[: max(1, math.ceil(len(seconds) / 2))]
    return statistics.median(faster)


def tune(
    layers: Sequence[TimedLayer],
    links: Sequence[Link],
    measure: Measure,
    backend: str,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[int, int | None], None] | None = None,
) -> TuneResult:
    """Find the layers that should stay float for the whole to be fastest.

    What is chosen is never slower, as measured side by side, than the float graph and the graph with every layer in
    INT8. Where precision makes no difference a layer stays float.

    Args:
        layers: in graph order; one at least
        links: tensors between them
        measure: times graphs
        backend: its name, for the result
        seconds: after which no new move is tried
        clock: tells the seconds
        progress: called with the number of graphs timed

    Returns:
        the choice
    """
    search = _Search(layers, links, measure, progress)
    naive, everything = frozenset[str](), frozenset(search.names)
    end = clock() + seconds
    first = list(dict.fromkeys([naive, everything, *search.proposals()]))
    times = dict(zip(first, search.time(first, _ROUNDS), strict=True))
    best = min(first, key=lambda kept: latency(times[kept]))
    improved = True
    while improved and clock() < end:
        improved = False
        for move in search.moves(best):
            if clock() >= end:
                break
            if search.is_better(move, best):
                best, improved = move, True
                break
    last = list(dict.fromkeys([everything, naive, best]))
    final = dict(zip(last, map(latency, search.time(last, _LAST_ROUNDS)), strict=True))
    rival = min(everything, naive, key=lambda kept: final[kept])
    if final[best] > final[rival] * (1 - _NOISE):
        best = rival
    return TuneResult(
        backend=backend,
        kept_float=tuple(name for name in search.names if name in best),
        layers=tuple(layers),
        float_ms=1e3 * final[everything],
        int8_ms=1e3 * final[naive],
        tuned_ms=1e3 * final[best],
        measured=tuple(
            (tuple(name for name in search.names if name in kept), 1e3 * value)
            for kept, value in {**search.seen, **final}.items()
        ),
    )


class _Search:
    """What is known of the layers, and which choices were timed."""

    def __init__(
        self,
        layers: Sequence[TimedLayer],
        links: Sequence[Link],
        measure: Measure,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.names = [layer.name for layer in layers]
        self.links = links
        self.seen: dict[frozenset[str], float] = {}
        self._measure = measure
        self._progress = progress
        self._tried: set[tuple[frozenset[str], frozenset[str]]] = set()
        known = [x for x in layers if x.int8_seconds is not None and x.float_seconds is not None]
        # Of a layer that a profile does not tell, neither precision is known to be faster.
        self.int8 = dict.fromkeys(self.names, 0.0) | {x.name: x.int8_seconds or 0.0 for x in known}
        self.float = dict.fromkeys(self.names, 0.0) | {x.name: x.float_seconds or 0.0 for x in known}
        self.profiled = 2 * len(known) > len(layers)

    def time(self, choices: Sequence[frozenset[str]], rounds: int) -> list[list[float]]:
        """Seconds of each choice in each round."""
        seconds = self._measure(choices, rounds)
        for choice, values in zip(choices, seconds, strict=True):
            self.seen[choice] = latency(values)
        if self._progress is not None:
            self._progress(len(self.seen), None)
        return seconds

    def proposals(self) -> Iterator[frozenset[str]]:
        """Choices that the times of the layers suggest."""
        if self.profiled:
            for per_value in _SECONDS_PER_VALUE:
                yield cheapest_choice(self.int8, self.float, self.links, per_value)

    def expected(self, kept: Collection[str]) -> float:
        """Seconds that a choice should take."""
        layers = sum(self.float[name] if name in kept else self.int8[name] for name in self.names)
        crossing = sum(
            link.values
            for link in self.links
            if (link.producer is None or link.producer in kept) != (link.consumer in kept)
        )
        return layers + crossing * _USUAL_SECONDS_PER_VALUE

    def moves(self, kept: frozenset[str]) -> list[frozenset[str]]:
        """Choices near one, the most promising first: runs of 1, 2, 4, … neighbouring layers turned over."""
        count = len(self.names)
        found: dict[frozenset[str], None] = {}
        size = 1
        while size <= count:
            for start in range(0, count - size + 1, max(1, size // 2)):
                run = self.names[start : start + size]
                found[kept | set(run)] = None  # all of it to float
                found[kept - set(run)] = None  # all of it to INT8
            size *= 2
        found.pop(kept, None)
        near = [choice for choice in found if (choice, kept) not in self._tried]
        if not self.profiled:
            return near
        limit = self.expected(kept) * (1 + _HOPELESS)
        costs = {choice: self.expected(choice) for choice in near}
        return sorted((choice for choice in near if costs[choice] <= limit), key=lambda choice: costs[choice])

    def is_better(self, choice: frozenset[str], kept: frozenset[str]) -> bool:
        """Whether a choice is faster than another, or as fast with more layers in float, and is so again."""
        self._tried.add((choice, kept))
        bound = 1.0 if choice > kept else 1 - _NOISE
        for _ in range(2):  # the first look picks what was lucky; the second knows nothing of it
            ours, theirs = map(latency, self.time([choice, kept], _ROUNDS))
            if ours > theirs * bound:
                return False
        return True


def cheapest_choice(
    int8: Mapping[str, float], float_: Mapping[str, float], links: Sequence[Link], per_value: float
) -> frozenset[str]:
    """The layers to keep float for the least sum of layers and conversions: a minimum cut.

    Args:
        int8: seconds of each layer in INT8
        float_: seconds of each layer in float
        links: tensors between the layers
        per_value: seconds to convert one value

    Returns:
        names of the layers to keep float
    """
    source, sink = object(), object()  # everything on the source's side of the cut is float
    capacity: dict[object, dict[object, float]] = {source: {}, sink: {}}

    def add(a: object, b: object, forward: float, backward: float) -> None:
        capacity.setdefault(a, {})[b] = capacity.get(a, {}).get(b, 0.0) + forward
        capacity.setdefault(b, {})[a] = capacity.get(b, {}).get(a, 0.0) + backward

    for name in int8:
        # A layer alone: only the difference counts, and ties stay on the source's side.
        add(source, name, max(int8[name] - float_[name], 0.0), 0.0)
        add(name, sink, max(float_[name] - int8[name], 0.0), 0.0)
    for link in links:
        cost = link.values * per_value
        if link.producer is None:
            add(source, link.consumer, cost, 0.0)
        else:
            add(link.producer, link.consumer, cost, cost)
    smallest = 1e-12 * (sum(int8.values()) + sum(float_.values()))
    while (path := _path(capacity, source, sink, smallest)) is not None:
        flow = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= flow
            capacity[b][a] += flow
    # Float is what cannot reach the sink any more: the largest of the minimum cuts, so that ties are float.
    reaches = {sink}
    queue = deque([sink])
    while queue:
        node = queue.popleft()
        for other in capacity[node]:
            if other not in reaches and capacity[other][node] > smallest:
                reaches.add(other)
                queue.append(other)
    return frozenset(name for name in int8 if name not in reaches)


def _path(
    capacity: Mapping[object, Mapping[object, float]], source: object, sink: object, smallest: float
) -> list[tuple[object, object]] | None:
    """A shortest path from source to sink along which something can still flow, as its edges."""
    came_from: dict[object, object] = {source: source}
    queue = deque([source])
    while queue:
        node = queue.popleft()
        for other, left in capacity[node].items():
            if left > smallest and other not in came_from:
                came_from[other] = node
                if other is sink:
                    edges = []
                    while other is not source:
                        edges.append((came_from[other], other))
                        other = came_from[other]
                    return edges
                queue.append(other)
    return None
