"""Quantizers of activations as torch sees them: rounding forward, and gradients as if there were none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .network import Quantizer
from .qdq import QuantParams

__all__ = ["FakeQuantizer", "Quantizer", "fake_quantize"]


class FakeQuantizer:
    """What a QuantizeLinear and the DequantizeLinear behind it make of a tensor.

    Args:
        params: scale and zero point
    """

    def __init__(self, params: QuantParams) -> None:
        self.scale = float(params.scale)
        self.zero_point = float(params.zero_point)
        self.low, self.high = (0.0, 255.0) if params.zero_point.dtype == "uint8" else (-128.0, 127.0)

    def __call__(self, x: Tensor) -> Tensor:
        """Round a tensor."""
        codes = torch.clamp(torch.round(x / self.scale) + self.zero_point, self.low, self.high)
        return (codes - self.zero_point) * self.scale


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: float, low: float, high: float) -> Tensor:
        # What the backward pass needs is computed anew there: an activation usually keeps `x` in memory anyway.
        ctx.save_for_backward(x, scale)
        ctx.codes = (zero_point, low, high)
        codes = torch.div(x, scale).round_().add_(zero_point).clamp_(low, high)
        return codes.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        zero_point, low, high = ctx.codes
        scaled = x / scale
        codes = torch.round(scaled)
        inside = (codes >= low - zero_point) & (codes <= high - zero_point)
        codes.clamp_(low - zero_point, high - zero_point)
        # The gradient of the scale: the rounding error inside, the clipped code outside.
        slope = torch.addcmul(codes, scaled, inside.to(scaled.dtype), value=-1.0)
        return gradient * inside, (gradient * slope).sum(), None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: float, low: float, high: float) -> Tensor:
    """Round a tensor with gradients for it and for the scale.

    Source: S. Esser et al., "Learned Step Size Quantization", arXiv 1902.08153.

    Args:
        x: the tensor
        scale: a scalar
        zero_point: code of the real zero
        low: smallest code
        high: largest code

    Returns:
        what the codes mean, of the shape of `x`
    """
    return _FakeQuantize.apply(x, scale, zero_point, low, high)
