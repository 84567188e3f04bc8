"""Saying what a quantized graph is: its layers, ranges and histograms, read off the graphs and off a few images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib import ImageStream, TensorRange
from runtime.backends import open_session
from runtime.backends.base import Session
from runtime.manifest import Preprocessing

from ..errors import ExportError
from ..macs import node_macs
from ..onnx_graph import GraphIndex
from .layers import operators_left_float, quantized_tensors, range_sources, weighted_layers, why_float
from .summary import LayerSummary, QuantizationSummary, RangeSummary

if TYPE_CHECKING:
    from .optimize import QuantizationReport

_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BINS = 64
_BATCH = 2
_FLOAT = {"cpu": "float32", "trt": "float16"}


@dataclass(frozen=True)
class Observations:
    """What a few images show of a quantized graph.

    Attributes:
        histograms: by tensor of :func:`~export.quantize.layers.range_sources`, number of values in bins of equal width
            between the extremes of its range.
        snr_db: by the name of a layer's output, its signal-to-noise ratio against the float graph, with all of the
            network quantized.
    """

    histograms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    snr_db: Mapping[str, float] = field(default_factory=dict)


def summarize(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    scheme: str,
    ranges: Mapping[str, TensorRange],
    *,
    method: str | Mapping[str, str],
    images: int,
    seconds: float = math.nan,
    effort: str = "",
    observations: Observations | None = None,
    layer_facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> QuantizationSummary:
    """Summarize a quantized graph.

    Args:
        model: the float graph that it was made from
        quantized: the graph with explicit Q/DQ
        scheme: `"cpu"` or `"trt"`
        ranges: of the activations, as they are in the quantized graph; those that it does not round are left out
        method: what chose them, for all or by tensor
        images: number of images that they were measured on; 0 if that is not known
        seconds: that quantizing took; NaN if that is not known
        effort: that was asked for; empty if that is not known
        observations: of :func:`observe_images`
        layer_facts: fields of :class:`~export.quantize.summary.LayerSummary` to set besides, by the name of the layer

    Returns:
        the summary, without candidates
    """
    index = GraphIndex(model)
    seen = observations or Observations()
    sources = range_sources(index, scheme)
    result = GraphIndex(quantized)
    # Between layers that were kept float nothing is rounded.
    pairs = [name for name in quantized_tensors(index, scheme) if f"{name}_quantized" in result.producers]
    rounded = dict.fromkeys(sources[name] for name in pairs)
    # What the float graph does not have was put into the quantized one to be rounded, like the input as pixels.
    known = {value.name for value in model.graph.input} | set(index.producers)
    tensors = [*(n for n in ranges if n not in known), *(n for n in rounded if n in ranges)]
    methods = dict.fromkeys(tensors, method) if isinstance(method, str) else method
    facts = layer_facts or {}
    layers = [replace(layer, **facts.get(layer.name, {})) for layer in _layers(model, index, result, scheme, seen)]
    left = {each.operator: 0 for each in operators_left_float(model, scheme) if each.operator not in _MULTIPLYING}
    for each in operators_left_float(model, scheme):
        if each.operator in left:
            left[each.operator] += each.count
    return QuantizationSummary(
        scheme=scheme,
        effort=effort,
        seconds=seconds,
        images=images,
        layers=tuple(layers),
        ranges=tuple(
            RangeSummary(
                name,
                methods.get(name, ""),
                *_represented(name, ranges[name], scheme, result),
                (float(ranges[name].minimum), float(ranges[name].maximum)),
                seen.histograms.get(name, ()),
            )
            for name in tensors
        ),
        stays_float=tuple(left.items()),
    )


def summarize_report(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    report: QuantizationReport,
    *,
    images: int,
    seconds: float = math.nan,
    observations: Observations | None = None,
) -> QuantizationSummary:
    """Summarize a graph that :func:`~export.quantize.optimize.quantize_calibrated` made.

    Args:
        model: the float graph that was given to it
        quantized: the graph that it made
        report: how that came about
        images: number of images
        seconds: that it took
        observations: of :func:`observe_images` without a reference: its layers may have another scale

    Returns:
        the summary, without candidates
    """
    index = GraphIndex(model)
    rescaled = {tensor.name for tensor in report.tensors if tensor.equalized}
    facts: dict[str, dict[str, Any]] = {}
    data = {layer.node.output[0]: layer.data for layer in weighted_layers(index)}
    for outcome in report.layers:
        reader = index.only_consumer(outcome.name)
        after = set() if reader is None else set(reader.output)
        gain = outcome.nearest_error / outcome.rounded_error if outcome.rounded_error > 0 else None
        facts[outcome.name] = {
            "snr_db": outcome.signal_to_noise,
            "rounding_gain": gain,
            "bias_shift": outcome.bias_shift,
            "equalized": bool({outcome.name, data.get(outcome.name), *after} & rescaled),
        }
    facts.update({name: {"reason": reason} for name, reason in report.kept_float.items()})
    return summarize(
        model,
        quantized,
        report.scheme,
        {tensor.name: tensor.chosen for tensor in report.tensors},
        method={tensor.name: tensor.choice.method for tensor in report.tensors},
        images=images,
        seconds=seconds,
        effort=report.effort,
        observations=observations,
        layer_facts=facts,
    )


def observe_images(
    quantized: onnx.ModelProto,
    images: Sequence[Path],
    preprocessing: Preprocessing,
    ranges: Mapping[str, TensorRange],
    reference: onnx.ModelProto | None = None,
) -> Observations:
    """Run a quantized graph on a few images and look at its activations, in memory that does not grow with the images.

    Args:
        quantized: the graph with explicit Q/DQ
        images: files to run it on
        preprocessing: how they become its input
        ranges: of the activations whose histograms are wanted
        reference: the float graph that it was made from, whose layers have the same scale in both; None to leave the
            signal-to-noise ratios out

    Returns:
        histograms of what is rounded, and the ratios

    Raises:
        CalibrationError: if no image can be read
    """
    index = GraphIndex(quantized)
    source = quantized.graph.input[0].name
    tensors = [name for name in ranges if name == source or name in index.producers]
    layers = [n.output[0] for n in reference.graph.node if n.op_type in _MULTIPLYING] if reference is not None else []
    layers = [name for name in layers if name in index.producers]
    ours = _open(quantized, [*tensors, *layers])
    theirs = None if reference is None else _open(reference, layers)
    histograms: dict[str, NDArray[np.int64]] = {}
    signal, error = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    try:
        for batch in ImageStream(images, preprocessing, batch_size=_BATCH):
            values: dict[str, NDArray[Any]] = {**ours.run({source: batch}), source: batch}
            for name in tensors:
                counts = _histogram(values[name], ranges[name])
                histograms[name] = histograms[name] + counts if name in histograms else counts
            expected = {} if theirs is None else theirs.run({source: batch})
            for name in layers:
                right = expected[name].astype(np.float64)
                signal[name] += float(np.square(right).sum())
                error[name] += float(np.square(values[name] - right).sum())
    finally:
        ours.close()
        if theirs is not None:
            theirs.close()
    return Observations(
        {name: tuple(int(c) for c in counts) for name, counts in histograms.items()},
        {name: _decibels(signal[name], error[name]) for name in layers},
    )


def _layers(
    model: onnx.ModelProto, index: GraphIndex, result: GraphIndex, scheme: str, seen: Observations
) -> list[LayerSummary]:
    try:
        macs = node_macs(model)
    except ExportError:  # a shape that is not known: the summary is about more than that
        macs = {}
    possible = {layer.node.output[0] for layer in weighted_layers(index)}
    layers = []
    for node in model.graph.node:
        if node.op_type not in _MULTIPLYING:
            continue
        name = node.output[0]
        in_integers = name in possible and _reads_integers(name, result)
        reason = "" if in_integers else "kept in higher precision" if name in possible else why_float(node.op_type)
        layers.append(
            LayerSummary(
                name=name,
                operator=node.op_type,
                macs=macs.get(name, 0),
                precision="int8" if in_integers else _FLOAT[scheme],
                reason=reason,
                snr_db=seen.snr_db.get(name),
            )
        )
    return layers


def _reads_integers(name: str, index: GraphIndex) -> bool:
    """Whether the layer that makes a tensor has its input and its weights behind a DequantizeLinear."""
    node = index.producers.get(name)
    if node is not None and node.op_type == "Cast":  # what a float16 graph gives out
        node = index.producers.get(node.input[0])
    if node is None or len(node.input) < 2:
        return False
    makers = [index.producers.get(read) for read in node.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _represented(name: str, measured: TensorRange, scheme: str, index: GraphIndex) -> tuple[float, float]:
    """The smallest and the largest real value that a tensor is rounded to."""
    if scheme == "cpu":
        return float(measured.asymmetric[0]), float(measured.asymmetric[1])
    step = measured.symmetric / 127
    node = index.producers.get(f"{name}_quantized")
    constant = None if node is None else index.constant(node.input[1])
    if constant is not None and constant.size == 1:
        step = float(constant)  # as float16 holds it
    # Without negative values all codes may be spread over the others (see `centre`).
    top = measured.asymmetric[1]
    if measured.minimum >= 0 and abs(255 * step - top) < abs(127 * step - measured.symmetric):
        return 0.0, 255 * step
    return -128 * step, 127 * step


def _open(model: onnx.ModelProto, names: Sequence[str]) -> Session:
    """A session that also gives out these tensors, of whatever type they are."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    for name in dict.fromkeys(names):
        if name not in index.outputs and name in index.producers:
            result.graph.output.append(onnx.ValueInfoProto(name=name))
    return open_session(result.SerializeToString(), "onnxruntime")


def _histogram(values: NDArray[Any], measured: TensorRange) -> NDArray[np.int64]:
    low, high = measured.minimum, measured.maximum
    if not high > low:
        return np.array([values.size], np.int64)
    # Other images may go beyond what the calibration saw.
    inside = np.clip(values.astype(np.float32, copy=False), low, high)
    return np.histogram(inside, _BINS, (low, high))[0].astype(np.int64)


def _decibels(signal: float, error: float) -> float:
    if math.isnan(signal) or math.isnan(error):
        return math.nan
    if error == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / error) if signal > 0.0 else -math.inf
