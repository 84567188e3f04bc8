"""Run the float network on the calibration images and watch what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Session

from .errors import CalibrationError
from .observers import TensorRange, make_observer

Progress = Callable[[int, int | None], None]
"""Called after each batch with the number of batches done and, where it is known, of all."""


def collect_ranges(
    session: Session,
    batches: Iterable[NDArray[np.float32]],
    tensors: Sequence[str],
    method: str,
    progress: Progress | None = None,
) -> dict[str, TensorRange]:
    """Range of each tensor over all batches.

    Memory: one batch, the activations of one batch, and one observer a tensor, however many batches there are.

    Args:
        session: the float32 network with one input, `tensors` being its input or among its outputs
        batches: inputs of shape (N, 3, H, W), e.g. an :class:`~calib.images.ImageStream`
        tensors: names of the tensors to watch
        method: one of :data:`~calib.observers.METHODS`
        progress: called after each batch

    Returns:
        the ranges by tensor, in the order of `tensors`

    Raises:
        CalibrationError: if a tensor is unknown, was never observed, is not floating point, or holds NaN or infinity
    """
    if len(session.inputs) != 1:
        raise CalibrationError(f"calibration feeds networks with one input, this one has {len(session.inputs)}")
    source = session.inputs[0].name
    known = {source, *(output.name for output in session.outputs)}
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise CalibrationError(f"the network does not give the tensor {unknown[0]!r}: it must be one of its outputs")
    observers = {name: make_observer(method, name) for name in tensors}
    total = len(batches) if isinstance(batches, Sized) else None
    # One tensor after the other: counting holds Python's lock for most of its time, so threads gain nothing, and the
    # network has the cores to itself.
    for done, batch in enumerate(batches, 1):
        values: dict[str, NDArray[Any]] = {**session.run({source: batch}), source: batch}
        for name, observer in observers.items():
            observer.observe(values[name])
        # Before the next run, or two batches' activations would be in memory.
        del values, batch
        if progress is not None:
            progress(done, total)
    return {name: observer.ranges() for name, observer in observers.items()}
