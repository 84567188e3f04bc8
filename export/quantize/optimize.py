"""INT8 that answers as the float network does: from a float graph and unlabelled images to a quantized graph.

The steps, each of which the report tells the effect of: the input is put on the grid of its pixels
(:mod:`~export.quantize.pixels`), channels are rescaled between layers (:mod:`~export.quantize.equalize`), ranges chosen
by the error that they cause at the output (:mod:`~export.quantize.ranges`), weights rounded and biases corrected layer
after layer (:mod:`~export.quantize.layerwise`), and what is never negative spread over all codes
(:mod:`~export.quantize.centre`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from calib import AUTO, EFFORTS, METHODS, CalibrationSettings, ImageStream, SchemeCalibration, TensorRange
from runtime.manifest import Preprocessing

from ..errors import QuantizationError
from ..float16 import to_float16
from ..memory import release_memory
from ..onnx_graph import GraphIndex
from .centre import centre, centred_tensors, drop_needless_clips, tensor_params
from .channel_classes import channel_classes
from .equalize import apply_factors, choose_factors, known_factors
from .exempt import exempt, exempt_layers, noisy_layers, reveal
from .fake import FakeQuantizer
from .layers import WeightedLayer, rounded_tensors, tensors_to_observe, weighted_layers
from .layerwise import LayerOutcome, LayerQuantizer, QuantizedLayer
from .network import LayerConstants, Network
from .pipeline import Mix
from .pixels import PIXEL_RANGE, put_on_pixels
from .qdq import QuantParams, RoundedLayer, insert_qdq, weight_params
from .ranges import RangeChoice, choose_ranges
from .state import RoundingState
from .statistics import ChannelSamples, ScaledSamples, Sensitivity, output_sensitivity, sample_activations

__all__ = [
    "EFFORTS",
    "Observation",
    "QuantizationReport",
    "Quantized",
    "TensorReport",
    "calibrate_scheme",
    "observe_network",
    "quantize_calibrated",
    "quantize_scheme",
]

_BATCH = 8
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Effort:
    """How much work goes into a network.

    Attributes:
        sensitivity_images: images that the output's sensitivity is measured on.
        range_images: images of 224×224 that ranges are compared on; smaller ones, up to four times as many.
        rounding_images: images that weights are rounded on, at most.
        rows_per_column: samples of a layer's input for its rounding, as a multiple of their length.
    """

    sensitivity_images: int
    range_images: int
    rounding_images: int
    rows_per_column: float


_EFFORTS = {
    "fast": Effort(32, 32, 64, 2.0),
    "normal": Effort(64, 96, 512, 4.0),
    "high": Effort(128, 1024, 1_000_000, 8.0),
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
        effort: one of :data:`calib.EFFORTS`.
        tensors: activations, in graph order.
        layers: in graph order.
        kept_float: layers that stay in higher precision by the scheme's rules, and why.
    """

    scheme: str
    effort: str
    tensors: tuple[TensorReport, ...]
    layers: tuple[LayerOutcome, ...]
    kept_float: Mapping[str, str]


@dataclass(frozen=True)
class Quantized:
    """A quantized network.

    Attributes:
        model: the graph with explicit Q/DQ.
        floating: the float network that it was made of, with rescaled channels.
        report: how it came about.
        calibration: what a second run can start from.
    """

    model: onnx.ModelProto
    floating: onnx.ModelProto
    report: QuantizationReport
    calibration: SchemeCalibration


@dataclass(frozen=True)
class Observation:
    """What the float network shows on the calibration images, the same for both schemes.

    Attributes:
        model: the float graph, on the grid of the pixels where it can be.
        pixels: name of the tensor of those pixels, or None.
        samples: of every activation that a scheme may quantize.
        sensitivity: of the output; None where gradients do not pass the network.
        image_count: number of images that could be read.
    """

    model: onnx.ModelProto
    pixels: str | None
    samples: Mapping[str, ChannelSamples]
    sensitivity: Sensitivity | None
    image_count: int


def quantize_calibrated(
    model: onnx.ModelProto,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    scheme: str,
    *,
    effort: str = "normal",
    method: str = AUTO,
    per_tensor: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a network so that it answers as the float network does on images like these.

    Args:
        model: the float32 graph; it is not changed
        images: files of unlabelled images
        preprocessing: how they become its input
        scheme: `"cpu"`, or `"trt"`, where what is not INT8 becomes float16
        effort: one of :data:`calib.EFFORTS`
        method: how ranges are chosen: :data:`calib.AUTO`, or one of :data:`calib.METHODS` for all of them
        per_tensor: one scale for all weights of a layer, for targets that have no more
        seed: of all that is drawn
        progress: called with the number of layers rounded and in all

    Returns:
        the quantized graph and the report

    Raises:
        ValueError: if the effort or the method is unknown
        CalibrationError: if no image can be read, or an activation is not finite
        QuantizationError: if weights are not finite
    """
    settings = CalibrationSettings(method, effort, per_tensor, seed)
    observed = observe_network(model, images, preprocessing, settings)
    calibration = calibrate_scheme(observed, images, preprocessing, scheme, settings)
    del observed  # as large as several copies of the network
    return quantize_scheme(model, calibration, images, preprocessing, scheme, settings, progress=progress)


def observe_network(
    model: onnx.ModelProto,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    settings: CalibrationSettings,
    progress: Progress | None = None,
) -> Observation:
    """Sample the activations of a float network and measure how much errors in them change its output.

    Args:
        model: the float32 graph; it is not changed
        images: files of unlabelled images
        preprocessing: how they become its input
        settings: what is asked
        progress: called with the number of batches done

    Returns:
        what was seen, in memory that does not grow with the number of images

    Raises:
        ValueError: if the effort or the method is unknown
        CalibrationError: if no image can be read, or an activation is not finite
        QuantizationError: if weights are not finite
    """
    how = effort_of(settings)
    _check_finite(model)
    model, pixels = put_on_pixels(model, preprocessing)
    stream = ImageStream(images, preprocessing, batch_size=_BATCH)
    names = tensors_to_observe(model)
    samples = sample_activations(model, stream, len(images), names, settings.seed, progress)
    release_memory()
    network = Network(model)
    sensitivity: Sensitivity | None = None
    if network.differentiable:
        few = ImageStream(_some(images, how.sensitivity_images), preprocessing, batch_size=_BATCH)
        sensitivity = output_sensitivity(network, _tensors(few), names, float_layers(network), settings.seed)
    release_memory()
    return Observation(model, pixels, samples, sensitivity, len(images) - len(stream.skipped))


def calibrate_scheme(
    observed: Observation,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    scheme: str,
    settings: CalibrationSettings,
) -> SchemeCalibration:
    """Choose how channels are rescaled, and the range of each activation, for one scheme.

    Args:
        observed: what the float network showed
        images: files of unlabelled images
        preprocessing: how they become its input
        scheme: `"cpu"` or `"trt"`
        settings: what is asked

    Returns:
        the factors, ranges and reasons
    """
    how = effort_of(settings)
    model = observed.model
    kept_float = exempt_layers(model, scheme)
    hidden = exempt(model, kept_float)
    names, centred = _rounded_tensors(hidden, scheme)
    samples: Mapping[str, ChannelSamples]
    samples = {name: observed.samples[name] for name in dict.fromkeys(names.values())}
    factors: dict[str, tuple[float, ...]] = {}
    if observed.sensitivity is not None:
        weights = {n: value for n, value in observed.sensitivity.weights.items() if n not in kept_float}
        sensitivity = replace(observed.sensitivity, weights=weights)
        classes = channel_classes(model)
        shown = min(len(images), how.rounding_images)
        shown *= 2 if needs_mirrors(model, shown) else 1
        found = choose_factors(
            *(model, classes, samples, sensitivity, scheme, settings.per_tensor, centred, shown), seen=observed.samples
        )
        factors = found.to_dict()
        model = apply_factors(model, found)
        samples = ScaledSamples(samples, found.of_tensors())
    height, width = preprocessing.size
    count = round(how.range_images * min(4.0, max(1.0, 224 * 224 / (height * width))))
    few = ImageStream(_some(images, count), preprocessing, batch_size=_BATCH)
    fixed = {} if observed.pixels is None else {observed.pixels: PIXEL_RANGE}
    wide = {names[name] for name in centred}
    release_memory()
    ranges, choices = choose_ranges(
        Network(model), _tensors(few), samples, scheme, settings.seed, fixed, settings.method, wide
    )
    noise = {name: choice.errors[choice.method] for name, choice in choices.items() if choice.errors}
    noisy = noisy_layers(hidden, noise, scheme)
    if noisy:  # what lies around them is not rounded then
        kept_float |= noisy
        names, _ = _rounded_tensors(exempt(model, kept_float), scheme)
    needed = list(dict.fromkeys(names.values()))
    chosen = {name: choices[name].method for name in needed}
    return SchemeCalibration({name: ranges[name] for name in needed}, chosen, factors, kept_float)


def quantize_scheme(
    model: onnx.ModelProto,
    calibration: SchemeCalibration,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    scheme: str,
    settings: CalibrationSettings,
    *,
    state: RoundingState | None = None,
    mix: Mix | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Round the weights of a calibrated network, correct its biases and put the Q/DQ in.

    Args:
        model: the float32 graph; it is not changed
        calibration: of this graph under this scheme
        images: files of unlabelled images
        preprocessing: how they become its input
        scheme: `"cpu"`, or `"trt"`, where what is not INT8 becomes float16
        settings: what is asked
        state: where layers are kept as soon as they are rounded, and those of an interrupted run are found
        mix: puts more layers back to float
        progress: called with the number of layers done and in all

    Returns:
        the quantized graph and the report

    Raises:
        QuantizationError: if the calibration is of another graph
    """
    how = effort_of(settings)
    release_memory()
    model, _ = put_on_pixels(model, preprocessing)
    equalization = known_factors(channel_classes(model), calibration.factors)
    model = exempt(apply_factors(model, equalization), calibration.kept_float)
    names, centred = _rounded_tensors(model, scheme)
    missing = sorted(set(names.values()) - set(calibration.ranges))
    if missing:
        raise QuantizationError(f"no range was measured for {missing[0]!r}: calibrate this very graph")
    network = Network(model)
    params = {
        name: tensor_params(calibration.ranges[source], scheme, name in centred) for name, source in names.items()
    }
    rounding = weight_rounding(network, params, scheme, settings, None if state is None else state.layers())
    some = _some(images, how.rounding_images)
    batches = _tensors(ImageStream(some, preprocessing, batch_size=_BATCH))
    count = len(some)
    if needs_mirrors(model, count):
        mirrored = _tensors(ImageStream(some, preprocessing, batch_size=_BATCH))
        batches, count = itertools.chain(batches, (batch.flip(3) for batch in mirrored)), 2 * count
    results = rounding.run(batches, count, progress, None if state is None else state.add)
    rounded = {name: _rounded(layer) for name, layer in results.items()}
    floating, ranges, rounded = centre(model, centred, calibration.ranges, rounded, scheme)
    quantized = insert_qdq(floating, ranges, scheme, rounded)
    if mix is not None:
        quantized = mix(quantized, floating)
    quantized = drop_needless_clips(reveal(quantized))
    scaled = equalization.of_tensors()
    report = QuantizationReport(
        scheme,
        settings.effort,
        tuple(
            TensorReport(
                name,
                calibration.ranges[name],
                RangeChoice(calibration.chosen.get(name, "")),
                name in scaled and bool((scaled[name] != 1).any()),
            )
            for name in dict.fromkeys(names.values())
        ),
        tuple(rounding.outcomes.values()),
        calibration.kept_float,
    )
    quantized = to_float16(quantized) if scheme == "trt" else quantized
    return Quantized(quantized, floating, report, calibration)


def effort_of(settings: CalibrationSettings) -> Effort:
    """What an effort stands for.

    Args:
        settings: what is asked

    Raises:
        ValueError: if the effort or the method is unknown
    """
    if settings.effort not in EFFORTS:
        raise ValueError(f"effort is {settings.effort!r}, expected one of {', '.join(EFFORTS)}")
    if settings.method not in (AUTO, *METHODS):
        raise ValueError(f"method is {settings.method!r}, expected one of {', '.join((AUTO, *METHODS))}")
    return _EFFORTS[settings.effort]


def weight_rounding(
    network: Network,
    params: Mapping[str, QuantParams],
    scheme: str,
    settings: CalibrationSettings,
    done: Mapping[str, tuple[QuantizedLayer, LayerOutcome]] | None = None,
) -> LayerQuantizer:
    """What rounds the weights of all layers of a network.

    Args:
        network: the float network, with rescaled channels
        params: scale and zero point of each activation that is rounded
        scheme: `"cpu"` or `"trt"`
        settings: what is asked
        done: layers that an earlier, interrupted run has rounded already, and what that did
    """
    layers = weighted_layers(network.index)
    scales = {
        layer.node.output[0]: torch.from_numpy(
            _weight_params(network, layer, params, scheme, settings.per_tensor).scale
        )
        for layer in layers
    }
    quantizers = {name: FakeQuantizer(p) for name, p in params.items()}
    rows = effort_of(settings).rows_per_column
    return LayerQuantizer(network, layers, scales, quantizers, rows, settings.seed, done)


def evenly_spread(total: int, count: int) -> list[int]:
    """Positions of so many of a number of things, all of them if they are no more."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def needs_mirrors(model: onnx.ModelProto, images: int) -> bool:
    """Whether a layer sees so few different inputs that mirror images of them are worth as many more.

    Args:
        model: with inferred shapes
        images: number of images that its weights are rounded on
    """
    index = GraphIndex(model)
    for layer in weighted_layers(index):
        weight, shape = index.initializers[layer.weight].dims, index.shape(layer.node.output[0]) or ()
        places = math.prod(size or 1 for size in shape[2:]) if layer.node.op_type == "Conv" else 1
        columns = math.prod(weight) // weight[layer.axis]
        if layer.node.op_type == "Conv" and columns > places * images:
            return True
    return False


def float_layers(network: Network) -> dict[str, LayerConstants]:
    """The weights and biases of a network's layers, by the name of their output."""
    return {
        layer.node.output[0]: LayerConstants(
            network.constants[layer.weight], None if layer.bias is None else network.constants[layer.bias]
        )
        for layer in weighted_layers(network.index)
    }


def _check_finite(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise QuantizationError(f"{tensor.name} holds NaN or infinity: these weights cannot be quantized")


def _rounded_tensors(model: onnx.ModelProto, scheme: str) -> tuple[dict[str, str], frozenset[str]]:
    """The activations that are rounded, each with the one whose range it has, and those spread over all codes."""
    return rounded_tensors(GraphIndex(model), scheme), centred_tensors(model, scheme)


def _tensors(stream: ImageStream) -> Iterator[Tensor]:
    return (torch.from_numpy(batch) for batch in stream)


def _some(images: Sequence[Path], count: int) -> list[Path]:
    """Evenly spread over the images."""
    return [images[i] for i in evenly_spread(len(images), count)]


def _weight_params(
    network: Network, layer: WeightedLayer, params: Mapping[str, QuantParams], scheme: str, per_tensor: bool
) -> QuantParams:
    weight = network.constants[layer.weight].numpy()
    bias = None if layer.bias is None else network.constants[layer.bias].reshape(-1).numpy()
    return weight_params(layer, weight, bias, params[layer.data], scheme, per_tensor)


def _rounded(layer: QuantizedLayer) -> RoundedLayer:
    bias = None if layer.bias is None else layer.bias.numpy().astype(np.float32)
    return RoundedLayer(layer.codes.numpy(), layer.scale.numpy(), bias)
