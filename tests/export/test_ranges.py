"""Ranges against the error that each candidate causes at the output, found by running the network with it."""

import numpy as np
import pytest
import torch
from onnx import helper

from calib import METHODS, TensorRange, make_observer
from export.quantize.network import Network
from export.quantize.qdq import activation_params
from export.quantize.ranges import candidate_ranges, choose_ranges
from export.quantize.statistics import ChannelSamples

SCHEMES = ("cpu", "trt")
node = helper.make_node


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def heavy(*shape, seed=0):
    """Most values small, a few of them far out, as activations are."""
    return np.random.default_rng([seed, *shape]).standard_t(2.5, shape).astype(np.float32)


def samples_of(x):
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    return ChannelSamples(*map(torch.from_numpy, (rows, rows.min(0), rows.max(0))))


def quantized(x, found, scheme):
    """What eight bits hold of a tensor: the definition, in float64."""
    if scheme == "trt":
        scale = float(activation_params(found, "trt").scale)
        return np.clip(np.rint(x / scale), -128, 127) * scale
    low, high = found.asymmetric
    scale = np.float64(np.float32((high - low) / 255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


# Candidates.


def check(found, low, high):
    for name, candidate in found.items():
        assert candidate.symmetric > 0, name
        bottom, top = candidate.asymmetric
        assert bottom <= 0 <= top, name
        assert bottom < top, name
        assert (candidate.minimum, candidate.maximum) == (low, high)
        for scheme in SCHEMES if max(-low, high) < 2.0**22 else ("cpu",):  # float16 has no scale for more
            params = activation_params(candidate, scheme)
            assert params.scale > 0
            assert np.isfinite(params.scale)


@pytest.mark.parametrize("seed", range(8))
def test_candidates_are_ranges_whatever_was_seen(seed):
    generator = np.random.default_rng(seed)
    size = 2.0 ** generator.uniform(-110, 60)
    rows = (heavy(int(generator.integers(1, 40)), 3, seed=seed) * size).astype(np.float32)
    rows = np.where(generator.random(rows.shape) < generator.random(), np.float32(0), rows)
    found = candidate_ranges(samples_of(rows))
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    check(found, low, high)
    if max(-low, high) >= 2.0**-100:
        assert set(METHODS) <= found.keys()
        assert found["minmax"].asymmetric == (low, high)
        assert found["minmax"].symmetric == max(-low, high)
        for candidate in found.values():
            bottom, top = candidate.asymmetric
            assert candidate.symmetric <= max(-low, high) * (1 + 1e-3)
            # Steps may be fitted to where zero is.
            assert bottom >= low - 0.05 * (high - low)
            assert top <= high + 0.05 * (high - low)


def test_candidates_are_what_the_observers_say_and_shares_of_the_largest():
    x = heavy(4000, 3)
    found = candidate_ranges(samples_of(x))
    for method in METHODS:
        observer = make_observer(method)
        observer.observe(x)
        observer.observe(np.array([x.min(), x.max()]))  # which need not be among the samples
        expected = observer.ranges()
        assert found[method].symmetric == pytest.approx(expected.symmetric)
        assert found[method].asymmetric == pytest.approx(expected.asymmetric)
    half = found["0.5"]
    assert half.symmetric == pytest.approx(0.5 * np.abs(x).max())
    assert half.asymmetric == pytest.approx((0.5 * x.min(), 0.5 * x.max()))
    assert found["0.5 above"].asymmetric == pytest.approx((x.min(), 0.5 * x.max()))
    assert found["0.5 below"].asymmetric == pytest.approx((0.5 * x.min(), x.max()))


@pytest.mark.parametrize("sign", [1, -1])
def test_of_one_sign_only_one_end_is_moved(sign):
    found = candidate_ranges(samples_of(sign * np.abs(random(500, 2))))
    assert not any("above" in name or "below" in name for name in found)
    for candidate in found.values():
        assert 0.0 in candidate.asymmetric


def test_methods_can_be_left_out():
    found = candidate_ranges(samples_of(random(500, 2)), ("minmax", "mse"))
    assert {"minmax", "mse", "0.9", "0.4 below"} <= found.keys()
    assert "entropy" not in found


@pytest.mark.parametrize("value", [0.0, 3.0, -0.25, 1e-35, 1e30])
def test_constants(value):
    """An image of one colour, a channel that is dead: a range that holds the value, exactly where it is the largest."""
    found = candidate_ranges(samples_of(np.full((200, 3), value, np.float32)))
    check(found, min(np.float32(value), 0.0), max(np.float32(value), 0.0))
    for scheme in SCHEMES if value < 2.0**22 else ("cpu",):  # float16 has no scale for more
        back = quantized(np.array([value]), found["minmax"], scheme)
        assert abs(back[0] - value) <= 2e-3 * abs(value) + 1e-30


def test_what_no_sample_hit_is_covered_nonetheless():
    """Extremes are of everything that was seen; where nothing was drawn they are all there is."""
    for rows in (torch.empty(0, 2), torch.zeros(30, 2)):
        seen = ChannelSamples(rows, torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 7.0]))
        found = candidate_ranges(seen)
        check(found, -1.0, 7.0)
        assert found["minmax"].asymmetric == (-1.0, 7.0)


# The choice.


def pooled(make_onnx, outputs=1, channels=6):
    """A tensor `a` that is read by something linear: what an error of it does is known exactly."""
    return make_onnx(
        [
            node("Identity", ["x"], ["a"]),
            node("GlobalAveragePool", ["a"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w"], ["y"]),
        ],
        {"x": ["n", channels, 5, 5]},
        {"y": ["n", outputs]},
        {"w": np.abs(random(channels, outputs))},
    )


def output_error_of(found, x, scheme, model, ort_run, tensor):
    """Relative squared error of the output with one tensor rounded, by ONNX Runtime."""
    assert tensor == "x", "the linear network is fed with what `a` is"
    exact, ours = (
        ort_run(model, {"x": v.astype(np.float32)})["y"] for v in (x, quantized(x.astype(np.float64), found, scheme))
    )
    return ((ours - exact) ** 2).sum(1).mean() / (exact**2).sum(1).mean()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_of_one_output_errors_are_exact_and_the_least_is_taken(make_onnx, ort_run, scheme, kind):
    model = pooled(make_onnx)
    x = heavy(32, 6, 5, 5, seed=3) + np.float32(0.5)
    x = np.maximum(x, 0) if kind == "positive" else x
    samples = {"a": samples_of(x)}
    ranges, choices = choose_ranges(Network(model), [torch.from_numpy(x)], samples, scheme, 0)
    candidates = candidate_ranges(samples["a"])
    assert choices["a"].errors.keys() == candidates.keys()
    true = {m: output_error_of(c, x, scheme, model, ort_run, "x") for m, c in candidates.items()}
    for method, error in choices["a"].errors.items():
        # float32 keeps so much of a difference.
        assert error == pytest.approx(true[method], rel=2e-2, abs=1e-9)
    chosen = choices["a"].method
    assert choices["a"].errors[chosen] == min(choices["a"].errors.values())
    assert ranges["a"] == candidates[chosen]
    assert true[chosen] <= 1.05 * min(true.values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_many_outputs_the_choice_is_close_to_the_best(make_onnx, ort_run, scheme):
    model = pooled(make_onnx, outputs=12)
    x = np.random.default_rng(4).laplace(0.5, 1.0, (128, 6, 5, 5)).astype(np.float32)
    samples = {"a": samples_of(x)}
    batches = [torch.from_numpy(x[i : i + 16]) for i in range(0, 128, 16)]
    _, choices = choose_ranges(Network(model), batches, samples, scheme, 0)
    true = {m: output_error_of(c, x, scheme, model, ort_run, "x") for m, c in candidate_ranges(samples["a"]).items()}
    assert true[choices["a"].method] <= 1.3 * min(true.values())


def test_several_tensors_are_told_apart(make_onnx):
    """Each has the errors that it causes alone; one that nothing reads has none, and keeps its extremes."""
    model = make_onnx(
        [
            node("Relu", ["x"], ["a"]),
            node("Mul", ["a", "tiny"], ["b"]),
            node("Neg", ["a"], ["aside"]),
            node("Abs", ["aside"], ["nowhere"]),
            node("Add", ["b", "x"], ["y"]),
        ],
        {"x": ["n", 2, 3, 3]},
        {"y": ["n", 2, 3, 3]},
        {"tiny": np.float32(1e-3)},
    )
    x = heavy(16, 2, 3, 3)
    a = np.maximum(x, 0)
    samples = {"x": samples_of(x), "a": samples_of(a), "b": samples_of(a * np.float32(1e-3)), "aside": samples_of(-a)}
    ranges, choices = choose_ranges(Network(model), [torch.from_numpy(x)], samples, "cpu", 0)
    assert list(ranges) == list(choices) == list(samples)
    assert choices["aside"].method == "minmax"
    assert set(choices["aside"].errors.values()) == {0.0}
    assert choices["x"].errors["minmax"] > 1e4 * choices["a"].errors["minmax"] > 0
    # What is a thousand times smaller behind it, and rounded by as much less, does the same.
    assert choices["b"].errors["minmax"] == pytest.approx(choices["a"].errors["minmax"], rel=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_known_is_kept(make_onnx, scheme):
    x = heavy(16, 6, 5, 5)
    known = TensorRange(-1.0, 1.0, 1.0, (-1.0, 1.0))
    ranges, choices = choose_ranges(
        Network(pooled(make_onnx)),
        [torch.from_numpy(x)],
        {"x": samples_of(x), "a": samples_of(x)},
        scheme,
        0,
        {"x": known},
    )
    assert ranges["x"] == known
    assert choices["x"].method == "known"
    assert choices["x"].errors["known"] > choices["a"].errors[choices["a"].method]
    assert choices["a"].method != "known"


def test_where_gradients_do_not_pass_the_squared_error_decides(make_onnx):
    model = make_onnx(
        [node("Selu", ["x"], ["a"]), node("Relu", ["a"], ["y"])], {"x": ["n", 2, 3, 3]}, {"y": ["n", 2, 3, 3]}
    )
    network = Network(model)
    assert not network.differentiable
    x = heavy(16, 2, 3, 3)
    known = TensorRange(-1.0, 1.0, 1.0, (-1.0, 1.0))
    samples = {"x": samples_of(x), "a": samples_of(x), "zero": samples_of(np.zeros_like(x))}
    ranges, choices = choose_ranges(network, [torch.from_numpy(x)], samples, "cpu", 0, {"x": known})
    assert {name: choice.method for name, choice in choices.items()} == {"x": "known", "a": "mse", "zero": "minmax"}
    assert ranges["x"] == known
    assert ranges["a"] == candidate_ranges(samples["a"])["mse"]
    assert all(choice.errors == {} for choice in choices.values())


@pytest.mark.parametrize(("scheme", "value"), [*((s, v) for s in SCHEMES for v in (0.0, 2.5, -0.01)), ("cpu", -1e20)])
def test_images_of_one_colour(make_onnx, scheme, value):
    x = np.full((8, 6, 5, 5), value, np.float32)
    ranges, choices = choose_ranges(Network(pooled(make_onnx)), [torch.from_numpy(x)], {"a": samples_of(x)}, scheme, 0)
    check({"a": ranges["a"]}, min(np.float32(value), 0.0), max(np.float32(value), 0.0))
    # One value alone can be held as well as eight bits can hold any.
    back = quantized(x.astype(np.float64), ranges["a"], scheme)
    assert np.abs(back - x).max() <= 2e-3 * abs(value)
    assert all(np.isfinite(error) for error in choices["a"].errors.values())


def test_no_tensors(make_onnx):
    assert choose_ranges(Network(pooled(make_onnx)), [torch.from_numpy(heavy(2, 6, 5, 5))], {}, "cpu", 0) == ({}, {})


def test_no_images_leave_the_extremes(make_onnx):
    x = heavy(8, 6, 5, 5)
    ranges, choices = choose_ranges(Network(pooled(make_onnx)), [], {"a": samples_of(x)}, "cpu", 0)
    assert choices["a"].method == "minmax"
    assert ranges["a"].asymmetric == (x.min(), x.max())


def test_the_same_seed_gives_the_same(make_onnx):
    x = heavy(16, 6, 5, 5)
    network = Network(pooled(make_onnx, outputs=5))
    errors = [
        choose_ranges(network, [torch.from_numpy(x)], {"a": samples_of(x)}, "cpu", seed)[1]["a"].errors
        for seed in (1, 1, 2)
    ]
    assert errors[0] == errors[1]
    assert errors[0] != errors[2]
