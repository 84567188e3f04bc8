"""Telling a person at a terminal what a long export is doing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """Is told what happens; :class:`Silent` and :class:`Terminal` are two."""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Surround one step of the export."""
        yield

    def update(self, done: int, total: int | None) -> None:
        """Say how far the current step is; `total` is None where it is not known."""

    def warn(self, message: str) -> None:
        """Say something that the user should know and that is not an error."""


class Silent:
    """Says nothing."""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Surround one step."""
        yield

    def update(self, done: int, total: int | None) -> None:
        """Ignore it."""

    def warn(self, message: str) -> None:
        """Ignore it: the result holds the warnings too."""


class Terminal:
    """Writes a line a step, with its time; on a terminal the line counts while the step runs.

    Args:
        stream: where to write, standard error unless told
    """

    _INTERVAL = 0.1

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._title = ""
        self._last = 0.0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Write the step's title when it begins (on a terminal) and its time when it ends."""
        started, self._title, self._last = time.perf_counter(), title, 0.0
        if self._live:
            self._write(f"\r{title} …")
        try:
            yield
        except BaseException:
            if self._live:
                self._write("\n")
            raise
        seconds = time.perf_counter() - started
        self._write(f"{self._start()}{title}: {seconds:.1f} s\n")

    def update(self, done: int, total: int | None) -> None:
        """Rewrite the line with a count, on a terminal, a few times a second."""
        now = time.perf_counter()
        if self._live and (now - self._last > self._INTERVAL or done == total):
            self._last = now
            self._write(f"{self._start()}{self._title} {done}/{total or '?'} …")

    def warn(self, message: str) -> None:
        """Write a line of its own."""
        self._write(f"{self._start()}warning: {message}\n")

    def _start(self) -> str:
        return "\r\033[K" if self._live else ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
