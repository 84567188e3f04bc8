"""Which tensors of a traced network are quantized, under each scheme: the same as in the exported graph.

A tensor is known by its *roles*, which the exported graph can tell too: `features.0.weight:input` and `…:output` for
what the layer with those weights reads and makes (behind its activation), `add0:0`, `add0:1` and `add0:output` for the
first residual addition of the network, `pool0:output` for the first pooling. A layer that runs more than once has its
later roles numbered: `conv.weight:input#1`.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = ["Placement", "kind_of", "place"]

_KINDS: dict[str, tuple[Any, ...]] = {
    "activation": (nn.ReLU, nn.ReLU6, nn.Hardtanh, F.relu, F.relu6, F.hardtanh, torch.relu, "relu"),
    "add": (operator.add, torch.add, "add"),
    "move": (
        *(nn.Flatten, nn.MaxPool2d, nn.PixelShuffle, F.max_pool2d, F.pixel_shuffle, torch.flatten, torch.reshape),
        *(torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose, F.max_pool2d_with_indices, torch.max_pool2d),
        *("flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose"),
    ),
    "pool": (nn.AdaptiveAvgPool2d, nn.AvgPool2d, F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, "mean"),
    "select": (
        *(torch.cat, torch.concat, torch.chunk, torch.split, torch.index_select, torch.gather, F.interpolate),
        *(operator.getitem, nn.Upsample, nn.UpsamplingNearest2d, "chunk", "split", "narrow"),
    ),
}
"""Modules by class, functions, and methods by name. A boosted ``max_pool2d`` is one function in some releases of torch
and another in others."""
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear, torch.conv2d)


@dataclass(frozen=True)
class Placement:
    """Where quantizers go.

    Attributes:
        groups: by the tensor whose range it is, the tensors that are quantized with that range.
        roles: of each group, in the same order.
        layers: nodes of the layers whose weights are quantized.
    """

    groups: dict[fx.Node, list[fx.Node]]
    roles: dict[fx.Node, list[str]]
    layers: list[fx.Node]


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """What a node is to quantization: `layer`, `activation`, `add`, `move`, `pool`, `select` or `other`."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) in (nn.Conv2d, nn.Linear):
            return "layer"
        for kind, targets in _KINDS.items():
            if any(isinstance(target, type) and isinstance(module, target) for target in targets):
                return kind
    elif node.op in ("call_function", "call_method"):
        for kind, targets in _KINDS.items():
            if node.target in targets:
                if kind == "pool" and _is_mean(node) and not _is_over_pixels(node):
                    return "other"
                return "other" if kind == "add" and not _is_residual(node) else kind
    return "other"


def place(graph: fx.Graph, modules: dict[str, nn.Module], scheme: str) -> Placement:
    """Decide which tensors are quantized.

    Args:
        graph: traced, with shapes noted at its nodes
        modules: of the network, by name
        scheme: `"cpu"`: inputs and outputs of every operator with an integer kernel; `"trt"`: inputs of layers with
            weights and of residual additions

    Returns:
        the tensors, grouped by range

    Raises:
        ValueError: naming what cannot be quantized as it would be exported
    """
    kinds = {node: kind_of(node, modules) for node in graph.nodes}
    layers = [node for node in graph.nodes if kinds[node] == "layer"]
    for node in graph.nodes:
        _refuse_other_layers(node, modules)
    adds = [node for node in graph.nodes if kinds[node] == "add"]
    wanted = {_operand(node, 0) for node in layers} | {_operand(node, i) for node in adds for i in (0, 1)}
    if scheme == "cpu":
        wanted |= {_fused(node, kinds) for node in (*layers, *adds)}
        for node in graph.nodes:  # in order, so that one pass spreads through chains
            if kinds[node] in ("pool", "move") and _operand(node, 0) in wanted:
                wanted.add(node)
    for node in graph.nodes:
        if kinds[node] == "select" and any(source in wanted for source in node.all_input_nodes):
            raise ValueError(
                f"{node.name} joins, splits or resizes a tensor that is quantized, and the exporter would share its "
                "range: quantization-aware training does not cover such a network, calibrate it"
            )
    # What the network gives out stays float.
    wanted = {node for node in wanted if any(user.op != "output" for user in node.users)}
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in wanted:
            groups.setdefault(_origin(node, kinds), []).append(node)
    by_tensor = _roles(graph, modules, kinds)
    roles = {source: sorted({r for n in nodes for r in by_tensor.get(n, ())}) for source, nodes in groups.items()}
    return Placement(groups, roles, layers)


def _roles(graph: fx.Graph, modules: dict[str, nn.Module], kinds: dict[fx.Node, str]) -> dict[fx.Node, list[str]]:
    roles: dict[fx.Node, list[str]] = {}
    seen: Counter[str] = Counter()

    def add(node: fx.Node, role: str) -> None:
        roles.setdefault(node, []).append(role)

    for node in graph.nodes:
        kind = kinds[node]
        if kind == "layer":
            name = f"{node.target}.weight"
            suffix = f"#{seen[name]}" if seen[name] else ""
            seen[name] += 1
            add(_operand(node, 0), f"{name}:input{suffix}")
            add(_fused(node, kinds), f"{name}:output{suffix}")
        elif kind in ("add", "pool"):
            name = f"{kind}{seen[kind]}"
            seen[kind] += 1
            if kind == "add":
                add(_operand(node, 0), f"{name}:0")
                add(_operand(node, 1), f"{name}:1")
            add(_fused(node, kinds) if kind == "add" else node, f"{name}:output")
    return roles


def _operand(node: fx.Node, i: int) -> fx.Node:
    operand = (*node.args, *node.kwargs.values())[i]
    if not isinstance(operand, fx.Node):
        raise ValueError(f"{node.name} reads {operand!r} where a tensor was expected")
    return operand


def _fused(node: fx.Node, kinds: dict[fx.Node, str]) -> fx.Node:
    """What a layer makes: behind the activation where that is all that reads it."""
    users = list(node.users)
    return users[0] if len(users) == 1 and kinds[users[0]] == "activation" else node


def _origin(node: fx.Node, kinds: dict[fx.Node, str]) -> fx.Node:
    """The tensor that a moved one comes from: moving changes no range."""
    while kinds[node] == "move":
        node = _operand(node, 0)
    return node


def _shape(node: Any) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def _is_residual(node: fx.Node) -> bool:
    """Whether a node adds two feature maps: neither is constant, and neither is spread over the other."""
    operands = node.args[:2]
    if len(operands) != 2 or node.kwargs or any(isinstance(o, fx.Node) and o.op == "get_attr" for o in operands):
        return False
    first, second = (_shape(operand) for operand in operands)
    return first is not None and first == second


def _is_mean(node: fx.Node) -> bool:
    return node.target in (torch.mean, "mean")


def _is_over_pixels(node: fx.Node) -> bool:
    """Whether a mean is over height and width: the exporter makes it a pooling."""
    shape = _shape(node.args[0])
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if shape is None or len(shape) != 4 or not isinstance(dims, (list, tuple)):
        return False
    return sorted(int(d) % 4 for d in dims) == [2, 3]


def _refuse_other_layers(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """The exporter quantizes all constant weights: what this module cannot fake must not be left out in silence."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.modules.conv._ConvNd) and type(module) is not nn.Conv2d:
            raise ValueError(
                f"{node.target} is a {type(module).__name__}: only Conv2d and Linear can be fake-quantized"
            )
        if isinstance(module, nn.Linear) and len(_shape(node.args[0]) or (0, 0)) != 2:
            raise ValueError(
                f"{node.target} is a linear layer on {_shape(node.args[0])}: expected input of shape (N, C)"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{node.target} is a batch normalization that no convolution stands before: it cannot be folded"
            )
    elif node.op == "call_function" and node.target in _CONVOLUTIONS:
        raise ValueError(
            f"{node.name} is a layer without a module: use nn.Conv2d and nn.Linear, whose weights have names"
        )
