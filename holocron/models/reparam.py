"""Structural reparameterization: folding the parallel linear branches of a trained block into one convolution.

A convolution followed by batch normalization in evaluation mode is an affine map, and so are batch normalization alone
and a sum of such maps. Each is therefore equal to a single convolution with a bias, which is what runs on a device
(`RepVGG <https://arxiv.org/abs/2101.03697>`_, section 3.3). All of the arithmetic here is in float64, so that the one
rounding is that of the final cast back to the type of the parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

__all__ = [
    "BranchSum",
    "ReparametrizableBlock",
    "fuse_branches",
    "fuse_conv_bn",
    "reparametrize",
]


class ReparametrizableBlock(ABC):
    """Mix-in of the modules that a plain equivalent can replace once training is over."""

    @abstractmethod
    def fuse(self) -> nn.Module:
        """Build the plain equivalent, in evaluation mode; the block itself stays as it is."""


class BranchSum(nn.ModuleList, ReparametrizableBlock):
    """Sum of parallel branches over the same input, equal to one convolution in evaluation mode.

    Each branch is a convolution, a convolution followed by batch normalization, or batch normalization alone (then the
    identity is what it normalizes).

    Shape:
        - input: (N, C_in, H, W)
        - output: (N, C_out, H', W'), the same for all branches
    """

    def forward(self, x: Tensor) -> Tensor:
        """Sum what the branches make of ``x``."""
        branches = iter(self)
        out = next(branches)(x)
        for branch in branches:
            # In place: every branch ends in a layer whose backward pass does not need its own output.
            out += branch(x)
        return out

    def fuse(self) -> nn.Conv2d:
        """Build the convolution with a bias that the sum amounts to in evaluation mode."""
        return fuse_branches(self)


def _double(tensor: Tensor) -> Tensor:
    # Apple's GPUs have no float64: there the arithmetic moves to the host.
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device, torch.float64)


def _bn_scale_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the per-channel ``scale`` and ``shift`` (float64) that ``bn`` applies in evaluation mode."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            "a BatchNorm2d with track_running_stats=False normalizes with the statistics of each batch: it is not a "
            "fixed affine map and cannot be folded into a convolution"
        )
    scale = torch.rsqrt(_double(bn.running_var) + bn.eps)
    if bn.weight is not None:
        scale = scale * _double(bn.weight)
    shift = -_double(bn.running_mean) * scale
    if bn.bias is not None:
        shift = shift + _double(bn.bias)
    return scale, shift


def _conv_affine(conv: nn.Conv2d, bn: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Kernel and bias (float64) of ``conv``, with ``bn`` folded in when there is one."""
    weight = _double(conv.weight)
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else _double(conv.bias)
    if bn is None:
        return weight, bias
    if bn.num_features != conv.out_channels:
        raise ValueError(
            f"a BatchNorm2d over {bn.num_features} channels cannot follow a convolution to {conv.out_channels}"
        )
    scale, shift = _bn_scale_shift(bn)
    return weight * scale[:, None, None, None], bias * scale + shift


def _centre(weight: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """View of the middle of a kernel (C_out, C_in / groups, kH, kW) that a kernel of the given size is added to."""
    gaps = [have - want for have, want in zip(weight.shape[2:], kernel_size, strict=True)]
    if any(gap < 0 or gap % 2 for gap in gaps):
        raise ValueError(f"a kernel of {tuple(kernel_size)} cannot be centred in one of {tuple(weight.shape[2:])}")
    top, left = gaps[0] // 2, gaps[1] // 2
    return weight[:, :, top : top + kernel_size[0], left : left + kernel_size[1]]


def _add_identity(weight: Tensor, scale: Tensor) -> None:
    """Add to a kernel (C, C / groups, kH, kW) the map that multiplies channel c of its input by ``scale[c]``."""
    index = torch.arange(weight.shape[0], device=weight.device)
    _centre(weight, (1, 1))[index, index % weight.shape[1], 0, 0] += scale


def _split_branch(branch: nn.Module) -> tuple[nn.Conv2d | None, nn.BatchNorm2d | None]:
    """Tell the convolution and the normalization of one branch apart."""
    layers = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    match layers:
        case [nn.Conv2d() as conv, nn.BatchNorm2d() as bn]:
            return conv, bn
        case [nn.Conv2d() as conv]:
            return conv, None
        case [nn.BatchNorm2d() as bn]:
            return None, bn
    names = " + ".join(type(layer).__name__ for layer in layers) or "nothing"
    raise ValueError(f"cannot fold a branch made of {names}: expected Conv2d, Conv2d + BatchNorm2d, or BatchNorm2d")


def _margins(conv: nn.Conv2d) -> tuple[int, int]:
    """How far the padded input reaches beyond the centre of the first window: equal margins mean aligned outputs."""
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ValueError(
            f"cannot fold a convolution with padding={conv.padding!r}, padding_mode={conv.padding_mode!r}: "
            "expected explicit zero padding"
        )
    top, left = (
        padding - dilation * (size // 2)
        for padding, dilation, size in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True)
    )
    return top, left


def _check_aligned(conv: nn.Conv2d, largest: nn.Conv2d) -> None:
    """Raise unless the kernel of ``conv``, centred in that of ``largest``, sees the same inputs at the same places."""
    # The dilation of an axis that has one tap means nothing.
    dilations_differ = any(
        size > 1 and ours != theirs
        for size, ours, theirs in zip(conv.kernel_size, conv.dilation, largest.dilation, strict=True)
    )
    same = (
        conv.in_channels == largest.in_channels
        and conv.out_channels == largest.out_channels
        and conv.stride == largest.stride
        and conv.groups == largest.groups
        and _margins(conv) == _margins(largest)
    )
    if dilations_differ or not same:
        raise ValueError(f"branches that do not line up cannot be added into one kernel: {conv} and {largest}")


def fuse_branches(branches: Iterable[nn.Module]) -> nn.Conv2d:
    """Fold the sum of parallel branches into one convolution with a bias.

    Args:
        branches: modules that take the same input, each one of ``Conv2d``, ``Sequential(Conv2d, BatchNorm2d)`` and
            ``BatchNorm2d``. At least one has a convolution; all of them share channels, stride and groups, and smaller
            kernels are padded so that they sit in the centre of the largest.

    Returns:
        convolution in evaluation mode whose output equals the sum of the branches' in evaluation mode, on the device
        and with the type of the largest convolution; it requires gradients if any parameter of the branches does.

    Raises:
        ValueError: if the branches are not linear, do not line up, are in training mode, or none has a convolution.
    """
    modules = list(branches)
    if any(layer.training for module in modules for layer in module.modules()):
        raise ValueError(_TRAINING_MESSAGE)
    parts = [_split_branch(module) for module in modules]
    convs = [conv for conv, _ in parts if conv is not None]
    if not convs:
        raise ValueError("cannot fold a sum of branches none of which has a convolution")
    largest = max(convs, key=lambda conv: conv.kernel_size[0] * conv.kernel_size[1])
    weight = torch.zeros_like(_double(largest.weight))
    bias = weight.new_zeros(largest.out_channels)
    for conv, bn in parts:
        if conv is not None:
            _check_aligned(conv, largest)
            branch_weight, branch_bias = _conv_affine(conv, bn)
            centre = _centre(weight, conv.kernel_size)
            centre += branch_weight
            bias += branch_bias
        elif bn is not None:
            _check_identity_fits(bn, largest)
            scale, shift = _bn_scale_shift(bn)
            _add_identity(weight, scale)
            bias += shift
    requires_grad = any(parameter.requires_grad for module in modules for parameter in module.parameters())
    return _conv_like(largest, weight, bias, requires_grad)


def _check_identity_fits(bn: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    if conv.in_channels != conv.out_channels or bn.num_features != conv.in_channels or conv.stride != (1, 1):
        raise ValueError(f"an identity over {bn.num_features} channels cannot be added to {conv}")
    if any(_margins(conv)):
        raise ValueError(f"an identity branch needs a convolution that keeps the spatial size, not {conv}")


def _conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor, requires_grad: bool) -> nn.Conv2d:
    """Convolution with the geometry, device and type of ``conv``, and the given float64 kernel and bias."""
    # Created on the meta device, since initializing parameters that are replaced at once costs time and random numbers.
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=True,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    target = conv.weight
    fused.weight = nn.Parameter(weight.to(target.device, target.dtype), requires_grad)
    fused.bias = nn.Parameter(bias.to(target.device, target.dtype), requires_grad)
    return fused.eval()


def fuse_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold batch normalization into the convolution before it.

    Args:
        conv: any 2D convolution, with or without bias.
        bn: batch normalization over the convolution's output channels, in evaluation mode.

    Returns:
        convolution with a bias, in evaluation mode, equal to ``bn(conv(x))``.

    Raises:
        ValueError: if the two do not fit, are in training mode, or ``bn`` has no running statistics.
    """
    if conv.training or bn.training:
        raise ValueError(_TRAINING_MESSAGE)
    weight, bias = _conv_affine(conv, bn)
    requires_grad = any(parameter.requires_grad for module in (conv, bn) for parameter in module.parameters())
    return _conv_like(conv, weight, bias, requires_grad)


_TRAINING_MESSAGE = (
    "cannot reparametrize a model in training mode: batch normalization still follows the statistics of each batch. "
    "Call .eval() on the model first"
)


def _find_blocks(parent: nn.Module) -> Iterator[tuple[nn.Module, str, ReparametrizableBlock]]:
    """Yield (parent, name, block) for each outermost block that can be replaced."""
    for name, child in parent.named_children():
        if isinstance(child, ReparametrizableBlock):
            yield parent, name, child
        else:
            yield from _find_blocks(child)


def reparametrize(model: nn.Module) -> None:
    """Replace, in place, every :class:`ReparametrizableBlock` inside ``model`` by its plain equivalent.

    A second call finds nothing left to replace and does nothing. An error leaves the model as it was.

    Args:
        model: module in evaluation mode.

    Raises:
        ValueError: if a block is in training mode, or cannot be expressed as one convolution.
    """
    found = list(_find_blocks(model))
    if found and any(module.training for module in model.modules()):
        raise ValueError(_TRAINING_MESSAGE)
    fused = [block.fuse() for _, _, block in found]
    for (parent, name, _), plain in zip(found, fused, strict=True):
        setattr(parent, name, plain)
