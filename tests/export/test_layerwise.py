"""Layers rounded one after the other, judged by running them: what comes out against what the float network gives."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

from calib import TensorRange
from export.quantize import layerwise
from export.quantize.fake import FakeQuantizer
from export.quantize.layers import quantized_tensors, weighted_layers
from export.quantize.layerwise import LayerQuantizer, input_rows
from export.quantize.network import Network
from export.quantize.qdq import activation_params
from export.quantize.rounding import round_to_nearest

node = helper.make_node


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def images_of(count, *shape, seed=3):
    """Smooth, with a mean: neighbouring places and channels have something in common, as in photographs."""
    generator = np.random.default_rng([seed, count, *shape])
    coarse = generator.standard_normal((count, 1, *[1] * (len(shape) - 1)))
    across = generator.standard_normal((count, *shape[:1], *[1] * (len(shape) - 1)))
    return (0.5 + coarse + 0.5 * across + 0.4 * generator.standard_normal((count, *shape))).astype(np.float32)


# One layer: operator, attributes, shape of an image, of the weights, of the bias, axis of the output channels.
LAYERS = {
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}, (4, 8, 7), (6, 4, 3, 3), (6,), 0),
    "strided conv": ("Conv", {"strides": [2, 2], "pads": [0, 1, 1, 0]}, (4, 8, 7), (6, 4, 3, 3), (6,), 0),
    "bias-free conv": ("Conv", {}, (4, 8, 7), (6, 4, 3, 3), None, 0),
    "pointwise conv": ("Conv", {}, (12, 5, 5), (6, 12, 1, 1), (6,), 0),
    "depthwise conv": ("Conv", {"group": 6, "pads": [1, 1, 1, 1]}, (6, 8, 7), (6, 1, 3, 3), (6,), 0),
    "grouped conv": ("Conv", {"group": 2}, (8, 8, 7), (6, 4, 3, 3), None, 0),
    "Gemm": ("Gemm", {}, (12,), (12, 5), (5,), 1),
    "Gemm, transposed": ("Gemm", {"transB": 1}, (12,), (5, 12), (5,), 0),
    "bias-free Gemm": ("Gemm", {"transB": 1}, (12,), (5, 12), None, 0),
    "MatMul": ("MatMul", {}, (12,), (12, 5), None, 1),
    "MatMul on a sequence": ("MatMul", {}, (4, 12), (12, 5), None, 1),
    # No matrix product of rows is made of these: they are rounded to the nearest, and their means corrected.
    "ConvTranspose": ("ConvTranspose", {"strides": [2, 2]}, (4, 5, 5), (4, 6, 2, 2), (6,), 1),
    "bias-free ConvTranspose": ("ConvTranspose", {"strides": [2, 2]}, (4, 5, 5), (4, 6, 3, 3), None, 1),
    "conv of sequences": ("Conv", {"pads": [1, 1]}, (4, 9), (6, 4, 3), None, 0),
    "conv, padded by the runtime": ("Conv", {"auto_pad": "SAME_UPPER"}, (4, 8, 7), (6, 4, 2, 2), None, 0),
}  # fmt: skip
NEAREST = ("ConvTranspose", "bias-free ConvTranspose", "conv of sequences", "conv, padded by the runtime")


def network_of(make_onnx, name, weight=None):
    """input → layer `a` → Neg, and its weights."""
    op, attributes, shape, w_shape, b_shape, _ = LAYERS[name]
    arrays = {"w": random(*w_shape) if weight is None else weight}
    if b_shape is not None:
        arrays["b"] = random(*b_shape, seed=1)
    rank = len(shape) + 1
    model = make_onnx(
        [node(op, ["x", *arrays], ["a"], **attributes), node("Neg", ["a"], ["y"])],
        {"x": ["n", *shape]},
        {"y": [None] * rank},
        arrays,
    )
    return Network(model), weighted_layers(Network(model).index)


def coarse(weight, axis, levels=7):
    """Steps at which rounding matters."""
    largest = weight.abs().amax([i for i in range(weight.ndim) if i != axis])
    return (largest / levels).clamp_min(1e-6)


def coarsely(x, levels=15):
    """A quantizer of activations whose errors have a mean: it clips."""
    top = float(np.abs(x).max()) * 0.6
    return FakeQuantizer(activation_params(TensorRange(-top, top, top * 127 / levels, (-top, top)), "trt"))


def quantize(network, layers, x, batch=6, quantizers=None, scales=None, rows=8.0, **options):
    scales = scales or {layer.node.output[0]: coarse(network.constants[layer.weight], layer.axis) for layer in layers}
    quantizer = LayerQuantizer(network, layers, scales, quantizers or {}, rows, 0, options.pop("done", None))
    batches = [torch.from_numpy(x[i : i + batch]) for i in range(0, len(x), batch)]
    return quantizer, quantizer.run(iter(batches), len(x), **options)


def run_layer(network, layer, x, weight, bias):
    step = network.steps[network.position[layer.node.output[0]]]
    with torch.no_grad():
        return step.compute([x, weight, bias])[0]


def by_channel(x):
    return x.movedim(1, 0).flatten(1) if x.ndim > 1 else x[None]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_errs_less_than_with_nearest_weights_and_not_on_average(make_onnx, name):
    network, (layer,) = network_of(make_onnx, name)
    x = images_of(30, *LAYERS[name][2])
    rounding = coarsely(x)
    quantizer, results = quantize(network, [layer], x, quantizers={"x": rounding})
    result = results["a"]
    weight = network.constants["w"]
    bias = network.constants.get("b")
    assert result.codes.dtype == torch.int8
    assert result.codes.shape == weight.shape
    assert result.codes.abs().max() <= 127

    exact = run_layer(network, layer, torch.from_numpy(x), weight, bias)
    seen = rounding(torch.from_numpy(x))
    ours = result.constants(layer.axis)
    found = run_layer(network, layer, seen, ours.weight, ours.bias)
    outcome = quantizer.outcomes["a"]
    spread = by_channel(exact).std(1)

    if layer.node.op_type == "MatMul":
        assert result.bias is None
    else:
        assert result.bias.shape == (weight.shape[layer.axis],)
        mean_error = by_channel(found - exact).mean(1)
        assert (mean_error.abs() <= 5e-3 * spread).all(), "float16 on disk keeps three digits"
        untreated = by_channel(run_layer(network, layer, seen, ours.weight, bias) - exact).mean(1)
        assert untreated.abs().max() > 5 * mean_error.abs().max(), "there was something to correct"
        assert outcome.bias_shift == pytest.approx(float(untreated.abs().max()) / float(spread.mean()), rel=1.0) or (
            name in NEAREST and outcome.bias_shift == 0.0
        )

    # Of weights alone, on the inputs as they are rounded, means aside.
    shape = [-1 if i == layer.axis else 1 for i in range(weight.ndim)]
    nearest = round_to_nearest(weight.movedim(layer.axis, 0).flatten(1), result.scale)
    nearest = nearest.reshape(weight.movedim(layer.axis, 0).shape).movedim(0, layer.axis) * result.scale.reshape(shape)
    errors = []
    for w in (nearest, ours.weight):
        off = by_channel(run_layer(network, layer, seen, w - weight, None))
        errors.append(float((off - off.mean(1, keepdim=True)).square().sum()))
    if name in NEAREST:
        assert torch.equal(nearest, ours.weight)
    else:
        assert outcome.rounded_error <= outcome.nearest_error
        assert errors[1] < 0.9 * errors[0]
        # As it was measured on samples.
        assert outcome.rounded_error / outcome.nearest_error == pytest.approx(errors[1] / errors[0], rel=0.2)
    ratio = 10 * np.log10(float(exact.square().sum() / (found - exact).square().sum()))
    assert outcome.signal_to_noise == pytest.approx(ratio, abs=0.1)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NEAREST and LAYERS[name][0] == "Conv"])
def test_rows_are_what_unfolding_gives(make_onnx, name):
    network, (layer,) = network_of(make_onnx, name)
    _, attributes, shape, w_shape, _, _ = LAYERS[name]
    x = torch.from_numpy(images_of(3, *shape))
    rows = input_rows(layer, x, network, 1e9, torch.Generator())
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    padded = F.pad(x, (left, right, top, bottom))
    groups = attributes.get("group", 1)
    unfolded = F.unfold(padded, w_shape[2:], stride=attributes.get("strides", 1))  # (N, C·kh·kw, L)
    expected = unfolded.reshape(3, groups, -1, unfolded.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
    assert torch.equal(rows, expected)
    # Multiplied with the weights they are the layer's output.
    weight = network.constants["w"].reshape(groups, w_shape[0] // groups, -1)
    product = (rows @ weight.transpose(1, 2)).reshape(groups, 3, -1, w_shape[0] // groups)
    exact = run_layer(network, layer, x, network.constants["w"], None)
    torch.testing.assert_close(product.permute(1, 0, 3, 2).reshape(exact.shape), exact, rtol=1e-4, atol=1e-4)
    # Fewer: places of the same kind, the same for all images and groups.
    few = input_rows(layer, x, network, 9, torch.Generator().manual_seed(0))
    assert few.shape == (groups, 9, rows.shape[2])
    places = rows.reshape(groups, 3, -1, rows.shape[2])
    drawn = few.reshape(groups, 3, 3, rows.shape[2])
    at = [next(i for i in range(places.shape[2]) if torch.equal(places[:, :, i], drawn[:, :, j])) for j in range(3)]
    assert len(set(at)) == 3


def test_rows_of_matrices(make_onnx):
    network, (layer,) = network_of(make_onnx, "MatMul on a sequence")
    x = torch.from_numpy(images_of(3, 4, 12))
    assert torch.equal(input_rows(layer, x, network, 1e9, torch.Generator())[0], x.reshape(12, 12))
    few = input_rows(layer, x, network, 5, torch.Generator().manual_seed(0))[0]
    assert few.shape == (5, 12)
    assert all(any(torch.equal(row, other) for other in x.reshape(12, 12)) for row in few)


def block(make_onnx):
    """Plain, depthwise, a residual that is given out and read on, a head, and an operator left to a runtime."""
    arrays = {
        "w1": random(8, 3, 3, 3),
        "b1": random(8),
        "w2": random(8, 1, 3, 3),
        "w3": random(8, 8, 1, 1) / 2,
        "b3": random(8, seed=2),
        "w4": random(8, 5),
    }
    model = make_onnx(
        [
            node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "w2"], ["d"], pads=[1, 1, 1, 1], group=8),
            node("Selu", ["d"], ["rd"]),
            node("Conv", ["rd", "w3", "b3"], ["c"]),
            node("Add", ["c", "r"], ["s"]),
            node("GlobalAveragePool", ["s"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "w4"], ["y"]),
        ],
        {"x": ["n", 3, 8, 8]},
        {"y": ["n", 5], "s": ["n", 8, 8, 8]},
        arrays,
    )
    network = Network(model)
    x = images_of(24, 3, 8, 8)
    seen = network.run({"x": torch.from_numpy(x)}, keep=("x", "r", "rd", "c", "f"))
    names = quantized_tensors(network.index, "trt")
    assert set(names) == {"x", "r", "rd", "c", "f"}
    quantizers = {name: coarsely(seen[name].numpy(), 30) for name in names}
    return network, weighted_layers(network.index), x, quantizers


def test_each_layer_is_right_on_average_behind_all_that_was_rounded(make_onnx):
    network, layers, x, quantizers = block(make_onnx)
    quantizer, results = quantize(network, layers, x, quantizers=quantizers)
    names = ["a", "d", "c", "y"]
    assert list(results) == list(quantizer.outcomes) == names
    constants = {layer.node.output[0]: results[layer.node.output[0]].constants(layer.axis) for layer in layers}
    # What the layers make, before anything rounds it.
    captured = ({}, {})
    for seen, replaced, rounding in ((captured[0], {}, {}), (captured[1], constants, quantizers)):

        def note(name, seen=seen, rounding=rounding):
            def quantizer(v):
                seen[name] = v
                return rounding[name](v) if name in rounding else v

            return quantizer

        with torch.no_grad():
            network.run(
                {"x": torch.from_numpy(x)}, layers=replaced, quantizers={**rounding, **{n: note(n) for n in names}}
            )
    for name in names:
        exact, ours = by_channel(captured[0][name]), by_channel(captured[1][name])
        assert ((ours - exact).mean(1).abs() <= 5e-3 * exact.std(1)).all(), name
        ratio = 10 * np.log10(float(exact.square().sum() / (ours - exact).square().sum()))
        assert quantizer.outcomes[name].signal_to_noise == pytest.approx(ratio, abs=1.0), name


def test_an_interrupted_run_goes_on_where_it_was(make_onnx, monkeypatch):
    network, layers, x, quantizers = block(make_onnx)
    told, saved = [], {}
    whole, results = quantize(
        network,
        layers,
        x,
        quantizers=quantizers,
        progress=lambda done, total: told.append((done, total)),
        on_layer=lambda name, layer: saved.setdefault(name, layer),
    )
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(saved) == list(results)
    solved = []
    real = layerwise.round_compensating
    monkeypatch.setattr(layerwise, "round_compensating", lambda *a: solved.append(a[0].shape) or real(*a))
    for count in (1, 3, 4):
        solved.clear()
        done = dict(itertools.islice(saved.items(), count))
        resumed, again = quantize(network, layers, x, quantizers=quantizers, done=done)
        assert len(solved) == 4 - count
        for name, layer in results.items():
            assert torch.equal(again[name].codes, layer.codes)
            assert torch.equal(again[name].bias, layer.bias)
        assert resumed.outcomes == whole.outcomes


def test_batches_and_repetition_make_no_difference(make_onnx):
    network, layers, x, quantizers = block(make_onnx)
    _, first = quantize(network, layers, x, quantizers=quantizers)
    _, again = quantize(network, layers, x, quantizers=quantizers)
    _, alone = quantize(network, layers, x, batch=1, quantizers=quantizers, rows=1e9)
    _, at_once = quantize(network, layers, x, batch=100, quantizers=quantizers, rows=1e9)
    for name in first:
        assert torch.equal(first[name].codes, again[name].codes)
        assert torch.equal(first[name].bias, again[name].bias)
    # Every place counted, in batches of one or all together: but for float16 on disk, scaled by the batch.
    assert torch.equal(alone["a"].codes, at_once["a"].codes)
    torch.testing.assert_close(alone["a"].bias, at_once["a"].bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("images", [1, 2])
def test_fewer_images_than_a_batch(make_onnx, images):
    network, layers, x, quantizers = block(make_onnx)
    quantizer, results = quantize(network, layers, x[:images], quantizers=quantizers)
    for name, layer in results.items():
        assert torch.isfinite(layer.bias).all()
        assert quantizer.outcomes[name].rounded_error <= quantizer.outcomes[name].nearest_error


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_images_of_one_colour_come_out_exactly(make_onnx, value):
    """Inputs that never change: weights are rounded to the nearest, and biases hold all that is lost."""
    network, (layer,) = network_of(make_onnx, "bias-free conv")
    x = np.full((5, 4, 8, 7), value, np.float32)
    quantizer, results = quantize(network, [layer], x)
    result = results["a"].constants(0)
    ours = run_layer(network, layer, torch.from_numpy(x), result.weight, result.bias)
    exact = run_layer(network, layer, torch.from_numpy(x), network.constants["w"], None)
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    weight = network.constants["w"]
    assert torch.equal(
        results["a"].codes.float(), round_to_nearest(weight.flatten(1), results["a"].scale).reshape(weight.shape)
    )
    assert quantizer.outcomes["a"].bias_shift == 0.0
    assert quantizer.outcomes["a"].rounded_error == quantizer.outcomes["a"].nearest_error == 0.0
    assert quantizer.outcomes["a"].signal_to_noise > 50


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_zero_and_channels_without_any(make_onnx, name):
    weight = random(*LAYERS[name][3])
    axis = LAYERS[name][5]
    np.moveaxis(weight, axis, 0)[2] = 0
    for w in (weight, np.zeros_like(weight)):
        network, (layer,) = network_of(make_onnx, name, w)
        x = images_of(7, *LAYERS[name][2])
        quantizer, results = quantize(network, [layer], x, quantizers={"x": coarsely(x)})
        result = results["a"]
        assert (result.codes.movedim(axis, 0)[2] == 0).all()
        outcome = quantizer.outcomes["a"]
        assert np.isfinite([outcome.nearest_error, outcome.rounded_error, outcome.bias_shift]).all()
        if result.bias is not None:
            bias = network.constants.get("b", torch.zeros(weight.shape[axis]))
            assert torch.isfinite(result.bias).all()
            assert result.bias[2] == pytest.approx(float(bias[2]), abs=1e-6)


def test_channels_that_are_always_zero(make_onnx):
    """Dead inputs among live ones: rounded to the nearest, and no harm to the others."""
    network, (layer,) = network_of(make_onnx, "pointwise conv")
    x = images_of(20, 12, 5, 5)
    x[:, [3, 7]] = 0
    quantizer, results = quantize(network, [layer], x)
    weight = network.constants["w"]
    nearest = round_to_nearest(weight.flatten(1), results["a"].scale).reshape(weight.shape)
    assert torch.equal(results["a"].codes[:, [3, 7]].float(), nearest[:, [3, 7]])
    assert quantizer.outcomes["a"].rounded_error < 0.8 * quantizer.outcomes["a"].nearest_error


@pytest.mark.parametrize("size", [1e-25, 1e-6, 1e6, 1e18, 1e25])
def test_activations_of_any_size(make_onnx, size):
    """Down to where squares underflow and up to where they overflow: never worse than the nearest, never no number."""
    network, (layer,) = network_of(make_onnx, "conv")
    network.constants["b"] *= size
    x = images_of(12, 4, 8, 7) * np.float32(size)
    _, results = quantize(network, [layer], x)
    result = results["a"].constants(0)
    assert results["a"].codes.abs().max() <= 127
    assert (results["a"].codes != 0).float().mean() > 0.5
    exact = run_layer(network, layer, torch.from_numpy(x), network.constants["w"], network.constants["b"])
    ours = run_layer(network, layer, torch.from_numpy(x), result.weight, result.bias)
    assert torch.isfinite(ours).all()
    assert float(((ours - exact) / size).double().square().mean()) < 0.05 * float(
        (exact / size).double().square().mean()
    )


def test_layers_that_share_weights_are_each_rounded_for_their_own_inputs(make_onnx):
    model = make_onnx(
        [
            node("Conv", ["x", "w"], ["a"]),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "w"], ["c"]),
            node("Neg", ["c"], ["y"]),
        ],
        {"x": ["n", 6, 5, 5]},
        {"y": ["n", 6, 5, 5]},
        {"w": random(6, 6, 1, 1)},
    )
    network = Network(model)
    before = network.constants["w"].clone()
    _, results = quantize(network, weighted_layers(network.index), images_of(20, 6, 5, 5))
    assert torch.equal(network.constants["w"], before)
    assert not torch.equal(results["a"].codes, results["c"].codes)
    assert torch.equal(results["a"].scale, results["c"].scale)


def test_a_network_without_layers(make_onnx):
    model = make_onnx([node("Relu", ["x"], ["y"])], {"x": ["n", 3, 4, 4]}, {"y": ["n", 3, 4, 4]})
    quantizer, results = quantize(Network(model), [], images_of(3, 3, 4, 4))
    assert results == quantizer.outcomes == {}
