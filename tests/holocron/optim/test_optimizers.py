import copy
import dataclasses
import inspect
import io
import math
import pickle

import pytest
import torch
from torch.optim import Adam, Optimizer, lr_scheduler

from holocron import optim

PARAMS = inspect.Parameter.empty
BETAS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
SIGNATURES = {
    optim.LARS: (
        Optimizer,
        {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "scale_clip": None},
    ),
    optim.LAMB: (Optimizer, {"lr": 1e-3, **BETAS, "scale_clip": None}),
    optim.RaLars: (Optimizer, {"lr": 1e-3, **BETAS, "force_adaptive_momentum": False, "scale_clip": None}),
    optim.TAdam: (Optimizer, {"lr": 1e-3, **BETAS, "amsgrad": False, "dof": None}),
    optim.AdamP: (Adam, {"lr": 1e-3, **BETAS, "amsgrad": False, "delta": 0.1}),
    optim.Adan: (Adam, {"lr": 1e-3, **BETAS, "betas": (0.98, 0.92, 0.99), "amsgrad": False}),
    optim.AdEMAMix: (
        Optimizer,
        {"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "eps": 1e-8, "weight_decay": 0.0},
    ),
}
OPTIMIZER_CLASSES = [*SIGNATURES, optim.AdaBelief]


@pytest.mark.parametrize("optimizer_class", SIGNATURES)
def test_signature_and_base(optimizer_class):
    base, defaults = SIGNATURES[optimizer_class]
    assert optimizer_class.__bases__ == (base,)
    parameters = inspect.signature(optimizer_class).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {"params": PARAMS, **defaults}
    assert list(parameters) == ["params", *defaults]


def test_adabelief_has_the_constructor_of_adam():
    assert optim.AdaBelief.__bases__ == (Adam,)
    assert inspect.signature(optim.AdaBelief) == inspect.signature(Adam)


def train(params, optimizer, set_grads, steps):
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# ---- bad input ----

BAD_OPTIONS = [
    ({"lr": -1e-3}, "lr|learning rate"),
    ({"lr": math.nan}, "lr|learning rate"),
    ({"weight_decay": -0.1}, "weight_decay"),
    ({"eps": -1e-8}, "eps"),
    ({"betas": (1.0, 0.9)}, "index 0: 1.0"),
    ({"betas": (0.9, -0.1)}, "index 1: -0.1"),
    ({"betas": (0.9, 0.9, 1.5)}, "index 2: 1.5"),
    ({"momentum": -0.9}, "momentum"),
    ({"dampening": math.inf}, "dampening"),
    ({"nesterov": True}, "Nesterov momentum requires"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening=0.1"),
    ({"scale_clip": (2.0, 1.0)}, "scale_clip"),
    ({"scale_clip": (-1.0, 1.0)}, "scale_clip"),
    ({"scale_clip": 3.0}, "scale_clip"),
    ({"alpha": -1.0}, "alpha"),
    ({"delta": -0.1}, "delta"),
    ({"dof": 0.0}, "dof"),
]


def bad_cases():
    for optimizer_class, parameters in ((c, inspect.signature(c).parameters) for c in OPTIMIZER_CLASSES):
        num_betas = len(parameters["betas"].default) if "betas" in parameters else 0
        for bad, message in BAD_OPTIONS:
            if not bad.keys() <= parameters.keys() or len(bad.get("betas", ())) > num_betas:
                continue
            if "betas" in bad:
                bad = {"betas": (*bad["betas"], 0.9)[:num_betas]}
            yield pytest.param(optimizer_class, bad, message, id=f"{optimizer_class.__name__}-{bad}")


@pytest.mark.parametrize(("optimizer_class", "bad", "message"), list(bad_cases()))
def test_options_out_of_range(optimizer_class, bad, message, make_params):
    with pytest.raises(ValueError, match=message):
        optimizer_class(make_params(), **bad)
    with pytest.raises(ValueError, match=message):
        optimizer_class([{"params": make_params(), **bad}])
    params = make_params()
    optimizer = optimizer_class(params[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": params[1:], **bad})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("optimizer_class", [c for c in OPTIMIZER_CLASSES if c is not optim.LARS])
def test_number_of_betas(optimizer_class, make_params):
    with pytest.raises(ValueError, match=r"Invalid betas: \(0.9, 0.9, 0.9, 0.9\)"):
        optimizer_class([{"params": make_params(), "betas": (0.9, 0.9, 0.9, 0.9)}])


def test_lars_takes_float_learning_rates_only(make_params):
    with pytest.raises(ValueError, match="Invalid learning rate: 1 "):
        optim.LARS(make_params(), lr=1)


@pytest.mark.parametrize("option", ["fused", "capturable", "differentiable"])
@pytest.mark.parametrize("optimizer_class", [optim.AdaBelief, optim.AdamP, optim.Adan])
def test_adams_own_kernels_are_refused(optimizer_class, option, make_params):
    with pytest.raises(ValueError, match=f"{option}=True is not supported"):
        optimizer_class([{"params": make_params(), option: True}])


def test_parameters_that_are_none(make):
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError, match="Tensor"):
        make([3.0])
    with pytest.raises(TypeError, match="dict"):
        make([torch.nn.Parameter(torch.ones(1))]).add_param_group([])


def test_a_parameter_in_two_groups(make):
    param = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": [param]}, {"params": [param]}])


@pytest.mark.parametrize("foreach", [False, True])
def test_sparse_gradients_are_refused_before_anything_moves(make, foreach):
    dense, sparse = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = make([{"params": [dense], "foreach": foreach}, {"params": [sparse], "foreach": foreach}])
    dense.grad = torch.ones(3)
    sparse.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*SparseAdam"):
        optimizer.step()
    assert_same([dense.detach()], [torch.ones(3)])
    assert not optimizer.state


def test_complex_gradients_are_refused(make):
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    param.grad = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"does not support complex gradients.*view_as_real"):
        make([param]).step()


# ---- the two implementations ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_foreach_on_and_off_agree(make, make_params, set_grads, dtype):
    both = []
    for foreach in (False, True):
        params = make_params(dtype)
        train(params, make([{"params": params, "foreach": foreach, "weight_decay": 0.1}]), set_grads, range(30))
        assert all(param.dtype == dtype for param in params)
        both.append([param.detach().double() for param in params])
    # Half precision: the updates are of float32, and may fall on either side of a rounding of the parameter.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for plain, multi in zip(*both, strict=True):
        assert torch.isfinite(plain).all()
        torch.testing.assert_close(plain, multi, rtol=tolerance, atol=tolerance)


def test_foreach_is_the_default_and_batches_change_nothing(make, set_grads, monkeypatch):
    results = []
    for limit in (1, 7, 1 << 17):
        monkeypatch.setattr(optim._common, "_CPU_BATCH_NUMEL", limit)
        params = [torch.nn.Parameter(torch.full((3,), 1.0 + i)) for i in range(5)]
        optimizer = make(params)
        assert optimizer.param_groups[0]["foreach"] is None
        calls = []
        rule = optimizer._rule

        def spy(params, *rest, multi=rule.multi, calls=calls):
            calls.append(len(params))
            multi(params, *rest)

        monkeypatch.setattr(type(optimizer), "_rule", dataclasses.replace(rule, single=None, multi=spy))
        train(params, optimizer, set_grads, [1])
        monkeypatch.setattr(type(optimizer), "_rule", rule)
        assert calls == {1: [1] * 5, 7: [2, 2, 1], 1 << 17: [5]}[limit]
        results.append([param.detach().clone() for param in params])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_strided_parameters(make, set_grads):
    """Channels-last and transposed parameters, with gradients in another layout."""
    both = []
    for foreach in (False, True):
        generator = torch.Generator().manual_seed(1)
        conv = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64).to(memory_format=torch.channels_last)
        transposed = torch.randn(6, 4, generator=generator, dtype=torch.float64).t()
        params = [torch.nn.Parameter(conv), torch.nn.Parameter(transposed)]
        train(params, make([{"params": params, "foreach": foreach, "weight_decay": 0.1}]), set_grads, range(10))
        both.append(params)
    for plain, multi in zip(*both, strict=True):
        torch.testing.assert_close(plain, multi)


def test_mixed_types_in_one_group(make, make_params, set_grads):
    mixed = make_params(torch.float64) + make_params(torch.bfloat16) + make_params(torch.float32)
    train(mixed, make(mixed), set_grads, range(3))
    alone = make_params(torch.float32)
    optimizer = make(alone)
    for step in range(3):
        # The noise depends on the position alone: the last five see what they saw among the others.
        set_grads(make_params() + make_params() + alone, step)
        optimizer.step()
    assert_same([p.detach() for p in mixed[-5:]], [p.detach() for p in alone])


def test_half_precision_state_is_float32(make, make_params, set_grads):
    params = make_params(torch.float16)
    optimizer = make(params)
    for scale in (1e-4, 1e-6, 0.0):
        set_grads(params, 1)
        for param in params:
            param.grad *= scale
        optimizer.step()
    for param in params:
        assert torch.isfinite(param).all()
        assert all(value.dtype == torch.float32 for value in optimizer.state[param].values())


# ---- groups and gradients ----


def test_groups_have_their_own_options(make, make_params, set_grads):
    params = make_params()
    optimizer = make([{"params": params[:2]}, {"params": params[2:], "lr": 0.0}])
    before = [param.detach().clone() for param in params]
    train(params, optimizer, set_grads, range(3))
    assert not torch.equal(params[0], before[0])
    assert_same([param.detach() for param in params[2:]], before[2:])


def test_maximize_is_minimizing_the_opposite(make, make_params, set_grads):
    up, down = make_params(), make_params()
    ascent, descent = make([{"params": up, "maximize": True}]), make(down)
    for step in range(5):
        set_grads(up, step)
        for a, b in zip(up, down, strict=True):
            b.grad = -a.grad
        ascent.step()
        descent.step()
    assert_same([p.detach() for p in up], [p.detach() for p in down])


@pytest.mark.parametrize("foreach", [False, True])
def test_missing_zero_and_empty(make, foreach):
    frozen, still, empty, moving = (torch.nn.Parameter(torch.ones(n)) for n in (2, 3, 0, 4))
    optimizer = make(
        [{"params": [], "foreach": foreach}, {"params": [frozen, still, empty, moving], "foreach": foreach}]
    )
    for _ in range(3):
        still.grad, empty.grad, moving.grad = torch.zeros(3), torch.zeros(0), torch.ones(4)
        optimizer.step()
    assert_same([frozen.detach(), still.detach()], [torch.ones(2), torch.ones(3)])
    assert torch.isfinite(moving).all()
    assert (moving < 1).all()
    assert frozen not in optimizer.state


def test_parameters_that_join_late(make, make_params, set_grads):
    """Parameters of one group at different steps, as after unfreezing a layer, are as if each were alone."""
    params, alone = make_params(), make_params()
    optimizer = make(params[:-1])
    single = make(alone[2:3])
    for step in range(6):
        set_grads(params, step)
        if step == 3:
            optimizer.add_param_group({"params": params[-1:]})
        if step < 2:
            params[2].grad = None
        optimizer.step()
        if step >= 2:
            set_grads(alone, step)
            single.step()
    torch.testing.assert_close(params[2], alone[2], rtol=1e-12, atol=0)
    assert optimizer.state[params[0]]["step"] == 6
    assert optimizer.state[params[2]]["step"] == 4
    assert optimizer.state[params[-1]]["step"] == 3


def test_options_switched_on_in_the_middle(make, make_params, set_grads):
    params = make_params()
    optimizer = make(params, momentum=0.0) if "momentum" in make.options else make(params)
    train(params, optimizer, set_grads, range(3))
    for group in optimizer.param_groups:
        group.update({"amsgrad": True} if "amsgrad" in group else {"momentum": 0.9} if "momentum" in group else {})
    train(params, optimizer, set_grads, range(3, 6))
    assert all(torch.isfinite(param).all() for param in params)


def test_closure(make):
    param = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make([param])

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    # The first step of TAdam is tiny: a second moment of zero makes any gradient an outlier.
    for _ in range(20):
        optimizer.step(closure)
    assert param < 1.999
    assert optimizer.step() is None


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    ],
    ids=["onecycle", "cosine", "lambda"],
)
def test_learning_rate_schedulers(make, make_params, set_grads, schedule):
    params = make_params()
    optimizer = make(params)
    scheduler = schedule(optimizer)
    rates = []
    for step in range(5):
        train(params, optimizer, set_grads, [step])
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert len(set(rates)) == 5
    assert all(torch.isfinite(param).all() for param in params)


@pytest.mark.parametrize(
    "optimizer_class", [c for c in OPTIMIZER_CLASSES if c not in {optim.LARS, optim.Adan, optim.AdEMAMix}]
)
def test_one_cycle_of_the_first_beta(optimizer_class, make_params, set_grads):
    params = make_params()
    optimizer = optimizer_class(params)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=10)
    betas = []
    for step in range(5):
        train(params, optimizer, set_grads, [step])
        scheduler.step()
        betas.append(optimizer.param_groups[0]["betas"][0])
    assert len(set(betas)) > 2
    assert all(torch.isfinite(param).all() for param in params)


def test_tensor_learning_rate(make, make_params, set_grads):
    params, others = make_params(), make_params()
    optimizer, other = make(params), make(others)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    other.param_groups[0]["lr"] = 0.25
    train(params, optimizer, set_grads, range(2))
    train(others, other, set_grads, range(2))
    assert_same([p.detach() for p in params], [p.detach() for p in others])


def test_hooks_and_default_device(make, make_params, set_grads):
    calls = []
    params = make_params()
    optimizer = make(params)
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    with torch.device("meta"):
        set_grads_on_cpu = [torch.ones(param.shape, dtype=param.dtype, device="cpu") for param in params]
        for param, grad in zip(params, set_grads_on_cpu, strict=True):
            param.grad = grad
        optimizer.step()
    assert calls == ["before", "after"]
    assert optimizer.state[params[0]]["step"].device.type == "cpu"


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, optim.wrapper.Lookahead], ids=["bare", "wrapped"])
def test_gradient_scaler(make, make_params, wrap):
    params, others = make_params(torch.float32), make_params(torch.float32)
    scaled, plain = wrap(make(params)), wrap(make(others))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 2.0):
        for each in (params, others):
            for param in each:
                param.grad = None
        scaler.scale(sum((factor * param).square().sum() for param in params)).backward()
        scaler.step(scaled)
        scaler.update()
        if factor < float("inf"):
            sum((factor * param).square().sum() for param in others).backward()
            plain.step()
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b)


# ---- checkpoints ----


def checkpoint(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_resuming_is_bit_equal(make, make_params, set_grads, dtype):
    params = make_params(dtype)
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 0.03}]
    optimizer = make(groups)
    train(params, optimizer, set_grads, range(5))
    saved_params, saved = copy.deepcopy(params), checkpoint(optimizer)
    train(params, optimizer, set_grads, range(5, 10))

    resumed = make([{"params": saved_params[:2]}, {"params": saved_params[2:]}])
    resumed.load_state_dict(saved)
    train(saved_params, resumed, set_grads, range(5, 10))
    assert_same([p.detach() for p in saved_params], [p.detach() for p in params])
    for mine, other in zip(saved_params, params, strict=True):
        left, right = resumed.state[mine], optimizer.state[other]
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert value.dtype == right[name].dtype
            torch.testing.assert_close(value, right[name], rtol=0, atol=0)


def test_a_loaded_state_is_not_shared(make, make_params, set_grads):
    params, others = make_params(), make_params()
    optimizer, other = make(params), make(others)
    train(params, optimizer, set_grads, range(2))
    other.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(other.state_dict())
    train(params, optimizer, set_grads, range(2, 4))
    for index, state in other.state_dict()["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(value, before["state"][index][name], rtol=0, atol=0)


def test_load_state_dict_hooks_and_older_checkpoints(make, make_params, set_grads):
    params = make_params()
    optimizer = make(params)
    train(params, optimizer, set_grads, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group.pop("foreach")
        group.pop("maximize")
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    resumed = make(params)
    resumed.register_load_state_dict_pre_hook(lambda _, state_dict: saved)
    resumed.load_state_dict({"state": {}, "param_groups": []})
    assert resumed.param_groups[0]["foreach"] is None
    assert resumed.param_groups[0]["maximize"] is False
    train(params, resumed, set_grads, [2])
    assert resumed.state[params[0]]["step"] == 3


def test_state_dict_of_other_groups(make, make_params):
    params = make_params()
    optimizer = make(params)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(make(params[:2]).state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_and_pickles(make, make_params, set_grads, duplicate):
    params = make_params()
    optimizer = make(params)
    train(params, optimizer, set_grads, range(3))
    twin = duplicate(optimizer)
    others = twin.param_groups[0]["params"]
    train(params, optimizer, set_grads, range(3, 6))
    train(others, twin, set_grads, range(3, 6))
    assert_same([p.detach() for p in params], [p.detach() for p in others])
    assert repr(twin) == repr(optimizer)
    for name in ("scale_clip", "delta", "force_adaptive_momentum"):
        if hasattr(optimizer, name):
            assert getattr(twin, name) == getattr(optimizer, name)


def test_documented_attributes(make_params):
    params = make_params()
    assert optim.LARS(params).scale_clip == (0.0, 10.0)
    assert optim.LAMB(params, scale_clip=(0.1, 2.0)).scale_clip == (0.1, 2.0)
    ralars = optim.RaLars(params, force_adaptive_momentum=True)
    assert (ralars.scale_clip, ralars.force_adaptive_momentum) == ((0.0, 10.0), True)
    assert optim.AdamP(params, delta=0.2).delta == 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_agrees_with_cpu(make, make_params, set_grads):
    on_cpu, on_gpu = make_params(), make_params(device="cuda")
    for params in (on_cpu, on_gpu):
        train(params, make(params), set_grads, range(10))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(a, b.cpu())
