"""Each optimizer against its paper's formulas, step by step, in NumPy and float64.

A reference takes the parameter before the step, its gradient, a dict for what it keeps, and the step from 1 on; it
returns the parameter after the step.
"""

import numpy as np
import pytest
import torch

from holocron import optim


def lars(theta, g, s, t, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, scale_clip=(0, 10)):
    phi, size = np.clip(np.linalg.norm(theta), *scale_clip), np.linalg.norm(g) + weight_decay * np.linalg.norm(theta)
    gamma = phi / size if phi > 0 and size > 0 else 1.0
    u = lr * gamma * (g + weight_decay * theta)
    s["v"] = u if t == 1 else momentum * s["v"] + (1 - dampening) * u
    return theta - (u + momentum * s["v"] if nesterov else s["v"])


def adam_moments(g, s, t, betas):
    beta1, beta2 = betas
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    return s["m"] / (1 - beta1**t), s["v"] / (1 - beta2**t)


def largest(s, second, t, beta2, amsgrad):
    """The second moment that AMSGrad divides by, bias correction last."""
    if not amsgrad:
        return second / (1 - beta2**t)
    s["largest"] = np.maximum(s.get("largest", 0.0), second)
    return s["largest"] / (1 - beta2**t)


def lamb(theta, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, scale_clip=(0, 10)):
    m_hat, v_hat = adam_moments(g, s, t, betas)
    u = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * theta
    phi, size = np.clip(np.linalg.norm(theta), *scale_clip), np.linalg.norm(u)
    return theta - lr * (phi / size if phi > 0 and size > 0 else 1.0) * u


def ralars(
    theta, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, force_adaptive_momentum=False,
    scale_clip=(0, 10),
):  # fmt: skip
    m_hat, v_hat = adam_moments(g, s, t, betas)
    rho_inf = 2 / (1 - betas[1]) - 1
    rho = rho_inf - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
    if rho > 4:
        r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        u = r * m_hat / (np.sqrt(v_hat) + eps)
    else:
        u = m_hat / (np.sqrt(v_hat) + eps) if force_adaptive_momentum else m_hat
    u = u + weight_decay * theta
    norm, size = np.linalg.norm(theta), np.linalg.norm(u)
    return theta - lr * (np.clip(norm / size, *scale_clip) if norm > 0 and size > 0 else 1.0) * u


def tadam(theta, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, dof=None):
    beta1, beta2 = betas
    g = g + weight_decay * theta
    d = g.size
    nu = d if dof is None else dof
    m, v, total = s.get("m", 0.0 * g), s.get("v", 0.0 * g), s.get("W", beta1 / (1 - beta1))
    w = (nu + d) / (nu + np.sum((g - m) ** 2 / (v + eps)))
    s["m"] = total / (total + w) * m + w / (total + w) * g
    s["W"] = (2 * beta1 - 1) / beta1 * total + w if beta1 >= 0.5 else total
    s["v"] = beta2 * v + (1 - beta2) * g**2
    return theta - lr * s["m"] / (1 - beta1**t) / (np.sqrt(largest(s, s["v"], t, beta2, amsgrad)) + eps)


def adabelief(
    theta, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled_weight_decay=False
):
    beta1, beta2 = betas
    if decoupled_weight_decay:
        theta = theta * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * theta
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["s"] = beta2 * s.get("s", 0.0) + (1 - beta2) * (g - s["m"]) ** 2 + eps
    return theta - lr * s["m"] / (1 - beta1**t) / (np.sqrt(largest(s, s["s"], t, beta2, amsgrad)) + eps)


def adamp(
    theta, g, s, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, delta=0.1,
    decoupled_weight_decay=False,
):  # fmt: skip
    product, norms = abs(np.sum(theta * g)), np.linalg.norm(theta) * np.linalg.norm(g)
    m_hat, _ = adam_moments(g if decoupled_weight_decay else g + weight_decay * theta, s, t, betas)
    p = m_hat / (np.sqrt(largest(s, s["v"], t, betas[1], amsgrad)) + eps)
    if norms > 0 and product / norms < delta / np.sqrt(theta.size):
        unit = theta / np.linalg.norm(theta)
        p = p - np.sum(unit * p) * unit
        s["projections"] = s.get("projections", 0) + 1
    if decoupled_weight_decay:
        theta = theta * (1 - lr * weight_decay)
    return theta - lr * p


def adan(theta, g, s, t, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, amsgrad=False):
    beta1, beta2, beta3 = betas
    difference = g - s.get("g", g)
    s["g"] = g
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * difference
    s["n"] = beta3 * s.get("n", 0.0) + (1 - beta3) * (g + beta2 * difference) ** 2
    p = s["m"] / (1 - beta1**t) + beta2 * s["v"] / (1 - beta2**t)
    return (theta - lr * p / np.sqrt(largest(s, s["n"], t, beta3, amsgrad) + eps)) / (1 + weight_decay * lr)


def ademamix(theta, g, s, t, lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=5.0, eps=1e-8, weight_decay=0.0):
    m_hat, v_hat = adam_moments(g, s, t, betas[:2])
    s["slow"] = betas[2] * s.get("slow", 0.0) + (1 - betas[2]) * g
    return theta - lr * ((m_hat + alpha * s["slow"]) / (np.sqrt(v_hat) + eps) + weight_decay * theta)


CASES = [
    (optim.LARS, lars, {}),
    (optim.LARS, lars, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}),
    (optim.LARS, lars, {"lr": 0.02, "momentum": 0.9, "dampening": 0.3, "scale_clip": (0.5, 1.5)}),
    (optim.LARS, lars, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.LAMB, lamb, {}),
    (optim.LAMB, lamb, {"lr": 0.02, "weight_decay": 0.1, "scale_clip": (0.5, 1.5)}),
    (optim.RaLars, ralars, {}),
    (optim.RaLars, ralars, {"lr": 0.02, "weight_decay": 0.1, "force_adaptive_momentum": True}),
    (optim.RaLars, ralars, {"lr": 0.02, "weight_decay": 0.1, "scale_clip": (0.01, 0.2), "betas": (0.8, 0.9)}),
    (optim.RaLars, ralars, {"betas": (0.9, 0.0)}),
    (optim.TAdam, tadam, {}),
    (optim.TAdam, tadam, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True, "dof": 2.5, "betas": (0.6, 0.9)}),
    (optim.TAdam, tadam, {"lr": 0.02, "betas": (0.3, 0.99)}),
    (optim.TAdam, tadam, {"lr": 0.02, "betas": (0.0, 0.99)}),
    (optim.AdaBelief, adabelief, {}),
    (optim.AdaBelief, adabelief, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.9)}),
    (optim.AdaBelief, adabelief, {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.AdamP, adamp, {}),
    (optim.AdamP, adamp, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True, "delta": 0.9, "betas": (0.8, 0.9)}),
    (optim.AdamP, adamp, {"lr": 0.02, "weight_decay": 0.1, "delta": 0.5, "decoupled_weight_decay": True}),
    (optim.Adan, adan, {}),
    (optim.Adan, adan, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True, "betas": (0.9, 0.8, 0.7)}),
    (optim.Adan, adan, {"lr": 0.02, "betas": (0.9, 0.0, 0.99)}),
    (optim.AdEMAMix, ademamix, {}),
    (optim.AdEMAMix, ademamix, {"lr": 0.02, "weight_decay": 0.1, "alpha": 2.0, "betas": (0.8, 0.9, 0.95)}),
]
# Options that the documented constructors do not take, and parameter groups do.
GROUP_ONLY = {"decoupled_weight_decay"}


def identify(value):
    return getattr(value, "__name__", None) or (
        ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("optimizer_class", "reference", "options"), CASES, ids=identify)
def test_equals_the_formulas_over_50_steps(
    optimizer_class, reference, options, foreach, maximize, make_params, set_grads
):
    params = make_params()
    group = {k: v for k, v in options.items() if k in GROUP_ONLY}
    arguments = {k: v for k, v in options.items() if k not in GROUP_ONLY}
    optimizer = optimizer_class([{"params": params, "foreach": foreach, "maximize": maximize, **group}], **arguments)
    expected = [param.detach().numpy().copy() for param in params]
    kept = [{} for _ in params]
    for step in range(1, 51):
        set_grads(params, step)
        given = [param.grad.numpy().copy() for param in params]
        optimizer.step()
        for i, (param, gradient) in enumerate(zip(params, given, strict=True)):
            expected[i] = reference(expected[i], -gradient if maximize else gradient, kept[i], step, **options)
            np.testing.assert_allclose(param.detach().numpy(), expected[i], rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(param.grad.numpy(), gradient)
    if optimizer_class is optim.AdamP and options.get("delta", 0) > 0.4:
        counts = [state.get("projections", 0) for state in kept]
        assert 0 < counts[0] < 50, "the case is to meet both branches of the projection"


def test_ralars_without_scaling_is_radam(make_params, set_grads):
    ours, theirs = make_params(), make_params()
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizer = optim.RaLars(ours, scale_clip=(1, 1), **options)
    radam = torch.optim.RAdam(theirs, decoupled_weight_decay=True, **options)
    for step in range(1, 21):
        set_grads(ours, step)
        for mine, other in zip(ours, theirs, strict=True):
            other.data.copy_(mine)
            other.grad = mine.grad.clone()
        radam.step()
        optimizer.step()
        # torch turns adaptive where rho > 5, the paper where rho > 4: at step 6 and at step 5.
        if step != 5:
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_tadam_is_adam_in_the_limit_of_many_degrees_of_freedom(make_params, set_grads):
    ours, theirs = make_params(), make_params()
    optimizer, adam = optim.TAdam(ours, lr=0.01, dof=1e18), torch.optim.Adam(theirs, lr=0.01)
    for step in range(1, 21):
        for params, each in ((ours, optimizer), (theirs, adam)):
            set_grads(params, step)
            each.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_ademamix_without_its_slow_average_is_adamw(make_params, set_grads):
    ours, theirs = make_params(), make_params()
    optimizer = optim.AdEMAMix(ours, lr=0.01, alpha=0.0, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for step in range(1, 21):
        for params, each in ((ours, optimizer), (theirs, adamw)):
            set_grads(params, step)
            each.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_adamp_never_projecting_is_adam(make_params, set_grads):
    ours, theirs = make_params(), make_params()
    optimizer = optim.AdamP(ours, lr=0.01, delta=0.0, weight_decay=0.1, amsgrad=True)
    adam = torch.optim.Adam(theirs, lr=0.01, weight_decay=0.1, amsgrad=True)
    for step in range(1, 21):
        for params, each in ((ours, optimizer), (theirs, adam)):
            set_grads(params, step)
            each.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_adamp_keeps_the_norm_of_scale_invariant_weights_from_growing():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    other = torch.nn.Parameter(weight.detach().clone())
    adamp_optimizer, adam = optim.AdamP([weight], lr=0.1), torch.optim.Adam([other], lr=0.1)
    for _ in range(20):
        for param, optimizer in ((weight, adamp_optimizer), (other, adam)):
            optimizer.zero_grad()
            unit = param / param.norm()
            (unit - torch.tensor([-0.6, 0.8], dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    assert 5 <= weight.norm() < other.norm()


def test_lars_scales_each_layer_by_its_norm():
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.tensor([0.0, 20.0])
    optim.LARS([param], lr=0.1).step()
    # Norm 5 against gradient norm 20: a step of 0.1 * 5 along the unit gradient.
    torch.testing.assert_close(param.detach(), torch.tensor([3.0, 3.5]))


def test_lamb_moves_by_the_clipped_weight_norm():
    param = torch.nn.Parameter(torch.full((4,), 100.0))
    param.grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    optim.LAMB([param], lr=0.1).step()
    # The weight norm is 200, clipped to 10; the direction is of signs, of norm 2.
    torch.testing.assert_close(param.detach(), 100 - 0.5 * torch.tensor([1.0, -1.0, 1.0, -1.0]))
