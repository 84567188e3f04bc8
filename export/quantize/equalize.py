"""Cross-layer equalization: rescaling channels between layers without changing what the network computes.

A channel that one layer writes may be multiplied by any s > 0 if the layers that read it divide by s, as long as only
operators lie between that commute with it: ReLU, pooling, residual adds of channels scaled alike, depthwise
convolutions, which may even change the factor. One step size for all channels of an activation rounds small channels
badly; multiplying them up costs the weights that read them resolution instead. The factors chosen here minimize the
expected squared error of the output from both together (see :mod:`~export.quantize.statistics`), so a network gets the
same factors however its channels were scaled before.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
which equalizes ranges of weights; the choice by expected output error, activations included, is this module's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ..errors import QuantizationError
from ..onnx_graph import GraphIndex, attribute
from .channel_classes import ChannelClass
from .layers import WeightedLayer, weighted_layers
from .statistics import ChannelSamples, Sensitivity

_LARGEST_FACTOR = 2.0**10
"""A channel that would need more is too small to matter, and float16 is to hold what is scaled."""
_STEPS = 120
_RATE = 0.1
_BLUNT, _SHARP = 8.0, 256.0
"""Powers of the norms that stand for a maximum, at the first and at the last step: with the maximum itself a step would
move one channel."""
_WORTHWHILE = 0.97
"""Factors are kept only where they lower the expected error by more than the estimate's own noise."""
_CLIPPED = 16.0
"""How much worse an error of clipping is than one of rounding: it has the same sign at all places of an image."""
_COMPENSATED = 0.1
"""Share of the error of rounding weights to the nearest that is left when rounding minimizes the output's error, and is
told by many images what inputs have in common. With fewer inputs seen than a layer has weights nothing is gained."""


@dataclass(frozen=True)
class Equalization:
    """Factors that leave a network's answer as it is.

    Attributes:
        factors: by class of tensors, of shape (C,).
        classes: the classes, in the same order.
        expected_before: expected relative squared error of the output without them.
        expected_after: the same with them.
    """

    factors: tuple[Tensor, ...]
    classes: tuple[ChannelClass, ...]
    expected_before: float
    expected_after: float

    def of_tensors(self) -> dict[str, Tensor]:
        """The factors of each scaled tensor."""
        return {n: s for s, c in zip(self.factors, self.classes, strict=True) for n in c.tensors}

    def to_dict(self) -> dict[str, tuple[float, ...]]:
        """The factors that are not all 1, by the first tensor of each class, for :func:`known_factors`."""
        pairs = zip(self.factors, self.classes, strict=True)
        return {c.tensors[0]: tuple(s.tolist()) for s, c in pairs if bool((s != 1).any())}


def known_factors(classes: list[ChannelClass], factors: Mapping[str, Sequence[float]]) -> Equalization:
    """The equalization that :meth:`Equalization.to_dict` wrote down.

    Args:
        classes: of the same graph
        factors: by the first tensor of a class; those without are not scaled

    Returns:
        the same factors; what was expected of them is not known any more

    Raises:
        QuantizationError: if the factors are of another graph
    """
    known = {c.tensors[0]: c.channels for c in classes}
    for name, values in factors.items():
        if known.get(name) != len(values):
            raise QuantizationError(f"there are {len(values)} factors for {name!r}: they are not of this graph")
    found = tuple(torch.tensor(factors.get(c.tensors[0], (1.0,) * c.channels)) for c in classes)
    return Equalization(found, tuple(classes), math.nan, math.nan)


def choose_factors(
    model: onnx.ModelProto,
    classes: list[ChannelClass],
    samples: Mapping[str, ChannelSamples],
    sensitivity: Sensitivity,
    scheme: str,
    per_tensor: bool = False,
    centred: Collection[str] = (),
    images: int = 256,
    seen: Mapping[str, ChannelSamples] | None = None,
) -> Equalization:
    """Factors that minimize the expected error of the output.

    Args:
        model: the float graph
        classes: of it
        samples: of every activation that is quantized
        sensitivity: of the output to errors of activations and of the weights that are quantized
        scheme: `"cpu"` or `"trt"`
        per_tensor: whether all output channels of a layer share one scale
        centred: activations that are spread over all codes
        images: number of images that weights will be rounded on
        seen: of more activations, none of whose largest values is to grow; by default those that are quantized

    Returns:
        the factors, all ones where they would gain nothing
    """
    with torch.enable_grad():
        error = _ExpectedError(model, classes, samples, sensitivity, scheme, per_tensor, centred, images)
        start = [torch.zeros(c.channels) for c in classes]
        before = float(error(start))
        logs = [x.requires_grad_() for x in error.balanced()]
        if logs:
            optimizer = torch.optim.Adam(logs, lr=_RATE)
            best, chosen = before, start
            for step in range(_STEPS):
                for group in optimizer.param_groups:
                    group["lr"] = _RATE * (1.0 - step / _STEPS)
                optimizer.zero_grad()
                with torch.no_grad():
                    value = float(error(logs))
                loss = error(logs, _BLUNT * (_SHARP / _BLUNT) ** (step / _STEPS))
                if value < best:
                    best, chosen = value, [x.detach().clone() for x in logs]
                loss.log().backward()
                optimizer.step()
        else:
            best, chosen = before, start
    if best > _WORTHWHILE * before:
        return Equalization(tuple(x.exp() for x in start), tuple(classes), before, before)
    factors = tuple(_bounded(x.exp(), _reaches(c, seen or samples)) for x, c in zip(chosen, classes, strict=True))
    return Equalization(factors, tuple(classes), before, best)


def apply_factors(model: onnx.ModelProto, equalization: Equalization) -> onnx.ModelProto:
    """Rescale the channels of a network.

    Args:
        model: the float graph; it is not changed
        equalization: what to multiply by

    Returns:
        a graph that computes the same
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    layers = {layer.node.output[0]: layer for layer in weighted_layers(index)}
    for factors, channel_class in zip(equalization.factors, equalization.classes, strict=True):
        s = factors.numpy().astype(np.float64)
        if (s == 1.0).all():
            continue
        for name in channel_class.sources:
            layer = layers[name]
            shape = [1] * len(index.initializers[layer.weight].dims)
            shape[layer.axis] = -1
            _multiply(index.initializers[layer.weight], s.reshape(shape))
            if layer.bias is not None:
                _multiply(index.initializers[layer.bias], s)
        for name, repeat in channel_class.sinks.items():
            layer = layers[name]
            weight = index.initializers[layer.weight]
            _multiply(weight, 1.0 / _spread(np.repeat(s, repeat), layer, tuple(weight.dims)))
    return result


def _multiply(tensor: onnx.TensorProto, factors: np.ndarray) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float64) * factors
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _spread(values: np.ndarray, layer: WeightedLayer, shape: tuple[int, ...]) -> np.ndarray:
    """One value an input channel, shaped so that it multiplies a layer's weights."""
    if layer.node.op_type == "Conv":
        groups = attribute(layer.node, "group", 1)
        rows = np.repeat(values.reshape(groups, -1), shape[0] // groups, axis=0)
        return rows.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
    axis = 0 if layer.axis == 1 else 1
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _reaches(channel_class: ChannelClass, seen: Mapping[str, ChannelSamples]) -> list[Tensor]:
    """The largest magnitude of each channel of each tensor of a class that was seen."""
    found = [seen[name] for name in channel_class.tensors if name in seen]
    return [torch.maximum(-s.low, s.high) for s in found if s.low.numel() == channel_class.channels]


def _bounded(factors: Tensor, reaches: list[Tensor]) -> Tensor:
    """Factors that leave the largest value of each tensor as large as it was, so that float16 holds what it held."""
    live = [reach for reach in reaches if reach.amax() > 0]
    grown = [(factors * reach).amax() / reach.amax() for reach in live]
    common = torch.stack(grown).amax() if grown else factors.log().mean().exp()
    return (factors / common).clamp(1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)


class _ExpectedError:
    """Expected relative squared error of the output as a function of the logarithms of all factors."""

    def __init__(
        self,
        model: onnx.ModelProto,
        classes: list[ChannelClass],
        samples: Mapping[str, ChannelSamples],
        sensitivity: Sensitivity,
        scheme: str,
        per_tensor: bool,
        centred: Collection[str],
        images: int,
    ) -> None:
        index = GraphIndex(model)
        self.classes = classes
        self.per_tensor = per_tensor
        class_of = {name: i for i, c in enumerate(classes) for name in c.tensors}
        # Activations: their class, the ends of each channel, the sensitivity, and whether zero is in the middle.
        self.tensors: list[tuple[int, Tensor, Tensor, Tensor, bool]] = []
        for name, seen in samples.items():
            i = class_of.get(name)
            if i is None or seen.values.shape[1] != classes[i].channels or name not in sensitivity.tensors:
                continue
            symmetric = scheme == "trt" and name not in centred
            low, high = channel_clips(seen, 127 if symmetric else 255)
            self.tensors.append((i, low, high, sensitivity.tensors[name], symmetric))
        # Layers: the classes of outputs and inputs, largest weights and sensitivities by output and input channel.
        self.layers: list[tuple[int | None, int | None, Tensor, Tensor]] = []
        sources = {name: i for i, c in enumerate(classes) for name in c.sources}
        sinks = {name: (i, repeat) for i, c in enumerate(classes) for name, repeat in c.sinks.items()}
        for layer in weighted_layers(index):
            name = layer.node.output[0]
            if name not in sensitivity.weights or (name not in sources and name not in sinks):
                continue
            weight = torch.from_numpy(numpy_helper.to_array(index.initializers[layer.weight]).copy())
            i, repeat = sinks.get(name, (None, 1))
            groups = attribute(layer.node, "group", 1) if layer.node.op_type == "Conv" else 1
            if groups > 1 and weight.shape[1] == 1 and not per_tensor:
                continue  # each row has one input and its own step: factors cancel
            largest = _by_channel(weight.abs(), layer.axis, repeat, torch.amax)
            total = _by_channel(sensitivity.weights[name], layer.axis, repeat, torch.sum)
            total = total * _uncompensated(layer, index, weight.numel() // weight.shape[layer.axis], images)
            self.layers.append((sources.get(name), i, _ungrouped(largest, groups), _ungrouped(total, groups)))

    def __call__(self, logs: list[Tensor], power: float = math.inf) -> Tensor:
        """The error for some factors; with a finite power norms of it stand for maxima, and make it a little larger."""
        total = torch.zeros(())
        for i, low, high, weight, symmetric in self.tensors:
            s = logs[i].exp()
            # Each end is held by its outermost channel.
            bottom = -_largest((-low * s).clamp_min(0.0), power)
            top = _largest((high * s).clamp_min(0.0), power)
            step = torch.maximum(-bottom, top) / 127 if symmetric else (top - bottom) / 255
            total = total + step.square() / 12 * (weight / s.square()).sum()
        for source, sink, largest, weight in self.layers:
            out = None if source is None else logs[source].exp()[:, None]
            into = None if sink is None else logs[sink].exp()[None, :]
            scaled = largest if into is None else largest / into
            errors = weight if into is None else weight * into.square()
            if self.per_tensor:
                # One step for all rows: what multiplies a row makes its share of the error smaller.
                scaled = scaled if out is None else scaled * out
                errors = errors if out is None else errors / out.square()
                total = total + (_largest(scaled.flatten(), power) / 127).square() / 12 * errors.sum()
            else:
                steps = _largest(scaled, power) / 127
                total = total + (steps.square() * errors.sum(1)).sum() / 12
        return total

    def reaches(self) -> list[Tensor]:
        """The largest magnitude of each channel of each class; zeros where nothing of it is rounded."""
        found = [torch.zeros(c.channels) for c in self.classes]
        for i, low, high, *_ in self.tensors:
            found[i] = torch.maximum(found[i], torch.maximum(-low, high))
        return found

    def balanced(self) -> list[Tensor]:
        """A start that does not depend on how channels were scaled before: between equal ranges and equal weights."""
        logs, reaches = [], self.reaches()
        for i, (channel_class, reach) in enumerate(zip(self.classes, reaches, strict=True)):
            pull = torch.zeros(channel_class.channels)
            for source, sink, largest, _ in self.layers:
                if sink == i:
                    # Rows count as they would with equal ranges of what they make.
                    made = None if source is None else reaches[source][:, None]
                    rows = largest if made is None else torch.where(made > 0, largest / made, 0.0)
                    pull = torch.maximum(pull, rows.amax(0))
            live = (reach > 0) & torch.isfinite(reach)
            log = torch.zeros(channel_class.channels)
            if live.any():
                log[live] = -reach[live].log()
                both = live & (pull > 0)
                if both.any():
                    log[both] += 0.5 * (pull[both] * reach[both]).log() - 0.5 * (pull[both] * reach[both]).log().mean()
                log[live] -= log[live].mean()
            logs.append(log)
        return logs


def channel_clips(seen: ChannelSamples, levels: int) -> tuple[Tensor, Tensor]:
    """The range of each channel that rounds it with the least squared error, were it rounded by itself.

    Args:
        seen: samples of a tensor
        levels: steps between the ends

    Returns:
        lower and upper ends, of shape (C,), zero within them
    """
    low, high = seen.low.clamp_max(0.0), seen.high.clamp_min(0.0)
    values = seen.values[:: max(1, seen.values.shape[0] // 1024)]
    best = torch.full_like(low, float("inf"))
    chosen = torch.ones_like(low)
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        step = ((high - low) * share / levels).clamp_min(1e-30)
        rounded = torch.clamp(torch.round(values / step), low * share / step, high * share / step) * step
        beyond = torch.clamp(values, low * share, high * share) - values
        error = (rounded - values).square().mean(0) + (_CLIPPED - 1.0) * beyond.square().mean(0)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, share, chosen)
    return low * chosen, high * chosen


def _largest(x: Tensor, power: float) -> Tensor:
    """The largest of values that are not negative along the last dimension, or a norm of them."""
    if math.isinf(power):
        return x.amax(-1)
    top = x.detach().amax(-1, keepdim=True).clamp_min(1e-30)
    return (top * ((x / top).clamp_min(1e-6) ** power).sum(-1, keepdim=True) ** (1.0 / power)).squeeze(-1)


def _uncompensated(layer: WeightedLayer, index: GraphIndex, columns: int, images: int) -> float:
    """Share of the error of rounding to the nearest that will be left, with so many images to learn from."""
    shape = index.shape(layer.node.output[0]) or ()
    places = math.prod(size or 1 for size in (shape[2:] if layer.node.op_type == "Conv" else ()))
    return min(1.0, _COMPENSATED + columns / max(places * images, 1))


def _by_channel(weight: Tensor, axis: int, repeat: int, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Reduce weights to (output channels, input channels)."""
    moved = weight.movedim(axis, 0)
    moved = moved.reshape(moved.shape[0], moved.shape[1] // repeat, -1)
    return reduce(moved, 2)


def _ungrouped(matrix: Tensor, groups: int) -> Tensor:
    """Write a grouped layer's matrix over all input channels, zeros where a row does not read."""
    if groups == 1:
        return matrix
    rows, inputs = matrix.shape
    full = torch.zeros(rows, groups * inputs)
    per_group = rows // groups
    for g in range(groups):
        part = slice(g * per_group, (g + 1) * per_group)
        full[part, g * inputs : (g + 1) * inputs] = matrix[part]
    return full
