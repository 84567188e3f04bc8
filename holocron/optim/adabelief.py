import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from holocron.optim._common import Rule, add_param_group, load_state_dict, step

__all__ = ["AdaBelief"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_var", "max_exp_avg_var") if group["amsgrad"] else ("exp_avg", "exp_avg_var")


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    lr, eps, decay = float(group["lr"]), group["eps"], group["weight_decay"]
    exp_avg, exp_avg_var = state["exp_avg"], state["exp_avg_var"]
    if group["decoupled_weight_decay"]:
        param.mul_(1 - lr * decay)
    else:
        grad = grad.add(param, alpha=decay)
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    deviation = grad - exp_avg
    exp_avg_var.mul_(beta2).addcmul_(deviation, deviation, value=1 - beta2).add_(eps)

    second = exp_avg_var
    if group["amsgrad"]:
        second = state["max_exp_avg_var"]
        torch.maximum(second, exp_avg_var, out=second)
    denom = second.div(1 - beta2**step).sqrt_().add_(eps)
    param.addcdiv_(exp_avg, denom, value=-lr / (1 - beta1**step))


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    lr, eps, decay = float(group["lr"]), group["eps"], group["weight_decay"]
    exp_avgs, exp_avg_vars = states["exp_avg"], states["exp_avg_var"]
    if decay and group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * decay)
    elif decay:
        grads = list(torch._foreach_add(grads, params, alpha=decay))
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    deviations = torch._foreach_sub(grads, exp_avgs)
    torch._foreach_mul_(exp_avg_vars, beta2)
    torch._foreach_addcmul_(exp_avg_vars, deviations, deviations, 1 - beta2)
    torch._foreach_add_(exp_avg_vars, eps)
    del deviations

    seconds = exp_avg_vars
    if group["amsgrad"]:
        seconds = states["max_exp_avg_var"]
        torch._foreach_maximum_(seconds, exp_avg_vars)
    # sqrt(s / c) + eps = (sqrt(s) + eps * sqrt(c)) / sqrt(c): the bias correction costs no pass over the tensors.
    root = math.sqrt(1 - beta2**step)
    denoms = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denoms, eps * root)
    torch._foreach_addcdiv_(params, exp_avgs, denoms, -lr * root / (1 - beta1**step))


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi)


class AdaBelief(Adam):
    r"""AdaBelief, from `"AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients"
    <https://arxiv.org/pdf/2010.07468.pdf>`_.

    Adam that divides by how far the gradient strays from its running average: steps are long where gradients agree,
    even if these are large. With :math:`g_t` the gradient of :math:`\theta_t`, step :math:`t \geq 1` reads:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        s_t &= \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon \\
        \theta_t &= \theta_{t-1} - \alpha \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon}

    where :math:`m_0 = s_0 = 0`.

    The constructor is that of :class:`torch.optim.Adam`, `maximize`, `foreach` (see :mod:`holocron.optim`) and
    `decoupled_weight_decay` included; `fused`, `capturable` and `differentiable` are refused.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the running averages of the gradient and of its squared deviation
        eps: term added to the denominator, and to its square, for numerical stability
        weight_decay: weight decay (L2 penalty)
        amsgrad: divide by the largest deviation so far, from "On the Convergence of Adam and Beyond"

    Raises:
        ValueError: if an argument is out of its range
    """

    _rule = _RULE
    add_param_group = add_param_group
    load_state_dict = load_state_dict
    step = step
