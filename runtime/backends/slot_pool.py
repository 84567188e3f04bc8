"""The threads that run one engine share its slots."""

from __future__ import annotations

import contextlib
import threading

from ..errors import BackendError
from .base import closed_error
from .cuda_runtime import CudaError, CudaRuntime
from .device_array import BlockPool
from .engine_options import EngineOptions
from .tensorrt_context import ExecutionSlot
from .tensorrt_engine import OpenEngine

_MIB = 2**20


class SlotPool:
    """The slots of one engine: made when they are needed, waited for when there are as many as there may be.

    Args:
        backend: the session's, for errors
        cuda: the runtime
        device: number of the GPU, which must be current in every method but `close`
        engine: what the slots execute; the pool closes it
        options: how

    Attributes:
        blocks: memory of outputs that stay on the GPU.

    Raises:
        BackendError: if there is not enough memory for one slot
    """

    def __init__(
        self, backend: str, cuda: CudaRuntime, device: int, engine: OpenEngine, options: EngineOptions
    ) -> None:
        self.blocks = BlockPool(cuda, device)
        self._backend, self._cuda, self._device = backend, cuda, device
        self._engine: OpenEngine | None = engine
        self._options = options
        self._limit = options.contexts
        self._total = 1
        self._idle: list[ExecutionSlot] = []
        self._closed = False
        self._lost: str | None = None
        self._changed = threading.Condition()
        try:
            self._idle.append(self._new_slot(engine))  # what does not fit says so when the engine is opened
        except BaseException:
            engine.close()
            raise

    def check_open(self) -> None:
        """Make sure that the engine can be run.

        Raises:
            BackendError: if it was closed, or its device was lost
        """
        if self._lost is not None:
            raise BackendError(
                f"the {self._backend} session is closed, since its device was lost ({self._lost}): restart the program"
            )
        if self._closed:
            raise closed_error(self._backend)

    def acquire(self) -> ExecutionSlot:
        """A slot for the calling thread alone, which gives it back.

        Raises:
            BackendError: if the pool is closed, or there is no memory for the only slot
        """
        while True:
            with self._changed:
                while not self._idle and self._total >= self._limit and self._is_open():
                    self._changed.wait()
                self.check_open()
                if self._idle:
                    return self._idle.pop()
                self._total += 1
                engine = self._engine
            assert engine is not None  # it goes with the last slot, and this thread's is counted
            try:
                return self._new_slot(engine)
            except BaseException as e:
                self._retire([], missing=1, error=e)
                with self._changed:
                    if not isinstance(e, BackendError) or self._total == 0 or not self._is_open():
                        raise
                    # Others run the engine: what is missing is memory for one more of it. Wait for one of theirs.
                    self._limit = self._total

    def release(self, slot: ExecutionSlot) -> None:
        """Give back a slot that may be used again."""
        with self._changed:
            if self._is_open():
                self._idle.append(slot)
                self._changed.notify()
                return
        self._retire([slot])

    def discard(self, slot: ExecutionSlot, error: BaseException) -> None:
        """Give back a slot that failed: it is released, and the next run makes another."""
        self._retire([slot], error=error)

    def note(self, error: CudaError) -> None:
        """Take in that something failed outside of a slot: a lost device closes the pool."""
        self._retire([], error=error)

    def close(self) -> None:
        """Release what is idle now, and what is running as soon as it has run."""
        with self._changed:
            self._closed = True
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(CudaError):  # a lost device cannot be made current, and need not be
                stack.enter_context(self._cuda.on(self._device))
            self._retire([])

    def _is_open(self) -> bool:
        return not self._closed and self._lost is None

    def _retire(self, slots: list[ExecutionSlot], missing: int = 0, error: BaseException | None = None) -> None:
        """Release slots and count them out; of a pool that is no longer open all idle ones, and with the last the rest.

        Args:
            slots: which
            missing: slots that were counted and never came to be
            error: what happened to them, if anything
        """
        lost = error if isinstance(error, CudaError) and error.lost else None
        while True:
            for slot in slots:
                failure = slot.close()
                lost = lost or (failure if failure is not None and failure.lost else None)
            with self._changed:
                self._total -= len(slots) + missing
                if lost is not None and self._lost is None:
                    self._lost = str(lost)
                slots, missing, engine = [], 0, None
                if not self._is_open():
                    slots, self._idle = self._idle, []
                    if not self._total:
                        engine, self._engine = self._engine, None
                self._changed.notify_all()
            if not slots:
                break
        if engine is not None:
            engine.close()
            self.blocks.close()

    def _new_slot(self, engine: OpenEngine) -> ExecutionSlot:
        records = self._options.cuda_graphs and not engine.records_itself
        try:
            return ExecutionSlot(self._cuda, engine, records=records, shared=self._options.zero_copy)
        except CudaError as e:
            if not e.out_of_memory:
                raise
            need, free = engine.workspace_size // _MIB, self._cuda.free_memory() // _MIB
            raise BackendError(
                f"there is not enough memory for the engine: it needs {need} MiB for activations besides its buffers, "
                f"and {free} MiB are free on cuda:{self._device}; end other programs on the GPU, or build the engine "
                "with a smaller --max-batch"
            ) from e
