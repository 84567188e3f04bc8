"""Inserting QuantizeLinear and DequantizeLinear into a float graph, from measured ranges, under the two schemes.

============  ======================================  =============================  ===========
scheme        activations                             weights                        bias
============  ======================================  =============================  ===========
`cpu`         uint8, asymmetric, inputs and outputs   int8, symmetric, per channel   int32
`trt`         int8, symmetric, inputs only            int8, symmetric, per channel   float
============  ======================================  =============================  ===========

Scheme `cpu` lets each operator fuse with the Q/DQ around it into one integer kernel. Scheme `trt` is what TensorRT's
parser takes; its scales are values that float16 holds exactly, so that the graph can be converted to float16 afterwards
without moving a single rounding threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calib import TensorRange

from ..errors import QuantizationError
from ..onnx_graph import GraphIndex, drop_unused_initializers, replace_nodes
from .layers import WeightedLayer, quantized_tensors, range_sources, weighted_layers

FloatArray = NDArray[np.float32]

_LARGEST_BIAS = 2.0**30
"""Integer biases stay below this, which leaves the int32 accumulator as much room for the products."""
_LARGEST_HALF_BIAS = 60000.0
"""Steps of a layer's sums that a bias of `trt` may be, which float16 holds: ONNX Runtime rounds it in that type."""
_LARGEST_HALF = float(np.finfo(np.float16).max)
_SMALLEST_HALF = float(np.finfo(np.float16).smallest_subnormal)


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of a tensor: real = (quantized − zero_point) · scale.

    Attributes:
        scale: float32, one value or one a channel.
        zero_point: uint8 or int8, of the same shape.
    """

    scale: FloatArray
    zero_point: NDArray[np.uint8] | NDArray[np.int8]


@dataclass(frozen=True)
class RoundedLayer:
    """Weights of a layer that are rounded already.

    Attributes:
        codes: int8, of the shape of the weights.
        scale: float32, one value an output channel; of `trt` such as float16 holds exactly.
        bias: float32, one value an output channel; None where the layer takes none.
    """

    codes: NDArray[np.int8]
    scale: FloatArray
    bias: FloatArray | None


def activation_params(value_range: TensorRange, scheme: str) -> QuantParams:
    """Scale and zero point of an activation.

    Args:
        value_range: what was measured
        scheme: `"cpu"` or `"trt"`

    Returns:
        parameters under which the real 0 is an integer, exactly
    """
    if scheme == "trt":
        return QuantParams(_half_up(np.float32(value_range.symmetric / 127)), np.array(0, np.int8))
    low, high = value_range.asymmetric
    scale = np.float32((high - low) / 255)
    zero_point = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    return QuantParams(np.array(scale, np.float32), np.array(zero_point, np.uint8))


def quantize_weight(weight: FloatArray, axis: int, scheme: str, bias_floor: FloatArray | None = None) -> QuantParams:
    """Scales of weights, symmetric and one an output channel.

    Args:
        weight: the float weights
        axis: of the output channels
        scheme: `"cpu"` or `"trt"`
        bias_floor: smallest scale that each channel's bias allows, or None

    Returns:
        parameters of shape (channels,)
    """
    largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis), initial=0.0)
    scale = (largest / 127).astype(np.float32)
    if bias_floor is not None:
        scale = np.maximum(scale, bias_floor)
    # A channel of zeros quantizes to zeros under any scale; 1 is one that nothing overflows with.
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    if scheme == "trt":
        scale = _half_up(scale)
    return QuantParams(scale, np.zeros(scale.shape, np.int8))


def weight_params(
    layer: WeightedLayer, weight: FloatArray, bias: FloatArray | None, data: QuantParams, scheme: str, per_tensor: bool
) -> QuantParams:
    """Scales of a layer's weights.

    Args:
        layer: the layer
        weight: its weights
        bias: its bias, or None
        data: parameters of the activation that it reads
        scheme: `"cpu"` or `"trt"`
        per_tensor: whether all output channels share one scale

    Returns:
        parameters of shape (channels,)
    """
    floor = None
    if bias is not None:
        most = np.float32(_LARGEST_BIAS if scheme == "cpu" else _LARGEST_HALF_BIAS)
        floor = np.abs(bias) / (data.scale * most)
    params = quantize_weight(weight, layer.axis, scheme, floor)
    if not per_tensor:
        return params
    live = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != layer.axis), initial=0.0) > 0
    common = params.scale[live].max() if live.any() else params.scale.max()
    return QuantParams(np.full_like(params.scale, common), params.zero_point)


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, TensorRange],
    scheme: str,
    layers: Mapping[str, RoundedLayer] | None = None,
) -> onnx.ModelProto:
    """Quantize a float graph.

    Args:
        model: the float32 graph; it is not changed
        ranges: of every tensor that :func:`~export.quantize.layers.tensors_to_observe` names
        scheme: `"cpu"` or `"trt"`
        layers: weights that are rounded already, by the name of the layer's output; others are rounded to the nearest

    Returns:
        the same graph with explicit Q/DQ, int8 weights, and, under `cpu`, int32 biases

    Raises:
        QuantizationError: if a range is missing, or weights are not finite
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    inserter = _Inserter(result, ranges, scheme, layers or {})
    inserter.run()
    drop_unused_initializers(result)
    del result.graph.value_info[:]
    onnx.checker.check_model(result)
    return result


class _Inserter:
    """One insertion: the graph under construction and what has been added to it."""

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Mapping[str, TensorRange],
        scheme: str,
        rounded: Mapping[str, RoundedLayer],
    ) -> None:
        self.model = model
        self.rounded = rounded
        self.scheme = scheme
        self.index = GraphIndex(model)
        sources = range_sources(self.index, scheme)
        names = quantized_tensors(self.index, scheme)
        self.params = {name: self._activation_params(sources[name], ranges) for name in names}
        self.layers = {layer.node.output[0]: layer for layer in weighted_layers(self.index)}
        self.nodes: list[onnx.NodeProto] = []
        self.new_name: dict[str, str] = {}

    def run(self) -> None:
        for value in self.model.graph.input:
            self._quantize_activation(value.name)
        for node in list(self.model.graph.node):
            layer = self.layers.get(node.output[0])
            if layer is not None:
                self._quantize_constants(layer)
            for i, name in enumerate(node.input):
                node.input[i] = self.new_name.get(name, name)
            self.nodes.append(node)
            for name in node.output:
                self._quantize_activation(name)
        replace_nodes(self.model, self.nodes)

    def _activation_params(self, source: str, ranges: Mapping[str, TensorRange]) -> QuantParams:
        if source not in ranges:
            raise QuantizationError(f"no range was measured for {source!r}: calibrate this very graph")
        return activation_params(ranges[source], self.scheme)

    def _quantize_activation(self, name: str) -> None:
        """Put a Q/DQ pair behind a tensor; who reads it from now on reads the pair's result."""
        params = self.params.get(name)
        if params is None:
            return
        scale, zero_point = self._constants(name, params)
        quantized, dequantized = self.index.fresh(f"{name}_quantized"), self.index.fresh(f"{name}_dequantized")
        self._node("QuantizeLinear", [name, scale, zero_point], quantized)
        self._node("DequantizeLinear", [quantized, scale, zero_point], dequantized)
        self.new_name[name] = dequantized

    def _quantize_constants(self, layer: WeightedLayer) -> None:
        """Replace a layer's weights, and its bias under `cpu`, by integers behind a DequantizeLinear."""
        weight = self._float_constant(layer.weight)
        bias = None
        if layer.bias is not None:  # of a Gemm it may be of any shape that spreads over the outputs
            bias = np.broadcast_to(self._float_constant(layer.bias).reshape(-1), weight.shape[layer.axis])
        data = self.params[layer.data]
        rounded = self.rounded.get(layer.node.output[0])
        if rounded is None:
            params = weight_params(layer, weight, bias, data, self.scheme, per_tensor=False)
            shape = [1] * weight.ndim
            shape[layer.axis] = -1
            integers = np.clip(np.rint(weight / params.scale.reshape(shape)), -127, 127).astype(np.int8)
        else:
            params, integers = QuantParams(rounded.scale, np.zeros(rounded.scale.shape, np.int8)), rounded.codes
            bias = rounded.bias
        # Weights that layers share are stored for each: ONNX Runtime rewrites the weights of a layer on processors
        # without INT8 dot products, and fails on the second layer that has the same.
        layer.node.input[1] = self._dequantized(layer.weight, integers, params, layer.axis)
        if bias is None or (rounded is None and self.scheme != "cpu"):
            return
        name = layer.bias or f"{layer.node.output[0]}_bias"
        if self.scheme == "cpu":
            # Never 0, where both scales are tiny: nothing can be divided by that.
            scale = np.maximum(data.scale * params.scale, np.finfo(np.float32).tiny).astype(np.float32)
            largest = np.iinfo(np.int32).max
            integers32 = np.clip(np.rint(bias.astype(np.float64) / scale), -largest, largest).astype(np.int32)
            made = self._dequantized(name, integers32, QuantParams(scale, np.zeros(scale.shape, np.int32)), 0)
        else:
            made = self.index.fresh(f"{name}_corrected")
            self._initializer(made, bias)
        if len(layer.node.input) > 2:
            layer.node.input[2] = made
        else:
            layer.node.input.append(made)

    def _dequantized(self, name: str, integers: NDArray[np.generic], params: QuantParams, axis: int) -> str:
        scale, zero_point = self._constants(name, params)
        quantized, dequantized = self.index.fresh(f"{name}_quantized"), self.index.fresh(f"{name}_dequantized")
        self._initializer(quantized, integers)
        self._node("DequantizeLinear", [quantized, scale, zero_point], dequantized, axis=axis)
        return dequantized

    def _constants(self, name: str, params: QuantParams) -> tuple[str, str]:
        scale, zero_point = self.index.fresh(f"{name}_scale"), self.index.fresh(f"{name}_zero_point")
        self._initializer(scale, params.scale)
        self._initializer(zero_point, params.zero_point)
        return scale, zero_point

    def _float_constant(self, name: str) -> FloatArray:
        values = numpy_helper.to_array(self.index.initializers[name]).astype(np.float32)
        if not np.isfinite(values).all():
            raise QuantizationError(f"{name} holds NaN or infinity: these weights cannot be quantized")
        return values

    def _initializer(self, name: str, values: NDArray[np.generic]) -> None:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))

    def _node(self, op: str, inputs: list[str], output: str, **attributes: int) -> None:
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=output, **attributes))


def _half_up(scale: np.float32 | FloatArray) -> FloatArray:
    """The smallest float16 value that is no less than a scale: rounding down would clip the largest value."""
    values = np.asarray(scale, np.float32)
    if values.size and float(values.max()) > _LARGEST_HALF:
        raise QuantizationError(
            f"a scale of {float(values.max()):g} is beyond float16, which ends at {_LARGEST_HALF:g}: check the ranges"
        )
    half = np.maximum(values, _SMALLEST_HALF).astype(np.float16)
    short = half.astype(np.float32) < values
    return np.where(short, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
