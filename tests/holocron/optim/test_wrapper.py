import copy
import inspect
import io
import pickle

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from holocron.optim import LAMB
from holocron.optim.wrapper import Lookahead, Scout

WRAPPERS = [Lookahead, Scout]


@pytest.fixture(params=WRAPPERS)
def wrapper(request):
    return request.param


def train(params, optimizer, set_grads, steps):
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=0)


def test_signature(wrapper):
    parameters = inspect.signature(wrapper).parameters
    assert list(parameters) == ["base_optimizer", "sync_rate", "sync_period"]
    assert (parameters["sync_rate"].default, parameters["sync_period"].default) == (0.5, 6)
    assert issubclass(wrapper, Optimizer)


@pytest.mark.parametrize("sync_rate", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_sync_rate_out_of_range(wrapper, make_params, sync_rate):
    with pytest.raises(ValueError, match="expected positive float lower than 1 as sync_rate, received: "):
        wrapper(SGD(make_params()), sync_rate=sync_rate)


@pytest.mark.parametrize("sync_period", [0, -1, 2.0, None, True])
def test_sync_period_out_of_range(wrapper, make_params, sync_period):
    with pytest.raises(ValueError, match="expected positive integer as sync_period, received: "):
        wrapper(SGD(make_params()), sync_period=sync_period)


def test_base_that_is_no_optimizer(wrapper, make_params):
    with pytest.raises(TypeError, match="received: list"):
        wrapper(make_params())


def reference(wrapper, make_params, set_grads, steps, rate, period):
    """The papers' two-loop form, around a hand-written SGD."""
    slow = make_params()
    fast = [param.detach().clone() for param in slow]
    path = [torch.zeros_like(param) for param in fast]
    for step in range(steps):
        leaves = [torch.nn.Parameter(param) for param in fast]
        set_grads(leaves, step)
        for i, leaf in enumerate(leaves):
            update = -0.1 * leaf.grad
            fast[i] = fast[i] + update
            path[i] = path[i] + update.abs()
        if (step + 1) % period == 0:
            for i in range(len(fast)):
                move = fast[i] - slow[i].detach()
                share = 1.0 if wrapper is Lookahead else move.abs() / path[i]
                fast[i] = slow[i].detach() + rate * share * move
                slow[i] = torch.nn.Parameter(fast[i].clone())
                path[i] = torch.zeros_like(fast[i])
    return fast


@pytest.mark.parametrize(("rate", "period"), [(0.5, 6), (0.8, 3), (0.0, 4), (1.0, 1)])
def test_equals_the_formulas(wrapper, make_params, set_grads, rate, period):
    params = make_params()
    optimizer = wrapper(SGD(params, lr=0.1), sync_rate=rate, sync_period=period)
    train(params, optimizer, set_grads, range(25))
    for param, expected in zip(params, reference(wrapper, make_params, set_grads, 25, rate, period), strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-10, atol=1e-12)


def test_scout_follows_steady_weights_and_holds_back_others():
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = Scout(SGD([param], lr=1.0), sync_rate=0.5, sync_period=4)
    for sign in (1.0, -1.0, 1.0, -1.0):
        param.grad = torch.tensor([-1.0, -(1.0 + sign), 0.0])
        optimizer.step()
    # The first went 4 in even steps; the second went 4 as well, also steadily; the third never moved.
    torch.testing.assert_close(param.detach(), torch.tensor([2.0, 2.0, 0.0]))
    for sign in (3.0, -1.0, 3.0, -1.0):
        param.grad = torch.tensor([-1.0, -sign, 0.0])
        optimizer.step()
    # Now the second went 4 on a path of 8: half of the rate.
    torch.testing.assert_close(param.detach(), torch.tensor([4.0, 3.0, 0.0]))


def test_groups_are_those_of_the_base(wrapper, make_params, set_grads):
    params = make_params()
    base = AdamW(params[:2])
    optimizer = wrapper(base)
    assert optimizer.param_groups is base.param_groups
    optimizer.add_param_group({"params": params[2:], "lr": 0.5})
    assert len(base.param_groups) == 2
    train(params, optimizer, set_grads, range(6))
    assert all("slow" in optimizer.state[param] for param in params)
    set_grads(params, 0)
    optimizer.zero_grad(set_to_none=False)
    assert all((param.grad == 0).all() for param in params)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)


def test_weights_loaded_after_wrapping_are_not_pulled_back(wrapper, make_params, set_grads):
    params = make_params()
    optimizer = wrapper(SGD(params, lr=0.0), sync_period=1)
    for param in params:
        param.data.fill_(7.0)
    train(params, optimizer, set_grads, range(1))
    assert all((param == 7).all() for param in params)


def test_frozen_and_unfrozen_parameters(wrapper, make_params, set_grads):
    params = make_params()
    params[0].requires_grad_(False)
    optimizer = wrapper(SGD(params, lr=0.1), sync_period=2)
    frozen = params[0].detach().clone()
    for step in range(4):
        set_grads(params[1:], step)
        optimizer.step()
    assert_same([params[0]], [frozen])
    assert params[0] not in optimizer.state
    params[0].requires_grad_(True)
    train(params, optimizer, set_grads, range(4, 6))
    assert not torch.equal(params[0], frozen)


def test_nothing_to_train(wrapper):
    param = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = wrapper(SGD([param], lr=0.1), sync_period=1)
    optimizer.step()
    assert_same([param], [torch.ones(2)])


def test_closure(wrapper):
    param = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = wrapper(SGD([param], lr=0.1), sync_period=2)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(6)]
    assert losses[0] == 4.0
    assert losses[-1] < 4.0
    assert optimizer.fast_steps == 6
    assert optimizer.step() is None


def test_learning_rate_schedulers(wrapper, make_params, set_grads):
    params = make_params()
    base = AdamW(params, lr=0.1)
    optimizer = wrapper(base)
    # OneCycleLR also looks for the betas among the defaults.
    schedulers = [lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20), lr_scheduler.ExponentialLR(base, 0.9)]
    rates = set()
    for step in range(8):
        train(params, optimizer, set_grads, [step])
        for scheduler in schedulers:
            scheduler.step()
        rates.add(base.param_groups[0]["lr"])
    assert len(rates) == 8


def test_half_precision_keeps_slow_weights_in_float32(wrapper, make_params, set_grads):
    params = make_params(torch.bfloat16)
    optimizer = wrapper(SGD(params, lr=0.1), sync_period=2)
    train(params, optimizer, set_grads, range(4))
    for param in params:
        assert param.dtype == torch.bfloat16
        assert optimizer.state[param]["slow"].dtype == torch.float32
        assert_same([optimizer.state[param]["slow"].bfloat16()], [param])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_bit_equal(wrapper, make_params, set_grads, dtype):
    params = make_params(dtype)
    optimizer = wrapper(LAMB(params, lr=0.05), sync_rate=0.7, sync_period=3)
    train(params, optimizer, set_grads, range(4))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    others = copy.deepcopy(params)
    resumed = wrapper(LAMB(others))
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert (resumed.defaults["sync_rate"], resumed.defaults["sync_period"], resumed.fast_steps) == (0.7, 3, 4)
    for optimizers, each in ((optimizer, params), (resumed, others)):
        train(each, optimizers, set_grads, range(4, 11))
    assert_same(params, others)


def test_state_dict_of_something_else(wrapper, make_params):
    params = make_params()
    optimizer = wrapper(SGD(params))
    with pytest.raises(ValueError, match=r"not the state dict of .*'base'.*load .* into `base_optimizer`"):
        optimizer.load_state_dict(SGD(params).state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(wrapper(SGD(params[:2])).state_dict())
    broken = optimizer.state_dict() | {"sync_period": 0}
    with pytest.raises(ValueError, match="sync_period"):
        optimizer.load_state_dict(broken)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_and_pickles(wrapper, make_params, set_grads, duplicate):
    params = make_params()
    optimizer = wrapper(AdamW(params), sync_period=2)
    train(params, optimizer, set_grads, range(3))
    twin = duplicate(optimizer)
    others = twin.param_groups[0]["params"]
    assert others[0] is not params[0]
    train(params, optimizer, set_grads, range(3, 8))
    train(others, twin, set_grads, range(3, 8))
    assert_same(params, others)
    assert twin.fast_steps == optimizer.fast_steps == 8


def test_wrapping_a_wrapper(make_params, set_grads):
    params = make_params()
    optimizer = Lookahead(Scout(SGD(params, lr=0.1), sync_period=2), sync_period=4)
    train(params, optimizer, set_grads, range(8))
    saved = optimizer.state_dict()
    others = copy.deepcopy(params)
    resumed = Lookahead(Scout(SGD(others)))
    resumed.load_state_dict(saved)
    train(params, optimizer, set_grads, range(8, 12))
    train(others, resumed, set_grads, range(8, 12))
    assert_same(params, others)


def test_repr_and_hooks(wrapper, make_params, set_grads):
    params = make_params()
    optimizer = wrapper(SGD(params, lr=0.125), sync_period=4)
    text = repr(optimizer)
    assert text.startswith(f"{wrapper.__name__} (")
    assert "lr: 0.125" in text
    assert "sync_period: 4" in text
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(params, optimizer, set_grads, range(2))
    assert calls == [1, 1]
