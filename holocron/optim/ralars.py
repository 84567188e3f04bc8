import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from holocron.optim._common import Rule, add_param_group, load_state_dict, norms, step
from holocron.optim._options import DEFAULT_SCALE_CLIP, check_options

__all__ = ["RaLars"]


def _rectification(step: int, beta2: float) -> float | None:
    """The factor r_t of RAdam, or None where the variance of the adaptive rate is not tractable."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 4:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    update = exp_avg.div(1 - beta1**step)
    rectification = _rectification(step, beta2)
    if rectification is not None or group["force_adaptive_momentum"]:
        update.div_(exp_avg_sq.div(1 - beta2**step).sqrt_().add_(group["eps"]))
        update.mul_(1.0 if rectification is None else rectification)
    update.add_(param, alpha=group["weight_decay"])
    weight_norm, size = torch.linalg.vector_norm(param), torch.linalg.vector_norm(update)
    scale = torch.where((weight_norm > 0) & (size > 0), (weight_norm / size).clamp(*group["scale_clip"]), 1.0)
    param.sub_(update.mul_(scale * float(group["lr"])))


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    lr, decay, (beta1, beta2) = float(group["lr"]), group["weight_decay"], group["betas"]
    lower, upper = group["scale_clip"]
    exp_avgs, exp_avg_sqs = states["exp_avg"], states["exp_avg_sq"]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    # As in LAMB, the scalar factors of the direction are kept out of the tensors: the direction is correction *
    # updates.
    rectification = _rectification(step, beta2)
    correction = 1 / (1 - beta1**step)
    if rectification is not None or group["force_adaptive_momentum"]:
        root = math.sqrt(1 - beta2**step)
        correction *= root * (1.0 if rectification is None else rectification)
        denoms = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denoms, group["eps"] * root)
        updates = list(torch._foreach_div(exp_avgs, denoms))
        if decay:
            torch._foreach_add_(updates, params, alpha=decay / correction)
    else:
        updates = list(torch._foreach_add(exp_avgs, params, alpha=decay / correction)) if decay else exp_avgs

    scales = []
    for weight_norm, size in zip(norms(params), norms(updates), strict=True):
        ratio = min(max(weight_norm / (correction * size), lower), upper) if weight_norm > 0 and size > 0 else 1.0
        scales.append(-lr * correction * ratio)
    torch._foreach_add_(params, torch._foreach_mul(updates, scales))


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi)


class RaLars(Optimizer):
    r"""Rectified Adam, from `"On the Variance of the Adaptive Learning Rate and Beyond"
    <https://arxiv.org/pdf/1908.03265.pdf>`_, with the layer-wise scaling of `"Large Batch Training of Convolutional
    Networks" <https://arxiv.org/pdf/1708.03888.pdf>`_.

    With :math:`g_t` the gradient of :math:`\theta_t`, step :math:`t \geq 1` reads:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \rho_t &= \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t},
            \quad \rho_\infty = \frac{2}{1 - \beta_2} - 1 \\
        u_t &= \begin{cases}
            r_t \hat{m}_t / (\sqrt{\hat{v}_t} + \epsilon) & \text{if } \rho_t > 4 \\
            \hat{m}_t & \text{otherwise}
        \end{cases} \\
        \theta_t &= \theta_{t-1} - \alpha
            \phi\Big(\frac{\lVert \theta_{t-1} \rVert}{\lVert u_t + \lambda \theta_{t-1} \rVert}\Big)
            (u_t + \lambda \theta_{t-1})

    where :math:`m_0 = v_0 = 0`, :math:`\hat{m}_t` and :math:`\hat{v}_t` are corrected for their bias, :math:`\lambda`
    is the weight decay, :math:`\phi` clips the scale factor to `scale_clip` and the rectification is

    .. math::
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    Where a norm is zero the scale factor is 1. With `scale_clip=(1, 1)` it is 1 throughout, and this is plain RAdam
    with decoupled weight decay.

    Parameter groups also take `force_adaptive_momentum`, `scale_clip`, `maximize` (default: False) and `foreach`, see
    :mod:`holocron.optim`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the running averages of the gradient and of its square
        eps: term added to the denominator for numerical stability
        weight_decay: weight decay, added to the direction and not to the gradient
        force_adaptive_momentum: divide by the root of the second moment, without rectification, while the variance is
            not tractable (:math:`\rho_t \leq 4`: the first few steps)
        scale_clip: lower and upper bounds of the scale factor of LARS (default: (0, 10))

    Raises:
        ValueError: if an argument is out of its range
    """

    _rule = _RULE
    add_param_group = add_param_group
    load_state_dict = load_state_dict
    step = step

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        force_adaptive_momentum: bool = False,
        scale_clip: tuple[float, float] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "force_adaptive_momentum": force_adaptive_momentum,
            "scale_clip": DEFAULT_SCALE_CLIP if scale_clip is None else scale_clip,
            "maximize": False,
            "foreach": None,
        }
        check_options(defaults)
        super().__init__(params, defaults)

    @property
    def scale_clip(self) -> tuple[float, float]:
        """The default bounds of the scale factor."""
        return self.defaults["scale_clip"]

    @property
    def force_adaptive_momentum(self) -> bool:
        """Whether the first steps are adaptive by default."""
        return self.defaults["force_adaptive_momentum"]
