"""Layers that reduce the spatial extent of a feature map."""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from holocron.nn import functional as F

__all__ = ["SPP", "BlurPool2d", "ConcatDownsample2d", "GlobalAvgPool2d", "GlobalMaxPool2d", "ZPool"]


class ConcatDownsample2d(nn.Module):
    """Move blocks of pixels to the channels, losing nothing, as in `"YOLO9000: Better, Faster, Stronger"
    <https://arxiv.org/abs/1612.08242>`_. See :func:`holocron.nn.functional.concat_downsample2d` for the order of the
    channels.

    Args:
        scale_factor: side of the blocks in pixels.

    Shape:
        - input: (N, C, H, W), H and W multiples of ``scale_factor``
        - output: (N, C * scale_factor², H / scale_factor, W / scale_factor)

    Raises:
        ValueError: if ``scale_factor`` is below 1.
    """

    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        if scale_factor < 1:
            raise ValueError(f"scale_factor has to be 1 or more, got {scale_factor}")
        self.scale_factor: int = scale_factor

    def forward(self, x: Tensor) -> Tensor:
        """Move the blocks of ``x`` to its channels."""
        return F.concat_downsample2d(x, self.scale_factor)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"scale_factor={self.scale_factor}"


class GlobalAvgPool2d(nn.Module):
    """Average over the spatial dimensions, as in `"TResNet" <https://arxiv.org/abs/2003.13630>`_.

    A plain mean: unlike adaptive pooling it is one reduction in every exported graph, whatever the input size.

    Args:
        flatten: drop the two spatial dimensions instead of keeping them with size 1.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C) if ``flatten``, else (N, C, 1, 1)
    """

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.flatten: bool = flatten

    def forward(self, x: Tensor) -> Tensor:
        """Average ``x`` over its positions."""
        return x.mean(dim=(2, 3), keepdim=not self.flatten)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"flatten={self.flatten}"


class GlobalMaxPool2d(nn.Module):
    """Maximum over the spatial dimensions, as in `"TResNet" <https://arxiv.org/abs/2003.13630>`_.

    Args:
        flatten: drop the two spatial dimensions instead of keeping them with size 1.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C) if ``flatten``, else (N, C, 1, 1)
    """

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.flatten: bool = flatten

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum of ``x`` over its positions."""
        return x.amax(dim=(2, 3), keepdim=not self.flatten)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"flatten={self.flatten}"


class BlurPool2d(nn.Module):
    """Blur with a binomial filter, then subsample, from `"Making Convolutional Networks Shift-Invariant Again"
    <https://arxiv.org/abs/1904.11486>`_. The borders are reflected; the filter is fixed and not part of the
    ``state_dict``.

    Args:
        channels: channels of the input.
        kernel_size: side of the filter in pixels; 3 weighs (1, 2, 1) / 4 along each axis, 5 (1, 4, 6, 4, 1) / 16.
        stride: subsampling step in pixels.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H_out, W_out), with H_out = ceil(H / stride) for odd kernels and strides up to 2

    Raises:
        AssertionError: if ``kernel_size`` is 1 or less.
    """

    kernel: Tensor

    def __init__(self, channels: int, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        if kernel_size <= 1:
            raise AssertionError(f"kernel_size has to be 2 or more, got {kernel_size}")
        self.channels: int = channels
        self.kernel_size: int = kernel_size
        self.stride: int = stride
        # Centres the filter on the pixels that are kept, at any stride.
        self.padding = nn.ReflectionPad2d((stride - 1 + kernel_size - 1) // 2)
        binomial = torch.tensor([math.comb(kernel_size - 1, k) for k in range(kernel_size)]) / 2 ** (kernel_size - 1)
        self.register_buffer("kernel", torch.outer(binomial, binomial), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Blur and subsample ``x``."""
        filters = self.kernel.to(x.dtype).expand(self.channels, 1, -1, -1)
        return nnf.conv2d(self.padding(x), filters, stride=self.stride, groups=self.channels)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class SPP(nn.ModuleList):
    """Spatial pyramid pooling, from `"Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition"
    <https://arxiv.org/abs/1406.4729>`_ as used in YOLO: the input and its maxima over windows of several sizes, stacked
    along the channels in that order.

    Args:
        kernel_sizes: side of each pooling window in pixels, odd.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C * (1 + len(kernel_sizes)), H, W)

    Raises:
        ValueError: if a size is even: its output would not align with the others.
    """

    def __init__(self, kernel_sizes: list[int]) -> None:
        if any(k_size % 2 == 0 for k_size in kernel_sizes):
            raise ValueError(f"kernel_sizes have to be odd, got {kernel_sizes}")
        super().__init__([nn.MaxPool2d(k_size, stride=1, padding=k_size // 2) for k_size in kernel_sizes])

    def forward(self, x: Tensor) -> Tensor:
        """Stack ``x`` and its maxima."""
        return torch.cat([x, *(pool(x) for pool in self)], dim=1)


class ZPool(nn.Module):
    """Replace a dimension by its maximum and its mean, from `"Rotate to Attend: Convolutional Triplet Attention Module"
    <https://arxiv.org/abs/2010.03045>`_.

    Args:
        dim: dimension to pool.

    Shape:
        - input: any
        - output: that of the input, with size 2 in ``dim``
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim: int = dim

    def forward(self, x: Tensor) -> Tensor:
        """Stack the maximum and the mean of ``x``."""
        return F.z_pool(x, self.dim)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"dim={self.dim}"
