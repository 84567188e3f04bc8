"""The libraries that run a network, by name. None is imported before it is asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .. import cpu
from ..errors import BackendError
from . import cuda
from .base import Session
from .cuda_runtime import bindings_missing
from .engine_options import EngineOptions
from .tensorrt_library import LIBRARIES, load_library

__all__ = [
    "BACKENDS",
    "Backend",
    "EngineOptions",
    "Session",
    "available_backends",
    "open_session",
    "preferred_backends",
    "unavailable",
]


@dataclass(frozen=True)
class Backend:
    """One way to run a network.

    Attributes:
        name: what `load` and the command lines call it.
        package: the Python package behind it.
        extra: the extra of `holocron-edge` that installs it.
        gpu: whether it needs an NVIDIA GPU.
        int8_scheme: the quantization scheme that it runs in INT8 arithmetic.
        variants: precisions from the best to the worst choice where the user has none.
        opens: the kind of file that it opens, `"onnx"` or `"engine"`.
    """

    name: str
    package: str
    extra: str
    gpu: bool
    int8_scheme: str
    variants: tuple[str, ...]
    opens: str = "onnx"


_CPU_VARIANTS = ("int8.cpu", "fp32", "fp16", "int8.trt")
_ENGINE_VARIANTS = ("int8.trt", "fp16", "fp32")

BACKENDS = {
    b.name: b
    for b in (
        Backend("onnxruntime", "onnxruntime", "cpu", False, "cpu", _CPU_VARIANTS),
        Backend("openvino", "openvino", "openvino", False, "cpu", _CPU_VARIANTS),
        # CUDA kernels have no INT8 convolution: a Q/DQ graph runs in floating point there, slower than fp16 itself.
        Backend("onnxruntime-cuda", "onnxruntime", "gpu", True, "trt", ("fp16", "fp32", "int8.trt", "int8.cpu")),
        Backend("onnxruntime-tensorrt", "onnxruntime", "gpu", True, "trt", ("int8.trt", "fp16", "fp32", "int8.cpu")),
        Backend("tensorrt", "tensorrt", "trt", True, "trt", _ENGINE_VARIANTS, "engine"),
        Backend("tensorrt_rtx", "tensorrt_rtx", "rtx", True, "trt", _ENGINE_VARIANTS, "engine"),
    )
}
"""Every backend by name."""


def available_backends() -> tuple[str, ...]:
    """The backends that can be used here: installed and, where they need one, with a GPU present.

    Returns:
        names, those tried first by `load` first
    """
    return tuple(name for name in preferred_backends() if unavailable(name) is None)


def preferred_backends() -> tuple[str, ...]:
    """Every backend's name, the one to try first at the front.

    A GPU comes before the processor. On the processor OpenVINO is several times faster than ONNX Runtime where there
    are INT8 dot products (VNNI, AMX); elsewhere it gains little, and its INT8 sums saturate, which ONNX Runtime avoids.
    """
    on_cpu = ("openvino", "onnxruntime") if cpu.has_int8_dot_product() else ("onnxruntime", "openvino")
    return (*LIBRARIES, "onnxruntime-tensorrt", "onnxruntime-cuda", *on_cpu)


def unavailable(name: str) -> str | None:
    """Why a backend cannot be used here.

    Args:
        name: one of :data:`BACKENDS`

    Returns:
        one sentence with the remedy; None if it can be used

    Raises:
        BackendError: if there is no backend of that name
    """
    if name not in BACKENDS:
        raise BackendError(f"there is no backend {name!r}: expected one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if importlib.util.find_spec(backend.package) is None:
        return f'{backend.package} is not installed: pip install "holocron-edge[{backend.extra}]"'
    if not backend.gpu:
        return None
    if cuda.device_count() == 0:
        return f"{name} needs an NVIDIA GPU and its driver, and none was found"
    if backend.opens == "engine":
        return _engine_library_problem(name)
    provider = "TensorrtExecutionProvider" if name == "onnxruntime-tensorrt" else "CUDAExecutionProvider"
    if provider not in _providers():
        return (
            f"the onnxruntime installed here has no {provider}: pip uninstall onnxruntime, then "
            'pip install "holocron-edge[gpu]"'
        )
    if name == "onnxruntime-tensorrt" and not cuda.has_tensorrt_library():
        return (
            f"{name} needs TensorRT 10, and libnvinfer.so.10 was not found: install TensorRT, or use onnxruntime-cuda"
        )
    return None


def open_session(
    model: Path | str | bytes,
    backend: str = "onnxruntime",
    threads: int | None = None,
    device: str | int | None = None,
    precision: str = "fp32",
    *,
    concurrency: int = 1,
    trust: bool = False,
    engine: EngineOptions | None = None,
) -> Session:
    """Open a network.

    Args:
        model: path of an ONNX file, for TensorRT and TensorRT-RTX of an engine, or its bytes
        backend: one of :data:`BACKENDS`
        threads: processor threads; by default the physical cores that this process may use
        device: a GPU's number, or `"cuda:1"`; an OpenVINO device; by default the first GPU, or the processor
        precision: what the network was exported as; only ONNX Runtime's TensorRT provider must be told
        concurrency: calls that are to run at the same time, each on so many threads; only OpenVINO must be told
        trust: that an engine, which nothing vouches for here, may be executed: opening one does. :func:`runtime.load`
            compares an engine's hash with its bundle's manifest instead
        engine: how an engine is run

    Returns:
        the session

    Raises:
        BackendError: if the backend is not available, has no such device, or refuses the network; or an engine is not
            trusted
        TypeError: if threads is not an integer
        ValueError: if threads is below 1 or above 1024
    """
    reason = unavailable(backend)
    if reason is not None:
        others = available_backends()
        raise BackendError(f"{reason}; available here: {', '.join(others) or 'none'}")
    model = model if isinstance(model, bytes) else Path(model)
    count = check_threads(threads)
    if BACKENDS[backend].opens == "engine":
        return _open_engine(model, backend, device, trust, engine)
    if backend == "openvino":
        from .openvino import OpenVINOSession

        return OpenVINOSession(model, count, device, concurrency)
    from .onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(model, backend, count, device, precision)


def _open_engine(
    model: Path | bytes, backend: str, device: str | int | None, trust: bool, options: EngineOptions | None
) -> Session:
    where = "the engine" if isinstance(model, bytes) else str(model)
    if not trust:
        raise BackendError(
            f"opening {where} executes what is in it, and no manifest vouches for it: open its bundle with "
            "runtime.load, or pass trust=True if you know who built it"
        )
    from .tensorrt import TensorRTSession

    try:
        plan = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as e:
        raise BackendError(f"cannot read {where}: {e.strerror or e}") from e
    return TensorRTSession(backend, plan, device, options=options)


def check_threads(threads: int | None, name: str = "threads") -> int:
    """The number of threads asked for, or the default.

    Args:
        threads: how many; None for the physical cores
        name: what to call it in an error

    Returns:
        how many

    Raises:
        TypeError: if it is not an integer
        ValueError: if it is below 1 or above 1024
    """
    if threads is None:
        return cpu.default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"{name} is {threads!r}, expected an integer")
    if not 1 <= threads <= 1024:
        raise ValueError(f"{name} is {threads}, expected 1 to 1024")
    return threads


def _engine_library_problem(library: str) -> str | None:
    try:
        load_library(library)
    except BackendError as e:
        return str(e)
    missing = bindings_missing()
    if missing is not None:
        return f'{missing}: pip install "holocron-edge[{BACKENDS[library].extra}]"'
    return None


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())
