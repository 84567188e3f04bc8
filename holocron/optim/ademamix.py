import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from holocron.optim._common import Rule, add_param_group, load_state_dict, step
from holocron.optim._options import check_options

__all__ = ["AdEMAMix"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_slow", "exp_avg_sq")


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    beta1, beta2, beta3 = group["betas"]
    exp_avg, exp_avg_slow, exp_avg_sq = state["exp_avg"], state["exp_avg_slow"], state["exp_avg_sq"]
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_slow.mul_(beta3).add_(grad, alpha=1 - beta3)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    denom = exp_avg_sq.div(1 - beta2**step).sqrt_().add_(group["eps"])
    update = exp_avg.div(1 - beta1**step).add_(exp_avg_slow, alpha=group["alpha"]).div_(denom)
    update.add_(param, alpha=group["weight_decay"])
    param.sub_(update, alpha=float(group["lr"]))


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    lr, (beta1, beta2, beta3) = float(group["lr"]), group["betas"]
    exp_avgs, exp_avg_slows, exp_avg_sqs = states["exp_avg"], states["exp_avg_slow"], states["exp_avg_sq"]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_lerp_(exp_avg_slows, grads, 1 - beta3)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])

    # sqrt(v / c) + eps = (sqrt(v) + eps * sqrt(c)) / sqrt(c): the bias corrections cost no pass over the tensors.
    root = math.sqrt(1 - beta2**step)
    denoms = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_add_(denoms, group["eps"] * root)
    torch._foreach_addcdiv_(params, exp_avgs, denoms, -lr * root / (1 - beta1**step))
    torch._foreach_addcdiv_(params, exp_avg_slows, denoms, -lr * root * group["alpha"])


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi, num_betas=3)


class AdEMAMix(Optimizer):
    r"""AdEMAMix, from `"The AdEMAMix Optimizer: Better, Faster, Older" <https://arxiv.org/pdf/2409.03137>`_.

    Adam with a second, much slower average of the gradient, so that gradients tens of thousands of steps old still
    count. With :math:`g_t` the gradient of :math:`\theta_t`, step :math:`t \geq 1` reads:

    .. math::
        m_{1,t} &= \beta_1 m_{1,t-1} + (1 - \beta_1) g_t \\
        m_{2,t} &= \beta_3 m_{2,t-1} + (1 - \beta_3) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \eta \Big(
            \frac{m_{1,t} / (1 - \beta_1^t) + \alpha m_{2,t}}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
            + \lambda \theta_{t-1} \Big)

    where :math:`m_{1,0} = m_{2,0} = v_0 = 0`, :math:`\eta` is the learning rate and :math:`\lambda` the weight decay,
    decoupled from the gradient as in the paper. The second moment is the paper's too, Adam's own. The slow average is
    not corrected for its bias: it is meant to come in slowly.

    Trainings that are long enough for the slow average to matter warm up :math:`\alpha` and :math:`\beta_3`: set
    `group["alpha"]` and `group["betas"]` of the parameter groups between steps.

    Parameter groups also take `maximize` (default: False) and `foreach`, see :mod:`holocron.optim`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the fast average of the gradient, of the average of its square, and of the slow average
        alpha: weight of the slow average against the fast one
        eps: term added to the denominator for numerical stability
        weight_decay: weight decay, decoupled from the gradient

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
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": False,
            "foreach": None,
        }
        check_options(defaults, _RULE.num_betas)
        super().__init__(params, defaults)
