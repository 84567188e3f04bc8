"""Arrays on the GPU: taken from other libraries, and handed to them, without a way through the host.

By `__cuda_array_interface__`, https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, and DLPack.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..manifest import TensorSpec
from . import dlpack
from .base import Array, check_shape
from .cuda_runtime import CudaError, CudaRuntime

_LEGACY_STREAM = 1


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class DeviceView:
    """Memory on a GPU that belongs to somebody else, in C order.

    Attributes:
        pointer: address of the first element.
        shape: one entry a dimension.
        size: bytes.
        stream: handle of the stream that it is written in; None if it is written.
        release: gives it back; to be called once.
    """

    pointer: int
    shape: tuple[int, ...]
    size: int
    stream: int | None = None
    release: Callable[[], None] = field(default=_nothing, repr=False)


def is_device_array(value: object) -> bool:
    """Whether something says that it is an array on a GPU, or can be asked by DLPack where it is."""
    return not isinstance(value, np.ndarray) and (
        hasattr(type(value), "__cuda_array_interface__") or hasattr(type(value), "__dlpack__")
    )


def view_device_array(cuda: CudaRuntime, device: int, spec: TensorSpec, value: Any) -> DeviceView:
    """Look at an array that another library has on the GPU.

    Values are not looked at: unlike those of a numpy array, they may be NaN.

    Args:
        cuda: the runtime
        device: the GPU that the network is on
        spec: the input that it is for
        value: the array, with `__cuda_array_interface__` or `__dlpack__`

    Returns:
        where it lies; its `release` must be called when it has been read

    Raises:
        InputError: if its element type or shape is not the input's, it is not in C order, or not on that GPU
    """
    # DLPack first: torch's tensors on the processor have the interface too, and those on a GPU tell no stream there.
    if hasattr(type(value), "__dlpack__") and not isinstance(value, DeviceArray):
        return _from_dlpack(device, spec, value)
    return _from_interface(cuda, device, spec, value)


class DeviceArray:
    """An output that stays on the GPU. It is complete: no stream has to be waited for.

    It has `__cuda_array_interface__` and `__dlpack__`, so that `torch.from_dlpack(array)` or `cupy.asarray(array)`
    share its memory. That goes back to the session when the last of them is gone.

    Attributes:
        shape: one entry a dimension.
        dtype: of the elements.
        device: number of the GPU.
    """

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = block.device
        self._block = block

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return self._block.pointer

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How other libraries find the memory."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A DLPack capsule. The memory is complete, so whatever stream the taker works in need not wait."""
        return dlpack.export_capsule(
            self.pointer,
            dlpack.CUDA,
            self.device,
            self.dtype.kind,
            8 * self.dtype.itemsize,
            self.shape,
            self._block,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device."""
        return (dlpack.CUDA, self.device)

    def numpy(self) -> Array:
        """A copy in host memory.

        Raises:
            BackendError: if the device fails
        """
        return self._block.read(self.nbytes).view(self.dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device=cuda:{self.device})"


class Block:
    """Device memory that goes back to its pool when nothing holds it any more."""

    def __init__(self, pool: BlockPool, pointer: int, size: int) -> None:
        self.pointer = pointer
        self.device = pool.device
        self._pool = pool
        weakref.finalize(self, pool.give_back, pointer, size)

    def read(self, size: int) -> Array:
        """Copy the first `size` bytes to host memory.

        Raises:
            BackendError: if the device fails
        """
        return self._pool.read(self.pointer, size)


class BlockPool:
    """Device memory for outputs that stay on the GPU, used again instead of freed.

    Args:
        cuda: the runtime
        device: number of the GPU
    """

    def __init__(self, cuda: CudaRuntime, device: int) -> None:
        self.device = device
        self._cuda = cuda
        self._free: dict[int, list[int]] = {}
        self._closed = False
        # Re-entrant: the collector may run a finalizer, which gives a block back, while this thread holds it.
        self._lock = threading.RLock()

    def take(self, size: int) -> Block:
        """Memory of at least `size` bytes; the calling thread's device must be the pool's.

        Raises:
            CudaError: if there is not enough
        """
        size = max(1, size)
        with self._lock:
            idle = self._free.get(size)
            pointer = idle.pop() if idle else None
        return Block(self, self._cuda.malloc(size) if pointer is None else pointer, size)

    def give_back(self, pointer: int, size: int) -> None:
        """Keep memory for the next call; after :meth:`close` free it."""
        with self._lock:
            if not self._closed:
                self._free.setdefault(size, []).append(pointer)
                return
        self._release(pointer)

    def read(self, pointer: int, size: int) -> Array:
        """Copy device memory to host memory.

        Raises:
            CudaError: if the device fails
        """
        with self._cuda.on(self.device):
            return read_device(self._cuda, pointer, size)

    def close(self) -> None:
        """Free what is idle; what is still held is freed when its holder lets go."""
        with self._lock:
            self._closed = True
            idle = [pointer for pointers in self._free.values() for pointer in pointers]
            self._free.clear()
        for pointer in idle:
            self._release(pointer)

    def _release(self, pointer: int) -> None:
        with contextlib.suppress(CudaError):  # the device is gone, and the memory with it
            self._cuda.free(pointer)


def read_device(cuda: CudaRuntime, pointer: int, size: int) -> Array:
    """Copy device memory to a new array of `size` bytes, through page-locked memory and a stream of its own."""
    host = cuda.host_alloc(max(1, size))
    try:
        stream = cuda.create_stream()
        try:
            cuda.copy_to_host(host, pointer, size, stream)
            cuda.synchronize(stream)
        except BaseException:
            with contextlib.suppress(CudaError):  # nothing may be under way when the memory goes
                cuda.synchronize(stream)
            raise
        finally:
            cuda.destroy_stream(stream)
        return host_view(host, size).copy()
    finally:
        cuda.host_free(host)


def host_view(pointer: int, size: int) -> Array:
    """Host memory as an array of bytes; it does not keep the memory."""
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(pointer)), np.uint8)


def _from_interface(cuda: CudaRuntime, device: int, spec: TensorSpec, value: Any) -> DeviceView:
    try:
        interface = value.__cuda_array_interface__
        pointer, shape = int(interface["data"][0]), tuple(int(n) for n in interface["shape"])
        dtype, strides, stream = np.dtype(interface["typestr"]), interface.get("strides"), interface.get("stream")
    except Exception as e:
        raise InputError(f"the input {spec.name!r} has no readable __cuda_array_interface__: {e}") from e
    if interface.get("mask") is not None:
        raise InputError(f"the input {spec.name!r} is masked: fill it first")
    _check(spec, dtype.name if dtype.isnative else dtype.str, shape)
    if strides is not None:
        steps = tuple(int(step) // dtype.itemsize for step in strides)
        _check_order(spec, shape, steps)
    found = cuda.device_of(pointer)
    if found != device:
        where = "is not in a GPU's memory" if found is None else f"is on cuda:{found}"
        raise InputError(f"the input {spec.name!r} {where}, the network on cuda:{device}: move it there")
    size = math.prod(shape) * dtype.itemsize
    return DeviceView(pointer, shape, size, None if stream is None else int(stream))


def _from_dlpack(device: int, spec: TensorSpec, value: Any) -> DeviceView:
    try:
        kind, index = map(int, value.__dlpack_device__())
    except Exception as e:
        raise InputError(f"the input {spec.name!r} does not say by DLPack where it is: {e}") from e
    if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        raise InputError(
            f"the input {spec.name!r} is a {type(value).__name__} in host memory: expected a numpy array, as "
            "numpy.asarray gives, or an array on the GPU"
        )
    if index != device:
        raise InputError(f"the input {spec.name!r} is on cuda:{index}, the network on cuda:{device}: move it there")
    try:
        # Told the default stream, the producer makes that wait for its own work; ours then waits for the default one.
        found = dlpack.import_capsule(value.__dlpack__(stream=_LEGACY_STREAM))
    except Exception as e:
        raise InputError(f"the input {spec.name!r} cannot be taken by DLPack: {e}") from e
    try:
        _check(spec, str(found.dtype), found.shape)
        if found.strides is not None:
            _check_order(spec, found.shape, found.strides)
    except InputError:
        found.release()
        raise
    size = math.prod(found.shape) * np.dtype(spec.dtype).itemsize
    return DeviceView(found.pointer, found.shape, size, _LEGACY_STREAM, found.release)


def _check(spec: TensorSpec, dtype: str, shape: tuple[int, ...]) -> None:
    if dtype != spec.dtype:
        raise InputError(f"the input {spec.name!r} is {dtype}: expected {spec.dtype}")
    check_shape(spec, shape)


def _check_order(spec: TensorSpec, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise InputError(
                f"the input {spec.name!r} has the strides {strides} in elements for the shape {shape}: expected C "
                "order, as .contiguous() of torch or cupy.ascontiguousarray gives"
            )
        step *= size
