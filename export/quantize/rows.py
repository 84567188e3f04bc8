"""Layers as products of matrices: what they multiply, row by row, and their weights to match."""

from __future__ import annotations

import math
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import WeightedLayer
from .network import Network
from .operators import convolution_arguments


def input_rows(
    layer: WeightedLayer, x: Tensor, network: Network, wanted: float, generator: torch.Generator
) -> Tensor | None:
    """What a layer multiplies its weights with, at places drawn at random.

    Args:
        layer: reads `x`
        x: its input, all images of a batch
        network: that it is in
        wanted: about how many places to draw
        generator: draws them

    Returns:
        rows of shape (G, S, K); None for layers that are not a matrix product of such rows
    """
    if layer.node.op_type in ("Gemm", "MatMul"):
        flat = x.reshape(-1, x.shape[-1])
        chosen = _draw(flat.shape[0], wanted, generator)
        return (flat if chosen is None else flat[chosen])[None]
    weight = network.constants[layer.weight]
    if layer.node.op_type != "Conv" or weight.ndim != 4:
        return None
    found = convolution_arguments(_attributes(layer))
    if found is None:
        return None
    arguments, margins = found
    groups = arguments["groups"]
    vertical, horizontal = arguments["padding"]
    padded = F.pad(x, margins or [horizontal, horizontal, vertical, vertical])
    kernel, stride, dilation = weight.shape[2:], arguments["stride"], arguments["dilation"]
    size = [(padded.shape[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    # The same places in all images of a batch: each batch draws others.
    chosen = _draw(size[0] * size[1], wanted / x.shape[0], generator)
    places = torch.arange(size[0] * size[1]) if chosen is None else chosen
    top, left = places // size[1] * stride[0], places % size[1] * stride[1]
    down, right = torch.arange(kernel[0]) * dilation[0], torch.arange(kernel[1]) * dilation[1]
    at = (top[:, None, None] + down[None, :, None]) * padded.shape[3] + left[:, None, None] + right[None, None, :]
    patches = padded.flatten(2)[:, :, at.reshape(-1)].reshape(x.shape[0], x.shape[1], places.numel(), -1)
    rows = patches.permute(0, 2, 1, 3).reshape(-1, groups, x.shape[1] // groups * kernel[0] * kernel[1])
    return rows.transpose(0, 1)


def _draw(count: int, wanted: float, generator: torch.Generator) -> Tensor | None:
    """Indices of at least one and about `wanted` things; None for all of them."""
    number = max(1, math.ceil(wanted))
    return None if number >= count else torch.randperm(count, generator=generator)[:number]


def _attributes(layer: WeightedLayer) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in layer.node.attribute}


def groups_of(layer: WeightedLayer) -> int:
    """Number of groups of a layer."""
    return int(_attributes(layer).get("group", 1)) if layer.node.op_type == "Conv" else 1


def columns_of(layer: WeightedLayer, network: Network) -> int:
    """Number of inputs that an output of a layer adds up."""
    weight = network.constants[layer.weight]
    return weight.numel() // weight.shape[layer.axis]


def to_groups(layer: WeightedLayer, weight: Tensor) -> Tensor:
    """Weights as (G, R, K)."""
    groups = groups_of(layer)
    moved = weight.movedim(layer.axis, 0)
    return moved.reshape(groups, moved.shape[0] // groups, -1)


def from_groups(layer: WeightedLayer, grouped: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`to_groups`, for weights of the shape of `like`."""
    moved = like.movedim(layer.axis, 0)
    return grouped.reshape(moved.shape).movedim(0, layer.axis).contiguous()
