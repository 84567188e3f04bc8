"""Layers that a scheme leaves in higher precision, whatever network they are in.

A depthwise convolution does a few multiplications for each value that it moves, so INT8 gains next to nothing on
TensorRT, while symmetric int8 rounds its inputs, which lie behind a ReLU, to half the codes; on MobileNetV2, half of
whose layers are depthwise, INT8 was measured to lose 1.3 to 2.0 points there for 1.09 times the speed. Under `cpu` the
same layers are in INT8: their inputs use all codes, and what float costs is for `--tune` to find out.

Whatever the scheme, a tensor that stands out, by the noise that rounding it makes, is left as it is where the layers
that make and read it do little of the work. In a MobileOne that is what lies between its stem and the first depthwise
convolution: a quarter of all noise, for one in twenty multiplications.

An exempt layer is known to all rules about quantization as one whose weights are not constant: an Identity stands in
front of them while the graph is worked on.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping

import onnx

from ..errors import ExportError
from ..macs import node_macs
from ..onnx_graph import GraphIndex, attribute, replace_nodes
from .layers import weighted_layers

DEPTHWISE = "depthwise: in INT8 it gains next to nothing on TensorRT"
NOISY = "stands out: rounding what it reads or makes would be a large part of all noise, and it does little of the work"
RULES = (DEPTHWISE, NOISY)
_NOISY_SHARE, _NOISY_TIMES, _CHEAP_SHARE = 0.15, 8.0, 0.06
_SUFFIX = "_exempt"


def exempt_layers(model: onnx.ModelProto, scheme: str) -> dict[str, str]:
    """The layers of a float graph that a scheme leaves in higher precision.

    Args:
        model: the float graph
        scheme: `"cpu"` or `"trt"`

    Returns:
        the reason for each, by the name of its output
    """
    if scheme != "trt":
        return {}
    index = GraphIndex(model)
    return {
        layer.node.output[0]: DEPTHWISE
        for layer in weighted_layers(index)
        if layer.node.op_type == "Conv"
        and attribute(layer.node, "group", 1) > 1
        and index.initializers[layer.weight].dims[1] == 1
    }


def noisy_layers(model: onnx.ModelProto, noise: Mapping[str, float], scheme: str) -> dict[str, str]:
    """The layers around tensors that stand out by their noise, where they do little of the work.

    Args:
        model: the float graph
        noise: relative squared error of the output that rounding each activation causes
        scheme: `"cpu"`, where what a layer in INT8 makes is rounded too, or `"trt"`

    Returns:
        the reason for each, by the name of its output
    """
    if not noise:
        return {}
    try:
        macs = node_macs(model)
    except ExportError:  # a shape that is not known: what is cheap is not known either
        return {}
    index = GraphIndex(model)
    layers = {layer.node.output[0]: layer for layer in weighted_layers(index)}
    budget = _CHEAP_SHARE * sum(macs.values())
    bound = max(_NOISY_SHARE * sum(noise.values()), _NOISY_TIMES * statistics.median(noise.values()))
    found: dict[str, str] = {}
    for name in sorted(noise, key=lambda name: -noise[name]):
        around = [layer for layer, known in layers.items() if known.data == name]
        if noise[name] <= bound or len(around) != len(index.consumers.get(name, [])):
            continue
        if scheme == "cpu":
            maker = index.producers.get(name)
            before = "" if maker is None or not maker.input else maker.input[0]
            around += [layer for layer in (name, before) if layer in layers]
        cost = sum(macs[layer] for layer in around if layer not in found)
        if cost <= budget:
            budget -= cost
            found.update(dict.fromkeys(around, NOISY))
    return found


def exempt(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Hide layers from the rules of quantization.

    Args:
        model: a float graph; it is not changed
        names: of their outputs

    Returns:
        a graph that computes the same, or the one given where there are no such layers
    """
    if not names:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.output[0] in names:
            hidden = index.fresh(f"{node.output[0]}{_SUFFIX}")
            nodes.append(onnx.helper.make_node("Identity", [node.input[1]], [hidden], name=hidden))
            node.input[1] = hidden
        nodes.append(node)
    replace_nodes(result, nodes)
    return result


def reveal(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give exempt layers their weights back.

    Args:
        model: a graph made of what :func:`exempt` gave; it is changed

    Returns:
        the same graph
    """
    index = GraphIndex(model)
    weights = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Identity" and node.input[0] in index.initializers and _SUFFIX in node.output[0]
    }
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = weights.get(name, name)
    replace_nodes(model, [node for node in model.graph.node if node.output[0] not in weights])
    return model
