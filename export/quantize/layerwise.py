"""Quantizing the weights of a network layer after layer, each against what the float network computes.

Two networks run side by side over the calibration images, batch by batch: the float one, and the one quantized so far.
A layer's weights are rounded for the inputs that it will see, and its bias then takes what it can of the error that is
left (:mod:`~export.quantize.bias`), so that errors do not add up with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..memory import release_memory
from .bias import ACTIVATIONS, shift_behind
from .fake import Quantizer
from .layers import WeightedLayer
from .moments import Moments, columns_together, no_moments
from .network import LayerConstants, Network, Values
from .rounding import output_error, round_compensating, round_to_nearest
from .rows import columns_of, from_groups, groups_of, input_rows, to_groups
from .spool import Spool

_FEWEST_ROWS = 2048
_FEWEST_KEPT_ROWS, _MOST_KEPT_ROWS, _KEPT_VALUES = 512, 4096, 2**22
_DEPTHWISE_ROWS = 8192


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with rounded weights.

    Attributes:
        codes: int8, of the shape of the weights.
        scale: step of each output channel, of shape (M,).
        bias: corrected, of shape (M,); None where the layer takes none.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def constants(self, axis: int) -> LayerConstants:
        """What the layer computes with.

        Args:
            axis: of the output channels
        """
        shape = [-1 if i == axis else 1 for i in range(self.codes.ndim)]
        return LayerConstants(self.codes.to(self.scale.dtype) * self.scale.reshape(shape), self.bias)


@dataclass(frozen=True)
class LayerOutcome:
    """What rounding a layer did.

    Attributes:
        name: of the layer's output.
        nearest_error: squared error of its output with weights rounded to the nearest, relative to its variance.
        rounded_error: the same with the weights that were chosen.
        bias_shift: largest correction of a bias, relative to the spread of the layer's outputs.
        signal_to_noise: of the layer's output against the float network, in decibels.
    """

    name: str
    nearest_error: float
    rounded_error: float
    bias_shift: float
    signal_to_noise: float


@dataclass
class _Statistics:
    """Sums over the inputs of one layer."""

    blocks: list[Moments]
    rows: int
    mean_float: Tensor
    mean_quantized: Tensor
    images: int
    exact_rows: list[Tensor] = field(default_factory=list)
    rounded_rows: list[Tensor] = field(default_factory=list)


class LayerQuantizer:
    """Rounds the layers of a network in order.

    Args:
        network: the float network
        layers: to quantize, in graph order
        scales: steps of each layer's weights, by output name
        quantizers: of activations
        rows_per_column: samples of a layer's input, as a multiple of their length
        seed: of the places that are sampled
        done: layers that an earlier, interrupted run has rounded already, and what that did
    """

    def __init__(
        self,
        network: Network,
        layers: list[WeightedLayer],
        scales: Mapping[str, Tensor],
        quantizers: Mapping[str, Quantizer],
        rows_per_column: float,
        seed: int,
        done: Mapping[str, tuple[QuantizedLayer, LayerOutcome]] | None = None,
    ) -> None:
        self.network = network
        self.layers = layers
        self.scales = scales
        self.quantizers = quantizers
        self.rows_per_column = rows_per_column
        self.seed = seed
        self.results: dict[str, QuantizedLayer] = {}
        self.outcomes: dict[str, LayerOutcome] = {}
        self._done = dict(done or {})

    def run(
        self,
        batches: Iterable[Tensor],
        image_count: int,
        progress: Callable[[int, int | None], None] | None = None,
        on_layer: Callable[[QuantizedLayer, LayerOutcome], None] | None = None,
    ) -> dict[str, QuantizedLayer]:
        """Quantize all layers.

        Args:
            batches: inputs of shape (N, 3, H, W), read once
            image_count: number of images in all
            progress: called with the number of layers done and in all
            on_layer: called with each layer that was rounded

        Returns:
            the layers by output name
        """
        with torch.no_grad(), Spool() as spool:
            count = 0
            source = self.network.inputs[0]
            for batch in batches:
                spool.write(f"f:{source}", count, batch)
                # Its own quantizer applies when the first piece runs.
                spool.write(f"q:{source}", count, batch)
                count += 1
            live, start = {source}, 0
            previous: WeightedLayer | None = None
            for number, layer in enumerate([*self.layers, None]):
                stop = len(self.network.steps) if layer is None else self.network.position[layer.node.output[0]]
                statistics, live = self._piece(spool, live, count, start, stop, previous, layer, image_count)
                if layer is not None:
                    name = layer.node.output[0]
                    if name in self._done:
                        self.results[name], self.outcomes[name] = self._done[name]
                    else:
                        assert statistics is not None
                        release_memory()
                        self._solve(layer, statistics)
                        if on_layer is not None:
                            on_layer(self.results[name], self.outcomes[name])
                    del statistics
                    release_memory()
                previous, start = layer, stop
                if progress is not None:
                    progress(number, len(self.layers))
        return self.results

    def _piece(
        self,
        spool: Spool,
        live: set[str],
        count: int,
        start: int,
        stop: int,
        previous: WeightedLayer | None,
        layer: WeightedLayer | None,
        image_count: int,
    ) -> tuple[_Statistics | None, set[str]]:
        """Run both networks from one layer to the next over all batches, and look at the next one's inputs."""
        rounded: dict[str, LayerConstants] = {}
        if previous is not None:
            name = previous.node.output[0]
            rounded[name] = self.results[name].constants(previous.axis)
        generator = torch.Generator().manual_seed(self.seed)
        watch = [] if previous is None else [previous.node.output[0]]
        signal = noise = 0.0
        statistics: _Statistics | None = None
        after: set[str] = set()
        for i in range(count):
            flows: list[Values] = []
            for prefix in ("f:", "q:"):
                values = {name: spool.read(prefix + name, i) for name in live}
                quantizers: Mapping[str, Quantizer] = {}
                if prefix == "q:":
                    quantizers = self.quantizers
                    if start > 0:
                        # Rounded again to the very same values: what is stored has float16's precision.
                        values = {n: quantizers[n](v) if n in quantizers else v for n, v in values.items()}
                captured: Values = {}
                run = self.network.run(
                    values,
                    start,
                    stop,
                    rounded if prefix == "q:" else None,
                    _capturing(quantizers, watch, captured),
                )
                flows.append({**run, **{f"raw:{n}": v for n, v in captured.items()}})
            for name in watch:
                exact, ours = (flow.pop(f"raw:{name}", None) for flow in flows)
                if exact is None or ours is None:
                    continue  # nobody reads it
                signal += float(exact.square().sum())
                noise += float((exact - ours).square().sum())
            if layer is not None and layer.node.output[0] not in self._done:
                statistics = self._observe(layer, flows[0], flows[1], statistics, image_count, generator)
            after = {n for n in flows[0] if self.network.last_use.get(n, -1) >= stop}
            if layer is not None:
                for prefix, flow in zip(("f:", "q:"), flows, strict=True):
                    for name in after - live:
                        spool.write(prefix + name, i, flow[name])
        for name in live - after:
            spool.drop(f"f:{name}")
            spool.drop(f"q:{name}")
        if previous is not None:
            self._say_noise(previous.node.output[0], signal, noise)
        return statistics, after

    def _observe(
        self,
        layer: WeightedLayer,
        exact: Values,
        ours: Values,
        statistics: _Statistics | None,
        image_count: int,
        generator: torch.Generator,
    ) -> _Statistics:
        x, y = exact[layer.data], ours[layer.data]
        images = x.shape[0]
        few = self._kept_rows(layer) * images / image_count
        state = generator.get_state()
        kept = [input_rows(layer, x, self.network, few, generator)]
        generator.set_state(state)  # the same places
        kept.append(input_rows(layer, y, self.network, few, generator))
        rows = input_rows(layer, y, self.network, self._wanted_rows(layer) * images / image_count, generator)
        if statistics is None:
            statistics = _Statistics([], 0, torch.zeros(()), torch.zeros(()), 0)
            if rows is not None:
                statistics.blocks = no_moments(rows.shape[0], rows.shape[2])
        if rows is not None:
            for block in statistics.blocks:
                block.add(rows[:, :, block.part])
            statistics.rows += rows.shape[1]
            assert kept[0] is not None
            assert kept[1] is not None
            statistics.exact_rows.append(kept[0])
            statistics.rounded_rows.append(kept[1])
        statistics.mean_float = statistics.mean_float + x.sum(0, keepdim=True)
        statistics.mean_quantized = statistics.mean_quantized + y.sum(0, keepdim=True)
        statistics.images += images
        return statistics

    def _wanted_rows(self, layer: WeightedLayer) -> float:
        columns = columns_of(layer, self.network)
        if groups_of(layer) > 1 and columns <= 256:
            return _DEPTHWISE_ROWS
        return max(_FEWEST_ROWS, self.rows_per_column * columns_together(columns))

    def _kept_rows(self, layer: WeightedLayer) -> float:
        columns = columns_of(layer, self.network) * groups_of(layer)
        return min(_MOST_KEPT_ROWS, max(_FEWEST_KEPT_ROWS, _KEPT_VALUES / columns))

    def _solve(self, layer: WeightedLayer, statistics: _Statistics) -> None:
        name = layer.node.output[0]
        weight = self.network.constants[layer.weight]
        scale = self.scales[name]
        bias = None if layer.bias is None else self.network.constants[layer.bias].reshape(-1).expand(scale.shape)
        grouped = to_groups(layer, weight)
        by_group = scale.reshape(grouped.shape[0], -1)
        spread = nearest_error = rounded_error = 0.0
        if statistics.rows:
            codes = torch.empty_like(grouped, dtype=torch.int8)
            while statistics.blocks:
                block = statistics.blocks.pop(0)  # what is solved needs no memory any more
                part, moments = block.part, block.covariance()
                del block
                w = grouped[:, :, part]
                codes[:, :, part] = round_compensating(w, moments, by_group)
                step = by_group[:, :, None]
                spread += output_error(w, moments)
                nearest = round_to_nearest(w, by_group)
                before = output_error(nearest * step - w, moments)
                after = output_error(codes[:, :, part] * step - w, moments)
                if after > before:
                    # Nothing to gain, as with inputs that never change.
                    codes[:, :, part], after = nearest, before
                nearest_error += before
                rounded_error += after
        else:
            codes = round_to_nearest(grouped, by_group).to(torch.int8)
        result = QuantizedLayer(from_groups(layer, codes, weight), scale, bias)
        shift = self._mean_error(layer, result, statistics)
        activation = None if shift is None else self._activation(name)
        if shift is not None and activation is not None and statistics.exact_rows:
            exact = self._outputs(torch.cat(statistics.exact_rows, 1), grouped, bias)
            ours = self._outputs(torch.cat(statistics.rounded_rows, 1), codes * by_group[:, :, None], bias)
            shift = shift_behind(activation, exact, ours, shift)
        largest = 0.0
        if shift is not None:
            corrected = shift if bias is None else bias + shift
            result = QuantizedLayer(result.codes, scale, corrected)
            deviation = math.sqrt(spread / max(scale.numel(), 1))
            largest = float(shift.abs().amax()) / deviation if deviation > 0 else 0.0
        self.results[name] = result
        relative = 1.0 / spread if spread > 0 else 0.0
        self.outcomes[name] = LayerOutcome(name, nearest_error * relative, rounded_error * relative, largest, math.inf)

    def _mean_error(self, layer: WeightedLayer, result: QuantizedLayer, statistics: _Statistics) -> Tensor | None:
        """What the layer's mean output lacks, for each channel; None if it takes no bias.

        Layers are linear: the mean of the outputs is the output for the mean input.
        """
        if layer.node.op_type == "MatMul":
            return None
        step = self.network.steps[self.network.position[layer.node.output[0]]]
        weight = self.network.constants[layer.weight]
        ours = result.constants(layer.axis)
        mean = statistics.mean_float / statistics.images
        exact = step.compute([mean, weight, None])[0]
        got = step.compute([statistics.mean_quantized / statistics.images, ours.weight, None])[0]
        difference = exact - got
        return difference.mean([i for i in range(difference.ndim) if i != 1])

    def _activation(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """What follows a layer, if that is an activation and nothing else."""
        reader = self.network.index.only_consumer(name)
        if reader is None or reader.op_type not in ACTIVATIONS:
            return None
        step = self.network.steps[self.network.position[reader.output[0]]]
        constants = [self.network.constants.get(constant) for constant in reader.input[1:]]
        return (lambda x: step.compute([x, *constants])[0]) if step.differentiable else None

    @staticmethod
    def _outputs(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What a layer adds up, of shape (S, M), for rows of shape (G, S, K) and weights of shape (G, R, K)."""
        made = (rows @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)
        return made if bias is None else made + bias

    def _say_noise(self, name: str, signal: float, noise: float) -> None:
        outcome = self.outcomes[name]
        decibels = math.inf if noise <= 0 or signal <= 0 else 10.0 * math.log10(signal / noise)
        self.outcomes[name] = LayerOutcome(
            name, outcome.nearest_error, outcome.rounded_error, outcome.bias_shift, decibels
        )


def _capturing(quantizers: Mapping[str, Quantizer], names: list[str], captured: Values) -> dict[str, Quantizer]:
    """Quantizers that also note what some tensors were before."""

    def note(name: str) -> Quantizer:
        def quantizer(x: Tensor) -> Tensor:
            captured[name] = x
            return quantizers[name](x) if name in quantizers else x

        return quantizer

    return {**quantizers, **{name: note(name) for name in names}}
