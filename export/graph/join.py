"""One graph in front of another, and both taken apart again: a network stays what it was behind its preprocessing.

What quantizes, converts or compares a network works on the network alone. The part in front is joined to the result,
and taken off when a bundle's graph is read to make others from it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from ..onnx_graph import INPUT_NAME, GraphIndex, drop_unknown_shapes, drop_unused_initializers, replace_nodes

_PREFIX = "frame/"


def join(front: onnx.ModelProto, network: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes one model's output and feeds it to another.

    Args:
        front: of one output, which is called as the network's input; it is not changed
        network: of one input; it is not changed

    Returns:
        a checked model with the inputs of the front and the outputs of the network
    """
    result = onnx.ModelProto()
    result.CopyFrom(network)
    (seam,) = network.graph.input
    index, ends = GraphIndex(network), {seam.name, *(value.name for value in front.graph.input)}
    inner = [tensor.name for tensor in front.graph.initializer]
    inner += [name for node in front.graph.node for name in node.output if name not in ends]
    names = {name: index.fresh(f"{_PREFIX}{name.removeprefix(_PREFIX)}") for name in inner}
    nodes = []
    for node in front.graph.node:
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        renamed.input[:] = [names.get(name, name) for name in node.input]
        renamed.output[:] = [names.get(name, name) for name in node.output]
        renamed.name = f"{_PREFIX}{renamed.output[0].removeprefix(_PREFIX)}"
        nodes.append(renamed)
    for tensor in front.graph.initializer:
        result.graph.initializer.add().CopyFrom(tensor)
        result.graph.initializer[-1].name = names[tensor.name]
    replace_nodes(result, [*nodes, *network.graph.node])
    del result.graph.input[:]
    result.graph.input.extend(front.graph.input)
    result.graph.value_info.append(seam)
    onnx.checker.check_model(result)
    return result


def behind(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network of a joined graph.

    Args:
        model: what :func:`join` made; it is changed in place, since it may be gigabytes

    Returns:
        the same model without the part in front
    """
    seam = _seam(model)
    replace_nodes(model, _needed(model, [seam.name], [output.name for output in model.graph.output]))
    del model.graph.input[:]
    model.graph.input.append(seam)
    drop_unused_initializers(model)
    drop_unknown_shapes(model)
    return model


def in_front(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part in front of the network of a joined graph.

    Args:
        model: what :func:`join` made; it is not changed

    Returns:
        a model of its own, to be joined to another network
    """
    seam = _seam(model)
    nodes = _needed(model, [value.name for value in model.graph.input], [seam.name])
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = onnx.helper.make_graph(nodes, "frame", model.graph.input, [seam], constants)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _seam(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    (value,) = [value for value in model.graph.value_info if value.name == INPUT_NAME]
    return value


def _needed(model: onnx.ModelProto, starts: Iterable[str], ends: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes between some tensors and others, in order."""
    known, wanted, kept = set(starts), set(ends), []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(set(node.input) - known)
    return kept[::-1]
