"""Layers with weights, computed with fake-quantized weights and biases."""

from __future__ import annotations

from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fake_quantize import ActivationQuantizer, WeightQuantizer, straight_through

__all__ = ["QuantizedConv2d", "QuantizedLinear"]

_LARGEST_BIAS = 2.0**30
"""Integer biases stay below this, which leaves the int32 accumulator as much room for the products."""
_TINY = torch.finfo(torch.float32).tiny
_Quantized = TypeVar("_Quantized", bound="_QuantizedLayer")
_Plain = TypeVar("_Plain", nn.Conv2d, nn.Linear)


class _QuantizedLayer(nn.Module):
    """What both layers do to their weights and bias before they use them."""

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: WeightQuantizer

    def quantized_weights(self, data: ActivationQuantizer) -> tuple[Tensor, Tensor | None]:
        """Weights and bias as the exported layer has them.

        Args:
            data: quantizer of the layer's input
        """
        weight = self.weight_quantizer(self.weight, self._floor(data))
        if self.bias is None or self.weight_quantizer.scheme != "cpu":
            return weight, self.bias
        with torch.no_grad():
            # The bias is added to the products of integers: it is one of their multiples.
            step = (data.params()[0] * self.weight_scale(data)).clamp(min=_TINY)
            rounded = ((self.bias.double() / step.double()).round().float() * step).to(self.bias.dtype)
        return weight, straight_through(self.bias, rounded)

    def weight_scale(self, data: ActivationQuantizer) -> Tensor:
        """The scales that the weights are quantized with, of shape (1,) or (channels,)."""
        return self.weight_quantizer.scale(floor=self._floor(data))

    @torch.no_grad()
    def _floor(self, data: ActivationQuantizer) -> Tensor | None:
        if self.bias is None or self.weight_quantizer.scheme != "cpu":
            return None
        return self.bias.detach().abs() / (data.params()[0] * _LARGEST_BIAS)


class QuantizedConv2d(_QuantizedLayer, nn.Conv2d):
    """A 2D convolution with fake-quantized weights, and under scheme `cpu` a fake-quantized bias."""

    @classmethod
    def from_float(cls, layer: nn.Conv2d, scheme: str, per_channel: bool, clip: bool = True) -> Self:
        """Take over the parameters of a convolution.

        Args:
            layer: the convolution
            scheme: `"cpu"` or `"trt"`
            per_channel: whether each output channel has a scale of its own
            clip: whether the first ranges may clip weights
        """
        new = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
        return _take_over(new, layer, scheme, per_channel, clip)

    def forward(self, x: Tensor, data: ActivationQuantizer) -> Tensor:  # type: ignore[override]
        """Convolve.

        Args:
            x: of shape (N, C, H, W), already quantized
            data: what it was quantized with
        """
        return self._conv_forward(x, *self.quantized_weights(data))

    def to_float(self) -> nn.Conv2d:
        """A plain convolution with the weights as they are before rounding."""
        new = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        return _give_back(self, new)


class QuantizedLinear(_QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """A linear layer with fake-quantized weights, and under scheme `cpu` a fake-quantized bias."""

    @classmethod
    def from_float(cls, layer: nn.Linear, scheme: str, per_channel: bool, clip: bool = True) -> Self:
        """Take over the parameters of a linear layer.

        Args:
            layer: the layer
            scheme: `"cpu"` or `"trt"`
            per_channel: whether each output channel has a scale of its own
            clip: whether the first ranges may clip weights
        """
        new = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        return _take_over(new, layer, scheme, per_channel, clip)

    def forward(self, x: Tensor, data: ActivationQuantizer) -> Tensor:  # type: ignore[override]
        """Multiply by the weights.

        Args:
            x: of shape (N, C), already quantized
            data: what it was quantized with
        """
        return F.linear(x, *self.quantized_weights(data))

    def to_float(self) -> nn.Linear:
        """A plain layer with the weights as they are before rounding."""
        return _give_back(self, nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"))


def _take_over(new: _Quantized, layer: nn.Conv2d | nn.Linear, scheme: str, per_channel: bool, clip: bool) -> _Quantized:
    new.weight, new.bias = layer.weight, layer.bias
    new.weight_quantizer = WeightQuantizer(scheme, layer.weight.shape[0] if per_channel else None)
    new.weight_quantizer.to(layer.weight.device)
    new.weight_quantizer.calibrate(layer.weight, clip)
    return new.train(layer.training)


def _give_back(layer: _QuantizedLayer, new: _Plain) -> _Plain:
    new.weight = nn.Parameter(layer.weight.detach().clone())
    new.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())  # type: ignore[assignment]
    return new.eval()
