from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from holocron.optim._common import Rule, add_param_group, load_state_dict, norms, step
from holocron.optim._options import DEFAULT_SCALE_CLIP, check_options

__all__ = ["LARS"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] else ()


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    decay, momentum = group["weight_decay"], group["momentum"]
    weight_norm = torch.linalg.vector_norm(param)
    scale = weight_norm.clamp(*group["scale_clip"])
    size = torch.linalg.vector_norm(grad) + decay * weight_norm
    local_lr = torch.where((scale > 0) & (size > 0), scale / size, 1.0)

    update = grad.add(param, alpha=decay).mul_(local_lr * float(group["lr"]))
    if momentum:
        buffer = state["momentum_buffer"]
        if step == 1:
            buffer.copy_(update)
        else:
            buffer.mul_(momentum).add_(update, alpha=1 - group["dampening"])
        update = update.add_(buffer, alpha=momentum) if group["nesterov"] else buffer
    param.sub_(update)


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    lr, decay, momentum = float(group["lr"]), group["weight_decay"], group["momentum"]
    lower, upper = group["scale_clip"]
    rates = []
    for weight_norm, grad_norm in zip(norms(params), norms(grads), strict=True):
        scale = min(max(weight_norm, lower), upper)
        size = grad_norm + decay * weight_norm
        rates.append(lr * scale / size if scale > 0 and size > 0 else lr)

    if decay:
        updates = list(torch._foreach_add(grads, params, alpha=decay))
        torch._foreach_mul_(updates, rates)
    else:
        updates = list(torch._foreach_mul(grads, rates))
    if momentum:
        buffers = states["momentum_buffer"]
        if step == 1:
            torch._foreach_copy_(buffers, updates)
        else:
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, updates, alpha=1 - group["dampening"])
        if group["nesterov"]:
            torch._foreach_add_(updates, buffers, alpha=momentum)
        else:
            updates = buffers
    torch._foreach_sub_(params, updates)


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi)


class LARS(Optimizer):
    r"""Layer-wise Adaptive Rate Scaling, from `"Large Batch Training of Convolutional Networks"
    <https://arxiv.org/pdf/1708.03888.pdf>`_.

    Every parameter tensor (a layer, in the paper's terms) moves by an amount proportional to its own norm, which is
    what keeps SGD stable in very large batches. With :math:`g_t` the gradient of :math:`\theta_t`, :math:`\lambda`
    the weight decay and :math:`m` the momentum, step :math:`t \geq 1` reads:

    .. math::
        \gamma_t &= \frac{\phi(\lVert \theta_{t-1} \rVert)}
            {\lVert g_t \rVert + \lambda \lVert \theta_{t-1} \rVert} \\
        v_t &= m v_{t-1} + \alpha \gamma_t (g_t + \lambda \theta_{t-1}) \\
        \theta_t &= \theta_{t-1} - v_t

    where :math:`v_0 = 0` and :math:`\phi` clips the weight norm to `scale_clip`. Where a norm that :math:`\gamma_t`
    rests on is zero, as for a bias that starts at zero, :math:`\gamma_t` is 1.

    The learning rate is part of the momentum buffer, as in the paper. The paper's decay of the global rate,
    :math:`\alpha (1 - t / T)^2`, is :class:`torch.optim.lr_scheduler.PolynomialLR` with `power=2`. Dampening and
    Nesterov momentum have the conventions of :class:`torch.optim.SGD`: the first step is not dampened.

    Parameter groups also take `scale_clip`, `maximize` (default: False) and `foreach`, see :mod:`holocron.optim`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        momentum: momentum factor
        dampening: share of the update that is kept out of the momentum
        weight_decay: weight decay (L2 penalty)
        nesterov: use Nesterov momentum
        scale_clip: lower and upper bounds of the weight norm in the local learning rate (default: (0, 10))

    Raises:
        ValueError: if an argument is out of its range, if `lr` is not a float, or if `nesterov` comes without
            momentum or with dampening
    """

    _rule = _RULE
    add_param_group = add_param_group
    load_state_dict = load_state_dict
    step = step

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        scale_clip: tuple[float, float] | None = None,
    ) -> None:
        if not isinstance(lr, float):
            raise ValueError(f"Invalid learning rate: {lr!r} (expected lr to be a float)")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "scale_clip": DEFAULT_SCALE_CLIP if scale_clip is None else scale_clip,
            "maximize": False,
            "foreach": None,
        }
        check_options(defaults)
        super().__init__(params, defaults)

    @property
    def scale_clip(self) -> tuple[float, float]:
        """The default bounds of the weight norm."""
        return self.defaults["scale_clip"]
