"""Spreading what is never negative over all 256 codes of symmetric int8.

TensorRT takes no zero point: behind a ReLU half of the codes stand for values that do not occur. Where only layers
without padding read such a tensor, a constant c can be taken from it, and given back in their biases, since
W (x − c) + (b + W c) = W x + b. With c = 128 steps the real 0 becomes the code −128, and the step is half as wide. A
ReLU is not needed any more then: what is below −c is rounded to the code −128 by itself. Padding rules a layer out, as
its zeros would then stand for c; and so does a result that is rounded at once: ONNX Runtime rounds the bias of such a
layer to an integer, by way of float16, which ends before a bias of this size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from calib import TensorRange

from ..onnx_graph import GraphIndex, attribute, drop_unused_initializers, replace_nodes
from .layers import WeightedLayer, quantized_tensors, range_sources, weighted_layers
from .qdq import QuantParams, RoundedLayer, activation_params

_OFFSET = 128
_LARGEST_BIAS = 2.0**15
"""Constants beyond this are not moved: float16, which holds the biases, ends at 65504."""
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
_KEEPING_SIGNS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape", "Squeeze")
_PRODUCERS = ("Conv", "ConvTranspose", "Gemm")


def centred_tensors(model: onnx.ModelProto, scheme: str) -> frozenset[str]:
    """The activations that can be spread over all codes.

    Args:
        model: a float graph with inferred shapes
        scheme: under `"cpu"`, which has zero points, there are none

    Returns:
        their names
    """
    if scheme != "trt":
        return frozenset()
    index = GraphIndex(model)
    layers = {layer.node.output[0]: layer for layer in weighted_layers(index)}
    sources = range_sources(index, scheme)
    users = Counter(sources.values())
    rounded = frozenset(sources)
    return frozenset(
        name
        for name in quantized_tensors(index, scheme)
        if users[sources[name]] == 1
        and name not in index.outputs
        and _is_never_negative(name, index)
        and all(_takes_a_constant(layers.get(node.output[0]), name, index, rounded) for node in index.consumers[name])
    )


def tensor_params(value_range: TensorRange, scheme: str, centred: bool) -> QuantParams:
    """Scale and zero point of an activation, which may be one that is to be centred.

    Args:
        value_range: what was measured
        scheme: `"cpu"` or `"trt"`
        centred: whether the values will be spread over all codes; the parameters are those before that

    Returns:
        parameters under which the real 0 is an integer, exactly
    """
    if not centred:
        return activation_params(value_range, scheme)
    whole = replace(value_range, symmetric=value_range.asymmetric[1] * 127 / 255)
    return QuantParams(activation_params(whole, scheme).scale, np.array(0, np.uint8))


def centre(
    model: onnx.ModelProto,
    names: Collection[str],
    ranges: Mapping[str, TensorRange],
    layers: Mapping[str, RoundedLayer],
    scheme: str,
) -> tuple[onnx.ModelProto, dict[str, TensorRange], dict[str, RoundedLayer]]:
    """Take constants from activations, and give them back in the biases of the layers that read them.

    Args:
        model: a float graph; it is not changed
        names: of the activations, some of :func:`centred_tensors`
        ranges: by tensor
        layers: weights that are rounded already
        scheme: `"trt"` where there are any names

    Returns:
        a float graph that computes the same, and the ranges and layers for it; an activation for which the biases would
        grow too large stays as it was, rounded to half the codes
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    ranges, layers = dict(ranges), dict(layers)
    sources = range_sources(GraphIndex(model), scheme)
    for name in names:
        index = GraphIndex(result)
        step = float(tensor_params(ranges[sources[name]], scheme, centred=True).scale)
        constant = _OFFSET * step
        readers = [layer for layer in weighted_layers(index) if layer.data == name]
        if constant > _LARGEST_BIAS or any(_largest_bias(layer, index, constant) > _LARGEST_BIAS for layer in readers):
            continue
        low, high = ranges[sources[name]].minimum - constant, ranges[sources[name]].maximum - constant
        ranges[name] = TensorRange(low, high, 127 * step, (-constant, 127 * step))
        _take(result, index, name, constant, layers)
        # Looked up again: an operator more makes new nodes of all.
        for layer in weighted_layers(index):
            if layer.data == name:
                _give_back(layer, index, constant, layers)
    if names:
        drop_unused_initializers(result)
    return result, ranges, layers


def drop_needless_clips(quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Remove lower bounds that rounding to int8 has by itself.

    Args:
        quantized: a graph with explicit Q/DQ in float32; it is changed

    Returns:
        the same graph
    """
    index = GraphIndex(quantized)
    dropped: dict[str, str] = {}
    for node in quantized.graph.node:
        reader = index.only_consumer(node.output[0]) if node.op_type == "Clip" and len(node.input) == 2 else None
        if reader is None or reader.op_type != "QuantizeLinear":
            continue
        bound, scale, zero = (index.constant(n) for n in (node.input[1], reader.input[1], reader.input[2]))
        if bound is None or scale is None or zero is None or zero.dtype != np.int8 or zero.any():
            continue
        if float(bound) == -_OFFSET * float(scale):
            dropped[node.output[0]] = node.input[0]
            reader.input[0] = node.input[0]
    replace_nodes(quantized, [node for node in quantized.graph.node if node.output[0] not in dropped])
    drop_unused_initializers(quantized)
    return quantized


def _is_never_negative(name: str, index: GraphIndex) -> bool:
    node = index.producers.get(name)
    while node is not None and node.op_type in _KEEPING_SIGNS:
        node = index.producers.get(node.input[0])
    if node is None:
        return False
    if node.op_type == "Clip" and len(node.input) > 1 and node.input[1]:
        low = index.constant(node.input[1])
        return low is not None and float(low) >= 0
    return node.op_type in _NEVER_NEGATIVE


def _takes_a_constant(layer: WeightedLayer | None, name: str, index: GraphIndex, rounded: Collection[str]) -> bool:
    """Whether a layer reads nothing but values of a tensor, and has a place for a constant."""
    if layer is None or layer.data != name or layer.node.op_type not in ("Conv", "Gemm"):
        return False
    if any(len(index.consumers[constant]) > 1 for constant in (layer.weight, layer.bias) if constant is not None):
        return False
    made = layer.node.output[0]
    reader = index.only_consumer(made)
    if made in rounded or (reader is not None and reader.op_type in ("Relu", "Clip") and reader.output[0] in rounded):
        return False
    unpadded = attribute(layer.node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return unpadded and not any(attribute(layer.node, "pads", [0]))


def _take(
    model: onnx.ModelProto, index: GraphIndex, name: str, constant: float, layers: dict[str, RoundedLayer]
) -> None:
    """Make a tensor smaller by a constant: in the bias of the layer that makes it, or by an operator of its own."""
    node = index.producers[name]
    layer = index.producers.get(node.input[0]) if node.op_type == "Relu" else None
    if layer is not None and _can_shift(layer, index):
        _shift_bias(layer, index, np.full(index.initializers[layer.input[2]].dims[0], -constant), layers)
        bound = index.add_initializer(f"{name}_lowest", np.array(-constant, np.float32))
        node.CopyFrom(onnx.helper.make_node("Clip", [node.input[0], bound], [name], name=node.name))
        return
    whole = index.fresh(f"{name}_whole")
    shift = index.add_initializer(f"{name}_centre", np.array(-constant, np.float32))
    for i, output in enumerate(node.output):
        if output == name:
            node.output[i] = whole
    nodes: list[onnx.NodeProto] = []
    for each in model.graph.node:
        nodes.append(each)
        if whole in each.output:
            nodes.append(onnx.helper.make_node("Add", [whole, shift], [name], name=f"{name}_centred"))
    replace_nodes(model, nodes)


def _can_shift(layer: onnx.NodeProto, index: GraphIndex) -> bool:
    """Whether a node adds a bias of its own to what only a ReLU reads."""
    if layer.op_type not in _PRODUCERS or index.only_consumer(layer.output[0]) is None:
        return False
    bias = index.initializers.get(layer.input[2]) if len(layer.input) > 2 else None
    return bias is not None and len(bias.dims) == 1 and len(index.consumers[layer.input[2]]) == 1


def _largest_bias(layer: WeightedLayer, index: GraphIndex, constant: float) -> float:
    """The largest bias that a layer would have with a constant given back."""
    weight = numpy_helper.to_array(index.initializers[layer.weight]).astype(np.float64)
    bias = 0.0 if layer.bias is None else numpy_helper.to_array(index.initializers[layer.bias]).reshape(-1)
    others = tuple(i for i in range(weight.ndim) if i != layer.axis)
    return float(np.abs(bias + constant * weight.sum(axis=others)).max(initial=0.0))


def _give_back(layer: WeightedLayer, index: GraphIndex, constant: float, layers: dict[str, RoundedLayer]) -> None:
    """Add to a layer's bias what a constant less in its input takes away, with float and with rounded weights."""
    weight = numpy_helper.to_array(index.initializers[layer.weight]).astype(np.float64)
    others = tuple(i for i in range(weight.ndim) if i != layer.axis)
    rounded = layers.get(layer.node.output[0])
    exact = None
    if rounded is not None:
        exact = constant * rounded.codes.sum(axis=others, dtype=np.int64) * rounded.scale.astype(np.float64)
    _shift_bias(layer.node, index, constant * weight.sum(axis=others), layers, exact)


def _shift_bias(
    node: onnx.NodeProto,
    index: GraphIndex,
    shift: np.ndarray,
    layers: dict[str, RoundedLayer],
    rounded_shift: np.ndarray | None = None,
) -> None:
    """Add to the bias of a layer, and to that of its rounded form."""
    before = np.zeros(shift.shape)
    if len(node.input) > 2:
        before = numpy_helper.to_array(index.initializers[node.input[2]]).astype(np.float64)
        del node.input[2:]
    node.input.append(index.add_initializer(f"{node.output[0]}_shifted_bias", (before + shift).astype(np.float32)))
    rounded = layers.get(node.output[0])
    if rounded is not None:
        bias = before if rounded.bias is None else rounded.bias.astype(np.float64)
        added = shift if rounded_shift is None else rounded_shift
        layers[node.output[0]] = replace(rounded, bias=(bias + added).astype(np.float32))
