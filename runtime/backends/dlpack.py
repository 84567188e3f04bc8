"""DLPack (version 0, which every library still exchanges): describing memory to and from other libraries, by ctypes.

The layout is that of dlpack.h, https://dmlc.github.io/dlpack/latest/c_api.html. Who takes a capsule changes its name,
and calls the deleter once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""Kinds of device (`DLDeviceType`) that matter here."""

_NAME, _USED_NAME = b"dltensor", b"used_dltensor"  # capsules keep the pointer: these must live as long as the module
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {code: kind for kind, code in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_python = ctypes.pythonapi
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _python)
)
# A capsule's destructor is handed an object that is being destroyed: as py_object it would be destroyed twice.
_is_valid_dying = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_pointer_of_dying = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _python))

_exported: dict[int, tuple[Any, ...]] = {}
"""What each exported description is made of and tells of, by its address, until its taker calls the deleter."""


@dataclass(frozen=True)
class Description:
    """Memory that another library describes.

    Attributes:
        pointer: address of the first element.
        device_type: e.g. :data:`CUDA`.
        device_id: which of them.
        dtype: numpy's name of the element type; None for one that numpy has not.
        shape: one entry a dimension.
        strides: in elements; None for C order.
        release: gives the memory back to its owner; to be called once.
    """

    pointer: int
    device_type: int
    device_id: int
    dtype: str | None
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    release: Callable[[], None]


def export_capsule(
    pointer: int, device_type: int, device_id: int, kind: str, bits: int, shape: tuple[int, ...], owner: object
) -> Any:
    """Describe memory in C order to another library.

    Args:
        pointer: address of the first element
        device_type: e.g. :data:`CUDA`
        device_id: which of them
        kind: numpy's letter of the element type: `i`, `u`, `f` or `b`
        bits: of an element
        shape: one entry a dimension
        owner: kept alive until the other library gives the memory back

    Returns:
        a capsule, as `__dlpack__` returns it
    """
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    strides = (ctypes.c_int64 * max(len(shape), 1))()
    step = 1
    for i in reversed(range(len(shape))):
        strides[i], step = step, step * shape[i]
    tensor = _Tensor(
        pointer,
        _Device(device_type, device_id),
        len(shape),
        _DataType(_CODES[kind], bits, 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
        0,
    )
    managed = _ManagedTensor(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
    address = ctypes.addressof(managed)
    _exported[address] = (managed, sizes, strides, owner)
    return _capsule_new(address, _NAME, ctypes.cast(_destructor, ctypes.c_void_p))


def import_capsule(capsule: Any) -> Description:
    """Take what another library describes.

    Args:
        capsule: what its `__dlpack__` returned

    Raises:
        ValueError: if it is no such capsule, or was taken already
    """
    if not _is_valid(capsule, _NAME):
        raise ValueError("is no DLPack capsule, or one that was taken already")
    address = _get_pointer(capsule, _NAME)
    managed = _ManagedTensor.from_address(address)
    tensor = managed.tensor
    _set_name(capsule, _USED_NAME)
    kind, bits = _KINDS.get(tensor.dtype.code), tensor.dtype.bits
    dtype = None
    if kind is not None and tensor.dtype.lanes == 1:
        names = {"i": "int", "u": "uint", "f": "float"}
        dtype = "bool" if kind == "b" else f"{names[kind]}{bits}"
    deleter = managed.deleter

    def release() -> None:
        if deleter:
            _Deleter(deleter)(address)

    return Description(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        device_type=tensor.device.device_type,
        device_id=tensor.device.device_id,
        dtype=dtype,
        shape=tuple(tensor.shape[i] for i in range(tensor.ndim)),
        strides=tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None,
        release=release,
    )


def _forget(address: int) -> None:
    _exported.pop(address, None)


def _forget_untaken(capsule: int) -> None:
    if _is_valid_dying(capsule, _NAME):
        _exported.pop(_pointer_of_dying(capsule, _NAME), None)


_deleter, _destructor = _Deleter(_forget), _Deleter(_forget_untaken)
