"""TensorRT and TensorRT-RTX engines for a bundle: what is asked of them, whether it can be built here. No torch.

The building itself is :mod:`runtime.backends.engine_builder`: a device builds an engine anew without this package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.backends import EngineOptions, Session, engine_builder, unavailable
from runtime.backends import cuda as driver
from runtime.backends.cuda import device_count
from runtime.backends.cuda_runtime import CudaRuntime
from runtime.backends.engine_builder import engine_file
from runtime.backends.tensorrt_engine import OpenEngine
from runtime.backends.tensorrt_library import EXTRAS, LIBRARIES, library_missing, load_library
from runtime.engines import engine_problem
from runtime.errors import BackendError
from runtime.manifest import EngineInfo, FrameSpec

from .engine_options import EngineBuild
from .errors import EngineError

__all__ = [
    "LIBRARIES",
    "build_engine",
    "build_options",
    "check_builder",
    "device_capability",
    "engine_file",
    "layer_information",
    "library_version",
    "not_for_here",
    "open_engine",
]

_HOST_WAYS = (
    "build a TensorRT-RTX engine here with --rtx, or export the bundle without --trt and run "
    "`holocron-export BUNDLE --trt` on the device"
)


def check_builder(library: str, capabilities: tuple[str, ...] = (), options: EngineBuild | None = None) -> None:
    """Make sure that engines can be built here, before any other work is done for them.

    Args:
        library: `"tensorrt"` or `"tensorrt_rtx"`
        capabilities: compute capabilities asked of TensorRT-RTX
        options: what else is asked of the engines

    Raises:
        EngineError: if the library is not installed, is too old, has no GPU where it needs one, or does not know a
            compute capability or an option
    """
    trt = _load(library)
    if library == "tensorrt":
        if device_count() == 0:
            raise EngineError(f"--trt builds for the GPU of this machine, which has none: {_HOST_WAYS}")
        return
    try:
        for capability in capabilities:
            engine_builder.compute_capability(trt, capability)
    except BackendError as e:
        raise EngineError(str(e)) from e
    options = options or EngineBuild()
    refused = engine_builder.unsupported(options.info(library, "", "", 1))
    if refused is not None:
        raise EngineError(refused)
    if options.strip_weights and device_count() == 0:
        raise EngineError(
            "--strip-weights with --rtx needs a GPU to build on, and there is none: leave one of them out"
        )


def build_engine(
    onnx: bytes,
    info: EngineInfo,
    frame: FrameSpec | None = None,
    *,
    detailed: bool = False,
    timing_cache: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> bytes:
    """As :func:`runtime.backends.engine_builder.build_engine`, with the exporter's error.

    Raises:
        EngineError: if the library has not what is asked for, or refuses the graph, with its own words
    """
    _load(info.library)
    try:
        return engine_builder.build_engine(
            onnx, info, frame, detailed=detailed, timing_cache=timing_cache, progress=progress
        )
    except BackendError as e:
        raise EngineError(str(e)) from e


def layer_information(plan: bytes, info: EngineInfo, graph: bytes) -> str | None:
    """What an engine says of its layers.

    Args:
        plan: the engine, just built
        info: what it was built with
        graph: that it was built from

    Returns:
        JSON; None where there is no GPU to open the engine on

    Raises:
        EngineError: if the engine does not open
    """
    if device_count() == 0:
        return None
    try:
        engine = OpenEngine(info.library, plan, info=info, weights=graph, cuda_graphs=False)
    except BackendError as e:
        raise EngineError(str(e)) from e
    try:
        return engine.layer_information()
    finally:
        engine.close()


def not_for_here(info: EngineInfo) -> str | None:
    """Why an engine cannot be run on this machine; None if it can.

    Args:
        info: what it was built with
    """
    if driver.device_count() == 0:
        return "there is no NVIDIA GPU"
    reason = unavailable(info.library)
    if reason is not None:
        return reason
    problem = engine_problem(info, library_version(info.library), driver.device_capability(0))
    if problem is not None:
        return problem
    try:
        with CudaRuntime().on(0):
            return None
    except BackendError as e:  # a driver that is too old for the bindings, say, which C++ programs do without
        return str(e)


def open_engine(plan: bytes, info: EngineInfo, weights: bytes | None) -> Session:
    """Open an engine as the runtime does, on the first GPU, for one thread.

    Args:
        plan: the engine: made here, or checked against its manifest
        info: what it was built with
        weights: the graph that it was built from, of one without its weights

    Raises:
        BackendError: if the library refuses it, or there is not enough memory
    """
    from runtime.backends.tensorrt import TensorRTSession

    return TensorRTSession(info.library, plan, info=info, weights=weights, options=EngineOptions(contexts=1))


def build_options(info: EngineInfo) -> str:
    """The options of the command that asks for engines of a library and a compute capability."""
    if info.library == "tensorrt":
        return "--trt"
    return f"--rtx --rtx-capability {info.compute_capability}"


def library_version(library: str) -> str:
    """Version of an installed TensorRT library.

    Raises:
        EngineError: if it is not installed
    """
    return str(_load(library).__version__)


def device_capability() -> str:
    """Compute capability of the first GPU, as in "8.7", asked of the driver: TensorRT does not say what it built for.

    Raises:
        EngineError: if the driver does not tell
    """
    capability = driver.device_capability(0)
    if capability is None:
        raise EngineError("the CUDA driver does not tell the GPU's compute capability")
    return capability


def _load(library: str) -> Any:
    if library not in LIBRARIES:
        raise EngineError(f"{library!r} builds no engines, expected one of {', '.join(LIBRARIES)}")
    problem = library_missing(library)
    if problem is not None:
        ways = f": {_HOST_WAYS}" if library == "tensorrt" else ""
        raise EngineError(f"--{EXTRAS[library]} needs {problem}{ways}")
    try:
        return load_library(library)
    except BackendError as e:
        raise EngineError(str(e)) from e
