"""Running a quantized graph as torch computes it, with any of its layers kept float, faster than backends run Q/DQ.

Under `trt` what is not in integers is float16: every tensor is rounded to that, as the graph's last bits change a few
answers in a hundred of what INT8 changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ..errors import QuantizationError
from ..macs import node_macs
from ..onnx_graph import GraphIndex, attribute
from .layers import weighted_layers
from .mixed import layer_names, tensors_in_integers
from .network import LayerConstants, Network, Quantizer, Values


class Emulation:
    """A quantized graph as torch computes it, with any layers kept float: float arithmetic on rounded values.

    Args:
        quantized: with every layer in INT8, in float32 elsewhere
        model: the float graph that it was made of
        scheme: `"cpu"` or `"trt"`

    Raises:
        QuantizationError: if the graph has no layer with weights, or the quantized one is of another
    """

    def __init__(self, quantized: onnx.ModelProto, model: onnx.ModelProto, scheme: str) -> None:
        names = layer_names(model)
        if not names:
            raise QuantizationError("the graph has no layer with constant weights: nothing is in INT8")
        self.network = Network(model)
        self.outputs = tuple(self.network.outputs)
        macs = node_macs(model)
        self.macs = {name: macs[name] for name in names}
        index = GraphIndex(quantized)
        self.layers = {name: _constants(name, index) for name in names}
        self._float_layers: dict[str, LayerConstants] = {}
        if scheme == "trt":
            self.layers = {name: _half_constants(constants) for name, constants in self.layers.items()}
            known = {layer.node.output[0]: layer for layer in weighted_layers(self.network.index)}
            constants = self.network.constants
            self._float_layers = {
                name: _half_constants(
                    LayerConstants(
                        constants[known[name].weight], constants[bias] if (bias := known[name].bias) else None
                    )
                )
                for name in names
            }
        self._quantizers = {
            node.input[0]: _quantizer(node, index) for node in quantized.graph.node if node.op_type == "QuantizeLinear"
        }
        self._model = model
        self._scheme = scheme

    def run(self, x: Tensor, kept_float: Collection[str]) -> Values:
        """The outputs of the network with some layers kept float.

        Args:
            x: inputs of shape (N, 3, H, W)
            kept_float: names of those layers

        Returns:
            the outputs by name
        """
        layers = {name: constants for name, constants in self.layers.items() if name not in kept_float}
        layers |= {name: self._float_layers[name] for name in kept_float if name in self._float_layers}
        quantizers = self._pairs(kept_float)
        if self._scheme == "trt":
            quantizers = self._in_half(quantizers)
        with torch.no_grad():
            values = self.network.run(self._feed(x), layers=layers, quantizers=quantizers)
        in_half = self._scheme == "trt"
        return {name: _half(values[name]) if in_half else values[name] for name in self.outputs}

    def exact(self, x: Tensor) -> Values:
        """The outputs of the float network."""
        with torch.no_grad():
            values = self.network.run(self._feed(x))
        return {name: values[name] for name in self.outputs}

    def one_by_one(self, x: Tensor) -> Iterator[tuple[str, Values, Values]]:
        """Each layer's name, the outputs with this layer alone in INT8, and those of the float network.

        Args:
            x: inputs of shape (N, 3, H, W)
        """
        exact = self.exact(x)
        plans = []
        for name in self.layers:
            pairs = self._pairs([other for other in self.layers if other != name])
            plans.append((self._first_step(name, pairs), name, pairs))
        live, position = self._feed(x), 0
        for start, name, pairs in sorted(plans, key=lambda plan: plan[0]):
            with torch.no_grad():
                if start > position:
                    live, position = self.network.run(live, position, start), start
                # The network itself rounds its input, and what it gives out too.
                ours = pairs.keys() - self.outputs if start else ()
                rounded = {tensor: pairs[tensor](v) if tensor in ours else v for tensor, v in live.items()}
                values = self.network.run(rounded, start, layers={name: self.layers[name]}, quantizers=pairs)
            yield name, {output: values[output] for output in self.outputs}, exact

    def _feed(self, x: Tensor) -> Values:
        return {self.network.inputs[0]: x}

    def _pairs(self, kept_float: Collection[str]) -> dict[str, Quantizer]:
        wanted = tensors_in_integers(self._model, self._scheme, kept_float) if kept_float else self._quantizers
        return {name: self._quantizers[name] for name in wanted if name in self._quantizers}

    def _in_half(self, quantizers: Mapping[str, Quantizer]) -> dict[str, Quantizer]:
        """Quantizers of all tensors that are not in integers, to float16; those of the others between two of them."""
        names = [*self.network.inputs, *(name for step in self.network.steps for name in step.node.output if name)]
        return {name: _in_half(quantizers.get(name)) for name in names}

    def _first_step(self, layer: str, pairs: Mapping[str, Quantizer]) -> int:
        """Index of the first node that something rounded reaches: behind the producer of the first such tensor."""
        producers = {name: i + 1 for i, step in enumerate(self.network.steps) for name in step.node.output}
        return min([self.network.position[layer], *(producers.get(name, 0) for name in pairs)])


def _constants(layer: str, index: GraphIndex) -> LayerConstants:
    """What a layer of a quantized graph computes with, as floats."""
    node = index.producers.get(layer)
    weight = None if node is None or len(node.input) < 2 else index.producers.get(node.input[1])
    if node is None or weight is None or weight.op_type != "DequantizeLinear":
        raise QuantizationError(f"the quantized graph has no layer {layer!r} in INT8: it is not of this float graph")
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    return LayerConstants(_dequantized(weight, index), None if bias is None else _bias(bias, index))


def _bias(name: str, index: GraphIndex) -> Tensor:
    node = index.producers.get(name)
    if node is not None and node.op_type == "DequantizeLinear":
        return _dequantized(node, index)
    return torch.from_numpy(numpy_helper.to_array(index.initializers[name]).copy())


def _dequantized(node: onnx.NodeProto, index: GraphIndex) -> Tensor:
    codes, scale, zero_point = (numpy_helper.to_array(index.initializers[name]) for name in node.input)
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[attribute(node, "axis", 1)] = -1
    offset = codes.astype(np.float32) - zero_point.astype(np.float32).reshape(shape)
    return torch.from_numpy(offset * scale.astype(np.float32).reshape(shape))


def _quantizer(node: onnx.NodeProto, index: GraphIndex) -> Quantizer:
    """What a QuantizeLinear, and the DequantizeLinear behind it, make of a tensor."""
    zero = numpy_helper.to_array(index.initializers[node.input[2]])
    scale, zero_point = float(numpy_helper.to_array(index.initializers[node.input[1]])), float(zero)
    limits = np.iinfo(zero.dtype)

    def quantizer(x: Tensor) -> Tensor:
        # Rounded before the zero point is added, as ONNX has it.
        return (x / scale).round_().add_(zero_point).clamp_(limits.min, limits.max).sub_(zero_point).mul_(scale)

    return quantizer


def _half_constants(layer: LayerConstants) -> LayerConstants:
    return LayerConstants(_half(layer.weight), None if layer.bias is None else _half(layer.bias))


def _in_half(quantizer: Quantizer | None) -> Quantizer:
    return _half if quantizer is None else lambda x: _half(quantizer(_half(x)))


def _half(x: Tensor) -> Tensor:
    """Rounded to float16, if it is float32."""
    return x.half().float() if x.dtype == torch.float32 else x
