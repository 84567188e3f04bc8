"""TensorRT and TensorRT-RTX as libraries: finding them, their versions, what they say when something fails.

The two have one Python interface; whatever differs is asked of the module, never of its name's version.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from ..errors import BackendError

LIBRARIES = ("tensorrt", "tensorrt_rtx")
EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}
"""The extra of `holocron-edge` that installs each."""
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""What each is called in a sentence."""

_OLDEST_TENSORRT = (10, 3)
_NO_REASON = "it gave no reason"


def load_library(library: str) -> Any:
    """Import a library.

    Args:
        library: one of :data:`LIBRARIES`

    Returns:
        the module

    Raises:
        BackendError: if it is not installed, does not load, or is too old
    """
    reason = library_missing(library)
    if reason is not None:
        raise BackendError(f"{TITLES[library]} engines need {reason}")
    trt = importlib.import_module(library)
    if library == "tensorrt" and version_numbers(str(trt.__version__))[:2] < _OLDEST_TENSORRT:
        raise BackendError(f"TensorRT {trt.__version__} is too old: 10.3 or later is needed (JetPack 6 and 7 have it)")
    return trt


def library_missing(library: str) -> str | None:
    """Why a library cannot be imported, in words that go on after "needs"; None if it can.

    Args:
        library: one of :data:`LIBRARIES`
    """
    trt: Any = None
    try:
        trt = importlib.import_module(library)
    except (ImportError, OSError) as e:  # OSError: the package is there, a shared library that it opens is not
        if not isinstance(e, ModuleNotFoundError):
            return f"`{library}`, which does not load ({e})"
    if not hasattr(trt, "ILogger"):  # a folder of that name is importable too: type stubs leave one
        return f"`{library}`, which is not installed (pip install 'holocron-edge[{EXTRAS[library]}]')"
    return None


def library_version(library: str) -> str:
    """Version of an installed library.

    Raises:
        BackendError: if it is not installed
    """
    return str(load_library(library).__version__)


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (10, 3, 0) of "10.3.0", (11, 0) of "11.0.rc1"."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def make_logger(trt: Any) -> Any:
    """A logger that prints nothing and keeps what went wrong.

    Its `reason()` is the first error since its `clear()`: of what TensorRT logs on one failure the first says why, the
    last only where it was caught. Both are the calling thread's, since TensorRT logs in the thread that called it.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors = threading.local()
            self._anywhere: str | None = None  # of a thread of the library's own

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                text = " ".join(str(message).split())
                if getattr(self._errors, "first", None) is None:
                    self._errors.first = text
                self._anywhere = self._anywhere or text

        def clear(self) -> None:
            self._errors.first = self._anywhere = None

        def reason(self) -> str:
            return getattr(self._errors, "first", None) or self._anywhere or _NO_REASON

    return Logger()
