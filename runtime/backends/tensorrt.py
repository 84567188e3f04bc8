"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU, through `cuda-python`. One code path for both."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, overload

from ..errors import BackendError, InputError
from ..manifest import EngineInfo, TensorSpec
from . import cuda as driver
from .base import Array, Feeds, check_array, named_feeds
from .cuda_runtime import CudaError, CudaRuntime
from .device_array import DeviceView, is_device_array, view_device_array
from .engine_cache import PairedFile
from .engine_options import EngineOptions
from .slot_pool import SlotPool
from .tensorrt_engine import InputRange, OpenEngine


class TensorRTSession:
    """An engine opened by TensorRT or TensorRT-RTX. Several threads may call `run` at once.

    Args:
        library: `"tensorrt"` or `"tensorrt_rtx"`
        plan: the serialized engine. Opening it executes it: it must come from somebody who is trusted
        device: a GPU's number, `"cuda"` or `"cuda:1"`; None is the first
        info: what the manifest says of it; None for a lone engine
        weights: the ONNX graph that it was built from, for one without its weights
        options: how it is run
        cache: file in which TensorRT-RTX keeps the kernels that it compiled for this GPU; None keeps none

    Attributes:
        options: how it is run.

    Raises:
        BackendError: if there is no such device, the library refuses the engine, or there is not enough memory
    """

    def __init__(
        self,
        library: str,
        plan: bytes,
        device: str | int | None = None,
        *,
        info: EngineInfo | None = None,
        weights: bytes | None = None,
        options: EngineOptions | None = None,
        cache: Path | None = None,
    ) -> None:
        self.backend = library
        self.options = options or EngineOptions()
        index = driver.device_index(device)
        self.device = f"cuda:{index}"
        self._cuda = CudaRuntime()
        self._index = index
        with self._cuda.on(index):
            if self.options.zero_copy and not self._cuda.shares_memory(index):
                raise BackendError(
                    f"zero_copy is for a GPU that shares the processor's memory, as on a Jetson, which {self.device} "
                    "does not: leave it out"
                )
            engine = OpenEngine(
                library,
                plan,
                info=info,
                weights=weights,
                cuda_graphs=self.options.cuda_graphs,
                cache=None if cache is None else PairedFile(cache, plan),
            )
            self._ranges: dict[str, InputRange] = {given.spec.name: given for given in engine.inputs}
            self.inputs: tuple[TensorSpec, ...] = tuple(given.spec for given in engine.inputs)
            self.outputs: tuple[TensorSpec, ...] = engine.outputs
            self._pool = SlotPool(library, self._cuda, index, engine, self.options)
        # Also where the session is dropped without being closed: device memory is no business of the collector.
        self._closing = weakref.finalize(self, self._pool.close)

    @overload
    def run(self, feeds: Feeds) -> dict[str, Array]: ...

    @overload
    def run(self, feeds: Any, *, on_device: bool) -> dict[str, Any]: ...

    def run(self, feeds: Any, *, on_device: bool = False) -> dict[str, Any]:
        """Run the network once.

        Args:
            feeds: the inputs by name, or the one input alone: numpy arrays, or arrays on the session's GPU with
                `__cuda_array_interface__` or `__dlpack__`, in C order, whose values are not checked
            on_device: leave the outputs on the GPU

        Returns:
            the outputs by name, which the caller owns: numpy arrays, or with `on_device`
            :class:`~runtime.backends.device_array.DeviceArray`

        Raises:
            InputError: if a name, element type, shape or value is not what the engine takes
            BackendError: if the device fails, or the session is closed
        """
        self._pool.check_open()
        try:
            with self._cuda.on(self._index):
                return self._run(feeds, on_device)
        except CudaError as e:
            self._pool.note(e)
            raise _run_error(self.backend, e) from e

    def close(self) -> None:
        """See :meth:`runtime.backends.base.Session.close`."""
        self._closing()

    def _run(self, feeds: Any, on_device: bool) -> dict[str, Any]:
        checked = self._check(feeds)
        try:
            slot = self._pool.acquire()
            try:
                results = slot.run(checked, self._pool.blocks if on_device else None)
            except BaseException as e:
                # Whatever was in flight is waited for here: the caller's arrays may go away after this.
                self._pool.discard(slot, e)
                raise
            self._pool.release(slot)
            return results
        finally:
            for value in checked.values():
                if isinstance(value, DeviceView):
                    value.release()

    def _check(self, feeds: Any) -> dict[str, Array | DeviceView]:
        checked: dict[str, Array | DeviceView] = {}
        try:
            for spec, value in named_feeds(self.inputs, feeds):
                if is_device_array(value):
                    checked[spec.name] = view_device_array(self._cuda, self._index, spec, value)
                else:
                    checked[spec.name] = check_array(spec, value)
                given = self._ranges[spec.name]
                if not given.takes(checked[spec.name].shape):
                    raise InputError(
                        f"the input {spec.name!r} has the shape {checked[spec.name].shape}: the engine takes "
                        f"{given.smallest} to {given.largest}; feed less at once, or build it with a larger --max-batch"
                    )
        except BaseException:
            for value in checked.values():
                if isinstance(value, DeviceView):
                    value.release()
            raise
        return checked


def _run_error(backend: str, error: CudaError) -> BackendError:
    remedy = ""
    if error.lost:
        remedy = "; the device is lost to this process: restart the program"
    elif error.out_of_memory:
        remedy = "; end other programs on the GPU, or feed less at once"
    return BackendError(f"{backend} failed to run the network: {error}{remedy}")
