import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, Optimizer

from holocron.optim._common import Rule, add_param_group, dot, dots, load_state_dict, norms, step
from holocron.optim._options import adam_options, check_options

__all__ = ["AdamP"]


def _buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")


def _single(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    lr, decay = float(group["lr"]), group["weight_decay"]
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    weight_norm, grad_norm = torch.linalg.vector_norm(param), torch.linalg.vector_norm(grad)
    threshold = group["delta"] / math.sqrt(param.numel())
    is_orthogonal = dot(param, grad).abs() < threshold * weight_norm * grad_norm
    if not group["decoupled_weight_decay"]:
        grad = grad.add(param, alpha=decay)
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    second = exp_avg_sq
    if group["amsgrad"]:
        second = state["max_exp_avg_sq"]
        torch.maximum(second, exp_avg_sq, out=second)
    denom = second.div(1 - beta2**step).sqrt_().add_(group["eps"])
    update = exp_avg.div(1 - beta1**step).div_(denom)
    # Where there is nothing to project the factor is zero: no branch, and so nothing for an accelerator to wait for.
    radial = torch.where(is_orthogonal, dot(param, update) / weight_norm.square(), 0.0)
    update.sub_(param * radial)
    if group["decoupled_weight_decay"]:
        param.mul_(1 - lr * decay)
    param.sub_(update, alpha=lr)


def _multi(
    params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], step: int, group: dict[str, Any]
) -> None:
    beta1, beta2 = group["betas"]
    lr, decay = float(group["lr"]), group["weight_decay"]
    exp_avgs, exp_avg_sqs = states["exp_avg"], states["exp_avg_sq"]
    weight_norms = norms(params)
    projected = [
        index
        for index, (param, product, weight_norm, grad_norm) in enumerate(
            zip(params, dots(params, grads), weight_norms, norms(grads), strict=True)
        )
        if abs(product) < group["delta"] / math.sqrt(param.numel()) * weight_norm * grad_norm
    ]
    if decay and not group["decoupled_weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=decay))
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

    seconds = exp_avg_sqs
    if group["amsgrad"]:
        seconds = states["max_exp_avg_sq"]
        torch._foreach_maximum_(seconds, exp_avg_sqs)
    # The direction is correction * updates: projecting commutes with the scalar factors of the bias corrections.
    root = math.sqrt(1 - beta2**step)
    correction = root / (1 - beta1**step)
    denoms = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denoms, group["eps"] * root)
    updates = torch._foreach_div(exp_avgs, denoms)
    if projected:
        weights, tangents = [params[i] for i in projected], [updates[i] for i in projected]
        radials = [
            -product / weight_norms[i] ** 2 for i, product in zip(projected, dots(weights, tangents), strict=True)
        ]
        torch._foreach_add_(tangents, torch._foreach_mul(weights, radials))
    if decay and group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * decay)
    torch._foreach_add_(params, updates, alpha=-lr * correction)


_RULE = Rule(buffers=_buffers, single=_single, multi=_multi)


class AdamP(Adam):
    r"""AdamP, from `"AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights"
    <https://arxiv.org/pdf/2006.08217.pdf>`_.

    Momentum makes the norm of weights that a normalization layer follows grow for nothing, which shrinks their
    effective learning rate. AdamP recognizes such weights by gradients orthogonal to them, and takes the radial part
    out of their update. With :math:`g_t` the gradient of :math:`\theta_t`, step :math:`t \geq 1` reads:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} \\
        q_t &= \begin{cases}
            p_t - (\hat\theta_{t-1} \cdot p_t) \hat\theta_{t-1}
                & \text{if } \cos(\theta_{t-1}, g_t) < \delta / \sqrt{\dim(\theta)} \\
            p_t & \text{otherwise}
        \end{cases} \\
        \theta_t &= \theta_{t-1} - \alpha q_t

    where :math:`m_0 = v_0 = 0`, which the bias correction presumes, :math:`\epsilon` is outside the root as in Adam,
    :math:`\hat\theta = \theta / \lVert \theta \rVert` and
    :math:`\cos(a, b) = |a \cdot b| / (\lVert a \rVert \lVert b \rVert)` has no sign: a gradient opposite to the weights
    is anything but orthogonal to them. The gradient in it is the loss's own, without the L2 penalty, which is radial by
    nature. A parameter or a gradient of zeros has no angle, and is not projected.

    Parameter groups also take `delta`, `decoupled_weight_decay` (default: False), `maximize` (default: False) and
    `foreach`, see :mod:`holocron.optim`.

    Args:
        params: parameters to optimize, or dicts that define parameter groups
        lr: learning rate
        betas: coefficients of the running averages of the gradient and of its square
        eps: term added to the denominator for numerical stability
        weight_decay: weight decay (L2 penalty)
        amsgrad: divide by the largest second moment so far, from "On the Convergence of Adam and Beyond"
        delta: threshold of the cosine similarity, for a parameter of one element; 0 never projects

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
        delta: float = 0.1,
    ) -> None:
        defaults = {**adam_options(lr, betas, eps, weight_decay, amsgrad), "delta": delta}
        check_options(defaults)
        # Adam's constructor has no room for another default.
        Optimizer.__init__(self, params, defaults)

    @property
    def delta(self) -> float:
        """The default threshold of the projection."""
        return self.defaults["delta"]
