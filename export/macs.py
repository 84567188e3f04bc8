"""How much a network computes: multiply-accumulates of its weighted layers and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

from .errors import ExportError
from .onnx_graph import GraphIndex, attribute

_LARGE_TENSOR_BYTES = 4096


def count_macs(model: onnx.ModelProto, batch: int = 1) -> int:
    """Count the multiply-accumulates of one forward pass: convolutions and matrix products, which is what costs.

    Additions of a bias, normalization and activations are left out, as they are in papers.

    Args:
        model: a float graph, whose dynamic dimensions are batches
        batch: what they are taken for

    Returns:
        multiply-accumulates; an operation of the usual "FLOPs" is half of one

    Raises:
        ExportError: if a layer's shape cannot be inferred, naming the node
    """
    return sum(node_macs(model, batch).values())


def node_macs(model: onnx.ModelProto, batch: int = 1) -> dict[str, int]:
    """The multiply-accumulates of each convolution and matrix product, in graph order.

    Args:
        model: a float graph, whose dynamic dimensions are batches
        batch: what they are taken for

    Returns:
        multiply-accumulates by the name of the node's output

    Raises:
        ExportError: if a layer's shape cannot be inferred, naming the node
    """
    index = GraphIndex(onnx.shape_inference.infer_shapes(_skeleton(model, batch), data_prop=True))

    def shape(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        dims = index.shape(name)
        if dims is None or any(d is None for d in dims):
            raise ExportError(f"the shape of {name!r} at {node.op_type} {node.name!r} cannot be inferred: got {dims}")
        return tuple(d for d in dims if d is not None)

    counted = [node for node in model.graph.node if node.op_type in _COUNTS]
    return {node.output[0]: _COUNTS[node.op_type](node, shape) for node in counted}


def _skeleton(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy that has the shapes of large weights but not their values, and no dynamic dimension.

    Shape inference copies the model through a format that ends at 2 GiB; small tensors may say what shapes are.
    """
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = batch
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _LARGE_TENSOR_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return result


_Shapes = Callable[[onnx.NodeProto, str], tuple[int, ...]]


def _conv(node: onnx.NodeProto, shape: _Shapes) -> int:
    # Each output element is a sum over the input channels of its group and over the kernel.
    return math.prod(shape(node, node.output[0])) * math.prod(shape(node, node.input[1])[1:])


def _conv_transpose(node: onnx.NodeProto, shape: _Shapes) -> int:
    # Each input element is spread over the output channels of its group and over the kernel.
    return math.prod(shape(node, node.input[0])) * math.prod(shape(node, node.input[1])[1:])


def _gemm(node: onnx.NodeProto, shape: _Shapes) -> int:
    inner = shape(node, node.input[0])[0 if attribute(node, "transA", 0) else 1]
    return math.prod(shape(node, node.output[0])) * inner


def _matmul(node: onnx.NodeProto, shape: _Shapes) -> int:
    return math.prod(shape(node, node.output[0])) * shape(node, node.input[0])[-1]


_COUNTS: dict[str, Callable[[onnx.NodeProto, _Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
