"""A video through PyAV or through OpenCV: what either gives is upright frames with their numbers and times."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError

Frame = NDArray[np.uint8]

NETWORK_SECONDS = 10.0
"""How long an address may take to answer, or may stay silent, until it counts as gone."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = re.compile(r"(?<=://)[^/?#]*@")
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt")
_DEVICES = "/dev/"
_MICROSECONDS = 1e6  # a second, as PyAV counts the time of a whole file
_MOST_FPS = 1000.0  # a container without a frame rate gives that of its clock, e.g. 90000
_CUT_SECONDS, _CUT_SHARE = 0.5, 0.02  # what a container announces is rounded, and of some formats an estimate


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video.

    Attributes:
        image: uint8 array (h, w, 3), upright, of its own memory.
        number: its place in the video, from 0, frames that were passed over counted.
        time: seconds from the video's first frame: as the video says, or of a live source by the clock of this machine.
            None where the video does not say.
    """

    image: Frame
    number: int
    time: float | None


@dataclass(frozen=True)
class VideoSource:
    """Where frames come from.

    Attributes:
        source: path, address, or number of a camera.
    """

    source: str | int

    @property
    def is_camera(self) -> bool:
        """Whether it is a device of this machine."""
        return isinstance(self.source, int) or self.source.startswith(_DEVICES)

    @property
    def is_address(self) -> bool:
        """Whether it is reached by a protocol: `rtsp://…`, `http://…`."""
        return isinstance(self.source, str) and is_address(self.source)

    @property
    def is_live(self) -> bool:
        """Whether its frames come as they are taken, and do not wait to be read."""
        return self.is_camera or (self.is_address and str(self.source).split(":", 1)[0].lower() in _LIVE_SCHEMES)

    @property
    def name(self) -> str:
        """What to call it, without the password that an address may hold."""
        if isinstance(self.source, int):
            return f"camera {self.source}"
        return _CREDENTIALS.sub("", self.source) if self.is_address else self.source

    @property
    def described(self) -> str:
        """What to call it within a sentence."""
        return f"the {self.name}" if isinstance(self.source, int) else self.name


class Reader(Protocol):
    """An open video. Its `frames` are taken once; `close` follows in the same thread, or when nobody takes frames."""

    @property
    def fps(self) -> float | None:
        """Frames per second, on average; None where the video does not say."""

    def frames(self) -> Iterator[VideoFrame]:
        """The frames that are wanted, in order.

        Raises:
            ImageError: at the end if the video is damaged or cut off, or its source is gone
        """

    def close(self) -> None:
        """Let go of the file or the camera."""


def is_address(text: str) -> bool:
    """Whether it begins as an address does, with a protocol: `rtsp://`, `http://`."""
    return _ADDRESS.match(text) is not None


class PyavReader:
    """A file, an address or a camera (by Video4Linux) through PyAV.

    Args:
        source: what to open
        channels: order of the channels of the frames, `"rgb"` or `"bgr"`
        every: give each N-th frame, beginning with the first

    Raises:
        ImageError: if it cannot be opened, or has no video
    """

    def __init__(self, source: VideoSource, channels: str, every: int) -> None:
        import av

        self._errors: tuple[type[Exception], ...] = (av.error.FFmpegError, OSError, ValueError)
        self._damaged: type[Exception] = av.error.InvalidDataError
        self._source, self._format, self._every = source, f"{channels}24", every
        try:
            self._container = _opened_by_pyav(av, source)
        except self._errors as e:
            raise self._failed(e) from e
        stream = next(iter(self._container.streams.video), None)
        if stream is None or stream.codec_context is None:
            self._container.close()
            missing = "no video in it" if stream is None else "video of a kind that PyAV cannot decode"
            raise ImageError(f"{source.described} has {missing}")
        # Threads that decode a frame each are faster, and as many frames behind.
        stream.thread_type = "SLICE" if source.is_live else "AUTO"
        self._stream: Any = stream
        self.fps = _plausible(stream.average_rate or stream.guessed_rate)

    def frames(self) -> Iterator[VideoFrame]:
        """See :class:`Reader`."""
        number, damaged, seconds = 0, 0, 0.0
        clock = _Clock(self._source.is_live)
        try:
            for packet in self._container.demux():
                seconds = max(seconds, self._end(packet))
                if packet.stream.index != self._stream.index:
                    continue
                try:
                    decoded = packet.decode()
                except self._damaged:
                    damaged += 1
                    continue
                for frame in decoded:
                    now = clock(frame.time)
                    if number % self._every == 0:
                        yield VideoFrame(self._pixels(frame), number, now)
                    number += 1
        except self._errors as e:
            raise self._failed(e) from e
        _check_end(self._source, number)
        # What is announced is less than the file has where it was trimmed without being encoded again.
        announced = (self._container.duration or 0) / _MICROSECONDS
        if announced - seconds > max(_CUT_SECONDS, _CUT_SHARE * announced):
            raise ImageError(
                f"{self._source.described} is cut off: it ends after {seconds:.1f} of the {announced:.1f} seconds that "
                "it announces"
            )
        if damaged:
            raise ImageError(f"{self._source.described} is damaged: {damaged} of its packets could not be decoded")

    def close(self) -> None:
        """See :class:`Reader`."""
        self._container.close()

    def _pixels(self, frame: Any) -> Frame:
        pixels = frame.to_ndarray(format=self._format)
        # Telephones store frames as the sensor has them, and how they are to be turned: in degrees, anticlockwise.
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    def _end(self, packet: Any) -> float:
        """Where a packet of any track ends, in seconds from the video's beginning."""
        if packet.pts is None:
            return 0.0
        begins = (self._container.start_time or 0) / _MICROSECONDS
        return float((packet.pts + (packet.duration or 0)) * packet.time_base) - begins

    def _failed(self, error: Exception) -> ImageError:
        reason = getattr(error, "strerror", None) or error
        return ImageError(f"cannot read {self._source.described} as a video: {reason}")


class OpencvReader:
    """A file, an address or a camera through OpenCV.

    Args:
        source: what to open
        channels: order of the channels of the frames, `"rgb"` or `"bgr"`
        every: give each N-th frame, beginning with the first

    Raises:
        ImageError: if it cannot be opened, or has no video
    """

    def __init__(self, source: VideoSource, channels: str, every: int) -> None:
        import cv2

        self._source, self._bgr, self._every = source, channels == "bgr", every
        self._position: int = cv2.CAP_PROP_POS_MSEC
        self._capture: Any = cv2.VideoCapture(source.source)
        if not self._capture.isOpened():
            self._capture.release()
            raise ImageError(f"cannot open {source.described}: it is not there, in use, or of no known format")
        self.fps = _plausible(self._capture.get(cv2.CAP_PROP_FPS))

    def frames(self) -> Iterator[VideoFrame]:
        """See :class:`Reader`. Of what is damaged or cut off OpenCV gives the frames before, and does not say so."""
        number, clock = 0, _Clock(self._source.is_live)
        while self._capture.grab():
            now = clock(self._capture.get(self._position) / 1000)
            if number % self._every == 0:
                is_frame, frame = self._capture.retrieve()
                if not is_frame:
                    break
                # OpenCV's own order is BGR. Each `retrieve` gives an array of its own.
                yield VideoFrame(frame if self._bgr else np.ascontiguousarray(frame[..., ::-1]), number, now)
            number += 1
        _check_end(self._source, number)

    def close(self) -> None:
        """See :class:`Reader`."""
        self._capture.release()


class _Clock:
    """Seconds from the first frame: of a live source by this machine's clock, else as the video says."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self._first: float | None = None

    def __call__(self, said: float | None) -> float | None:
        now = time.monotonic() if self._live else said
        if now is None:
            return None
        if self._first is None:
            self._first = now
        return now - self._first


def _opened_by_pyav(av: Any, source: VideoSource) -> Any:
    if source.is_camera:
        device = f"{_DEVICES}video{source.source}" if isinstance(source.source, int) else source.source
        return av.open(device, format="v4l2")
    if not source.is_address:
        return av.open(source.source)
    # By UDP, which is the default, frames lose parts on a busy network.
    options = {"rtsp_flags": "prefer_tcp"} if str(source.source).lower().startswith("rtsp") else {}
    return av.open(source.source, options=options, timeout=(NETWORK_SECONDS, NETWORK_SECONDS))


def _check_end(source: VideoSource, frames: int) -> None:
    """Tell the end of a video from one that should not have come yet."""
    if source.is_live:
        raise ImageError(f"{source.described} gives no more frames, after {frames}: it is unplugged, or has ended")
    if not frames:
        raise ImageError(f"{source.described} is damaged or empty: it has no frame that can be decoded")


def _plausible(fps: Any) -> float | None:
    value = float(fps or 0)
    return value if math.isfinite(value) and 0 < value <= _MOST_FPS else None


def video_source(source: str | os.PathLike[str] | int) -> VideoSource:
    """Where frames come from, of what a program names it by."""
    return VideoSource(source if isinstance(source, int) else os.fspath(source))
