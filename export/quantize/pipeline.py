"""The plain way to INT8: ranges that observers see, weights rounded to the nearest.

What an export makes takes more care: :mod:`~export.quantize.optimize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from calib import ImageStream, TensorRange, collect_ranges
from runtime.backends import open_session
from runtime.manifest import Preprocessing

from ..float16 import to_float16
from ..onnx_graph import serialized_with_outputs
from .layers import tensors_to_observe
from .qdq import insert_qdq

Mix = Callable[[onnx.ModelProto, onnx.ModelProto], onnx.ModelProto]
"""Puts layers of a quantized graph, float32 where it is not in integers, back to what they are in the float graph."""

_BATCH = 4
"""Images run at once while calibrating: all activations of a batch are in memory together."""


def calibrate(
    model: onnx.ModelProto,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    method: str,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, TensorRange]:
    """Measure the range of every activation that either scheme quantizes, in memory that does not grow with the images.

    Args:
        model: the float32 graph
        images: files to run it on
        preprocessing: how they become its input
        method: one of :data:`calib.METHODS`
        progress: called with the number of batches done and the number in all

    Returns:
        the ranges by tensor

    Raises:
        CalibrationError: if no image can be read, or an activation is not finite
    """
    names = tensors_to_observe(model)
    stream = ImageStream(images, preprocessing, batch_size=_BATCH)
    session = open_session(serialized_with_outputs(model, names), "onnxruntime")
    try:
        return collect_ranges(session, stream, names, method, progress)
    finally:
        session.close()


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, TensorRange], scheme: str, mix: Mix | None = None
) -> onnx.ModelProto:
    """Quantize a float graph under one scheme.

    Args:
        model: the float32 graph
        ranges: what was measured on it
        scheme: `"cpu"`, or `"trt"`, where what is not INT8 becomes float16
        mix: puts layers back to float

    Returns:
        the quantized graph
    """
    quantized = insert_qdq(model, ranges, scheme)
    if mix is not None:
        quantized = mix(quantized, model)
    return to_float16(quantized) if scheme == "trt" else quantized
