"""Blocks of the residual networks, and what they are made of."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from holocron.models.blocks import conv_sequence

__all__ = ["BasicBlock", "BlockFactory", "Bottleneck", "ConvLayers", "RepeatChannels", "ResidualBlock"]


@dataclass(frozen=True)
class ConvLayers:
    """What the convolutions of a residual network are made of and followed by.

    Attributes:
        act_layer: activation, copied to each place where it stands.
        norm_layer: creates the normalization from the number of channels.
        drop_layer: creates the regularization after each convolution, from its drop probability ``p``; None for none.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`.
    """

    act_layer: nn.Module = field(default_factory=lambda: nn.ReLU(inplace=True))
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
    drop_layer: Callable[..., nn.Module] | None = None
    conv_layer: Callable[..., nn.Module] = nn.Conv2d

    def activation(self) -> nn.Module:
        """An activation that stands nowhere else, so that its parameters, if it has any, are its own."""
        return copy.deepcopy(self.act_layer)

    def sequence(self, in_channels: int, out_channels: int, *, activate: bool = True, **kwargs: Any) -> list[nn.Module]:
        """Create a convolution without bias and what follows it.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            activate: whether an activation is part of it.
            **kwargs: further arguments of the convolution, ``kernel_size`` among them.

        Returns:
            modules to be put in a row
        """
        return conv_sequence(
            in_channels,
            out_channels,
            self.activation() if activate else None,
            self.norm_layer,
            self.drop_layer,
            self.conv_layer,
            bias=False,
            **kwargs,
        )


class ResidualBlock(nn.Module):
    """Add what some convolutions make of the input to it, then apply the activation.

    Where the shapes differ, a 1 × 1 convolution projects the input first.

    Args:
        residual: the convolutions, without an activation after the last one.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: by how much the convolutions reduce the resolution.
        avg_downsample: average the pixels that a strided projection would skip, as ResNet-D does.
        layers: what the projection is made of.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(
        self,
        residual: Sequence[nn.Module],
        in_channels: int,
        out_channels: int,
        stride: int,
        avg_downsample: bool,
        layers: ConvLayers,
    ) -> None:
        super().__init__()
        self.out_channels: int = out_channels
        self.conv = nn.Sequential(*residual)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            pool: list[nn.Module] = []
            if avg_downsample:
                # Rounds up, as the strided convolutions beside it do. Without a stride it only keeps the place.
                pool = [nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()]
            projection = layers.sequence(
                in_channels, out_channels, activate=False, kernel_size=1, stride=1 if avg_downsample else stride
            )
            self.downsample = nn.Sequential(*pool, *projection)
        self.activation = layers.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual of ``x`` to ``x``."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv(x)
        out += identity
        return self.activation(out)


class BasicBlock(ResidualBlock):
    """Two 3 × 3 convolutions, the first with the stride.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions.
        stride: stride of the first one.
        groups: 1; there is for the constructor to be that of :class:`Bottleneck`.
        width_per_group: 64, likewise.
        avg_downsample: average the pixels that a strided projection would skip.
        layers: what the convolutions are made of and followed by.

    Raises:
        ValueError: if ``groups`` or ``width_per_group`` are others.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, width, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        avg_downsample: bool = False,
        layers: ConvLayers | None = None,
    ) -> None:
        if groups != 1 or width_per_group != 64:
            raise ValueError(
                f"a BasicBlock takes groups=1 and width_per_group=64, got {groups} and {width_per_group}: use a "
                "Bottleneck, whose inner width can differ"
            )
        layers = layers or ConvLayers()
        residual = [
            *layers.sequence(in_channels, width, kernel_size=3, stride=stride, padding=1),
            *layers.sequence(width, width, activate=False, kernel_size=3, padding=1),
        ]
        super().__init__(residual, in_channels, width, stride, avg_downsample, layers)


def _grouped_convolution(channels: int, stride: int, groups: int, layers: ConvLayers) -> list[nn.Module]:
    return layers.sequence(channels, channels, kernel_size=3, stride=stride, padding=1, groups=groups)


class Bottleneck(ResidualBlock):
    """A 1 × 1 convolution, a 3 × 3 convolution with the stride, and a 1 × 1 convolution to four times the width.

    Args:
        in_channels: channels of the input.
        width: a quarter of the channels of the output.
        stride: stride of the 3 × 3 convolution.
        groups: groups of the 3 × 3 convolution, the cardinality of ResNeXt.
        width_per_group: channels of each group where ``width`` is 64; those between the 1 × 1 convolutions are
            ``width * width_per_group // 64 * groups``.
        avg_downsample: average the pixels that a strided projection would skip.
        layers: what the convolutions are made of and followed by.
        conv_layer: creates the three convolutions, by default as ``layers`` does; the projection is not among them.
        middle: creates what stands in place of the 3 × 3 convolution and what follows it, from the number of channels,
            the stride, the groups and ``layers``.

    Raises:
        ValueError: if ``groups`` or ``width_per_group`` leave no channels.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, 4 * width, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        avg_downsample: bool = False,
        layers: ConvLayers | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
        middle: Callable[[int, int, int, ConvLayers], Sequence[nn.Module]] = _grouped_convolution,
    ) -> None:
        inner = width * width_per_group // 64 * groups
        if groups < 1 or inner < 1:
            raise ValueError(
                f"groups={groups} of width_per_group={width_per_group} leave no channels in a block of width {width}"
            )
        layers = layers or ConvLayers()
        inside = layers if conv_layer is None else replace(layers, conv_layer=conv_layer)
        out_channels = self.expansion * width
        residual = [
            *inside.sequence(in_channels, inner, kernel_size=1),
            *middle(inner, stride, groups, inside),
            *inside.sequence(inner, out_channels, activate=False, kernel_size=1),
        ]
        super().__init__(residual, in_channels, out_channels, stride, avg_downsample, layers)


class RepeatChannels(nn.Module):
    """Stack copies of the input along its channels.

    Args:
        num_repeats: number of copies.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C * num_repeats, H, W)
    """

    def __init__(self, num_repeats: int) -> None:
        super().__init__()
        self.num_repeats: int = num_repeats

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the channels of ``x``."""
        return torch.cat([x] * self.num_repeats, dim=1)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"num_repeats={self.num_repeats}"


BlockFactory = Callable[..., ResidualBlock]
