"""ONNX Runtime on the processor, on CUDA and on TensorRT."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .. import cpu
from ..errors import BackendError
from ..manifest import TensorSpec
from . import cuda
from .base import Array, Feeds, check_feeds, closed_error, one_line

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_WARNINGS, _FATAL_ONLY = 2, 4


class OnnxRuntimeSession:
    """A network opened by ONNX Runtime. Several threads may call `run` at once.

    Args:
        model: path of an ONNX file, or its bytes
        backend: `"onnxruntime"`, `"onnxruntime-cuda"` or `"onnxruntime-tensorrt"`
        threads: processor threads of one call
        device: a GPU's number or `"cuda:N"`; for the processor None or `"cpu"`
        precision: what the network was exported as, for the TensorRT provider

    Raises:
        BackendError: if there is no such device, or ONNX Runtime refuses the network
    """

    def __init__(
        self, model: Path | bytes, backend: str, threads: int, device: str | int | None, precision: str
    ) -> None:
        self.backend = backend
        self.threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if backend == "onnxruntime":
            if device not in (None, "cpu", "CPU"):
                raise BackendError(f"onnxruntime runs on the device 'cpu' only, not on {device!r}")
            self.device = "cpu"
        else:
            index = cuda.device_index(device)
            self.device = f"cuda:{index}"
            providers = [*_gpu_providers(backend, index, precision), *providers]
        where = f"the network of {len(model)} bytes" if isinstance(model, bytes) else str(model)
        try:
            with contextlib.nullcontext() if backend == "onnxruntime" else _quiet_start():
                self._session: ort.InferenceSession | None = ort.InferenceSession(
                    model if isinstance(model, bytes) else str(model),
                    session_options(threads, backend == "onnxruntime"),
                    providers=providers,
                    enable_fallback=0,  # it would print, and then run on another device than the one asked for
                )
            self.inputs = tuple(map(_spec, self._session.get_inputs()))
            self.outputs = tuple(map(_spec, self._session.get_outputs()))
        except Exception as e:  # its exceptions have no common base
            raise BackendError(f"{backend} cannot open {where}: {one_line(e)}") from e
        wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
        if self._session.get_providers()[0] != wanted:
            raise BackendError(
                f"{backend} cannot open {where} on {self.device}: {wanted} did not start; check that the CUDA, cuDNN "
                "and TensorRT versions are those this onnxruntime was built for"
            )
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :meth:`runtime.backends.base.Session.run`."""
        session = self._session
        if session is None:
            raise closed_error(self.backend)
        checked = check_feeds(self.inputs, feeds)
        try:
            results = session.run(self._output_names, checked)
        except Exception as e:
            raise BackendError(f"{self.backend} failed to run the network: {one_line(e)}") from e
        return dict(zip(self._output_names, results, strict=True))

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Session.close`."""
        self._session = None  # a call in another thread holds its own reference until it is done


def session_options(threads: int, on_cpu: bool) -> ort.SessionOptions:
    """How every network is opened, so that what is timed elsewhere is what runs.

    Args:
        threads: processor threads of one call
        on_cpu: whether the processor computes all of it
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL_ONLY  # what goes wrong arrives as an exception
    if on_cpu and cpu.is_x86() and not cpu.has_int8_dot_product():
        # Sums of uint8 × int8 products saturate on these processors; this setting makes them uint8 × uint8, which is
        # exact and takes a third longer.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _gpu_providers(backend: str, index: int, precision: str) -> list[tuple[str, dict[str, str]]]:
    # A float32 network is computed in float32: TF32 keeps 10 bits of the significand.
    on_cuda = ("CUDAExecutionProvider", {"device_id": str(index), "use_tf32": "0"})
    if backend == "onnxruntime-cuda":
        return [on_cuda]
    options = {
        "device_id": str(index),
        "trt_fp16_enable": str(int(precision != "fp32")),
        "trt_int8_enable": str(int(precision.startswith("int8"))),
    }
    return [("TensorrtExecutionProvider", options), on_cuda]


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Load a GPU provider without the page that is printed when a library is missing: the exception says enough."""
    preload = getattr(ort, "preload_dlls", None)  # finds the CUDA and cuDNN of pip packages; ONNX Runtime 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            preload()
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)


def _spec(node: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else d or f"dim{i}" for i, d in enumerate(node.shape))
    if node.type not in _DTYPES:
        raise BackendError(f"the network's {node.name!r} has the type {node.type}, which is not supported")
    return TensorSpec(node.name, _DTYPES[node.type], shape)
