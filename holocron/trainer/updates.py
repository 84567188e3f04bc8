"""The parts of a training step: mixed precision, the update of the weights, and what must be undone after a trial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from holocron.trainer import distributed


def autocast(model: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Context for a forward pass in mixed precision: float16 on a GPU, bfloat16 elsewhere.

    Args:
        model: the model, which says on what device
        enabled: whether to use mixed precision

    Returns:
        the context manager
    """
    if not enabled:
        return nullcontext()
    device = next((param.device.type for param in model.parameters()), "cpu")
    return torch.autocast(device, dtype=torch.float16 if device == "cuda" else torch.bfloat16)


def make_scaler(model: nn.Module, enabled: bool) -> GradScaler:
    """Make the scaler that keeps float16 gradients from vanishing; bfloat16 needs none.

    Args:
        model: the model, which says on what device
        enabled: whether mixed precision is used

    Returns:
        the scaler, which does nothing unless the model is on a GPU
    """
    on_gpu = next((param.is_cuda for param in model.parameters()), False)
    return GradScaler("cuda", enabled=enabled and on_gpu)


def update_weights(optimizer: Optimizer, scaler: GradScaler, grad_clip: float | None, rescale: float = 1.0) -> bool:
    """Update the weights with the gradients at hand, and drop these.

    Args:
        optimizer: the optimizer
        scaler: the scaler that the loss was multiplied by
        grad_clip: the largest norm of the gradient, or None
        rescale: factor that the gradient is multiplied by before clipping

    Returns:
        False where the scaler found an overflow and left the weights as they were
    """
    if rescale != 1.0 or grad_clip is not None:
        scaler.unscale_(optimizer)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if rescale != 1.0:
            for param in params:
                if param.grad is not None:
                    param.grad.mul_(rescale)
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(params, grad_clip)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return bool(scaler.get_scale() >= scale)


class NanWatch:
    """Stops a training whose loss stays NaN or infinite.

    Args:
        tolerance: number of consecutive batches that are let pass
    """

    def __init__(self, tolerance: int) -> None:
        self.tolerance = tolerance
        self.count = 0

    def is_finite(self, loss: float) -> bool:
        """Look at the loss of a batch.

        Args:
            loss: the loss in this process

        Returns:
            whether it is finite in every process

        Raises:
            ValueError: if too many in a row are not
        """
        finite = distributed.sum_over_ranks([float(not math.isfinite(loss))])[0] == 0
        self.count = 0 if finite else self.count + 1
        if self.count > self.tolerance:
            raise ValueError(
                f"loss value has been NaN or infinite for {self.count} consecutive batches, more than "
                f"nan_tolerance={self.tolerance}; check the data, or lower the learning rate"
            )
        return finite


class BufferGuard:
    """Keeps a copy of the buffers of a model: statistics that have seen a NaN stay NaN, and need to be put back.

    Args:
        model: the model
        enabled: whether there is anything to guard against; otherwise nothing is copied
    """

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        self._buffers = list(model.buffers()) if enabled else []
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def after_batch(self, usable: bool) -> None:
        """Take what the batch did to the buffers, or undo it.

        Args:
            usable: whether the batch counts
        """
        for buffer, copy in zip(self._buffers, self._copies, strict=True):
            if usable:
                copy.copy_(buffer)
            else:
                buffer.copy_(copy)


@contextmanager
def trial_run(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Context in which a model may be trained without consequence.

    Args:
        model: the model, whose weights and buffers are put back
        optimizer: its optimizer, which loses its state
    """
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(saved)
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
