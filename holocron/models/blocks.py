"""Building blocks that several families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from holocron.models.reparam import BranchSum

__all__ = ["check_layout", "conv_bn", "conv_sequence", "init_weights"]

_VARIANCE_BESIDE_IDENTITY = 0.125
_DROP_PROBABILITY = 0.1


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias followed by batch normalization.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel.
        stride: stride of the convolution.
        padding: zero padding on each side.
        groups: number of groups; ``in_channels`` for a depthwise convolution.

    Returns:
        ``Sequential(Conv2d, BatchNorm2d)``
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_sequence(
    in_channels: int,
    out_channels: int,
    act_layer: nn.Module | None = None,
    norm_layer: Callable[[int], nn.Module] | None = None,
    drop_layer: Callable[..., nn.Module] | None = None,
    conv_layer: Callable[..., nn.Module] | None = None,
    **kwargs: Any,
) -> list[nn.Module]:
    """A convolution and what follows it: normalization, activation, dropout, each only where it is given.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        act_layer: activation; this very module becomes part of the sequence.
        norm_layer: creates the normalization from the number of channels.
        drop_layer: creates the regularization, from its drop probability ``p``.
        conv_layer: creates the convolution, with the arguments of :class:`torch.nn.Conv2d`, which is the default.
        **kwargs: further arguments of the convolution, ``kernel_size`` among them.

    Returns:
        modules to be put in a row, in the order above
    """
    layers: list[nn.Module] = [(conv_layer or nn.Conv2d)(in_channels, out_channels, **kwargs)]
    if norm_layer is not None:
        layers.append(norm_layer(out_channels))
    if act_layer is not None:
        layers.append(act_layer)
    if drop_layer is not None:
        layers.append(drop_layer(p=_DROP_PROBABILITY))
    return layers


def init_weights(module: nn.Module) -> None:
    """Initialize in place so that activations keep their scale from layer to layer, before any training.

    Convolutions follow `He et al. <https://arxiv.org/abs/1502.01852>`_ over their fan-in, the one that is right for
    depthwise convolutions too. Of parallel branches, the identity starts at one and the convolutions together at an
    eighth of its variance: a network of thirty blocks then starts as a shallow one, which trains several times faster
    in its first epochs, for the reason that the last normalization of a residual block starts near zero (`Goyal et al.
    <https://arxiv.org/abs/1706.02677>`_). Where there is no identity the convolutions share unit variance. Either way
    even an untrained network stays within what float16 can hold.

    Args:
        module: network whose submodules are initialized.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, BranchSum):
            convolved = [branch for branch in layer if isinstance(branch, nn.Sequential)]
            variance = 1.0 if len(convolved) == len(layer) else _VARIANCE_BESIDE_IDENTITY
            for branch in convolved:
                norm = branch[-1]
                assert isinstance(norm, nn.BatchNorm2d)
                nn.init.constant_(norm.weight, math.sqrt(variance / len(convolved)))


def check_layout(num_blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int) -> None:
    """Raise a ValueError unless these describe the stages of a classifier.

    Args:
        num_blocks: number of blocks of each stage.
        widths: output channels of each stage.
        num_classes: number of classes.
        in_channels: channels of the input.
    """
    if not widths or len(num_blocks) != len(widths):
        raise ValueError(f"expected one width a stage, got {len(widths)} widths for {len(num_blocks)} stages")
    for name, values in (
        ("num_blocks", num_blocks),
        ("widths", widths),
        ("num_classes", [num_classes]),
        ("in_channels", [in_channels]),
    ):
        if min(values) < 1:
            raise ValueError(f"expected {name} to be at least 1, got {min(values)}")
