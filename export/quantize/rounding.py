"""Rounding weights, to the nearest or so that a layer's output changes least, and what it costs the output."""

from __future__ import annotations

import torch
from torch import Tensor

from holocron.nn.quantization.rounding import LEVELS, round_compensating

__all__ = ["LEVELS", "output_error", "round_compensating", "round_to_nearest"]


def round_to_nearest(weight: Tensor, scale: Tensor) -> Tensor:
    """Integers nearest to weights.

    Args:
        weight: of shape (..., R, K)
        scale: of shape (..., R)

    Returns:
        values from -127 to 127 in the type of the weights
    """
    return torch.clamp(torch.round(weight / scale[..., None]), -LEVELS, LEVELS)


def output_error(difference: Tensor, moments: Tensor) -> float:
    """Squared error of a layer's output, its mean aside.

    Args:
        difference: of the weights, of shape (G, R, K)
        moments: of the inputs, of shape (G, K, K)

    Returns:
        the error summed over output channels
    """
    return float(((difference @ moments) * difference).sum().clamp_min(0.0))
