"""Graphs run by torch against ONNX Runtime: operator by operator, whole, in pieces, and with what is rounded."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.quantize.network import LayerConstants, Network
from export.quantize.operators import torch_operator
from export.trace import trace

node = helper.make_node


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def positive(*shape):
    return np.abs(random(*shape)) + np.float32(0.1)


def ints(*values):
    return np.array(values, np.int64)


def run(model, feeds, **options):
    with torch.no_grad():
        return Network(model).run({name: torch.from_numpy(x) for name, x in feeds.items()}, **options)


def rounder(step):
    return lambda x: torch.round(x / step) * step


# One operator at a time: the node's attributes, the shape of its first input, its constants.

IMAGE = (2, 4, 7, 6)
CONV = {"w": random(6, 4, 3, 3), "b": random(6)}
NORM = {"scale": positive(4), "bias": random(4), "mean": random(4, seed=1), "variance": positive(4)}
F32 = np.float32

OPERATORS = {
    "Conv": ("Conv", {}, IMAGE, CONV),
    "Conv, strided, dilated, padded": (
        "Conv",
        {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 1, 2]},
        IMAGE,
        CONV,
    ),
    "Conv, padded on one side": ("Conv", {"strides": [2, 2], "pads": [0, 1, 1, 2]}, IMAGE, CONV),
    "Conv, in groups, no bias": ("Conv", {"group": 2}, IMAGE, {"w": random(6, 2, 3, 3)}),
    "Conv, padding left to the runtime": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, IMAGE, CONV),
    "Conv, valid": ("Conv", {"auto_pad": "VALID"}, IMAGE, CONV),
    "Conv of sequences": ("Conv", {"pads": [1, 1]}, (2, 4, 7), {"w": random(6, 4, 3), "b": random(6)}),
    "Conv of sequences, kernel given": ("Conv", {"kernel_shape": [3]}, (2, 4, 7), {"w": random(6, 4, 3)}),
    "Conv of sequences, nothing given": ("Conv", {}, (2, 4, 7), {"w": random(6, 4, 3)}),
    "Conv of volumes": ("Conv", {}, (1, 2, 4, 5, 6), {"w": random(3, 2, 2, 2, 2), "b": random(3)}),
    "ConvTranspose": ("ConvTranspose", {"strides": [2, 2]}, IMAGE, {"w": random(4, 3, 2, 2), "b": random(3)}),
    "ConvTranspose, padded": (
        "ConvTranspose",
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        IMAGE,
        {"w": random(4, 3, 3, 3)},
    ),
    "ConvTranspose, in groups": ("ConvTranspose", {"group": 2}, IMAGE, {"w": random(4, 3, 2, 2), "b": random(6)}),
    "ConvTranspose, padded on one side": ("ConvTranspose", {"pads": [0, 1, 1, 0]}, IMAGE, {"w": random(4, 3, 3, 3)}),
    "ConvTranspose of sequences": ("ConvTranspose", {"strides": [2]}, (2, 4, 7), {"w": random(4, 3, 2)}),
    "Gemm": ("Gemm", {}, (3, 8), {"w": random(8, 5), "b": random(5)}),
    "Gemm, all of it": (
        "Gemm",
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": -2.0},
        (8, 3),
        {"w": random(5, 8), "b": random(3, 5)},
    ),
    "MatMul": ("MatMul", {}, (2, 3, 8), {"w": random(8, 5)}),
    "MaxPool": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}, IMAGE, {}),
    "MaxPool, padded on one side": ("MaxPool", {"kernel_shape": [3, 3], "pads": [0, 0, 2, 1]}, IMAGE, {}),
    "MaxPool, dilated": ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3]}, IMAGE, {}),
    "MaxPool, rounded up": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, IMAGE, {}),
    "MaxPool of sequences": ("MaxPool", {"kernel_shape": [2]}, (2, 4, 7), {}),
    "AveragePool": ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGE, {}),
    "AveragePool, padding counted": (
        "AveragePool",
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        IMAGE,
        {},
    ),
    "AveragePool, padded on one side": ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}, IMAGE, {}),
    "GlobalAveragePool": ("GlobalAveragePool", {}, IMAGE, {}),
    "GlobalMaxPool": ("GlobalMaxPool", {}, IMAGE, {}),
    "Relu": ("Relu", {}, IMAGE, {}),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.3}, IMAGE, {}),
    "PRelu": ("PRelu", {}, IMAGE, {"slope": random(4, 1, 1)}),
    "Elu": ("Elu", {"alpha": 1.5}, IMAGE, {}),
    "Selu, not written in torch": ("Selu", {}, IMAGE, {}),
    "Clip": ("Clip", {}, IMAGE, {"low": F32(-0.5), "high": F32(0.7)}),
    "Clip, from above": ("Clip", {}, IMAGE, {"": None, "high": F32(0.7)}),
    "Clip, not at all": ("Clip", {}, IMAGE, {}),
    "Sigmoid": ("Sigmoid", {}, IMAGE, {}),
    "HardSigmoid": ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, IMAGE, {}),
    "HardSwish": ("HardSwish", {}, IMAGE, {}),
    "Mish": ("Mish", {}, IMAGE, {}),
    "Gelu": ("Gelu", {}, IMAGE, {}),
    "Gelu, by tanh": ("Gelu", {"approximate": "tanh"}, IMAGE, {}),
    "Softplus": ("Softplus", {}, IMAGE, {}),
    "Floor": ("Floor", {}, IMAGE, {}),
    "Softmax": ("Softmax", {"axis": 1}, IMAGE, {}),
    "Add, spread": ("Add", {}, IMAGE, {"c": random(4, 1, 1)}),
    "Sub": ("Sub", {}, IMAGE, {"c": random(1)}),
    "Mul": ("Mul", {}, IMAGE, {"c": random(6)}),
    "Div": ("Div", {}, IMAGE, {"c": positive(6)}),
    "Pow": ("Pow", {}, IMAGE, {"c": F32(2.0)}),
    "Max of three": ("Max", {}, IMAGE, {"c": random(6), "d": random(1)}),
    "Sum of one": ("Sum", {}, IMAGE, {}),
    "ReduceMean": ("ReduceMean", {"keepdims": 0}, IMAGE, {"axes": ints(2, -1)}),
    "ReduceSum, all": ("ReduceSum", {}, IMAGE, {}),
    "ReduceSum, none": ("ReduceSum", {"noop_with_empty_axes": 1}, IMAGE, {}),
    "ReduceMax": ("ReduceMax", {}, IMAGE, {"axes": ints(1, 2)}),
    "ReduceL2": ("ReduceL2", {}, IMAGE, {"axes": ints(-3)}),
    "Flatten": ("Flatten", {"axis": 2}, IMAGE, {}),
    "Flatten, from the end": ("Flatten", {"axis": -1}, IMAGE, {}),
    "Flatten, everything": ("Flatten", {"axis": 0}, IMAGE, {}),
    "Reshape": ("Reshape", {}, IMAGE, {"shape": ints(0, -1, 6)}),
    "Squeeze": ("Squeeze", {}, (2, 1, 3, 1), {"axes": ints(-1)}),
    "Squeeze, all": ("Squeeze", {}, (2, 1, 3, 1), {}),
    "Unsqueeze": ("Unsqueeze", {}, (2, 3), {"axes": ints(-1, 0)}),
    "Transpose": ("Transpose", {"perm": [0, 2, 3, 1]}, IMAGE, {}),
    "Transpose, reversed": ("Transpose", {}, IMAGE, {}),
    "Concat": ("Concat", {"axis": -3}, IMAGE, {"c": random(2, 1, 7, 6)}),
    "Slice": ("Slice", {}, IMAGE, {"s": ints(1, -1), "e": ints(99, -99), "a": ints(1, -1), "t": ints(2, -2)}),
    "Slice, axes left out": ("Slice", {}, IMAGE, {"s": ints(0, 1), "e": ints(-1, 3)}),
    "Gather": ("Gather", {"axis": 1}, IMAGE, {"i": np.array([[0, -1], [2, 2]], np.int64)}),
    "Gather one": ("Gather", {"axis": -1}, IMAGE, {"i": np.array(-2, np.int64)}),
    "Pad": ("Pad", {}, IMAGE, {"pads": ints(0, 0, 1, 2, 0, 1, 0, 3), "v": F32(0.5)}),
    "Pad, some axes": ("Pad", {}, IMAGE, {"pads": ints(1, 2, 0, 1), "": None, "axes": ints(-1, 2)}),
    "Pad, negative": ("Pad", {}, IMAGE, {"pads": ints(0, 0, -1, 0, 0, 0, 0, -2)}),
    "Pad, reflected": ("Pad", {"mode": "reflect"}, IMAGE, {"pads": ints(0, 0, 1, 2, 0, 0, 3, 1)}),
    "Pad, reflected in the channels": ("Pad", {"mode": "reflect"}, IMAGE, {"pads": ints(0, 1, 0, 0, 0, 2, 0, 0)}),
    "Pad, repeated": ("Pad", {"mode": "edge"}, IMAGE, {"pads": ints(0, 0, 1, 2, 0, 0, 3, 1)}),
    "Resize, twice": (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        IMAGE,
        {"": None, "scales": np.array([1, 1, 2, 2], F32)},
    ),
    "Resize, nearest to a size": (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        IMAGE,
        {"": None, " ": None, "sizes": ints(2, 4, 10, 4)},
    ),
    "Resize, linear": ("Resize", {"mode": "linear"}, IMAGE, {"": None, "scales": np.array([1, 1, 2, 1.5], F32)}),
    "Resize, linear, odd factor": (
        "Resize",
        {"mode": "linear"},
        IMAGE,
        {"": None, "scales": np.array([1, 1, 1.3, 2], F32)},
    ),
    "Resize, linear to a size": (
        "Resize",
        {"mode": "linear"},
        IMAGE,
        {"": None, " ": None, "sizes": ints(2, 4, 5, 13)},
    ),
    "Resize, corners aligned": (
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        IMAGE,
        {"": None, " ": None, "sizes": ints(2, 4, 13, 5)},
    ),
    "Resize, cubic": ("Resize", {"mode": "cubic"}, IMAGE, {"": None, "scales": np.array([1, 1, 2, 2], F32)}),
    "LayerNormalization": (
        "LayerNormalization",
        {"axis": -1, "epsilon": 1e-3},
        IMAGE,
        {"s": random(6), "b": random(6)},
    ),
    "LayerNormalization of two axes": ("LayerNormalization", {"axis": 2}, IMAGE, {"s": random(7, 6)}),
    "BatchNormalization": ("BatchNormalization", {"epsilon": 1e-3}, IMAGE, NORM),
    "InstanceNormalization": ("InstanceNormalization", {}, IMAGE, {"s": random(4), "b": random(4)}),
    "Cast": ("Cast", {"to": TensorProto.INT32}, IMAGE, {}),
    "Shape": ("Shape", {"start": 1, "end": -1}, IMAGE, {}),
    "Expand": ("Expand", {}, (2, 1, 1, 6), {"shape": ints(4, 7, 1)}),
    "DepthToSpace": ("DepthToSpace", {"blocksize": 2}, IMAGE, {}),
    "DepthToSpace, columns first": ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, IMAGE, {}),
    "SpaceToDepth": ("SpaceToDepth", {"blocksize": 2}, (2, 3, 4, 6), {}),
    "CumSum, not written in torch": ("CumSum", {"reverse": 1}, IMAGE, {"axis": np.array(2, np.int64)}),
    "Einsum, not written in torch": ("Einsum", {"equation": "nchw,cd->ndhw"}, IMAGE, {"w": random(4, 3)}),
}


def one_node(op, attributes, shape, arrays):
    """A graph of one node, whose output has whatever shape and type it has."""
    kind = {"Cast": TensorProto.INT32, "Shape": TensorProto.INT64}.get(op, TensorProto.FLOAT)
    graph = helper.make_graph(
        [node(op, ["x", *(key.strip() for key in arrays)], ["y"], **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in arrays.items() if value is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def one_operator(name):
    return one_node(*OPERATORS[name]), random(*OPERATORS[name][2], seed=5)


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator_is_what_onnx_runtime_computes(ort_run, name):
    model, x = one_operator(name)
    expected = ort_run(model, {"x": x}, optimize=False)["y"]
    ours = run(model, {"x": x})["y"].numpy()
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    network = Network(model)
    assert network.differentiable == (torch_operator(model.graph.node[0]) is not None)


def test_what_is_not_written_in_torch_ends_gradients():
    for name in ("Selu", "CumSum", "Einsum"):
        model, _ = one_operator(f"{name}, not written in torch")
        assert not Network(model).differentiable
    model, _ = one_operator("Conv")
    assert Network(model).differentiable


def test_a_node_of_another_domain_runs_in_onnx_runtime(ort_run):
    graph = helper.make_graph(
        [node("Relu", ["x"], ["r"]), node("Gelu", ["r"], ["y"], domain="com.microsoft")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    x = random(2, 5)
    np.testing.assert_allclose(run(model, {"x": x})["y"].numpy(), ort_run(model, {"x": x})["y"], atol=1e-6)


def test_several_outputs_some_of_which_nobody_reads(make_onnx, ort_run):
    """Split in torch, TopK in ONNX Runtime, whose second output is of integers."""
    model = make_onnx(
        [
            node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3),
            node("TopK", ["b", "k"], ["top", "places"], axis=1),
            node("Add", ["a", "a"], ["twice"]),
        ],
        {"x": [2, 7, 3]},
        {"top": [2, 2, 3], "places": ([2, 2, 3], TensorProto.INT64), "twice": [2, 3, 3]},
        {"k": ints(2)},
    )
    x = random(2, 7, 3)
    expected, ours = ort_run(model, {"x": x}), run(model, {"x": x})
    assert set(ours) == {"top", "places", "twice"}
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name].numpy(), value)


# Networks.


def two_heads(make_onnx):
    """A residual block whose sum is given out and read on, and an operator that only ONNX Runtime has."""
    return make_onnx(
        [
            node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "w2"], ["c"]),
            node("Add", ["c", "r"], ["features"]),
            node("Selu", ["features"], ["s"]),
            node("GlobalAveragePool", ["s"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w3"], ["y"]),
        ],
        {"x": ["n", 3, 6, 5]},
        {"features": ["n", 8, 6, 5], "y": ["n", 4]},
        {"w1": random(8, 3, 3, 3), "b1": random(8), "w2": random(8, 8, 1, 1), "w3": random(8, 4)},
    )


def test_networks_are_what_onnx_runtime_computes(make_onnx, ort_run, tiny_onnx):
    model, x = two_heads(make_onnx), random(3, 3, 6, 5)
    for name, value in ort_run(model, {"x": x}).items():
        np.testing.assert_allclose(run(model, {"x": x})[name].numpy(), value, rtol=1e-4, atol=1e-5)
    x = random(5, 3, 24, 20)
    expected = ort_run(tiny_onnx, {"input": x})["logits"]
    np.testing.assert_allclose(run(tiny_onnx, {"input": x})["logits"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_traced_module_of_sequences(ort_run):
    """Convolutions of another number of dimensions than two, as the exporter writes them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem, mixer = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv1d(8, 4, 3, padding=1)

    class Sequence(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mixer = stem, mixer

        def forward(self, x):
            return self.mixer(torch.relu(self.stem(x)).flatten(2))

    model = trace(Sequence().eval(), (8, 8))
    x = random(2, 3, 8, 8)
    expected = ort_run(model, {"input": x})["logits"]
    np.testing.assert_allclose(run(model, {"input": x})["logits"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_pieces_are_the_whole_wherever_it_is_cut(make_onnx):
    model = two_heads(make_onnx)
    network, x = Network(model), torch.from_numpy(random(3, 3, 6, 5))
    quantizers = {name: rounder(0.25) for name in ("x", "r", "c", "features", "s", "f")}
    layers = {"c": LayerConstants(torch.from_numpy(random(8, 8, 1, 1, seed=9)), torch.ones(8))}
    with torch.no_grad():
        whole = network.run({"x": x}, layers=layers, quantizers=quantizers)
        assert set(whole) == {"features", "y"}
        for cuts in itertools.combinations(range(1, len(network.steps)), 2):
            values = {"x": x}
            for start, stop in itertools.pairwise([0, *cuts, None]):
                values = network.run(values, start, stop, layers, quantizers)
            for name in ("features", "y"):
                assert torch.equal(values[name], whole[name]), (cuts, name)
        first = network.run({"x": x}, 0, 3)
        assert set(first) == {"r", "c"}, "only what later nodes read"


def test_what_is_kept_is_returned_as_its_readers_see_it(make_onnx):
    model, x = two_heads(make_onnx), random(2, 3, 6, 5)
    plain = run(model, {"x": x}, keep=("x", "a", "r"))
    assert set(plain) == {"x", "a", "r", "features", "y"}
    rounded = run(model, {"x": x}, keep=("x", "a", "r"), quantizers={"x": rounder(0.5), "r": rounder(0.5)})
    np.testing.assert_array_equal(rounded["x"].numpy(), np.round(x * 2) / 2)
    np.testing.assert_array_equal(rounded["r"].numpy(), np.round(np.maximum(rounded["a"].numpy(), 0) * 2) / 2)
    assert not np.array_equal(plain["a"].numpy(), rounded["a"].numpy())


def test_quantizers_stand_where_a_quantize_and_dequantize_pair_would(make_onnx, ort_run):
    """All readers see the rounded tensor, and what the graph gives out stays as it was."""
    model, x = two_heads(make_onnx), random(2, 3, 6, 5)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    del rounded.graph.node[:]
    for step in model.graph.node:
        step = onnx.NodeProto.FromString(step.SerializeToString())
        for i, name in enumerate(step.input):
            if name in ("x", "r", "features"):
                step.input[i] = f"{name}_rounded"
        rounded.graph.node.append(step)
        for name in step.output:
            if name in ("r", "features"):
                rounded.graph.node.extend(pair_of(name))
    for i, extra in enumerate(pair_of("x")):
        rounded.graph.node.insert(i, extra)
    rounded.graph.initializer.append(numpy_helper.from_array(F32(0.125), "step"))
    rounded.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    expected = ort_run(rounded, {"x": x}, optimize=False)

    def quantizer(v):
        return torch.clamp(torch.round(v / 0.125), -128, 127) * 0.125

    ours = run(model, {"x": x}, quantizers=dict.fromkeys(("x", "r", "features"), quantizer))
    for name in ("features", "y"):
        np.testing.assert_allclose(ours[name].numpy(), expected[name], rtol=1e-3, atol=1e-4)
    # Float: nothing of the output itself lies on the grid.
    assert (np.abs(ours["features"].numpy() / 0.125 - np.rint(ours["features"].numpy() / 0.125)) > 1e-3).any()


def pair_of(name):
    return [
        node("QuantizeLinear", [name, "step", "zero"], [f"{name}_codes"]),
        node("DequantizeLinear", [f"{name}_codes", "step", "zero"], [f"{name}_rounded"]),
    ]


@pytest.mark.parametrize(
    "name",
    ["Conv", "Conv, in groups, no bias", "Conv, padding left to the runtime", "Gemm", "MatMul", "ConvTranspose",
     "ConvTranspose, padded on one side", "Conv of volumes", "Conv of sequences, kernel given"],
)  # fmt: skip
@pytest.mark.parametrize("with_bias", [True, False])
def test_layers_compute_with_what_replaces_their_constants(ort_run, name, with_bias):
    """Also where the node has no bias, or none any more, and where ONNX Runtime computes it."""
    op, attributes, shape, arrays = OPERATORS[name]
    with_bias = with_bias and op != "MatMul"  # which takes none
    model, x = one_operator(name)
    weight = random(*arrays["w"].shape, seed=7)
    axis = {"Conv": 0, "Gemm": 1, "ConvTranspose": 1, "MatMul": 1}[op]
    bias = random(weight.shape[axis], seed=8) if with_bias else None
    replaced = one_node(op, attributes, shape, {"w": weight, **({"b": bias} if with_bias else {})})
    expected = ort_run(replaced, {"x": x}, optimize=False)["y"]
    constants = LayerConstants(torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias))
    network = Network(model)
    with torch.no_grad():
        for _ in range(2):
            ours = network.run({"x": torch.from_numpy(x)}, layers={"y": constants})["y"].numpy()
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
        before = network.run({"x": torch.from_numpy(x)})["y"].numpy()
    np.testing.assert_allclose(before, ort_run(model, {"x": x}, optimize=False)["y"], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences(make_onnx):
    """In float64, where a difference is exact enough to tell."""
    model = two_heads(make_onnx)
    for step in model.graph.node:
        if step.op_type == "Selu":
            step.op_type = "Sigmoid"
    network = Network(model)
    assert network.differentiable
    network.constants = {name: value.double() for name, value in network.constants.items()}
    x = torch.from_numpy(random(2, 3, 6, 5)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: network.run({"x": v})["y"], x)


def test_the_graph_stays_as_it_was(make_onnx):
    model = two_heads(make_onnx)
    before = model.SerializeToString()
    layers = {"c": LayerConstants(torch.zeros(8, 8, 1, 1), torch.zeros(8))}
    run(model, {"x": random(2, 3, 6, 5)}, layers=layers, quantizers={"r": rounder(0.5)})
    assert model.SerializeToString() == before
