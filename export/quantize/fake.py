"""Quantizers of activations in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .network import Quantizer
from .qdq import QuantParams

__all__ = ["FakeQuantizer", "Quantizer"]


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
