"""The search against exhaustive ones, graphs of mixed precision against the two they are mixed of, and the scan."""

import itertools
import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export.errors import QuantizationError
from export.quantize.emulation import Emulation
from export.quantize.mixed import keep_float, layer_names, tensors_in_integers
from export.quantize.search import Measurement, RankedLayer, search
from export.quantize.sensitivity import choose_precision, decibels, scan
from runtime.backends import open_session

SCHEMES = ("cpu", "trt")


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 24, 20), np.float32)


def batches_of(x, size=5):
    return lambda: [x[i : i + size] for i in range(0, len(x), size)]


def run_here(model, x):
    """Through the runtime, whose INT8 sums are exact on every processor."""
    session = open_session(model.SerializeToString(), "onnxruntime", threads=1)
    return session.run(x)


def op_types(model):
    return [node.op_type for node in model.graph.node]


# The search, with made-up networks.


def layers_of(noises, macs=None):
    return [RankedLayer(f"l{i}", (macs or [10] * len(noises))[i], noise) for i, noise in enumerate(noises)]


def additive(layers, calls=None, confirm=1.0):
    """A network whose layers lose points independently of each other."""

    def evaluate(kept):
        if calls is not None:
            calls.append(kept)
        drop = sum(layer.noise for layer in layers if layer.name not in kept)
        return Measurement(drop, drop, drop * confirm, 30.0)

    return evaluate


noise_lists = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=9)


@given(noise_lists, st.integers(0, 100).map(float))
def test_of_layers_that_add_up_the_fewest_are_kept(noises, max_drop):
    layers = layers_of(noises)
    calls = []
    found = search(additive(layers, calls), layers, max_drop)
    assert found.met
    assert len(calls) == len(set(calls)), "measured twice"
    assert [c.kept_float for c in found.candidates] == [tuple(x.name for x in layers if x.name in k) for k in calls]
    assert found.candidates[found.chosen].kept_float == found.kept_float
    assert found.candidates[found.chosen].drop <= max_drop
    fewest = min(
        n
        for n in range(len(noises) + 1)
        if any(sum(noises) - sum(chosen) <= max_drop for chosen in itertools.combinations(noises, n))
    )
    assert len(found.kept_float) == fewest


@st.composite
def monotone_networks(draw):
    """A list of groups of layers: the bound is kept to if at least one group is float. More float is never worse."""
    count = draw(st.integers(1, 7))
    groups = draw(st.lists(st.frozensets(st.integers(0, count - 1)), min_size=1, max_size=4))
    noises = draw(st.lists(st.integers(0, 9).map(float), min_size=count, max_size=count))
    return layers_of(noises), [{f"l{i}" for i in group} for group in groups]


@given(monotone_networks())
def test_of_monotone_networks_no_layer_of_the_result_can_be_put_back(network):
    layers, groups = network

    def meets(kept):
        return any(group <= kept for group in groups)

    def evaluate(kept):
        drop = 0.0 if meets(kept) else 5.0
        return Measurement(drop, drop, drop, 10.0)

    found = search(evaluate, layers, 1.0)
    kept = set(found.kept_float)
    assert found.met
    assert meets(kept)
    assert not any(meets(kept - {name}) for name in kept)


@given(st.integers(1, 6), st.randoms(use_true_random=False), st.floats(0, 5))
def test_of_any_network_the_result_is_what_was_measured(count, random, max_drop):
    layers = layers_of([random.random() for _ in range(count)])
    table = {}

    def evaluate(kept):
        table.setdefault(kept, Measurement(0.0, random.uniform(-1, 6), random.uniform(-1, 6), 0.0))
        return table[kept]

    found = search(evaluate, layers, max_drop)
    measured = table[frozenset(found.kept_float)]
    assert found.met == (measured.choosing <= max_drop and measured.confirming <= max_drop)
    everything = table.get(frozenset(layer.name for layer in layers))
    if not found.met:
        assert len(found.kept_float) == count
    elif everything is None:
        assert found.kept_float == (), "nothing else is known before every layer is tried"


def test_a_bound_that_cannot_be_kept_leaves_everything_float():
    layers = layers_of([1.0, 2.0])
    found = search(lambda kept: Measurement(3.0, 3.0, 3.0, 0.0), layers, 1.0)
    assert not found.met
    assert found.kept_float == ("l0", "l1")
    assert found.candidates[found.chosen].int8_share == 0.0


def test_what_only_suits_the_choosing_half_is_not_taken():
    layers = layers_of([8.0, 4.0, 2.0, 1.0])
    kept = search(additive(layers), layers, 3.0).kept_float
    assert kept == ("l0", "l1")
    confirmed = search(additive(layers, confirm=2.0), layers, 3.0).kept_float
    assert confirmed == ("l0", "l1", "l2")


def test_what_is_chosen_is_confirmed_and_the_next_best_taken_where_it_is_not():
    layers = layers_of([4.0, 2.0, 1.0, 0.5])
    asked = []

    def none_smaller_than_two(kept):
        asked.append(kept)
        return len(kept) >= 2

    assert search(additive(layers), layers, 4.0).kept_float == ("l0",)
    found = search(additive(layers), layers, 4.0, confirm=none_smaller_than_two)
    assert asked[0] == {"l0"}
    assert len(found.kept_float) >= 2
    assert found.candidates[found.chosen].drop <= 4.0
    whole = search(additive(layers), layers, 100.0, confirm=lambda kept: True)
    assert whole.kept_float == ()


def test_where_nothing_is_confirmed_every_layer_is_kept():
    layers = layers_of([4.0, 2.0, 1.0])
    asked = []
    found = search(additive(layers), layers, 4.0, confirm=lambda kept: asked.append(kept) or False)
    assert found.kept_float == ("l0", "l1", "l2")
    assert 0 < len(asked) <= 6
    assert len(set(asked)) == len(asked)


def test_layers_that_must_stay_float_do_and_count_for_the_share():
    layers = layers_of([1.0, 5.0, 1.0], macs=[60, 20, 20])
    found = search(additive(layers), layers, 1.0, start=["l0"])
    assert found.kept_float == ("l0", "l1")
    assert found.candidates[found.chosen].int8_share == pytest.approx(0.2)
    with pytest.raises(ValueError, match="'l9' is none of the layers l0, l1, l2"):
        search(additive(layers), layers, 1.0, start=["l9"])


def test_among_as_many_layers_those_with_less_work_are_kept():
    layers = layers_of([5.0, 4.9], macs=[1000, 10])
    assert search(additive(layers), layers, 5.0).kept_float == ("l1",)


def test_a_search_ends_when_its_evaluations_or_its_time_do():
    layers = layers_of([float(i) for i in range(1, 65)])
    calls = []
    found = search(additive(layers, calls), layers, 100.0, most_evaluations=6)
    assert found.met
    assert len(calls) <= 8
    seconds = itertools.count()
    found = search(additive(layers, late := []), layers, 100.0, seconds=5.0, clock=lambda: float(next(seconds)))
    assert found.met
    assert len(late) <= 8


@pytest.mark.parametrize("max_drop", [-0.1, math.nan, math.inf, 101.0])
def test_a_bound_that_is_none(max_drop):
    with pytest.raises(ValueError, match="expected points from 0 to 100"):
        search(additive([]), [], max_drop)


# Graphs of mixed precision.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_every_layer_kept_the_graph_is_the_float_one(tiny_onnx, minmax_int8, ort_run, scheme):
    mixed = keep_float(minmax_int8[scheme], tiny_onnx, scheme, layer_names(tiny_onnx))
    assert op_types(mixed) == op_types(tiny_onnx)
    x = {"input": images(3)}
    assert np.array_equal(ort_run(mixed, x)["logits"], ort_run(tiny_onnx, x)["logits"])
    assert len(mixed.graph.initializer) == len(tiny_onnx.graph.initializer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_no_layer_kept_the_graph_is_the_quantized_one(tiny_onnx, minmax_int8, scheme):
    assert keep_float(minmax_int8[scheme], tiny_onnx, scheme, ()) == minmax_int8[scheme]


def test_only_pairs_that_an_int8_layer_needs_are_left(tiny_onnx):
    stem, depthwise, pointwise, head = layer_names(tiny_onnx)
    node = {n.output[0]: n for n in tiny_onnx.graph.node}
    reads = {name: node[name].input[0] for name in (stem, depthwise, pointwise, head)}
    assert tensors_in_integers(tiny_onnx, "trt", [stem, depthwise, pointwise]) == {reads[head]}
    assert tensors_in_integers(tiny_onnx, "trt", [stem, pointwise, head]) == {reads[depthwise]}
    # Its output too, so that the layer becomes one integer kernel.
    assert tensors_in_integers(tiny_onnx, "cpu", [stem, pointwise, head]) == {reads[depthwise], reads[pointwise]}
    # The add takes what the pointwise layer gives: with that in float, nothing is rounded for it.
    (add,) = (n for n in tiny_onnx.graph.node if n.op_type == "Add")
    assert pointwise in tensors_in_integers(tiny_onnx, "trt", [head])
    assert not set(add.input) - {reads[depthwise]} & tensors_in_integers(tiny_onnx, "trt", [pointwise])
    assert tensors_in_integers(tiny_onnx, "trt", layer_names(tiny_onnx)) == frozenset()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_mixture_is_what_torch_says_it_is(tiny_onnx, minmax_int8, ort_run, scheme):
    emulation = Emulation(minmax_int8[scheme], tiny_onnx, scheme)
    x = images(4, seed=3)
    names = layer_names(tiny_onnx)
    exact = ort_run(tiny_onnx, {"input": x})["logits"]
    errors = {}
    for count in range(len(names) + 1):
        for kept in itertools.combinations(names, count):
            mixed = keep_float(minmax_int8[scheme], tiny_onnx, scheme, kept)
            onnx.checker.check_model(mixed, full_check=True)
            ran = ort_run(mixed, {"input": x}, optimize=False)["logits"]
            emulated = emulation.run(torch.from_numpy(x), set(kept))["logits"].numpy()
            # A value between two codes may fall to either side.
            assert np.linalg.norm(ran - emulated) <= 5e-3 * np.linalg.norm(exact)
            errors[kept] = np.linalg.norm(ran - exact)
    assert errors[tuple(names)] < 1e-5
    assert errors[()] > 0


def test_layers_that_are_not_there(tiny_onnx, minmax_int8, make_onnx):
    with pytest.raises(QuantizationError, match="no weighted layer 'nothing': expected some of"):
        keep_float(minmax_int8["cpu"], tiny_onnx, "cpu", ["nothing"])
    weight = {"w": np.ones((4, 3), np.float32)}
    other = make_onnx([helper.make_node("MatMul", ["a", "w"], ["y"])], {"a": [1, 4]}, {"y": [1, 3]}, weight)
    with pytest.raises(QuantizationError, match="no layer 'y': it is not of this float graph"):
        keep_float(minmax_int8["cpu"], other, "cpu", ["y"])
    with pytest.raises(QuantizationError, match="no layer 'y' in INT8: it is not of this float graph"):
        Emulation(minmax_int8["cpu"], other, "cpu")
    plain = make_onnx([helper.make_node("Relu", ["a"], ["y"])], {"a": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(QuantizationError, match="no layer with constant weights"):
        Emulation(plain, plain, "cpu")


# The scan.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_alone_is_the_mixture_with_all_others_kept(tiny_onnx, minmax_int8, ort_run, scheme):
    emulation = Emulation(minmax_int8[scheme], tiny_onnx, scheme)
    x = images(6, seed=5)
    names = layer_names(tiny_onnx)
    exact = ort_run(tiny_onnx, {"input": x})["logits"].astype(np.float64)
    alone = {name: outputs["logits"].numpy() for name, outputs, _ in emulation.one_by_one(torch.from_numpy(x))}
    assert sorted(alone) == sorted(names)
    found = {layer.name: layer for layer in scan(emulation, batches_of(x))}
    assert list(found) == names
    for name in names:
        together = emulation.run(torch.from_numpy(x), {n for n in names if n != name})["logits"].numpy()
        if scheme == "cpu":
            assert np.array_equal(alone[name], together)
        else:  # where what is not in integers is float16
            np.testing.assert_allclose(alone[name], together, atol=2e-2 * np.abs(together).max())
        ratio = (exact**2).sum() / ((alone[name] - exact) ** 2).sum()
        assert found[name].snr_db == pytest.approx(10 * math.log10(ratio), abs=0.05)
        assert found[name].agreement == (alone[name].argmax(1) == exact.argmax(1)).mean()
        top = exact.argmax(1)
        others = np.arange(5) != top[:, None]
        margins = [
            y[np.arange(6), top] - np.where(others, y, -np.inf).max(1) for y in (exact, alone[name].astype(np.float64))
        ]
        near = margins[0] <= np.sort(margins[0])[2]  # the lower median of six
        assert found[name].noise == pytest.approx(((margins[1] - margins[0])[near] ** 2).mean(), rel=1e-3)


def test_a_scan_is_bounded(tiny_onnx, minmax_int8, monkeypatch):
    emulation = Emulation(minmax_int8["cpu"], tiny_onnx, "cpu")
    seen = []
    real = emulation.one_by_one
    monkeypatch.setattr(emulation, "one_by_one", lambda x: seen.append(len(x)) or real(x))
    scan(emulation, batches_of(images(200), 50))
    assert seen == [50, 14]


def test_noise_that_moves_all_scores_alike_counts_for_nothing(tiny_onnx, minmax_int8):
    """A shift of all scores is loud at the output, and changes no answer: the layer that adds it is ranked last."""
    emulation = Emulation(minmax_int8["trt"], tiny_onnx, "trt")
    x = images(4)
    exact = emulation.exact(torch.from_numpy(x))
    loud = {"logits": exact["logits"] + 100.0}
    quiet = {"logits": exact["logits"] + torch.tensor([0.0, 0.01, 0.0, 0.0, 0.0])}
    emulation.one_by_one = lambda x: [("loud", loud, exact), ("quiet", quiet, exact)]
    emulation.layers = {"loud": None, "quiet": None}
    emulation.macs = {"loud": 1, "quiet": 1}
    loud, quiet = scan(emulation, batches_of(x))
    assert loud.snr_db < 0 < quiet.snr_db
    assert loud.noise < 1e-6 < quiet.noise
    assert loud.agreement == 1.0


@given(st.floats(1e-20, 1e20))
def test_decibels(noise):
    assert decibels(noise) == pytest.approx(min(200, -10 * math.log10(noise)), abs=1e-6)


def test_no_noise_is_a_number_that_json_has():
    assert decibels(0.0) == 200.0
    assert decibels(1e30) == -200.0


# The whole choice.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_choice_keeps_to_its_bound_on_the_graph_that_is_shipped(tiny_onnx, minmax_int8, scheme):
    x = images(40, seed=7)
    choice = choose_precision(minmax_int8[scheme], tiny_onnx, scheme, batches_of(x), 0.0)
    assert choice.met
    assert choice.images == 40
    mixed = keep_float(minmax_int8[scheme], tiny_onnx, scheme, choice.kept_float)
    ours, exact = (run_here(m, x)["logits"] for m in (mixed, tiny_onnx))
    assert (ours.argmax(1) == exact.argmax(1)).all()
    assert choice.candidates[choice.chosen].kept_float == choice.kept_float
    if choice.kept_float:
        assert "40 answers resolve 2.5 points" in choice.remark
    everything = choose_precision(minmax_int8[scheme], tiny_onnx, scheme, batches_of(x), 100.0)
    assert everything.kept_float == ()
    assert everything.remark == ""
    assert everything.drop_of == "agreement"
    assert "dB at the output" in everything.reason(layer_names(tiny_onnx)[0])


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
def test_the_graph_itself_confirms_a_choice(tiny_onnx, minmax_int8, ort_run, scheme):
    x = images(40, seed=2)
    exact = ort_run(tiny_onnx, {"input": x})["logits"].argmax(1)
    made = []

    def make(kept):
        made.append(tuple(sorted(kept)))
        # As if another runtime lost everything where a layer is in INT8.
        broken = onnx.ModelProto()
        broken.CopyFrom(keep_float(minmax_int8[scheme], tiny_onnx, scheme, kept))
        if len(kept) < len(layer_names(tiny_onnx)):
            broken.graph.node.append(helper.make_node("Neg", ["logits"], ["negative"]))
            broken.graph.output[0].name = "negative"
        return broken

    choice = choose_precision(
        minmax_int8[scheme], tiny_onnx, scheme, batches_of(x), 30.0, labels=exact.tolist(), made=make
    )
    assert made
    assert choice.kept_float == tuple(layer_names(tiny_onnx))


def test_labels_are_counted_by_halves(tiny_onnx, minmax_int8):
    x = images(40, seed=7)
    exact = run_here(tiny_onnx, x)["logits"].argmax(1)
    choice = choose_precision(minmax_int8["cpu"], tiny_onnx, "cpu", batches_of(x), 100.0, labels=list(exact))
    (only,) = choice.candidates
    ours = run_here(minmax_int8["cpu"], x)["logits"].argmax(1)
    assert choice.drop_of == "accuracy"
    assert only.drop == pytest.approx(100 * (ours != exact).mean(), abs=2.6)
    wrong = (exact + 1) % 5  # the float network is never right: INT8 can only win
    assert choose_precision(minmax_int8["cpu"], tiny_onnx, "cpu", batches_of(x), 0.0, list(wrong)).kept_float == ()
    with pytest.raises(QuantizationError, match="there are 3 labels for 40 images"):
        choose_precision(minmax_int8["cpu"], tiny_onnx, "cpu", batches_of(x), 0.0, [0, 1, 2])


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_expected_disagreement_is_that_of_all_pairs(seed, count):
    from export.quantize.sensitivity import _Difference

    generator = np.random.default_rng(seed)
    exact = generator.standard_normal((count, 4)).astype(np.float32)
    ours = exact + 0.5 * generator.standard_normal((count, 4)).astype(np.float32)
    difference = _Difference(1)
    difference.add({"y": torch.from_numpy(ours)}, {"y": torch.from_numpy(exact)})
    top = exact.argmax(1)
    margins = [
        y[np.arange(count), top] - np.where(np.arange(4) != top[:, None], y, -np.inf).max(1) for y in (exact, ours)
    ]
    changes = margins[0] - margins[1]
    pairs = np.mean(margins[0][:, None] < changes[None, :])
    assert difference.expected_disagreement == pytest.approx(pairs, abs=1e-6)
    assert difference.agreement == pytest.approx((ours.argmax(1) == top).mean())


def test_answers_of_every_pixel_count(make_onnx):
    from calib import TensorRange
    from export.quantize import insert_qdq, tensors_to_observe

    weight = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["input", "w"], ["y"], pads=[1, 1, 1, 1])]
    model = make_onnx(nodes, {"input": ["n", 3, 8, 8]}, {"y": ["n", 3, 8, 8]}, {"w": weight})
    x = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)
    ranges = dict.fromkeys(tensors_to_observe(model), TensorRange(-4.0, 4.0, 4.0, (-4.0, 4.0)))
    quantized = insert_qdq(model, ranges, "cpu")
    choice = choose_precision(quantized, model, "cpu", batches_of(x, 2), 100.0)
    ours, exact = (run_here(m, x)["y"].argmax(1) for m in (quantized, model))
    assert choice.candidates[0].drop == pytest.approx(100 * (ours != exact).mean(), abs=0.6)


def test_what_measures_nothing_is_refused(tiny_onnx, minmax_int8, make_onnx):
    def choose(x, **options):
        return choose_precision(minmax_int8["cpu"], tiny_onnx, "cpu", batches_of(x), 1.0, **options)

    with pytest.raises(QuantizationError, match="needs two images, one to choose by and one to confirm: got 1"):
        choose(images(1))
    with pytest.raises(QuantizationError, match="answers all of these images alike"):
        choose(np.repeat(images(1), 12, 0))
    with pytest.raises(QuantizationError, match="which this network has none of"):
        choose(images(4), class_axis=None)
    with pytest.raises(ValueError, match="max_drop is nan"):
        choose_precision(minmax_int8["cpu"], tiny_onnx, "cpu", batches_of(images(4)), math.nan)
