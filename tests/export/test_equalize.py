"""Rescaled channels: the answer stays, by ONNX Runtime; the factors are the best there are, by searching them all."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from calib import TensorRange
from export.onnx_graph import serialized_with_outputs
from export.quantize import equalize, insert_qdq, tensors_to_observe
from export.quantize.channel_classes import channel_classes
from export.quantize.equalize import Equalization, apply_factors, choose_factors
from export.quantize.layers import weighted_layers
from export.quantize.network import LayerConstants, Network
from export.quantize.statistics import collect_samples, output_sensitivity
from runtime.backends import open_session

SCHEMES = ("cpu", "trt")
node = helper.make_node


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# Networks by name: nodes, shape of the input, outputs, shapes of the weights, and the tensors that may be rescaled
# together, behind each of them how many channels they have.

PADDED = {"pads": [1, 1, 1, 1]}
IMAGE = ["n", 3, 6, 4]
STEM = node("Conv", ["x", "w1", "b1"], ["a"], **PADDED)
W1 = {"w1": (8, 3, 3, 3), "b1": (8,)}
RELU = node("Relu", ["a"], ["r"])
LAST = {"w9": (5, 8, 1, 1), "b9": (5,)}


def last(name):
    return node("Conv", [name, "w9", "b9"], ["y"])


NETWORKS = {
    "chain": ([STEM, RELU, last("r")], IMAGE, ["y"], W1 | LAST, [("a r", 8)]),
    "chain without biases": (
        [node("Conv", ["x", "w1"], ["a"]), RELU, node("Conv", ["r", "w2"], ["y"])],
        IMAGE,
        ["y"],
        {"w1": (8, 3, 3, 3), "w2": (5, 8, 3, 1)},
        [("a r", 8)],
    ),
    "depthwise chain": (
        [
            STEM,
            RELU,
            node("Conv", ["r", "w2"], ["d"], group=8, **PADDED),
            node("Relu", ["d"], ["rd"]),
            node("Conv", ["rd", "w3", "b3"], ["e"], group=8),
            last("e"),
        ],
        IMAGE,
        ["y"],
        W1 | LAST | {"w2": (8, 1, 3, 3), "w3": (8, 1, 1, 1), "b3": (8,)},
        [("a r", 8), ("d rd", 8), ("e", 8)],
    ),
    "depthwise with a multiplier": (
        [STEM, RELU, node("Conv", ["r", "w2"], ["d"], group=8, **PADDED), node("Conv", ["d", "w3"], ["y"])],
        IMAGE,
        ["y"],
        W1 | {"w2": (16, 1, 3, 3), "w3": (5, 16, 1, 1)},
        [("a r", 8), ("d", 16)],
    ),
    "in groups": (
        [STEM, RELU, node("Conv", ["r", "w2", "b2"], ["g"], group=2), node("Relu", ["g"], ["rg"]), last("rg")],
        IMAGE,
        ["y"],
        W1 | LAST | {"w2": (8, 4, 3, 3), "b2": (8,)},
        [("a r", 8), ("g rg", 8)],
    ),
    "residual": (
        [
            STEM,
            RELU,
            node("Conv", ["r", "w2", "b2"], ["c"]),
            node("Add", ["c", "r"], ["s"]),
            node("Relu", ["s"], ["rs"]),
            node("Conv", ["rs", "w3"], ["d"]),
            node("Add", ["rs", "d"], ["t"]),
            last("t"),
        ],
        IMAGE,
        ["y"],
        W1 | LAST | {"w2": (8, 8, 1, 1), "b2": (8,), "w3": (8, 8, 1, 1)},
        [("a c d r rs s t", 8)],
    ),
    "a tensor and itself": ([STEM, node("Add", ["a", "a"], ["s"]), last("s")], IMAGE, ["y"], W1 | LAST, [("a s", 8)]),
    "pools and a head on pixels": (
        [
            STEM,
            node("LeakyRelu", ["a"], ["r"], alpha=0.2),
            node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("AveragePool", ["m"], ["p"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]),
            node("Identity", ["p"], ["i"]),
            node("Flatten", ["i"], ["f"]),
            node("Gemm", ["f", "w2", "b2"], ["h"], transB=1),
            node("Relu", ["h"], ["rh"]),
            node("Gemm", ["rh", "w3", "b3"], ["y"]),
        ],
        IMAGE,
        ["y"],
        W1 | {"w2": (7, 48), "b2": (7,), "w3": (7, 5), "b3": (5,)},
        [("a f i m p r", 8), ("h rh", 7)],
    ),
    "global pools and matrices": (
        [
            STEM,
            node("PRelu", ["a", "slope"], ["r"]),
            node("GlobalMaxPool", ["r"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w2"], ["h"]),
            node("MatMul", ["h", "w3"], ["y"]),
        ],
        IMAGE,
        ["y"],
        W1 | {"slope": (8, 1, 1), "w2": (8, 6), "w3": (6, 5)},
        [("a f p r", 8), ("h", 6)],
    ),
    "an activation behind the flattening": (
        [STEM, node("Flatten", ["a"], ["f"]), node("Relu", ["f"], ["r"]), node("Gemm", ["r", "w2"], ["y"])],
        IMAGE,
        ["y"],
        W1 | {"w2": (192, 5)},
        [("a f r", 8)],
    ),
    "flattened twice": (
        [STEM, node("Flatten", ["a"], ["f"]), node("Flatten", ["f"], ["r"]), node("Gemm", ["r", "w2"], ["y"])],
        IMAGE,
        ["y"],
        W1 | {"w2": (192, 5)},
        [("a f r", 8)],
    ),
    "one flattening, two heads": (
        [STEM, node("Flatten", ["a"], ["f"]), node("Gemm", ["f", "w2"], ["y"]), node("MatMul", ["f", "w3"], ["z"])],
        IMAGE,
        ["y", "z"],
        W1 | {"w2": (192, 5), "w3": (192, 4)},
        [("a f", 8)],
    ),
    "upwards": (
        [
            STEM,
            RELU,
            node("ConvTranspose", ["r", "w2", "b2"], ["u"], strides=[2, 2]),
            node("Relu", ["u"], ["ru"]),
            last("ru"),
        ],
        IMAGE,
        ["y"],
        W1 | LAST | {"w2": (8, 8, 2, 2), "b2": (8,)},
        [("a r", 8), ("ru u", 8)],
    ),
    "sequences": (
        [node("Conv", ["x", "w1", "b1"], ["a"]), RELU, node("Conv", ["r", "w2"], ["y"], kernel_shape=[3])],
        ["n", 3, 9],
        ["y"],
        {"w1": (8, 3, 1), "b1": (8,), "w2": (5, 8, 3)},
        [("a r", 8)],
    ),
    "two readers": (
        [STEM, RELU, last("r"), node("Conv", ["r", "w2"], ["z"])],
        IMAGE,
        ["y", "z"],
        W1 | LAST | {"w2": (4, 8, 3, 3)},
        [("a r", 8)],
    ),
    # What may not be rescaled.
    "shared weights": (
        [STEM, RELU, node("Conv", ["r", "w2"], ["c"]), node("Relu", ["c"], ["rc"]), node("Conv", ["rc", "w2"], ["y"])],
        IMAGE,
        ["y"],
        W1 | {"w2": (8, 8, 1, 1)},
        [],
    ),
    "shared bias": (
        [STEM, RELU, node("Conv", ["r", "w2", "b1"], ["c"]), node("Relu", ["c"], ["rc"]), last("rc")],
        IMAGE,
        ["y"],
        W1 | LAST | {"w2": (8, 8, 1, 1)},
        [],
    ),
    "given out": ([STEM, RELU, last("r")], IMAGE, ["r", "y"], W1 | LAST, []),
    "clipped": ([STEM, node("Clip", ["a", "", "six"], ["r"]), last("r")], IMAGE, ["y"], W1 | LAST | {"six": 6.0}, []),
    "curved": ([STEM, node("Sigmoid", ["a"], ["r"]), last("r")], IMAGE, ["y"], W1 | LAST, []),
    "joined": (
        [STEM, RELU, node("Concat", ["r", "x"], ["j"], axis=1), node("Conv", ["j", "w2"], ["y"])],
        IMAGE,
        ["y"],
        W1 | {"w2": (5, 11, 1, 1)},
        [],
    ),
    "multiplied": ([STEM, RELU, node("Mul", ["r", "a"], ["m"]), last("m")], IMAGE, ["y"], W1 | LAST, []),
    "a constant added": (
        [STEM, node("Add", ["a", "c"], ["s"]), last("s")], IMAGE, ["y"], W1 | LAST | {"c": (1, 8, 1, 1)}, []
    ),
    "a computed slope": ([STEM, node("PRelu", ["a", "x1"], ["r"]), last("r")], IMAGE, ["y"], W1 | LAST, []),
    "where the largest was": (
        [STEM, node("MaxPool", ["a"], ["r", "at"], kernel_shape=[2, 2]), last("r"), node("Cast", ["at"], ["z"], to=1)],
        IMAGE,
        ["y", "z"],
        W1 | LAST,
        [],
    ),
    "added to the input": (
        [node("Conv", ["x", "w1"], ["a"]), node("Add", ["a", "x"], ["s"]), node("Conv", ["s", "w2"], ["y"])],
        IMAGE,
        ["y"],
        {"w1": (3, 3, 1, 1), "w2": (5, 3, 1, 1)},
        [],
    ),
    "spread over a feature map": (
        [
            STEM,
            node("GlobalAveragePool", ["a"], ["p"]),
            node("Add", ["a", "p"], ["s"]),
            last("s"),
        ],
        IMAGE,
        ["y"],
        W1 | LAST,
        [],
    ),
    "a sequence as long as it is wide": (
        [
            node("MatMul", ["x", "w1"], ["a"]),
            RELU,
            node("Flatten", ["r"], ["f"]),
            node("Gemm", ["f", "w2"], ["y"]),
        ],
        ["n", 6, 3],
        ["y"],
        {"w1": (3, 6), "w2": (36, 5)},
        [],
    ),
    "a matrix product added to what was flattened": (
        [
            STEM,
            node("Flatten", ["a"], ["f"]),
            node("Gemm", ["x1", "w2"], ["g"]),
            node("Add", ["f", "g"], ["s"]),
            node("Gemm", ["s", "w3"], ["y"]),
        ],
        IMAGE,
        ["y"],
        W1 | {"w2": (72, 192), "w3": (192, 5)},
        [],
    ),
    "flattened from the batch on": (
        [STEM, node("Flatten", ["a"], ["f"], axis=2), node("MatMul", ["f", "w2"], ["y"])],
        IMAGE,
        ["y"],
        W1 | {"w2": (24, 5)},
        [],
    ),
}  # fmt: skip


def build(name):
    nodes, shape, outputs, shapes, _ = NETWORKS[name]
    reads = {i for n in nodes for i in n.input}
    if "x1" in reads:  # something that depends on the input, and is of the shape that is asked for
        if any(n.op_type == "PRelu" for n in nodes):
            nodes = [node("ReduceMean", ["x", "axes"], ["x1"]), *nodes]
            shapes = shapes | {"axes": np.array([0, 1, 2, 3])}
        else:
            nodes = [node("Flatten", ["x"], ["x1"]), *nodes]
    arrays = {}
    for key, kind in shapes.items():
        if isinstance(kind, tuple):
            # Channels of very different size, as reparameterized networks have them.
            size = np.exp(np.random.default_rng([7, len(key)]).standard_normal(kind[0]))
            arrays[key] = (random(*kind) * size.reshape(-1, *[1] * (len(kind) - 1))).astype(np.float32)
        else:
            arrays[key] = np.asarray(kind, np.float32 if isinstance(kind, float) else np.int64)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=output) for output in outputs],
        [numpy_helper.from_array(value, key) for key, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model, random(3, *shape[1:], seed=4)


def assert_same_answers(a, b, x, ort_run):
    ours, expected = (ort_run(m, {"x": x}, optimize=False) for m in (a, b))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(ours[name] - value) <= 1e-5 * np.linalg.norm(value), name


def equalization(classes, factors):
    return Equalization(tuple(torch.as_tensor(f, dtype=torch.float32) for f in factors), tuple(classes), 1.0, 1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_may_be_rescaled_together_is_found(name):
    found = channel_classes(build(name)[0])
    assert [(" ".join(sorted(c.tensors)), c.channels) for c in found] == NETWORKS[name][4]


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network[4]])
def test_extreme_factors_change_no_answer(name, ort_run):
    model, x = build(name)
    classes = channel_classes(model)
    factors = [2.0 ** np.linspace(-20, 20, c.channels) for c in classes]
    scaled = apply_factors(model, equalization(classes, factors))
    assert_same_answers(scaled, model, x, ort_run)
    # It is the very tensors of the classes that changed, by these factors.
    names = [name for c in classes for name in c.tensors]
    seen, before = (ort_run(serialized_with_outputs(m, names), {"x": x}, optimize=False) for m in (scaled, model))
    for channel_class, s in zip(classes, factors, strict=True):
        for tensor in channel_class.tensors:
            was = before[tensor].reshape(3, channel_class.channels, -1)
            is_now = seen[tensor].reshape(was.shape) / s[:, None]
            assert np.linalg.norm(is_now - was) <= 1e-5 * np.linalg.norm(was)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([name for name, network in NETWORKS.items() if network[4]]),
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 8),
)
def test_no_factors_change_any_answer(name, seed, spread, ort_run):
    model, x = build(name)
    before = model.SerializeToString()
    classes = channel_classes(model)
    generator = np.random.default_rng(seed)
    factors = [np.exp(spread * generator.standard_normal(c.channels)) for c in classes]
    scaled = apply_factors(model, equalization(classes, factors))
    assert model.SerializeToString() == before
    assert_same_answers(scaled, model, x, ort_run)
    back = apply_factors(scaled, equalization(channel_classes(scaled), [1 / f for f in factors]))
    for a, b in zip(back.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), rtol=1e-5)


# The choice of factors.


def measure(model, images, batch=8):
    """Samples and sensitivities, as calibration collects them."""
    names = tensors_to_observe(model)
    batches = [images[i : i + batch] for i in range(0, len(images), batch)]
    session = open_session(serialized_with_outputs(model, names), "onnxruntime", threads=1)
    samples = collect_samples(session, batches, len(images), names, seed=0)
    network = Network(model)
    layers = {
        layer.node.output[0]: LayerConstants(
            network.constants[layer.weight], None if layer.bias is None else network.constants[layer.bias]
        )
        for layer in weighted_layers(network.index)
    }
    sensitivity = output_sensitivity(network, map(torch.from_numpy, batches), names, layers, seed=0)
    return samples, sensitivity


def choose(model, images, scheme, per_tensor=False):
    return choose_factors(model, channel_classes(model), *measure(model, images), scheme, per_tensor)


def expected_error(model, images, scheme, monkeypatch, per_tensor=False):
    """Of a network as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(equalize, "_STEPS", 0)
        return choose(model, images, scheme, per_tensor).expected_before


def quantization_noise(model, images, scheme, ort_run):
    """Relative squared error of the output with ranges by minmax and weights rounded to the nearest."""
    names = tensors_to_observe(model)
    seen = ort_run(serialized_with_outputs(model, names), {"x": images}) | {"x": images}
    ranges = {}
    for name in names:
        low, high = min(float(seen[name].min()), 0.0), max(float(seen[name].max()), 0.0)
        ranges[name] = TensorRange(low, high, max(-low, high), (low, high))
    ours = ort_run(insert_qdq(model, ranges, scheme), {"x": images}, optimize=False)
    exact = ort_run(model, {"x": images}, optimize=False)
    return sum(((ours[n] - exact[n]) ** 2).sum() / (exact[n] ** 2).sum() for n in exact)


def hardened(model, seed=0):
    classes = channel_classes(model)
    generator = np.random.default_rng(seed)
    factors = [np.exp(0.8 * generator.standard_normal(c.channels)) for c in classes]
    return apply_factors(model, equalization(classes, factors)), factors


CHOSEN = ("chain", "depthwise chain", "in groups", "residual", "pools and a head on pixels", "upwards")
CASES = [(name, scheme, (i + j) % 2 == 1) for i, name in enumerate(CHOSEN) for j, scheme in enumerate(SCHEMES)]


@pytest.mark.parametrize(("name", "scheme", "per_tensor"), CASES)
def test_chosen_factors_keep_the_answer_and_lower_the_expected_error(name, scheme, per_tensor, ort_run, monkeypatch):
    model, _ = build(name)
    images = random(16, *NETWORKS[name][1][1:], seed=5)
    found = choose(model, images, scheme, per_tensor)
    assert 0 < found.expected_after <= found.expected_before
    for factors, channel_class in zip(found.factors, found.classes, strict=True):
        assert factors.shape == (channel_class.channels,)
        assert (torch.isfinite(factors) & (factors > 0)).all()
    scaled = apply_factors(model, found)
    assert_same_answers(scaled, model, images, ort_run)
    # What was promised is what is measured on the network that came out.
    measured = expected_error(scaled, images, scheme, monkeypatch, per_tensor)
    assert measured == pytest.approx(found.expected_after, rel=0.02)
    assert found.of_tensors().keys() == {n for c in found.classes for n in c.tensors}


@pytest.mark.parametrize(("name", "scheme"), [(name, SCHEMES[i % 2]) for i, name in enumerate(CHOSEN)])
def test_how_channels_were_scaled_before_makes_no_difference(name, scheme, ort_run):
    model, _ = build(name)
    model = hardened(model, seed=1)[0]  # far enough from where it should be that both find it worth their while
    images = random(16, *NETWORKS[name][1][1:], seed=5)
    harder, factors = hardened(model, seed=2)
    first, second = choose(model, images, scheme), choose(harder, images, scheme)
    assert second.expected_after == pytest.approx(first.expected_after, rel=0.01)
    for f, g, h in zip(first.factors, second.factors, factors, strict=True):
        ratio = (g.log() + torch.log(torch.from_numpy(h)) - f.log()).numpy()
        assert ratio.std() < 0.25, "the same but for a common factor, and for what makes no difference"
    noise = {
        key: quantization_noise(m, images, scheme, ort_run)
        for key, m in {
            "first": apply_factors(model, first),
            "second": apply_factors(harder, second),
            "untreated": harder,
        }.items()
    }
    assert noise["second"] == pytest.approx(noise["first"], rel=0.3)
    assert noise["second"] < noise["untreated"]


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_other_factor_is_better(scheme, per_tensor, monkeypatch):
    """Two channels have one ratio: all of them are tried, each on a network of its own."""
    weights = {
        "w1": np.array([[1, 0.2, -0.3], [0.05, 0.01, 0.02]], np.float32),
        "w2": np.array([[0.3, 4], [1, -9]], np.float32),
    }
    graph = helper.make_graph(
        [node("Conv", ["x", "w1"], ["a"]), RELU, node("Conv", ["r", "w2"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, IMAGE)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(w.reshape(*w.shape, 1, 1), key) for key, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    images = random(16, 3, 6, 4, seed=5)
    classes = channel_classes(model)
    errors = {}
    for ratio in np.exp(np.linspace(-6, 6, 25)):
        scaled = apply_factors(model, equalization(classes, [[1.0, ratio]]))
        errors[ratio] = expected_error(scaled, images, scheme, monkeypatch, per_tensor)
    found = choose(model, images, scheme, per_tensor)
    assert found.expected_after <= 1.02 * min(errors.values())
    assert found.expected_after < 0.8 * found.expected_before
    best = min(errors, key=errors.get)
    chosen = float(found.factors[0][1] / found.factors[0][0])
    assert errors[min(errors, key=lambda r: abs(np.log(r / chosen)))] <= 1.1 * errors[best]


def test_where_nothing_can_be_gained_nothing_is_changed():
    """A network that was equalized already."""
    model, _ = build("chain")
    images = random(16, 3, 6, 4, seed=5)
    once = apply_factors(model, choose(model, images, "cpu"))
    again = choose(once, images, "cpu")
    assert all((f == 1).all() for f in again.factors)
    assert again.expected_after == again.expected_before
    assert apply_factors(once, again) == once


@pytest.mark.parametrize("scheme", SCHEMES)
def test_networks_without_anything_to_rescale(scheme):
    for name in ("given out", "shared weights"):
        model, x = build(name)
        found = choose(model, x, scheme)
        assert found.factors == ()
        assert found.expected_after == found.expected_before
        assert apply_factors(model, found) == model


@pytest.mark.parametrize(("scheme", "per_tensor"), [("cpu", False), ("trt", True)])
@pytest.mark.parametrize("dead", ["weights", "output", "channel", "bias", "all"])
def test_what_is_dead_or_constant_gets_factors_that_are_numbers(dead, scheme, per_tensor, ort_run):
    model, _ = build("chain")
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    if dead == "channel":  # nothing comes out of it, and nobody reads another
        arrays["w1"][2], arrays["b1"][2] = 0, 0
        arrays["w9"][:, 5] = 0
    elif dead == "bias":  # one that ReLU never lets through
        arrays["b1"][2] = -1e4
    elif dead == "output":  # the answer is constant
        arrays["w9"][:] = 0
    elif dead == "weights":  # all channels are constant, the answer too
        arrays["w1"][:] = 0
    else:
        for value in arrays.values():
            value[:] = 0
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    images = random(16, 3, 6, 4, seed=5)
    found = choose(model, images, scheme, per_tensor)
    assert all((torch.isfinite(f) & (f > 0)).all() for f in found.factors)
    assert found.expected_after <= found.expected_before
    scaled = apply_factors(model, found)
    ours, expected = (ort_run(m, {"x": images}, optimize=False)["y"] for m in (scaled, model))
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
