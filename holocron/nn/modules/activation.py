"""Non-linear activations."""

import torch
from torch import Tensor, nn

from holocron.nn import functional as F

__all__ = ["FReLU", "HardMish", "NLReLU"]


class _Activation(nn.Module):
    """An activation that can overwrite its input."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace: bool = inplace

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return "inplace=True" if self.inplace else ""


class HardMish(_Activation):
    r"""Piecewise quadratic approximation of Mish, from `"H-Mish" <https://github.com/digantamisra98/H-Mish>`_.

    .. math:: f(x) = \frac{x}{2} \cdot \min(2, \max(0, x + 2))

    Args:
        inplace: write the result over the input.

    Shape:
        - input: any
        - output: that of the input
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return F.hard_mish(x, inplace=self.inplace)


class NLReLU(_Activation):
    r"""Natural-logarithm ReLU, from `"Natural-Logarithm-Rectified Activation Function in Convolutional Neural
    Networks" <https://arxiv.org/abs/1908.03682>`_.

    .. math:: f(x) = \ln(1 + \beta \cdot \max(0, x))

    Args:
        beta: slope at the origin, not negative.
        inplace: write the result over the input.

    Shape:
        - input: any
        - output: that of the input

    Raises:
        ValueError: if ``beta`` is negative.
    """

    def __init__(self, beta: float = 1.0, inplace: bool = False) -> None:
        super().__init__(inplace)
        if beta < 0:
            raise ValueError(f"beta has to be 0 or more, got {beta}")
        self.beta: float = beta

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return F.nl_relu(x, beta=self.beta, inplace=self.inplace)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return ", ".join(filter(None, [f"beta={self.beta}", super().extra_repr()]))


class FReLU(nn.Module):
    r"""Funnel activation, from `"Funnel Activation for Visual Recognition" <https://arxiv.org/abs/2007.11824>`_.

    .. math:: f(x) = \max(x, \mathbb{T}(x))

    where :math:`\mathbb{T}` is a depthwise convolution followed by batch normalization.

    Args:
        in_channels: channels of the input.
        kernel_size: side of the convolution's kernel in pixels, odd.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H, W)

    Raises:
        ValueError: if ``kernel_size`` is even: the condition would not align with the input.
    """

    def __init__(self, in_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size has to be odd, got {kernel_size}")
        self.conv = nn.Conv2d(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels)
        self.bn = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return torch.maximum(x, self.bn(self.conv(x)))
