"""Cross-layer equalization: moving scale between layers, channel by channel, so that one range fits all channels."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from .placement import kind_of

__all__ = ["equalize"]

_STEPS = 20
_LARGEST_STEP = 1e6


def equalize(model: fx.GraphModule) -> int:
    """Equalize the ranges of the weights of layers that follow each other, in place (`Nagel et al.
    <https://arxiv.org/abs/1906.04721>`_, section 4.1).

    Where a ReLU, a maximum or average pooling, or a residual addition stands between two layers, a factor on an output
    channel of the first can be taken back at the input of the second: the network's answer stays what it is, up to
    rounding. The factor that makes the largest weight on both sides the same is applied, for all such places in turn,
    until nothing changes. Depthwise convolutions have an input and an output side for each channel, as every layer.

    Args:
        model: a traced network of plain layers, with shapes noted at its nodes

    Returns:
        number of places where scale was moved
    """
    modules = dict(model.named_modules())
    spots = _spots(model.graph, modules)
    for _ in range(_STEPS):
        moved = max((_balance(makers, readers) for makers, readers in spots), default=0.0)
        if moved < 1e-3:
            break
    return len(spots)


def _spots(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[list[nn.Module], list[nn.Module]]]:
    """Layers that make, and layers that read, what has to be scaled together."""
    kinds = {node: kind_of(node, modules) for node in graph.nodes}
    group = {node: node for node in graph.nodes}

    def find(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    blocked = []
    for node in graph.nodes:
        passes = kinds[node] in ("add", "pool") or (kinds[node] == "activation" and _is_relu(node, modules))
        passes = passes or (kinds[node] == "move" and _keeps_channels(node))
        for source in node.all_input_nodes:
            if passes:
                group[find(source)] = find(node)
            elif kinds[node] != "layer":
                blocked.append(source)
        if kinds[node] != "layer" and not passes:
            blocked.append(node)
    calls = [modules[str(node.target)] for node in graph.nodes if kinds[node] == "layer"]
    barred = {find(node) for node in blocked}
    makers: dict[fx.Node, list[nn.Module]] = {}
    readers: dict[fx.Node, list[nn.Module]] = {}
    for node in graph.nodes:
        if kinds[node] != "layer":
            continue
        module, source = modules[str(node.target)], node.all_input_nodes[0]
        if calls.count(module) > 1:
            barred |= {find(node), find(source)}
        makers.setdefault(find(node), []).append(module)
        readers.setdefault(find(source), []).append(module)
    return [(makers[spot], readers[spot]) for spot in makers if spot in readers and spot not in barred]


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return "relu" in str(getattr(node.target, "__name__", node.target)) and "relu6" not in str(node.target)


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a tensor has the channels it is made of, one pixel each if they become features."""
    before, after = (n.meta.get("tensor_meta") for n in (node.all_input_nodes[0], node))
    shapes = [tuple(meta.shape) for meta in (before, after) if meta is not None and hasattr(meta, "shape")]
    if len(shapes) != 2 or node.target in (torch.permute, torch.transpose, "permute", "transpose"):
        return False
    return len(shapes[0]) > 1 and shapes[0][:2] == shapes[1][:2]


@torch.no_grad()
def _balance(makers: list[nn.Module], readers: list[nn.Module]) -> float:
    """Give makers and readers the same largest weight in each channel; returns the largest change, as a logarithm."""
    made = torch.stack([_outputs(layer).flatten(1).abs().amax(dim=1) for layer in makers]).amax(dim=0)
    read = torch.stack([_by_input(layer, _inputs(layer).abs()) for layer in readers]).amax(dim=0)
    # A dead channel has no scale to move.
    alive = (made > 0) & (read > 0)
    factor = torch.where(alive, (read / made).sqrt().clamp(1 / _LARGEST_STEP, _LARGEST_STEP), 1.0)
    factor = torch.where(torch.isfinite(factor), factor, 1.0)
    for layer in makers:
        _outputs(layer).mul_(factor.view(-1, *[1] * (_outputs(layer).ndim - 1)))
        if isinstance(layer.bias, Tensor):
            layer.bias.mul_(factor)
    for layer in readers:
        _divide_inputs(layer, factor)
    return float(factor.log().abs().max())


def _outputs(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _inputs(layer: nn.Module) -> Tensor:
    """Weights (groups, outputs in a group, inputs in a group, …)."""
    weight = _outputs(layer)
    return weight.view(getattr(layer, "groups", 1), -1, *weight.shape[1:])


def _by_input(layer: nn.Module, weight: Tensor) -> Tensor:
    """The largest weight of each input channel."""
    return weight.flatten(3).amax(dim=(1, 3)).flatten() if weight.ndim > 3 else weight.amax(dim=1).flatten()


def _divide_inputs(layer: nn.Module, factor: Tensor) -> None:
    weight = _inputs(layer)
    weight.div_(factor.view(weight.shape[0], 1, weight.shape[2], *[1] * (weight.ndim - 3)))
