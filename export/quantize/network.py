"""A float graph run by torch, in pieces, with the rounding of INT8 simulated wherever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from runtime.backends import open_session
from runtime.backends.base import Session

from ..onnx_graph import GraphIndex
from .operators import Inputs, Operator, torch_operator

Values = dict[str, Tensor]
Quantizer = Callable[[Tensor], Tensor]
"""Rounds a tensor to what 8 bits can represent of it."""


@dataclass(frozen=True)
class LayerConstants:
    """What a weighted layer computes with, in place of what the graph has.

    Attributes:
        weight: of the shape in the graph.
        bias: of shape (channels,), or None.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Step:
    """One node of the graph.

    Attributes:
        node: the node.
        compute: maps its inputs to its outputs.
        differentiable: False where the node is left to ONNX Runtime.
    """

    node: onnx.NodeProto
    compute: Operator
    differentiable: bool


class Network:
    """The nodes of a graph as functions of torch tensors, in the graph's order.

    Operators that are not written in torch run in ONNX Runtime: any graph runs, but gradients end there.

    Args:
        model: a float32 graph with one input; it is not changed
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.index = GraphIndex(model)
        self.inputs = [value.name for value in model.graph.input if value.name not in self.index.initializers]
        self.outputs = [value.name for value in model.graph.output]
        self.constants: Values = {
            name: torch.from_numpy(numpy_helper.to_array(t).copy()) for name, t in self.index.initializers.items()
        }
        opsets = {o.domain: o.version for o in model.opset_import}
        self.steps = tuple(_step(node, opsets, model.ir_version) for node in model.graph.node)
        self.position = {step.node.output[0]: i for i, step in enumerate(self.steps)}
        self.last_use: dict[str, int] = {}
        for i, step in enumerate(self.steps):
            for name in step.node.input:
                self.last_use[name] = i
        for name in self.outputs:
            self.last_use[name] = len(self.steps)

    @property
    def differentiable(self) -> bool:
        """Whether gradients pass all of it."""
        return all(step.differentiable for step in self.steps)

    def run(
        self,
        values: Values,
        start: int = 0,
        stop: int | None = None,
        layers: Mapping[str, LayerConstants] | None = None,
        quantizers: Mapping[str, Quantizer] | None = None,
        keep: Collection[str] = (),
    ) -> Values:
        """Run the nodes from `start` to before `stop`.

        Args:
            values: what they read and no constant is: the network's input, or what an earlier call returned
            start: index of the first node
            stop: index after the last node, the graph's end if None
            layers: replaces weights and bias of layers, by the name of their output
            quantizers: applied to tensors, the input among them, as soon as they are there, for everyone who reads
                them; what the graph gives out stays as it was
            keep: names of tensors to return besides

        Returns:
            the tensors that later nodes read, the outputs of the graph, and those in `keep`
        """
        stop = len(self.steps) if stop is None else stop
        layers, quantizers = layers or {}, quantizers or {}
        live = dict(values)
        results: Values = {}
        if start == 0:
            for name in self.inputs:
                if name in quantizers:
                    live[name] = quantizers[name](live[name])
        else:
            # What an earlier call gave out as it was, and nodes from here on read.
            results.update((name, live[name]) for name in self.outputs if name in live)
            live.update((name, quantizers[name](value)) for name, value in results.items() if name in quantizers)
        for i in range(start, stop):
            step = self.steps[i]
            inputs: list[Tensor | None] = [self._value(name, live) for name in step.node.input]
            constants = layers.get(step.node.output[0])
            if constants is not None:
                inputs[1:] = [constants.weight, constants.bias]
            made = step.compute(inputs)
            del inputs
            for name, value in zip(step.node.output, made, strict=False):
                if not name:
                    continue
                if name in self.outputs:
                    results[name] = value
                if name in self.last_use or name in keep:
                    live[name] = quantizers[name](value) if name in quantizers else value
            del made
            for name in step.node.input:
                if self.last_use.get(name) == i and name not in keep:
                    live.pop(name, None)
        return live | results

    def _value(self, name: str, live: Values) -> Tensor | None:
        if not name:
            return None
        found = live.get(name)
        return self.constants[name] if found is None else found


class _RuntimeNode:
    """A node that ONNX Runtime computes: a graph of its own, opened when the inputs that are there are known."""

    def __init__(self, node: onnx.NodeProto, opsets: Mapping[str, int], ir_version: int) -> None:
        self._node = node
        self._opsets = opsets
        self._ir_version = ir_version
        self._sessions: dict[tuple[str, ...], Session] = {}

    def __call__(self, x: Inputs) -> tuple[Tensor, ...]:
        # A layer may be given a bias that its node has not, or lose the one that it has.
        names = [
            *self._node.input,
            *(f"{self._node.output[0]}_given_{i}" for i in range(len(self._node.input), len(x))),
        ]
        present = tuple("" if v is None else name for name, v in zip(names, x, strict=True))
        feeds = {name: v.detach().contiguous().numpy() for name, v in zip(present, x, strict=True) if v is not None}
        if present not in self._sessions:
            self._sessions[present] = self._open(present, feeds)
        results = self._sessions[present].run(feeds)
        return tuple(torch.from_numpy(results[name]) if name else torch.empty(0) for name in self._node.output)

    def _open(self, present: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Session:
        helper = onnx.helper
        node = onnx.NodeProto()
        node.CopyFrom(self._node)
        del node.input[:]
        node.input.extend(present)
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
            for name, v in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", inputs, outputs)
        imports = [helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=self._ir_version)
        return open_session(onnx.shape_inference.infer_shapes(model).SerializeToString(), "onnxruntime")


def _step(node: onnx.NodeProto, opsets: Mapping[str, int], ir_version: int) -> Step:
    operator = torch_operator(node)
    if operator is not None:
        return Step(node, operator, differentiable=True)
    return Step(node, _RuntimeNode(node, opsets, ir_version), differentiable=False)
