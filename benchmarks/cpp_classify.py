"""`classify` of the C++ runtime beside the Python runtime and beside OpenVINO alone: RepVGG-A0 in INT8, one frame.

    python benchmarks/cpp_classify.py [--bundle DIR] [--threads N ...] [--rounds N] [--calls N] [--library FILE]

The library is built first, optimized, and without `--bundle` one is made of RepVGG-A0 with random weights and 1000
classes at 224×224, which needs torch. Everything runs in this process, on the same frame, file and number of threads,
in turn, so that whatever else the machine does slows all:

- Python: `model(frame)`
- C++: `model.classify(frame)`; checks, resizing, normalization, inference and the ranking of all classes are in it
- request: `infer` of an OpenVINO request in C++ that holds the normalized tensor already; none of that is in it
- tensor: the library's `run` on that tensor: what it adds to the request without preprocessing and ranking

A round is some calls of each that follow each other, after one that is not timed. C++ has its own loop and its own
clock inside of the module that ctypes calls, so that this call is in none of its times. The figures are medians, the
ratios the medians of the rounds' ratios.

The bound on the overhead is about a frame of the network's own size, which is not resized; that of 1080p is told beside
it, where most of the difference is resizing.
"""

import argparse
import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import machine, medians, ratio
from cpp_build import built

import runtime

PRECISION = "int8.cpu"
SLOWEST, MOST_OVERHEAD = 1.0, 0.05
"""What is to be reached: as fast as Python, and this much more than the request for a frame of the network's size."""
WARMUP = 3
"""Rounds that do not count."""
SIZES = {"the network's size": None, "1080p": (1080, 1920)}


@contextmanager
def timers(library: Path | None) -> Iterator[ctypes.CDLL]:
    """The C++ side's functions."""
    if library is not None:
        loaded = ctypes.CDLL(str(library))
        for name in ("open", "logits", "classify", "run", "request"):
            getattr(loaded, f"timer_{name}").restype = ctypes.c_char_p
        yield loaded
        return
    with built("holocron_classify_timer") as folder:
        (found,) = folder.glob("tests/*holocron_classify_timer.*")
        with timers(found) as loaded:
            yield loaded


class CppModel:
    """A bundle that the C++ runtime opened, and a frame."""

    def __init__(self, library: ctypes.CDLL, bundle: Path, threads: int, frame: np.ndarray) -> None:
        self._library = library
        self._frame = frame  # whose memory is looked at
        self._timer = ctypes.c_void_p()
        pixels = ctypes.c_void_p(frame.ctypes.data)
        _check(library.timer_open(os.fsencode(bundle), threads, pixels, *frame.shape[:2], ctypes.byref(self._timer)))

    def seconds(self, name: str, calls: int) -> float:
        """Of one call among some."""
        seconds = ctypes.c_double()
        _check(getattr(self._library, f"timer_{name}")(self._timer, calls, ctypes.byref(seconds)))
        return seconds.value

    def logits(self, count: int) -> np.ndarray:
        """What it answers."""
        logits = np.empty(count, np.float32)
        _check(self._library.timer_logits(self._timer, ctypes.c_void_p(logits.ctypes.data), ctypes.c_size_t(count)))
        return logits

    def __enter__(self) -> "CppModel":
        return self

    def __exit__(self, *error: object) -> None:
        self._library.timer_free(self._timer)


def _check(error: bytes | None) -> None:
    if error is not None:
        raise SystemExit(error.decode())


def python_seconds(model: runtime.Model, frame: np.ndarray, calls: int) -> float:
    """Of one call among some."""
    start = time.perf_counter()
    for _ in range(calls):
        model(frame)
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="`classify` in C++ beside Python and beside OpenVINO alone.")
    parser.add_argument("--bundle", type=Path, help="with an INT8 graph for processors; made here if not given")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=5, help="of each in a round")
    parser.add_argument(
        "--library", type=Path, help="of the build target holocron_classify_timer, not to build it here"
    )
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder, timers(arguments.library) as library:
        bundle = arguments.bundle or random_bundle(Path(folder, "a0"))
        for threads in arguments.threads:
            with runtime.load(bundle, PRECISION, "openvino", threads) as model:
                print(f"{model!r}, {threads} thread(s), {arguments.rounds} rounds of {arguments.calls} calls")
                for name, size in SIZES.items():
                    height, width = size or model.manifest.preprocessing.size
                    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
                    with CppModel(library, bundle, threads, frame) as cpp:
                        logits = model(frame).logits
                        np.testing.assert_allclose(cpp.logits(logits.size), logits, rtol=1e-5, atol=1e-6)
                        report(f"{name}, {height} x {width}", timed(model, cpp, frame, arguments), size is None)


def timed(
    model: runtime.Model, cpp: CppModel, frame: np.ndarray, arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of a call in each round, by name; the order is turned round every time."""
    calls: dict[str, Callable[[int], float]] = {"Python": lambda count: python_seconds(model, frame, count)}
    for name, function in {"C++": "classify", "tensor": "run", "request": "request"}.items():
        calls[name] = lambda count, function=function: cpp.seconds(function, count)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(WARMUP + arguments.rounds):
        for name in list(calls) if i % 2 else reversed(calls):
            calls[name](1)
            took = calls[name](arguments.calls)
            if i >= WARMUP:
                seconds[name].append(took)
    return seconds


def report(what: str, seconds: dict[str, list[float]], bounded: bool) -> None:
    """Print the figures of a frame."""
    times = ", ".join(f"{name} {value * 1e3:6.3f} ms" for name, value in medians(seconds).items())
    print(f"  {what}: {times}")
    overhead, tensor = ratio(seconds, "C++", "request") - 1, ratio(seconds, "tensor", "request") - 1
    bound = f" (bound: {MOST_OVERHEAD:.0%})" if bounded else ""
    print(
        f"    C++ {ratio(seconds, 'Python', 'C++'):.3f} times as fast as Python (bound: {SLOWEST}); over the request"
        f" {overhead:+.1%} with preprocessing and ranking{bound}, {tensor:+.1%} without"
    )


def random_bundle(folder: Path) -> Path:
    """RepVGG-A0 as it is before training: what its weights are does not matter here."""
    from export import export_model

    return export_model(
        "repvgg_a0",
        folder,
        weights="none",
        num_classes=1000,
        int8=True,
        effort="fast",
        calib_samples=32,
        verify_samples=2,
    ).bundle


if __name__ == "__main__":
    main()
