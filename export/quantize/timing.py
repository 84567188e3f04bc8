"""Timing graphs of mixed precision on a backend: the whole, side by side, and each layer where the backend tells."""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime.backends import BACKENDS, check_threads, open_session, unavailable
from runtime.backends.base import Array, Session
from runtime.errors import BackendError
from runtime.manifest import TensorSpec

from ..errors import QuantizationError
from ..onnx_graph import GraphIndex
from .layers import weighted_layers
from .mixed import keep_float, layer_names
from .tune import Link, TimedLayer, TuneResult, tune

_WARMUP = 2
_PROFILED_RUNS = 12
_OPEN_SESSIONS = 12
_TOKEN = "timed_layer_{}_"  # noqa: S105 (a name, no secret)
_FIND_TOKEN = re.compile(r"timed_layer_(\d+)_")


def tune_graph(
    quantized: onnx.ModelProto,
    model: onnx.ModelProto,
    scheme: str,
    backend: str,
    threads: int | None = None,
    seconds: float = 60.0,
    convert: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> TuneResult:
    """Find the layers of a quantized graph that a backend runs faster in float.

    Args:
        quantized: with every layer in INT8, in float32 elsewhere
        model: the float graph that it was made of
        scheme: `"cpu"` or `"trt"`
        backend: one of :data:`runtime.backends.BACKENDS`
        threads: processor threads; by default the physical cores that this process may use
        seconds: after which no new choice is tried
        convert: applied to graphs before they are timed, float16 for `trt`
        progress: called with the number of graphs timed

    Returns:
        the choice, and what it takes

    Raises:
        BackendError: if the backend is unknown or cannot be used here
        QuantizationError: if the graph has no layer with weights
    """
    names = layer_names(model)
    if not names:
        raise QuantizationError("the graph has no layer with constant weights: there is nothing to tune")
    threads = check_threads(threads)
    reason = unavailable(backend)
    if reason is not None:
        raise BackendError(reason)

    def make(kept: frozenset[str]) -> bytes:
        mixed = keep_float(quantized, model, scheme, kept)
        return (mixed if convert is None else convert(mixed)).SerializeToString()

    int8 = profile_layers(keep_float(quantized, model, scheme, ()), names, backend, threads)
    floating = profile_layers(model, names, backend, threads)
    layers = [TimedLayer(name, int8.get(name), floating.get(name)) for name in names]
    timer = GraphTimer(make, backend, threads, precision=f"int8.{scheme}")
    try:
        return tune(layers, layer_links(model), timer, backend, seconds, progress=progress)
    finally:
        timer.close()


class GraphTimer:
    """Times graphs that differ in the layers kept float, in turn, so that a machine that drifts drifts for all.

    One thread on a processor is timed by the processor time of this process: that is the latency on an idle machine,
    whatever else runs on this one. Everything else is timed by the wall.

    Args:
        make: gives the serialized graph with some layers kept float
        backend: that runs them
        threads: processor threads
        precision: of the graphs
        clock: tells the seconds; by default one of those two
    """

    def __init__(
        self,
        make: Callable[[frozenset[str]], bytes],
        backend: str,
        threads: int,
        precision: str = "int8.cpu",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._make = make
        self._backend = backend
        self._threads = threads
        self._precision = precision
        alone = threads == 1 and not BACKENDS[backend].gpu
        self._clock = clock or (time.process_time if alone else time.perf_counter)
        self._sessions: OrderedDict[frozenset[str], Session] = OrderedDict()

    def __call__(self, choices: Sequence[frozenset[str]], rounds: int) -> list[list[float]]:
        """Time graphs.

        Args:
            choices: names of the layers kept float in each
            rounds: how often each is timed

        Returns:
            seconds of each round, for each choice
        """
        sessions = [self._session(choice) for choice in choices]
        feeds = example_input(sessions[0].inputs)
        seconds: list[list[float]] = [[] for _ in choices]
        for i in range(_WARMUP + rounds):
            for values, session in zip(seconds, sessions, strict=True):
                started = self._clock()
                session.run(feeds)
                if i >= _WARMUP:
                    values.append(self._clock() - started)
        while len(self._sessions) > _OPEN_SESSIONS:
            self._sessions.popitem(last=False)[1].close()
        return seconds

    def close(self) -> None:
        """Close what is open."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _session(self, choice: frozenset[str]) -> Session:
        session = self._sessions.get(choice)
        if session is None:
            session = open_session(self._make(choice), self._backend, self._threads, precision=self._precision)
            self._sessions[choice] = session
        self._sessions.move_to_end(choice)
        return session


def example_input(inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """One image's worth of normally distributed values for each input."""
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal([1 if isinstance(d, str) else d for d in spec.shape]).astype(spec.dtype)
        for spec in inputs
    }


def layer_links(model: onnx.ModelProto) -> list[Link]:
    """The tensors that layers read, and which layers they come from through operators without weights.

    Args:
        model: the float graph with the shapes of its tensors; a dynamic dimension counts as 1
    """
    index = GraphIndex(model)
    layers = weighted_layers(index)
    names = {layer.node.output[0] for layer in layers}
    links = []
    for layer in layers:
        shape = index.shape(layer.data) or ()
        values = math.prod(1 if d is None else d for d in shape) if shape else 0
        links += [Link(producer, layer.node.output[0], values) for producer in _producers(layer.data, names, index)]
    return links


def _producers(name: str, layers: set[str], index: GraphIndex) -> list[str | None]:
    """The layers that a tensor comes from; None among them for the input of the graph."""
    found: dict[str | None, None] = {}
    seen: set[str] = set()
    stack = [name]
    while stack:
        tensor = stack.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        node = index.producers.get(tensor)
        if tensor in layers:
            found[tensor] = None
        elif node is not None:
            stack.extend(node.input)
        elif tensor in index.inputs and tensor not in index.initializers:
            found[None] = None
    return list(found)


def profile_layers(model: onnx.ModelProto, names: Sequence[str], backend: str, threads: int) -> dict[str, float]:
    """Time each layer by the backend's own profile.

    Args:
        model: a graph with or without Q/DQ
        names: of its layers
        backend: that runs it
        threads: processor threads

    Returns:
        seconds by layer; layers that the profile does not tell apart are missing, all of them where it is not
        supported
    """
    profilers = {"onnxruntime": _profile_onnxruntime, "openvino": _profile_openvino}
    if backend not in profilers:
        return {}
    marked = _marked(model, names)
    specs = [
        TensorSpec(value.name, "float32", tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim))
        for value in marked.graph.input
    ]
    seconds: dict[str, list[float]] = {}
    for kernels in profilers[backend](marked.SerializeToString(), example_input(specs), threads):
        run: dict[str, float] = {}
        for kernel, value in kernels:
            found = _FIND_TOKEN.search(kernel)
            if found is not None:
                layer = names[int(found.group(1))]
                run[layer] = run.get(layer, 0.0) + value
        for layer, value in run.items():
            seconds.setdefault(layer, []).append(value)
    # A kernel that something else interrupted says nothing: the fastest run is the one that was left alone.
    return {layer: min(values) for layer, values in seconds.items()}


def _marked(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy in which the nodes of layers, and of what is fused to them, have names that survive optimization."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    given_out = set(index.outputs)
    new_name: dict[str, str] = {}
    for number, layer in enumerate(names):
        node: onnx.NodeProto | None = index.producers[layer]
        step = 0
        while node is not None:
            node.name = f"{_TOKEN.format(number)}{step}"
            if node.output[0] not in given_out:
                new_name[node.output[0]] = f"{node.name}_out"
            reader = index.only_consumer(node.output[0])
            node = reader if reader is not None and reader.op_type in ("Relu", "Clip") else None
            step += 1
    for node in result.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = new_name.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = new_name.get(name, name)
    del result.graph.value_info[:]
    return result


def _profile_onnxruntime(model: bytes, feeds: dict[str, Array], threads: int) -> Iterable[list[tuple[str, float]]]:
    """The kernels of each run and their seconds."""
    import onnxruntime as ort

    from runtime.backends.onnxruntime import session_options

    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options = session_options(threads, on_cpu=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(_PROFILED_RUNS):
            session.run(None, feeds)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    kernels: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kernels.setdefault(event["name"], []).append(1e-6 * event["dur"])
    return [[(name, times[i]) for name, times in kernels.items()] for i in range(_PROFILED_RUNS)]


def _profile_openvino(model: bytes, feeds: dict[str, Array], threads: int) -> Iterable[list[tuple[str, float]]]:
    """The kernels of each run and their seconds."""
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    runs = []
    for _ in range(_PROFILED_RUNS):
        request.infer(list(feeds.values()))
        runs.append([(info.node_name, info.real_time.total_seconds()) for info in request.profiling_info])
    return runs
