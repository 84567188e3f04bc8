"""Freezing parts of a model, and sorting its parameters for the optimizer."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils.data import DataLoader

__all__ = ["freeze_bn", "freeze_model"]

NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def freeze_bn(mod: nn.Module) -> None:
    """Keep the frozen batch normalization layers of a model from updating their running statistics.

    A layer is frozen when it has parameters and none of them requires a gradient. It is put in evaluation mode and
    stops tracking, so that a later :meth:`~torch.nn.Module.train` does not move its statistics either. A layer that has
    been unfrozen since the last call tracks its statistics again.

    Args:
        mod: the model, modified in place

    Example:
        >>> from holocron.trainer import freeze_bn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).requires_grad_(False)
        >>> freeze_bn(model)
        >>> model[1].training
        False
    """
    for module in mod.modules():
        if not isinstance(module, _BatchNorm) or not module.affine:
            continue
        if not any(param.requires_grad for param in module.parameters()):
            module.track_running_stats = False
            module.eval()
        else:
            _resume_tracking(module)


def _resume_tracking(module: _BatchNorm) -> None:
    # A layer built with `track_running_stats=False` has no statistics, and goes on without.
    if module.running_mean is not None:
        module.track_running_stats = True


def freeze_model(
    model: nn.Module,
    last_frozen_layer: str | None = None,
    frozen_bn_stat_update: bool = False,
) -> None:
    """Freeze a model up to and including one of its layers, and unfreeze the rest.

    Args:
        model: the model, modified in place; its layers are expected to be registered in the order of the forward pass
        last_frozen_layer: dotted name of the last layer (or parameter) to freeze; by default everything is unfrozen
        frozen_bn_stat_update: whether frozen batch normalization layers keep updating their running statistics

    Raises:
        ValueError: if the model has no layer of that name

    Example:
        >>> from holocron.trainer import freeze_model
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> freeze_model(model, "0")
        >>> [name for name, param in model.named_parameters() if param.requires_grad]
        ['2.weight', '2.bias']
    """
    frozen = () if last_frozen_layer is None else _params_up_to(model, last_frozen_layer)
    model.requires_grad_(True)
    for param in frozen:
        param.requires_grad_(False)

    if frozen_bn_stat_update:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                _resume_tracking(module)
                module.train(model.training)
    else:
        freeze_bn(model)


def _params_up_to(model: nn.Module, last: str) -> list[nn.Parameter]:
    params: list[nn.Parameter] = []
    reached = False
    for name, module in model.named_modules():
        inside = name == last or name.startswith(f"{last}.") or last == ""
        if reached and not inside:
            return params
        reached |= inside
        for param_name, param in module.named_parameters(prefix=name, recurse=False):
            params.append(param)
            if param_name == last:
                return params
    if not reached:
        names = [name for name, _ in model.named_modules() if name]
        close = difflib.get_close_matches(last, names, n=3) or names[:3]
        raise ValueError(
            f"unable to locate the layer {last!r} in {type(model).__name__}, which has for instance: {', '.join(close)}"
        )
    return params


def split_normalization(
    model: nn.Module, params: Iterable[nn.Parameter]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Sort parameters into those of normalization layers and the others.

    Args:
        model: the model in which to look for normalization layers
        params: the parameters to sort

    Returns:
        the parameters of normalization layers, and the others, each in the order given
    """
    norm_ids = {
        id(param)
        for module in model.modules()
        if isinstance(module, NORM_LAYERS)
        for param in module.parameters(recurse=False)
    }
    norm: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for param in params:
        (norm if id(param) in norm_ids else other).append(param)
    return norm, other


def move_to(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nested structure to a device.

    Args:
        value: a tensor, or a dictionary, list or tuple of what may hold some
        device: the device

    Returns:
        the same structure with the tensors on the device
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move_to(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_to(item, device) for item in value)
    return value


def count_batches(train_loader: DataLoader[Any]) -> int:
    """Count the batches of an epoch.

    Args:
        train_loader: the training loader

    Returns:
        their number

    Raises:
        ValueError: if the loader does not know, or has none
    """
    try:
        num_batches = len(train_loader)
    except TypeError as error:
        raise ValueError("train_loader has no length, which the schedule of the learning rate needs") from error
    if num_batches == 0:
        raise ValueError("train_loader is empty: its dataset has fewer samples than a batch, or none")
    return num_batches


def mean_loss(loss_sum: float, num_finite: float, num_samples: float) -> float:
    """Finish the validation loss, once its parts are summed over batches and processes.

    Args:
        loss_sum: sum over the samples of batches with a finite loss
        num_finite: number of those samples
        num_samples: number of all samples

    Returns:
        the mean loss, NaN if no batch had a finite one

    Raises:
        ValueError: if there was no sample
    """
    if num_samples == 0:
        raise ValueError("val_loader is empty: there is nothing to evaluate on")
    if num_finite == 0:
        warnings.warn("the loss of every validation batch is NaN or infinite: val_loss is NaN", stacklevel=3)
        return math.nan
    return loss_sum / num_finite


def check_gpu_index(gpu: int) -> None:
    """Refuse the index of a GPU that is not there.

    Args:
        gpu: the index

    Raises:
        ValueError: if this machine has no such GPU
    """
    if not 0 <= gpu < torch.cuda.device_count():
        raise ValueError(f"Invalid device index: gpu={gpu}, this machine has {torch.cuda.device_count()} GPU(s)")
