"""Putting the input of a network on the grid of its pixels, where 8 bits hold it exactly.

A normalized image is rounded to other values than its 256 levels by any quantizer of the whole tensor, for each
channel has a grid of its own. Before the normalization all channels have the same one: here the network undoes it, and
the first layers take that up in their weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["PIXEL_STEP", "PIXEL_ZERO_POINTS", "put_on_pixels"]

PIXEL_STEP = 2.0**-6
"""Between two levels: the values that layers read, and so their weights, keep about the size that they had."""
PIXEL_ZERO_POINTS = {"trt": 0, "cpu": 128}
_CENTRE = 128.0
_DEVIATION, _MEAN = "pixel_deviation", "pixel_mean"


@torch.no_grad()
def put_on_pixels(network: fx.GraphModule, mean: Sequence[float], std: Sequence[float]) -> fx.Node | None:
    """Make a network that reads normalized images compute with their pixels less 128, in steps of 1/64, in place.

    Args:
        network: traced, of one input (N, C, H, W), with plain convolutions
        mean: that images are normalized with, for values from 0 to 1, one a channel
        std: the same

    Returns:
        the node of the pixels; None where the input does not go into convolutions alone, and nothing was changed

    Raises:
        ValueError: if the numbers of the normalization are not of the input
    """
    graph = network.graph
    image = next(node for node in graph.nodes if node.op == "placeholder")
    layers = {
        str(user.target): network.get_submodule(str(user.target)) for user in image.users if user.op == "call_module"
    }
    convolutions = [layer for layer in layers.values() if type(layer) is nn.Conv2d and layer.padding_mode == "zeros"]
    runs = [node for node in graph.nodes if node.op == "call_module" and str(node.target) in layers]
    if not convolutions or len(convolutions) != len(layers) or {*runs} != {*image.users}:
        return None
    pads = {_margins(layer) for layer in convolutions}
    if len(pads) != 1:
        return None
    margins = pads.pop()
    channels = {layer.in_channels for layer in convolutions}
    if {len(mean), len(std)} != channels or min(std) <= 0:
        raise ValueError(
            f"normalization is expected to be of {min(channels)} channels with positive deviations, got the mean "
            f"{mean!r} and the deviation {std!r}"
        )
    like = convolutions[0].weight
    factor = 255.0 * PIXEL_STEP * torch.tensor(std, dtype=torch.float64)
    offset = PIXEL_STEP * (255.0 * torch.tensor(mean, dtype=torch.float64) - _CENTRE)
    for name, values in ((_DEVIATION, factor), (_MEAN, offset)):
        network.register_buffer(name, values.to(like).view(1, -1, 1, 1))
    for target, layer in layers.items():
        assert isinstance(layer, nn.Conv2d)
        network.set_submodule(target, _folded(layer, factor, offset))
    with graph.inserting_after(image):
        last = image
        if any(margins):  # before, since what is padded is black only after the normalization
            last = graph.call_function(F.pad, (image, list(margins)))
    with graph.inserting_after(last):
        deviation = graph.get_attr(_DEVIATION)
    with graph.inserting_after(deviation):
        scaled = graph.call_function(torch.mul, (last, deviation))
    with graph.inserting_after(scaled):
        shift = graph.get_attr(_MEAN)
    with graph.inserting_after(shift):
        pixels = graph.call_function(torch.add, (scaled, shift))
    for node in runs:
        node.replace_input_with(image, pixels)
    graph.lint()
    network.recompile()
    return pixels


def _margins(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top and bottom."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        return (left, right, top, bottom)
    height, width = (int(side) for side in layer.padding)
    return (width, width, height, height)


def _folded(layer: nn.Conv2d, factor: Tensor, offset: Tensor) -> nn.Conv2d:
    """A convolution without margins that answers to pixels as this one does to the normalized image."""
    new = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        0,
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        device="meta",
    )
    # The channels of the input that each row of the weights reads.
    rows = torch.arange(layer.in_channels).view(layer.groups, -1)
    rows = rows.repeat_interleave(layer.out_channels // layer.groups, dim=0)
    weight = layer.weight.detach().cpu().double() / factor[rows][:, :, None, None]
    lost = (weight.sum((2, 3)) * offset[rows]).sum(1)
    bias = torch.zeros_like(lost) if layer.bias is None else layer.bias.detach().cpu().double()
    new.weight = nn.Parameter(weight.to(layer.weight))
    new.bias = nn.Parameter((bias - lost).to(layer.weight))
    return new.train(layer.training)
