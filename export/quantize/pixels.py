"""Quantizing a network's input without any loss: on the grid of the pixels that it was made from.

Preprocessing turns pixels 0 … 255 into (p / 255 − mean) / std, with a mean and a deviation a channel. One scale for all
channels then rounds values that were integers to others that are not, differently for each shade, so that whole areas
of one colour are off by the same amount: a large part of what INT8 costs a small network. Here the normalization is
undone in the graph and folded into the first convolution instead: what is quantized is p − 128, which 8 bits hold
exactly, signed or not. Padding goes in front, where zero is still the mean.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from calib import TensorRange
from runtime.manifest import Preprocessing

from ..onnx_graph import GraphIndex, add_inferred_shapes, attribute, drop_unused_initializers, replace_nodes
from .layers import WeightedLayer, weighted_layers

PIXEL_RANGE = TensorRange(-128.0, 127.0, 127.0, (-128.0, 127.0))
"""Under both schemes the scale is exactly 1, and all 256 codes are used."""
_CENTRE = 128.0


def put_on_pixels(model: onnx.ModelProto, preprocessing: Preprocessing) -> tuple[onnx.ModelProto, str | None]:
    """Make a network read pixels, where its input goes into plain convolutions and nowhere else.

    Args:
        model: a float graph; it is not changed
        preprocessing: how images become its input

    Returns:
        a graph with inferred shapes that computes the same, and the name of the tensor of :data:`PIXEL_RANGE`, None
        where the graph has another beginning
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    layers = _first_layers(index)
    if not layers:
        add_inferred_shapes(result)
        return result, None
    source = layers[0].data
    pads = list(attribute(layers[0].node, "pads", [0, 0, 0, 0]))
    factor = 255.0 * np.asarray(preprocessing.std, np.float64)
    offset = 255.0 * np.asarray(preprocessing.mean, np.float64) - _CENTRE
    before: list[onnx.NodeProto] = []
    name = source
    if any(pads):
        margins = np.array([0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]], np.int64)
        name = _add(
            index, before, "Pad", [name, index.add_initializer(f"{source}_margins", margins)], f"{source}_padded"
        )
    scale = index.add_initializer(f"{source}_deviation", factor.astype(np.float32).reshape(1, 3, 1, 1))
    shift = index.add_initializer(f"{source}_mean", offset.astype(np.float32).reshape(1, 3, 1, 1))
    name = _add(index, before, "Mul", [name, scale], f"{source}_scaled")
    name = _add(index, before, "Add", [name, shift], f"{source}_pixels")
    for layer in layers:
        _fold(layer, index, factor, offset)
        layer.node.input[0] = name
        _set_pads(layer.node)
    replace_nodes(result, [*before, *result.graph.node])
    drop_unused_initializers(result)
    add_inferred_shapes(result)
    return result, name


def _first_layers(index: GraphIndex) -> list[WeightedLayer]:
    """The convolutions that read the input, if they can be given pixels."""
    inputs = sorted(name for name in index.inputs if name not in index.initializers)
    if len(inputs) != 1 or inputs[0] in index.outputs:
        return []
    shape = index.shape(inputs[0])
    readers = index.consumers.get(inputs[0], [])
    layers = [layer for layer in weighted_layers(index) if layer.data == inputs[0]]
    if shape is None or len(shape) != 4 or shape[1] != 3 or len(layers) != len(readers):
        return []
    pads = [list(attribute(layer.node, "pads", [0, 0, 0, 0])) for layer in layers]
    for layer in layers:
        dims = index.initializers[layer.weight].dims
        plain = layer.node.op_type == "Conv" and attribute(layer.node, "auto_pad", b"NOTSET") == b"NOTSET"
        groups = attribute(layer.node, "group", 1)
        alone = all(len(index.consumers[name]) == 1 for name in layer.node.input[1:] if name)
        if not plain or not alone or len(dims) != 4 or dims[1] * groups != 3 or pads[0] != pads[-1]:
            return []
    return layers if all(p == pads[0] for p in pads) else []


def _fold(layer: WeightedLayer, index: GraphIndex, factor: np.ndarray, offset: np.ndarray) -> None:
    """Let a convolution take pixels p − 128 in place of the normalized image."""
    tensor = index.initializers[layer.weight]
    weight = numpy_helper.to_array(tensor).astype(np.float64)
    groups = attribute(layer.node, "group", 1)
    rows = np.repeat(np.arange(3).reshape(groups, -1), weight.shape[0] // groups, axis=0)  # the channels of each row
    weight = weight / factor[rows][:, :, None, None]
    tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), tensor.name))
    lost = (weight.sum((2, 3)) * offset[rows]).sum(1)
    bias = np.zeros(weight.shape[0])
    if layer.bias is not None:
        bias = numpy_helper.to_array(index.initializers[layer.bias]).astype(np.float64)
    name = index.add_initializer(f"{layer.node.output[0]}_bias_of_pixels", (bias - lost).astype(np.float32))
    del layer.node.input[2:]
    layer.node.input.append(name)


def _set_pads(node: onnx.NodeProto) -> None:
    others = [a for a in node.attribute if a.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*others, onnx.helper.make_attribute("pads", [0, 0, 0, 0])])


def _add(index: GraphIndex, nodes: list[onnx.NodeProto], op: str, inputs: list[str], output: str) -> str:
    output = index.fresh(output)
    nodes.append(onnx.helper.make_node(op, inputs, [output], name=output))
    return output
