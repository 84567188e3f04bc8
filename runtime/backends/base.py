"""What every backend gives: a session that maps named arrays to named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError
from ..manifest import TensorSpec

Array = NDArray[np.generic]
Feeds = Array | Mapping[str, Array]


class Session(Protocol):
    """A network opened by one backend on one device. `run` may be called from several threads.

    Attributes:
        backend: the backend's name, e.g. `"onnxruntime"`.
        device: where it runs, in the backend's own words, e.g. `"cpu"`.
        inputs: the network's inputs.
        outputs: the network's outputs.
    """

    backend: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the network once.

        Args:
            feeds: the inputs by name, or the one input's array alone

        Returns:
            the outputs by name, as arrays that the caller owns

        Raises:
            InputError: if a name, element type, shape or value is not what the network takes
            BackendError: if the backend fails, or the session is closed
        """
        ...

    def close(self) -> None:
        """Release the network and its device memory; calling it twice is allowed, `run` afterwards is not."""
        ...


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Feeds) -> dict[str, Array]:
    """Check what is about to be fed to a network, so that no backend sees what it may misread.

    Args:
        inputs: what the network takes
        feeds: the inputs by name, or the one input's array alone

    Returns:
        a contiguous array for each input, in the order of `inputs`; the caller's own wherever it is contiguous

    Raises:
        InputError: if a name, element type or shape is wrong, or a value is NaN or infinite
    """
    return {spec.name: check_array(spec, value) for spec, value in named_feeds(inputs, feeds)}


def named_feeds(inputs: tuple[TensorSpec, ...], feeds: Any) -> list[tuple[TensorSpec, Any]]:
    """Which value is for which input, whatever the values are.

    Args:
        inputs: what the network takes
        feeds: the inputs by name, or the one input's value alone

    Returns:
        each input with its value, in the order of `inputs`

    Raises:
        InputError: if a name is unknown or missing
    """
    if not isinstance(feeds, Mapping):
        if len(inputs) != 1:
            raise InputError(f"the network takes {len(inputs)} inputs, {_names(inputs)}: pass them by name")
        feeds = {inputs[0].name: feeds}
    names = {spec.name for spec in inputs}
    for name in feeds:
        if name not in names:
            raise InputError(f"the network has no input {name!r}: it takes {_names(inputs)}")
    for spec in inputs:
        if spec.name not in feeds:
            raise InputError(f"the input {spec.name!r} is missing: the network takes {_names(inputs)}")
    return [(spec, feeds[spec.name]) for spec in inputs]


def closed_error(backend: str) -> BackendError:
    """What a session raises that is used after `close`."""
    return BackendError(f"the {backend} session is closed: load the model again")


def one_line(error: BaseException, limit: int = 300) -> str:
    """A library's error in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def check_array(spec: TensorSpec, array: Array) -> Array:
    """Check an array in host memory that is about to be fed to an input.

    Returns:
        the array itself if it is contiguous, otherwise a contiguous copy

    Raises:
        InputError: if it is no array, its element type or shape is wrong, or a value is NaN or infinite
    """
    if not isinstance(array, np.ndarray):
        raise InputError(f"the input {spec.name!r} is a {type(array).__name__}: expected a numpy array")
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"the input {spec.name!r} is {array.dtype if array.dtype.isnative else array.dtype.str}: "
            f"expected {spec.dtype}, as .astype({spec.dtype!r}) gives"
        )
    check_shape(spec, array.shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"the input {spec.name!r} has {_non_finite(array)}: every value must be finite")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Check the shape of what is about to be fed to an input.

    Raises:
        InputError: if it is not one that the input takes
    """
    fits = len(shape) == len(spec.shape) and all(
        got >= 1 if isinstance(wanted, str) else got == wanted for got, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, spec.shape))
        raise InputError(f"the input {spec.name!r} has the shape {shape}: expected ({wanted}), each 1 at least")


def _non_finite(array: Array) -> str:
    nan = int(np.isnan(array).sum())
    infinite = int(np.isinf(array).sum())
    return " and ".join(f"{n} {what}" for n, what in ((nan, "NaN"), (infinite, "infinite")) if n)


def _names(inputs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(repr(spec.name) for spec in inputs)
