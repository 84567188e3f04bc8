"""Giving memory back to the system between the steps of a long run."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def release_memory() -> None:
    """Give back what the C library keeps of freed memory, where it can be asked to.

    glibc keeps freed blocks of up to 32 MB for later use, whether they are used again or not: what one step leaves
    behind, in pieces that do not fit the next one's needs, adds up to hundreds of megabytes.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """Glibc's `malloc_trim`, None under another C library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
