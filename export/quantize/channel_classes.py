"""Which channels of a graph may be rescaled together without changing what it computes.

A factor of a channel passes through every operator that commutes with it; a residual add ties the channels of its
inputs together. What leaves the graph, or goes through anything else, keeps its scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from ..onnx_graph import GraphIndex, attribute
from .layers import WeightedLayer, weighted_layers

_HOMOGENEOUS = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Identity",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
)
"""Operators that commute with a positive factor of a channel."""


@dataclass
class ChannelClass:
    """Tensors whose channels can be scaled by common factors.

    Attributes:
        channels: number of channels.
        tensors: the activations.
        sources: layers, by output name, whose output channels the factors multiply.
        sinks: layers whose input channels they divide, each with the number of consecutive inputs of one channel.
    """

    channels: int
    tensors: list[str]
    sources: list[str] = field(default_factory=list)
    sinks: dict[str, int] = field(default_factory=dict)


def channel_classes(model: onnx.ModelProto) -> list[ChannelClass]:
    """Find the tensors whose channels can be rescaled exactly, with the layers that write and read them.

    Args:
        model: a float graph with inferred shapes

    Returns:
        the classes, in graph order
    """
    return _Classes(GraphIndex(model)).find()


class _Classes:
    """Grows the classes along the graph."""

    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self.layers = {layer.node.output[0]: layer for layer in weighted_layers(index)}
        uses: dict[str, int] = {}
        for node in index.graph.node:
            for name in node.input:
                uses[name] = uses.get(name, 0) + 1
        self.uses = uses
        self.parent: dict[str, str] = {}
        self.frozen: set[str] = set()
        self.sources: list[tuple[str, str]] = []
        self.sinks: list[tuple[str, str, int]] = []

    def find(self) -> list[ChannelClass]:
        for name in (*self.index.inputs, *self.index.outputs):
            self.frozen.add(name)
        for node in self.index.graph.node:
            self._visit(node)
        blocked = {self._root(name) for name in self.frozen}
        classes: dict[str, ChannelClass] = {}
        for tensor, layer in self.sources:
            root = self._root(tensor)
            channels = self._channels(tensor)
            if root in blocked or channels is None:
                continue
            found = classes.setdefault(root, ChannelClass(channels, []))
            if found.channels == channels:
                found.sources.append(layer)
            else:  # what was flattened, together with what makes rows itself: it has channels of two kinds
                blocked.add(root)
        for tensor, layer, inputs in self.sinks:
            root = self._root(tensor)
            if root in classes:
                found = classes[root]
                found.sinks[layer] = inputs // found.channels
                if inputs % found.channels:
                    blocked.add(root)
        classes = {root: found for root, found in classes.items() if root not in blocked}
        for tensor in self.parent:
            root = self._root(tensor)
            if root in classes:
                classes[root].tensors.append(tensor)
        return [c for c in classes.values() if c.sinks]

    def _visit(self, node: onnx.NodeProto) -> None:
        layer = self.layers.get(node.output[0])
        if layer is not None:
            self._visit_layer(layer)
        elif node.op_type in _HOMOGENEOUS and (node.op_type != "PRelu" or self._is_constant(node.input[1])):
            self._join(node.input[0], node.output[0])
        elif node.op_type == "Add" and self._same_shape(node):
            for name in node.input:
                self._join(name, node.output[0])
        elif node.op_type == "Flatten" and attribute(node, "axis", 1) == 1:
            self._join(node.input[0], node.output[0])
        else:
            self.frozen.update(name for name in (*node.input, *node.output) if name)
        if len(node.output) > 1:
            self.frozen.update(name for name in node.output if name)

    def _visit_layer(self, layer: WeightedLayer) -> None:
        data, output = layer.data, layer.node.output[0]
        weight = self.index.initializers[layer.weight].dims
        alone = self.uses[layer.weight] == 1 and (layer.bias is None or self.uses[layer.bias] == 1)
        matrix = layer.node.op_type in ("Gemm", "MatMul")
        # Products of sequences have their channels elsewhere.
        if alone and (not matrix or self._rank(data) == 2):
            groups = attribute(layer.node, "group", 1) if layer.node.op_type == "Conv" else 1
            self.sinks.append((data, output, weight[1 if layer.axis == 0 else 0] * groups))
        else:
            self.frozen.add(data)
        if alone and (not matrix or self._rank(output) == 2) and self._channels(output) == weight[layer.axis]:
            self.sources.append((output, output))
        else:
            self.frozen.add(output)

    def _rank(self, name: str) -> int | None:
        shape = self.index.shape(name)
        return None if shape is None else len(shape)

    def _channels(self, name: str) -> int | None:
        shape = self.index.shape(name)
        return shape[1] if shape is not None and len(shape) > 1 else None

    def _same_shape(self, node: onnx.NodeProto) -> bool:
        shapes = [self.index.shape(name) for name in (*node.input, *node.output)]
        constant = any(self._is_constant(name) for name in node.input)
        return not constant and None not in shapes and len(set(shapes)) == 1

    def _is_constant(self, name: str) -> bool:
        return self.index.constant(name) is not None

    def _join(self, a: str, b: str) -> None:
        first, second = self._root(a), self._root(b)
        self.parent[second] = first

    def _root(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            name = self.parent[name]
        return name
