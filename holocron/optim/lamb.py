import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from holocron.optim._common import Rule, add_param_group, load_state_dict, norms, step
from holocron.optim._options import DEFAULT_SCALE_CLIP, check_options

__all__ = ["LAMB"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    denom = exp_avg_sq.div(1 - beta2**step).sqrt_().add_(group["eps"])
    update = exp_avg.div(1 - beta1**step).div_(denom).add_(param, alpha=group["weight_decay"])
    scale = torch.linalg.vector_norm(param).clamp(*group["scale_clip"])
    size = torch.linalg.vector_norm(update)
    ratio = torch.where((scale > 0) & (size > 0), scale / size, 1.0)
    param.sub_(update.mul_(ratio * float(group["lr"])))


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    lr, decay, (beta1, beta2) = float(group["lr"]), group["weight_decay"], group["betas"]
    lower, upper = group["scale_clip"]
    exp_avgs, exp_avg_sqs = states["exp_avg"], states["exp_avg_sq"]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    # r = correction * m / (sqrt(v) + eps * sqrt(1 - beta2^t)): the bias corrections cost no pass over the tensors, as
    # what follows may as well be computed on r / correction.
    root = math.sqrt(1 - beta2**step)
    correction = root / (1 - beta1**step)
    denoms = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_add_(denoms, group["eps"] * root)
    updates = torch._foreach_div(exp_avgs, denoms)
    if decay:
        torch._foreach_add_(updates, params, alpha=decay / correction)

    scales = []
    for weight_norm, size in zip(norms(params), norms(list(updates)), strict=True):
        scale = min(max(weight_norm, lower), upper)
        scales.append(-lr * (scale / size if scale > 0 and size > 0 else correction))
    torch._foreach_mul_(updates, scales)
    torch._foreach_add_(params, updates)


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi)


class LAMB(Optimizer):
    r"""LAMB, from `"Large batch optimization for deep learning: training BERT in 76 minutes"
    <https://arxiv.org/pdf/1904.00962v3.pdf>`_.

    Adam's direction, with the length of the step of each parameter tensor set by the norm of its weights. With
    :math:`g_t` the gradient of :math:`\theta_t`, step :math:`t \geq 1` reads:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        r_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} \\
        \theta_t &= \theta_{t-1} - \alpha \phi(\lVert \theta_{t-1} \rVert)
            \frac{r_t + \lambda \theta_{t-1}}{\lVert r_t + \lambda \theta_{t-1} \rVert}

    where :math:`m_0 = v_0 = 0`, :math:`\lambda` is the weight decay and :math:`\phi` clips the weight norm to
    `scale_clip`. The norm in the denominator is the paper's, of the very vector it divides. Where the clipped weight
    norm or the norm of the update is zero, their ratio counts as 1, so that a parameter that starts at zero can leave
    it.

    Parameter groups also take `scale_clip`, `maximize` (default: False) and `foreach`, see :mod:`holocron.optim`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the running averages of the gradient and of its square
        eps: term added to the denominator for numerical stability
        weight_decay: weight decay, added to the direction and not to the gradient
        scale_clip: lower and upper bounds of the weight norm that sets the length of the step (default: (0, 10))

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
        scale_clip: tuple[float, float] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
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
