"""Samples against what they are drawn from, sensitivities against Jacobians in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from calib import CalibrationError
from export.onnx_graph import serialized_with_outputs
from export.quantize.network import LayerConstants, Network
from export.quantize.statistics import collect_samples, output_sensitivity, random_projection, watching
from runtime.backends import open_session
from runtime.manifest import TensorSpec

node = helper.make_node


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


class Passing:
    """A session whose tensors are what it is fed with, so that each value tells where it comes from."""

    inputs = (TensorSpec("x", "float32", ("batch", 3, 4, 4)),)

    def __init__(self, **functions):
        self.functions = functions

    def run(self, feeds):
        return {name: function(feeds["x"]) for name, function in self.functions.items()}


def batches_of(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


def numbered(images, channels=3, height=4, width=5):
    """Each value is its image, channel and place: `image · 10000 + place + channel / 10`."""
    image = np.arange(images).reshape(-1, 1, 1, 1) * 10000
    channel = np.arange(channels).reshape(1, -1, 1, 1) / 10
    place = np.arange(height * width).reshape(1, 1, height, width)
    return (image + channel + place).astype(np.float32)


# Samples.


@settings(max_examples=40, deadline=None)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    size=st.integers(1, 4),
)
def test_of_little_everything_is_kept(x, size):
    seen = collect_samples(Passing(), batches_of(x, size), len(x), ["x"], 0)["x"]
    np.testing.assert_array_equal(seen.low.numpy(), x.min((0, 2, 3)))
    np.testing.assert_array_equal(seen.high.numpy(), x.max((0, 2, 3)))
    np.testing.assert_array_equal(seen.values.numpy(), np.moveaxis(x, 1, 3).reshape(-1, x.shape[1]))


@pytest.mark.parametrize("images", [40, 400])
def test_of_much_a_bounded_number_is_drawn_from_all_images_alike(images):
    """4096 rows, whatever the number of images; all channels of a place together."""
    x = numbered(images, height=20, width=20)
    seen = collect_samples(Passing(), batches_of(x, 8), images, ["x"], 1)["x"]
    count = len(seen.values)
    assert abs(count - 4096) < 5 * 64, "a binomial number, five deviations at most"
    np.testing.assert_allclose(seen.values[:, 1] - seen.values[:, 0], 0.1, atol=0.3)
    whole = np.floor(seen.values[:, 0].numpy() + 1e-3).astype(np.int64)
    image, place = whole // 10000, whole % 10000
    assert len(set(zip(image, place, strict=True))) == count, "no place is drawn twice"
    per_image = np.bincount(image, minlength=images)
    expected = count / images
    assert (abs(per_image - expected) < 5.5 * np.sqrt(expected) + 1).all()
    chi_square = ((per_image - expected) ** 2 / expected).sum()
    assert abs(chi_square - images) < 6 * np.sqrt(2 * images)
    assert abs(place.mean() - 199.5) < 5 * 400 / np.sqrt(12 * count)
    np.testing.assert_array_equal(seen.high.numpy(), x.max((0, 2, 3)))


def test_a_last_batch_that_is_not_full_is_sampled_as_densely():
    x = numbered(17, height=40, width=40)
    seen = collect_samples(Passing(), batches_of(x, 16), 17, ["x"], 1)["x"]
    last = (seen.values[:, 0] >= 16 * 10000 - 0.5).sum()
    assert abs(int(last) - len(seen.values) / 17) < 5 * np.sqrt(len(seen.values) / 17)


@pytest.mark.parametrize(("channels", "rows"), [(8, 1024), (64, 128), (4096, 64)])
def test_many_channels_share_the_room(channels, rows, monkeypatch):
    """Where 4096 rows of all channels would be too many values, fewer are drawn: 64 at least."""
    monkeypatch.setattr("export.quantize.statistics._SAMPLED_VALUES", 2**13)
    wide = Passing(wide=lambda x: np.broadcast_to(x[:, :1], (len(x), channels, *x.shape[2:])))
    x = numbered(40, 1, 10, 10)
    seen = collect_samples(wide, batches_of(x, 8), 40, ["wide"], 0)["wide"]
    assert seen.values.shape[1] == channels
    assert abs(len(seen.values) - rows) < 5 * np.sqrt(rows)


def test_rows_and_vectors():
    x = numbered(7)
    session = Passing(rows=lambda x: x[:, :, 0, 0], numbers=lambda x: x[:, 0, 0, 0], words=lambda x: x[:, :, 0])
    seen = collect_samples(session, batches_of(x, 3), 7, ["rows", "numbers", "words"], 0)
    np.testing.assert_array_equal(seen["rows"].values.numpy(), x[:, :, 0, 0])
    np.testing.assert_array_equal(seen["numbers"].values.numpy(), x[:, :1, 0, 0])
    np.testing.assert_array_equal(seen["words"].values.numpy(), np.moveaxis(x[:, :, 0], 1, 2).reshape(-1, 3))


def test_a_seed_gives_the_same_places_and_another_gives_others():
    x = numbered(40, height=20, width=20)
    first, again, other = (
        collect_samples(Passing(), batches_of(x, 8), 40, ["x"], seed)["x"].values for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_progress_is_told_batch_by_batch():
    told = []
    collect_samples(Passing(), batches_of(numbered(7), 3), 7, ["x"], 0, lambda done, total: told.append(done))
    assert told == [1, 2, 3]


def test_a_network_in_onnx_runtime(make_onnx, ort_run):
    model = make_onnx(
        [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("Neg", ["r"], ["y"])],
        {"x": ["n", 3, 4, 5]},
        {"y": ["n", 6, 4, 5]},
        {"w": random(6, 3, 1, 1)},
    )
    x = random(5, 3, 4, 5)
    session = open_session(serialized_with_outputs(model, ["r"]), "onnxruntime", threads=1)
    seen = collect_samples(session, batches_of(x, 2), 5, ["x", "r"], 0)
    r = ort_run(serialized_with_outputs(model, ["r"]), {"x": x})["r"]
    np.testing.assert_array_equal(seen["x"].values.numpy(), np.moveaxis(x, 1, 3).reshape(-1, 3))
    np.testing.assert_allclose(seen["r"].values.numpy(), np.moveaxis(r, 1, 3).reshape(-1, 6), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "inner"])
def test_what_is_not_finite_is_refused_by_name(value, name):
    x = numbered(6, height=80, width=80)  # one value of many, that no sample need hit
    bad = x.copy()
    bad[4, 1, 30, 2] = value
    session = Passing(inner=lambda v: v if name == "x" else np.where(v == x[4, 1, 30, 2], np.float32(value), v))
    with pytest.raises(CalibrationError, match=rf"tensor '{name}' holds NaN or infinity: check the model"):
        collect_samples(session, batches_of(bad if name == "x" else x, 2), 6, ["x", "inner"], 0)


def test_no_images():
    with pytest.raises(CalibrationError, match="no images to calibrate on"):
        collect_samples(Passing(), [], 0, ["x"], 0)


def test_nothing_to_sample():
    assert collect_samples(Passing(), batches_of(numbered(3), 2), 3, [], 0) == {}


# Sensitivities.


def matrices(make_onnx, *shapes, activation=None):
    """y = … W2 (W1 x), of tensors h0, h1, …"""
    nodes, arrays, name = [], {}, "x"
    for i, shape in enumerate(shapes):
        made = "y" if i == len(shapes) - 1 else f"h{i}"
        arrays[f"w{i}"] = random(*shape, seed=i)
        nodes.append(node("MatMul", [name, f"w{i}"], [made if activation is None or made == "y" else f"{made}_raw"]))
        if activation is not None and made != "y":
            nodes.append(node(activation, [f"{made}_raw"], [made]))
        name = made
    return make_onnx(nodes, {"x": ["n", shapes[0][0]]}, {"y": ["n", shapes[-1][1]]}, arrays), arrays


def layers_of(network):
    return {
        step.node.output[0]: LayerConstants(network.constants[step.node.input[1]], None)
        for step in network.steps
        if step.node.op_type in ("MatMul", "Conv")
    }


def relative(y):
    """What a squared error of the output of one image is divided by: the mean squared norm."""
    return (y.astype(np.float64) ** 2).sum(1).mean()


def test_of_one_output_the_sensitivity_is_the_squared_jacobian(make_onnx):
    """With one output every direction is the same but for its sign, so that nothing is left to chance."""
    model, w = matrices(make_onnx, (4, 6), (6, 5), (5, 1))
    network, x = Network(model), random(9, 4)
    found = output_sensitivity(network, [torch.from_numpy(x)], ["x", "h0", "h1"], layers_of(network), 0)
    after_1, after_0 = w["w2"], w["w1"] @ w["w2"]
    norm = relative(x @ w["w0"] @ after_0)
    expected = {"h1": after_1, "h0": after_0, "x": w["w0"] @ after_0}
    for name, jacobian in expected.items():
        np.testing.assert_allclose(found.tensors[name].numpy(), jacobian[:, 0] ** 2 / norm, rtol=1e-4)


def test_of_many_outputs_it_is_so_on_average(make_onnx):
    model, w = matrices(make_onnx, (4, 6), (6, 5), (5, 7))
    network, x = Network(model), random(64, 4)
    batches = [torch.from_numpy(x)] * 40  # the same images, other directions
    found = output_sensitivity(network, batches, ["x", "h0", "h1"], layers_of(network), 0)
    h0 = x @ w["w0"]
    h1 = h0 @ w["w1"]
    norm = relative(h1 @ w["w2"])
    for name, jacobian in {"h1": w["w2"], "h0": w["w1"] @ w["w2"], "x": w["w0"] @ w["w1"] @ w["w2"]}.items():
        np.testing.assert_allclose(found.tensors[name].numpy(), (jacobian**2).sum(1) / norm, rtol=0.05)
    # Weights act on all images at once: what they do to each adds up, squared, over images.
    for name, inputs, after in (
        ("y", h1, np.eye(7)),
        ("h1", h0, w["w2"]),
        ("h0", x, w["w1"] @ w["w2"]),
    ):
        expected = (inputs**2).mean(0)[:, None] * (after**2).sum(1)[None, :] / norm
        assert found.weights[name].shape == expected.shape
        assert found.weights[name].sum() == pytest.approx(expected.sum(), rel=0.15)
        rows = found.weights[name].sum(1).numpy() / expected.sum(1)
        assert ((rows > 0.5) & (rows < 2)).all()


def test_it_says_what_an_error_does(make_onnx, ort_run):
    """Small noise put into a tensor of a network with curves, and what comes out, by ONNX Runtime."""
    model, _ = matrices(make_onnx, (8, 16), (16, 16), (16, 6), activation="Tanh")
    network, x = Network(model), random(200, 8)
    found = output_sensitivity(network, batches_of(torch.from_numpy(x), 8), ["x"], layers_of(network), 0)
    generator = np.random.default_rng(5)
    size = np.float32(1e-2)
    noise = size * generator.standard_normal(x.shape).astype(np.float32)
    exact, ours = (ort_run(model, {"x": v})["y"] for v in (x, x + noise))
    measured = ((ours - exact) ** 2).sum() / (exact**2).sum()
    assert float(size**2 * found.tensors["x"].sum()) == pytest.approx(measured, rel=0.25)


def test_exact_zeros_do_not_count(make_onnx):
    """Every quantizer represents zero: behind a ReLU only what is not zero can be rounded."""
    model, w = matrices(make_onnx, (4, 6), (6, 1), activation="Relu")
    network, x = Network(model), random(50, 4)
    found = output_sensitivity(network, [torch.from_numpy(x)], ["h0"], layers_of(network), 0)
    h = np.maximum(x @ w["w0"], 0)
    expected = (w["w1"][:, 0] ** 2) * (h > 0).mean(0) / relative(h @ w["w1"])
    np.testing.assert_allclose(found.tensors["h0"].numpy(), expected, rtol=1e-4)


def test_errors_add_up_over_the_places_of_a_feature_map(make_onnx):
    model = make_onnx(
        [
            node("Conv", ["x", "w"], ["a"]),
            node("GlobalAveragePool", ["a"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "v"], ["y"]),
        ],
        {"x": ["n", 3, 4, 5]},
        {"y": ["n", 1]},
        {"w": random(6, 3, 1, 1), "v": random(6, 1)},
    )
    network, x = Network(model), random(9, 3, 4, 5)
    with torch.no_grad():
        y = network.run({"x": torch.from_numpy(x)})["y"].numpy()
    found = output_sensitivity(network, batches_of(torch.from_numpy(x), 9), ["a", "p", "f"], layers_of(network), 0)
    per_place = random(6, 1)[:, 0] ** 2 / relative(y)
    np.testing.assert_allclose(found.tensors["f"].numpy(), per_place, rtol=1e-4)
    np.testing.assert_allclose(found.tensors["p"].numpy(), per_place, rtol=1e-4)
    np.testing.assert_allclose(found.tensors["a"].numpy(), per_place * 20 / 20**2, rtol=1e-4)


def test_what_does_not_reach_the_output_has_none(make_onnx):
    model = make_onnx(
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["x", "v"], ["y"])],
        {"x": ["n", 4]},
        {"y": ["n", 2]},
        {"w": random(4, 3), "v": random(4, 2)},
    )
    model.graph.node.append(node("Neg", ["r"], ["aside"]))
    network = Network(model)
    found = output_sensitivity(network, [torch.from_numpy(random(5, 4))], ["x", "r"], layers_of(network), 0)
    assert (found.tensors["r"] == 0).all()
    assert (found.weights["a"] == 0).all()
    assert (found.tensors["x"] > 0).all()
    assert (found.weights["y"] > 0).all()


def test_nothing_to_measure(make_onnx):
    model, _ = matrices(make_onnx, (4, 3))
    found = output_sensitivity(Network(model), [torch.from_numpy(random(5, 4))], [], {}, 0)
    assert found.tensors == found.weights == {}


def test_an_answer_of_zeros_gives_numbers(make_onnx):
    model, _ = matrices(make_onnx, (4, 6), (6, 3), activation="Relu")
    network = Network(model)
    network.constants["w1"].zero_()
    found = output_sensitivity(network, [torch.from_numpy(random(5, 4))], ["h0"], layers_of(network), 0)
    assert torch.isfinite(found.tensors["h0"]).all()
    assert torch.isfinite(found.weights["y"]).all()


def test_of_several_outputs_each_counts_relative_to_itself(make_onnx):
    """Scaling one output changes nothing, scaling what both are made of neither."""
    w = random(4, 1)
    found = []
    for size in (1.0, 1000.0):
        model = make_onnx(
            [node("MatMul", ["x", "w"], ["y"]), node("Mul", ["x", "c"], ["z"])],
            {"x": ["n", 4]},
            {"y": ["n", 1], "z": ["n", 4]},
            {"w": w, "c": np.float32(size)},
        )
        network = Network(model)
        batches = [torch.from_numpy(random(30, 4))] * 5
        found.append(output_sensitivity(network, batches, ["x"], {}, 0).tensors["x"])
    torch.testing.assert_close(found[0], found[1])


def test_the_same_seed_gives_the_same(make_onnx):
    model, _ = matrices(make_onnx, (4, 6), (6, 5))
    network, batches = Network(model), [torch.from_numpy(random(5, 4))]
    a, b, c = (output_sensitivity(network, batches, ["h0"], layers_of(network), seed) for seed in (1, 1, 2))
    assert torch.equal(a.tensors["h0"], b.tensors["h0"])
    assert not torch.equal(a.tensors["h0"], c.tensors["h0"])


def test_the_weights_that_are_measured_stay_as_they_were(make_onnx):
    model, _ = matrices(make_onnx, (4, 6), (6, 5))
    network = Network(model)
    layers = layers_of(network)
    output_sensitivity(network, [torch.from_numpy(random(5, 4))], ["h0"], layers, 0)
    assert not any(layer.weight.requires_grad or layer.weight.grad is not None for layer in layers.values())


def test_watching_changes_nothing_and_lets_gradients_pass():
    seen = {}
    quantizers = watching(["a", "b"], seen)
    x = torch.randn(3)
    assert torch.equal(quantizers["a"](x), x)
    assert not x.requires_grad
    y = quantizers["b"](seen["a"] * 2)
    (gradient,) = torch.autograd.grad(y.sum(), seen["a"])
    assert (gradient == 2).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_a_projection_is_relative(seed, images, size):
    """Its squared gradients add up to one an image, over the mean square of the output, whatever the scale."""
    y = (torch.randn(images, 3, 4, generator=torch.Generator().manual_seed(seed)) * size).requires_grad_()
    (gradient,) = torch.autograd.grad(random_projection(y, torch.Generator().manual_seed(seed)), y)
    expected = 1 / float(y.detach().double().square().mean())
    assert float(gradient.double().square().sum()) == pytest.approx(images * expected, rel=1e-3)
    assert float(gradient.abs().max() / gradient.abs().min()) == pytest.approx(1.0)
