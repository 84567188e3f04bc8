"""What an optimizer's options may be: one place that checks constructors and parameter groups alike."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch

__all__ = ["DEFAULT_SCALE_CLIP", "adam_options", "check_options"]

DEFAULT_SCALE_CLIP: tuple[float, float] = (0.0, 10.0)

# Options of `torch.optim.Adam` that its subclasses here inherit but that only Adam's own kernels implement.
_UNSUPPORTED = {
    "fused": "there is no fused kernel; leave it unset, `foreach` is the fast path",
    "capturable": "the step count lives on the host; leave it False and keep the step outside of the graph",
    "differentiable": "the update is made in place; leave it False",
}


def check_options(options: Mapping[str, Any], num_betas: int = 2) -> None:
    """Check the options of one parameter group, or the defaults of an optimizer.

    Options that are absent are not checked, so that every optimizer can hand in what it has.

    Args:
        options: the option names and values
        num_betas: how many coefficients `betas` holds

    Raises:
        ValueError: if a value is out of its range; the message names the argument and the value
    """
    _check_lower_bound(options, "lr", "learning rate")
    _check_lower_bound(options, "eps", "epsilon value")
    _check_lower_bound(options, "weight_decay", "weight_decay value")
    _check_lower_bound(options, "momentum", "momentum value")
    _check_lower_bound(options, "alpha", "alpha value")
    _check_lower_bound(options, "delta", "delta value")
    if "betas" in options:
        _check_betas(options["betas"], num_betas)
    if "dampening" in options and not _is_finite(options["dampening"]):
        raise ValueError(f"Invalid dampening value: {options['dampening']!r} (expected a finite number)")
    if options.get("nesterov") and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError(
            "Nesterov momentum requires a momentum and zero dampening, "
            f"received: momentum={options['momentum']}, dampening={options['dampening']}"
        )
    if "scale_clip" in options:
        _check_scale_clip(options["scale_clip"])
    dof = options.get("dof")
    if dof is not None and not (_is_finite(dof) and dof > 0):
        raise ValueError(f"Invalid dof value: {dof!r} (expected dof > 0, or None for the size of each parameter)")
    if options.get("foreach") not in (None, True, False):
        raise ValueError(f"Invalid foreach value: {options['foreach']!r} (expected True, False or None)")
    for name, remedy in _UNSUPPORTED.items():
        if options.get(name):
            raise ValueError(f"{name}={options[name]!r} is not supported: {remedy}")


def adam_options(
    lr: float,
    betas: tuple[float, ...],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
) -> dict[str, Any]:
    """The defaults of a subclass of :class:`torch.optim.Adam`, with every key that Adam's groups have."""
    return {
        "lr": lr,
        "betas": betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": False,
    }


def _is_finite(value: Any) -> bool:
    # A learning rate may be a tensor of one element: LR schedulers fill it in place.
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex() and math.isfinite(float(value))
    return isinstance(value, Real) and math.isfinite(value)


def _check_lower_bound(options: Mapping[str, Any], name: str, wording: str) -> None:
    if name in options and not (_is_finite(options[name]) and options[name] >= 0):
        raise ValueError(f"Invalid {wording}: {options[name]!r} (expected a finite {name} >= 0)")


def _check_betas(betas: Any, num_betas: int) -> None:
    if not isinstance(betas, Sequence) or len(betas) != num_betas:
        raise ValueError(f"Invalid betas: {betas!r} (expected {num_betas} coefficients)")
    for index, beta in enumerate(betas):
        if not (_is_finite(beta) and 0.0 <= beta < 1.0):
            raise ValueError(f"Invalid beta parameter at index {index}: {beta!r} (expected 0 <= betas[{index}] < 1)")


def _check_scale_clip(scale_clip: Any) -> None:
    is_pair = isinstance(scale_clip, Sequence) and len(scale_clip) == 2
    if (
        not is_pair
        or not all(isinstance(bound, Real) for bound in scale_clip)
        or not 0 <= scale_clip[0] <= scale_clip[1]
    ):
        raise ValueError(
            f"Invalid scale_clip: {scale_clip!r} (expected two bounds, 0 <= scale_clip[0] <= scale_clip[1])"
        )
