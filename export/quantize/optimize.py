"""INT8 that answers as the float network does: from a float graph and unlabelled images to a quantized graph.

The steps, each of which the report tells the effect of: channels are rescaled between layers
(:mod:`~export.quantize.equalize`), ranges chosen by the error that they cause at the output
(:mod:`~export.quantize.ranges`), weights rounded and biases corrected layer after layer
(:mod:`~export.quantize.layerwise`), and, with more effort, all of it tuned together against the float network's output
(:mod:`~export.quantize.distill`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from calib import ImageStream, TensorRange
from runtime.backends import open_session
from runtime.manifest import Preprocessing

from ..float16 import to_float16
from ..onnx_graph import GraphIndex, add_outputs
from .equalize import Equalization, apply_factors, channel_classes, choose_factors
from .fake import FakeQuantizer
from .layers import WeightedLayer, quantized_tensors, range_sources, tensors_to_observe, weighted_layers
from .layerwise import LayerOutcome, LayerQuantizer, QuantizedLayer
from .network import LayerConstants, Network
from .pixels import PIXEL_RANGE, put_on_pixels
from .qdq import QuantParams, RoundedLayer, activation_params, insert_qdq, weight_params
from .ranges import RangeChoice, choose_ranges
from .statistics import ChannelSamples, collect_samples, output_sensitivity

EFFORTS = ("fast", "normal", "high")
_BATCH = 8


@dataclass(frozen=True)
class Effort:
    """How much work goes into a network.

    Attributes:
        sensitivity_images: images that the output's sensitivity is measured on.
        range_images: images that ranges are compared on.
        rows_per_column: samples of a layer's input for its rounding, as a multiple of their length.
    """

    sensitivity_images: int
    range_images: int
    rows_per_column: float


_EFFORTS = {
    "fast": Effort(32, 64, 2.0),
    "normal": Effort(64, 256, 4.0),
    "high": Effort(128, 1024, 8.0),
}


@dataclass(frozen=True)
class TensorReport:
    """How an activation is quantized.

    Attributes:
        name: of the tensor.
        chosen: its range, as seen and as covered.
        choice: why.
        equalized: whether its channels were rescaled.
    """

    name: str
    chosen: TensorRange
    choice: RangeChoice
    equalized: bool


@dataclass(frozen=True)
class QuantizationReport:
    """What was done to a network, and why.

    Attributes:
        scheme: `"cpu"` or `"trt"`.
        effort: one of :data:`EFFORTS`.
        expected_before: relative squared error of the output that was to be expected without equalization.
        expected_after: the same with it.
        tensors: activations, in graph order.
        layers: in graph order.
    """

    scheme: str
    effort: str
    expected_before: float
    expected_after: float
    tensors: tuple[TensorReport, ...]
    layers: tuple[LayerOutcome, ...]


@dataclass(frozen=True)
class Quantized:
    """A quantized network.

    Attributes:
        model: the graph with explicit Q/DQ.
        report: how it came about.
    """

    model: onnx.ModelProto
    report: QuantizationReport


def quantize_calibrated(
    model: onnx.ModelProto,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    scheme: str,
    *,
    effort: str = "normal",
    per_tensor: bool = False,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Quantized:
    """Quantize a network so that it answers as the float network does on images like these.

    Args:
        model: the float32 graph; it is not changed
        images: files of unlabelled images
        preprocessing: how they become its input
        scheme: `"cpu"`, or `"trt"`, where what is not INT8 becomes float16
        effort: one of :data:`EFFORTS`
        per_tensor: one scale for all weights of a layer, for targets that have no more
        seed: of all that is drawn
        progress: called with the work done and the work in all

    Returns:
        the quantized graph and the report

    Raises:
        CalibrationError: if no image can be read, or an activation is not finite
        QuantizationError: if weights are not finite
    """
    how = _EFFORTS[effort]
    model, pixels = put_on_pixels(onnx.shape_inference.infer_shapes(model), preprocessing)
    stream = ImageStream(images, preprocessing, batch_size=_BATCH)
    observed = tensors_to_observe(model)
    session = open_session(add_outputs(model, observed).SerializeToString(), "onnxruntime")
    try:
        samples = collect_samples(session, stream, len(images), observed, seed)
    finally:
        session.close()
    count = len(images) - len(stream.skipped)
    network = Network(model)
    few = ImageStream(_some(images, how.sensitivity_images), preprocessing, batch_size=_BATCH)
    equalization: Equalization | None = None
    if network.differentiable:
        layers = _float_layers(network)
        sensitivity = output_sensitivity(network, _tensors(few), observed, layers, seed)
        classes = channel_classes(model)
        equalization = choose_factors(model, classes, samples, sensitivity, scheme, per_tensor)
        model = apply_factors(model, equalization)
        samples = _scaled(samples, equalization.of_tensors())
        network = Network(model)
    few = ImageStream(_some(images, how.range_images), preprocessing, batch_size=_BATCH)
    fixed = {} if pixels is None else {pixels: PIXEL_RANGE}
    ranges, choices = choose_ranges(network, _tensors(few), samples, scheme, seed, fixed)
    index = GraphIndex(model)
    params = _activation_params(index, ranges, scheme)
    weighted = weighted_layers(index)
    scales = {
        layer.node.output[0]: torch.from_numpy(_weight_params(network, layer, params, scheme, per_tensor).scale)
        for layer in weighted
    }
    quantizers = {name: FakeQuantizer(p) for name, p in params.items()}
    rounding = LayerQuantizer(network, weighted, scales, quantizers, how.rows_per_column, seed)
    results = rounding.run(_tensors(stream), count, progress)
    quantized = insert_qdq(model, ranges, scheme, {name: _rounded(layer) for name, layer in results.items()})
    scaled = {} if equalization is None else equalization.of_tensors()
    report = QuantizationReport(
        scheme,
        effort,
        0.0 if equalization is None else equalization.expected_before,
        0.0 if equalization is None else equalization.expected_after,
        tuple(TensorReport(n, ranges[n], choices[n], n in scaled and bool((scaled[n] != 1).any())) for n in ranges),
        tuple(rounding.outcomes.values()),
    )
    return Quantized(to_float16(quantized) if scheme == "trt" else quantized, report)


def _tensors(stream: ImageStream) -> Iterator[Tensor]:
    return (torch.from_numpy(batch) for batch in stream)


def _some(images: Sequence[Path], count: int) -> list[Path]:
    """Evenly spread over the images."""
    if count >= len(images):
        return list(images)
    return [images[i * len(images) // count] for i in range(count)]


def _float_layers(network: Network) -> dict[str, LayerConstants]:
    return {
        layer.node.output[0]: LayerConstants(
            network.constants[layer.weight], None if layer.bias is None else network.constants[layer.bias]
        )
        for layer in weighted_layers(network.index)
    }


def _scaled(samples: Mapping[str, ChannelSamples], factors: Mapping[str, Tensor]) -> dict[str, ChannelSamples]:
    """Samples as they are after equalization."""
    return {
        name: seen
        if name not in factors or factors[name].numel() != seen.low.numel()
        else ChannelSamples(seen.values * factors[name], seen.low * factors[name], seen.high * factors[name])
        for name, seen in samples.items()
    }


def _activation_params(index: GraphIndex, ranges: Mapping[str, TensorRange], scheme: str) -> dict[str, QuantParams]:
    sources = range_sources(index, scheme)
    return {name: activation_params(ranges[sources[name]], scheme) for name in quantized_tensors(index, scheme)}


def _weight_params(
    network: Network, layer: WeightedLayer, params: Mapping[str, QuantParams], scheme: str, per_tensor: bool
) -> QuantParams:
    bias = None if layer.bias is None else network.constants[layer.bias].numpy()
    weight = network.constants[layer.weight].numpy()
    return weight_params(layer, weight, bias, params[layer.data], scheme, per_tensor)


def _rounded(layer: QuantizedLayer) -> RoundedLayer:
    bias = None if layer.bias is None else layer.bias.numpy().astype(np.float32)
    return RoundedLayer(layer.codes.numpy(), layer.scale.numpy(), bias)
