"""Wrappers around an optimizer: `optimizer = Lookahead(AdamW(model.parameters()))`."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from holocron.optim._common import load_exactly, work_dtype

__all__ = ["Lookahead", "Scout"]


class _SlowWeights(Optimizer):
    """An optimizer around another one, which keeps a second, slow copy of the weights.

    The parameter groups are those of the base optimizer, not copies, so that LR schedulers, gradient clipping and
    gradient scalers that are given the wrapper act on what the base optimizer uses. The slow weights are state of the
    wrapper, copied from a parameter at the first step that finds it trainable: pretrained weights may be loaded, and
    layers unfrozen, after the wrapper is made.
    """

    base_optimizer: Optimizer
    fast_steps: int
    # Accumulators that a subclass needs next to the slow weights; they start each period at zero.
    _accumulators: tuple[str, ...] = ()

    def __init__(self, base_optimizer: Optimizer, sync_rate: float = 0.5, sync_period: int = 6) -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(
                f"expected a torch.optim.Optimizer as base_optimizer, received: {type(base_optimizer).__name__}"
            )
        _check_sync(sync_rate, sync_period)
        # The constructor of Optimizer would build parameter groups of its own; restoring a state builds all the rest.
        self.__setstate__(
            {
                "defaults": {**base_optimizer.defaults, "sync_rate": sync_rate, "sync_period": sync_period},
                "state": defaultdict(dict),
                "base_optimizer": base_optimizer,
                "fast_steps": 0,
            }
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base optimizer."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = param_groups

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("defaults", "state", "base_optimizer", "fast_steps")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "param_groups"})

    def __repr__(self) -> str:
        base = repr(self.base_optimizer).replace("\n", "\n  ")
        rate, period = self.defaults["sync_rate"], self.defaults["sync_period"]
        return f"{type(self).__name__} (\n  {base}\n  sync_rate: {rate}\n  sync_period: {period}\n)"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base optimizer."""
        self.base_optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the base optimizer does."""
        self.base_optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapper and, under `"base"`, that of the base optimizer."""
        return {
            **super().state_dict(),
            "base": self.base_optimizer.state_dict(),
            "fast_steps": self.fast_steps,
            "sync_rate": self.defaults["sync_rate"],
            "sync_period": self.defaults["sync_period"],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state_dict: the state of a wrapper of the same class around an optimizer of the same class

        Raises:
            ValueError: if it is the state of something else, such as that of the bare base optimizer
        """
        missing = {"state", "param_groups", "base", "fast_steps", "sync_rate", "sync_period"} - state_dict.keys()
        if missing:
            raise ValueError(
                f"not the state dict of {type(self).__name__}, which also has {sorted(missing)}: "
                "load the state of a bare optimizer into `base_optimizer`"
            )
        _check_sync(state_dict["sync_rate"], state_dict["sync_period"])
        self.base_optimizer.load_state_dict(state_dict["base"])
        load_exactly(self, {"state": state_dict["state"], "param_groups": state_dict["param_groups"]})
        self.fast_steps = state_dict["fast_steps"]
        self.defaults.update(sync_rate=state_dict["sync_rate"], sync_period=state_dict["sync_period"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step of the base optimizer and, at the end of a period, synchronize with the slow weights.

        Args:
            closure: reevaluates the model and returns the loss

        Returns:
            the loss that the closure returned, or None
        """
        with torch.no_grad():
            params = self._remember()
        loss = self._step_fast(params, closure)
        self.fast_steps += 1
        if self.fast_steps % self.defaults["sync_period"] == 0:
            with torch.no_grad():
                self._synchronize(params)
        return loss

    def _remember(self) -> list[Tensor]:
        """The trainable parameters, each with a slow copy in the state."""
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        for param in params:
            state = self.state[param]
            if "slow" not in state:
                dtype = work_dtype(param.dtype)
                state["slow"] = param.detach().to(dtype, copy=True)
                state.update({name: torch.zeros_like(param, dtype=dtype) for name in self._accumulators})
        return params

    def _step_fast(self, params: list[Tensor], closure: Callable[[], Any] | None) -> Any:
        return self.base_optimizer.step(closure)

    def _gather(self, params: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[param][name] for param in params]

    def _synchronize(self, params: list[Tensor]) -> None:
        raise NotImplementedError


class Lookahead(_SlowWeights):
    r"""Lookahead, from `"Lookahead Optimizer: k steps forward, 1 step back" <https://arxiv.org/pdf/1907.08610.pdf>`_.

    The base optimizer moves the fast weights :math:`\theta`, those of the model. Every :math:`k` steps the slow weights
    :math:`\phi` go part of the way to where it got, and it starts again from there:

    .. math::
        \phi &\leftarrow \phi + \alpha (\theta - \phi) \\
        \theta &\leftarrow \phi

    where :math:`\alpha` is the synchronization rate and :math:`k` the synchronization period. The state of the base
    optimizer, momentum included, is kept. Memory: one copy of the trainable parameters, in float32 for half precision.

    LR schedulers take either the wrapper or the base optimizer, whose parameter groups it shares.

    Example::

        >>> from torch.optim import AdamW
        >>> from holocron.optim.wrapper import Lookahead
        >>> optimizer = Lookahead(AdamW(model.parameters(), lr=3e-4))

    Args:
        base_optimizer: the optimizer of the fast weights
        sync_rate: how far the slow weights follow the fast ones, from 0 (never) to 1 (all the way)
        sync_period: number of steps of the base optimizer between synchronizations

    Raises:
        TypeError: if `base_optimizer` is not an optimizer
        ValueError: if `sync_rate` is not within 0 and 1, or `sync_period` is not a positive integer
    """

    def _synchronize(self, params: list[Tensor]) -> None:
        if not params:
            return
        slow = self._gather(params, "slow")
        fast = [param.to(target.dtype) for param, target in zip(params, slow, strict=True)]
        torch._foreach_lerp_(slow, fast, self.defaults["sync_rate"])
        torch._foreach_copy_(params, slow)


class Scout(_SlowWeights):
    r"""An optimizer wrapper based on `"Lookahead Optimizer: k steps forward, 1 step back"
    <https://arxiv.org/pdf/1907.08610.pdf>`_, whose fast weights scout how far each slow weight may go.

    Lookahead follows all weights at the same rate. Here, a weight that the last :math:`k` updates
    :math:`u_1, \ldots, u_k` agree upon is followed at the full rate, and one that they pushed back and forth, at a
    lower one. With :math:`\phi` the slow weights and :math:`\theta` the fast ones, all operations being elementwise:

    .. math::
        c &= \frac{|\sum_i u_i|}{\sum_i |u_i|} \in [0, 1] \\
        \phi &\leftarrow \phi + \alpha c (\theta - \phi) \\
        \theta &\leftarrow \phi

    where :math:`\alpha` is the synchronization rate and :math:`\sum_i u_i = \theta - \phi`. For a period of one step
    this is Lookahead. Memory: two copies of the trainable parameters, in float32 for half precision, whatever the
    period, and one more during a step.

    LR schedulers take either the wrapper or the base optimizer, whose parameter groups it shares.

    Example::

        >>> from torch.optim import AdamW
        >>> from holocron.optim.wrapper import Scout
        >>> optimizer = Scout(AdamW(model.parameters(), lr=3e-4))

    Args:
        base_optimizer: the optimizer of the fast weights
        sync_rate: how far the slow weights follow the fast ones where these are certain, from 0 (never) to 1
        sync_period: number of steps of the base optimizer between synchronizations

    Raises:
        TypeError: if `base_optimizer` is not an optimizer
        ValueError: if `sync_rate` is not within 0 and 1, or `sync_period` is not a positive integer
    """

    _accumulators = ("path",)

    def _step_fast(self, params: list[Tensor], closure: Callable[[], Any] | None) -> Any:
        path = self._gather(params, "path")
        with torch.no_grad():
            before = [param.to(total.dtype, copy=True) for param, total in zip(params, path, strict=True)]
        loss = super()._step_fast(params, closure)
        if params:
            with torch.no_grad():
                torch._foreach_sub_(
                    before, [param.to(start.dtype) for param, start in zip(params, before, strict=True)]
                )
                torch._foreach_abs_(before)
                torch._foreach_add_(path, before)
        return loss

    def _synchronize(self, params: list[Tensor]) -> None:
        if not params:
            return
        slow, path = self._gather(params, "slow"), self._gather(params, "path")
        moves = [param.to(origin.dtype) - origin for param, origin in zip(params, slow, strict=True)]
        shares = list(torch._foreach_abs(moves))
        # A weight that never moved has a share of 0/0, and nowhere to go; rounding may bring a share above 1.
        torch._foreach_clamp_min_(path, [torch.finfo(total.dtype).tiny for total in path])
        torch._foreach_div_(shares, path)
        torch._foreach_clamp_max_(shares, 1.0)
        torch._foreach_mul_(moves, shares)
        torch._foreach_add_(slow, moves, alpha=self.defaults["sync_rate"])
        torch._foreach_copy_(params, slow)
        torch._foreach_zero_(path)


def _check_sync(sync_rate: Any, sync_period: Any) -> None:
    is_number = isinstance(sync_rate, (int, float)) and not isinstance(sync_rate, bool)
    if not is_number or not 0 <= sync_rate <= 1:
        raise ValueError(f"expected positive float lower than 1 as sync_rate, received: {sync_rate!r}")
    if not isinstance(sync_period, int) or isinstance(sync_period, bool) or sync_period < 1:
        raise ValueError(f"expected positive integer as sync_period, received: {sync_period!r}")
