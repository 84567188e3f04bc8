"""What every backend gives: a session that maps named arrays to named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Union

import numpy as np
from numpy.typing import NDArray

from ..manifest import TensorSpec

Array = NDArray[np.generic]
Feeds = Union[Array, Mapping[str, Array]]


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
            InputError: if a name, element type or shape is not what the network takes
            BackendError: if the backend fails
        """
        ...

    def close(self) -> None:
        """Release the network and its device memory; calling it twice is allowed, `run` afterwards is not."""
        ...
