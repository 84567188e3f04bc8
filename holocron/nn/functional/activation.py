"""Non-linear activations."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["hard_mish", "nl_relu"]


def hard_mish(x: Tensor, inplace: bool = False) -> Tensor:
    r"""Piecewise quadratic approximation of Mish, from `"H-Mish" <https://github.com/digantamisra98/H-Mish>`_.

    .. math:: f(x) = \frac{x}{2} \cdot \min(2, \max(0, x + 2))

    Args:
        x: floating point tensor of any shape.
        inplace: write the result over ``x``.

    Returns:
        tensor of the shape of ``x``; ``x`` itself if ``inplace``
    """
    gate = (x + 2).clamp(0, 2).mul(0.5)
    return x.mul_(gate) if inplace else x * gate


def nl_relu(x: Tensor, beta: float = 1.0, inplace: bool = False) -> Tensor:
    r"""Natural-logarithm ReLU, from `"Natural-Logarithm-Rectified Activation Function in Convolutional Neural
    Networks" <https://arxiv.org/abs/1908.03682>`_.

    .. math:: f(x) = \ln(1 + \beta \cdot \max(0, x))

    Evaluated with ``log1p``, which keeps small activations that ``1 + beta * x`` would round away.

    Args:
        x: floating point tensor of any shape.
        beta: slope at the origin, not negative.
        inplace: write the result over ``x``.

    Returns:
        tensor of the shape of ``x``; ``x`` itself if ``inplace``

    Raises:
        ValueError: if ``beta`` is negative: the logarithm would meet negative numbers.
    """
    if beta < 0:
        raise ValueError(f"beta has to be 0 or more, got {beta}")
    if inplace:
        # Unlike `relu_`, `threshold_` does not save its output for the backward pass, so what follows may overwrite it.
        return torch.threshold_(x, 0.0, 0.0).mul_(beta).log1p_()
    return F.relu(x).mul(beta).log1p()
