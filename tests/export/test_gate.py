"""The static check for TensorRT 10: one minimal graph for each limit, and graphs that keep all of them."""

import json
import re
from importlib import resources

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import UnsupportedOperatorError
from export.gate import check_tensorrt10, tensorrt10_problems

I64 = TensorProto.INT64
# Written out here from the facts about TensorRT 10's parser, independently of the packaged table.
FLOATS = ["FP32", "FP16", "BF16"]
OPERATORS_OF_FLOATS = ("Conv", "ConvTranspose", "Gemm", "Relu", "Sigmoid", "Softmax", "GlobalAveragePool")


def test_the_table_holds_the_facts():
    table = json.loads((resources.files("export") / "tensorrt10_operators.json").read_text())
    assert table["opset"] == [9, 20]
    operators = table["operators"]
    assert len(operators) == 150
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    # Those that the table has beside ONNX's own are the parser's plug-ins and what was dropped from the standard.
    assert len(set(operators) & known) >= 140
    assert {"NonMaxSuppression", "QuantizeLinear", "DequantizeLinear", "Resize", "TopK"} <= set(operators)
    assert not {"QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"} & set(operators)
    allowed = {"FP32", "FP16", "BF16", "INT32", "INT64", "INT8", "INT4", "FP8", "BOOL", "UINT8"}
    assert all(types and set(types) <= allowed for types in operators.values())
    for name in OPERATORS_OF_FLOATS:
        assert [t for t in operators[name] if t in FLOATS] == FLOATS


@pytest.mark.parametrize("variant", ["", ".fp16", ".int8.trt"])
def test_our_graphs_for_tensorrt_pass(tiny_bundle, variant):
    model = onnx.load(tiny_bundle / f"model{variant}.onnx")
    assert tensorrt10_problems(model) == []
    check_tensorrt10(model, "model.onnx")


def test_the_cpu_scheme_does_not(tiny_bundle):
    problems = tensorrt10_problems(onnx.load(tiny_bundle / "model.int8.cpu.onnx"))
    assert any("zero point other than int8 0" in p for p in problems)


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=f"the_{op}", **attributes)


X4 = {"x": [1, 2, 8, 8]}
CASES = {
    "unknown operator": (
        (
            [node("BitShift", ["x", "x"], direction="LEFT")],
            {"x": ([2], TensorProto.UINT32)},
            {"y": ([2], TensorProto.UINT32)},
        ),
        {},
        "^BitShift 'the_BitShift' is an operator that it does not have$",
    ),
    "float64": (
        ([node("Relu", ["x"])], {"x": ([2], TensorProto.DOUBLE)}, {"y": ([2], TensorProto.DOUBLE)}),
        {},
        "Relu 'the_Relu' takes DOUBLE here, and it only has FP32",
    ),
    "uint8 arithmetic": (
        (
            [node("Cast", ["x"], ["a"], to=TensorProto.UINT8), node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)],
            {"x": [2]},
            {"y": [2]},
        ),
        {},
        "Cast 'the_Cast' has the uint8 tensor 'a', which only a Cast at the network's ends may",
    ),
    "uint8 input that is not cast": (
        ([node("Transpose", ["x"])], {"x": ([2, 3], TensorProto.UINT8)}, {"y": ([3, 2], TensorProto.UINT8)}),
        {},
        "Transpose 'the_Transpose' has the uint8 tensor 'x'",
    ),
    "uint8 zero point": (
        (
            [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"])],
            {"x": [2]},
            {"y": [2]},
        ),
        {"s": np.float32(0.1), "z": np.uint8(0)},
        "QuantizeLinear 'the_QuantizeLinear' has a zero point other than int8 0",
    ),
    "int8 zero point of 3": (
        (
            [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"])],
            {"x": [2]},
            {"y": [2]},
        ),
        {"s": np.float32(0.1), "z": np.int8(3)},
        "DequantizeLinear 'the_DequantizeLinear' has a zero point other than int8 0",
    ),
    "no zero point, which means uint8": (
        ([node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"])], {"x": [2]}, {"y": [2]}),
        {"s": np.float32(0.1)},
        "QuantizeLinear 'the_QuantizeLinear' has the uint8 tensor 'q'",
    ),
    "computed zero point": (
        (
            [
                node("Cast", ["x"], ["z"], to=TensorProto.INT8),
                node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
                node("DequantizeLinear", ["q", "s", "z"], axis=0),
            ],
            {"x": [2]},
            {"y": [2]},
        ),
        {"s": np.full(2, 0.1, np.float32)},
        "QuantizeLinear 'the_QuantizeLinear' has a zero point other than int8 0",
    ),
    "cubic resize": (
        ([node("Resize", ["x", "", "s"], mode="cubic")], X4, {"y": [1, 2, 16, 16]}),
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "Resize 'the_Resize' resizes by cubic, it only has nearest and linear",
    ),
    "antialiased resize": (
        ([node("Resize", ["x", "", "s"], mode="linear", antialias=1)], X4, {"y": [1, 2, 4, 4]}),
        {"s": np.array([1, 1, 0.5, 0.5], np.float32)},
        "Resize 'the_Resize' resizes with antialiasing",
    ),
    "unsorted top k": (
        ([node("TopK", ["x", "k"], ["y", "i"], sorted=0)], {"x": [9]}, {"y": [3], "i": ([3], I64)}),
        {"k": np.array([3], np.int64)},
        "TopK 'the_TopK' is not sorted",
    ),
    "top 3840": (
        ([node("TopK", ["x", "k"], ["y", "i"])], {"x": [5000]}, {"y": [3840], "i": ([3840], I64)}),
        {"k": np.array([3840], np.int64)},
        "TopK 'the_TopK' takes the top 3840, it takes fewer than 3840",
    ),
    "dilated pooling": (
        ([node("MaxPool", ["x"], kernel_shape=[2, 2], dilations=[2, 2])], X4, {"y": [1, 2, 6, 6]}),
        {},
        "MaxPool 'the_MaxPool' is a dilated pooling",
    ),
    "dilated average pooling": (
        ([node("AveragePool", ["x"], kernel_shape=[2, 2], dilations=[1, 2])], X4, {"y": [1, 2, 7, 6]}),
        {},
        "AveragePool 'the_AveragePool' is a dilated pooling",
    ),
    "indices of maxima": (
        (
            [node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])],
            X4,
            {"y": [1, 2, 7, 7], "i": ([1, 2, 7, 7], I64)},
        ),
        {},
        "MaxPool 'the_MaxPool' gives the indices of the maxima",
    ),
    "computed axes of a reduction": (
        ([node("ReduceSum", ["x", "axes"])], {"x": [2, 3], "axes": ([1], I64)}, {"y": ["a", "b"]}),
        {},
        "ReduceSum 'the_ReduceSum' computes its input 1 .'axes'., which must be constant",
    ),
    "computed axes of a sum of squares": (
        ([node("ReduceSumSquare", ["x", "axes"])], {"x": [2, 3], "axes": ([1], I64)}, {"y": ["a", "b"]}),
        {},
        "ReduceSumSquare 'the_ReduceSumSquare' computes its input 1",
    ),
    "computed axes of Unsqueeze": (
        ([node("Unsqueeze", ["x", "axes"])], {"x": [2], "axes": ([1], I64)}, {"y": ["a", "b"]}),
        {},
        "Unsqueeze 'the_Unsqueeze' computes its input 1",
    ),
    "computed axes of Squeeze": (
        ([node("Squeeze", ["x", "axes"])], {"x": [1, 2], "axes": ([1], I64)}, {"y": ["a"]}),
        {},
        "Squeeze 'the_Squeeze' computes its input 1",
    ),
    "computed axes of Slice": (
        ([node("Slice", ["x", "a", "b", "axes"])], {"x": [5], "axes": ([1], I64)}, {"y": ["a"]}),
        {"a": np.array([1], np.int64), "b": np.array([3], np.int64)},
        "Slice 'the_Slice' computes its input 3",
    ),
    "computed axes of Pad": (
        ([node("Pad", ["x", "p", "", "axes"])], {"x": [5], "axes": ([1], I64)}, {"y": ["a"]}),
        {"p": np.array([1, 1], np.int64)},
        "Pad 'the_Pad' computes its input 3",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_limit_is_found_and_the_node_is_named(make_onnx, name):
    (nodes, inputs, outputs), constants, expected = CASES[name]
    model = make_onnx(nodes, inputs, outputs, constants)
    problems = tensorrt10_problems(model)
    assert any(re.search(expected, p) for p in problems), problems
    assert all("\n" not in p for p in problems)
    with pytest.raises(UnsupportedOperatorError, match=r"^m\.onnx would not open on TensorRT 10 \(JetPack 6\): "):
        check_tensorrt10(model, "m.onnx")


def _clean(make_onnx):
    return make_onnx(
        [
            node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], dilations=[1, 1]),
            node("Resize", ["m", "", "scales"], ["big"], mode="linear"),
            node("ReduceMean", ["big", "axes"], ["mean"], keepdims=0),
            node("TopK", ["mean", "k"], ["top", "i"]),
            node("Cast", ["top"], ["mask"], to=TensorProto.UINT8),
        ],
        {"image": (["batch", 3, 8, 8], TensorProto.UINT8)},
        {"mask": (["batch", 2], TensorProto.UINT8), "i": (["batch", 2], I64)},
        {
            "w": np.ones((4, 3, 3, 3), np.float32),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "axes": np.array([2, 3], np.int64),
            "k": np.array([2], np.int64),
        },
    )


def test_a_graph_that_keeps_every_limit_passes(make_onnx):
    """Among them: uint8 as an input and as an output, cast at once."""
    assert tensorrt10_problems(_clean(make_onnx)) == []


def test_computed_starts_and_sizes_are_not_axes(make_onnx):
    model = make_onnx(
        [node("Slice", ["x", "a", "b", "axes"])],
        {"x": [5], "a": ([1], I64), "b": ([1], I64)},
        {"y": ["a"]},
        {"axes": np.array([0], np.int64)},
    )
    assert tensorrt10_problems(model) == []


def test_axes_in_a_constant_node_are_constant(make_onnx):
    axes = helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([1], np.int64)))
    model = make_onnx([axes, node("ReduceSum", ["x", "axes"])], {"x": [2, 3]}, {"y": [2, 1]})
    assert tensorrt10_problems(model) == []


@pytest.mark.parametrize(("opset", "passes"), [(9, True), (13, True), (20, True), (8, False), (21, False), (23, False)])
def test_opsets(make_onnx, opset, passes):
    model = make_onnx([node("Relu", ["x"])], {"x": [2]}, {"y": [2]})
    model.opset_import[0].version = opset
    problems = tensorrt10_problems(model)
    assert problems == ([] if passes else [f"the graph is of opset {opset}, TensorRT 10 takes 9 to 20"])


def test_other_operator_sets(make_onnx):
    model = make_onnx([node("Relu", ["x"])], {"x": [2]}, {"y": [2]})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (problem,) = tensorrt10_problems(model)
    assert "'com.microsoft'" in problem


def test_a_node_of_another_domain_that_is_called_like_one_of_onnx(make_onnx):
    model = make_onnx([node("Relu", ["x"])], {"x": [2]}, {"y": [2]})
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].domain = "mine"
    assert tensorrt10_problems(model)


def test_subgraphs_are_refused_rather_than_trusted(make_onnx):
    def branch(op):
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [2])
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_out"])], op, [], [out])

    nodes = [node("If", ["c"], then_branch=branch("Relu"), else_branch=branch("Hardmax"))]
    model = make_onnx(nodes, {"c": ([], TensorProto.BOOL), "x": [2]}, {"y": [2]})
    assert any("If 'the_If' holds a graph of its own" in p for p in tensorrt10_problems(model))


def test_the_error_counts_the_others(make_onnx):
    model = make_onnx(
        [
            node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], dilations=[2, 2]),
            node("MaxPool", ["x"], ["b", "i"], kernel_shape=[2, 2]),
        ],
        X4,
        {"a": [1, 2, 6, 6], "b": [1, 2, 7, 7], "i": ([1, 2, 7, 7], I64)},
    )
    with pytest.raises(UnsupportedOperatorError, match=r"dilated pooling.*, and 1 more$"):
        check_tensorrt10(model, "m.onnx")
