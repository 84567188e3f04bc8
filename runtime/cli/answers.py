"""What `holocron-run` has to say of each image and each frame, as values for JSON, in the order of the command line."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import click

from ..detections import Detections
from ..errors import ImageError
from ..model import Model
from ..stream import StreamAnswer
from ..tasks import Result
from ..video import Video, open_video
from ..video.newest import newest
from ..video.readers import Frame, VideoSource
from .errors import print_error
from .save import SaveFolder, VideoRecorder
from .sources import ImageFile, Source

Entry = dict[str, Any]

_UNNAMED = "image 0 "  # what an error calls an array that was given alone


@dataclass(frozen=True)
class Answering:
    """How images and frames are answered.

    Attributes:
        model: what answers them.
        workers: images that are worked on at once.
        top: classes of each answer; None for all.
        saver: where the answers are drawn; None for nowhere.
        frames: how many of a video to answer; None for all.
        every: answer each N-th frame, beginning with the first.
    """

    model: Model
    workers: int
    top: int | None
    saver: SaveFolder | None
    frames: int | None
    every: int

    def entries(self, sources: Sequence[Source]) -> Generator[Entry, None, None]:
        """An entry for each image and each frame, as they come; an error, which is printed too, takes its place.

        Closing the iterator ends what is under way, and finishes the video that is being saved.
        """
        for is_video, group in itertools.groupby(sources, lambda source: isinstance(source, VideoSource)):
            if not is_video:
                yield from self._images([source for source in group if isinstance(source, ImageFile)])
                continue
            for source in group:
                assert isinstance(source, VideoSource)
                try:
                    yield from self._video(source)
                except ImageError as e:
                    print_error(str(e))
                    yield {"source": source.name, "error": str(e)}

    def _images(self, files: Sequence[ImageFile]) -> Iterator[Entry]:
        answers = self.model.stream((file.path for file in files if file.error is None), self.workers)
        with closing(answers):
            for file in files:
                yield self._image(file, answers)

    def _image(self, file: ImageFile, answers: Iterator[StreamAnswer]) -> Entry:
        try:
            if file.error is not None:
                raise file.error
            result = next(answers).get()
            saved = {} if self.saver is None else {"saved": self.saver.save(file.path, result)}
            for remark in _remarks(result):
                _warn(f"{file.path}: {remark}")
            return {"image": str(file.path), **result.to_dict(self.top), **saved}
        except ImageError as e:
            print_error(str(e))
            return {"image": str(file.path), "error": str(e)}

    def _video(self, source: VideoSource) -> Iterator[Entry]:
        frame = self.model.manifest.frame
        reports = _Reports(source.name)
        with ExitStack() as stack:
            video = stack.enter_context(open_video(source.source, frame.channels if frame else "rgb", self.every))
            recorder = None if self.saver is None else self.saver.video(source, video, self.every)
            if recorder is not None:
                stack.enter_context(recorder)
            frames = _Frames(video, self.frames)
            answers = self.model.stream(frames.images(), self.workers)
            stack.enter_context(closing(answers))
            for answer in answers:
                yield self._frame(source, frames.position(), answer, recorder, reports)
        reports.end()

    def _frame(
        self,
        source: VideoSource,
        position: _Position,
        answer: StreamAnswer,
        recorder: VideoRecorder | None,
        reports: _Reports,
    ) -> Entry:
        entry: Entry = {"source": source.name, "frame": position.number}
        if position.time is not None:
            entry["time"] = round(position.time, 6)
        if answer.result is None:
            entry["error"] = reports.error(position.number, str(answer.error))
        else:
            entry |= answer.result.to_dict(self.top)
            reports.remarks(position.number, _remarks(answer.result))
        if recorder is not None:
            recorder.add(answer.image, position.time, answer.result)  # type: ignore[arg-type]  # of an array
            entry["saved"] = str(recorder.path)
        return entry


@dataclass(frozen=True)
class _Position:
    """Which frame of a video, and when it is seen, in seconds from the first one."""

    number: int
    time: float | None


class _Frames:
    """Gives a video's frames to a stream, and remembers where they are from until their answers come: in order.

    Args:
        video: the newest frame is taken, whenever there is room for one, if it is live
        limit: how many; None for all
    """

    def __init__(self, video: Video, limit: int | None) -> None:
        self._video, self._limit = video, limit
        self._positions: deque[_Position] = deque()  # no longer than the stream reads ahead

    def images(self) -> Iterator[Frame]:
        frames = self._video.frames()
        if self._video.live:
            frames = newest(frames)
        with closing(frames):
            for frame in itertools.islice(frames, self._limit):
                self._positions.append(_Position(frame.number, frame.time))
                yield frame.image

    def position(self) -> _Position:
        """Of the answer that came last; to be asked for once an answer."""
        return self._positions.popleft()


class _Reports:
    """Tells on stderr what is wrong with the frames of a video, once as long as it stays the same.

    Args:
        name: of the video
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed = 0
        self._last_error = ""
        self._remarks: set[str] = set()

    def error(self, number: int, message: str) -> str:
        """Tell why a frame was not taken, and return it."""
        frame = f"frame {number} of {self._name}"
        told = f"{frame}: {message}" if not message.startswith(_UNNAMED) else f"{frame} {message[len(_UNNAMED) :]}"
        if message != self._last_error:
            print_error(told)
        self._failed, self._last_error = self._failed + 1, message
        return told

    def remarks(self, number: int, remarks: Sequence[str]) -> None:
        """Tell what is not as it should be about an answer."""
        for remark in remarks:
            if remark not in self._remarks:
                self._remarks.add(remark)
                _warn(f"frame {number} of {self._name}: {remark}")

    def end(self) -> None:
        """Tell how many frames there were that all these lines stand for."""
        if self._failed > 1:
            print_error(f"{self._failed} frames of {self._name} were not answered")


def _remarks(result: Result) -> list[str]:
    return result.remarks if isinstance(result, Detections) else []


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)
