"""Looking for an NVIDIA GPU by asking the driver, before any library that prints a page when there is none."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from ..errors import BackendError

_CAPABILITY_ATTRIBUTES = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@lru_cache(maxsize=1)
def device_count() -> int:
    """Number of NVIDIA GPUs that the driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


@lru_cache(maxsize=16)
def device_capability(index: int = 0) -> str | None:
    """Compute capability of a GPU, as in "8.7".

    Args:
        index: the GPU's number

    Returns:
        the capability; None if there is no such GPU, or the driver does not tell
    """
    if not 0 <= index < device_count():
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    numbers = []
    for attribute in _CAPABILITY_ATTRIBUTES:
        value = ctypes.c_int(0)
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index) != 0:
            return None
        numbers.append(value.value)
    return ".".join(map(str, numbers))


def device_index(device: str | int | None) -> int:
    """The number of a GPU that was asked for.

    Args:
        device: its number, `"cuda"` or `"cuda:1"`; None is the first

    Raises:
        BackendError: if there is no such GPU, with those that there are
    """
    count = device_count()
    text = "0" if device is None else str(device).lower()
    text = "0" if text == "cuda" else text.removeprefix("cuda:")
    if isinstance(device, bool) or not text.isdecimal() or int(text) >= count:
        known = ", ".join(f"cuda:{i}" for i in range(count))
        raise BackendError(f"there is no device {device!r}: expected one of {known}")
    return int(text)


@lru_cache(maxsize=1)
def has_tensorrt_library() -> bool:
    """Whether the library that ONNX Runtime's TensorRT provider links to can be loaded."""
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        return False
    return True
