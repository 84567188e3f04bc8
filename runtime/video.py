"""Frames of a video file or a camera, through PyAV or OpenCV, whichever is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .manifest import CHANNEL_ORDERS

Frame = NDArray[np.uint8]


def open_video(source: str | os.PathLike[str] | int, channels: str = "rgb") -> Iterator[Frame]:
    """The frames of a video file, a stream or a camera.

    Args:
        source: a path or an address that the library opens; or a camera's number, which needs OpenCV
        channels: order of the channels, `"rgb"` or `"bgr"`; of a network that takes frames, its own

    Returns:
        an iterator of uint8 arrays (h, w, 3), each of its own memory; closing it closes the file or the camera

    Raises:
        ImageError: if neither library is installed, or the source cannot be opened or read
        ValueError: if there is no such order of channels
    """
    if channels not in CHANNEL_ORDERS:
        raise ValueError(f"channels is {channels!r}, expected one of {', '.join(CHANNEL_ORDERS)}")
    if not isinstance(source, int) and _installed("av"):
        return _frames_of_pyav(os.fspath(source), channels)
    if _installed("cv2"):
        return _frames_of_opencv(source if isinstance(source, int) else os.fspath(source), channels)
    needed = "OpenCV (pip install opencv-python-headless)"
    if not isinstance(source, int):
        needed = f"PyAV (pip install 'holocron-edge[video]') or {needed}"
    raise ImageError(f"reading frames of {_name(source)} needs {needed}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _frames_of_pyav(source: str, channels: str) -> Iterator[Frame]:
    import av

    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise ImageError(f"{source} has no video in it")
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format=f"{channels}24")
    except (av.error.FFmpegError, OSError) as e:
        raise ImageError(f"cannot read {source} as a video: {getattr(e, 'strerror', None) or e}") from e


def _frames_of_opencv(source: str | int, channels: str) -> Iterator[Frame]:
    import cv2

    capture: Any = cv2.VideoCapture(source)
    try:
        is_open, frame = capture.read()
        if not is_open:
            raise ImageError(f"cannot open {_name(source)}: it is not there, in use, or of no known format")
        while is_open:
            # OpenCV's own order is BGR. Each `read` gives an array of its own.
            yield frame if channels == "bgr" else np.ascontiguousarray(frame[..., ::-1])
            is_open, frame = capture.read()
    finally:
        capture.release()


def _name(source: object) -> str:
    return f"the camera {source}" if isinstance(source, int) else str(source)
