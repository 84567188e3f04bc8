"""Frames of a video file, a stream or a camera, through PyAV or OpenCV, whichever is installed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from ..manifest import CHANNEL_ORDERS
from .libraries import OPENCV, PYAV, video_library
from .readers import Frame, OpencvReader, PyavReader, Reader, VideoFrame, VideoSource, video_source

VIDEO_EXTENSIONS = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv", ".y4m"}
)
"""Lower-case suffixes of the files that the command line takes for videos."""


class Video:
    """An open video, which :func:`open_video` gives. Iterating over it gives its frames, once; a `with` closes it.

    Attributes:
        name: of its source, without the password that an address may hold.
        fps: frames per second, on average; None where the video does not say.
        live: whether its frames come as they are taken, and do not wait to be read: those of a camera, or of `rtsp://`.
    """

    def __init__(self, reader: Reader, source: VideoSource) -> None:
        self.name, self.live, self.fps = source.name, source.is_live, reader.fps
        self._reader = reader
        self._frames = reader.frames()
        self._closed = False
        self._in_use = threading.Lock()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        return self.read().image

    def frames(self) -> Generator[VideoFrame, None, None]:
        """The frames that are left, with their numbers and times; closing the iterator closes the video.

        Raises:
            ImageError: while iterating, if the video is damaged or cut off, or its source is gone
        """
        with self:
            while True:
                try:
                    frame = self.read()
                except StopIteration:
                    return
                yield frame

    def read(self) -> VideoFrame:
        """The next frame.

        Raises:
            StopIteration: if there are no more, or the video is closed
            ImageError: if the video is damaged or cut off, or its source is gone
        """
        try:
            with self._in_use:
                if self._closed:
                    raise StopIteration
                return next(self._frames)
        except BaseException:
            self._closed = True
            raise
        finally:
            if self._closed:  # here, or meanwhile by another thread
                self.close()

    def close(self) -> None:
        """Let go of the file or the camera: at once, or once the frame is there that another thread waits for.

        Calling it twice is allowed.
        """
        self._closed = True
        if self._in_use.acquire(blocking=False):
            try:
                self._reader.close()
            finally:
                self._in_use.release()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_video(source: str | os.PathLike[str] | int, channels: str = "rgb", every: int = 1) -> Video:
    """The frames of a video file, a stream or a camera.

    Args:
        source: a path or an address that the library opens; or a camera, by its number or its path, `"/dev/video0"`
        channels: order of the channels, `"rgb"` or `"bgr"`; of a network that takes frames, its own
        every: give each N-th frame, beginning with the first; the others are not converted

    Returns:
        an iterator of uint8 arrays (h, w, 3), upright, each of its own memory; closing it closes the file or the camera

    Raises:
        ImageError: if neither library is installed, or the source cannot be opened; while iterating, if it cannot be
            read, is damaged or cut off, or is a live one and ends
        ValueError: if there is no such order of channels, or every is below 1
    """
    if channels not in CHANNEL_ORDERS:
        raise ValueError(f"channels is {channels!r}, expected one of {', '.join(CHANNEL_ORDERS)}")
    if every < 1:
        raise ValueError(f"every is {every}, expected 1 at least")
    where = video_source(source)
    # OpenCV asks a camera for a format that is fit for video; through PyAV it gives what it was set to last.
    preferred = (OPENCV, PYAV) if where.is_camera else (PYAV, OPENCV)
    readers: dict[str, Callable[[VideoSource, str, int], Reader]] = {PYAV: PyavReader, OPENCV: OpencvReader}
    library = video_library(f"reading frames of {where.described}", preferred)
    return Video(readers[library](where, channels, every), where)
