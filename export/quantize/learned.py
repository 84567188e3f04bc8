"""Quantizing with the ranges that a quantization-aware training has learned, in place of measured ones.

A file of learned ranges is a JSON object with the keys `version` (1), `scheme`, `per_channel`, `activations` (by role,
see :func:`~export.quantize.layers.tensor_roles`: `scale` and `zero_point`), `weights` (by name: a list of scales, one
or one for each output channel) and `digest` (SHA-256 over that of each of the float32 weights, by name). Weights are
rounded to the nearest under these scales, which is what the training computed with.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from calib import TensorRange
from runtime.manifest import SCHEMES

from ..errors import QuantizationError
from ..float16 import to_float16
from ..onnx_graph import GraphIndex
from .layers import WeightedLayer, quantized_tensors, range_sources, tensor_roles, weighted_layers
from .qdq import RoundedLayer, insert_qdq

RANGES_VERSION = 1

_MAX_BYTES = 64 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CODES = {"cpu": (0, 255), "trt": (-128, 127)}


@dataclass(frozen=True)
class LearnedRanges:
    """What a quantization-aware training has learned.

    Attributes:
        scheme: `"cpu"` or `"trt"`.
        per_channel: whether each output channel of the weights has a scale.
        activations: scale and zero point by role.
        weights: scales by the name of the weights.
        digest: SHA-256 of those weights.
    """

    scheme: str
    per_channel: bool
    activations: Mapping[str, tuple[float, int]]
    weights: Mapping[str, tuple[float, ...]]
    digest: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "ranges") -> LearnedRanges:
        """Check what :func:`holocron.nn.quantization.learned_ranges` gives.

        Args:
            data: the decoded JSON
            where: what to call it in an error

        Returns:
            the ranges

        Raises:
            QuantizationError: if it is nothing of the kind, with what is wrong
        """
        try:
            return _parse(data)
        except ValueError as e:
            raise QuantizationError(f"{where} holds no learned ranges: {e}") from e


def read_ranges(source: str | os.PathLike[str] | Mapping[str, Any]) -> LearnedRanges:
    """Read and check learned ranges.

    Args:
        source: a JSON file, or what is in one

    Returns:
        the ranges

    Raises:
        QuantizationError: if it cannot be read, or is nothing of the kind
    """
    if isinstance(source, Mapping):
        return LearnedRanges.from_dict(source)
    path = Path(source)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise QuantizationError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: this is no file of learned ranges")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise QuantizationError(f"cannot read learned ranges from {path}: {e}") from e
    return LearnedRanges.from_dict(data, str(path))


def quantize_learned(model: onnx.ModelProto, learned: LearnedRanges) -> onnx.ModelProto:
    """Quantize a float graph so that it answers as the network answered in training.

    Args:
        model: the float32 graph of the network that was trained; it is not changed
        learned: its ranges, which say the scheme too

    Returns:
        the quantized graph, under `trt` in float16 where it is not INT8

    Raises:
        QuantizationError: if the ranges are of another network, or of other weights
    """
    quantized = insert_learned(model, learned)
    return to_float16(quantized) if learned.scheme == "trt" else quantized


def insert_learned(model: onnx.ModelProto, learned: LearnedRanges) -> onnx.ModelProto:
    """Insert Q/DQ with learned ranges; :func:`quantize_learned` before its conversion to float16.

    Args:
        model: the float32 graph
        learned: its ranges

    Returns:
        the graph with explicit Q/DQ

    Raises:
        QuantizationError: if the ranges are of another network, or of other weights
    """
    index = GraphIndex(model)
    layers = weighted_layers(index)
    _check_weights(index, layers, learned)
    rounded = {layer.node.output[0]: _round(index, layer, learned) for layer in layers}
    return insert_qdq(model, _activation_ranges(index, learned), learned.scheme, rounded)


def _activation_ranges(index: GraphIndex, learned: LearnedRanges) -> dict[str, TensorRange]:
    """The ranges by tensor: what moves together has one, and whatever it is called, the same one."""
    roles, sources = tensor_roles(index), range_sources(index, learned.scheme)
    found: dict[str, dict[str, tuple[float, int]]] = {}
    unused = set(learned.activations)
    for name in quantized_tensors(index, learned.scheme):
        group = found.setdefault(sources[name], {})
        for role in (*roles.get(name, ()), *roles.get(sources[name], ())):
            if role in learned.activations:
                group[role] = learned.activations[role]
                unused.discard(role)
    for source, group in found.items():
        if len(set(group.values())) != 1:
            what = "none" if not group else f"several, as {' and '.join(sorted(group))}"
            raise QuantizationError(
                f"the learned ranges do not fit this network: {source!r} is quantized and has {what}; "
                "export what `convert` gave for the model they were learned with"
            )
    if unused:
        raise QuantizationError(
            f"the learned ranges do not fit this network: it has no {min(unused)!r}; "
            "export what `convert` gave for the model they were learned with"
        )
    return {source: _tensor_range(*next(iter(group.values())), learned.scheme) for source, group in found.items()}


def _tensor_range(scale: float, zero_point: int, scheme: str) -> TensorRange:
    """The range that gives exactly this scale and zero point: float64 holds its ends well enough to tell."""
    low, high = ((code - zero_point) * scale for code in _CODES[scheme])
    return TensorRange(low, high, 127 * scale, (low, high))


def _round(index: GraphIndex, layer: WeightedLayer, learned: LearnedRanges) -> RoundedLayer:
    weight = numpy_helper.to_array(index.initializers[layer.weight]).astype(np.float32)
    channels = weight.shape[layer.axis]
    scale = np.array(learned.weights[layer.weight], np.float32)
    if scale.size not in (1, channels):
        raise QuantizationError(f"{layer.weight!r} has {channels} output channels and {scale.size} learned scales")
    scale = np.broadcast_to(scale, (channels,)).copy()
    shape = [1] * weight.ndim
    shape[layer.axis] = -1
    codes = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    bias = None
    if layer.bias is not None and learned.scheme == "cpu":
        bias = numpy_helper.to_array(index.initializers[layer.bias]).astype(np.float32)
    return RoundedLayer(codes, scale, bias)


def _check_weights(index: GraphIndex, layers: Iterable[WeightedLayer], learned: LearnedRanges) -> None:
    names = {layer.weight for layer in layers}
    differing = sorted(names ^ set(learned.weights))
    if differing:
        which = "the network" if differing[0] in names else "the file of ranges"
        raise QuantizationError(
            f"the learned ranges do not fit this network: only {which} has {differing[0]!r}; "
            "export what `convert` gave for the model they were learned with"
        )
    digests = []
    for name in sorted(learned.weights):
        values = numpy_helper.to_array(index.initializers[name]).astype("<f4")
        if not np.isfinite(values).all():
            raise QuantizationError(f"{name} holds NaN or infinity: these weights cannot be quantized")
        digests.append(hashlib.sha256(values.tobytes()).digest())
    if hashlib.sha256(b"".join(digests)).hexdigest() != learned.digest:
        raise QuantizationError(
            "the ranges were learned with other weights than this network has: export what `convert` gave after the "
            "same training"
        )


def _parse(data: Any) -> LearnedRanges:
    """Turn decoded JSON into ranges; a ValueError says what is wrong."""
    if not isinstance(data, Mapping):
        raise ValueError("it is no object")
    version = data.get("version")
    if version != RANGES_VERSION or isinstance(version, bool):
        raise ValueError(f"its version is {version!r}, this release reads {RANGES_VERSION}")
    wrong = sorted({"version", "scheme", "per_channel", "activations", "weights", "digest"} ^ set(data), key=str)
    if wrong:
        raise ValueError(f"it {'has the unknown' if wrong[0] in data else 'lacks the'} key {wrong[0]!r}")
    scheme, per_channel, digest = data["scheme"], data["per_channel"], data["digest"]
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}")
    if not isinstance(per_channel, bool):
        raise ValueError(f"per_channel is {per_channel!r}")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"digest is {digest!r}, no SHA-256")
    for key in ("activations", "weights"):
        if not isinstance(data[key], Mapping) or not data[key]:
            raise ValueError(f"{key} is empty, or no object")
    activations = {name: _activation(value, scheme, name) for name, value in data["activations"].items()}
    weights = {name: _scales(value, scheme, name) for name, value in data["weights"].items()}
    return LearnedRanges(scheme, per_channel, activations, weights, digest)


def _activation(data: Any, scheme: str, name: str) -> tuple[float, int]:
    if not isinstance(data, Mapping) or set(data) != {"scale", "zero_point"}:
        raise ValueError(f"{name} is {data!r}, expected scale and zero_point")
    low, high = _CODES[scheme]
    zero_point = data["zero_point"]
    valid = isinstance(zero_point, int) and not isinstance(zero_point, bool) and low <= zero_point <= high
    if not valid or (scheme == "trt" and zero_point != 0):
        raise ValueError(f"the zero_point of {name} is {zero_point!r}")
    return _scale(data["scale"], scheme, name), zero_point


def _scales(data: Any, scheme: str, name: str) -> tuple[float, ...]:
    if not isinstance(data, (list, tuple)) or not data:
        raise ValueError(f"{name} has the scales {data!r}, expected a list of numbers")
    return tuple(_scale(value, scheme, name) for value in data)


def _scale(value: Any, scheme: str, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"a scale of {name} is {value!r}, expected a positive number")
    held = np.float16 if scheme == "trt" else np.float32
    with np.errstate(over="ignore"):
        if float(held(value)) != value:
            raise ValueError(f"a scale of {name} is {value!r}, which {held.__name__} does not hold exactly")
    return float(value)
