"""Convolutions and layers that take their place."""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.utils import _pair

from holocron.nn import functional as F

__all__ = ["Add2d", "Involution2d", "NormConv2d", "PyConv2d", "SlimConv2d"]

_PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _NormConvNd(_ConvNd):
    """A convolution that can bring its windows to zero mean and unit variance."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        transposed: bool,
        output_padding: tuple[int, ...],
        groups: int,
        bias: bool,
        padding_mode: _PaddingMode,
        normalize_slices: bool = False,
        eps: float = 1e-14,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            groups,
            bias,
            padding_mode,
        )
        self.normalize_slices: bool = normalize_slices
        self.eps: float = eps

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input with any padding that is not zeros, and the zero padding that is left to do."""
        if self.padding_mode == "zeros":
            return x, cast(tuple[int, int], self.padding)
        return nnf.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)


class NormConv2d(_NormConvNd):
    r"""Convolution whose windows are normalized, from `"Normalized Convolutional Neural Network"
    <https://arxiv.org/abs/2005.05274>`_.

    .. math:: out = bias + weight \star \frac{slice - \mu}{\sqrt{\sigma^2 + \epsilon}}

    with the mean and the biased variance of each slice, the values of the channels of one group that a filter sees at
    one position. See :func:`holocron.nn.functional.norm_conv2d`, also for the memory it takes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel in pixels.
        stride: stride in pixels.
        padding: padding on each side in pixels; it is part of the slices.
        dilation: distance between the taps of the kernel in pixels.
        groups: number of groups of channels, each normalized and convolved on its own.
        bias: whether to add a learned value to each output channel.
        padding_mode: what to pad with.
        eps: added to the variance.

    Shape:
        - input: (N, C_in, H, W)
        - output: (N, C_out, H_out, W_out), as for `torch.nn.Conv2d`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        eps: float = 1e-14,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            _pair(kernel_size),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            False,
            _pair(0),
            groups,
            bias,
            padding_mode,
            True,
            eps,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the normalized windows of ``x``."""
        x, padding = self._pad(x)
        return F.norm_conv2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.eps,
        )


class Add2d(_NormConvNd):
    r"""Layer of L1 distances in place of products, from `"AdderNet: Do We Really Need Multiplications in Deep
    Learning?" <https://arxiv.org/abs/1912.13200>`_.

    .. math:: out(m, n, c) = bias(c) - \sum_{i, j, k} |X(m + i, n + j, k) - F(i, j, k, c)|

    See :func:`holocron.nn.functional.add2d` for the gradient, and for the memory: kernel_size² times the input, and in
    an exported graph out_channels / groups times that.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel in pixels.
        stride: stride in pixels.
        padding: padding on each side in pixels.
        dilation: distance between the taps of the kernel in pixels.
        groups: number of groups of channels that do not see each other.
        bias: whether to add a learned value to each output channel.
        padding_mode: what to pad with.
        normalize_slices: whether to bring each window to zero mean and unit variance first.
        eps: added to the variance.

    Shape:
        - input: (N, C_in, H, W)
        - output: (N, C_out, H_out, W_out), as for `torch.nn.Conv2d`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        normalize_slices: bool = False,
        eps: float = 1e-14,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            _pair(kernel_size),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            False,
            _pair(0),
            groups,
            bias,
            padding_mode,
            normalize_slices,
            eps,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compare the windows of ``x`` to the filters."""
        x, padding = self._pad(x)
        return F.add2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.normalize_slices,
            self.eps,
        )


class SlimConv2d(nn.Module):
    r"""Convolution of two half-width paths, weighted by channel attention and by its mirror image, from `"SlimConv:
    Reducing Channel Redundancy in Convolutional Neural Networks by Weights Flipping"
    <https://arxiv.org/abs/2003.07469>`_.

    .. math::
        w &= \sigma(F_{fc2}(\delta(BN(F_{fc1}(pool(X))))))

        T_{top} &= F_{top}(X_{top}^{(1)} + X_{top}^{(2)}) \quad X_{top} = X \odot w

        T_{bot} &= F_{bot}(X_{bot}^{(1)} + X_{bot}^{(2)}) \quad X_{bot} = X \odot \check{w}

    where :math:`\check{w}` is :math:`w` with its channels reversed and :math:`(1), (2)` are the halves of the channels;
    the output stacks :math:`T_{top}` and :math:`T_{bot}`.

    Args:
        in_channels: channels of the input, even and at least 4.
        kernel_size: side of the kernels in pixels.
        stride: stride in pixels.
        padding: padding on each side in pixels.
        dilation: distance between the taps of the kernels in pixels.
        groups: groups of the two convolutions with ``kernel_size``.
        bias: whether those two add a learned value to each output channel.
        padding_mode: what to pad with.
        r: divider of the channels in the attention.
        L: lower bound of the channels in the attention.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C // 2 + C // 4, H_out, W_out), as for `torch.nn.Conv2d`

    Raises:
        ValueError: if ``in_channels`` is odd or below 4.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        r: int = 32,
        L: int = 2,
    ) -> None:
        super().__init__()
        if in_channels % 2 or in_channels < 4:
            raise ValueError(f"in_channels has to be even and at least 4, got {in_channels}")
        squeezed, half, quarter = max(in_channels // r, L), in_channels // 2, in_channels // 4
        self.fc1 = nn.Conv2d(in_channels, squeezed, 1)
        self.bn = nn.BatchNorm2d(squeezed)
        self.fc2 = nn.Conv2d(squeezed, in_channels, 1)
        self.conv_top = nn.Conv2d(
            half, half, kernel_size, stride, padding, dilation, groups=groups, bias=bias, padding_mode=padding_mode
        )
        self.conv_bot1 = nn.Conv2d(half, quarter, 1)
        self.conv_bot2 = nn.Conv2d(
            quarter,
            quarter,
            kernel_size,
            stride,
            padding,
            dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve both paths and stack them."""
        z = x.mean(dim=(2, 3), keepdim=True)
        w = self.fc2(self.bn(self.fc1(z)).relu()).sigmoid()
        top = torch.add(*(x * w).chunk(2, dim=1))
        bottom = torch.add(*(x * w.flip(1)).chunk(2, dim=1))
        return torch.cat([self.conv_top(top), self.conv_bot2(self.conv_bot1(bottom))], dim=1)


class PyConv2d(nn.ModuleList):
    """Stack of convolutions of growing kernels and groups, from `"Pyramidal Convolution: Rethinking Convolutional
    Neural Networks for Visual Recognition" <https://arxiv.org/abs/2006.11538>`_.

    Level ``i`` has kernels of ``kernel_size + 2 * i`` pixels, so that all give the same spatial size, and its share of
    the output channels: equal for 2, 4, 8 levels; otherwise the first levels get half of what the last ones do.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the smallest kernel in pixels.
        num_levels: number of convolutions.
        padding: padding of the first level in pixels; one more for each further level.
        groups: groups of each level; by default 1, 4, 8, ... but no more than the level has output channels.
        **kwargs: further arguments of `torch.nn.Conv2d`.

    Shape:
        - input: (N, C_in, H, W)
        - output: (N, C_out, H_out, W_out), as for `torch.nn.Conv2d` with the first level's arguments

    Raises:
        ValueError: if ``groups`` is not a list of ``num_levels`` integers, or ``out_channels`` cannot be shared out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_levels: int = 2,
        padding: int = 0,
        groups: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_levels < 1:
            raise ValueError(f"num_levels has to be 1 or more, got {num_levels}")
        if groups is not None and (not isinstance(groups, list) or len(groups) != num_levels):
            raise ValueError(f"groups has to be a list of num_levels={num_levels} integers, got {groups}")
        # The largest power of two of levels shares the channels equally; levels beyond it split one share in two.
        equal = 2 ** int(math.log2(num_levels))
        num_halved = 2 * (num_levels - equal)
        out_chans = [out_channels // (2 * equal)] * num_halved + [out_channels // equal] * (num_levels - num_halved)
        if sum(out_chans) != out_channels:
            parts = 2 * equal if num_halved else equal
            raise ValueError(
                f"out_channels has to be a multiple of {parts} for {num_levels} levels, got {out_channels}"
            )
        if groups is None:
            groups = [1, *(min(2 ** (level + 1), out_chans[level]) for level in range(1, num_levels))]
        super().__init__(
            [
                nn.Conv2d(
                    in_channels,
                    out_chans[level],
                    kernel_size + 2 * level,
                    padding=padding + level,
                    groups=groups[level],
                    **kwargs,
                )
                for level in range(num_levels)
            ]
        )
        self.num_levels: int = num_levels

    def forward(self, x: Tensor) -> Tensor:
        """Stack what each level makes of ``x``."""
        if self.num_levels == 1:
            return self[0](x)
        return torch.cat([conv(x) for conv in self], dim=1)


class Involution2d(nn.Module):
    """Convolution whose kernels are computed from each pixel and shared by the channels of a group, from `"Involution:
    Inverting the Inherence of Convolution for Visual Recognition" <https://arxiv.org/abs/2103.06255>`_.

    The kernel of an output pixel comes from the input pixel under the centre of its window, whatever the padding; with
    a stride, from the mean of the ``stride`` × ``stride`` pixels that start there, as far as a window fits around them.
    Beyond the border the input is zero.

    The kernels take N · groups · kernel_size² · H_out · W_out values; windows are not built.

    Args:
        in_channels: channels of the input and of the output.
        kernel_size: side of the kernels in pixels.
        padding: zeros on each side in pixels.
        stride: stride in pixels.
        groups: number of groups of channels that share a kernel; divides ``in_channels``.
        dilation: distance between the taps of the kernels in pixels.
        reduction_ratio: divider of the channels between the two layers that compute the kernels.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H_out, W_out), as for `torch.nn.Conv2d`

    Raises:
        ValueError: if ``groups`` does not divide ``in_channels`` or ``reduction_ratio`` leaves no channel.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        padding: int = 0,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        reduction_ratio: float = 1,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups:
            raise ValueError(f"groups has to divide in_channels={in_channels}, got {groups}")
        if not 0 < reduction_ratio <= in_channels:
            raise ValueError(
                f"reduction_ratio has to be between 0 and in_channels={in_channels}, got {reduction_ratio}"
            )
        self.groups: int = groups
        self.k_size: int = kernel_size
        self.padding: int = padding
        self.stride: int = stride
        self.dilation: int = dilation
        reach = dilation * (kernel_size - 1)
        # Cut (or pad) the input to one pixel per window, the one under its centre.
        self._margins: tuple[int, int] = (padding - reach // 2, padding - (reach - reach // 2))

        # Rounding up keeps the last, incomplete block, over which the last window is centred.
        self.pool: nn.AvgPool2d | None = nn.AvgPool2d(stride, stride, ceil_mode=True) if stride > 1 else None
        self.reduce = nn.Conv2d(in_channels, int(in_channels // reduction_ratio), 1)
        self.span = nn.Conv2d(int(in_channels // reduction_ratio), kernel_size**2 * groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the kernels from ``x`` and apply them to its windows."""
        centres = nnf.pad(x, self._margins * 2)
        if self.pool is not None:
            centres = self.pool(centres)
        kernels = self.span(self.reduce(centres)).unflatten(1, (self.groups, 1, -1))
        h, w = kernels.shape[-2:]
        padded = nnf.pad(x, (self.padding,) * 4).unflatten(1, (self.groups, -1))
        # A pass over the whole image per tap: building all windows takes kernel_size² times the memory, and longer.
        out = torch.zeros((), dtype=x.dtype, device=x.device)
        for tap in range(self.k_size**2):
            top, left = (self.dilation * offset for offset in divmod(tap, self.k_size))
            rows = slice(top, top + self.stride * (h - 1) + 1, self.stride)
            columns = slice(left, left + self.stride * (w - 1) + 1, self.stride)
            out = out + padded[..., rows, columns] * kernels[:, :, :, tap]
        return out.flatten(1, 2)
