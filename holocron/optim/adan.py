import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, Optimizer

from holocron.optim._common import Rule, add_param_group, load_state_dict, step
from holocron.optim._options import adam_options, check_options

__all__ = ["Adan"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")
    return (*names, "max_exp_avg_sq") if group["amsgrad"] else names


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    lr, (beta1, beta2, beta3) = float(group["lr"]), group["betas"]
    exp_avg, exp_avg_diff, exp_avg_sq = state["exp_avg"], state["exp_avg_diff"], state["exp_avg_sq"]
    previous = state["previous_grad"]
    if step == 1:
        previous.copy_(grad)
    difference = grad - previous
    ahead = grad + beta2 * difference
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_diff.mul_(beta2).add_(difference, alpha=1 - beta2)
    exp_avg_sq.mul_(beta3).addcmul_(ahead, ahead, value=1 - beta3)
    previous.copy_(grad)

    second = exp_avg_sq
    if group["amsgrad"]:
        second = state["max_exp_avg_sq"]
        torch.maximum(second, exp_avg_sq, out=second)
    update = exp_avg / (1 - beta1**step) + exp_avg_diff * (beta2 / (1 - beta2**step))
    denom = second.div(1 - beta3**step).add_(group["eps"]).sqrt_()
    param.addcdiv_(update, denom, value=-lr).div_(1 + lr * group["weight_decay"])


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    lr, (beta1, beta2, beta3) = float(group["lr"]), group["betas"]
    exp_avgs, exp_avg_diffs, exp_avg_sqs = states["exp_avg"], states["exp_avg_diff"], states["exp_avg_sq"]
    previous = states["previous_grad"]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta3)
    if step == 1:
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta3)
    else:
        differences = torch._foreach_sub(grads, previous)
        torch._foreach_lerp_(exp_avg_diffs, differences, 1 - beta2)
        torch._foreach_mul_(differences, beta2)
        torch._foreach_add_(differences, grads)
        torch._foreach_addcmul_(exp_avg_sqs, differences, differences, 1 - beta3)
        del differences
    torch._foreach_copy_(previous, grads)

    seconds = exp_avg_sqs
    if group["amsgrad"]:
        seconds = states["max_exp_avg_sq"]
        torch._foreach_maximum_(seconds, exp_avg_sqs)
    # sqrt(n / c + eps) = sqrt(n + eps * c) / sqrt(c): the bias corrections cost no pass over the tensors.
    correction = 1 - beta3**step
    denoms = torch._foreach_add(seconds, group["eps"] * correction)
    torch._foreach_sqrt_(denoms)
    rate = lr * math.sqrt(correction)
    torch._foreach_addcdiv_(params, exp_avgs, denoms, -rate / (1 - beta1**step))
    if beta2:
        torch._foreach_addcdiv_(params, exp_avg_diffs, denoms, -rate * beta2 / (1 - beta2**step))
    if group["weight_decay"]:
        torch._foreach_div_(params, 1 + lr * group["weight_decay"])


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi, num_betas=3)


class Adan(Adam):
    r"""Adan, from `"Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models"
    <https://arxiv.org/pdf/2208.06677.pdf>`_.

    Nesterov's look ahead without a second gradient: it is estimated from the difference to the previous one. With
    :math:`g_t` the gradient of :math:`\theta_t`, step :math:`t \geq 1` reads:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (g_t - g_{t-1}) \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) [g_t + \beta_2 (g_t - g_{t-1})]^2 \\
        p_t &= \frac{\hat{m}_t + \beta_2 \hat{v}_t}{\sqrt{\hat{n}_t + \epsilon}} \\
        \theta_t &= \frac{\theta_{t-1} - \alpha p_t}{1 + \lambda \alpha}

    where :math:`\hat{x}_t = x_t / (1 - \beta^t)` with the coefficient of each average, and :math:`\lambda` is the
    weight decay. The paper writes :math:`\beta` for what is :math:`1 - \beta` here, and so :math:`1 - \beta_2` for
    the factor of :math:`\hat{v}_t`, the same as that in :math:`n_t`. The averages start at zero and :math:`g_0 =
    g_1`: after the bias correction, the first step sees :math:`\hat{m}_1 = g_1, \hat{v}_1 = 0, \hat{n}_1 = g_1^2`,
    the paper's initial values.

    Parameter groups also take `maximize` (default: False) and `foreach`, see :mod:`holocron.optim`. State: four tensors
    a parameter, five with `amsgrad`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the running averages of the gradient, of its difference and of its square
        eps: term added to the second moment for numerical stability
        weight_decay: weight decay, applied after the step as the formula shows
        amsgrad: divide by the largest second moment so far, from "On the Convergence of Adam and Beyond"

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
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        defaults = adam_options(lr, betas, eps, weight_decay, amsgrad)
        check_options(defaults, _RULE.num_betas)
        # Adam's constructor keeps two coefficients only.
        Optimizer.__init__(self, params, defaults)
