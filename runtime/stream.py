"""Many images, one after the other, with all that is done to them overlapped: reading, decoding, network, answer.

    with runtime.load("repvgg_a0", threads=1, concurrency=2) as model:
        for answer in model.stream(runtime.open_video("ride.mp4")):
            print(answer.index, answer.result)

The source is read in a thread of its own, never more than a few images ahead, and several threads take each image all
the way from its file to its answer: while one decodes, another runs the network. Pillow, numpy and the backends let go
of Python's lock while they work. Answers come in the order of the images.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cpu import default_threads
from .errors import ImageError
from .images import ImageSource
from .tasks import Result

if TYPE_CHECKING:
    from .model import Model

MAX_WORKERS = 8
"""More images at once cost memory and gain little: few networks leave the processor idle with so many."""

_JOIN_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class StreamAnswer:
    """What came of one image of a stream.

    Attributes:
        index: its number, from 0.
        image: the image, as the source gave it.
        result: the answer; None if the image could not be taken.
        error: why it could not be taken; None if it was.
    """

    index: int
    image: ImageSource
    result: Result | None
    error: ImageError | None

    def get(self) -> Result:
        """The answer.

        Raises:
            ImageError: if the image could not be taken
        """
        if self.result is None:
            assert self.error is not None
            raise self.error
        return self.result


def split_threads(threads: int | None, images: int | None = None) -> tuple[int, int]:
    """How to divide processor threads between images that are worked on at once and the network of each.

    Images next to each other use the processor better than threads next to each other in one network do.

    Args:
        threads: in all; None for the physical cores
        images: how many there are; None for many

    Returns:
        number of images at once, and threads of the network of each
    """
    count = default_threads() if threads is None else threads
    workers = max(1, min(count, MAX_WORKERS, count if images is None else images))
    return workers, max(1, count // workers)


def stream(
    model: Model, images: Iterable[ImageSource], workers: int | None = None
) -> Generator[StreamAnswer, None, None]:
    """What :meth:`runtime.model.Model.stream` does."""
    if workers is None:
        workers = max(2, min(MAX_WORKERS, default_threads() // model.threads))
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers is {workers!r}, expected an integer")
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected 1 at least")
    return _answers(_Pipeline(model, images, workers))


def _answers(pipeline: _Pipeline) -> Generator[StreamAnswer, None, None]:
    with pipeline:
        yield from pipeline


class _Pipeline:
    """A thread that reads a source, threads that work on what it gives, and a queue of what comes of it, in order."""

    def __init__(self, model: Model, images: Iterable[ImageSource], workers: int) -> None:
        self._model = model
        self._images = images
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="stream")
        self._slots = threading.Semaphore(2 * workers)  # an image waits while another is worked on, for each worker
        self._queue: queue.SimpleQueue[Future[StreamAnswer] | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, name="stream-reader", daemon=True)

    def __enter__(self) -> _Pipeline:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._slots.release()
        # Work that has begun is finished before the model may be closed. A source that waits for a camera is left to.
        self._reader.join(_JOIN_SECONDS)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[StreamAnswer]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            answer = item.result()
            self._slots.release()
            yield answer

    def _read(self) -> None:
        source = iter(self._images)
        try:
            for index in itertools.count():
                self._slots.acquire()
                if self._stopped.is_set():
                    break
                try:
                    image = next(source)
                except StopIteration:
                    break
                if self._stopped.is_set():
                    break
                self._queue.put(self._pool.submit(self._answer, index, image))
            self._queue.put(None)
        except BaseException as e:  # the source's own: it belongs to whoever iterates
            self._queue.put(e)
        finally:
            close = getattr(source, "close", None)  # of a generator, which may hold a file or a camera
            if close is not None:
                close()

    def _answer(self, index: int, image: ImageSource) -> StreamAnswer:
        try:
            return StreamAnswer(index, image, self._model(image), None)
        except ImageError as e:
            return StreamAnswer(index, image, None, e)
