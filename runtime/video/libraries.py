"""The two libraries that videos are read and written with; either will do."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from ..errors import ImageError

PYAV, OPENCV = "av", "cv2"
"""Names that they are imported by."""

_REMEDIES = {
    PYAV: "PyAV (pip install 'holocron-edge[video]')",
    OPENCV: "OpenCV (pip install opencv-python-headless)",
}


def video_library(purpose: str, preferred: Sequence[str] = (PYAV, OPENCV)) -> str:
    """The first that is installed.

    Args:
        purpose: what needs it, for the error: a sentence's beginning, `"reading frames of ride.mp4"`
        preferred: both names, the better one for the purpose first

    Raises:
        ImageError: if neither is installed
    """
    for name in preferred:
        if installed(name):
            return name
    raise ImageError(f"{purpose} needs {' or '.join(_REMEDIES[name] for name in preferred)}")


def installed(name: str) -> bool:
    """Whether that library is there to be imported."""
    return importlib.util.find_spec(name) is not None
