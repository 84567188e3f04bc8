"""What the processor can do, as far as a backend's settings depend on it."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@lru_cache(maxsize=1)
def flags() -> frozenset[str]:
    """The processor's feature flags as Linux names them; empty where they cannot be read."""
    try:
        for line in _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def is_x86() -> bool:
    """Whether this is an x86 processor."""
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def has_int8_dot_product() -> bool:
    """Whether an x86 processor multiplies uint8 by int8 without saturating (VNNI or AMX).

    Older ones add two products of 8 bits in 16 bits (`vpmaddubsw`): what exceeds 32767 is cut off, and the answer of an
    INT8 network is wrong without notice.
    """
    return bool(flags() & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


def default_threads() -> int:
    """Number of threads that a network gets when none is asked for.

    The physical cores that this process may run on, or the container's share of processor time where that is less: more
    threads than that wait for each other.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota() or len(cores)))


def _siblings(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or "max"
        return None
