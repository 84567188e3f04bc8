"""A static check that the oldest TensorRT in the field takes a graph, before anybody carries it to a device.

`tensorrt10_operators.json` lists the operators and element types of TensorRT 10's ONNX parser; the limits that are not
types are written out below.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from .errors import UnsupportedOperatorError
from .onnx_graph import GraphIndex, attribute, element_types

_TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
_CONSTANT_AXES = {
    "Pad": (3,),
    "Slice": (3,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("Mean", "Sum", "SumSquare", "Max", "Min", "Prod", "L1", "L2")},
    **{f"Reduce{kind}": (1,) for kind in ("LogSum", "LogSumExp")},
}
_LARGEST_K = 3840


def tensorrt10_problems(model: onnx.ModelProto) -> list[str]:
    """What TensorRT 10 would refuse in a graph.

    Args:
        model: a checked ONNX model

    Returns:
        one line for each problem, naming the node; empty if there is none
    """
    table = _table()
    problems = []
    for opset in model.opset_import:
        low, high = table["opset"]
        if opset.domain not in ("", "ai.onnx"):
            problems.append(f"the graph uses the operator set {opset.domain!r}, which TensorRT does not know")
        elif not low <= opset.version <= high:
            problems.append(f"the graph is of opset {opset.version}, TensorRT 10 takes {low} to {high}")
    types = element_types(model)
    index = GraphIndex(model)
    for node in model.graph.node:
        problems += [f"{node.op_type} {node.name!r} {problem}" for problem in _node_problems(node, index, types, table)]
    return problems


def check_tensorrt10(model: onnx.ModelProto, file: str) -> None:
    """Refuse a graph that TensorRT 10 would refuse.

    Args:
        model: a checked ONNX model
        file: what to call it in the error

    Raises:
        UnsupportedOperatorError: naming the first node and how many more there are
    """
    problems = tensorrt10_problems(model)
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UnsupportedOperatorError(f"{file} would not open on TensorRT 10 (JetPack 6): {problems[0]}{more}")


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads((resources.files(__package__) / "tensorrt10_operators.json").read_text())


def _node_problems(node: onnx.NodeProto, index: GraphIndex, types: dict[str, int], table: dict[str, Any]) -> list[str]:
    allowed = table["operators"].get(node.op_type)
    if allowed is None:
        return ["is an operator that it does not have"]
    problems = []
    if node.input:
        kind = types.get(node.input[0])
        if kind not in (None, TensorProto.UINT8) and _TYPES.get(kind) not in allowed:
            name = _TYPES.get(kind) or TensorProto.DataType.Name(kind)
            problems.append(f"takes {name} here, and it only has {', '.join(allowed)}")
    problems += _uint8_problems(node, index, types)
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        problems.append("holds a graph of its own, into which this check does not look")
    for i in _CONSTANT_AXES.get(node.op_type, ()):
        name = node.input[i] if i < len(node.input) else ""
        if name and index.constant(name) is None:
            problems += [f"computes its input {i} ({name!r}), which must be constant"]
    check = _LIMITS.get(node.op_type)
    return problems + (check(node, index) if check else [])


def _uint8_problems(node: onnx.NodeProto, index: GraphIndex, types: dict[str, int]) -> list[str]:
    """TensorRT has uint8 at the network's ends only, with a Cast between them and the rest."""
    inside = [
        name
        for names, ends in ((node.input[:1], index.inputs), (node.output, index.outputs))
        for name in names
        if types.get(name) == TensorProto.UINT8 and not (node.op_type == "Cast" and name in ends)
    ]
    return [f"has the uint8 tensor {inside[0]!r}, which only a Cast at the network's ends may"] if inside else []


def _quantize(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    if len(node.input) < 3 or not node.input[2]:
        return []
    zero_point = index.constant(node.input[2])
    if zero_point is None or zero_point.dtype == np.uint8 or np.any(zero_point != 0):
        return ["has a zero point other than int8 0"]
    return []


def _resize(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    problems = []
    if attribute(node, "mode", b"nearest") not in (b"nearest", b"linear"):
        problems.append(f"resizes by {attribute(node, 'mode').decode()}, it only has nearest and linear")
    if attribute(node, "antialias", 0):
        problems.append("resizes with antialiasing, which it does not have")
    return problems


def _top_k(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    problems = [] if attribute(node, "sorted", 1) else ["is not sorted, which it must be"]
    k = index.constant(node.input[1])
    if k is not None and int(k.ravel()[0]) >= _LARGEST_K:
        problems.append(f"takes the top {int(k.ravel()[0])}, it takes fewer than {_LARGEST_K}")
    return problems


def _pool(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    problems = []
    if any(d != 1 for d in attribute(node, "dilations", ())):
        problems.append("is a dilated pooling, which it does not have")
    if len(node.output) > 1 and node.output[1]:
        problems.append("gives the indices of the maxima, which it does not")
    return problems


_LIMITS = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "Resize": _resize,
    "TopK": _top_k,
    "MaxPool": _pool,
    "AveragePool": _pool,
}
