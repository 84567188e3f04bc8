"""Initialization of whole networks."""

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["init_module"]

_Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


def init_module(m: nn.Module, nonlinearity: _Nonlinearity | None = None) -> None:
    """Initialize the convolutions and normalizations of a module and of everything in it, in place.

    Weights of convolutions follow `"Delving Deep into Rectifiers" <https://arxiv.org/abs/1502.01852>`_: normal, with
    the variance that keeps the scale of the gradients through the given activation. Their biases are zero, and
    normalizations start as the identity. Linear layers keep PyTorch's initialization: scaled by their fan-out, that of
    a classifier of few classes would be far too large.

    Args:
        m: the module.
        nonlinearity: name of the activation that follows the convolutions, as in `torch.nn.init.calculate_gain`
            (``"relu"``, ``"leaky_relu"``, ...); None stands for no activation.

    Raises:
        ValueError: if the activation is unknown.
    """
    nonlinearity = nonlinearity or "linear"
    nn.init.calculate_gain(nonlinearity)  # before anything is overwritten
    for layer in m.modules():
        if isinstance(layer, _ConvNd):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity=nonlinearity)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (_BatchNorm, nn.GroupNorm)) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
