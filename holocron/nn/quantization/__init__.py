"""Fake quantization of a network in exactly the scheme that it is exported in, for quantization-aware training."""

from .compensation import compensate
from .equalization import equalize
from .fake_quantize import ActivationQuantizer, WeightQuantizer, fake_quantize
from .layers import QuantizedConv2d, QuantizedLinear
from .prepare import convert, learned_ranges, load_ranges, prepare_qat, save_ranges

__all__ = [
    "ActivationQuantizer",
    "QuantizedConv2d",
    "QuantizedLinear",
    "WeightQuantizer",
    "compensate",
    "convert",
    "equalize",
    "fake_quantize",
    "learned_ranges",
    "load_ranges",
    "prepare_qat",
    "save_ranges",
]
