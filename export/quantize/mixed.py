"""Graphs of mixed precision: putting some layers of a quantized graph back to float.

A layer that stays float computes with the weights and the bias that it had. A Q/DQ pair stays only where the rules of
the scheme ask for it without that layer: under `trt` where a layer in INT8 reads the tensor, under `cpu` also where one
wrote it. A residual add that takes the result of a float layer is float too: rounding what it adds would undo a part of
what the layer gains.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from ..errors import QuantizationError
from ..onnx_graph import GraphIndex, drop_unused_initializers, replace_nodes
from .layers import quantized_tensors, weighted_layers

_HIDDEN = "KeptFloat"
_PASSING = ("Relu", "Clip", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose")


def layer_names(model: onnx.ModelProto) -> list[str]:
    """Names of the weighted layers of a float graph, which are those of their outputs, in graph order."""
    return [layer.node.output[0] for layer in weighted_layers(GraphIndex(model))]


def tensors_in_integers(model: onnx.ModelProto, scheme: str, kept_float: Collection[str]) -> frozenset[str]:
    """The activations that have a Q/DQ pair where some layers stay float.

    Args:
        model: the float graph
        scheme: `"cpu"` or `"trt"`
        kept_float: names of the layers that stay float

    Returns:
        names; a subset of those with no layer kept float

    Raises:
        QuantizationError: if there is no such layer
    """
    known = layer_names(model)
    unknown = sorted(set(kept_float) - set(known))
    if unknown:
        raise QuantizationError(f"the graph has no weighted layer {unknown[0]!r}: expected some of {', '.join(known)}")
    hidden = _without_values(model)
    float_results = set(kept_float)
    for node in hidden.graph.node:
        # The rules look at operators: one that they do not know is float.
        if node.output[0] in float_results:
            node.op_type = _HIDDEN
        elif node.op_type in _PASSING and node.input[0] in float_results:
            float_results.add(node.output[0])
        elif node.op_type == "Add" and any(name in float_results for name in node.input):
            node.op_type = _HIDDEN
    return frozenset(quantized_tensors(GraphIndex(hidden), scheme))


def keep_float(
    quantized: onnx.ModelProto, model: onnx.ModelProto, scheme: str, kept_float: Collection[str]
) -> onnx.ModelProto:
    """Put layers of a quantized graph back to float.

    Args:
        quantized: what :func:`~export.quantize.qdq.insert_qdq` made of `model`, in float32 where it is not in integers;
            it is not changed
        model: the float graph, with names as in the quantized one
        scheme: `"cpu"` or `"trt"`
        kept_float: names of the layers that stay float, some of :func:`layer_names`

    Returns:
        the graph of mixed precision; with all layers kept, the float graph

    Raises:
        QuantizationError: if there is no such layer, or the quantized graph is of another model
    """
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    kept = set(kept_float)
    if not kept:
        return result
    in_integers = tensors_in_integers(model, scheme, kept)
    source, index = GraphIndex(model), GraphIndex(result)
    new_name: dict[str, str] = {}
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in in_integers:
            for reader in index.consumers.get(node.output[0], []):
                new_name[reader.output[0]] = node.input[0]
    for name in sorted(kept):
        _restore(name, source, index)
    for node in result.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = new_name.get(name, name)
    for value in result.graph.output:
        if value.name in new_name:  # nothing quantizes what a graph gives out; if something did, this would break it
            raise QuantizationError(f"the output {value.name!r} of the graph stands behind a Q/DQ pair")
    replace_nodes(result, _alive(result))
    drop_unused_initializers(result)
    onnx.checker.check_model(result)
    return result


def _without_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that has the shapes of the layers' weights, but not their values."""
    hidden = onnx.ModelProto()
    hidden.graph.node.extend(model.graph.node)
    hidden.graph.input.extend(model.graph.input)
    hidden.graph.output.extend(model.graph.output)
    hidden.graph.value_info.extend(model.graph.value_info)
    weights = {layer.weight for layer in weighted_layers(GraphIndex(model))}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            hidden.graph.initializer.append(
                onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            )
        else:
            hidden.graph.initializer.append(tensor)
    return hidden


def _restore(name: str, source: GraphIndex, index: GraphIndex) -> None:
    """Give a layer the constants that it has in the float graph."""
    node, original = index.producers.get(name), source.producers[name]
    if node is None or node.op_type != original.op_type:
        raise QuantizationError(f"the quantized graph has no layer {name!r}: it is not of this float graph")
    del node.input[1:]
    for constant in original.input[1:]:
        if constant and constant not in index.initializers:
            tensor = index.graph.initializer.add()
            tensor.CopyFrom(source.initializers[constant])
            index.initializers[constant] = tensor
        node.input.append(constant)


def _alive(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes without Q/DQ that nobody reads any more."""
    used = {value.name for value in model.graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or any(name in used for name in node.output):
            alive.append(node)
            used.update(node.input)
    return alive[::-1]
