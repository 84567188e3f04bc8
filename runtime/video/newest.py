"""The newest of what a live source gives, for whoever is slower than it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_JOIN_SECONDS = 1.0


def newest(source: Iterator[T]) -> Generator[T, None, None]:
    """Read a source as fast as it gives, and hand on what is newest; what comes while nobody asks is dropped.

    A network slower than its camera sees the latest frame so, not an ever older one.

    Args:
        source: read in a thread of its own, and closed there if it has a `close`

    Returns:
        an iterator; closing it ends the thread, once the source gives what the thread waits for. What the source
        raises comes out of it.
    """
    slot: _Slot[T] = _Slot()
    thread = threading.Thread(target=slot.fill, args=(source,), name="stream-newest", daemon=True)
    thread.start()
    try:
        while slot.wait():
            yield slot.take()
    finally:
        slot.stop()
        thread.join(_JOIN_SECONDS)


class _Slot(Generic[T]):
    """Room for one item, which the next one takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: list[T] = []
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def fill(self, source: Iterator[T]) -> None:
        try:
            for item in source:
                with self._changed:
                    if self._stopped:
                        break
                    self._item = [item]
                    self._changed.notify()
        except BaseException as e:  # the source's own: it belongs to whoever iterates
            self._error = e
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._ended = True
                self._changed.notify()

    def wait(self) -> bool:
        """Wait for an item; False at the end.

        Raises:
            BaseException: what the source raised
        """
        with self._changed:
            self._changed.wait_for(lambda: self._item or self._ended)
            if not self._item and self._error is not None:
                raise self._error
            return bool(self._item)

    def take(self) -> T:
        with self._changed:
            return self._item.pop()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
