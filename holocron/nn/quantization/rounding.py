"""Rounding weights so that a layer's output changes least, rather than the weights themselves.

With X the inputs of a layer, unfolded, the squared error of its output is ‖(W − Q) X‖² = tr (W − Q) H (W − Q)ᵀ with
H = X Xᵀ. Rows are independent. Columns are rounded one after the other, and each one's error is compensated in the
columns that are not rounded yet, by the inverse of H.

Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv
2210.17323.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LEVELS", "round_compensating"]

LEVELS = 127
_BLOCK = 128
_DAMPING = 0.01


def round_compensating(weight: Tensor, moments: Tensor, scale: Tensor, damping: float = _DAMPING) -> Tensor:
    """Integers for weights with which the layer's output changes little.

    Args:
        weight: of shape (G, R, K): groups, output channels and inputs of each group
        moments: second moments H of the inputs about their mean, of shape (G, K, K); what they lack in rank is damped
        scale: step of each output channel, of shape (G, R)
        damping: added to the diagonal of H, relative to its mean

    Returns:
        values from -127 to 127, of the shape of the weights
    """
    size = weight.shape[2]
    level = moments.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    dead = ~((level > 0) & torch.isfinite(level))
    if dead.any():  # what is not finite would spread
        moments = torch.where(dead[:, :, None], 0.0, moments)
        level = torch.where(dead, 0.0, level)
    diagonal = moments.diagonal(dim1=1, dim2=2)
    # The inputs that matter most are rounded first, while there are most others to compensate in.
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    columns = order[:, None, :]
    damped = moments.gather(1, order[:, :, None].expand_as(moments)).gather(2, columns.expand_as(moments))
    damped.diagonal(dim1=1, dim2=2).add_(damping * level + torch.where(dead, 1.0, 0.0))
    upper = _inverse_factor(damped)
    del damped
    w = weight.gather(2, columns.expand_as(weight))
    rounded = torch.empty_like(w)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        part = w[:, :, start:stop].clone()
        errors = torch.empty_like(part)
        factor = upper[:, start:stop, start:stop]
        for j in range(stop - start):
            integers = torch.clamp(torch.round(part[:, :, j] / scale), -LEVELS, LEVELS)
            rounded[:, :, start + j] = integers
            error = (part[:, :, j] - integers * scale) / factor[:, j, j, None]
            part[:, :, j:] -= error[:, :, None] * factor[:, j, None, j:]
            errors[:, :, j] = error
        if stop < size:
            w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    result = torch.empty_like(rounded)
    return result.scatter_(2, columns.expand_as(rounded), rounded)


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper triangular U with UᵀU = H⁻¹."""
    level = moments.diagonal(dim1=1, dim2=2).mean(1)[:, None]
    for _ in range(8):
        lower, failed = torch.linalg.cholesky_ex(moments)
        if not failed.any():
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed.any():
                return upper
        # Inputs that depend on each other to within float32: damp more.
        moments.diagonal(dim1=1, dim2=2).add_(0.05 * level)
    return torch.diag_embed(moments.diagonal(dim1=1, dim2=2).rsqrt())
