"""What ONNX operators compute, written with torch, so that a graph can be run piece by piece and differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs], tuple[Tensor, ...]]
"""Maps a node's inputs, None for those left out, to its outputs."""
_Attributes = dict[str, Any]
_Builder = Callable[[_Attributes], Operator | None]


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


def convolution_arguments(attributes: _Attributes, dimensions: int = 2) -> tuple[_Attributes, list[int]] | None:
    """Arguments of `torch.nn.functional.conv2d` and the margins to pad with first.

    Args:
        attributes: of a Conv
        dimensions: number of spatial dimensions

    Returns:
        stride, padding, dilation and groups, and the margins as `F.pad` takes them (empty where the padding is the same
        on both sides); None if the padding is left to the runtime
    """
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    pads = list(attributes.get("pads", [0] * 2 * dimensions))
    begin, end = pads[:dimensions], pads[dimensions:]
    arguments = {
        "stride": tuple(attributes.get("strides", [1] * dimensions)),
        "dilation": tuple(attributes.get("dilations", [1] * dimensions)),
        "groups": attributes.get("group", 1),
        "padding": tuple(begin) if begin == end else (0,) * dimensions,
    }
    margins = [] if begin == end else [p for pair in zip(begin[::-1], end[::-1], strict=True) for p in pair]
    return arguments, margins


_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
"""By the rank of the weights."""


def _dimensions(attributes: _Attributes) -> int | None:
    """Number of spatial dimensions of a convolution; None if no attribute tells."""
    for name, each in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 1), ("pads", 2)):
        if name in attributes:
            return len(attributes[name]) // each
    return None


def _any_convolution(attributes: _Attributes) -> tuple[_Attributes, list[int]] | None:
    """What :func:`convolution_arguments` gives, of as many dimensions as the attributes have, or any number of them."""
    dimensions = _dimensions(attributes)
    found = convolution_arguments(attributes, dimensions or 1)
    if found is None or dimensions is not None:
        return found
    return {name: value if name == "groups" else value[0] for name, value in found[0].items()}, []


def _conv(attributes: _Attributes) -> Operator | None:
    found = _any_convolution(attributes)
    if found is None:
        return None
    arguments, margins = found

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, weight, bias = _three(x)
        convolve = _CONVOLUTIONS[weight.ndim]
        return (convolve(F.pad(data, margins) if margins else data, weight, bias, **arguments),)

    return run


def _conv_transpose(attributes: _Attributes) -> Operator | None:
    found = _any_convolution(attributes)
    if found is None or found[1] or "output_shape" in attributes:
        return None
    arguments = {**found[0], "output_padding": tuple(attributes.get("output_padding", [0]))}

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, weight, bias = _three(x)
        return (_TRANSPOSED[weight.ndim](data, weight, bias, **arguments),)

    return run


def _gemm(attributes: _Attributes) -> Operator:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        a, b, c = _three(x)
        a = a.t() if attributes.get("transA", 0) else a
        b = b.t() if attributes.get("transB", 0) else b
        product = a @ b if alpha == 1.0 else alpha * (a @ b)
        return (product if c is None else product + (c if beta == 1.0 else beta * c),)

    return run


def _pool(attributes: _Attributes, average: bool) -> Operator | None:
    kernel = attributes["kernel_shape"]
    found = convolution_arguments(attributes, len(kernel))
    if len(kernel) != 2 or found is None:
        return None
    arguments, margins = found
    if attributes.get("ceil_mode", 0) or any(2 * p > k for p, k in zip(arguments["padding"], kernel, strict=True)):
        return None
    if average:
        if margins or arguments["dilation"] != (1, 1):
            return None
        include = bool(attributes.get("count_include_pad", 0))
        stride, padding = arguments["stride"], arguments["padding"]
        return _unary(lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include))
    if attributes.get("storage_order", 0):
        return None
    del arguments["groups"]

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, margins, value=float("-inf")) if margins else x, kernel, **arguments)

    return _unary(pool)


def _clip(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, low, high = _three(x)
        if low is None and high is None:
            return (data,)
        return (torch.clamp(data, low, high),)

    return run


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda x: (function(_first(x)),)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        values = [v for v in x if v is not None]
        return (functools.reduce(function, values),)

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> _Builder:
    def build(attributes: _Attributes) -> Operator:
        keep = bool(attributes.get("keepdims", 1))

        def run(x: Inputs) -> tuple[Tensor, ...]:
            data = _first(x)
            axes = attributes.get("axes") if len(x) < 2 or x[1] is None else x[1].tolist()
            if not axes and attributes.get("noop_with_empty_axes", 0):
                return (data,)
            return (function(data, list(axes or range(data.ndim)), keep),)

        return run

    return build


def _flatten(attributes: _Attributes) -> Operator:
    axis = attributes.get("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = axis if axis >= 0 else axis + x.ndim
        return x.reshape(int(np.prod(x.shape[:at])), -1) if at else x.reshape(1, -1)

    return _unary(flatten)


def _reshape(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, shape, _ = _three(x)
        assert shape is not None
        sizes = [int(s) for s in shape]
        if not attributes.get("allowzero", 0):
            sizes = [data.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
        return (data.reshape(sizes),)

    return run


def _squeeze(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, axes, _ = _three(x)
        return (data.squeeze() if axes is None else data.squeeze(tuple(axes.tolist())),)

    return run


def _unsqueeze(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, axes, _ = _three(x)
        assert axes is not None
        rank = data.ndim + axes.numel()
        for axis in sorted(a + rank if a < 0 else a for a in axes.tolist()):
            data = data.unsqueeze(axis)
        return (data,)

    return run


def _transpose(attributes: _Attributes) -> Operator:
    order = attributes.get("perm")
    return _unary(lambda x: x.permute(order or list(range(x.ndim))[::-1]))


def _concat(attributes: _Attributes) -> Operator:
    axis = attributes["axis"]
    return lambda x: (torch.cat([v for v in x if v is not None], axis),)


def _split(attributes: _Attributes) -> Operator:
    axis, count = attributes.get("axis", 0), attributes.get("num_outputs")

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, sizes, _ = _three(x)
        if sizes is None:
            parts = count or 1
            return data.split(-(-data.shape[axis] // parts), axis)
        return data.split(sizes.tolist(), axis)

    return run


def _slice(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data = _first(x)
        starts, ends, axes, steps = ([] if v is None else v.tolist() for v in [*x[1:], None, None][:4])
        axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index = torch.arange(data.shape[axis])[slice(start, end, step)] if step > 0 else None
            if index is None:  # torch has no negative steps
                index = torch.from_numpy(np.arange(data.shape[axis])[slice(start, end, step)].copy())
            data = data.index_select(axis, index)
        return (data,)

    return run


def _gather(attributes: _Attributes) -> Operator:
    axis = attributes.get("axis", 0)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, index, _ = _three(x)
        assert index is not None
        at = axis if axis >= 0 else axis + data.ndim
        index = torch.where(index < 0, index + data.shape[at], index)
        flat = data.index_select(at, index.reshape(-1))
        return (flat.reshape(*data.shape[:at], *index.shape, *data.shape[at + 1 :]),)

    return run


def _pad(attributes: _Attributes) -> Operator | None:
    mode = attributes.get("mode", b"constant").decode()
    if mode not in ("constant", "reflect"):
        return None

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, pads = _first(x), x[1]
        value = x[2] if len(x) > 2 else None
        assert pads is not None
        axes = list(range(data.ndim)) if len(x) < 4 or x[3] is None else x[3].tolist()
        margins = [0] * 2 * data.ndim
        for i, axis in enumerate(axes):
            at = 2 * (data.ndim - 1 - axis % data.ndim)
            margins[at], margins[at + 1] = int(pads[i]), int(pads[i + len(axes)])
        if mode == "reflect":
            for axis in range(data.ndim):  # torch reflects the last dimensions only
                at = 2 * (data.ndim - 1 - axis)
                data = _reflect(data, axis, margins[at], margins[at + 1])
            return (data,)
        return (F.pad(data, margins, value=0.0 if value is None else float(value)),)

    return run


def _reflect(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Continue a tensor beyond its ends as in a mirror; negative margins cut."""
    size = x.shape[axis]
    if not before and not after:
        return x
    period = max(2 * size - 2, 1)
    at = torch.arange(-before, size + after) % period
    return x.index_select(axis, torch.where(at < size, at, period - at))


def _resize(attributes: _Attributes) -> Operator | None:
    mode, coordinates = (
        attributes.get("mode", b"nearest"),
        attributes.get("coordinate_transformation_mode", b"half_pixel"),
    )
    plain = not attributes.get("antialias", 0) and "axes" not in attributes and not attributes.get("exclude_outside", 0)
    nearest = mode == b"nearest" and coordinates == b"asymmetric" and attributes.get("nearest_mode") == b"floor"
    linear = mode == b"linear" and coordinates in (b"half_pixel", b"pytorch_half_pixel", b"align_corners")
    if not plain or not (nearest or linear):
        return None

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data = _first(x)
        sizes = x[3] if len(x) > 3 else None
        # A factor is used as it is, not as the sizes' quotient, where it makes no whole number of pixels.
        target: _Attributes = {}
        if sizes is None:
            scales = x[2]
            assert scales is not None
            target["scale_factor"] = [float(s) for s in scales[2:]]
        else:
            target["size"] = sizes[2:].tolist()
        if nearest:
            return (F.interpolate(data, mode="nearest", **target),)
        corners = coordinates == b"align_corners"
        return (F.interpolate(data, mode="bilinear", align_corners=corners, **target),)

    return run


def _softmax(attributes: _Attributes) -> Operator:
    return _unary(lambda x: x.softmax(attributes.get("axis", -1)))


def _layer_normalization(attributes: _Attributes) -> Operator | None:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, scale, bias = _three(x)
        return (F.layer_norm(data, data.shape[axis:], scale, bias, epsilon),)

    return run


def _batch_normalization(attributes: _Attributes) -> Operator | None:
    if attributes.get("training_mode", 0):
        return None
    epsilon = attributes.get("epsilon", 1e-5)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, scale, bias, mean, variance = x
        assert data is not None
        return (F.batch_norm(data, mean, variance, scale, bias, False, 0.0, epsilon),)

    return run


def _group_normalization(attributes: _Attributes) -> Operator:
    groups, epsilon = attributes.get("num_groups"), attributes.get("epsilon", 1e-5)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, scale, bias = _three(x)
        return (F.group_norm(data, groups or data.shape[1], scale, bias, epsilon),)

    return run


def _prelu(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, slope, _ = _three(x)
        return (torch.where(data < 0, data * slope, data),)

    return run


def _cast(attributes: _Attributes) -> Operator:
    kind = torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))).dtype
    return _unary(lambda x: x.to(kind))


def _shape(attributes: _Attributes) -> Operator:
    start, end = attributes.get("start", 0), attributes.get("end")
    return _unary(lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64))


def _constant(attributes: _Attributes) -> Operator | None:
    if "value" not in attributes:
        return None
    value = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
    return lambda x: (value,)


def _expand(attributes: _Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, shape, _ = _three(x)
        assert shape is not None
        return (data.expand(torch.broadcast_shapes(data.shape, tuple(shape.tolist()))),)

    return run


def _space(attributes: _Attributes, to_depth: bool) -> Operator | None:
    block, mode = attributes["blocksize"], attributes.get("mode", b"DCR")

    def deepen(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block * block, h // block, w // block)

    def widen(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        inner = c // (block * block)
        if mode == b"DCR":
            x = x.reshape(n, block, block, inner, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            x = x.reshape(n, inner, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, inner, h * block, w * block)

    return _unary(deepen if to_depth else widen)


def _gelu(attributes: _Attributes) -> Operator:
    approximate = attributes.get("approximate", b"none").decode()
    return _unary(lambda x: F.gelu(x, approximate=approximate))


def _hard_sigmoid(attributes: _Attributes) -> Operator:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return _unary(lambda x: (alpha * x + beta).clamp(0.0, 1.0))


def _first(x: Inputs) -> Tensor:
    assert x[0] is not None
    return x[0]


def _three(x: Inputs) -> tuple[Tensor, Any, Any]:
    rest = [*x[1:], None, None]
    return _first(x), rest[0], rest[1]


def _plain(operator: Operator) -> _Builder:
    return lambda attributes: operator


def _power(a: Tensor, b: Tensor) -> Tensor:
    return a.pow(b.to(a.dtype))


_BUILDERS: dict[str, _Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _plain(_binary(torch.matmul)),
    "MaxPool": lambda a: _pool(a, average=False),
    "AveragePool": lambda a: _pool(a, average=True),
    "GlobalAveragePool": _plain(_unary(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True))),
    "GlobalMaxPool": _plain(_unary(lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True))),
    "Relu": _plain(_unary(F.relu)),
    "LeakyRelu": lambda a: _unary(lambda x: F.leaky_relu(x, a.get("alpha", 0.01))),
    "PRelu": _prelu,
    "Elu": lambda a: _unary(lambda x: F.elu(x, a.get("alpha", 1.0))),
    "Clip": _clip,
    "Sigmoid": _plain(_unary(torch.sigmoid)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(_unary(F.hardswish)),
    "Tanh": _plain(_unary(torch.tanh)),
    "Mish": _plain(_unary(F.mish)),
    "Gelu": _gelu,
    "Erf": _plain(_unary(torch.erf)),
    "Softplus": _plain(_unary(F.softplus)),
    "Exp": _plain(_unary(torch.exp)),
    "Log": _plain(_unary(torch.log)),
    "Sqrt": _plain(_unary(torch.sqrt)),
    "Reciprocal": _plain(_unary(torch.reciprocal)),
    "Neg": _plain(_unary(torch.neg)),
    "Abs": _plain(_unary(torch.abs)),
    "Floor": _plain(_unary(torch.floor)),
    "Identity": _plain(_unary(lambda x: x)),
    "Add": _plain(_binary(torch.add)),
    "Sum": _plain(_binary(torch.add)),
    "Sub": _plain(_binary(torch.sub)),
    "Mul": _plain(_binary(torch.mul)),
    "Div": _plain(_binary(_divide)),
    "Pow": _plain(_binary(_power)),
    "Max": _plain(_binary(torch.maximum)),
    "Min": _plain(_binary(torch.minimum)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Softmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "Cast": _cast,
    "Shape": _shape,
    "Constant": _constant,
    "Expand": _expand,
    "DepthToSpace": lambda a: _space(a, to_depth=False),
    "SpaceToDepth": lambda a: _space(a, to_depth=True),
}
