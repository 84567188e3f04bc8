"""INT8 by explicit Q/DQ, under two schemes from one calibration."""

from .layers import tensors_to_observe
from .pipeline import calibrate, quantize
from .qdq import insert_qdq

__all__ = ["calibrate", "insert_qdq", "quantize", "tensors_to_observe"]
