"""Convolutions, matrix products and pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .building import Attributes, Builder, Inputs, Operator, binary, plain, three, unary


def convolution_arguments(attributes: Attributes, dimensions: int = 2) -> tuple[Attributes, list[int]] | None:
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


def _dimensions(attributes: Attributes) -> int | None:
    """Number of spatial dimensions of a convolution; None if no attribute tells."""
    for name, each in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 1), ("pads", 2)):
        if name in attributes:
            return len(attributes[name]) // each
    return None


def _any_convolution(attributes: Attributes) -> tuple[Attributes, list[int]] | None:
    """What :func:`convolution_arguments` gives, of as many dimensions as the attributes have, or any number of them."""
    dimensions = _dimensions(attributes)
    found = convolution_arguments(attributes, dimensions or 1)
    if found is None or dimensions is not None:
        return found
    return {name: value if name == "groups" else value[0] for name, value in found[0].items()}, []


def _conv(attributes: Attributes) -> Operator | None:
    found = _any_convolution(attributes)
    if found is None:
        return None
    arguments, margins = found

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, weight, bias = three(x)
        convolve = _CONVOLUTIONS[weight.ndim]
        return (convolve(F.pad(data, margins) if margins else data, weight, bias, **arguments),)

    return run


def _conv_transpose(attributes: Attributes) -> Operator | None:
    found = _any_convolution(attributes)
    if found is None or found[1] or "output_shape" in attributes:
        return None
    arguments = {**found[0], "output_padding": tuple(attributes.get("output_padding", [0]))}

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, weight, bias = three(x)
        return (_TRANSPOSED[weight.ndim](data, weight, bias, **arguments),)

    return run


def _gemm(attributes: Attributes) -> Operator:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        a, b, c = three(x)
        a = a.t() if attributes.get("transA", 0) else a
        b = b.t() if attributes.get("transB", 0) else b
        product = a @ b if alpha == 1.0 else alpha * (a @ b)
        return (product if c is None else product + (c if beta == 1.0 else beta * c),)

    return run


def _pool(attributes: Attributes, average: bool) -> Operator | None:
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
        return unary(lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include))
    if attributes.get("storage_order", 0):
        return None
    del arguments["groups"]

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, margins, value=float("-inf")) if margins else x, kernel, **arguments)

    return unary(pool)


CONVOLUTIONS: dict[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": plain(binary(torch.matmul)),
    "MaxPool": lambda a: _pool(a, average=False),
    "AveragePool": lambda a: _pool(a, average=True),
    "GlobalAveragePool": plain(unary(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True))),
    "GlobalMaxPool": plain(unary(lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True))),
}
"""By the name of the operator."""
