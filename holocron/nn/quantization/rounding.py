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
    upper = _inverse_factor(moments, order, damping * level + torch.where(dead, 1.0, 0.0))
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


def _inverse_factor(moments: Tensor, order: Tensor, damping: Tensor) -> Tensor:
    """The upper triangular U with UᵀU = H⁻¹, of second moments H with their inputs in another order.

    The Cholesky factor of H with its inputs backwards, read backwards, is an upper triangular V with V Vᵀ = H; U is
    its inverse.

    Args:
        moments: of shape (G, K, K)
        order: of the inputs, of shape (G, K)
        damping: added to the diagonal, of shape (G, 1)
    """
    groups = torch.arange(len(moments), device=moments.device)[:, None, None]
    backwards = order.flip(1)
    damped = moments[groups, backwards[:, :, None], backwards[:, None, :]]
    damped.diagonal(dim1=1, dim2=2).add_(damping)
    level = damped.diagonal(dim1=1, dim2=2).mean(1)[:, None]
    for _ in range(8):
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            del damped
            identity = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device).expand_as(lower)
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            del lower
            return inverse.flip(1, 2)
        # Inputs that depend on each other to within float32: damp more.
        damped.diagonal(dim1=1, dim2=2).add_(0.05 * level)
    return torch.diag_embed(damped.diagonal(dim1=1, dim2=2).rsqrt().flip(1))
