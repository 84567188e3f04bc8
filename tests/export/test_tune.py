"""Tuning on machines that are made up, whose every choice can be timed, and on real graphs with a clock that is not."""

import itertools
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export.errors import QuantizationError
from export.quantize import timing
from export.quantize.mixed import keep_float, layer_names
from export.quantize.timing import GraphTimer, example_input, layer_links, profile_layers, tune_graph
from export.quantize.tune import Link, TimedLayer, cheapest_choice, latency, tune
from runtime.errors import BackendError
from runtime.manifest import TensorSpec


class Machine:
    """Times choices by what layers and conversions cost on it, and a part that no profile shows."""

    def __init__(self, int8, float_, links=(), per_value=0.0, hidden=lambda kept: 0.0, jitter=0.0):
        self.int8, self.float, self.links = int8, float_, links
        self.per_value, self.hidden, self.jitter = per_value, hidden, jitter
        self.calls = 0
        self.generator = np.random.default_rng(0)

    def seconds(self, kept):
        layers = sum(self.float[n] if n in kept else self.int8[n] for n in self.int8)
        crossing = sum(
            k.values for k in self.links if (k.producer is None or k.producer in kept) != (k.consumer in kept)
        )
        return layers + crossing * self.per_value + self.hidden(kept)

    def measure(self, choices, rounds):
        self.calls += 1
        noise = 1 + self.jitter * self.generator.random((len(choices), rounds))
        return [[self.seconds(kept) * f for f in row] for kept, row in zip(choices, noise, strict=True)]

    def layers(self, profiled=True):
        return [
            TimedLayer(n, self.int8[n] if profiled else None, self.float[n] if profiled else None) for n in self.int8
        ]

    def fastest(self):
        names = list(self.int8)
        subsets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(len(names) + 1))
        return min(self.seconds(frozenset(kept)) for kept in subsets)


def chain(times, values=10**6):
    """A chain of layers with (INT8, float) milliseconds."""
    names = [f"l{i}" for i in range(len(times))]
    links = [Link(a, b, values) for a, b in zip([None, *names], names, strict=False)]
    int8, float_ = ({n: 1e-3 * t[k] for n, t in zip(names, times, strict=True)} for k in (0, 1))
    return int8, float_, links


milliseconds = st.integers(1, 50).map(lambda t: t / 10)
times_of_layers = st.lists(st.tuples(milliseconds, milliseconds), min_size=1, max_size=7)


# The minimum cut.


@st.composite
def networks(draw):
    int8, float_, _ = chain(draw(times_of_layers))
    names = list(int8)
    pairs = st.tuples(st.sampled_from([None, *names]), st.sampled_from(names))
    drawn = draw(st.lists(pairs, max_size=10))
    links = [Link(a, b, draw(st.integers(0, 3 * 10**6))) for a, b in drawn if a != b]
    return Machine(int8, float_, links, draw(st.sampled_from([0.0, 1e-10, 1e-9])))


@given(networks())
def test_the_cut_is_the_cheapest_of_all_choices(machine):
    kept = cheapest_choice(machine.int8, machine.float, machine.links, machine.per_value)
    assert machine.seconds(kept) == pytest.approx(machine.fastest(), rel=1e-6, abs=1e-9)


@given(networks())
def test_where_it_makes_no_difference_layers_are_float(machine):
    kept = cheapest_choice(machine.int8, machine.float, machine.links, machine.per_value)
    names = [n for n in machine.int8 if n not in kept]
    for count in range(1, len(names) + 1):
        for more in itertools.combinations(names, count):
            assert machine.seconds(kept | set(more)) > machine.seconds(kept) * (1 + 1e-9)


# The search.


def never_slower(result, machine):
    tuned = machine.seconds(frozenset(result.kept_float))
    return tuned <= machine.seconds(frozenset()) * 1.001 and tuned <= machine.seconds(frozenset(machine.int8)) * 1.001


@settings(max_examples=40, deadline=None)
@given(networks(), st.booleans(), st.integers(0, 10**6))
def test_the_choice_is_never_slower_than_float_nor_than_int8(machine, profiled, seed):
    costs = {}

    def hidden(kept):  # any whim, the same each time
        return costs.setdefault(kept, np.random.default_rng([seed, len(costs)]).uniform(0, 2e-3))

    machine.hidden = hidden
    result = tune(machine.layers(profiled), machine.links, machine.measure, "made-up", seconds=30)
    assert never_slower(result, machine)
    assert result.tuned_ms <= min(result.float_ms, result.int8_ms)
    assert set(result.kept_float) <= set(machine.int8)
    assert result.tuned_ms == pytest.approx(1e3 * machine.seconds(frozenset(result.kept_float)))


@settings(max_examples=40, deadline=None)
@given(times_of_layers, st.sampled_from([1e-10, 3e-10, 1e-9]))
def test_a_machine_that_is_as_its_profile_says_gets_its_fastest_graph(times, per_value):
    machine = Machine(*chain(times), per_value)
    result = tune(machine.layers(), machine.links, machine.measure, "made-up")
    # Differences within the noise of a measurement are not pursued.
    assert result.tuned_ms <= 1e3 * machine.fastest() * 1.03


def test_without_a_profile_runs_of_layers_are_turned_over():
    """Two depthwise stages in the middle lose in INT8, and one layer alone would pay for its conversions."""
    times = [(1.0, 2.0)] * 4 + [(3.0, 1.0)] * 4 + [(1.0, 2.0)] * 4
    machine = Machine(*chain(times), per_value=1.5e-9)
    result = tune(machine.layers(profiled=False), machine.links, machine.measure, "made-up")
    assert result.kept_float == ("l4", "l5", "l6", "l7")
    assert result.tuned_ms == pytest.approx(16.5)
    assert result.sentence() == "4 of 12 layers are float on made-up: 16.50 ms (float32 20.00 ms, all INT8 21.50 ms)"


def test_layers_that_the_profile_does_not_tell_stand_back():
    machine = Machine(*chain([(1.0, 2.0), (3.0, 1.0), (1.0, 1.2), (1.0, 2.0)]), 1e-10)
    layers = [TimedLayer(x.name) if x.name == "l2" else x for x in machine.layers()]
    result = tune(layers, machine.links, machine.measure, "made-up")
    assert result.kept_float == ("l1",)


def test_what_the_profile_does_not_show_is_found_by_timing_the_whole():
    """The profile says that l2 is faster in float, the whole graph that it is not: its neighbours are fused to it."""
    machine = Machine(*chain([(1.0, 2.0), (1.0, 2.0), (1.5, 1.0), (1.0, 2.0)]), 0.0)
    machine.hidden = lambda kept: 2e-3 if kept and "l2" in kept else 0.0
    result = tune(machine.layers(), machine.links, machine.measure, "made-up")
    assert result.kept_float == ()
    assert "every layer stays INT8 on made-up" in result.sentence()


def test_where_int8_is_never_faster_all_is_float():
    machine = Machine(*chain([(3.0, 1.0)] * 5))
    result = tune(machine.layers(), machine.links, machine.measure, "made-up")
    assert result.kept_float == ("l0", "l1", "l2", "l3", "l4")
    assert result.tuned_ms == result.float_ms
    assert result.sentence().startswith("nothing is faster in INT8 on made-up (float32 5.00 ms")


def test_noise_does_not_pass_for_speed():
    machine = Machine(*chain([(1.0, 1.0)] * 6), per_value=1e-12, jitter=0.2)
    result = tune(machine.layers(), machine.links, machine.measure, "made-up", seconds=5)
    assert len(result.kept_float) in (0, 6), "all layers take the same either way: nothing is worth a mixture"


def test_no_move_is_tried_after_the_time():
    machine = Machine(*chain([(1.0, 1.5)] * 8))
    ticks = itertools.count()
    done = []
    tune(
        machine.layers(profiled=False),
        machine.links,
        machine.measure,
        "made-up",
        seconds=2.0,
        clock=lambda: float(next(ticks)),
        progress=lambda n, total: done.append((n, total)),
    )
    assert machine.calls <= 4
    assert done[-1][0] >= 2


def test_latency_is_that_of_the_rounds_that_were_left_alone():
    assert latency([1.0, 9.0, 1.2, 50.0, 1.1, 7.0]) == pytest.approx(1.1)
    assert latency([2.0]) == 2.0


# Real graphs.


def test_links_pass_through_operators_without_weights(tiny_onnx):
    stem, depthwise, pointwise, head = layer_names(tiny_onnx)
    found = {(k.producer, k.consumer): k.values for k in layer_links(tiny_onnx)}
    map_ = 16 * 12 * 10
    assert found == {
        (None, stem): 3 * 24 * 20,
        (stem, depthwise): map_,
        (depthwise, pointwise): map_,
        (stem, head): 16,
        (pointwise, head): 16,
    }


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["float", "cpu"])
def test_a_profile_tells_every_layer(tiny_onnx, minmax_int8, backend, precision):
    pytest.importorskip(backend)
    names = layer_names(tiny_onnx)
    before = tiny_onnx.SerializeToString()
    model = tiny_onnx if precision == "float" else minmax_int8[precision]
    seconds = profile_layers(model, names, backend, 1)
    # OpenVINO names a fully connected layer in float as it likes.
    assert set(seconds) - {names[-1]} == set(names[:-1])
    assert all(0 <= value < 10 for value in seconds.values())
    assert tiny_onnx.SerializeToString() == before


def test_backends_without_a_profile_tell_nothing(tiny_onnx):
    assert profile_layers(tiny_onnx, layer_names(tiny_onnx), "onnxruntime-cuda", 1) == {}


def test_graphs_are_timed_in_turn_and_few_stay_open(tiny_onnx, minmax_int8, monkeypatch):
    opened, closed, ran = [], [], []

    class FakeSession:
        inputs = (TensorSpec("input", "float32", ("n", 3, 4, 4)),)

        def __init__(self, model):
            self.model = model

        def run(self, feeds):
            assert feeds["input"].shape == (1, 3, 4, 4)
            ran.append(self.model)

        def close(self):
            closed.append(self.model)

    def fake_open(model, backend, threads, precision):
        assert (backend, threads, precision) == ("onnxruntime", 2, "int8.cpu")
        opened.append(model)
        return FakeSession(model)

    monkeypatch.setattr(timing, "open_session", fake_open)
    monkeypatch.setattr(timing, "_OPEN_SESSIONS", 2)
    ticks = itertools.count()
    timer = GraphTimer(lambda kept: ",".join(sorted(kept)).encode(), "onnxruntime", 2, clock=lambda: float(next(ticks)))
    a, b, c = frozenset(), frozenset("b"), frozenset("bc")
    assert timer([a, b], 3) == [[1.0] * 3] * 2
    assert ran == [b"", b"b"] * 5  # two rounds warm up
    timer([b, c], 1)
    assert opened == [b"", b"b", b"b,c"]
    assert closed == [b""], "the one that was not used for longest"
    timer.close()
    assert sorted(closed) == [b"", b"b", b"b,c"]


def test_the_processor_time_of_one_thread_is_its_latency(monkeypatch):
    assert GraphTimer(bytes, "onnxruntime", 1)._clock is timing.time.process_time
    assert GraphTimer(bytes, "onnxruntime", 2)._clock is timing.time.perf_counter
    assert GraphTimer(bytes, "onnxruntime-cuda", 1)._clock is timing.time.perf_counter


def test_example_input_is_one_image_of_the_type_asked_for():
    specs = (TensorSpec("a", "float32", ("batch", 3, 5, 7)), TensorSpec("b", "float16", (2,)))
    made = example_input(specs)
    assert made["a"].shape == (1, 3, 5, 7)
    assert made["a"].dtype == np.float32
    assert made["b"].dtype == np.float16


def test_a_graph_is_tuned_by_what_its_session_takes(tiny_onnx, minmax_int8, monkeypatch):
    """Every depthwise layer in INT8 takes a second more on this machine."""
    depthwise = layer_names(tiny_onnx)[1]
    now = 0.0

    class FakeSession:
        inputs = (TensorSpec("input", "float32", ("n", 3, 24, 20)),)

        def __init__(self, model):
            made_by = {n.output[0]: n.op_type for n in model.graph.node}
            weights = {n.output[0]: made_by.get(n.input[1]) for n in model.graph.node if n.output[0] in names}
            in_int8 = {name for name, maker in weights.items() if maker == "DequantizeLinear"}
            self.seconds = sum(1.0 if (name in in_int8) != (name == depthwise) else 2.0 for name in names)

        def run(self, feeds):
            nonlocal now
            now += self.seconds

        def close(self):
            pass

    names = layer_names(tiny_onnx)
    monkeypatch.setattr(timing, "open_session", lambda data, *_, **__: FakeSession(onnx.load_from_string(data)))
    monkeypatch.setattr(timing.time, "process_time", lambda: now)
    monkeypatch.setattr(timing, "profile_layers", lambda *_: {})
    result = tune_graph(minmax_int8["cpu"], tiny_onnx, "cpu", "onnxruntime", threads=1)
    assert result.kept_float == (depthwise,)
    assert (result.tuned_ms, result.float_ms, result.int8_ms) == (4000.0, 7000.0, 5000.0)
    mixed = keep_float(minmax_int8["cpu"], tiny_onnx, "cpu", result.kept_float)
    assert 1e3 * FakeSession(mixed).seconds == result.tuned_ms


def test_what_cannot_be_tuned(tiny_onnx, minmax_int8, make_onnx, monkeypatch):
    plain = make_onnx([helper.make_node("Relu", ["a"], ["y"])], {"a": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(QuantizationError, match="no layer with constant weights: there is nothing to tune"):
        tune_graph(plain, plain, "cpu", "onnxruntime")
    with pytest.raises(BackendError, match="there is no backend 'cuda'"):
        tune_graph(minmax_int8["cpu"], tiny_onnx, "cpu", "cuda")
    monkeypatch.setattr(timing, "unavailable", lambda _: "openvino is not installed")
    with pytest.raises(BackendError, match="openvino is not installed"):
        tune_graph(minmax_int8["cpu"], tiny_onnx, "cpu", "openvino")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_real_timing_gives_a_graph_that_runs(tiny_onnx, minmax_int8, ort_run, backend):
    pytest.importorskip(backend)
    result = tune_graph(minmax_int8["cpu"], tiny_onnx, "cpu", backend, threads=1, seconds=2.0)
    assert all(math.isfinite(value) for value in (result.tuned_ms, result.float_ms, result.int8_ms))
    mixed = keep_float(minmax_int8["cpu"], tiny_onnx, "cpu", result.kept_float)
    x = np.random.default_rng(0).standard_normal((1, 3, 24, 20), np.float32)
    assert np.isfinite(ort_run(mixed, {"input": x})["logits"]).all()
