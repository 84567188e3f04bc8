"""What `runtime` adds to a bare session: RepVGG-A0 at 224×224, batch 1, side by side in one process.

    python benchmarks/runtime_overhead.py [BUNDLE] [--backend onnxruntime|openvino] [--precision P] [--threads N]

Without a BUNDLE one is made of RepVGG-A0 with random weights, which needs torch. The bare session is ONNX Runtime's own
with its own defaults but for the number of threads, called as its documentation shows. The calls alternate, so that
whatever else the machine does slows both; the figures are medians, and the ratio is the median of the ratios of
neighbouring calls.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import runtime
from export import export_model
from runtime.backends import open_session
from runtime.bench import example_feeds
from runtime.cpu import has_int8_dot_product, is_x86


def bare_call(backend: str, file: Path, threads: int, x: np.ndarray) -> Callable[[], object]:
    """A call of the library itself, without `runtime`."""
    if backend == "openvino":
        import openvino as ov

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = ov.Core().compile_model(str(file), "CPU", settings).create_infer_request()
        return lambda: request.infer({"input": x})
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if is_x86() and not has_int8_dot_product():
        options.add_session_config_entry("session.x64quantprecision", "1")  # the same arithmetic
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the runtime adds to a bare session.")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--backend", default="onnxruntime", choices=["onnxruntime", "openvino"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or export_model("repvgg_a0", Path(folder, "a0"), weights="none").bundle
        with runtime.load(bundle, arguments.precision, arguments.backend, arguments.threads) as model:
            x = example_feeds(model.manifest)["input"]
            file = bundle / model.artefact.file
            calls = {
                "bare session": bare_call(arguments.backend, file, arguments.threads, x),
                "runtime": lambda: model.session.run(x),
            }
            seconds = {name: [] for name in calls}
            for i in range(arguments.iterations + 10):
                order = list(calls) if i % 2 else list(reversed(calls))
                for name in order:
                    start = time.perf_counter()
                    calls[name]()
                    if i >= 10:
                        seconds[name].append(time.perf_counter() - start)
            image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
            preparing = measure(lambda: model.preprocess(image))
            print(f"{model!r}, {arguments.threads} thread(s), {arguments.iterations} calls of each, alternating")
        for name, values in seconds.items():
            print(f"{name:14s} {statistics.median(values) * 1e3:9.3f} ms")
        pairs = zip(seconds["runtime"], seconds["bare session"], strict=True)
        print(f"{'slower by':14s} {(statistics.median(a / b for a, b in pairs) - 1) * 100:9.2f} %   (bound: 5 %)")
        print(f"{'its own work':14s} {own_work(x) * 1e3:9.3f} ms   (a network that does nothing, less its bare call)")
        print(f"{'preprocessing':14s} {preparing * 1e3:9.3f} ms   (640×480 image, not in the figures above)")


def own_work(x: np.ndarray) -> float:
    """Seconds that `run` adds, on a network whose own time is negligible: one shape operation on the same input."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Shape", ["input"], ["shape"])],
        "nothing",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [4])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    bare, ours = ort.InferenceSession(data), open_session(data, threads=1)
    return measure(lambda: ours.run(x)) - measure(lambda: bare.run(None, {"input": x}))


def measure(call: Callable[[], object], times: int = 200) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
