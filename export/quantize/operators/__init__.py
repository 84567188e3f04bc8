"""What ONNX operators compute, written with torch, so that a graph can be run piece by piece and differentiated."""

from __future__ import annotations

import onnx

from .building import Inputs, Operator
from .convolution import CONVOLUTIONS, convolution_arguments
from .elementwise import ELEMENTWISE
from .shapes import SHAPES

__all__ = ["Inputs", "Operator", "convolution_arguments", "torch_operator"]

_BUILDERS = {**CONVOLUTIONS, **ELEMENTWISE, **SHAPES}


def torch_operator(node: onnx.NodeProto) -> Operator | None:
    """A function that computes a node in torch, differentiable where the operator is.

    Args:
        node: of the default domain, opset 18 or later

    Returns:
        the function, or None if the operator or one of its attributes is not written here
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    builder = _BUILDERS.get(node.op_type)
    return None if builder is None else builder(attributes)
