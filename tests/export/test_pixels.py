"""Networks made to read pixels: the same answers, and an input of which eight bits lose nothing at all."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from PIL import Image

from export.onnx_graph import serialized_with_outputs
from export.quantize.fake import FakeQuantizer
from export.quantize.pixels import PIXEL_RANGE, put_on_pixels
from export.quantize.qdq import activation_params
from export.quantize.statistics import ChannelSamples
from runtime.manifest import Preprocessing
from runtime.preprocess import Preprocessor

node = helper.make_node
SCHEMES = ("cpu", "trt")
IMAGENET = Preprocessing((12, 10), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def pictures(count=4, size=(12, 10), seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)
    noise[0] = 0
    noise[1] = 255
    return noise


def fed(pixels, preprocessing=IMAGENET):
    return Preprocessor(preprocessing).batch([Image.fromarray(p) for p in pixels])


def build(nodes, shapes, outputs=("y",), shape=("n", 3, 12, 10)):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [
            numpy_helper.from_array(random(*s) if isinstance(s, tuple) else np.asarray(s), key)
            for key, s in shapes.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


W, V = {"w": (8, 3, 3, 3)}, {"w": (8, 3, 3, 3), "v": (4, 3, 3, 3)}
BEGINNINGS = {
    "plain": ([node("Conv", ["x", "w", "b"], ["y"])], {"w": (8, 3, 3, 3), "b": (8,)}),
    "padded": ([node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 1])], W | {"b": (8,)}),
    "padded on one side": ([node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 3])], {"w": (8, 3, 3, 3)}),
    "without a bias": ([node("Conv", ["x", "w"], ["y"])], {"w": (8, 3, 2, 3)}),
    "dilated": ([node("Conv", ["x", "w"], ["y"], dilations=[2, 3])], {"w": (8, 3, 2, 2)}),
    "in patches": ([node("Conv", ["x", "w", "b"], ["y"], strides=[4, 4])], {"w": (8, 3, 4, 4), "b": (8,)}),
    "a channel each": ([node("Conv", ["x", "w"], ["y"], group=3, pads=[1, 1, 1, 1])], {"w": (6, 1, 3, 3)}),
    "with a layer behind": (
        [node("Conv", ["x", "w"], ["a"], strides=[2, 2]), node("Relu", ["a"], ["r"]), node("Conv", ["r", "v"], ["y"])],
        W | {"v": (5, 8, 1, 1)},
    ),
    "two at once": (
        [
            node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
            node("Conv", ["x", "v"], ["c"], pads=[1, 1, 1, 1], group=3),
            node("Concat", ["a", "c"], ["y"], axis=1),
        ],
        {"w": (8, 3, 3, 3), "b": (8,), "v": (3, 1, 3, 3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEGINNINGS)
def test_answers_stay(name, ort_run):
    model = build(*BEGINNINGS[name])
    before = model.SerializeToString()
    result, tensor = put_on_pixels(model, IMAGENET)
    assert model.SerializeToString() == before
    assert tensor is not None
    onnx.checker.check_model(result, full_check=True)
    x = fed(pictures())
    ours, expected = (ort_run(m, {"x": x}, optimize=False)["y"] for m in (result, model))
    assert ours.shape == expected.shape
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
    # Shapes are known of what is new too: the rest of quantization goes by them.
    known = {v.name for v in (*result.graph.value_info, *result.graph.output)}
    assert {name for n in result.graph.node for name in n.output} <= known
    # Only constants that something reads.
    assert {t.name for t in result.graph.initializer} <= {i for n in result.graph.node for i in n.input}


@settings(max_examples=20, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.02, 3)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_the_normalization(mean, std, seed, ort_run):
    """Every colour there is stands for itself, less 128: on the grid of eight bits to within a rounding of float32."""
    model = build(*BEGINNINGS["padded"])
    preprocessing = Preprocessing((12, 10), mean, std)
    result, tensor = put_on_pixels(model, preprocessing)
    images = pictures(seed=seed)
    x = fed(images, preprocessing)
    seen = ort_run(serialized_with_outputs(result, [tensor]), {"x": x}, optimize=False)
    inner = seen[tensor][:, :, 1:-1, 1:-1]
    np.testing.assert_allclose(inner, images.transpose(0, 3, 1, 2).astype(np.float64) - 128, atol=2e-3)
    expected = ort_run(model, {"x": x}, optimize=False)["y"]
    assert np.linalg.norm(seen["y"] - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_pixels_loses_nothing(scheme, ort_run):
    """All 256 shades of each colour, exactly; the padding lies on zero, wherever that is."""
    params = activation_params(PIXEL_RANGE, scheme)
    assert params.scale == 1.0
    shades = np.arange(256, dtype=np.uint8)
    images = np.stack([np.broadcast_to(shades[:, None, None], (256, 2, 3))])
    preprocessing = Preprocessing((256, 2), IMAGENET.mean, IMAGENET.std)
    model = build(*BEGINNINGS["without a bias"], shape=("n", 3, 256, 3))
    result, tensor = put_on_pixels(model, preprocessing)
    x = fed([np.ascontiguousarray(images[0][:, [0, 1, 1]])], Preprocessing((256, 3), IMAGENET.mean, IMAGENET.std))
    seen = ort_run(serialized_with_outputs(result, [tensor]), {"x": x}, optimize=False)[tensor]
    rounded = FakeQuantizer(params)(torch.from_numpy(seen)).numpy()
    np.testing.assert_array_equal(rounded, np.broadcast_to(shades[:, None] - 128.0, (1, 3, 256, 3)))
    np.testing.assert_allclose(rounded, seen, atol=1e-3)


def test_the_range_is_a_range_of_pixels():
    assert PIXEL_RANGE.asymmetric == (-128.0, 127.0)
    for scheme in SCHEMES:
        params = activation_params(PIXEL_RANGE, scheme)
        low, high = (0, 255) if scheme == "cpu" else (-128, 127)
        assert (low - int(params.zero_point)) * float(params.scale) == -128
        assert (high - int(params.zero_point)) * float(params.scale) == 127
    samples = ChannelSamples(torch.zeros(1, 3), torch.full((3,), -128.0), torch.full((3,), 127.0))
    assert float(samples.low.min()) == PIXEL_RANGE.minimum


OTHERS = {
    "an activation first": ([node("Relu", ["x"], ["r"]), node("Conv", ["r", "w"], ["y"])], W),
    "read by something else too": (
        [node("Conv", ["x", "w"], ["a"]), node("GlobalAveragePool", ["x"], ["p"]), node("Identity", ["a"], ["y"])],
        W,
    ),
    "padding left to the runtime": ([node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")], W),
    "padded in two ways": (
        [node("Conv", ["x", "w"], ["y"]), node("Conv", ["x", "v"], ["z"], pads=[1, 1, 1, 1])],
        V,
    ),
    "weights that are shared": (
        [node("Conv", ["x", "w"], ["a"]), node("Conv", ["x", "w"], ["b"]), node("Add", ["a", "b"], ["y"])],
        W,
    ),
    "upwards": ([node("ConvTranspose", ["x", "w"], ["y"])], {"w": (3, 8, 2, 2)}),
    "no weights": ([node("Relu", ["x"], ["y"])], {}),
    "weights that are computed": ([node("Relu", ["w"], ["v"]), node("Conv", ["x", "v"], ["y"])], W),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_networks_with_another_beginning_stay_as_they_are(name):
    model = build(*OTHERS[name])
    assert put_on_pixels(model, IMAGENET) == (model, None)


def test_of_other_channels_and_inputs_nothing_is_known():
    grey = build([node("Conv", ["x", "w"], ["y"])], {"w": (8, 1, 3, 3)}, shape=("n", 1, 12, 10))
    assert put_on_pixels(grey, IMAGENET)[1] is None
    passed = build(*BEGINNINGS["plain"])
    passed.graph.output.append(passed.graph.input[0])
    assert put_on_pixels(passed, IMAGENET)[1] is None
    two = build(*BEGINNINGS["plain"])
    two.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    two.graph.node.append(node("Relu", ["z"], ["rz"]))
    assert put_on_pixels(two, IMAGENET)[1] is None


def test_of_a_traced_network_too(ort_run, tiny_onnx):
    model = onnx.shape_inference.infer_shapes(tiny_onnx)
    preprocessing = Preprocessing((24, 20), IMAGENET.mean, IMAGENET.std)
    result, tensor = put_on_pixels(model, preprocessing)
    assert tensor is not None
    x = fed(pictures(size=(24, 20)), preprocessing)
    ours, expected = (ort_run(m, {"input": x}, optimize=False)["logits"] for m in (result, model))
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
