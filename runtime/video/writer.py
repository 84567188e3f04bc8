"""Writing an mp4 file, through PyAV or OpenCV, whichever is installed."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from .libraries import PYAV, video_library

_CODECS = ("libx264", "mpeg4")  # the second one is in every FFmpeg, and needs to be told how much to spend
_BITS_A_PIXEL = 0.2
_LARGEST_DENOMINATOR = 1001  # of a frame rate: 30000/1001


class VideoWriter:
    """An mp4 file of annotated frames, of the size of the first one.

    It is written under a temporary name beside its own, and renamed when it is closed: what ends a `with` early, be it
    an error or an interrupt, leaves a whole video of what was written until then. If writing itself fails, or nothing
    was written, nothing is left.

    Args:
        path: of the file, which is replaced
        fps: frames per second

    Raises:
        ImageError: if neither library is installed
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._rate = Fraction(fps).limit_denominator(_LARGEST_DENOMINATOR)
        self._encoder: _Encoder | None = None
        self._size = (0, 0)
        self._next = 0
        self._library = video_library(f"writing {path}")

    def write(self, image: Image.Image, place: int | None = None) -> None:
        """Add a frame.

        Args:
            image: of mode RGB; one of another size than the first is scaled to fit into that, on black
            place: when it is to be seen, in frames from the first; what is there already moves it back. By default
                behind the last one. The frame before it is seen until then

        Raises:
            ImageError: if it cannot be written
        """
        try:
            if self._encoder is None:
                self._size = image.size
                self._encoder = self._opened(image.width, image.height)
            if image.size != self._size:
                image = _fitted(image, self._size)
            place = self._next if place is None else max(place, self._next)
            self._encoder.write(_even(np.asarray(image)), place)
            self._next = place + 1
        except BaseException as e:
            if not isinstance(e, Exception):  # an interrupt: what was written is whole
                raise
            self._discard()
            raise self._failed(e) from e

    def close(self) -> None:
        """Finish the file and give it its name; calling it twice is allowed.

        Raises:
            ImageError: if it cannot be written
        """
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        try:
            encoder.close()
            self._partial.replace(self._path)
        except Exception as e:
            raise self._failed(e) from e
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self, width: int, height: int) -> _Encoder:
        self._partial.touch()  # OpenCV would not say why it cannot, and PyAV not before it has encoded some frames
        kind: type[_PyavEncoder | _OpencvEncoder] = _PyavEncoder if self._library == PYAV else _OpencvEncoder
        return kind(self._partial, self._rate, (width + width % 2, height + height % 2))

    def _discard(self) -> None:
        encoder, self._encoder = self._encoder, None
        try:
            if encoder is not None:
                encoder.close()
        except Exception:  # noqa: S110 - the error that led here is the one to tell
            pass
        finally:
            self._partial.unlink(missing_ok=True)

    def _failed(self, error: Exception) -> ImageError:
        return ImageError(f"cannot write {self._path}: {getattr(error, 'strerror', None) or error}")


class _Encoder(Protocol):
    """An open file. Sizes are even: the codecs store colours for blocks of 2 × 2 pixels."""

    def write(self, pixels: NDArray[np.uint8], place: int) -> None: ...

    def close(self) -> None: ...


class _PyavEncoder:
    def __init__(self, path: Path, rate: Fraction, size: tuple[int, int]) -> None:
        import av

        self._frame: Any = av.VideoFrame
        self._time_base = 1 / rate
        codec = next(name for name in _CODECS if _can_encode(av, name))
        self._container: Any = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"  # what every player shows
        self._stream.codec_context.time_base = self._time_base
        if codec == _CODECS[0]:
            self._stream.options = {"preset": "veryfast"}
        else:
            self._stream.bit_rate = round(_BITS_A_PIXEL * size[0] * size[1] * rate)

    def write(self, pixels: NDArray[np.uint8], place: int) -> None:
        frame = self._frame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = place, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()


class _OpencvEncoder:
    def __init__(self, path: Path, rate: Fraction, size: tuple[int, int]) -> None:
        import cv2

        self._path = path
        self._writer: Any = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), float(rate), size)
        self._next = 0
        self._last: NDArray[np.uint8] | None = None
        if not self._writer.isOpened():
            self._writer.release()
            raise ImageError("OpenCV cannot open the file, or has no codec for it")

    def write(self, pixels: NDArray[np.uint8], place: int) -> None:
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        for _ in range(self._next, place):  # its frames have no times: one that is seen for longer is there more often
            self._writer.write(bgr if self._last is None else self._last)
        self._writer.write(bgr)
        self._next, self._last = place + 1, bgr

    def close(self) -> None:
        self._writer.release()
        # What OpenCV cannot write it drops without a word.
        if not self._path.is_file() or not self._path.stat().st_size:
            raise ImageError("OpenCV wrote nothing: is the disk full?")


def _can_encode(av: Any, codec: str) -> bool:
    try:
        return bool(av.codec.Codec(codec, "w").is_encoder)
    except ValueError:  # av.codec.codec.UnknownCodecError is one
        return False


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels of even height and width: of an odd one the last row or column is there twice."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return pixels


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.pad(image, size)
