"""Rewrites that make a traced graph say plainly what it computes, in the operators that every backend fuses best."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .fold import fold_layers
from .onnx_graph import GraphIndex, attribute, drop_unknown_shapes, replace_nodes


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify a traced graph without changing what it computes.

    A mean over all pixels becomes GlobalAveragePool and dropping its empty dimensions Flatten, which INT8 kernels exist
    for; sizes that are computed for a Resize become constant factors; what a normalization can be folded into takes it;
    a rectifier behind a Concat of convolutions moves to each of them, whose kernels apply it; identities go; so do the
    tracer's notes, which name files of the machine it ran on.

    Args:
        model: the traced model, with inferred shapes; it is changed in place, since it may be gigabytes

    Returns:
        the same model
    """
    result = model
    index = GraphIndex(result)
    nodes, renamed = [], {}
    for node in result.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        if node.op_type == "Identity" and node.output[0] not in index.outputs:
            renamed[node.output[0]] = node.input[0]
            continue
        if node.op_type == "Resize":
            _constant_scales(node, index)
        if node.op_type == "Reshape":
            _no_zero_dimensions(node, index)
        nodes += _pooling(node, index) or _flatten(node, index) or [node]
    for node in nodes:
        for i, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[i] = name
    replace_nodes(result, nodes)
    _drop_unused_nodes(result)
    fold_layers(result)
    _activate_before_joining(result)
    drop_unknown_shapes(result)
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


def _activate_before_joining(model: onnx.ModelProto) -> None:
    """Apply a Relu or Clip to what a Concat joins, where that is convolutions alone, not to what it has joined."""
    index = GraphIndex(model)
    nodes = []
    for node in model.graph.node:
        joined = index.producers.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        if joined is None or joined.op_type != "Concat" or index.only_consumer(joined.output[0]) is None:
            nodes.append(node)
            continue
        parts = [index.producers.get(name) for name in joined.input]
        alone = all(index.only_consumer(name) is not None for name in joined.input)
        if not alone or any(part is None or part.op_type not in ("Conv", "ConvTranspose") for part in parts):
            nodes.append(node)
            continue
        for i, name in enumerate(joined.input):
            activated = index.fresh(f"{name}_activated")
            part = onnx.NodeProto()
            part.CopyFrom(node)
            part.name, part.input[0], part.output[0] = activated, name, activated
            nodes.insert(_position(nodes, joined), part)
            joined.input[i] = activated
        joined.output[0] = node.output[0]
    replace_nodes(model, nodes)


def _position(nodes: list[onnx.NodeProto], node: onnx.NodeProto) -> int:
    return next(i for i, other in enumerate(nodes) if other is node)


def _constant_scales(node: onnx.NodeProto, index: GraphIndex) -> None:
    """Give a Resize of feature maps its factors as constants where it computes the size, batch included."""
    if len(node.input) < 4 or not node.input[3] or index.constant(node.input[3]) is not None:
        return
    before, after = index.shape(node.input[0]), index.shape(node.output[0])
    if before is None or after is None or len(before) != 4 or len(after) != 4 or before[1] != after[1]:
        return
    sides = [(b, a) for b, a in zip(before[2:], after[2:], strict=True) if b is not None and a is not None]
    scales = np.array([1, 1, *(a / b for b, a in sides)], np.float32)
    # With factors the new side is the old one times the factor, rounded down.
    if len(sides) != 2 or any(
        int(np.floor(np.float32(b) * s)) != a for (b, a), s in zip(sides, scales[2:], strict=True)
    ):
        return
    name = index.fresh(f"{node.output[0]}_scales")
    index.graph.initializer.append(numpy_helper.from_array(scales, name))
    del node.input[3:]
    node.input[2] = name


def _no_zero_dimensions(node: onnx.NodeProto, index: GraphIndex) -> None:
    """Drop `allowzero` where the new shape has no 0, which is all that it is about."""
    shape = index.constant(node.input[1])
    if shape is not None and np.all(shape != 0):
        others = [a for a in node.attribute if a.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(others)


def _drop_unused_nodes(model: onnx.ModelProto) -> None:
    """Remove nodes whose results nobody reads."""
    used = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    replace_nodes(model, reversed(kept))
