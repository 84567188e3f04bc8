"""How fast a bundle is here: latency, throughput and peak memory of each precision on each backend.

Each combination is measured in a process of its own, so that its peak memory is its own, and so that a crash in one
leaves the others. What is timed is the session on a fixed array; reading and preprocessing images is not in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .backends import BACKENDS, available_backends, check_threads, unavailable
from .errors import BackendError, HolocronError
from .feeds import FrameFeeder
from .manifest import DTYPES, Manifest, TensorSpec, read_manifest

# The same sys.path, so that the same packages are found; -c, so that the caller's script is not run again.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from runtime.bench import _main; _main(sys.argv[2])"

ErrorCallback = Callable[[str, str, HolocronError], None]


@dataclass(frozen=True)
class BenchRow:
    """One precision on one backend.

    Attributes:
        precision: `"fp32"`, `"fp16"`, `"int8.cpu"` or `"int8.trt"`.
        backend: one of :data:`runtime.backends.BACKENDS`.
        device: where it ran, e.g. `"cpu"`.
        threads: processor threads of one call.
        batch: images a call.
        iterations: calls that were timed.
        p50_ms: median latency of a call, in milliseconds.
        p90_ms: 90th percentile, in milliseconds.
        p99_ms: 99th percentile, in milliseconds.
        images_per_second: images over the time of all calls.
        peak_memory_mb: largest resident memory of the process, in MiB; Python and the backend's library included.
    """

    precision: str
    backend: str
    device: str
    threads: int
    batch: int
    iterations: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    peak_memory_mb: float


def benchmark(
    bundle: str | os.PathLike[str],
    precisions: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    batch: int = 1,
    threads: int | None = None,
    iterations: int = 100,
    warmup: int = 10,
    progress: Callable[[str], None] | None = None,
    on_error: ErrorCallback | None = None,
) -> list[BenchRow]:
    """Time a bundle.

    Args:
        bundle: its folder, or an ONNX file out of one
        precisions: as :func:`runtime.load` takes them; by default every one of the bundle that suits the backend
        backends: by default all that are available here
        batch: images a call
        threads: processor threads; by default the physical cores that this process may use
        iterations: calls to time
        warmup: calls before that, not timed
        progress: called with a line before each combination
        on_error: called with precision, backend and error of a combination that fails, and the others go on; without it
            the error is raised

    Returns:
        a row for each combination that ran, backend by backend

    Raises:
        BundleError: if it is not a bundle
        BackendError: if a combination fails and there is no `on_error`
        TypeError: if a count is not an integer
        ValueError: if a count is out of range
    """
    for name, value, lowest in (("batch", batch, 1), ("iterations", iterations, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, expected an integer")
        if value < lowest:
            raise ValueError(f"{name} is {value}, expected {lowest} at least")
    threads = check_threads(threads)
    path = Path(bundle)
    rows = []
    for precision, backend in _combinations(path, precisions, backends):
        if progress is not None:
            progress(f"timing {precision or 'it'} on {backend}")
        request = {
            "path": str(path.absolute()),
            "precision": precision,
            "backend": backend,
            "batch": batch,
            "threads": threads,
            "iterations": iterations,
            "warmup": warmup,
        }
        try:
            rows.append(_measure_in_subprocess(request))
        except HolocronError as e:
            if on_error is None:
                raise
            on_error(precision or "", backend, e)
    return rows


def _combinations(
    path: Path, precisions: Sequence[str] | None, backends: Sequence[str] | None
) -> list[tuple[str | None, str]]:
    names = available_backends() if backends is None else tuple(backends)
    if not names:
        raise BackendError(f"there is no backend to time: {unavailable('onnxruntime')}")
    for name in names:
        unavailable(name)  # an unknown name is an error at once
    if precisions is not None:
        return [(precision, name) for name in names for precision in precisions]
    if not path.is_dir():
        return [(None, name) for name in names]  # a lone file is of one precision
    artefacts = read_manifest(path).artefacts

    def has(variant: str, backend: str) -> bool:
        if BACKENDS[backend].opens == "engine":
            return any(a.engine and a.engine.library == backend and a.variant == variant for a in artefacts)
        return any(a.kind == "onnx" and a.variant == variant for a in artefacts)

    variants = ("fp32", "fp16", "int8.cpu", "int8.trt")
    return [(v, name) for name in names for v in variants if has(v, name) and _suits(v, name)]


def _suits(variant: str, backend: str) -> bool:
    return not variant.startswith("int8.") or variant == f"int8.{BACKENDS[backend].int8_scheme}"


def _measure_in_subprocess(request: dict[str, Any]) -> BenchRow:
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
        if "error" in answer:
            raise BackendError(answer["error"])
        return BenchRow(**answer["row"])
    except (IndexError, ValueError, TypeError, KeyError):
        said = done.stderr.strip().splitlines()
        raise BackendError(
            f"timing on {request['backend']} ended with exit code {done.returncode}{': ' + said[-1] if said else ''}"
        ) from None


def _main(argument: str) -> None:
    try:
        answer: dict[str, Any] = {"row": asdict(_measure(**json.loads(argument)))}
    except HolocronError as e:
        answer = {"error": str(e)}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _measure(
    path: str, precision: str | None, backend: str, batch: int, threads: int, iterations: int, warmup: int
) -> BenchRow:
    from .model import load

    with load(path, precision, backend, threads) as model:
        feeds = example_feeds(model.manifest, batch)
        for _ in range(warmup):
            model.session.run(feeds)
        seconds = np.empty(iterations)
        for i in range(iterations):
            start = time.perf_counter()
            model.session.run(feeds)
            seconds[i] = time.perf_counter() - start
        p50, p90, p99 = np.percentile(seconds * 1e3, (50, 90, 99))
        return BenchRow(
            precision=model.precision,
            backend=model.backend,
            device=model.device,
            threads=threads,
            batch=batch,
            iterations=iterations,
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            images_per_second=float(batch * iterations / seconds.sum()),
            peak_memory_mb=peak_memory() / 2**20,
        )


def example_feeds(manifest: Manifest, batch: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays that the network takes, with the same numbers every time: for timing, not for accuracy.

    Args:
        manifest: of the model
        batch: size of dynamic dimensions

    Returns:
        an array for each input: normally distributed for floating point, zeros for other types; of a network that takes
        frames, the largest that it takes and what belongs to them
    """
    generator = np.random.default_rng(0)
    if manifest.frame is not None:
        shape = (*manifest.frame.size, 3)
        frames = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(batch)]
        return FrameFeeder(manifest)(frames)[0]

    def example(spec: TensorSpec) -> np.ndarray[Any, Any]:
        assert spec.dtype in DTYPES
        shape = tuple(batch if isinstance(d, str) else d for d in spec.shape)
        if np.dtype(spec.dtype).kind == "f":
            return generator.standard_normal(shape, np.float32).astype(spec.dtype)
        return np.zeros(shape, spec.dtype)

    return {spec.name: example(spec) for spec in manifest.inputs}


def peak_memory() -> int:
    """Largest resident memory that this process has had, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # its figure begins with the parent's, hence second

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
