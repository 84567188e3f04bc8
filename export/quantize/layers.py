"""Which tensors of a float graph are quantized, under each scheme, and which operators stay float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ..onnx_graph import GraphIndex, attribute
from ..report import FloatOperator

_MOVING = (
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "MaxPool",
    "DepthToSpace",
    "SpaceToDepth",
)
"""Operators whose output holds only values of their input, the largest among them: it has the input's range."""
_SELECTING = ("Slice", "Split", "Gather")
"""Operators whose outputs hold a part of the values of their input: they have the input's range only where integers are
moved, which cannot change it; read from float, a part has a range of its own."""
_FUSED_ACTIVATIONS = ("Relu", "Clip")
"""Activations that a kernel applies to the layer's result before it is rounded: no Q/DQ stands between the two."""
_POOLS = ("GlobalAveragePool", "AveragePool")
"""Operators without weights, besides residual adds, that CPU backends have an integer kernel for."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CURVE = "not linear, integers would only approximate it"
_ARITHMETIC = "rounding what it combines would cost more than it gains"
_STATISTICS = "statistics and exponentials need the range of floats"
_REASONS = {
    **dict.fromkeys(_WEIGHTED, "its weights are not constant, or no integer kernel has its attributes"),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Selu", "Tanh"), _CURVE),
    **dict.fromkeys(("Mish", "Gelu", "Erf", "Softplus", "Celu"), _CURVE),
    **dict.fromkeys(("Mul", "Sub", "Div", "Pow", "Max", "Min"), _ARITHMETIC),
    **dict.fromkeys(("Add", "Sum"), "adds a constant or a tensor of another shape, not a residual"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Exp", "Log", "Sqrt", "LayerNormalization"), _STATISTICS),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), _STATISTICS),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"), _STATISTICS),
    **dict.fromkeys((*_FUSED_ACTIVATIONS, *_POOLS), "what it reads is float"),
    **dict.fromkeys(("Concat", *_MOVING, *_SELECTING), "what it moves is float"),
    "Resize": "interpolates between values",
}
_NO_KERNEL = "no integer kernel has it"


@dataclass(frozen=True)
class WeightedLayer:
    """A node with constant weights.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        data: name of the activation that it reads.
        weight: name of its weights.
        bias: name of its bias, or None.
        axis: of the weights, along which the output channels lie.
    """

    node: onnx.NodeProto
    data: str
    weight: str
    bias: str | None
    axis: int


def weighted_layers(index: GraphIndex) -> list[WeightedLayer]:
    """The layers of a graph whose weights are quantized, in graph order.

    A Gemm with factors other than 1, or a transposed input, stays float: no integer kernel has them. So does a
    transposed convolution in groups, whose output channels lie along no single axis of its weights.
    """
    layers = []
    for node in index.graph.node:
        axis = _output_channel_axis(node, index)
        if axis is None or node.input[1] not in index.initializers or node.input[0] in index.initializers:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias not in index.initializers:
            continue
        layers.append(WeightedLayer(node, node.input[0], node.input[1], bias, axis))
    return layers


def quantized_tensors(index: GraphIndex, scheme: str) -> list[str]:
    """Names of the activations that get a Q/DQ pair, in graph order.

    Args:
        index: of a float graph
        scheme: `"cpu"`: inputs and outputs of every operator with an integer kernel; `"trt"`: inputs of weighted layers
            and of residual adds

    Returns:
        tensor names; outputs of the graph are among them only where a node reads them too
    """
    wanted = _wanted(index, scheme)
    order = [value.name for value in index.graph.input] + [name for node in index.graph.node for name in node.output]
    return [name for name in order if name in wanted]


def range_sources(index: GraphIndex, scheme: str) -> dict[str, str]:
    """For each quantized tensor the one whose measured range it has, so that nothing is rounded twice on the way.

    What an operator only moved keeps the range of what it was moved from. What goes into one Concat and nowhere else
    has the range of the Concat's output, so that integers are joined as they are; what others read too keeps its own
    range, and the Q/DQ pair behind the Concat converts it.

    Args:
        index: of a float graph
        scheme: `"cpu"` or `"trt"`

    Returns:
        a source for each name of :func:`quantized_tensors`
    """
    wanted = _wanted(index, scheme)
    group = {name: name for name in wanted}

    def source(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for node in index.graph.node:
        if _moves_integers(node, wanted) or (_moves(node) and node.output[0] in wanted):
            for name in node.output:
                if name in wanted:
                    group[name] = source(_origin(node.input[0], index, group))
    if scheme == "cpu":
        for node in index.graph.node:
            if node.op_type == "Concat" and node.output[0] in wanted and all(name in wanted for name in node.input):
                for name in dict.fromkeys(node.input):
                    members = {other for other in wanted if source(other) == source(name)}
                    if node.output[0] not in members and _only_read_by(members, node, index):
                        group[source(name)] = source(node.output[0])
    return {name: source(name) for name in wanted}


def rounded_tensors(index: GraphIndex, scheme: str) -> dict[str, str]:
    """The activations that get a Q/DQ pair, each with the one whose range it has.

    Args:
        index: of a float graph
        scheme: `"cpu"` or `"trt"`
    """
    sources = range_sources(index, scheme)
    return {name: sources[name] for name in quantized_tensors(index, scheme)}


def tensor_roles(index: GraphIndex) -> dict[str, list[str]]:
    """What tensors are to the operators that quantization is about, in names that a training can know too.

    `conv.weight:input` is what the layer with those weights reads, `conv.weight:output` what it makes, behind its
    activation; `add0:0`, `add0:1` and `add0:output` are of the first residual addition, `pool0:output` of the first
    pooling. A layer whose weights others share has its later roles numbered: `conv.weight:input#1`.

    Args:
        index: of a float graph

    Returns:
        the roles of each tensor that has any; learned ranges go by them
    """
    layers = {id(layer.node): layer for layer in weighted_layers(index)}
    roles: dict[str, list[str]] = {}
    seen: Counter[str] = Counter()
    for node in index.graph.node:
        layer, found = layers.get(id(node)), []
        if layer is not None:
            suffix = f"#{seen[layer.weight]}" if seen[layer.weight] else ""
            seen[layer.weight] += 1
            found = [(layer.data, f"{layer.weight}:input{suffix}")]
            found.append((_fused_output(node, index), f"{layer.weight}:output{suffix}"))
        elif _is_residual(node, index):
            found = [(name, f"add{seen['add']}:{i}") for i, name in enumerate(node.input)]
            found.append((_fused_output(node, index), f"add{seen['add']}:output"))
            seen["add"] += 1
        elif node.op_type in _POOLS:
            found = [(node.output[0], f"pool{seen['pool']}:output")]
            seen["pool"] += 1
        for name, role in found:
            roles.setdefault(name, []).append(role)
    return roles


def tensors_to_observe(model: onnx.ModelProto) -> list[str]:
    """Names of the activations whose ranges both schemes need, in graph order, each once."""
    index = GraphIndex(model)
    needed = {source for scheme in ("cpu", "trt") for source in range_sources(index, scheme).values()}
    order = [value.name for value in index.graph.input] + [name for node in index.graph.node for name in node.output]
    return [name for name in order if name in needed]


def why_float(operator: str) -> str:
    """Why an operator that is not computed in integers is not: a few words, by its ONNX type."""
    return _REASONS.get(operator, _NO_KERNEL)


def operators_left_float(
    model: onnx.ModelProto, scheme: str, kept_float: Mapping[str, str] | None = None
) -> tuple[FloatOperator, ...]:
    """The operators that a scheme does not compute in integers, and why.

    Args:
        model: the float graph
        scheme: `"cpu"`, or `"trt"`, of which operators that only move values are left out: TensorRT moves them in
            whatever type their neighbours have
        kept_float: layers that stay float by choice, by the name of their output, and why

    Returns:
        an entry for each operator type and reason, the most frequent first
    """
    index = GraphIndex(model)
    wanted = _wanted(index, scheme)
    integer = {id(layer.node) for layer in weighted_layers(index)}
    integer |= {id(node) for node in index.graph.node if _is_residual(node, index)}
    for node in list(index.graph.node):
        reader = index.only_consumer(node.output[0]) if id(node) in integer else None
        if reader is not None and reader.op_type in _FUSED_ACTIVATIONS:
            integer.add(id(reader))
    counts: Counter[tuple[str, str]] = Counter()
    kept_float = kept_float or {}
    for node in index.graph.node:
        if node.output[0] in kept_float:
            counts[node.op_type, kept_float[node.output[0]]] += 1
            continue
        moving = _moves(node) or node.op_type in ("Concat", *_SELECTING)
        if id(node) in integer or node.op_type == "Constant" or (moving and scheme == "trt"):
            continue
        if moving or node.op_type in _POOLS:
            read = [name for name in node.input[: None if node.op_type == "Concat" else 1] if name]
            if node.output[0] in wanted and all(name in wanted for name in read):
                continue
        if all(index.producers.get(name) is None and name not in index.inputs for name in node.input):
            continue  # a constant in disguise
        counts[node.op_type, why_float(node.op_type)] += 1
    return tuple(FloatOperator(operator, count, reason) for (operator, reason), count in counts.most_common())


def _wanted(index: GraphIndex, scheme: str) -> set[str]:
    layers = weighted_layers(index)
    residuals = [node for node in index.graph.node if _is_residual(node, index)]
    # What the graph gives out stays float; where a layer reads it too, the pair stands between the two.
    wanted = {layer.data for layer in layers} | {name for node in residuals for name in node.input}
    if scheme == "cpu":
        wanted.update(_fused_output(node, index) for node in [layer.node for layer in layers] + residuals)
        _spread(index, wanted)
    return {name for name in wanted if name not in index.outputs or name in index.consumers}


def _spread(index: GraphIndex, wanted: set[str]) -> None:
    """Add what operators with integer kernels make of what is in integers already, until nothing is added.

    Where all that an operator moves is rounded behind it, it is rounded before it instead: the values are the same.
    """
    before = -1
    while before != len(wanted):
        before = len(wanted)
        for node in index.graph.node:
            if node.op_type in _POOLS or _moves(node) or node.op_type in _SELECTING:
                outputs = {name for name in node.output if name in index.consumers or name in index.outputs}
                if node.input[0] in wanted:
                    wanted |= outputs
                elif node.op_type not in _POOLS and outputs <= wanted and _can_round_first(node, index):
                    wanted.add(node.input[0])
            elif node.op_type == "Concat":
                wanted.update(_joined(node, index, wanted))


def _joined(node: onnx.NodeProto, index: GraphIndex, wanted: set[str]) -> set[str]:
    """Inputs and output of a Concat, if it can join integers: each input is in integers, or nothing else reads it."""
    inputs = list(dict.fromkeys(node.input))
    if any(index.constant(name) is not None for name in inputs) or not any(name in wanted for name in inputs):
        return set()
    if all(name in wanted for name in inputs):
        return {node.output[0]}
    alone = all(name in wanted or _can_round_first(node, index, name) for name in inputs)
    return {*inputs, node.output[0]} if alone and node.output[0] in wanted else set()


def _can_round_first(node: onnx.NodeProto, index: GraphIndex, name: str = "") -> bool:
    """Whether a node's input can be rounded for it: it is a feature map, and no float operator reads it too."""
    name = name or node.input[0]
    shape = index.shape(name)
    return index.only_consumer(name) is node and shape is not None and len(shape) > 1


def _moves(node: onnx.NodeProto) -> bool:
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", b"nearest") == b"nearest")
    return node.op_type in _MOVING


def _moves_integers(node: onnx.NodeProto, wanted: set[str]) -> bool:
    return (_moves(node) or node.op_type in _SELECTING) and node.input[0] in wanted


def _origin(name: str, index: GraphIndex, group: dict[str, str]) -> str:
    """The tensor that a moved one comes from, entered among the groups where it is float."""
    node = index.producers.get(name)
    while name not in group and node is not None and _moves(node):
        name = node.input[0]
        node = index.producers.get(name)
    group.setdefault(name, name)
    return name


def _only_read_by(members: set[str], concat: onnx.NodeProto, index: GraphIndex) -> bool:
    """Whether tensors that share a range end in one Concat, and nothing but what moves them there reads them."""
    return all(
        name not in index.outputs
        and name not in index.inputs
        and all(reader is concat or set(reader.output) <= members for reader in index.consumers.get(name, []))
        for name in members
    )


def _output_channel_axis(node: onnx.NodeProto, index: GraphIndex) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1:
        return 1
    if node.op_type == "MatMul" and len(index.shape(node.input[1]) or ()) == 2:
        return 1
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if plain and not attribute(node, "transA", 0):
            return 0 if attribute(node, "transB", 0) else 1
    return None


def _fused_output(node: onnx.NodeProto, index: GraphIndex) -> str:
    reader = index.only_consumer(node.output[0])
    return reader.output[0] if reader is not None and reader.op_type in _FUSED_ACTIVATIONS else node.output[0]


def _is_residual(node: onnx.NodeProto, index: GraphIndex) -> bool:
    """Whether a node adds two feature maps: neither is constant, and neither is spread over the other."""
    if node.op_type != "Add" or any(index.constant(name) is not None for name in node.input):
        return False
    shapes = [index.shape(name) for name in node.input]
    return None in shapes or shapes[0] == shapes[1]
