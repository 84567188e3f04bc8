"""One graph behind another, and both taken apart again: a network stays what it was in front of its post-processing.

What quantizes, converts or compares a network works on its own outputs. Whatever that makes of the network, what stands
behind it is computed in float32, since a network's outputs are float32 in every precision. :mod:`export.graph.join` is
the counterpart at the other end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx

from ..errors import ExportError
from ..onnx_graph import GraphIndex, replace_nodes

if TYPE_CHECKING:
    from torch import nn

_PREFIX = "post/"


def trace_tail(module: nn.Module, inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]) -> onnx.ModelProto:
    """Trace what is to stand behind a network.

    Args:
        module: maps the network's outputs, float32 and N first, to a tensor, or to several, N first
        inputs: shapes of the network's outputs for one image, without N, by name
        outputs: what to call its own, in their order

    Returns:
        a graph that :func:`attach` takes

    Raises:
        ExportError: if the module cannot be traced, with the tracer's reason
    """
    import torch

    from ..trace import MAX_TRACED_BATCH, trace_examples

    batch = torch.export.Dim("batch", min=1, max=MAX_TRACED_BATCH)
    # A batch of two: torch.export takes a dimension of one for a constant.
    examples = {name: torch.zeros(2, *shape) for name, shape in inputs.items()}
    return trace_examples(module.eval().cpu(), examples, [{0: batch}] * len(examples), outputs)


def attach(network: onnx.ModelProto, tail: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes a network's outputs and feeds them to another graph.

    Args:
        network: it is not changed
        tail: its inputs are called as the network's outputs; it is not changed

    Returns:
        a checked model with the inputs of the network and the outputs of the tail

    Raises:
        ExportError: if an output of the tail is called as a tensor of the network
    """
    index = GraphIndex(network)
    inner = {value.name for value in tail.graph.input}
    for output in tail.graph.output:
        if output.name in index.producers or output.name in index.initializers or output.name in index.inputs:
            raise ExportError(f"the network has a tensor {output.name!r} already: rename that part of the module")
    ends = inner | {output.name for output in tail.graph.output}

    def renamed(name: str) -> str:
        return name if not name or name in ends else f"{_PREFIX}{name.removeprefix(_PREFIX)}"

    result = onnx.ModelProto()
    result.CopyFrom(network)
    result.graph.value_info.extend(network.graph.output)
    nodes = []
    for node in tail.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{_PREFIX}{node.name.removeprefix(_PREFIX)}"
        copy.input[:] = map(renamed, node.input)
        copy.output[:] = map(renamed, node.output)
        nodes.append(copy)
    replace_nodes(result, [*network.graph.node, *nodes])
    for tensor in tail.graph.initializer:
        result.graph.initializer.add().CopyFrom(tensor)
        result.graph.initializer[-1].name = renamed(tensor.name)
    del result.graph.output[:]
    result.graph.output.extend(tail.graph.output)
    onnx.checker.check_model(result)
    return result


def network_in_front(model: onnx.ModelProto, output_names: Callable[[int], tuple[str, ...]]) -> onnx.ModelProto:
    """The network of a graph that something is attached to.

    Args:
        model: what :func:`attach` made; it is changed in place, since it may be gigabytes
        output_names: of a network of the task, how so many outputs are called, in their order

    Returns:
        the same model, equal to the network that was attached to
    """
    outputs = output_names(len(seam(model)))
    replace_nodes(model, [node for node in model.graph.node if not _is_behind(node.name)])
    for i in reversed(range(len(model.graph.initializer))):
        if _is_behind(model.graph.initializer[i].name):
            del model.graph.initializer[i]
    values = {value.name: value for value in model.graph.value_info}
    del model.graph.output[:]
    model.graph.output.extend(values[name] for name in outputs)
    kept = [value for value in model.graph.value_info if value.name not in outputs and not _is_behind(value.name)]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def tail_behind(model: onnx.ModelProto) -> onnx.ModelProto:
    """What is attached to the network of a graph.

    Args:
        model: what :func:`attach` made; it is not changed

    Returns:
        a model of its own, to be attached to another network
    """
    nodes = [node for node in model.graph.node if _is_behind(node.name)]
    constants = [tensor for tensor in model.graph.initializer if _is_behind(tensor.name)]
    values = {value.name: value for value in model.graph.value_info}
    ends = [values[name] for name in seam(model)]
    graph = onnx.helper.make_graph(nodes, "post", ends, model.graph.output, constants)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def seam(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors that the network gives and what is attached to it takes."""
    nodes = [node for node in model.graph.node if _is_behind(node.name)]
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name and not _is_behind(name))
    return [name for name in read if name not in made]


def _is_behind(name: str) -> bool:
    return name.startswith(_PREFIX)
