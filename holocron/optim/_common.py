"""What every optimizer here shares: the walk over parameter groups, and state that survives a checkpoint.

Some optimizers are subclasses of :class:`torch.optim.Optimizer` and others of :class:`torch.optim.Adam`, as documented.
So the methods they share are functions, which each class takes over by name, and which find its :class:`Rule` there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from holocron.optim._options import check_options

__all__ = [
    "Rule",
    "add_param_group",
    "dot",
    "dots",
    "load_exactly",
    "load_state_dict",
    "norms",
    "step",
    "work_dtype",
]

Group = dict[str, Any]

_PLAIN_DEVICES = frozenset({"cpu", "cuda", "xpu"})
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
# A multi-tensor pass touches whole lists: on a CPU, a list that stays in cache between passes; elsewhere, a list long
# enough to fill the device while the temporaries, a few times the list, stay bounded.
_CPU_BATCH_NUMEL = 1 << 17
_DEVICE_BATCH_NUMEL = 1 << 26
_ONE = torch.ones((), dtype=torch.float32, device="cpu")


@dataclass(frozen=True)
class Rule:
    """The update rule of an optimizer, written twice: for one tensor, and for lists of tensors.

    Both receive parameters and gradients in the precision of the state, gradients already negated if the group
    maximizes, and must leave the gradients unchanged.

    Attributes:
        buffers: names of the state tensors shaped like the parameter, given the options of its group; all start at zero
        single: updates one parameter in place: `single(param, grad, state, step, group)`
        multi: updates a list of parameters in place: `multi(params, grads, states, step, group)`, every parameter being
            of the same device and type and at the same step
        scalars: names of the state tensors that hold one number per parameter
        num_betas: how many coefficients the option `betas` holds
    """

    buffers: Callable[[Group], tuple[str, ...]]
    single: Callable[[Tensor, Tensor, dict[str, Tensor], int, Group], None]
    multi: Callable[[list[Tensor], list[Tensor], dict[str, list[Tensor]], int, Group], None]
    scalars: tuple[str, ...] = ()
    num_betas: int = 2


def add_param_group(self: Optimizer, param_group: dict[str, Any]) -> None:
    """Add a parameter group, whose options are checked like the constructor's.

    Args:
        self: the optimizer
        param_group: the parameters under `"params"`, and the options that differ from the defaults

    Raises:
        ValueError: if an option is out of its range
    """
    if isinstance(param_group, dict):
        check_options({**self.defaults, **param_group}, _rule_of(self).num_betas)
    Optimizer.add_param_group(self, param_group)


def load_state_dict(self: Optimizer, state_dict: dict[str, Any]) -> None:
    """Restore what `state_dict` returned, so that training resumes with the very numbers it stopped at.

    Args:
        self: the optimizer
        state_dict: the state dict; its tensors are copied

    Raises:
        ValueError: if the state dict is of other parameter groups
    """
    load_exactly(self, state_dict)
    for group in self.param_groups:
        for name, default in self.defaults.items():
            group.setdefault(name, default)


@torch.no_grad()
def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    """Perform one optimization step.

    Args:
        self: the optimizer
        closure: reevaluates the model and returns the loss

    Returns:
        the loss that the closure returned, or None

    Raises:
        RuntimeError: if a gradient is sparse or complex (no parameter is updated then), or while a CUDA graph is
            captured
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{type(self).__name__} cannot be captured in a CUDA graph, which would freeze its step count: "
            "capture the forward and backward passes, and call step() outside of the graph"
        )
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()

    active = [
        [(p, p.grad) for p in group["params"] if p.grad is not None and p.numel() > 0] for group in self.param_groups
    ]
    for pairs in active:
        for _, grad in pairs:
            _check_gradient(grad, self)
    for group, pairs in zip(self.param_groups, active, strict=True):
        if pairs:
            _update_group(self, _rule_of(self), group, pairs)
    return loss


def load_exactly(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """`Optimizer.load_state_dict`, without its rounding and sharing.

    That method casts every state tensor to the type of its parameter, which would round the float32 state of
    half-precision parameters, and keeps the tensors it is given, which ties two optimizers together.

    Args:
        optimizer: the optimizer to restore
        state_dict: what `state_dict` returned

    Raises:
        ValueError: if the state dict is of other parameter groups
    """
    loaded: dict[str, Any] = {}
    # Registered last, this sees the state dict as the other hooks leave it.
    handle = optimizer.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
    try:
        Optimizer.load_state_dict(optimizer, state_dict)
    finally:
        handle.remove()

    indices = [index for group in loaded["param_groups"] for index in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, param in zip(indices, params, strict=True):
        for name, value in loaded["state"].get(index, {}).items():
            if name == "step":
                # Also moves home a count that `torch.load` put on an accelerator, where reading it would synchronize.
                optimizer.state[param][name] = torch.tensor(float(value), dtype=torch.float32, device="cpu")
            elif isinstance(value, Tensor):
                dtype = work_dtype(param.dtype) if value.is_floating_point() else value.dtype
                optimizer.state[param][name] = value.detach().to(device=param.device, dtype=dtype, copy=True)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that state and arithmetic use for parameters of a given type: float32 for half precision."""
    return torch.float32 if dtype in {torch.float16, torch.bfloat16} else dtype


def norms(tensors: list[Tensor], order: int = 2) -> list[float]:
    """The norm of each tensor, on the host: one synchronization for the whole list."""
    return [float(value) for value in torch.stack(torch._foreach_norm(tensors, order)).tolist()]


def dot(left: Tensor, right: Tensor) -> Tensor:
    """The dot product of two tensors of the same shape, a 0-dim tensor."""
    if type(right) in _PLAIN_TYPES and left.is_contiguous() and right.is_contiguous():
        return torch.dot(left.view(-1), right.view(-1))
    return (left * right).sum()


def dots(left: list[Tensor], right: list[Tensor]) -> list[float]:
    """The dot product of each pair of tensors, on the host: one synchronization for the whole list."""
    if not left:
        return []
    return [float(value) for value in torch.stack([dot(a, b) for a, b in zip(left, right, strict=True)]).tolist()]


def _rule_of(optimizer: Optimizer) -> Rule:
    rule: Rule = optimizer._rule  # type: ignore[attr-defined]
    return rule


def _check_gradient(grad: Tensor, optimizer: Optimizer) -> None:
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients (layout {grad.layout}): "
            "use torch.optim.SparseAdam, or make the layer's gradient dense"
        )
    if grad.is_complex():
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support complex gradients ({grad.dtype}): "
            "optimize torch.view_as_real of the parameter"
        )


def _update_group(optimizer: Optimizer, rule: Rule, group: Group, pairs: list[tuple[Tensor, Tensor]]) -> None:
    buffers = rule.buffers(group)
    states = [optimizer.state[param] for param, _ in pairs]
    for (param, _), state in zip(pairs, states, strict=True):
        _init_state(state, param, buffers, rule.scalars)
    counters = [state["step"] for state in states]
    # A tensor addend with `alpha` keeps torch from wrapping the number anew for every counter.
    torch._foreach_add_(counters, _ONE, alpha=1.0)
    steps = [int(step) for step in torch.stack(counters).tolist()]

    use_foreach = group["foreach"]
    if use_foreach is None:
        use_foreach = all(type(p) in _PLAIN_TYPES and p.device.type in _PLAIN_DEVICES for p, _ in pairs)
    names = (*buffers, *rule.scalars)
    for indices, step in _batches(pairs, steps):
        params = [pairs[i][0] for i in indices]
        grads = [pairs[i][1] for i in indices]
        dtype = work_dtype(params[0].dtype)
        if grads[0].dtype != dtype:
            grads = [grad.to(dtype) for grad in grads]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        targets = params if params[0].dtype == dtype else [param.to(dtype) for param in params]
        if use_foreach:
            rule.multi(targets, grads, {name: [states[i][name] for i in indices] for name in names}, step, group)
        else:
            for target, grad, i in zip(targets, grads, indices, strict=True):
                rule.single(target, grad, states[i], step, group)
        if targets is not params:
            torch._foreach_copy_(params, targets)


def _init_state(state: dict[str, Tensor], param: Tensor, buffers: tuple[str, ...], scalars: tuple[str, ...]) -> None:
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
    # Name by name, since options such as `amsgrad` may be switched on in the middle of a training.
    for name in buffers:
        if name not in state:
            state[name] = torch.zeros_like(param, dtype=work_dtype(param.dtype))
    for name in scalars:
        if name not in state:
            state[name] = torch.zeros((), dtype=work_dtype(param.dtype), device=param.device)


def _batches(pairs: list[tuple[Tensor, Tensor]], steps: list[int]) -> Iterator[tuple[list[int], int]]:
    """Split the parameters of a group into lists of one device, type and step, and of a bounded size."""
    alike: dict[tuple[torch.device, torch.dtype, torch.dtype, int], list[int]] = {}
    for index, ((param, grad), step) in enumerate(zip(pairs, steps, strict=True)):
        alike.setdefault((param.device, param.dtype, grad.dtype, step), []).append(index)
    for (device, _, _, step), indices in alike.items():
        limit = _CPU_BATCH_NUMEL if device.type == "cpu" else _DEVICE_BATCH_NUMEL
        batch: list[int] = []
        room = limit
        for index in indices:
            numel = pairs[index][0].numel()
            if batch and numel > room:
                yield batch, step
                batch, room = [], limit
            batch.append(index)
            room -= numel
        yield batch, step
