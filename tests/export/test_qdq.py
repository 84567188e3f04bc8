"""Q/DQ insertion against fake quantization written here in numpy and torch, which knows nothing of ours."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from calib import TensorRange, make_observer
from export.errors import QuantizationError
from export.onnx_graph import GraphIndex, serialized_with_outputs
from export.quantize import insert_qdq, quantize, tensors_to_observe
from export.quantize.layers import quantized_tensors
from export.quantize.qdq import activation_params, quantize_weight
from runtime.backends import open_session

SCHEMES = ("cpu", "trt")
magnitudes = st.floats(2.0**-60, 2.0**60, allow_subnormal=False)


# The reference: what a quantizer is, in float64.


def fake(x, scale, zero_point, low, high):
    codes = np.clip(np.rint(x.astype(np.float64) / scale) + zero_point, low, high)
    return (codes - zero_point) * scale


def half_up(scale):
    """The next float16 that is no smaller, by looking at all of them."""
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return halves[np.searchsorted(halves, scale)]


def fake_activation(x, seen, scheme):
    if scheme == "trt":
        scale = half_up(np.float32(np.abs(seen).max() / 127))
        return fake(x, scale, 0, -128, 127)
    low, high = min(seen.min(), 0.0), max(seen.max(), 0.0)
    scale = np.float64(np.float32((float(high) - float(low)) / 255))
    return fake(x, scale, np.rint(-low / scale), 0, 255)


def weight_scales(w, axis, scheme):
    scale = np.abs(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)).max(1).astype(np.float64) / 127
    scale = np.where(scale > 0, scale, 1.0)
    return half_up(scale.astype(np.float32)) if scheme == "trt" else scale


def fake_weight(w, axis, scheme):
    shape = [1] * w.ndim
    shape[axis] = -1
    return fake(w, weight_scales(w, axis, scheme).reshape(shape), 0, -127, 127)


def fake_bias(b, seen, w, axis, scheme):
    if scheme == "trt":
        return b.astype(np.float64)
    step = np.float64(np.float32((max(seen.max(), 0.0) - min(seen.min(), 0.0)) / 255)) * weight_scales(w, axis, "cpu")
    return np.rint(b / step) * step


# Helpers.


def minmax(model, feeds, ort_run):
    """Ranges of every tensor that is quantized, from one run."""
    names = tensors_to_observe(model)
    seen = ort_run(serialized_with_outputs(model, names), feeds) | feeds
    ranges = {}
    for name in names:
        observer = make_observer("minmax", name)
        observer.observe(seen[name])
        ranges[name] = observer.ranges()
    return ranges, seen


def constants(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def ends_float(model):
    """A graph's input and output types."""
    return {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# Parameters from ranges.


@given(st.floats(0, 1e30), st.floats(0, 1e30), magnitudes)
def test_uint8_represents_zero_and_covers_the_range(below, above, size):
    low, high = -below * size / 1e30, above * size / 1e30
    if not low < high or high - low < 2.0**-100:
        return
    params = activation_params(TensorRange(low, high, max(-low, high), (low, high)), "cpu")
    scale, zero_point = np.float64(params.scale), int(params.zero_point)
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == np.uint8
    assert fake(np.zeros(1), scale, zero_point, 0, 255)[0] == 0
    step = scale * (0.5 + 1e-4)
    assert (0 - zero_point) * scale <= low + step
    assert (255 - zero_point) * scale >= high - step


@given(st.floats(2.0**-90, 1e6))
def test_int8_is_symmetric_never_clips_and_float16_holds_its_scale(largest):
    params = activation_params(TensorRange(-largest, largest, largest, (-largest, largest)), "trt")
    assert params.zero_point.dtype == np.int8
    assert params.zero_point == 0
    scale = np.float32(params.scale)
    assert np.float32(np.float16(scale)) == scale > 0
    assert 127 * np.float64(scale) >= np.float32(largest / 127) * 127 * (1 - 1e-7)
    # The smallest such: half of the next step up at most is wasted.
    assert scale == half_up(np.float32(largest / 127))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(
    weight=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-(2.0**12), 2.0**12, width=32)
    ),
    axis=st.integers(0, 1),
)
def test_weights_come_back_within_half_a_step(scheme, weight, axis):
    params = quantize_weight(weight, axis, scheme)
    assert params.scale.shape == params.zero_point.shape == (weight.shape[axis],)
    assert not params.zero_point.any()
    assert (params.scale > 0).all()
    if scheme == "trt":
        np.testing.assert_array_equal(params.scale, params.scale.astype(np.float16).astype(np.float32))
    scale = params.scale.reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float64)
    back = fake(weight, scale, 0, -127, 127)
    # float32 has few bits left where numbers are subnormal.
    assert (np.abs(back - weight) <= scale / 2 * (1 + 1e-4) + 2.0**-140).all()
    assert (back[weight == 0] == 0).all()


# One layer at a time.


def conv(x, w, b, **kwargs):
    return F.conv2d(torch.tensor(x), torch.tensor(w), None if b is None else torch.tensor(b), **kwargs).numpy()


def conv_transpose(x, w, b):
    return F.conv_transpose2d(torch.tensor(x), torch.tensor(w), torch.tensor(b), stride=2).numpy()


LAYERS = {
    # op, attributes, shape of x, of w, of b, axis of the output channels, what it computes
    "conv": ("Conv", {}, (2, 3, 6, 5), (4, 3, 3, 3), (4,), 0, conv),
    "conv without bias": ("Conv", {}, (2, 3, 6, 5), (4, 3, 3, 3), None, 0, conv),
    "strided, padded conv": (
        "Conv",
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        (2, 3, 6, 5),
        (4, 3, 3, 3),
        (4,),
        0,
        lambda x, w, b: conv(x, w, b, stride=2, padding=1),
    ),
    "depthwise conv": (
        "Conv",
        {"group": 4},
        (2, 4, 6, 5),
        (4, 1, 3, 3),
        (4,),
        0,
        lambda x, w, b: conv(x, w, b, groups=4),
    ),
    "grouped conv": (
        "Conv",
        {"group": 2},
        (2, 4, 6, 5),
        (6, 2, 3, 3),
        (6,),
        0,
        lambda x, w, b: conv(x, w, b, groups=2),
    ),
    "Gemm": ("Gemm", {}, (3, 8), (8, 5), (5,), 1, lambda x, w, b: x @ w + b),
    "Gemm, transposed": ("Gemm", {"transB": 1}, (3, 8), (5, 8), (5,), 0, lambda x, w, b: x @ w.T + b),
    "Gemm without bias": ("Gemm", {"transB": 1}, (3, 8), (5, 8), None, 0, lambda x, w, b: x @ w.T),
    "MatMul": ("MatMul", {}, (3, 8), (8, 5), None, 1, lambda x, w, b: x @ w),
    "MatMul on a sequence": ("MatMul", {}, (2, 3, 8), (8, 5), None, 1, lambda x, w, b: x @ w),
    "ConvTranspose": ("ConvTranspose", {"strides": [2, 2]}, (2, 3, 4, 5), (3, 4, 2, 2), (4,), 1, conv_transpose),
}


def layer_graph(make_onnx, name, bias_scale=1.0):
    """input → layer → Neg, which is never quantized, so that the layer's own result is inside the graph."""
    op, attributes, x_shape, w_shape, b_shape, _, compute = LAYERS[name]
    w = random(*w_shape) * np.linspace(0.1, 3, w_shape[0], dtype=np.float32).reshape(-1, *[1] * (len(w_shape) - 1))
    b = None if b_shape is None else random(*b_shape, seed=2) * np.float32(bias_scale)
    x = random(*x_shape, seed=1) + np.float32(0.3)
    arrays = {"w": w} | ({} if b is None else {"b": b})
    out = compute(x.astype(np.float64), w.astype(np.float64), None if b is None else b.astype(np.float64))
    model = make_onnx(
        [helper.make_node(op, ["x", *arrays], ["out"], **attributes), helper.make_node("Neg", ["out"], ["y"])],
        {"x": ["batch", *x_shape[1:]]},
        {"y": ["batch", *out.shape[1:]]},
        arrays,
    )
    return model, x, w, b, out


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_computes_what_fake_quantization_does(make_onnx, ort_run, op_counts, name, scheme):
    axis, compute = LAYERS[name][5:]
    model, x, w, b, exact = layer_graph(make_onnx, name)
    ranges, seen = minmax(model, {"x": x}, ort_run)
    quantized = insert_qdq(model, ranges, scheme)

    expected = compute(
        fake_activation(x, x, scheme),
        fake_weight(w, axis, scheme),
        None if b is None else fake_bias(b, x, w, axis, scheme),
    )
    step = 0.0
    if scheme == "cpu":
        expected = fake_activation(expected, seen["out"], scheme)
        step = float(seen["out"].max() - seen["out"].min()) / 255
    ours = -ort_run(quantized, {"x": x}, optimize=False)["y"]
    # Where a sum lies on the edge between two steps, float32 may fall to the other side.
    off = np.abs(ours - expected)
    close = 1e-5 * np.abs(exact).max()
    assert (off <= close + step * 1.001).all()
    assert (off <= close).mean() >= 0.98

    arrays = constants(quantized)
    codes = next(v for k, v in arrays.items() if k.startswith("w_quantized"))
    assert codes.dtype == np.int8
    assert codes.shape == w.shape
    assert codes.min() >= -127
    scales = next(v for k, v in arrays.items() if k.startswith("w_scale"))
    np.testing.assert_allclose(scales, weight_scales(w, axis, scheme), rtol=1e-6)
    counts = op_counts(quantized)
    has_int_bias = scheme == "cpu" and b is not None
    assert counts["QuantizeLinear"] == (2 if scheme == "cpu" else 1)
    assert counts["DequantizeLinear"] == counts["QuantizeLinear"] + 1 + has_int_bias
    if has_int_bias:
        assert arrays["b_quantized"].dtype == np.int32
    assert ("b" in arrays) == (scheme == "trt" and b is not None)
    assert ends_float(quantized) == {TensorProto.FLOAT}


def test_scales_of_the_trt_scheme_survive_float16_exactly(make_onnx, ort_run):
    for name in LAYERS:
        model, x, *_ = layer_graph(make_onnx, name)
        ranges, _ = minmax(model, {"x": x}, ort_run)
        full, half = insert_qdq(model, ranges, "trt"), quantize(model, ranges, "trt")
        before, after = constants(full), constants(half)
        for key in (k for k in before if "_scale" in k):
            assert after[key].dtype == np.float16
            np.testing.assert_array_equal(after[key].astype(np.float32), before[key])
        types = {v.dtype for v in after.values()}
        assert types <= {np.dtype(np.float16), np.dtype(np.int8)}


def test_the_cpu_scheme_stays_float32(make_onnx, ort_run):
    model, x, *_ = layer_graph(make_onnx, "conv")
    ranges, _ = minmax(model, {"x": x}, ort_run)
    types = {v.dtype for v in constants(quantize(model, ranges, "cpu")).values()}
    assert types == {np.dtype(t) for t in (np.float32, np.uint8, np.int8, np.int32)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dead_channels_stay_dead(make_onnx, ort_run, scheme):
    w, b = random(4, 3, 3, 3), np.array([0.5, 1.5, -2, 0], np.float32)
    w[1] = w[3] = 0
    model = make_onnx(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        {"x": [1, 3, 5, 5]},
        {"y": [1, 4, 3, 3]},
        {"w": w, "b": b},
    )
    x = random(1, 3, 5, 5, seed=1)
    ranges, _ = minmax(model, {"x": x}, ort_run)
    y = ort_run(insert_qdq(model, ranges, scheme), {"x": x}, optimize=False)["y"]
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[0, 1], 1.5, rtol=1e-6)
    np.testing.assert_array_equal(y[0, 3], 0)


@pytest.mark.parametrize("bias", [1e3, 1e9, 1e30])
def test_a_bias_far_larger_than_the_weights_does_not_overflow(make_onnx, ort_run, bias):
    w = np.full((2, 3, 1, 1), 1e-4, np.float32)
    model = make_onnx(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        {"x": [1, 3, 2, 2]},
        {"y": [1, 2, 2, 2]},
        {"w": w, "b": np.array([bias, -bias], np.float32)},
    )
    x = random(1, 3, 2, 2)
    ranges, _ = minmax(model, {"x": x}, ort_run)
    quantized = insert_qdq(model, ranges, "cpu")
    assert np.abs(constants(quantized)["b_quantized"].astype(np.int64)).max() <= 2**30 * 1.001
    y = ort_run(quantized, {"x": x}, optimize=False)["y"]
    np.testing.assert_allclose(y[0, 0], bias, rtol=1e-5)
    np.testing.assert_allclose(y[0, 1], -bias, rtol=1e-5)


def test_scales_too_small_to_multiply(make_onnx, ort_run):
    """A dead input before tiny weights: the product of the scales is below float32."""
    w = np.full((2, 3, 1, 1), 1e-12, np.float32)
    model = make_onnx(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        {"x": [1, 3, 2, 2]},
        {"y": [1, 2, 2, 2]},
        {"w": w, "b": np.array([0, 2], np.float32)},
    )
    x = np.zeros((1, 3, 2, 2), np.float32)
    ranges, _ = minmax(model, {"x": x}, ort_run)
    with np.errstate(all="raise", under="ignore"):
        quantized = insert_qdq(model, ranges, "cpu")
    y = ort_run(quantized, {"x": x}, optimize=False)["y"]
    np.testing.assert_array_equal(y[0, 0], 0)
    np.testing.assert_allclose(y[0, 1], 2, rtol=1e-6)


# Several layers.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shared_weights_are_stored_for_each_layer(make_onnx, ort_run, scheme):
    w = random(3, 3, 1, 1)
    model = make_onnx(
        [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"])],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 3, 4, 4]},
        {"w": w},
    )
    x = random(1, 3, 4, 4)
    ranges, seen = minmax(model, {"x": x}, ort_run)
    quantized = insert_qdq(model, ranges, scheme)
    assert sum(v.shape == w.shape for v in constants(quantized).values()) == 2
    wq = fake_weight(w, 0, scheme)
    a = fake_activation(conv(fake_activation(x, x, scheme), wq, None), seen["a"], scheme)
    y = ort_run(quantized, {"x": x}, optimize=False)["y"]
    np.testing.assert_allclose(y, conv(a, wq, None), atol=0.02 * np.abs(seen["a"]).max())
    assert "w" not in constants(quantized)
    # On a processor without INT8 dot products this is where ONNX Runtime rewrites the weights.
    session = open_session(quantized.SerializeToString(), "onnxruntime", 1)
    np.testing.assert_allclose(session.run(x)["y"], y, atol=0.02 * np.abs(y).max())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_shared_by_layers_of_different_inputs_and_axes(make_onnx, ort_run, scheme):
    """An autoencoder with tied weights: one matrix, read along either axis; and one bias at very different scales."""
    w, b = random(6, 6) * np.logspace(-2, 1, 6).astype(np.float32)[:, None], random(6, seed=3) * np.float32(100)
    tiny = np.float32(1e-6)
    model = make_onnx(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["code"], transB=1),
            helper.make_node("Gemm", ["code", "w", "b"], ["back"]),
            helper.make_node("Mul", ["back", "tiny"], ["small"]),
            helper.make_node("Gemm", ["small", "w", "b"], ["y"], transB=1),
        ],
        {"x": [4, 6]},
        {"y": [4, 6]},
        {"w": w, "b": b, "tiny": tiny},
    )
    x = random(4, 6)
    ranges, _ = minmax(model, {"x": x}, ort_run)
    quantized = insert_qdq(model, ranges, scheme)
    axes = {n.output[0]: next((a.i for a in n.attribute if a.name == "axis"), 1) for n in quantized.graph.node}
    gemms = [n for n in quantized.graph.node if n.op_type == "Gemm"]
    assert [axes[n.input[1]] for n in gemms] == [0, 1, 0]
    exact, ours = ort_run(model, {"x": x})["y"], ort_run(quantized, {"x": x}, optimize=False)["y"]
    assert np.linalg.norm(ours - exact) <= 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_operators_that_move_values_share_the_range_of_what_they_move(make_onnx, ort_run, scheme):
    model = make_onnx(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("MaxPool", ["c"], ["m"], kernel_shape=[2, 2]),
            helper.make_node("Transpose", ["m"], ["t"], perm=[0, 1, 3, 2]),
            helper.make_node("Flatten", ["t"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["y"], transB=1),
        ],
        {"x": [2, 3, 5, 5]},
        {"y": [2, 4]},
        {"w": random(3, 3, 2, 2), "g": random(4, 27)},
    )
    x = random(2, 3, 5, 5, seed=1)
    assert tensors_to_observe(model) == ["x", "c"]
    ranges, _ = minmax(model, {"x": x}, ort_run)
    quantized = insert_qdq(model, ranges, scheme)
    arrays = constants(quantized)
    moved = ("f",) if scheme == "trt" else ("c", "m", "t", "f")
    assert {k.removesuffix("_scale") for k in arrays if k.endswith("_scale")} == {"x", "w", "g", *moved}
    assert len({float(arrays[f"{name}_scale"]) for name in moved}) == 1
    assert len({int(arrays[f"{name}_zero_point"]) for name in moved}) == 1
    codes = {}
    for name in moved:
        codes[name] = next(
            n.output[0] for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name
        )
    kind = TensorProto.INT8 if scheme == "trt" else TensorProto.UINT8
    for name in codes.values():
        quantized.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    out = ort_run(quantized, {"x": x}, optimize=False)
    if scheme == "cpu":
        # Rounded once: the codes are moved as they are.
        first = torch.tensor(out[codes["c"]].astype(np.float32))
        expected = F.max_pool2d(first, 2, stride=1).permute(0, 1, 3, 2).flatten(1).numpy()
        np.testing.assert_array_equal(out[codes["f"]].astype(np.float32), expected)


def test_residual_adds(make_onnx, ort_run, op_counts):
    model = make_onnx(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c", "x"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["r"]),
            helper.make_node("Add", ["r", "one"], ["y"]),
        ],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 3, 4, 4]},
        {"w": random(3, 3, 3, 3), "one": np.float32(1)},
    )
    assert quantized_tensors(GraphIndex(model), "trt") == ["x", "c"]
    assert quantized_tensors(GraphIndex(model), "cpu") == ["x", "c", "r"]
    x = random(1, 3, 4, 4)
    ranges, seen = minmax(model, {"x": x}, ort_run)
    for scheme in SCHEMES:
        xq = fake_activation(x, x, scheme)
        c = fake_activation(conv(xq, fake_weight(random(3, 3, 3, 3), 0, scheme), None, padding=1), seen["c"], scheme)
        r = np.maximum(c + xq, 0)
        r = fake_activation(r, seen["r"], scheme) if scheme == "cpu" else r
        y = ort_run(insert_qdq(model, ranges, scheme), {"x": x}, optimize=False)["y"]
        assert (np.abs(y - (r + 1)) < 1e-4).mean() > 0.95
        np.testing.assert_allclose(y, r + 1, atol=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_has_no_integer_kernel_stays_float(make_onnx, op_counts, scheme):
    model = make_onnx(
        [
            helper.make_node("Gemm", ["x", "w"], ["scaled"], alpha=0.5),
            helper.make_node("Gemm", ["scaled", "w"], ["turned"], transA=1),
            helper.make_node("MatMul", ["turned", "x"], ["both"]),
            helper.make_node("MatMul", ["w", "both"], ["first"]),
            helper.make_node("MatMul", ["first", "batched"], ["y"]),
        ],
        {"x": [4, 4]},
        {"y": [3, 4, 4]},
        {"w": random(4, 4), "batched": random(3, 4, 4)},
    )
    assert tensors_to_observe(model) == []
    quantized = insert_qdq(model, {}, scheme)
    assert op_counts(quantized) == {"Gemm": 2, "MatMul": 3}
    np.testing.assert_array_equal(constants(quantized)["w"], random(4, 4))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_of_the_graph_are_never_quantized(make_onnx, ort_run, scheme):
    """Not even one that the next layer reads: it gets a pair of its own."""
    w = random(3, 3, 1, 1)
    model = make_onnx(
        [helper.make_node("Conv", ["x", "w"], ["features"]), helper.make_node("Conv", ["features", "w"], ["y"])],
        {"x": [1, 3, 4, 4]},
        {"features": [1, 3, 4, 4], "y": [1, 3, 4, 4]},
        {"w": w},
    )
    x = random(1, 3, 4, 4)
    ranges, seen = minmax(model, {"x": x}, ort_run)
    quantized = insert_qdq(model, ranges, scheme)
    producers = {name: n.op_type for n in quantized.graph.node for name in n.output}
    assert {o.name: producers[o.name] for o in quantized.graph.output} == {"features": "Conv", "y": "Conv"}
    out = ort_run(quantized, {"x": x}, optimize=False)
    features = conv(fake_activation(x, x, scheme), fake_weight(w, 0, scheme), None)
    np.testing.assert_allclose(out["features"], features, atol=1e-5)
    exact = seen["features"].astype(np.float64)
    np.testing.assert_allclose(out["y"], conv(exact, w.astype(np.float64), None), atol=0.1 * np.abs(exact).max())


def test_the_model_given_is_not_changed(tiny_onnx, ort_run):
    before = tiny_onnx.SerializeToString(deterministic=True)
    ranges, _ = minmax(tiny_onnx, {"input": random(2, 3, 24, 20)}, ort_run)
    for scheme in SCHEMES:
        insert_qdq(tiny_onnx, ranges, scheme)
    assert tiny_onnx.SerializeToString(deterministic=True) == before


def test_a_missing_range_is_named(tiny_onnx, ort_run):
    ranges, _ = minmax(tiny_onnx, {"input": random(2, 3, 24, 20)}, ort_run)
    del ranges["input"]
    with pytest.raises(QuantizationError, match="no range was measured for 'input'"):
        insert_qdq(tiny_onnx, ranges, "cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(make_onnx, value):
    w = random(2, 3, 1, 1)
    w[1, 0] = value
    model = make_onnx(
        [helper.make_node("Conv", ["x", "stem.weight"], ["y"])],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 2, 4, 4]},
        {"stem.weight": w},
    )
    with pytest.raises(QuantizationError, match=r"^stem\.weight holds NaN or infinity"):
        insert_qdq(model, {"x": TensorRange(-1, 1, 1, (-1, 1))}, "cpu")


# A whole network.


def quantized_forward(net, x, scheme, seen=None):
    """The little classifier with fake quantization, and, where nothing was seen, the tensors to see."""
    tensors = {}

    def q(name, value):
        tensors[name] = value
        return value if seen is None else fake_activation(value, seen[name], scheme)

    def out(name, value):
        return q(name, value) if scheme == "cpu" else value

    def layer(module, name, value, **kwargs):
        w = module.weight.detach().numpy().astype(np.float64)
        b = None if module.bias is None else module.bias.detach().numpy().astype(np.float64)
        if seen is not None:
            b = None if b is None else fake_bias(b, seen[name], module.weight.detach().numpy(), 0, scheme)
            w = fake_weight(module.weight.detach().numpy(), 0, scheme)
        return value @ w.T + b if w.ndim == 2 else conv(value, w, b, **kwargs)

    relu = lambda v: np.maximum(v, 0)  # noqa: E731
    x = q("input", x.astype(np.float64))
    s = q("stem", relu(layer(net.stem, "input", x, stride=2, padding=1)))
    d = q("depthwise", relu(layer(net.depthwise, "stem", s, padding=1, groups=16)))
    p = q("pointwise", layer(net.pointwise, "depthwise", d))
    a = out("sum", relu(s + p))
    pooled = q("pooled", a.mean((2, 3)))
    return layer(net.head, "pooled", pooled), tensors


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_network_answers_as_its_fake_quantization(tiny_net, tiny_onnx, ort_run, scheme):
    net, x = tiny_net(), random(6, 3, 24, 20)
    exact, seen = quantized_forward(net, x, scheme)
    np.testing.assert_allclose(ort_run(tiny_onnx, {"input": x})["logits"], exact, atol=1e-5)
    expected, _ = quantized_forward(net, x, scheme, {k: v.astype(np.float32) for k, v in seen.items()})
    ranges, _ = minmax(tiny_onnx, {"input": x}, ort_run)
    ours = ort_run(insert_qdq(tiny_onnx, ranges, scheme), {"input": x}, optimize=False)["logits"]
    loss = np.linalg.norm(expected - exact)
    assert loss > 0
    # A few values on the edge between two steps may fall to either side: far less than what quantizing loses.
    assert np.linalg.norm(ours - expected) <= 0.1 * loss
    half = ort_run(quantize(tiny_onnx, ranges, scheme), {"input": x}, optimize=False)["logits"]
    assert np.linalg.norm(half - expected) <= 0.5 * loss


# What backends make of it.


def optimized(path, tmp_path):
    """Operator counts of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimized.onnx")


FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "Relu", "GlobalAveragePool", "MatMulIntegerToFloat"}


def test_onnx_runtime_fuses_the_cpu_graph_into_integer_kernels(tiny_bundle, tmp_path, op_counts):
    counts = op_counts(optimized(tiny_bundle / "model.int8.cpu.onnx", tmp_path))
    assert counts["QLinearConv"] == 3
    assert counts["QGemm"] == 1
    assert counts["QLinearAdd"] == 1
    assert counts["QLinearGlobalAveragePool"] == 1
    assert counts["QuantizeLinear"] == 1
    # In front of it the normalized image becomes pixels again.
    assert [counts.pop(op) for op in ("Pad", "Mul", "Add")] == [1, 1, 1]
    assert not FLOAT_KERNELS & set(counts)
    assert not counts.get("DequantizeLinear")


def test_openvino_and_onnx_runtime_agree(tiny_bundle):
    pytest.importorskip("openvino")

    x = random(8, 3, 24, 20)
    answers = []
    for backend in ("onnxruntime", "openvino"):
        session = open_session(tiny_bundle / "model.int8.cpu.onnx", backend, threads=1)
        answers.append(session.run(x)["logits"])
        session.close()
    a, b = answers
    assert np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(a)
