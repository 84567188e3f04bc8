"""Files and random states: what it takes to stop a training and go on as if nothing had happened."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader


def write_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that the destination holds the old one or the new one, never a part of it.

    Args:
        state: what to write, loadable with ``torch.load(path, weights_only=True)``
        path: the destination; its folder is created where it does not exist
    """
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def last_checkpoint_path(output_file: str | os.PathLike[str]) -> Path:
    """Where the state after the last epoch goes, next to the best one: ``model.pth`` gives ``model.last.pth``.

    Args:
        output_file: path of the best checkpoint

    Returns:
        path of the last checkpoint
    """
    path = Path(output_file)
    return path.with_name(f"{path.stem}.last{path.suffix}")


def _generators(loaders: Iterable[DataLoader[Any]]) -> list[torch.Generator]:
    """The generators that the loaders were given, in a fixed order (one that is shared comes up twice)."""
    owners = (
        owner
        for loader in loaders
        for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    )
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def capture_rng(loaders: Iterable[DataLoader[Any]], gpu: int | None) -> dict[str, Any]:
    """Take the state of every random generator that a training draws from in this process.

    Args:
        loaders: the loaders, whose own generators are included
        gpu: index of the GPU in use, if any

    Returns:
        a dictionary of tensors and plain values
    """
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the transforms of users draw from it
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": None if gpu is None else torch.cuda.get_rng_state(gpu),
        "loaders": [generator.get_state() for generator in _generators(loaders)],
        "python": {"version": version, "state": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }


def restore_rng(state: dict[str, Any], loaders: Iterable[DataLoader[Any]], gpu: int | None) -> None:
    """Put the random generators back where :func:`capture_rng` found them.

    Args:
        state: the captured state
        loaders: the loaders of this process
        gpu: index of the GPU in use, if any
    """
    torch.set_rng_state(state["torch"].cpu())
    if gpu is not None and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), gpu)
    for generator, saved in zip(_generators(loaders), state["loaders"], strict=False):
        generator.set_state(saved.cpu())
    python = state["python"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    saved_numpy = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": saved_numpy["key"].cpu().numpy().astype(np.uint32), "pos": saved_numpy["pos"]},
            "has_gauss": saved_numpy["has_gauss"],
            "gauss": saved_numpy["gauss"],
        }
    )


def is_same_schedule(saved: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Tell whether a training goes on with the schedule of a checkpoint, and warn if it does not.

    Args:
        saved: the arguments of the interrupted call, from the checkpoint
        asked: the arguments of this call

    Returns:
        whether they are the same
    """
    differing = [
        f"{name} ({saved.get(name)!r}, now {value!r})" for name, value in asked.items() if saved.get(name) != value
    ]
    if differing:
        warnings.warn(
            f"the loaded checkpoint is of an unfinished `fit_n_epochs` with another {', '.join(differing)}: a new "
            "schedule is started; pass the same arguments to train the remaining epochs of the old one",
            stacklevel=3,
        )
    return not differing


def restore_schedule(state: dict[str, Any], optimizer: Optimizer, scheduler: LRScheduler, scaler: GradScaler) -> None:
    """Put the parts of a training where a checkpoint found them.

    Args:
        state: the checkpoint, left as it is
        optimizer: the optimizer, with the parameter groups it had
        scheduler: the scheduler
        scaler: the gradient scaler
    """
    # A copy, since optimizers go on to modify the tensors they load.
    optimizer.load_state_dict(deepcopy(state["optimizer"]))
    scheduler.load_state_dict(state["scheduler"])
    if state["scaler"] and scaler.is_enabled():  # both are empty on CPU
        scaler.load_state_dict(state["scaler"])
