"""Which tensors of a float graph are quantized, under each scheme."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ..onnx_graph import GraphIndex, attribute

PASS_THROUGH = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool")
"""Operators whose output holds only values of their input: it keeps the input's range, so nothing is rounded twice."""
_FUSED_ACTIVATIONS = ("Relu", "Clip")
"""Activations that a kernel applies to the layer's result before it is rounded: no Q/DQ stands between the two."""
_INTEGER_OPERATORS = ("GlobalAveragePool", "AveragePool", "Add")
"""Operators without weights that CPU backends have an integer kernel for."""


@dataclass(frozen=True)
class WeightedLayer:
    """A node with constant weights.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        data: name of the activation that it reads.
        weight: name of its weights.
        bias: name of its bias, or None.
        axis: of the weights, along which the output channels lie.
    """

    node: onnx.NodeProto
    data: str
    weight: str
    bias: str | None
    axis: int


def weighted_layers(index: GraphIndex) -> list[WeightedLayer]:
    """The layers of a graph whose weights are quantized, in graph order.

    A Gemm with factors other than 1, or a transposed input, stays float: no integer kernel has them.
    """
    layers = []
    for node in index.graph.node:
        axis = _output_channel_axis(node, index)
        if axis is None or node.input[1] not in index.initializers or node.input[0] in index.initializers:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias not in index.initializers:
            continue
        layers.append(WeightedLayer(node, node.input[0], node.input[1], bias, axis))
    return layers


def quantized_tensors(index: GraphIndex, scheme: str) -> list[str]:
    """Names of the activations that get a Q/DQ pair, in graph order.

    Args:
        index: of a float graph
        scheme: `"cpu"`: inputs and outputs of every operator with an integer kernel; `"trt"`: inputs of weighted layers
            and of residual adds

    Returns:
        tensor names; outputs of the graph are among them only where a node reads them too
    """
    layers = weighted_layers(index)
    wanted = {layer.data for layer in layers}
    residuals = [node for node in index.graph.node if node.op_type == "Add" and _is_residual(node, index)]
    wanted.update(name for node in residuals for name in node.input)
    if scheme == "cpu":
        wanted.update(_fused_output(layer.node, index) for layer in layers)
        wanted.update(_fused_output(node, index) for node in residuals)
        for node in index.graph.node:
            if node.op_type in _INTEGER_OPERATORS and node.op_type != "Add":
                wanted.update((node.input[0], node.output[0]))
        # An operator that only moves values stays in integers if what it reads is in integers already.
        for node in index.graph.node:
            if node.op_type in PASS_THROUGH and node.input[0] in wanted:
                wanted.add(node.output[0])
    order = [value.name for value in index.graph.input] + [name for node in index.graph.node for name in node.output]
    # What the graph gives out stays float; where a layer reads it too, the pair stands between the two.
    return [name for name in order if name in wanted and (name not in index.outputs or name in index.consumers)]


def range_source(name: str, index: GraphIndex) -> str:
    """The tensor whose range a tensor has: itself, or what it was moved from."""
    node = index.producers.get(name)
    while node is not None and node.op_type in PASS_THROUGH:
        name = node.input[0]
        node = index.producers.get(name)
    return name


def tensors_to_observe(model: onnx.ModelProto) -> list[str]:
    """Names of the activations whose ranges both schemes need, in graph order, each once."""
    index = GraphIndex(model)
    names = [range_source(name, index) for scheme in ("cpu", "trt") for name in quantized_tensors(index, scheme)]
    return list(dict.fromkeys(names))


def _output_channel_axis(node: onnx.NodeProto, index: GraphIndex) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1:
        return 1
    if node.op_type == "MatMul" and len(index.shape(node.input[1]) or ()) == 2:
        return 1
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if plain and not attribute(node, "transA", 0):
            return 0 if attribute(node, "transB", 0) else 1
    return None


def _fused_output(node: onnx.NodeProto, index: GraphIndex) -> str:
    reader = index.only_consumer(node.output[0])
    return reader.output[0] if reader is not None and reader.op_type in _FUSED_ACTIVATIONS else node.output[0]


def _is_residual(node: onnx.NodeProto, index: GraphIndex) -> bool:
    return all(index.constant(name) is None for name in node.input)
