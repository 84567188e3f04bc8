"""Normalization and constant factors become part of the layers around them, in float64.

A trained batch normalization is a factor and an addend for each channel; so is the layer scale of a ConvNeXt. Behind a
convolution, or before one where no padding stands between, both go into its weights: nothing is left to compute.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .onnx_graph import GraphIndex, attribute, drop_unused_initializers, replace_nodes

Float64 = NDArray[np.float64]

_LAYERS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class _Affine:
    """y = scale · x + shift, for each channel.

    Attributes:
        data: name of x.
        scale: of shape (C,), or () for all channels.
        shift: the same.
    """

    data: str
    scale: Float64
    shift: Float64


def fold_layers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold batch normalization and constant factors and addends for each channel into Conv, ConvTranspose and Gemm.

    What follows a layer, or several that a Concat joins, goes into it where nothing else reads between the two. What
    comes before a convolution goes into it too, if it is a normalization that nothing else reads, and the convolution
    pads nothing (padding comes after the addend). A normalization that stays is rewritten to mean 0 and variance 1,
    which float16 holds.

    Args:
        model: a float32 model, which is changed in place

    Returns:
        the same model
    """
    folder = _Folder(model)
    folder.into_layers_before()
    folder.into_layers_behind()
    folder.normalize_rest()
    folder.write()
    return model


class _Folder:
    """One model's layers, with the weights that were touched in float64 until everything is folded."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.index = GraphIndex(model)
        self.weights: dict[int, tuple[onnx.NodeProto, Float64, Float64]] = {}
        self.removed: dict[int, onnx.NodeProto] = {}
        self.renamed: dict[str, str] = {}

    def into_layers_before(self) -> None:
        for node in self.model.graph.node:
            affine = self._affine(node)
            if affine is None:
                continue
            parts = self._layers_of(affine.data) if self._is_only_reader(node, affine.data) else None
            if parts is None:
                continue
            widths = [self._weights(layer)[1].size for layer in parts]
            if not all(values.size in (1, sum(widths)) for values in (affine.scale, affine.shift)):
                continue
            ends = np.cumsum(widths)
            for layer, end, width in zip(parts, ends, widths, strict=True):
                scale, shift = (
                    np.broadcast_to(values, (sum(widths),))[end - width : end]
                    for values in (affine.scale, affine.shift)
                )
                weight, bias = self._weights(layer)
                self.weights[id(layer)] = (layer, _scale_outputs(layer, weight, scale), bias * scale + shift)
            self._remove(node, affine.data)

    def into_layers_behind(self) -> None:
        for node in self.model.graph.node:
            if node.op_type != "BatchNormalization" or id(node) in self.removed or node.output[0] in self.index.outputs:
                continue
            affine = self._affine(node)
            readers = self.index.consumers.get(node.output[0], [])
            if affine is None or len(readers) != 1 or not self._is_layer(readers[0]):
                continue
            layer = readers[0]
            if layer.input[0] != node.output[0] or not _takes_affine(layer):
                continue
            weight, bias = self._weights(layer)
            scale, shift = affine.scale, affine.shift
            if _input_channels(layer, weight) != scale.size:
                continue
            added = _through(layer, weight, shift)
            self.weights[id(layer)] = (layer, _scale_inputs(layer, weight, scale), bias + added)
            self._remove(node, affine.data)

    def normalize_rest(self) -> None:
        for node in self.model.graph.node:
            affine = self._affine(node) if node.op_type == "BatchNormalization" else None
            if affine is None or id(node) in self.removed or attribute(node, "epsilon", 1e-5) == 0:
                continue
            values = (affine.scale, affine.shift, np.zeros_like(affine.scale), np.ones_like(affine.scale))
            for i, (kind, array) in enumerate(zip(("scale", "shift", "mean", "var"), values, strict=True), 1):
                node.input[i] = self._constant(f"{node.output[0]}_{kind}", array)
            others = [a for a in node.attribute if a.name != "epsilon"]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute("epsilon", 0.0)])

    def write(self) -> None:
        """Store the folded weights, under new names: a weight that several layers share is folded for each."""
        stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        for layer, weight, bias in self.weights.values():
            for i, array in ((1, weight), (2, bias)):
                values = array.astype(np.float32)
                base = layer.input[i] if i < len(layer.input) and layer.input[i] else f"{layer.input[1]}_bias"
                key = (base, values.shape, hashlib.sha256(values.tobytes()).digest())
                if key not in stored:
                    stored[key] = self._constant(f"{base}_folded", values)
                if i < len(layer.input):
                    layer.input[i] = stored[key]
                else:
                    layer.input.append(stored[key])
        nodes = [node for node in self.model.graph.node if id(node) not in self.removed]
        for node in nodes:
            for i, name in enumerate(node.input):
                while name in self.renamed:
                    name = self.renamed[name]
                node.input[i] = name
        replace_nodes(self.model, nodes)
        drop_unused_initializers(self.model)

    def _affine(self, node: onnx.NodeProto) -> _Affine | None:
        """A node as a factor and an addend for each channel; None if it is something else."""
        if node.op_type == "BatchNormalization":
            constants = [self.index.constant(name) for name in node.input[1:5]]
            if any(c is None for c in constants) or len([o for o in node.output if o]) != 1:
                return None
            gamma, beta, mean, variance = (np.asarray(c, np.float64) for c in constants)
            scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
            return _Affine(node.input[0], scale, beta - mean * scale)
        if node.op_type not in ("Add", "Mul", "Sub", "Div") or len(node.input) != 2:
            return None
        for i, other in ((0, 1), (1, 0)) if node.op_type in ("Add", "Mul") else ((0, 1),):
            value = self.index.constant(node.input[other])
            shape = self.index.shape(node.input[i])
            if value is None or shape is None or self.index.constant(node.input[i]) is not None:
                continue
            channel = _per_channel(value, shape)
            if channel is None:
                return None
            one, zero = np.ones_like(channel), np.zeros_like(channel)
            if node.op_type in ("Add", "Sub"):
                return _Affine(node.input[i], one, channel if node.op_type == "Add" else -channel)
            if node.op_type == "Mul":
                return _Affine(node.input[i], channel, zero)
            return _Affine(node.input[i], 1 / channel, zero) if np.all(channel != 0) else None
        return None

    def _producer(self, name: str) -> onnx.NodeProto | None:
        """The layer that makes a tensor, through what was folded into it already; None if it is not a layer."""
        while name in self.renamed:
            name = self.renamed[name]
        node = self.index.producers.get(name)
        return node if node is not None and self._is_layer(node) else None

    def _layers_of(self, name: str) -> list[onnx.NodeProto] | None:
        """The layers whose outputs are the channels of a tensor: one, or several that a Concat joins."""
        layer = self._producer(name)
        if layer is not None:
            return [layer]
        while name in self.renamed:
            name = self.renamed[name]
        node = self.index.producers.get(name)
        if node is None or node.op_type != "Concat" or attribute(node, "axis") != 1:
            return None
        layers = [self._producer(part) for part in node.input if self._is_only_reader(node, part)]
        found = [layer for layer in layers if layer is not None]
        return found if len(found) == len(node.input) else None

    def _is_only_reader(self, node: onnx.NodeProto, name: str) -> bool:
        alone = self.index.only_consumer(name) is node
        return alone and list(node.input).count(name) == 1

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        weight = self.index.initializers.get(node.input[1]) if node.op_type in _LAYERS else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            return False
        if len(node.input) > 2 and node.input[2] and node.input[2] not in self.index.initializers:
            return False
        if node.op_type == "Gemm":
            plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
            return plain and not attribute(node, "transA", 0)
        return True

    def _weights(self, layer: onnx.NodeProto) -> tuple[Float64, Float64]:
        if id(layer) in self.weights:
            return self.weights[id(layer)][1:]
        weight = numpy_helper.to_array(self.index.initializers[layer.input[1]]).astype(np.float64)
        channels = _output_channels(layer, weight)
        if len(layer.input) > 2 and layer.input[2]:
            bias = numpy_helper.to_array(self.index.initializers[layer.input[2]]).astype(np.float64)
            return weight, np.broadcast_to(bias.reshape(-1), (channels,))
        return weight, np.zeros(channels)

    def _remove(self, node: onnx.NodeProto, data: str) -> None:
        if node.output[0] not in self.index.outputs:
            self.removed[id(node)] = node
            self.renamed[node.output[0]] = data
            # Whoever read the node now reads what came before it.
            self.index.consumers[data] = self.index.consumers.get(node.output[0], [])
            return
        # The graph's output keeps its name: the layer takes it over, where the layer is what stands before.
        while data in self.renamed:
            data = self.renamed[data]
        self.index.producers[data].output[0] = node.output[0]
        self.index.producers[node.output[0]] = self.index.producers[data]
        self.removed[id(node)] = node

    def _constant(self, name: str, values: NDArray[np.floating]) -> str:
        fresh = self.index.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), fresh))
        return fresh


def _per_channel(value: NDArray[np.generic], shape: tuple[int | None, ...]) -> Float64 | None:
    """A constant that varies along the channels (the second dimension) alone, as (C,), or () where it is one number."""
    if value.dtype != np.float32 or value.ndim > len(shape) or len(shape) < 2:
        return None
    if value.size == 1:
        return value.astype(np.float64).reshape(())
    padded = (1,) * (len(shape) - value.ndim) + value.shape
    if padded[1] != value.size or padded[1] != shape[1]:
        return None
    return value.astype(np.float64).reshape(-1)


def _output_channels(layer: onnx.NodeProto, weight: Float64) -> int:
    if layer.op_type == "Conv":
        return int(weight.shape[0])
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1]) * int(attribute(layer, "group", 1))
    return int(weight.shape[0 if attribute(layer, "transB", 0) else 1])


def _input_channels(layer: onnx.NodeProto, weight: Float64) -> int:
    if layer.op_type == "Conv":
        return int(weight.shape[1]) * int(attribute(layer, "group", 1))
    return int(weight.shape[1 if attribute(layer, "transB", 0) else 0])


def _scale_outputs(layer: onnx.NodeProto, weight: Float64, scale: Float64) -> Float64:
    if layer.op_type == "ConvTranspose":
        groups = int(attribute(layer, "group", 1))
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        return (parts * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    if layer.op_type == "Conv" or attribute(layer, "transB", 0):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return weight * scale


def _takes_affine(layer: onnx.NodeProto) -> bool:
    """Whether an addend for each input channel is an addend for each output channel: nothing is padded."""
    if layer.op_type == "Gemm":
        return True
    unpadded = not any(attribute(layer, "pads", ())) and attribute(layer, "auto_pad", b"NOTSET") in (
        b"NOTSET",
        b"VALID",
    )
    return layer.op_type == "Conv" and unpadded


def _scale_inputs(layer: onnx.NodeProto, weight: Float64, scale: Float64) -> Float64:
    if layer.op_type == "Gemm":
        return weight * (scale if attribute(layer, "transB", 0) else scale[:, None])
    return weight * _by_group(layer, weight, scale)


def _through(layer: onnx.NodeProto, weight: Float64, shift: Float64) -> Float64:
    """What a layer makes of an input that is the same everywhere: one value an output channel."""
    if layer.op_type == "Gemm":
        return np.asarray(weight @ shift if attribute(layer, "transB", 0) else shift @ weight)
    return np.asarray((weight * _by_group(layer, weight, shift)).sum(axis=tuple(range(1, weight.ndim))))


def _by_group(layer: onnx.NodeProto, weight: Float64, values: Float64) -> Float64:
    """Values of the input channels, laid out beside the weights (O, I / groups, …) of a convolution."""
    groups = int(attribute(layer, "group", 1))
    rows = np.repeat(values.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
