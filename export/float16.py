"""A float32 graph in float16: weights and activations, with float32 inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from calib import ImageStream, collect_ranges
from runtime.backends import open_session
from runtime.manifest import Preprocessing

from .errors import ExportError
from .onnx_graph import (
    GraphIndex,
    attribute,
    element_types,
    float_tensors,
    replace_nodes,
    serialized_with_outputs,
)

_LARGEST = float(np.finfo(np.float16).max)
_ENDS = (
    "float16 ends at 65504: export without --fp16, and without --int8, whose graph for TensorRT is float16 where it is "
    "not INT8"
)
_FLOAT_ONLY_INPUTS = {"Resize": (1, 2)}
"""Inputs that stay float32 in every type of their operator: the region and the scales of Resize."""


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a graph to float16. Constants, activations and the scales of Q/DQ follow; inputs and outputs do not.

    Args:
        model: a float32 model of opset 19 or later; it is not changed

    Returns:
        the converted model

    Raises:
        ExportError: if a constant does not fit float16, naming it
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    keep = {
        node.input[i]
        for node in result.graph.node
        for i in _FLOAT_ONLY_INPUTS.get(node.op_type, ())
        if i < len(node.input)
    }
    for name, tensor in float_tensors(result):
        if name not in keep:
            _convert(tensor, name)
    for node in result.graph.node:
        if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT:
            _set_type(node, "to")
        if node.op_type == "ConstantOfShape":
            value = attribute(node, "value") or numpy_helper.from_array(np.zeros(1, np.float32))
            _convert(value, node.output[0])
            _replace_attribute(node, onnx.helper.make_attribute("value", value))
    # Types of intermediate tensors have changed: shape inference states them anew when somebody asks.
    del result.graph.value_info[:]
    _cast_ends(result, index)
    onnx.checker.check_model(result)
    return result


def check_activations(model: onnx.ModelProto, images: Sequence[Path], preprocessing: Preprocessing) -> None:
    """Refuse a network whose activations leave float16. Running its float16 graph here would not show that: CPU
    backends compute in float32 what they have no float16 kernel for.

    Args:
        model: the float32 graph
        images: files to run it on
        preprocessing: how they become its input

    Raises:
        ExportError: if an activation does not fit float16, naming it
        CalibrationError: if no image can be read, or an activation is not finite
    """
    types = element_types(model)
    names = [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    session = open_session(serialized_with_outputs(model, names), "onnxruntime")
    try:
        ranges = collect_ranges(session, ImageStream(images, preprocessing, batch_size=1), names, "minmax")
    finally:
        session.close()
    index = GraphIndex(model)
    reached = {name: max(_depth(name, ranges[name].minimum, index), ranges[name].maximum) for name in names}
    name = max(reached, key=lambda n: reached[n])
    if reached[name] > _LARGEST:
        raise ExportError(f"{name!r} reaches {reached[name]:.3g} on these images, {_ENDS}")


def _depth(name: str, minimum: float, index: GraphIndex) -> float:
    """How far below zero a tensor goes; as good as not at all where a bound follows, which minus infinity keeps too."""
    reader = index.only_consumer(name)
    bounded = reader is not None and (
        reader.op_type == "Relu" or (reader.op_type == "Clip" and len(reader.input) > 1 and bool(reader.input[1]))
    )
    return 0.0 if bounded else -minimum


def _convert(tensor: TensorProto, name: str) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST:
        raise ExportError(f"{name!r} holds {largest:.3g}, {_ENDS}")
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _set_type(node: onnx.NodeProto, name: str) -> None:
    _replace_attribute(node, onnx.helper.make_attribute(name, TensorProto.FLOAT16))


def _replace_attribute(node: onnx.NodeProto, new: onnx.AttributeProto) -> None:
    others = [a for a in node.attribute if a.name != new.name]
    del node.attribute[:]
    node.attribute.extend([*others, new])


def _cast_ends(model: onnx.ModelProto, index: GraphIndex) -> None:
    """Put a Cast behind every float32 input and before every float32 output."""
    nodes = list(model.graph.node)
    before, after = [], []
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inner = index.fresh(f"{value.name}_fp16")
            _rename(nodes, value.name, inner)
            before.append(onnx.helper.make_node("Cast", [value.name], [inner], to=TensorProto.FLOAT16))
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inner = index.fresh(f"{value.name}_fp16")
            _rename(nodes, value.name, inner)
            after.append(onnx.helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT))
    replace_nodes(model, [*before, *nodes, *after])


def _rename(nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
