"""What is never negative, spread over all 256 codes of symmetric int8."""

import numpy as np
import onnx
import pytest
from onnx import helper

from calib import TensorRange
from export.quantize.centre import centre, centred_tensors, drop_needless_clips, tensor_params
from export.quantize.exempt import DEPTHWISE, exempt, exempt_layers, reveal
from export.quantize.qdq import insert_qdq


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ARRAYS = {"w1": random(8, 3, 1, 1), "b1": random(8), "w2": random(6, 8, 1, 1, seed=1), "b2": random(6, seed=2)}


def network(make_onnx, activation="Relu", second=None, outputs=("y",), tail=True):
    """Conv, activation, Conv without padding, and something that is never quantized."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node(activation, ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], **(second or {})),
        helper.make_node("Neg" if tail else "Relu", ["c"], ["y"]),
    ]
    if not tail:
        nodes.append(helper.make_node("Conv", ["y", "w3"], ["z"]))
    shapes = {"y": ["n", 6, "h", "w"], "r": ["n", 8, "h", "w"], "z": ["n", 2, "h", "w"]}
    arrays = ARRAYS | ({} if tail else {"w3": random(2, 6, 1, 1)})
    model = make_onnx(nodes, {"x": ["n", 3, 5, 4]}, {name: shapes[name] for name in outputs}, arrays)
    return onnx.shape_inference.infer_shapes(model)


def ranges_of(model, x, ort_run):
    from export.onnx_graph import serialized_with_outputs

    seen = {"x": x} | ort_run(serialized_with_outputs(model, ["r"]), {"x": x})
    found = {}
    for name in ("x", "r"):
        low, high = min(float(seen[name].min()), 0.0), float(seen[name].max())
        found[name] = TensorRange(low, high, max(-low, high), (low, high))
    return found


def test_where_nothing_negative_is_read_without_padding(make_onnx):
    assert centred_tensors(network(make_onnx), "trt") == {"r"}
    assert centred_tensors(network(make_onnx), "cpu") == frozenset()


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "LeakyRelu"},
        {"activation": "Tanh"},
        {"second": {"pads": [1, 1, 1, 1]}},
        {"second": {"auto_pad": "SAME_UPPER"}},
        {"outputs": ("y", "r")},
        {"tail": False, "outputs": ("z",)},
    ],
    ids=str,
)
def test_where_it_would_be_wrong(make_onnx, change):
    """Negative values, zeros of padding, what the graph gives out, and what ONNX Runtime rounds the bias of."""
    assert "r" not in centred_tensors(network(make_onnx, **change), "trt")


def test_the_float_network_computes_the_same(make_onnx, ort_run):
    model, x = network(make_onnx), random(4, 3, 5, 4, seed=3)
    ranges = ranges_of(model, x, ort_run)
    moved, new, _ = centre(model, ["r"], ranges, {}, "trt")
    np.testing.assert_allclose(ort_run(moved, {"x": x})["y"], ort_run(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in moved.graph.node] == ["Conv", "Clip", "Conv", "Neg"]
    step = float(tensor_params(ranges["r"], "trt", centred=True).scale)
    assert step == pytest.approx(ranges["r"].maximum / 255, rel=2**-10)
    assert new["r"].symmetric == 127 * step
    assert new["r"].minimum == -128 * step


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_where_no_bias_can_take_the_constant_an_operator_does(make_onnx, ort_run, activation):
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node(activation, ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c"]),
        helper.make_node("Conv", ["r", "w2b", "b2"], ["d"]),
        helper.make_node("Concat", ["c", "d"], ["y"], axis=1),
    ]
    arrays = {name: ARRAYS[name] for name in ("w1", "w2", "b2")} | {"w2b": random(6, 8, 1, 1, seed=7)}
    model = make_onnx(nodes, {"x": ["n", 3, 5, 4]}, {"y": ["n", 12, 5, 4]}, arrays)
    model = onnx.shape_inference.infer_shapes(model)
    x = random(4, 3, 5, 4, seed=3)
    assert centred_tensors(model, "trt") == {"r"}
    moved, _, _ = centre(model, ["r"], ranges_of(model, x, ort_run), {}, "trt")
    assert [node.op_type for node in moved.graph.node] == ["Conv", activation, "Add", "Conv", "Conv", "Concat"]
    np.testing.assert_allclose(ort_run(moved, {"x": x})["y"], ort_run(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)


def test_biases_that_float16_would_not_hold_are_not_made(make_onnx, ort_run):
    model, x = network(make_onnx), 1e4 * random(4, 3, 5, 4, seed=3)
    ranges = ranges_of(model, x, ort_run)
    moved, new, layers = centre(model, ["r"], ranges, {}, "trt")
    assert [node.op_type for node in moved.graph.node] == ["Conv", "Relu", "Conv", "Neg"]
    assert (new, layers) == (ranges, {})


def test_twice_the_resolution_and_no_activation(make_onnx, ort_run):
    model, x = network(make_onnx), random(16, 3, 5, 4, seed=3)
    ranges = ranges_of(model, x, ort_run)
    right = ort_run(model, {"x": x})["y"]
    moved, new, _ = centre(model, ["r"], ranges, {}, "trt")
    plain = insert_qdq(model, ranges, "trt")
    kept = insert_qdq(moved, new, "trt")
    before = ort_run(kept, {"x": x}, optimize=False)["y"]
    ours = drop_needless_clips(kept)
    assert [node.op_type for node in ours.graph.node].count("Clip") == 0
    np.testing.assert_array_equal(ort_run(ours, {"x": x}, optimize=False)["y"], before)

    def activation_error(model):
        """Of the rounded activation alone: its codes times the step, and what was taken from it added."""
        from export.onnx_graph import serialized_with_outputs

        shift = 0.0 if model is plain else 128 * new["r"].symmetric / 127
        seen = (
            ort_run(serialized_with_outputs(model, ["r_dequantized"]), {"x": x}, optimize=False)["r_dequantized"]
            + shift
        )
        base = ort_run(serialized_with_outputs(plain, ["r"]), {"x": x}, optimize=False)["r"]
        return float(np.square(seen - base).mean())

    assert activation_error(ours) < 0.35 * activation_error(plain)
    assert np.isfinite(right).all()


def test_a_clip_that_does_something_stays(make_onnx):
    bound = {"low": np.array(-1.0, np.float32)}
    nodes = [
        helper.make_node("Clip", ["x", "low"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    for scale, stays in ((1.0 / 128, False), (1.0 / 127, True), (1.0 / 64, True)):
        arrays = bound | {"s": np.array(scale, np.float32), "z": np.array(0, np.int8)}
        model = drop_needless_clips(make_onnx(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, arrays))
        assert ("Clip" in [node.op_type for node in model.graph.node]) == stays


# Layers that a scheme leaves out.


def depthwise(make_onnx):
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Conv", ["a", "w2"], ["d"], group=8),
        helper.make_node("Conv", ["d", "w3"], ["y"]),
    ]
    arrays = {"w1": ARRAYS["w1"], "b1": ARRAYS["b1"], "w2": random(8, 1, 1, 1), "w3": random(2, 8, 1, 1)}
    return make_onnx(nodes, {"x": ["n", 3, 5, 4]}, {"y": ["n", 2, 5, 4]}, arrays)


def test_depthwise_layers_stay_float_for_tensorrt(make_onnx, ort_run):
    model = depthwise(make_onnx)
    assert exempt_layers(model, "trt") == {"d": DEPTHWISE}
    assert exempt_layers(model, "cpu") == {}
    hidden = exempt(model, ["d"])
    whole = TensorRange(-9.0, 9.0, 9.0, (-9.0, 9.0))
    quantized = insert_qdq(hidden, {"x": whole, "a": whole, "d": whole}, "trt")
    assert not [n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "a"]
    shown = reveal(quantized)
    assert "Identity" not in [node.op_type for node in shown.graph.node]
    (layer,) = [node for node in shown.graph.node if node.output[0] == "d"]
    assert list(layer.input) == ["a", "w2"]
    x = random(2, 3, 5, 4)
    assert ort_run(reveal(hidden), {"x": x})["y"] == pytest.approx(ort_run(model, {"x": x})["y"], abs=1e-6)
    assert exempt(model, []) is model
