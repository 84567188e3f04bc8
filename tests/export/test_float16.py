"""Converting a graph to float16: every tensor inside, none at its ends."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.float16 import to_float16

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def types_of(model):
    """Element type of every tensor of a graph, after shape inference that refuses what does not fit."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    graph = inferred.graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)} | {
        t.name: t.data_type for t in graph.initializer
    }


def test_everything_inside_is_float16_and_the_ends_are_float32(tiny_onnx):
    before = tiny_onnx.SerializeToString(deterministic=True)
    half = to_float16(tiny_onnx)
    types = types_of(half)
    assert len(types) > 15
    assert {name for name, kind in types.items() if kind == FLOAT} == {"input", "logits"}
    assert {kind for name, kind in types.items() if name not in ("input", "logits")} == {HALF}
    assert tiny_onnx.SerializeToString(deterministic=True) == before


def test_answers_are_those_of_float32_to_half_precision(tiny_onnx, ort_run):
    x = np.random.default_rng(0).standard_normal((5, 3, 24, 20)).astype(np.float32)
    full = ort_run(tiny_onnx, {"input": x})["logits"]
    half = ort_run(to_float16(tiny_onnx), {"input": x})["logits"]
    assert half.dtype == np.float32
    assert 0 < np.linalg.norm(half - full) <= 3e-3 * np.linalg.norm(full)


def test_weights_are_rounded_to_nearest(tiny_onnx):
    full = {t.name: numpy_helper.to_array(t) for t in tiny_onnx.graph.initializer}
    for tensor in to_float16(tiny_onnx).graph.initializer:
        if tensor.data_type == HALF:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), full[tensor.name].astype(np.float16))


@pytest.mark.parametrize("value", [7e4, -1e20, np.inf])
@pytest.mark.parametrize("as_node", [False, True])
def test_what_does_not_fit_is_refused_by_name(make_onnx, value, as_node):
    big = np.array([1.0, value], np.float32)
    constant = [helper.make_node("Constant", [], ["big.weight"], value=numpy_helper.from_array(big))]
    model = make_onnx(
        [*(constant if as_node else []), helper.make_node("Mul", ["x", "big.weight"], ["y"])],
        {"x": [2]},
        {"y": [2]},
        {} if as_node else {"big.weight": big},
    )
    with pytest.raises(ExportError, match=r"^'big\.weight' holds .*65504.*without --fp16"):
        to_float16(model)


def test_the_largest_half_fits(make_onnx, ort_run):
    model = make_onnx([helper.make_node("Mul", ["x", "c"], ["y"])], {"x": [1]}, {"y": [1]}, {"c": np.float32(65504)})
    assert ort_run(to_float16(model), {"x": np.ones(1, np.float32)})["y"] == 65504


@pytest.mark.parametrize("as_node", [False, True])
def test_scales_of_resize_stay_float32(make_onnx, ort_run, as_node):
    scales = np.array([1, 1, 2, 2], np.float32)
    constant = [helper.make_node("Constant", [], ["scales"], value=numpy_helper.from_array(scales))]
    model = make_onnx(
        [*(constant if as_node else []), helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")],
        {"x": [1, 1, 2, 2]},
        {"y": [1, 1, 4, 4]},
        {} if as_node else {"scales": scales},
    )
    half = to_float16(model)
    assert types_of(half)["scales"] == FLOAT
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(ort_run(half, {"x": x})["y"], x.repeat(2, 2).repeat(2, 3))


def test_casts_and_made_constants_follow(make_onnx, ort_run):
    model = make_onnx(
        [
            helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["twos"], value=helper.make_tensor("value", FLOAT, [1], [2.0])),
            helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
            helper.make_node("Sum", ["x", "f", "twos", "zeros"], ["y"]),
        ],
        {"x": [3], "i": ([3], TensorProto.INT32)},
        {"y": [3]},
    )
    half = to_float16(model)
    assert {n for n, kind in types_of(half).items() if kind == FLOAT} == {"x", "y"}
    out = ort_run(half, {"x": np.ones(3, np.float32), "i": np.arange(3, dtype=np.int32)})["y"]
    np.testing.assert_array_equal(out, [3, 4, 5])


def test_integers_stay(make_onnx):
    model = make_onnx(
        [helper.make_node("Gather", ["x", "i"], ["y"])],
        {"x": [4]},
        {"y": [2]},
        {"i": np.array([1, 3], np.int64)},
    )
    assert types_of(to_float16(model))["i"] == TensorProto.INT64


def test_an_output_that_is_read_inside_too(make_onnx, ort_run):
    model = make_onnx(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["b"])],
        {"x": [2]},
        {"a": [2], "b": [2]},
    )
    half = to_float16(model)
    assert {n for n, kind in types_of(half).items() if kind == FLOAT} == {"x", "a", "b"}
    out = ort_run(half, {"x": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal([out["a"], out["b"]], [[0, 2], [0, -2]])


def test_converting_twice_changes_nothing_inside(tiny_onnx, ort_run):
    x = np.random.default_rng(0).standard_normal((2, 3, 24, 20)).astype(np.float32)
    once = to_float16(tiny_onnx)
    np.testing.assert_array_equal(
        ort_run(to_float16(once), {"input": x}, optimize=False)["logits"],
        ort_run(once, {"input": x}, optimize=False)["logits"],
    )
