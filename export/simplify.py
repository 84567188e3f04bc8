"""Rewrites that make a traced graph say plainly what it computes, in the operators that every backend fuses best."""

from __future__ import annotations

import onnx

from .onnx_graph import GraphIndex, attribute, drop_unused_initializers, replace_nodes


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify a traced graph without changing what it computes.

    A mean over all pixels becomes GlobalAveragePool and dropping its empty dimensions Flatten, which INT8 kernels exist
    for; identities go; so do the tracer's notes, which name files of the machine it ran on.

    Args:
        model: the traced model, with inferred shapes; it is not changed

    Returns:
        the simplified model
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    nodes, renamed = [], {}
    for node in result.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        if node.op_type == "Identity" and node.output[0] not in index.outputs:
            renamed[node.output[0]] = node.input[0]
            continue
        nodes += _pooling(node, index) or _flatten(node, index) or [node]
    for node in nodes:
        for i, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[i] = name
    replace_nodes(result, nodes)
    drop_unused_initializers(result)
    for value in [*result.graph.value_info, *result.graph.input, *result.graph.output]:
        del value.metadata_props[:]
    for tensor in result.graph.initializer:
        del tensor.metadata_props[:]
    del result.graph.metadata_props[:]
    del result.metadata_props[:]
    del result.functions[:]
    result.doc_string = result.graph.doc_string = ""
    onnx.checker.check_model(result)
    return result


def _pooling(node: onnx.NodeProto, index: GraphIndex) -> list[onnx.NodeProto] | None:
    """ReduceMean over the height and width of a feature map is GlobalAveragePool, and Flatten where it drops them."""
    if node.op_type != "ReduceMean" or len(node.input) != 2:
        return None
    shape, axes = index.shape(node.input[0]), index.constant(node.input[1])
    if shape is None or len(shape) != 4 or axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
        return None
    if attribute(node, "keepdims", 1):
        return [onnx.helper.make_node("GlobalAveragePool", [node.input[0]], node.output, node.name)]
    pooled = index.fresh(f"{node.output[0]}_pooled")
    return [
        onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], pooled),
        onnx.helper.make_node("Flatten", [pooled], node.output, node.name, axis=1),
    ]


def _flatten(node: onnx.NodeProto, index: GraphIndex) -> list[onnx.NodeProto] | None:
    """Reshaping or squeezing (N, C, 1, 1) to (N, C) is Flatten."""
    if node.op_type not in ("Reshape", "Squeeze"):
        return None
    before, after = index.shape(node.input[0]), index.shape(node.output[0])
    if before is None or after is None or len(before) != 4 or len(after) != 2:
        return None
    if before[2:] != (1, 1) or before[1] is None or before[1] != after[1]:
        return None
    return [onnx.helper.make_node("Flatten", [node.input[0]], node.output, node.name, axis=1)]
