"""Looking things up in an ONNX graph: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

INPUT_NAME = "input"
"""Name of a network's own input: of the whole graph, or of what stands between the network and the part in front."""
_FEW_VALUES = 64


class GraphIndex:
    """Producers, consumers and constants of a graph by tensor name, as they are when this is made.

    Args:
        model: the model; it is not copied, and edits made later are not seen
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                if name:
                    self.consumers.setdefault(name, []).append(node)
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = {output.name for output in model.graph.output}
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self._shapes = {value.name: _shape(value) for value in values}
        self._names = set(self._shapes) | set(self.initializers) | set(self.producers)

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initializer or of a Constant node; None if the tensor depends on the input."""
        tensor = self.initializers.get(name)
        if tensor is None:
            node = self.producers.get(name)
            if node is None or node.op_type != "Constant":
                return None
            tensor = attribute(node, "value")
            if tensor is None:
                return None
        return numpy_helper.to_array(tensor)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The inferred shape of a tensor, None for a dynamic dimension; None if nothing is known of it."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        return self._shapes.get(name)

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor; None if several do, or the graph gives it out."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def fresh(self, name: str) -> str:
        """A tensor name that the graph does not have yet, like the one given."""
        candidate, n = name, 1
        while candidate in self._names:
            candidate, n = f"{name}_{n}", n + 1
        self._names.add(candidate)
        return candidate

    def add_initializer(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant under a name that the graph does not have yet, like the one given, and say which."""
        name = self.fresh(name)
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute, or the default."""
    for a in node.attribute:
        if a.name == name:
            return onnx.helper.get_attribute_value(a)
    return default


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make these, in this order, all the nodes of the graph."""
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove the initializers that no node reads and the graph does not give out."""
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    # One by one: collecting those that stay would copy all the weights.
    for i in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[i].name not in used:
            del model.graph.initializer[i]


def drop_unknown_shapes(model: onnx.ModelProto) -> None:
    """Remove what is noted of tensors that the graph does not have any more."""
    made = {name for node in model.graph.node for name in node.output}
    known = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)


def graph_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of the computation and its weights: the same for two files that differ in metadata only."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def set_metadata(model: onnx.ModelProto, entries: dict[str, str]) -> None:
    """Make these the entries of a model's `metadata_props`."""
    onnx.helper.set_model_props(model, entries)


def serialized_with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """A model as a file that also gives out these float32 tensors, its own inputs among them left out.

    No copy of the model is made in between.
    """
    before = len(model.graph.output)
    known = {output.name for output in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    try:
        for name in names:
            if name in made and name not in known:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return model.SerializeToString()
    finally:
        del model.graph.output[before:]


def add_inferred_shapes(model: onnx.ModelProto) -> None:
    """Note type and shape of every tensor that they can be inferred of in the graph itself."""
    inferred = _inferred_graph(model)
    outputs = {value.name: value for value in inferred.output}
    for value in model.graph.output:
        value.CopyFrom(outputs[value.name])
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.value_info)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The inferred element type of each tensor."""
    inferred = _inferred_graph(model)
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _inferred_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with inferred types and shapes and without its weights: inference would copy them several times."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.CopyFrom(
        onnx.GraphProto(
            name="types",
            node=model.graph.node,
            input=model.graph.input,
            output=model.graph.output,
            value_info=model.graph.value_info,
        )
    )
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _FEW_VALUES:  # shapes and axes, which inference reads
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.shape_inference.infer_shapes(light).graph


def float_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every float32 constant of a graph by name: initializers and the values of Constant nodes."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name, tensor
    for node in model.graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None and value.data_type == onnx.TensorProto.FLOAT:
            yield node.output[0], value


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
