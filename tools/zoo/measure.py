"""The figures of one architecture: exporting it and building engines, which may run beside others, and timing it alone.

`python -m tools.zoo.measure ARCH FOLDER` is the first half as a process of its own, so that a network that takes
all memory, or a library that crashes, ends its own line and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .row import OK, Row

if TYPE_CHECKING:
    from runtime.manifest import Artefact

ROOT = Path(__file__).parents[2]
CALIBRATION_IMAGES = 4
"""Images of the calibration and of the comparison: weights are random, and one answer tells what a hundred would."""
RTX_CAPABILITY = "8.6"
_SOURCES = ("holocron/models", "holocron/nn", "export", "calib")
_LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt_rtx")
_MOST_CALLS, _FEWEST_CALLS, _GMACS_TIMED = 50, 5, 200.0


def sources_digest(root: Path = ROOT) -> str:
    """What an exported graph depends on: our own sources, the versions of the libraries, and the kind of machine."""
    digest = hashlib.sha256(platform.machine().encode())
    for library in _LIBRARIES:
        try:
            digest.update(f"{library} {version(library)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{library} none\n".encode())
    files = [path for folder in _SOURCES for path in sorted((root / folder).rglob("*.py"))]
    for path in (*files, root / "tools" / "zoo" / "measure.py"):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def count_parameters(arch: str) -> int:
    """Parameters of an architecture with default arguments, without allocating them where that is possible."""
    import torch

    from holocron import models

    builder = models.get_model_info(arch).builder
    offline = {"pretrained_backbone": False} if "pretrained_backbone" in inspect.signature(builder).parameters else {}
    try:
        with torch.device("meta"):
            model = builder(**offline)
    except (NotImplementedError, RuntimeError):  # it runs a part of itself to learn its shapes
        model = builder(**offline)
    return sum(parameter.numel() for parameter in model.parameters())


def export(arch: str, folder: Path) -> tuple[Row, dict[str, str]]:
    """Export an architecture with random weights, and build engines from its graphs.

    Args:
        arch: name of the builder
        folder: where its bundle goes

    Returns:
        the row, all but the latencies, and the SHA-256 of each graph by variant
    """
    import onnx

    from export import export_model
    from export.macs import count_macs
    from holocron import models
    from runtime.errors import HolocronError

    info = models.get_model_info(arch)
    row = Row(arch, info.task, *info.input_size, parameters=count_parameters(arch))
    images = _few_images(folder.with_name(f"{arch}.images"))
    # The table is of the networks alone: a detector's suppression of boxes is left out.
    arguments: dict[str, Any] = {
        "weights": "none",
        "calib": images,
        "effort": "fast",
        "force": True,
        "end_to_end": False,
    }
    problem = None
    try:
        result = export_model(arch, folder, int8=True, **arguments)
    except HolocronError as e:
        problem = f"INT8: {e}"
        try:
            result = export_model(arch, folder, **arguments)
        except HolocronError as float_error:
            return replace(row, error=str(float_error)), {}
    graphs = {a.variant: a for a in result.manifest.artefacts if a.kind == "onnx"}
    floats, integers = graphs["fp32"], graphs.get("int8.cpu")
    row = replace(
        row,
        gmacs=count_macs(onnx.load(folder / floats.file)) / 1e9,
        onnx_mb=floats.size / 1e6,
        relative_error=_relative_error(floats),
        int8_relative_error=None if integers is None else _relative_error(integers),
        rtx_fp32=_build(folder / floats.file),
        rtx_int8=_build(folder / graphs["int8.trt"].file) if "int8.trt" in graphs else None,
        error=problem,
    )
    return row, {variant: artefact.sha256 for variant, artefact in graphs.items()}


def _relative_error(artefact: Artefact) -> float | None:
    return None if artefact.verification is None else artefact.verification.relative_error


def _few_images(folder: Path) -> Path:
    """A folder of some of the package's sample images: as many as the exporter is to look at."""
    from calib import find_images, sample_folder

    folder.mkdir(parents=True, exist_ok=True)
    for path in find_images(sample_folder(), CALIBRATION_IMAGES, 0):
        target = folder / path.name
        if not target.exists():
            target.symlink_to(path)
    return folder


def _build(graph: Path) -> str:
    """Build an engine and throw it away.

    Returns:
        `"ok"`, or the reason why there is none
    """
    from export.engine import build_engine, library_version
    from export.errors import EngineError
    from runtime.manifest import EngineInfo

    try:
        info = EngineInfo("tensorrt_rtx", library_version("tensorrt_rtx"), RTX_CAPABILITY, 1)
        build_engine(graph.read_bytes(), info)
    except EngineError as e:
        return str(e)
    return OK


def calls_for(gmacs: float | None) -> int:
    """How many calls of a network are timed: fewer of a large one, whose calls differ less from each other."""
    if not gmacs:
        return _MOST_CALLS
    return max(_FEWEST_CALLS, min(_MOST_CALLS, round(_GMACS_TIMED / gmacs)))


def time_alone(row: Row, folder: Path, backend: str) -> Row:
    """Fill in the latencies of an exported architecture: one image, one thread, on one core, nothing beside it.

    Args:
        row: of the architecture
        folder: its bundle
        backend: one of :data:`runtime.backends.BACKENDS`

    Returns:
        the row with its latencies; what failed is in `error`
    """
    from runtime.bench import benchmark
    from runtime.manifest import read_manifest

    variants = {a.variant for a in read_manifest(folder).artefacts if a.kind == "onnx"}
    problems = [] if row.error is None else [row.error]
    calls = calls_for(row.gmacs)
    with one_core():
        rows = benchmark(
            folder,
            [variant for variant in ("fp32", "int8.cpu") if variant in variants],
            [backend],
            threads=1,
            iterations=calls,
            warmup=max(1, calls // 10),
            on_error=lambda precision, _, error: problems.append(f"{precision}: {error}"),
        )
    latencies = {r.precision: r.p50_ms for r in rows}
    return replace(
        row, fp32_ms=latencies.get("fp32"), int8_ms=latencies.get("int8.cpu"), error="; ".join(problems) or None
    )


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and the processes that it starts meanwhile, on one core: no call moves between caches."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def main() -> None:
    """Export one architecture and print its row and its graphs as the last line."""
    import torch

    torch.set_num_threads(1)
    arch, folder = sys.argv[1:]
    row, graphs = export(arch, Path(folder))
    sys.stdout.write("\n" + json.dumps({"row": asdict(row), "graphs": graphs}) + "\n")


if __name__ == "__main__":
    main()
