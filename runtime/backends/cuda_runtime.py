"""The CUDA runtime calls that running an engine takes, through `cuda.bindings`: checked, typed, and nothing more.

Addresses are plain integers, sizes are bytes. Handles of streams and graphs stay what the bindings make of them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, TypeAlias

from ..errors import BackendError
from .base import one_line

Stream: TypeAlias = Any
Graph: TypeAlias = Any

MODULE = "cuda.bindings.runtime"
_OLD_DRIVER = "cudaErrorInsufficientDriver"
_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _ANY_TO_ANY = "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDefault"

# After one of these the process's CUDA context answers every call with an error: nothing on the device can be saved.
_LOST = frozenset(
    {
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorAssert",
        "cudaErrorECCUncorrectable",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorDevicesUnavailable",
        "cudaErrorDeviceUninitialized",
        "cudaErrorNoDevice",
        "cudaErrorSystemNotReady",
        "cudaErrorContained",
        "cudaErrorUnknown",
    }
)


class CudaError(BackendError):
    """A CUDA call that failed.

    Attributes:
        code: CUDA's name of the error, e.g. `"cudaErrorMemoryAllocation"`.
        lost: whether the device is of no more use to this process.
        out_of_memory: whether there was not enough memory.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
        self.lost = code in _LOST
        self.out_of_memory = code == _OUT_OF_MEMORY


def bindings_missing() -> str | None:
    """Why `cuda.bindings` cannot be used; None if it can."""
    try:
        importlib.import_module(MODULE)
    except ImportError as e:
        return f"cuda-python is not installed, or does not load ({one_line(e)})"
    return None


class CudaRuntime:
    """CUDA's runtime API for one process. Every method may be called from any thread.

    Raises:
        BackendError: if `cuda.bindings` is not installed; every method: :class:`CudaError`
    """

    def __init__(self) -> None:
        try:
            self._api: Any = importlib.import_module(MODULE)
        except ImportError as e:
            raise BackendError(
                f'running an engine needs cuda-python: pip install "holocron-edge[trt]" ({one_line(e)})'
            ) from e

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a GPU the one that the calling thread's allocations and streams are of, and then its own again."""
        before = int(self._call("cudaGetDevice"))
        if before != device:
            self._call("cudaSetDevice", device)
        try:
            yield
        finally:
            if before != device:
                self._api.cudaSetDevice(before)  # if that fails, so does the caller's next call, which says why

    def shares_memory(self, device: int) -> bool:
        """Whether a GPU has the processor's memory, as on a Jetson, and can work on what the host allocates."""
        attributes = self._api.cudaDeviceAttr
        return all(
            self._call("cudaDeviceGetAttribute", attribute, device)
            for attribute in (attributes.cudaDevAttrIntegrated, attributes.cudaDevAttrCanMapHostMemory)
        )

    def free_memory(self) -> int:
        """Bytes that are free on the calling thread's GPU."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def malloc(self, size: int) -> int:
        """Allocate device memory, aligned to 256 bytes at least."""
        return int(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        """Free device memory that no work uses any more."""
        self._call("cudaFree", pointer)

    def host_alloc(self, size: int, mapped: bool = False) -> int:
        """Allocate page-locked host memory; mapped: so that the device can work on it."""
        flags = self._api.cudaHostAllocMapped if mapped else self._api.cudaHostAllocDefault
        return int(self._call("cudaHostAlloc", size, flags))

    def host_free(self, pointer: int) -> None:
        """Free page-locked host memory that no work uses any more."""
        self._call("cudaFreeHost", pointer)

    def device_pointer(self, host: int) -> int:
        """Where the device finds mapped host memory."""
        return int(self._call("cudaHostGetDevicePointer", host, 0))

    def device_of(self, pointer: int) -> int | None:
        """The GPU that an address is memory of; None for what is no device memory."""
        attributes = self._call("cudaPointerGetAttributes", pointer)
        kinds = self._api.cudaMemoryType
        if attributes.type not in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged):
            return None
        return int(attributes.device)

    def create_stream(self) -> Stream:
        """Create a stream that does not wait for the default stream."""
        return self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Stream) -> None:
        """Destroy a stream whose work is done."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Stream) -> None:
        """Wait until all work of a stream is done; raises what went wrong in it."""
        self._call("cudaStreamSynchronize", stream)

    def wait_for(self, stream: Stream, producer: int) -> None:
        """Make a stream's next work wait for all that is in another stream now, without waiting here.

        Args:
            stream: ours
            producer: handle of the other, 1 for the legacy default stream, 2 for the calling thread's
        """
        event = self._call("cudaEventCreateWithFlags", self._api.cudaEventDisableTiming)
        try:
            self._call("cudaEventRecord", event, producer)
            self._call("cudaStreamWaitEvent", stream, event, 0)
        finally:
            self._call("cudaEventDestroy", event)  # CUDA keeps it until nothing waits for it

    def copy_to_device(self, device: int, host: int, size: int, stream: Stream) -> None:
        """Copy page-locked host memory to the device, in a stream."""
        self._copy(device, host, size, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: Stream) -> None:
        """Copy device memory to page-locked host memory, in a stream."""
        self._copy(host, device, size, _DEVICE_TO_HOST, stream)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy between addresses of any kind that the device can reach, in a stream."""
        self._copy(target, source, size, _ANY_TO_ANY, stream)

    def begin_capture(self, stream: Stream) -> None:
        """Record the stream's work from now on instead of doing it.

        Thread-local: other threads may go on allocating while this one records.
        """
        self._call("cudaStreamBeginCapture", stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self, stream: Stream) -> Graph:
        """What was recorded, ready to be launched; from the thread that began.

        Raises:
            CudaError: if something that cannot be recorded was called, after which the stream is itself again
        """
        recorded = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", recorded, 0)
        finally:
            # The instance is a copy. If this fails the instance must still get to where it is destroyed.
            with contextlib.suppress(CudaError):
                self._call("cudaGraphDestroy", recorded)

    def abandon_capture(self, stream: Stream) -> None:
        """Leave capture mode and forget what was recorded, if anything was."""
        with contextlib.suppress(CudaError):
            self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Do recorded work in a stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Graph) -> None:
        """Destroy recorded work that is not running."""
        self._call("cudaGraphExecDestroy", graph)

    def _copy(self, target: int, source: int, size: int, kind: str, stream: Stream) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._api.cudaMemcpyKind, kind), stream)

    def _call(self, name: str, *args: Any) -> Any:
        try:
            status, *values = getattr(self._api, name)(*args)
        except RuntimeError as e:  # how cuda-python 12 says that there is no driver, or none that has the function
            raise CudaError(f"{name}: {one_line(e)}", "cudaErrorNotSupported") from e
        if int(status) != 0:
            raise self._error(name, status)
        if not values:
            return None
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, call: str, status: Any) -> CudaError:
        # A failed call is remembered by CUDA, and whoever asks next, TensorRT say, would take the error for its own.
        self._api.cudaGetLastError()
        _, name = self._api.cudaGetErrorName(status)
        _, text = self._api.cudaGetErrorString(status)
        code = _text(name)
        remedy = ""
        if code == _OLD_DRIVER:
            remedy = (
                ": update it, or install an older cuda-python, for CUDA 12 (JetPack 6) pip install 'cuda-python<13'"
            )
        return CudaError(f"{call}: {_text(text)} ({code}){remedy}", code)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
