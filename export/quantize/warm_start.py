"""A quantization-aware training that starts where post-training quantization ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from calib import CalibrationSettings, TensorRange
from holocron.nn.quantization import ActivationQuantizer, convert, learned_ranges, load_ranges

from ..errors import QuantizationError
from ..onnx_graph import GraphIndex, add_inferred_shapes
from ..trace import trace
from .channel_classes import channel_classes
from .equalize import apply_factors, choose_factors
from .layers import rounded_tensors, tensor_roles, tensors_to_observe
from .layerwise import QuantizedLayer
from .network import Network
from .optimize import effort_of, evenly_spread, float_layers, needs_mirrors, weight_rounding
from .qdq import QuantParams, activation_params
from .ranges import choose_ranges
from .statistics import ScaledSamples, output_sensitivity, sample_activations

__all__ = ["start_from_calibration"]

_BATCH = 8
Progress = Callable[[int, int | None], None]


def start_from_calibration(
    model: fx.GraphModule, images: Tensor, effort: str = "normal", seed: int = 0, progress: Progress | None = None
) -> None:
    """Give a network that :func:`~holocron.nn.quantization.prepare_qat` made what calibration finds, in place.

    Channels are rescaled, ranges chosen by the error that they cause at the output, weights rounded and biases
    corrected layer after layer, as :func:`~export.quantize.optimize.quantize_calibrated` does, under the scheme and the
    scales of the model. The ranges of the weights stay as they are from then on: another step would undo the rounding
    of all weights of a layer at once.

    Args:
        model: prepared with `equalize=False`; it is changed
        images: of shape (N, C, H, W), a few hundred, without labels
        effort: one of :data:`calib.EFFORTS`
        seed: of all that is drawn
        progress: called with the number of layers rounded and in all

    Raises:
        ValueError: if the model was not made by :func:`~holocron.nn.quantization.prepare_qat`, there is no image, or
            the effort is unknown
        CalibrationError: if an activation is not finite
        QuantizationError: if gradients do not pass the exported network, or it is not quantized where the model is
    """
    told = learned_ranges(model)
    scheme, per_tensor = told["scheme"], not told["per_channel"]
    settings = CalibrationSettings(effort=effort, per_tensor=per_tensor, seed=seed)
    how = effort_of(settings)
    if not len(images):
        raise ValueError("there is no image to calibrate on: pass those that the model was prepared with")
    images = images.detach().cpu()
    graph = trace(convert(model).cpu(), (int(images.shape[2]), int(images.shape[3])), int(images.shape[1]))
    add_inferred_shapes(graph)

    names = rounded_tensors(GraphIndex(graph), scheme)
    network = Network(graph)
    _check_differentiable(network)
    observed = tensors_to_observe(graph)
    batches = (batch.numpy() for batch in images.split(_BATCH))
    seen = sample_activations(graph, batches, len(images), observed, seed)
    samples = {name: seen[name] for name in dict.fromkeys(names.values())}
    sensitivity = output_sensitivity(
        network, _some(images, how.sensitivity_images), observed, float_layers(network), seed
    )
    count = min(len(images), how.rounding_images)
    mirrored = needs_mirrors(graph, count)
    factors = choose_factors(
        *(graph, channel_classes(graph), samples, sensitivity, scheme, per_tensor, ()),
        images=count * (2 if mirrored else 1),
        seen=seen,
    )
    graph = apply_factors(graph, factors)
    network = Network(graph)
    scaled = ScaledSamples(samples, factors.of_tensors())
    fixed = _known_ranges(model, graph, names)
    ranges, _ = choose_ranges(network, _some(images, 4 * how.range_images), scaled, scheme, seed, fixed)
    params = {name: activation_params(ranges[source], scheme) for name, source in names.items()}
    rounding = weight_rounding(network, params, scheme, settings)
    few = _some(images, count)
    if mirrored:
        few, count = itertools.chain(few, (batch.flip(3) for batch in _some(images, count))), 2 * count
    rounded = rounding.run(few, count, progress)
    layers: dict[str, tuple[int, QuantizedLayer]] = {}
    for layer in rounding.layers:  # one that runs more than once as it is rounded for the first time
        layers.setdefault(layer.weight, (layer.axis, rounded[layer.node.output[0]]))
    _give_parameters(model, layers)
    load_ranges(model, told | {"activations": _activations(graph, names, params), "weights": _scales(layers, told)})


def _check_differentiable(network: Network) -> None:
    """Refuse a network in which gradients end: all that is chosen here is chosen by what it does to the output."""
    ends = sorted({step.node.op_type for step in network.steps if not step.differentiable})
    if ends:
        raise QuantizationError(
            f"gradients do not pass {', '.join(ends)} of the exported network: train it as prepare_qat made it, "
            "without this start"
        )


def _some(images: Tensor, count: int) -> Iterator[Tensor]:
    """Batches of images evenly spread over those that there are."""
    return iter(images[evenly_spread(len(images), count)].split(_BATCH))


def _known_ranges(model: fx.GraphModule, graph: onnx.ModelProto, names: Mapping[str, str]) -> dict[str, TensorRange]:
    """The ranges that are not to be chosen, those of pixels."""
    roles = tensor_roles(GraphIndex(graph))
    known: dict[str, TensorRange] = {}
    for name, meant in model.meta["quantization"]["roles"].items():
        quantizer = model.get_submodule(name)
        assert isinstance(quantizer, ActivationQuantizer)
        if quantizer.learned:
            continue
        scale, zero_point = (value.item() for value in quantizer.params())
        low, high = ((code - zero_point) * scale for code in quantizer.codes)
        for tensor, source in names.items():
            if not {*roles.get(tensor, ())}.isdisjoint(meant):
                known[source] = TensorRange(low, high, 127 * scale, (low, high))
    return known


def _activations(
    graph: onnx.ModelProto, names: Mapping[str, str], params: Mapping[str, QuantParams]
) -> dict[str, dict[str, float | int]]:
    """Scale and zero point by role."""
    index = GraphIndex(graph)
    roles = tensor_roles(index)
    found: dict[str, dict[str, float | int]] = {}
    for name, source in names.items():
        chosen = {"scale": float(params[name].scale), "zero_point": int(params[name].zero_point)}
        found |= dict.fromkeys((*roles.get(name, ()), *roles.get(source, ())), chosen)
    return found


def _scales(layers: Mapping[str, tuple[int, QuantizedLayer]], told: Mapping[str, Any]) -> dict[str, list[float]]:
    """The scales by the name of the weights, one where all channels share it."""
    return {
        name: layer.scale.tolist() if told["per_channel"] else layer.scale[:1].tolist()
        for name, (_, layer) in layers.items()
    }


@torch.no_grad()
def _give_parameters(model: fx.GraphModule, layers: Mapping[str, tuple[int, QuantizedLayer]]) -> None:
    """Put weights, in the middle between two roundings, and biases into the layers of a model."""
    for name, (axis, rounded) in layers.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        constants = rounded.constants(axis)
        assert isinstance(layer.weight, Tensor)
        layer.weight.copy_(constants.weight if axis == 0 else constants.weight.T)
        if constants.bias is not None:
            bias = getattr(layer, "bias", None)
            if bias is None:
                layer.register_parameter("bias", nn.Parameter(constants.bias.to(layer.weight)))
            else:
                bias.copy_(constants.bias)
