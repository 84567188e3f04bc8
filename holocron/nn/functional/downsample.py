"""Reductions of the spatial or channel extent."""

import torch
from torch import Tensor

__all__ = ["concat_downsample2d", "z_pool"]


def concat_downsample2d(x: Tensor, scale_factor: int) -> Tensor:
    """Move each block of ``scale_factor`` × ``scale_factor`` pixels to the channels, losing nothing, as in
    `"YOLO9000: Better, Faster, Stronger" <https://arxiv.org/abs/1612.08242>`_.

    Output channel ``(i * scale_factor + j) * C + c`` holds channel ``c`` of the pixels at row ``i`` and column ``j`` of
    their block: the sub-images are stacked one after the other, whereas `torch.nn.functional.pixel_unshuffle`
    interleaves them.

    Args:
        x: feature map of shape (N, C, H, W).
        scale_factor: side of the blocks in pixels; divides H and W.

    Returns:
        tensor of shape (N, C * scale_factor², H / scale_factor, W / scale_factor)

    Raises:
        ValueError: if ``scale_factor`` is below 1 or does not divide the height and the width, or ``x`` is not 4D.
    """
    if x.ndim != 4:
        raise ValueError(f"x has to be of shape (N, C, H, W), got {tuple(x.shape)}")
    if scale_factor < 1:
        raise ValueError(f"scale_factor has to be 1 or more, got {scale_factor}")
    n, c, h, w = x.shape
    if h % scale_factor or w % scale_factor:
        raise ValueError(
            f"scale_factor {scale_factor} has to divide the height and the width of x, got {h} x {w}: pad or crop first"
        )
    blocks = x.reshape(n, c, h // scale_factor, scale_factor, w // scale_factor, scale_factor)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * scale_factor**2, h // scale_factor, w // scale_factor)


def z_pool(x: Tensor, dim: int = 1) -> Tensor:
    """Replace a dimension by its maximum and its mean, from `"Rotate to Attend: Convolutional Triplet Attention Module"
    <https://arxiv.org/abs/2010.03045>`_.

    Args:
        x: tensor of any shape.
        dim: dimension to pool.

    Returns:
        tensor of the shape of ``x``, except for size 2 in ``dim``: the maximum, then the mean
    """
    return torch.cat([x.amax(dim, keepdim=True), x.mean(dim, keepdim=True)], dim=dim)
