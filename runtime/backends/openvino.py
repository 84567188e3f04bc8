"""OpenVINO, on the processor or on another of its devices."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ..errors import BackendError
from ..manifest import TensorSpec
from .base import Array, Feeds, check_feeds, closed_error, one_line


class OpenVINOSession:
    """A network opened by OpenVINO. Several threads may call `run` at once: each call has an infer request of its own.

    Args:
        model: path of an ONNX file, or its bytes
        threads: processor threads of one call
        device: one of OpenVINO's devices, in either case; by default the processor
        concurrency: calls that are to run at the same time

    Raises:
        BackendError: if there is no such device, or OpenVINO refuses the network
    """

    backend = "openvino"

    def __init__(self, model: Path | bytes, threads: int, device: str | int | None, concurrency: int = 1) -> None:
        self.threads = threads
        core = _core()
        name = "CPU" if device is None else str(device).upper()
        if name not in core.available_devices:
            known = ", ".join(d.lower() for d in core.available_devices)
            raise BackendError(f"openvino has no device {device!r}: expected one of {known}")
        self.device = name.lower()
        # float32 is asked for outright: on processors with AMX a float32 network would run in bfloat16.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if name == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads * concurrency
            if concurrency > 1:  # calls of one stream wait for each other
                settings["NUM_STREAMS"] = concurrency
        where = f"the network of {len(model)} bytes" if isinstance(model, bytes) else str(model)
        try:
            source = core.read_model(model) if isinstance(model, bytes) else str(model)
            compiled = core.compile_model(source, name, settings)
            self.inputs = tuple(map(_spec, compiled.inputs))
            self.outputs = tuple(map(_spec, compiled.outputs))
        except Exception as e:
            raise BackendError(f"openvino cannot open {where}: {one_line(e)}") from e
        self._compiled: Any = compiled
        self._idle: deque[Any] = deque()  # infer requests; append and pop are atomic

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :meth:`runtime.backends.base.Session.run`."""
        compiled = self._compiled
        if compiled is None:
            raise closed_error(self.backend)
        checked = check_feeds(self.inputs, feeds)
        try:
            request = self._idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            request.infer(list(checked.values()), share_inputs=True)
            # The request's own memory is used again by the next call: hand out copies.
            results = {spec.name: np.array(request.get_output_tensor(i).data) for i, spec in enumerate(self.outputs)}
        except Exception as e:
            raise BackendError(f"openvino failed to run the network: {one_line(e)}") from e
        if self._compiled is not None:
            self._idle.append(request)
        return results

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Session.close`."""
        self._compiled = None
        self._idle.clear()


@lru_cache(maxsize=1)
def _core() -> Any:
    return ov.Core()


def _spec(port: Any) -> TensorSpec:
    shape = tuple(
        d.get_length() if d.is_static else ("batch" if i == 0 else f"dim{i}") for i, d in enumerate(port.partial_shape)
    )
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()).name, shape)
