import pytest
import torch
from torch import nn

from holocron.trainer import freeze_bn, freeze_model
from holocron.trainer.utils import split_normalization


def network():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(12)]
    model = nn.Sequential()
    for index, block in enumerate(blocks):
        model.add_module(f"layer{index}", block)
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("head", nn.Conv2d(3, 2, 1))
    return model


def frozen(model):
    return {name for name, param in model.named_parameters() if not param.requires_grad}


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def changed(model, before):
    return {name.rsplit(".", 1)[0] for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, []),
        # `layer1` is not `layer10` and `layer11`
        ("layer1", ["layer0", "layer1"]),
        ("layer1.0", ["layer0", "layer1.0"]),
        ("layer1.0.weight", ["layer0", "layer1.0.weight"]),
        # layers without parameters count too
        ("layer1.2", ["layer0", "layer1"]),
        ("pool", [f"layer{index}" for index in range(12)]),
        ("head", [f"layer{index}" for index in range(12)] + ["head"]),
    ],
)
def test_freeze_model(last, expected):
    model = network()
    model.requires_grad_(False)
    freeze_model(model, last)
    names = [name for name, _ in model.named_parameters()]
    assert frozen(model) == {
        name for name in names if any(name == prefix or name.startswith(f"{prefix}.") for prefix in expected)
    }


@pytest.mark.parametrize("name", ["layer", "layer99", "head.0", "layer1.", "head.weigh"])
def test_unknown_layer(name):
    model = network()
    freeze_model(model, "layer0")
    before = frozen(model)
    with pytest.raises(ValueError, match=name):
        freeze_model(model, name)
    assert frozen(model) == before


def test_unknown_layer_names_the_nearest():
    with pytest.raises(ValueError, match="layer11"):
        freeze_model(network(), "layer_11")


def test_statistics_of_frozen_layers():
    model = network().train()
    x = torch.rand(4, 3, 5, 5)
    freeze_model(model, "layer10")
    before = statistics(model)
    model(x)
    assert changed(model, before) == {"layer11.1"}
    # A later train() does not move them either, and the weights of the layer are used with them when evaluating.
    model.train()
    model(x)
    assert changed(model, before) == {"layer11.1"}

    freeze_model(model.train(), "layer10", frozen_bn_stat_update=True)
    model(x)
    assert len(changed(model, before)) == 12
    before = statistics(model)
    freeze_model(model.train(), "layer10")
    freeze_model(model.train())
    model(x)
    assert len(changed(model, before)) == 12


def test_frozen_layers_normalize_with_their_statistics():
    model = network()
    freeze_model(model, "head")
    x = torch.rand(4, 3, 5, 5)
    training = model(x)
    assert torch.equal(training, model.eval()(x))


def test_freeze_bn_leaves_trainable_layers_alone():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False))
    model[0].requires_grad_(False)
    freeze_bn(model)
    assert [module.training for module in model] == [False, True, True]
    untracked = nn.BatchNorm1d(2, track_running_stats=False)
    freeze_bn(untracked)
    assert not untracked.track_running_stats


def test_split_normalization():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 4, 1),
            "bn": nn.BatchNorm2d(4),
            "gn": nn.GroupNorm(2, 4),
            "ln": nn.LayerNorm(4),
            "rms": nn.RMSNorm(4),
            "in": nn.InstanceNorm2d(4, affine=True),
            "fc": nn.Linear(4, 4),
        }
    )
    norm, other = split_normalization(model, model.parameters())
    names = {id(param): name for name, param in model.named_parameters()}
    assert {names[id(param)].split(".")[0] for param in norm} == {"bn", "gn", "ln", "rms", "in"}
    assert {names[id(param)].split(".")[0] for param in other} == {"conv", "fc"}
