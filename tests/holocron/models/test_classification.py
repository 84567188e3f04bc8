"""The classifiers that reparameterize: forms, training, bad input."""

import copy

import pytest
import torch

from holocron import models
from holocron.models import build_model

LARGE = {"repvgg_a2", "repvgg_b1", "repvgg_b2", "repvgg_b3"}
NAMES = [f"mobileone_s{size}" for size in range(4)] + [
    f"repvgg_{variant}" for variant in ("a0", "a1", "a2", "b0", "b1", "b2", "b3")
]
EVERY = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NAMES]


def randomize_batch_norm(model):
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5)
            layer.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(layer.weight, 1, 0.3)
            torch.nn.init.normal_(layer.bias, 0, 0.3)


def relative_error(value, reference):
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("name", EVERY)
def test_reparametrize_changes_nothing_but_the_form(name):
    model = build_model(name, num_classes=7).eval()
    randomize_batch_norm(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images)
        model.reparametrize()
        assert relative_error(model(images), expected) <= 1e-5

    kinds = {type(layer).__name__ for layer in model.modules()}
    assert kinds == {type(model).__name__, "Sequential", "Conv2d", "ReLU", "GlobalAvgPool2d", "Linear"}
    convolutions = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(layer.bias is not None for layer in convolutions)
    assert len(convolutions) == sum(isinstance(layer, torch.nn.ReLU) for layer in model.modules())
    assert not any(layer.training for layer in model.modules())

    before = list(model.modules())
    model.reparametrize()
    assert all(old is new for old, new in zip(before, model.modules(), strict=True))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_reparametrize_refuses_training_mode(name):
    model = build_model(name)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"training mode.*\.eval\(\)"):
        model.reparametrize()
    # One layer left in training mode is enough to make the answer depend on the batch.
    model.eval()
    next(layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)).train()
    with pytest.raises(ValueError, match="training mode"):
        model.reparametrize()
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s1"])
def test_fused_weights_load_into_a_fused_model(name):
    source, target = build_model(name).eval(), build_model(name).eval()
    randomize_batch_norm(source)
    source.reparametrize()
    target.reparametrize()
    models.load_weights(target, source.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(target(images), source(images))


def test_reparametrize_keeps_type_and_frozen_parameters():
    model = models.mobileone_s1().eval().to(torch.bfloat16)
    for parameter in model.features[0].parameters():
        parameter.requires_grad_(False)
    model.reparametrize()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.features[0].parameters())
    assert all(parameter.requires_grad for parameter in model.features[1].parameters())


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_training_reaches_every_parameter_and_copies_are_independent(name):
    model = build_model(name, num_classes=3, in_channels=1)
    twin = copy.deepcopy(model)
    images = torch.randn(4, 1, 32, 32)
    assert torch.equal(twin.eval()(images), model.eval()(images))
    model.train()
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in twin.parameters())


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_untrained_features_fit_float16(name):
    model = build_model(name).eval()
    with torch.inference_mode():
        features = model.features(torch.randn(2, 3, 64, 64))
    assert 0.01 < float(features.std()) < 100


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s1"])
def test_fused_model_traces_with_a_dynamic_batch(name):
    model = build_model(name).eval()
    model.reparametrize()
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(program.module()(images), model(images), rtol=1e-5, atol=1e-7)
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("batch_norm" in call or "add" in call.split(".")[1] for call in calls)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 32)])
def test_any_input_size(size):
    for name in ("repvgg_a0", "mobileone_s1"):
        assert build_model(name).eval()(torch.randn(1, 3, *size)).shape == (1, 10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, "num_classes to be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels to be at least 1, got -1"),
    ],
)
def test_builders_refuse_impossible_sizes(kwargs, message):
    for name in ("repvgg_a0", "mobileone_s0"):
        with pytest.raises(ValueError, match=message):
            build_model(name, **kwargs)


def test_classes_refuse_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="2 widths for 1 stages"):
        models.RepVGG([1], [8, 8])
    with pytest.raises(ValueError, match="num_blocks to be at least 1"):
        models.RepVGG([1, 0], [8, 8])
    with pytest.raises(ValueError, match="0 widths"):
        models.RepVGG([], [])
    with pytest.raises(ValueError, match="num_branches to be at least 1"):
        models.MobileOne([1], [8, 8], num_branches=0)
    with pytest.raises(TypeError, match="depth"):
        models.repvgg_a0(depth=3)
