"""Mixed precision as an export asks for it: first what is faster in float, then what accuracy needs besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib import ImageStream
from runtime.backends import BACKENDS
from runtime.manifest import Preprocessing

from ..float16 import to_float16
from .mixed import keep_float
from .sensitivity import Choice, choose_precision
from .summary import Candidate, QuantizationSummary
from .timing import tune_graph
from .tune import TuneResult

_BATCH_PIXELS = 8 * 256 * 256
_MOST_BATCH = 32
_HELD_BYTES = 512 * 2**20

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class MixtureRequest:
    """What is asked of a quantized graph besides that it is quantized.

    Attributes:
        max_drop: points that it may lose; None to measure nothing.
        tune: backend on which a layer must be faster in INT8 to be in INT8; None to time nothing.
        images: files that choices are measured on.
        preprocessing: how they become the network's input.
        labels: the right class of each; None to count disagreement with the float network.
        class_axis: dimension of the outputs in which the classes lie, None if there are none.
        threads: processor threads that graphs are timed with; by default the physical cores.
        seconds: of timing.
    """

    max_drop: float | None
    tune: str | None
    images: tuple[Path, ...]
    preprocessing: Preprocessing
    labels: tuple[int, ...] | None = None
    class_axis: int | None = 1
    threads: int | None = None
    seconds: float = 60.0

    def concerns(self, scheme: str) -> bool:
        """Whether anything is asked of the graph of a scheme: a backend is timed on the one that it runs."""
        return self.max_drop is not None or self.tunes(scheme)

    def tunes(self, scheme: str) -> bool:
        """Whether the graph of a scheme is timed."""
        return self.tune is not None and BACKENDS[self.tune].int8_scheme == scheme


@dataclass(frozen=True)
class Mixture:
    """A graph of mixed precision and why it is as it is.

    Attributes:
        model: the graph, in float32 where it is not in integers.
        kept_float: names of the layers that stay in higher precision, in graph order.
        tuned: what timing showed; None if nothing was timed.
        choice: what accuracy needed; None if it was not asked for.
    """

    model: onnx.ModelProto
    kept_float: tuple[str, ...]
    tuned: TuneResult | None
    choice: Choice | None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        sentences = [] if self.tuned is None else [self.tuned.sentence()]
        if self.choice is not None and self.choice.remark:
            sentences.append(self.choice.remark)
        return tuple(sentences)

    def layer_facts(self) -> dict[str, dict[str, Any]]:
        """What is known of each layer, as fields of :class:`~export.quantize.summary.LayerSummary` by its name."""
        facts: dict[str, dict[str, Any]] = {}
        if self.tuned is not None:
            for timed in self.tuned.layers:
                entry = facts.setdefault(timed.name, {})
                entry["int8_ms"] = None if timed.int8_seconds is None else 1e3 * timed.int8_seconds
                entry["float_ms"] = None if timed.float_seconds is None else 1e3 * timed.float_seconds
        if self.choice is not None:
            for layer in self.choice.layers:
                entry = facts.setdefault(layer.name, {})
                entry.update(output_snr_db=layer.snr_db, output_agreement=layer.agreement)
                entry["reason"] = self.choice.reason(layer.name)
        if self.tuned is not None:
            for name in self.tuned.kept_float:
                facts[name]["reason"] = f"in INT8 it does not make the whole faster on {self.tuned.backend}"
        return facts

    def reasons(self) -> dict[str, str]:
        """Why each layer that stays in higher precision does."""
        facts = self.layer_facts()
        return {name: str(facts[name]["reason"]) for name in self.kept_float}

    def add_to(self, summary: QuantizationSummary) -> QuantizationSummary:
        """A summary of the graph with all this in it."""
        facts = self.layer_facts()
        layers = tuple(replace(layer, **facts.get(layer.name, {})) for layer in summary.layers)
        if self.choice is None:
            return replace(summary, layers=layers)
        # Layers that no choice was about are in higher precision in each.
        known, total = {layer.name for layer in self.choice.layers}, sum(layer.macs for layer in layers)
        share = sum(layer.macs for layer in layers if layer.name in known) / total if total else 0.0
        return replace(
            summary,
            layers=layers,
            candidates=tuple(replace(each, int8_share=each.int8_share * share) for each in self.choice.candidates),
            chosen=self.choice.chosen,
            drop_of=self.choice.drop_of,
        )


def mix_precision(
    quantized: onnx.ModelProto,
    model: onnx.ModelProto,
    scheme: str,
    request: MixtureRequest,
    progress: Progress | None = None,
) -> Mixture:
    """Put layers of a quantized graph back to float where that is faster, or where accuracy needs it.

    Args:
        quantized: with every layer in INT8, in float32 elsewhere
        model: the float graph that it was made of
        scheme: `"cpu"` or `"trt"`
        request: what is asked
        progress: is told of the steps

    Returns:
        the graph and the reasons

    Raises:
        QuantizationError: if what is asked cannot be measured
    """
    tuned: TuneResult | None = None
    kept: tuple[str, ...] = ()
    if request.tune is not None and request.tunes(scheme):
        convert = to_float16 if scheme == "trt" else None
        tuned = tune_graph(quantized, model, scheme, request.tune, request.threads, request.seconds, convert, progress)
        kept = tuned.kept_float
    choice: Choice | None = None
    if request.max_drop is not None:
        images = HeldImages(request.images, request.preprocessing)
        labels = None if request.labels is None else [request.labels[i] for i in images.read]

        def made(kept_float: Collection[str]) -> onnx.ModelProto:
            mixed = keep_float(quantized, model, scheme, kept_float)
            return to_float16(mixed) if scheme == "trt" else mixed

        choice = choose_precision(
            quantized, model, scheme, images, request.max_drop, labels, request.class_axis, kept, progress, made
        )
        if tuned is not None:
            choice = replace(choice, candidates=_with_latency(choice.candidates, tuned))
        kept = choice.kept_float
    return Mixture(keep_float(quantized, model, scheme, kept), kept, tuned, choice)


class HeldImages:
    """Images as batches that can be read again and again: from memory, as far as they fit.

    Args:
        images: files; those that cannot be read are left out
        preprocessing: how they become a network's input
    """

    def __init__(self, images: Sequence[Path], preprocessing: Preprocessing) -> None:
        height, width = preprocessing.size
        self._preprocessing = preprocessing
        self._batch = max(1, min(_MOST_BATCH, _BATCH_PIXELS // (height * width)))
        self._held: list[NDArray[np.float32]] = []
        stream = ImageStream(images, preprocessing, self._batch)
        held = rest = 0
        for batch in stream:
            if rest or held + batch.nbytes > _HELD_BYTES:
                rest += len(batch)
            else:
                self._held.append(batch)
                held += batch.nbytes
        skipped = {path for path, _ in stream.skipped}
        self.read = tuple(i for i, path in enumerate(images) if path not in skipped)
        """Positions of the images that can be read."""
        first = sum(map(len, self._held))
        self._rest = [images[i] for i in self.read[first:]]

    def __call__(self) -> Iterator[NDArray[np.float32]]:
        """The batches, in the same order each time."""
        yield from self._held
        if self._rest:
            yield from ImageStream(self._rest, self._preprocessing, self._batch)


def _with_latency(candidates: tuple[Candidate, ...], tuned: TuneResult) -> tuple[Candidate, ...]:
    measured: Mapping[tuple[str, ...], float] = dict(tuned.measured)
    return tuple(replace(each, latency_ms=measured.get(each.kept_float)) for each in candidates)
