"""Correcting biases for what rounding did to a layer and to all before it.

Two ways. The mean of what a layer adds up is known exactly, since layers are linear: the bias takes what it lacks. But
what counts is what follows: behind a ReLU only the part above zero does, and there errors without a mean have one,
since what falls below zero is cut off. Where a layer is followed by such an activation and nothing else, its bias is
chosen for the least error behind the activation, on samples of what it adds up; and since a bias moves all images,
what a few of them suffer from clipping does not decide it: errors count as Huber has them.

Source: the correction of means follows M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", arXiv 1906.04721, with measured means in place of modelled ones; that behind the activation is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "HardSigmoid", "Tanh", "Elu", "Gelu", "Mish")
"""Operators of one input, element by element, behind which errors can be compared."""
_STEPS = 20
_DOUBT = 16.0


def shift_behind(activation: Callable[[Tensor], Tensor], exact: Tensor, ours: Tensor, mean: Tensor) -> Tensor:
    """What to add to each channel for the least error behind an activation.

    Source: P. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35 (1964).

    Args:
        activation: element by element, differentiable
        exact: samples of what the float layer adds up, of shape (S, M)
        ours: the same of the rounded layer
        mean: what the mean of each channel lacks, of shape (M,)

    Returns:
        the best shift that was found for each channel, of shape (M,): at worst none
    """
    with torch.no_grad():
        wanted = activation(exact)
        before = activation(ours) - wanted
        # Errors beyond the usual size count by their size, not by its square.
        usual = (before.square().sum(0) / (before != 0).sum(0).clamp_min(1)).sqrt()
    best, chosen = torch.full_like(mean, torch.inf), torch.zeros_like(mean)
    for start, steps in ((torch.zeros_like(mean), _STEPS), (mean, 1)):
        shift = start
        for _ in range(steps):
            with torch.enable_grad():
                x = (ours + shift).requires_grad_()
                y = activation(x)
                (slope,) = torch.autograd.grad(y.sum(), x)
            with torch.no_grad():
                error = y - wanted
                size = error.abs()
                loss = torch.where(size <= usual, 0.5 * error.square(), usual * (size - 0.5 * usual)).sum(0)
                better = loss < best
                best, chosen = torch.where(better, loss, best), torch.where(better, shift, chosen)
                weight = (usual / size.clamp_min(1e-30)).clamp_max(1.0)
                # Gauss-Newton, with a few samples' worth of doubt where hardly anything passes the activation.
                shift = shift - (weight * error * slope).sum(0) / ((weight * slope.square()).sum(0) + _DOUBT)
    return chosen
