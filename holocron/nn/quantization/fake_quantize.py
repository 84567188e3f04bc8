"""Rounding to integers and back, with gradients that pass through the rounding, and ranges that are learned.

======  =====================================  ===========================================
scheme  activations                            weights
======  =====================================  ===========================================
`cpu`   uint8, asymmetric                      int8, symmetric; biases in int32
`trt`   int8, symmetric, scales of float16     int8, symmetric, scales of float16
======  =====================================  ===========================================

The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear, operation by operation: a network that is trained
with it answers as the exported one does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["SCHEMES", "ActivationQuantizer", "WeightQuantizer", "fake_quantize", "round_up_to_half"]

SCHEMES = ("cpu", "trt")
WEIGHT_CODES = (-127, 127)
_ACTIVATION_CODES = {"cpu": (0, 255), "trt": (-128, 127)}
_TINY = torch.finfo(torch.float32).tiny
_LARGEST_HALF = torch.finfo(torch.float16).max
_SMALLEST_HALF = 2.0**-24
_WEIGHT_SAMPLE = 2**19
"""About so many weights of a layer, evenly spread, are rounded in the search for their range."""
_RANGE_SPEED = 10.0
"""How many times faster a range moves than its parameter: adaptive optimizers move every parameter by about the
learning rate, and one that suits weights would leave a range where it is."""


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.codes = (low, high)
        # A division, not a product with the inverse: that rounds some values to another integer than backends do.
        return torch.div(x, scale).round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        low, high = ctx.codes
        ratio = x / scale
        codes = ratio.round().add_(zero_point)
        inside = (codes >= low) & (codes <= high)
        grad_x = grad * inside
        grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[1]:
            error = codes.clamp_(low, high).sub_(zero_point).sub_(ratio.mul_(inside))
            grad_scale = error.mul_(grad).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            grad_zero_point = ((grad_x - grad) * scale).sum_to_size(zero_point.shape)
        return grad_x if ctx.needs_input_grad[0] else None, grad_scale, grad_zero_point, None, None


class _StraightThrough(torch.autograd.Function):
    """One value in the forward pass, the gradient for another in the backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Round to integers and back: `(clamp(round(x / scale) + zero_point, low, high) − zero_point) · scale`.

    Halves go to the even integer. The gradient for `x` passes through where the integer is within bounds, and is zero
    elsewhere (`Bengio et al. <https://arxiv.org/abs/1308.3432>`_); those for the scale and the zero point are of
    `LSQ <https://arxiv.org/abs/1902.08153>`_ and `LSQ+ <https://arxiv.org/abs/2004.09576>`_.

    Args:
        x: of any shape
        scale: positive, of a shape that spreads over x
        zero_point: integers of the scale's shape
        low: the smallest integer
        high: the largest

    Returns:
        tensor of x's shape
    """
    out: Tensor = _FakeQuantize.apply(x, scale, zero_point, low, high)
    return out


def round_up_to_half(scale: Tensor) -> Tensor:
    """The smallest positive float16 value that is no less than a scale: rounding down would clip the largest value.

    Args:
        scale: float32, no less than 0

    Returns:
        float32 tensor of values that float16 holds, at most 65504
    """
    values = scale.detach().clamp(_SMALLEST_HALF, _LARGEST_HALF)
    half = values.to(torch.float16)
    # The next float16 is the next integer of the same bits.
    above = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where(half.float() < values, above, half).float()


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, whose gradient is handed to `value` as it is."""
    out: Tensor = _StraightThrough.apply(value, rounded)
    return out


class _LearnedRange(nn.Module):
    """Bounds that start where a calibration put them, and are learned as the logarithm of the factor since.

    A bound so keeps its sign, a bound of 0 stays 0, a step of an optimizer is relative to the bound
    (`TQT <https://arxiv.org/abs/1903.08066>`_), and weight decay pulls back to the calibration. The gradient is scaled
    as in LSQ, by the number of values that share the bound.

    Attributes:
        learned: whether gradients reach the bounds; otherwise they stay as they are
    """

    calibrated: Tensor

    def __init__(self, scheme: str, num_bounds: int) -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise ValueError(f"scheme is expected to be one of {', '.join(SCHEMES)}, got {scheme!r}")
        self.scheme = scheme
        self.learned = True
        self.register_buffer("calibrated", torch.ones(num_bounds))
        self.log_factor = nn.Parameter(torch.zeros(num_bounds))

    def _bounds(self, num_values: int, largest_code: int) -> Tensor:
        if not self.learned:
            return self.calibrated * torch.exp(_RANGE_SPEED * self.log_factor.detach())
        factor: Tensor = _ScaleGradient.apply(self.log_factor, 1 / math.sqrt(max(num_values, 1) * largest_code))
        return self.calibrated * torch.exp(_RANGE_SPEED * factor)

    def _to_scale(self, scale: Tensor) -> Tensor:
        # Under `trt` the whole graph becomes float16: the scale has to be one that survives it.
        return straight_through(scale, round_up_to_half(scale)) if self.scheme == "trt" else scale.clamp(min=_TINY)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"scheme={self.scheme!r}, bounds={self.calibrated.numel()}"


class ActivationQuantizer(_LearnedRange):
    """Fake quantization of an activation, one learned range for the whole tensor.

    Args:
        scheme: `"trt"`: int8, symmetric, one bound; `"cpu"`: uint8, asymmetric, two bounds around 0

    Attributes:
        enabled: whether to quantize; otherwise the input is returned as it is
    """

    def __init__(self, scheme: str) -> None:
        super().__init__(scheme, 1 if scheme == "trt" else 2)
        self.codes = _ACTIVATION_CODES[scheme]
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, of any shape."""
        if not self.enabled:
            return x
        scale, zero_point = self.params(x.numel() // max(len(x), 1))
        return fake_quantize(x, scale, zero_point, *self.codes)

    def params(self, num_values: int = 1) -> tuple[Tensor, Tensor]:
        """Scale and zero point, both of shape ().

        Args:
            num_values: of a sample's activation, which the gradient is scaled by
        """
        bounds = self._bounds(num_values, self.codes[1])
        if self.scheme == "trt":
            scale = self._to_scale(bounds[0] / 127)
            return scale, torch.zeros_like(scale)
        low, high = -bounds[0], bounds[1]
        scale = self._to_scale((high - low) / 255)
        zero_point = -low / scale
        return scale, straight_through(zero_point, zero_point.detach().round().clamp(0, 255))

    @torch.no_grad()
    def set_params(self, scale: float, zero_point: int = 0) -> None:
        """Take a range that is known, as the one to start from.

        Args:
            scale: positive
            zero_point: the integer of 0
        """
        self.log_factor.zero_()
        if self.scheme == "trt":
            self.calibrated.copy_(_bound_of(torch.tensor([scale])))
        else:
            self.calibrated.copy_(torch.tensor([zero_point * scale, (255 - zero_point) * scale]))

    @torch.no_grad()
    def calibrate(self, values: Tensor, low: float, high: float) -> None:
        """Choose the range that costs the least squared error, one end after the other.

        Args:
            values: a sample of the activation, of any shape
            low: the smallest value seen
            high: the largest value seen

        Raises:
            ValueError: if something is not finite
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("an activation is NaN or infinite on the calibration images: it cannot be quantized")
        extremes = [max(-low, high)] if self.scheme == "trt" else [max(-low, 0.0), max(high, 0.0)]
        if max(extremes) <= 0:  # always 0: any range will do
            extremes = [1.0] * len(extremes)
        self.log_factor.zero_()
        base = torch.tensor(extremes, dtype=torch.float32, device=self.calibrated.device)
        best, least = base.clone(), math.inf
        sample = values.flatten().to(base.device)
        for end in range(len(base)):
            for fraction in torch.linspace(1, 0.25, 31).tolist() if sample.numel() and base[end] > 0 else ():
                self.calibrated.copy_(best)
                self.calibrated[end] = base[end] * fraction
                rounded = fake_quantize(sample, *self.params(), *self.codes)
                error = (rounded - sample).square().mean(dtype=torch.float64).item()
                if error < least:
                    best, least = self.calibrated.clone(), error
        self.calibrated.copy_(best)


class WeightQuantizer(_LearnedRange):
    """Fake quantization of weights: int8, symmetric, with a learned bound for the tensor or for each output channel.

    Args:
        scheme: `"cpu"` or `"trt"`
        channels: number of output channels, or None for one bound in all
    """

    def __init__(self, scheme: str, channels: int | None) -> None:
        super().__init__(scheme, channels or 1)
        self.per_channel = channels is not None

    def forward(self, weight: Tensor, floor: Tensor | None = None) -> Tensor:
        """Quantize and dequantize weights, whose first dimension is the output channels.

        Args:
            weight: the weights
            floor: of the scale, as in :meth:`scale`
        """
        scale = self.scale(weight.numel() // self.calibrated.numel(), floor).view(-1, *[1] * (weight.ndim - 1))
        return fake_quantize(weight, scale, torch.zeros_like(scale), *WEIGHT_CODES)

    def scale(self, num_values: int = 1, floor: Tensor | None = None) -> Tensor:
        """The scales, of shape (1,) or (channels,).

        Args:
            num_values: number of weights that share a scale, which the gradient is scaled by
            floor: smallest scale for each channel, of shape (channels,), or None
        """
        scale = self._to_scale(self._bounds(num_values, WEIGHT_CODES[1]) / 127)
        if floor is None:
            return scale
        return torch.maximum(scale, floor if self.per_channel else floor.max())

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Take scales that are known, as those to start from.

        Args:
            scale: positive, of shape (1,) or (channels,)
        """
        self.log_factor.zero_()
        self.calibrated.copy_(_bound_of(scale))

    @torch.no_grad()
    def calibrate(self, weight: Tensor, clip: bool = True) -> None:
        """Choose the bounds.

        Args:
            weight: the weights
            clip: whether to take those of the least squared error; otherwise they are the largest weights

        Raises:
            ValueError: if a weight is not finite
        """
        if not torch.isfinite(weight).all():
            raise ValueError("weights are NaN or infinite: the network cannot be quantized")
        rows = weight.flatten(1) if self.per_channel else weight.reshape(1, -1)
        base = rows.abs().amax(dim=1)
        base = torch.where(base > 0, base, 127.0)  # zeros stay zeros under any scale
        self.log_factor.zero_()
        best, least = base.clone(), torch.full_like(base, math.inf)
        rows = rows[:, :: max(1, rows.numel() // _WEIGHT_SAMPLE)]
        for fraction in torch.linspace(1, 0.4, 25).tolist() if clip else ():
            self.calibrated.copy_(base * fraction)
            scale = self.scale()[:, None]
            error = (fake_quantize(rows, scale, torch.zeros_like(scale), *WEIGHT_CODES) - rows).square().sum(dim=1)
            best = torch.where(error < least, base * fraction, best)
            least = torch.minimum(error, least)
        self.calibrated.copy_(best)


def _bound_of(scale: Tensor) -> Tensor:
    """The bound that a symmetric scale is computed from again, never a larger one, which would be rounded up."""
    bound = scale * 127
    return torch.where(bound / 127 > scale, torch.nextafter(bound, torch.zeros_like(bound)), bound)
