"""Tensors of many images on disk, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

_HALF_MAX = 2.0**14


@dataclass(frozen=True)
class _Entry:
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: np.dtype[np.generic]
    factor: float


class Spool:
    """Stores tensors by name and batch, floats in float16 about their own magnitude. Use it in a `with` statement."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="calibration-")
        self._files: dict[str, BinaryIO] = {}
        self._entries: dict[tuple[str, int], _Entry] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete everything."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._entries.clear()
        self._folder.cleanup()

    def write(self, name: str, batch: int, value: Tensor) -> None:
        """Store a tensor.

        Args:
            name: of the tensor
            batch: number of the batch; to be written in order
            value: float32 or integers
        """
        file = self._files.get(name)
        if file is None:
            file = tempfile.TemporaryFile(dir=self._folder.name)  # noqa: SIM115 (closed with the spool)
            self._files[name] = file
        value = value.detach().contiguous()
        factor = 1.0
        array = value.numpy()
        if value.is_floating_point():
            largest = float(value.abs().amax()) if value.numel() else 0.0
            if largest > 0 and np.isfinite(largest):
                # A power of two, so that nothing but float16's own rounding is lost, whatever the scale.
                factor = 2.0 ** float(np.clip(np.floor(np.log2(_HALF_MAX / largest)), -126, 127))
            array = (value * factor).to(torch.float16).numpy()
        file.seek(0, 2)
        entry = _Entry(file.tell(), tuple(value.shape), value.dtype, array.dtype, factor)
        file.write(array.tobytes())
        self._entries[name, batch] = entry

    def read(self, name: str, batch: int) -> Tensor:
        """What was stored.

        Args:
            name: of the tensor
            batch: number of the batch

        Returns:
            a tensor of the shape and type that was written
        """
        entry = self._entries[name, batch]
        file = self._files[name]
        file.seek(entry.offset)
        buffer = bytearray(int(np.prod(entry.shape)) * entry.stored.itemsize)
        file.readinto(buffer)  # type: ignore[attr-defined]
        value = torch.from_numpy(np.frombuffer(buffer, entry.stored).reshape(entry.shape)).to(entry.dtype)
        return value / entry.factor if entry.factor != 1.0 else value

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        file = self._files.pop(name, None)
        if file is not None:
            file.close()
        for key in [key for key in self._entries if key[0] == name]:
            del self._entries[key]
