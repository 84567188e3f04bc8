"""Which layers cost accuracy in INT8, and the fewest that must stay in higher precision.

Each layer is tried alone in INT8: the noise that it brings to the output is then its own, and can be measured on few
images, where changed answers would be counted in single images. Noises of layers nearly add up, so the ranking holds
for layers together. Not all noise matters: what moves all scores alike, or makes them larger, changes no answer. So
layers are ranked by what they do to the margin between the first class and its best rival, on the half of the answers
where that margin is least. What a choice of layers really loses is measured on the whole network, for each choice.

What is lost is counted in points: of accuracy on labelled images, else the share of images (in segmentation of pixels)
whose first class is not the float network's. Two figures must both keep to the bound, one that choices are made by and
one that confirms them, lest a search picks what suits a handful of images:

- with labels, the loss on either half of the images;
- without, the disagreement that is expected and the one that is seen. Expected is that of every margin with the change
  of every other image's margin, instead of its own alone: n² pairs from n images, which resolves far less than one
  image and hardly varies with the choice of images.

Few images cannot say more than they do: :attr:`Choice.remark` says how little they resolve where that matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backends import open_session

from ..errors import QuantizationError
from .emulation import Emulation
from .network import Values
from .search import Measurement, RankedLayer, SearchResult, search
from .summary import Candidate

_MOST_DECIBELS = 200.0
"""What stands for no noise at all: infinity is no JSON."""
_SCAN_IMAGES = 64
_SCAN_MACS = 2e12
"""A scan takes fewer images where a network is large: it multiplies no more than that, a minute or two on one core."""
_FEWEST_SCAN_IMAGES = 8
_SEARCH_SECONDS = 900.0
"""After which a search takes the best that it has found."""

_ROUNDING = 1e-9
"""Of points: they are shares of whole images."""
_MOST_MARGINS = 2**16
"""Answers of one batch whose margins are looked at."""
_HELD_VALUES = 2**25
"""Outputs of the float network that are held: 128 MiB."""

Batches = Callable[[], Iterable[NDArray[np.float32]]]
"""Reads the images again: inputs of shape (N, 3, H, W), in the same order each time."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What a layer does alone in INT8.

    Attributes:
        name: of its output.
        macs: multiply-accumulates for one image.
        noise: what it is ranked by: the squared change of the margin between the first two classes, where that is
            small; of outputs that are not scores of classes, their squared relative error.
        snr_db: signal-to-noise ratio at the network's output, in decibels, at most 200.
        agreement: share of first classes that stay; None where outputs are not scores of classes.
    """

    name: str
    macs: int
    noise: float
    snr_db: float
    agreement: float | None


@dataclass(frozen=True)
class Choice:
    """Which layers stay in higher precision so that a network loses no more than it may, and why.

    Attributes:
        kept_float: their names, in graph order.
        met: whether the choice loses no more than it may, by both figures.
        drop_of: what is counted, `"accuracy"` or `"agreement"`.
        max_drop: points that it may lose.
        layers: what each layer does alone.
        candidates: every choice that was measured.
        chosen: index of the one that was taken.
        images: number of images that choices were measured on.
        remark: what the user should know of it; empty if nothing.
    """

    kept_float: tuple[str, ...]
    met: bool
    drop_of: str
    max_drop: float
    layers: tuple[LayerSensitivity, ...]
    candidates: tuple[Candidate, ...]
    chosen: int
    images: int
    remark: str = ""

    def reason(self, name: str) -> str:
        """Why a layer has its precision, in a few words."""
        layer = next(layer for layer in self.layers if layer.name == name)
        alone = f"alone in INT8 it leaves {layer.snr_db:.1f} dB at the output"
        return f"kept for --max-drop {self.max_drop:g}: {alone}" if name in self.kept_float else alone


def choose_precision(
    quantized: onnx.ModelProto,
    model: onnx.ModelProto,
    scheme: str,
    batches: Batches,
    max_drop: float,
    labels: Sequence[int] | None = None,
    class_axis: int | None = 1,
    start: Collection[str] = (),
    progress: Callable[[int, int | None], None] | None = None,
    made: Callable[[Collection[str]], onnx.ModelProto] | None = None,
) -> Choice:
    """Find the fewest layers that must stay in higher precision for a network to lose no more than `max_drop` points.

    Args:
        quantized: with every layer in INT8, in float32 elsewhere
        model: the float graph that it was made of
        scheme: `"cpu"` or `"trt"`
        batches: reads the images
        max_drop: points that may be lost
        labels: the right class of each image that `batches` reads; None to count disagreement with the float network
        class_axis: dimension of the output in which the classes lie
        start: names of layers that stay float in any case
        progress: called with the number of steps done
        made: gives the graph, as it will be exported, with these layers kept; what is chosen is then confirmed by its
            answers in ONNX Runtime

    Returns:
        the choice; :attr:`Choice.met` is false where not even all layers together suffice

    Raises:
        ValueError: if `max_drop` is no number of points from 0 to 100
        QuantizationError: if nothing can be measured or chosen: no layers with weights, outputs that are not scores of
            classes, fewer than two images, or a network that answers every image alike
    """
    if class_axis is None:
        raise QuantizationError("--max-drop counts first classes, which this network has none of: leave it out")
    emulation = Emulation(quantized, model, scheme)
    reference = _Reference(emulation, batches, labels, class_axis)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if progress is not None:
            progress(steps, None)

    step()
    layers = scan(emulation, batches, class_axis, step)

    def evaluate(kept: frozenset[str]) -> Measurement:
        measured = reference.measure(kept)
        step()
        return measured

    def confirm(kept: frozenset[str]) -> bool:
        assert made is not None
        step()
        return reference.lost_by(made(kept)) <= max_drop + _ROUNDING

    ranked = [RankedLayer(layer.name, layer.macs, layer.noise) for layer in layers]
    found = search(
        *(evaluate, ranked, max_drop, start), seconds=_SEARCH_SECONDS, confirm=None if made is None else confirm
    )
    return Choice(
        kept_float=found.kept_float,
        met=found.met,
        drop_of="agreement" if labels is None else "accuracy",
        max_drop=max_drop,
        layers=layers,
        candidates=found.candidates,
        chosen=found.chosen,
        images=reference.images,
        remark=_remark(found, max_drop, reference, labels is not None),
    )


def scan(
    emulation: Emulation,
    batches: Batches,
    class_axis: int | None = 1,
    on_batch: Callable[[], None] | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Try each layer alone in INT8, on a bounded number of images.

    What comes before a layer is float and the same for all layers: it is computed once, and only what comes behind is
    computed for each.

    Args:
        emulation: of the quantized network
        batches: reads the images
        class_axis: dimension of the output in which the classes lie, or None
        on_batch: called behind each batch

    Returns:
        an entry for each layer, in graph order
    """
    names = list(emulation.layers)
    per_image = sum(emulation.macs.values()) * max(len(names), 1) / 2
    most = int(min(_SCAN_IMAGES, max(_FEWEST_SCAN_IMAGES, _SCAN_MACS / max(per_image, 1))))
    sums = {name: _Difference(class_axis) for name in names}
    done = 0
    for batch in batches():
        x = torch.from_numpy(batch[: most - done])
        for name, outputs, exact in emulation.one_by_one(x):
            sums[name].add(outputs, exact)
        done += len(x)
        if on_batch is not None:
            on_batch()
        if done >= most:
            break
    return tuple(
        LayerSensitivity(name, emulation.macs[name], each.noise, decibels(each.relative_error), each.agreement)
        for name, each in sums.items()
    )


def decibels(noise: float) -> float:
    """A squared relative error as a signal-to-noise ratio, from -200 to 200 dB."""
    if not noise > 10 ** (-_MOST_DECIBELS / 10):
        return _MOST_DECIBELS
    return max(-10 * math.log10(noise), -_MOST_DECIBELS)


class _Difference:
    """How far the answers of a choice are from the float network's, added up over batches."""

    def __init__(self, class_axis: int | None) -> None:
        self._class_axis = class_axis
        self._errors: dict[str, float] = {}
        self._signals: dict[str, float] = {}
        self._margins: list[Tensor] = []

    def add(self, outputs: Values, exact: Values) -> None:
        """Compare the outputs of a batch."""
        for name, right in exact.items():
            difference = outputs[name].double() - right.double()
            self._errors[name] = self._errors.get(name, 0.0) + float(difference.square().sum())
            self._signals[name] = self._signals.get(name, 0.0) + float(right.double().square().sum())
            if self._class_axis is not None:
                self._margins.append(_margins(outputs[name], right, self._class_axis))

    @property
    def relative_error(self) -> float:
        """Squared relative error, the mean over the outputs."""
        each = [e / self._signals[n] if self._signals[n] > 0 else float(e > 0) for n, e in self._errors.items()]
        return sum(each) / max(len(each), 1)

    @property
    def agreement(self) -> float | None:
        """Share of first classes that are the float network's."""
        return None if self._class_axis is None else float((torch.cat(self._margins, 1)[1] >= 0).float().mean())

    @property
    def expected_disagreement(self) -> float:
        """Share of first classes that would change if each margin met the changes of all."""
        exact, ours = torch.cat(self._margins, 1)
        changes = (exact - ours).sort().values
        # A margin m falls to 0 or below under every change of m or more.
        return (
            float((changes.numel() - torch.searchsorted(changes, exact.contiguous())).double().mean()) / exact.numel()
        )

    @property
    def noise(self) -> float:
        """What layers are ranked by."""
        if self._class_axis is None:
            return self.relative_error
        exact, ours = torch.cat(self._margins, 1)
        near = exact <= exact.median()
        return float((ours - exact)[near].double().square().mean())


def _margins(outputs: Tensor, exact: Tensor, class_axis: int) -> Tensor:
    """By how much the float network's first class leads, in the float network and in ours, of shape (2, answers)."""
    right = exact.movedim(class_axis, -1).flatten(0, -2)
    ours = outputs.movedim(class_axis, -1).flatten(0, -2)
    stride = max(1, -(-right.shape[0] // _MOST_MARGINS))  # every pixel of a batch would say the same
    right, ours = right[::stride], ours[::stride]
    first = right.argmax(1, keepdim=True)
    leads = []
    for scores in (right, ours):
        rivals = scores.scatter(1, first, -math.inf).amax(1)
        leads.append(scores.gather(1, first)[:, 0] - rivals)
    return torch.stack(leads)


class _Reference:
    """The float network's answers, which choices are measured against."""

    def __init__(self, emulation: Emulation, batches: Batches, labels: Sequence[int] | None, class_axis: int) -> None:
        self._emulation = emulation
        self._batches = batches
        self._axis = class_axis
        self._exact: list[Values | None] = []
        answers: list[NDArray[np.int32]] = []
        held = 0
        first: Values | None = None
        alike = True
        for batch in batches():
            outputs = emulation.exact(torch.from_numpy(batch))
            first = first or {name: value[:1].clone() for name, value in outputs.items()}
            alike = alike and all(torch.equal(v, first[name].expand_as(v)) for name, v in outputs.items())
            held += sum(value.numel() for value in outputs.values())
            # Where a batch of scores is a batch of maps, the noise is measured on the first of them only.
            self._exact.append(outputs if held <= _HELD_VALUES or not answers else None)
            answers.append(_answers(outputs, class_axis))
        self.images = sum(map(len, answers))
        if self.images < 2:
            raise QuantizationError(
                f"--max-drop needs two images, one to choose by and one to confirm: got {self.images}"
            )
        if alike:
            raise QuantizationError(
                "--max-drop measures nothing: the float network answers all of these images alike, give it others"
            )
        if min(value.shape[class_axis] for value in (first or {}).values()) < 2:
            raise QuantizationError("--max-drop counts first classes, and this network has but one: leave it out")
        self._truth = answers
        self._labelled = labels is not None
        if labels is not None:
            if len(labels) != self.images:
                raise QuantizationError(f"there are {len(labels)} labels for {self.images} images: give one for each")
            ends = np.cumsum([len(part) for part in answers])[:-1]
            self._truth = [part[:, None] for part in np.split(np.asarray(labels, np.int32), ends)]
        self._right = np.concatenate([a == t for a, t in zip(answers, self._truth, strict=True)])

    @property
    def answers(self) -> int:
        """How many answers are counted to confirm a choice: in segmentation every pixel gives one."""
        return int((self._right[1::2] if self._labelled else self._right).size)

    def measure(self, kept: frozenset[str]) -> Measurement:
        """Run the network with some layers kept float over all images."""
        difference = _Difference(self._axis)
        right = []
        for batch, exact, truth in zip(self._batches(), self._exact, self._truth, strict=True):
            outputs = self._emulation.run(torch.from_numpy(batch), kept)
            if exact is not None:
                difference.add(outputs, exact)
            right.append(_answers(outputs, self._axis) == truth)
        lost = self._right.astype(np.float64) - np.concatenate(right)
        snr_db, drop = decibels(difference.relative_error), 100 * float(lost.mean())
        if not self._labelled:
            return Measurement(drop, 100 * difference.expected_disagreement, drop, snr_db)
        # Every other image, so that both halves have images of all classes where files are sorted by class.
        return Measurement(drop, 100 * float(lost[0::2].mean()), 100 * float(lost[1::2].mean()), snr_db)

    def lost_by(self, model: onnx.ModelProto) -> float:
        """Points that a graph loses in ONNX Runtime."""
        session = open_session(model.SerializeToString(), "onnxruntime")
        right = []
        try:
            for batch, truth in zip(self._batches(), self._truth, strict=True):
                outputs = {name: torch.from_numpy(value) for name, value in session.run(batch).items()}
                right.append(_answers(outputs, self._axis) == truth)
        finally:
            session.close()
        return 100 * float((self._right.astype(np.float64) - np.concatenate(right)).mean())


def _answers(outputs: Values, class_axis: int) -> NDArray[np.int32]:
    """The first class of each image at each place, of shape (N, places)."""
    firsts = [value.argmax(class_axis) for value in outputs.values()]
    return torch.cat([first.reshape(len(first), -1) for first in firsts], 1).to(torch.int32).numpy()


def _remark(found: SearchResult, max_drop: float, reference: _Reference, labelled: bool) -> str:
    """What the user should know of a choice: that it is not enough, or that the images cannot tell."""
    points = "accuracy" if labelled else "agreement with the float model"
    if not found.met:
        drop = found.candidates[found.chosen].drop
        return (
            f"--max-drop {max_drop:g} is not met even with every layer in float: {drop:.2f} points of {points} are lost"
        )
    finest = 100 / reference.answers
    if max_drop < finest and found.kept_float:
        return (
            f"{reference.answers} answers resolve {finest:.2g} points of {points}, more than --max-drop {max_drop:g}: "
            "not one may change, and with more images fewer layers might stay in float"
        )
    return ""
