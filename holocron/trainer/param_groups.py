"""What a trainer does to an optimizer before a schedule: fresh state, trainable parameters, one learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from holocron.optim.wrapper import Lookahead, Scout
from holocron.trainer.utils import split_normalization

# What learning rate schedulers leave in a group, and the names of its parameters, which change with freezing.
_NOT_KEPT = {"lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "param_names"}


def user_param_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Record the parameter groups of an optimizer as its user made them.

    Args:
        optimizer: the optimizer

    Returns:
        the groups, with copies of the lists of parameters and without learning rates
    """
    return [
        {**{name: value for name, value in group.items() if name not in _NOT_KEPT}, "params": list(group["params"])}
        for group in optimizer.param_groups
    ]


def reset_param_groups(
    optimizer: Optimizer,
    model: nn.Module,
    groups: list[dict[str, Any]],
    lr: float,
    norm_weight_decay: float | None = None,
) -> None:
    """Start an optimizer afresh, without state or gradients, on the parameters that require a gradient.

    The options of the user's groups are kept; parameters of the model that are in none of them go to one with the
    defaults.

    Args:
        optimizer: the optimizer, modified in place
        model: the model
        groups: the groups that :func:`user_param_groups` recorded
        lr: the learning rate of all groups
        norm_weight_decay: weight decay of the parameters of normalization layers, by default that of their group

    Raises:
        ValueError: if nothing is left to train, or the optimizer has no weight decay to set
    """
    if norm_weight_decay is not None and not norm_weight_decay >= 0:
        raise ValueError(f"norm_weight_decay is expected to be non-negative or None, got {norm_weight_decay!r}")
    if norm_weight_decay is not None and "weight_decay" not in optimizer.defaults:
        raise ValueError(
            f"norm_weight_decay={norm_weight_decay!r} was given, but {type(optimizer).__name__} has no weight_decay"
        )
    grouped = {id(param) for group in groups for param in group["params"]}
    ungrouped = [param for param in model.parameters() if id(param) not in grouped]

    new_groups: list[dict[str, Any]] = []
    for group in [*groups, {"params": ungrouped}]:
        trainable = [param for param in group["params"] if param.requires_grad]
        if norm_weight_decay is None:
            new_groups.append({**group, "params": trainable, "lr": lr})
        else:
            norm, other = split_normalization(model, trainable)
            new_groups.append({**group, "params": norm, "lr": lr, "weight_decay": norm_weight_decay})
            new_groups.append({**group, "params": other, "lr": lr})
    new_groups = [group for group in new_groups if group["params"]]
    if not new_groups:
        raise ValueError("no parameter is left to train: the model has none, or all of its layers are frozen")

    optimizer.param_groups.clear()
    optimizer.state.clear()
    if isinstance(optimizer, (Lookahead, Scout)):
        optimizer.base_optimizer.state.clear()
        optimizer.fast_steps = 0
    for group in new_groups:
        optimizer.add_param_group(group)
    optimizer.zero_grad(set_to_none=True)


def check_lr(name: str, lr: float) -> None:
    """Refuse what cannot be a learning rate.

    Args:
        name: name of the argument
        lr: its value

    Raises:
        ValueError: if it is not positive and finite
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"{name} is expected to be a positive learning rate, got {lr!r}")


def build_scheduler(optimizer: Optimizer, sched_type: str, lr: float, num_updates: int, **kwargs: Any) -> LRScheduler:
    """Build the learning rate schedule of a training.

    Args:
        optimizer: the optimizer
        sched_type: ``onecycle`` or ``cosine``
        lr: the highest learning rate
        num_updates: number of updates of the weights
        **kwargs: further arguments of the scheduler

    Returns:
        the scheduler, to be stepped once per update

    Raises:
        ValueError: if `sched_type` is neither of the two
    """
    if sched_type == "onecycle":
        # OneCycleLR refuses to cycle the momentum of an optimizer that has none.
        cycle_momentum = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
        return OneCycleLR(optimizer, max_lr=lr, total_steps=num_updates, **{"cycle_momentum": cycle_momentum, **kwargs})
    if sched_type == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_updates, **kwargs)
    raise ValueError(f"sched_type is expected to be 'onecycle' or 'cosine', got {sched_type!r}")
