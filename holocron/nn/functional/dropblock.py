"""Structured dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dropblock2d"]


def dropblock2d(x: Tensor, drop_prob: float, block_size: int, inplace: bool = False, training: bool = True) -> Tensor:
    r"""Zero whole squares of activations, from `"DropBlock: A regularization method for convolutional networks"
    <https://arxiv.org/abs/1810.12890>`_.

    Seeds are drawn with probability

    .. math:: \gamma = \frac{p}{b^2} \cdot \frac{H W}{(H - b + 1)(W - b + 1)}

    among the positions where a whole block fits, for each image and each channel on its own (what the paper found to
    work better than one mask for all channels). Each seed drops a block of :math:`b \times b`; what is kept is scaled
    by the inverse of the kept fraction. A block larger than the feature map is cut to it, side by side. Where the draw
    drops everything the output is zero.

    Args:
        x: feature map of shape (N, C, H, W).
        drop_prob: expected fraction of dropped activations :math:`p`, from 0 to 1. Overlaps of blocks make the actual
            fraction somewhat smaller, as in the paper.
        block_size: side of the blocks :math:`b` in pixels; 1 is a dropout of single activations.
        inplace: write the result over ``x``.
        training: if False, return ``x`` as it is.

    Returns:
        tensor of shape (N, C, H, W)

    Raises:
        ValueError: if ``drop_prob`` is not in [0, 1], ``block_size`` is below 1 or ``x`` is not 4D.
    """
    if not 0 <= drop_prob <= 1:
        raise ValueError(f"drop_prob has to be between 0 and 1, got {drop_prob}")
    if block_size < 1:
        raise ValueError(f"block_size has to be 1 or more, got {block_size}")
    if x.ndim != 4:
        raise ValueError(f"x has to be of shape (N, C, H, W), got {tuple(x.shape)}")
    if not training or drop_prob == 0 or x.numel() == 0:
        return x

    n, c, h, w = x.shape
    block_h, block_w = min(block_size, h), min(block_size, w)
    seeds_h, seeds_w = h - block_h + 1, w - block_w + 1
    gamma = drop_prob * h * w / (block_h * block_w * seeds_h * seeds_w)
    seeds = (torch.rand(n, c, seeds_h, seeds_w, device=x.device) < gamma).float()
    # A position is dropped when one of the seeds up to a block above and to the left of it is set.
    margins = (block_w - 1, block_w - 1, block_h - 1, block_h - 1)
    kept = 1 - F.max_pool2d(F.pad(seeds, margins), (block_h, block_w), stride=1)
    # Counted in float32 whatever the type of x: float16 cannot count beyond 65504.
    mask = kept.mul_(kept.numel() / kept.sum().clamp(min=1)).to(x.dtype)
    return x.mul_(mask) if inplace else x * mask
