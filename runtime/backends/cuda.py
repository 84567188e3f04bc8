"""Looking for an NVIDIA GPU by asking the driver, before any library that prints a page when there is none."""

from __future__ import annotations

import ctypes
from functools import lru_cache


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


@lru_cache(maxsize=1)
def has_tensorrt_library() -> bool:
    """Whether the library that ONNX Runtime's TensorRT provider links to can be loaded."""
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        return False
    return True
