import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from holocron.optim._common import Rule, add_param_group, load_state_dict, norms, step
from holocron.optim._options import check_options

__all__ = ["TAdam"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    (beta1, beta2), eps = group["betas"], group["eps"]
    exp_avg, exp_avg_sq, total = state["exp_avg"], state["exp_avg_sq"], state["weight_sum"]
    if step == 1:
        total.fill_(beta1 / (1 - beta1))
    grad = grad.add(param, alpha=group["weight_decay"])

    dof = param.numel() if group["dof"] is None else group["dof"]
    deviation = (grad - exp_avg).square_().div_(exp_avg_sq + eps).sum()
    weight = (dof + param.numel()) / (dof + deviation)
    share = torch.where(total + weight > 0, weight / (total + weight), 0.0)
    exp_avg.add_((grad - exp_avg).mul_(share))
    if beta1 >= 0.5:
        total.mul_((2 * beta1 - 1) / beta1).add_(weight)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    second = exp_avg_sq
    if group["amsgrad"]:
        second = state["max_exp_avg_sq"]
        torch.maximum(second, exp_avg_sq, out=second)
    denom = second.div(1 - beta2**step).sqrt_().add_(eps)
    param.addcdiv_(exp_avg, denom, value=-float(group["lr"]) / (1 - beta1**step))


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
    exp_avgs, exp_avg_sqs, totals = states["exp_avg"], states["exp_avg_sq"], states["weight_sum"]
    if step == 1:
        torch._foreach_add_(totals, beta1 / (1 - beta1))
    if decay:
        grads = list(torch._foreach_add(grads, params, alpha=decay))

    deviations = list(torch._foreach_sub(grads, exp_avgs))
    torch._foreach_mul_(deviations, deviations)
    torch._foreach_div_(deviations, torch._foreach_add(exp_avg_sqs, eps))
    weights, shares = [], []
    # The elements are not negative: the norm of order 1 is their sum.
    sums = norms(deviations, 1)
    del deviations
    for param, deviation, total in zip(params, sums, torch.stack(totals).tolist(), strict=True):
        dof = param.numel() if group["dof"] is None else group["dof"]
        weight = (dof + param.numel()) / (dof + deviation)
        weights.append(weight)
        shares.append(weight / (total + weight) if total + weight > 0 else 0.0)
    torch._foreach_lerp_(exp_avgs, grads, shares)
    if beta1 >= 0.5:
        torch._foreach_mul_(totals, (2 * beta1 - 1) / beta1)
        torch._foreach_add_(totals, weights)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    seconds = exp_avg_sqs
    if group["amsgrad"]:
        seconds = states["max_exp_avg_sq"]
        torch._foreach_maximum_(seconds, exp_avg_sqs)
    root = math.sqrt(1 - beta2**step)
    denoms = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denoms, eps * root)
    torch._foreach_addcdiv_(params, exp_avgs, denoms, -float(group["lr"]) * root / (1 - beta1**step))


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi, scalars=("weight_sum",))


class TAdam(Optimizer):
    r"""TAdam, from `"TAdam: A Robust Stochastic Gradient Optimizer" <https://arxiv.org/pdf/2003.00179.pdf>`_.

    Adam whose first moment is the mean of a Student's t-distribution: a gradient far from what the moments predict
    weighs little, which makes training robust to outliers such as wrong labels. With :math:`g_t` the gradient of
    :math:`\theta_t`, :math:`d` its number of elements and :math:`\nu` the degrees of freedom, step :math:`t \geq 1`
    reads:

    .. math::
        w_t &= (\nu + d) \Big(\nu + \sum_j \frac{(g_t^j - m_{t-1}^j)^2}{v_{t-1}^j + \epsilon}\Big)^{-1} \\
        m_t &= \frac{W_{t-1}}{W_{t-1} + w_t} m_{t-1} + \frac{w_t}{W_{t-1} + w_t} g_t \\
        W_t &= \frac{2 \beta_1 - 1}{\beta_1} W_{t-1} + w_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \alpha \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where :math:`m_0 = v_0 = 0` and :math:`W_0 = \beta_1 / (1 - \beta_1)`: with :math:`w_t = 1`, or in the limit of many
    degrees of freedom, this is Adam. The second moment is the paper's, Adam's own.

    For :math:`\beta_1 < 1/2` the recurrence of :math:`W` would flip its sign; :math:`W` then stays :math:`W_0`.

    Parameter groups also take `maximize` (default: False) and `foreach`, see :mod:`holocron.optim`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the running averages of the gradient and of its square
        eps: term added to the denominators for numerical stability
        weight_decay: weight decay (L2 penalty)
        amsgrad: divide by the largest second moment so far, from "On the Convergence of Adam and Beyond"
        dof: degrees of freedom :math:`\nu`; None for the number of elements of each parameter

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
        amsgrad: bool = False,
        dof: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "dof": dof,
            "maximize": False,
            "foreach": None,
        }
        check_options(defaults)
        super().__init__(params, defaults)
