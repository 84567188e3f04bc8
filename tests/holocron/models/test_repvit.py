"""RepViT: both of its forms, options, bad input, training and tracing."""

import pytest
import torch
from torch import nn

from holocron import models
from holocron.models import CheckpointMismatchError, build_model, load_weights
from holocron.models.classification.repvit import ConvBN, NormLinear, RepDepthwise, RepViTBlock, SqueezeExcite

NAMES = ["repvit_m0_9", "repvit_m1_0", "repvit_m1_1"]


def small(**kwargs):
    return models.RepViT((2, 1), (16, 24), **{"num_classes": 3, **kwargs})


def settle(model):
    """Give every normalization statistics of its own, as training would."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5)
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias, 0, 0.3)
    return model.eval()


def relative_error(value, reference):
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("name", NAMES)
def test_reparametrize_changes_nothing_but_the_form(name):
    # In float64: these random answers are so large that what float32 rounds away differs from processor to processor.
    model = settle(build_model(name, num_classes=7)).double()
    images = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(images)
        model.reparametrize()
        assert relative_error(model(images), expected) <= 1e-10
    kinds = {type(layer) for layer in model.modules()}
    assert not kinds & {ConvBN, NormLinear, RepDepthwise, nn.BatchNorm1d, nn.BatchNorm2d}
    assert not any(layer.training for layer in model.modules())
    assert all(layer.bias is not None for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    assert list(model.head.state_dict()) == ["weight", "bias"]

    before = list(model.modules())
    model.reparametrize()
    assert all(old is new for old, new in zip(before, model.modules(), strict=True))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: RepDepthwise(6), (2, 6, 5, 7)),
        (lambda: ConvBN(4, 6, 3, stride=2), (2, 4, 5, 7)),
        (lambda: ConvBN(6, 6, 3, groups=6), (2, 6, 5, 7)),
        (lambda: NormLinear(6, 4), (3, 6)),
    ],
)
def test_each_fold_in_float64(layer, shape):
    layer = settle(layer()).double()
    inputs = torch.randn(shape).double()
    fused = layer.fuse()
    with torch.inference_mode():
        torch.testing.assert_close(fused(inputs), layer(inputs), rtol=1e-10, atol=1e-10)
    assert isinstance(fused, nn.Conv2d | nn.Linear)
    assert not fused.training


def test_token_mixer_sums_two_convolutions_and_the_identity():
    mixer = settle(RepDepthwise(4)).double()
    images = torch.randn(2, 4, 5, 6).double()
    kept = images.clone()
    with torch.inference_mode():
        summed = (
            mixer.conv3(images) + images * mixer.conv1.weight.view(-1, 1, 1) + mixer.conv1.bias.view(-1, 1, 1) + images
        )
        torch.testing.assert_close(mixer(images), mixer.norm(summed))
    assert torch.equal(images, kept)


def test_one_rounding_only():
    """In float16 the folded weights are the rounding of the exact ones."""
    for layer in (settle(RepDepthwise(6)), settle(NormLinear(6, 4))):
        layer.half()
        exact = layer.double().fuse()
        fused = layer.half().fuse()
        assert fused.weight.dtype == torch.float16
        assert torch.equal(fused.weight, exact.weight.half())
        assert torch.equal(fused.bias, exact.bias.half())


def test_reparametrize_refuses_training_mode():
    model = small()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"training mode.*\.eval\(\)"):
        model.reparametrize()
    assert list(model.state_dict()) == keys


def test_reparametrize_keeps_frozen_parameters_frozen():
    model = small().eval()
    model.features.requires_grad_(False)
    model.reparametrize()
    assert not any(parameter.requires_grad for parameter in model.features.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_fused_weights_load_into_a_fused_model():
    source, target = settle(small()), small()
    source.reparametrize()
    with pytest.raises(CheckpointMismatchError, match="reparameterized form of RepViT"):
        load_weights(target, source.state_dict())
    target.eval().reparametrize()
    load_weights(target, source.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(target(images), source(images))


@pytest.mark.parametrize("fused", [False, True])
def test_a_backbone_loads_without_its_classifier(fused):
    source, target = settle(small(num_classes=5)), small().eval()
    if fused:
        source.reparametrize()
        target.reparametrize()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    load_weights(target, source.state_dict(), backbone_only=True)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("head.") else source.state_dict()[key])


def test_squeeze_and_excitation_in_every_other_block_but_the_last():
    model = models.repvit_m1_1()
    with_se = [
        [any(isinstance(layer, SqueezeExcite) for layer in block.modules()) for block in stage]
        for stage in model.features[1:]
    ]
    assert with_se == [
        [True, False, False],
        [False, True, False, False],
        [False, *[True, False] * 6, False],
        [False, True, False],
    ]


@pytest.mark.parametrize(("channels", "squeezed"), [(2, 8), (48, 16), (56, 16), (112, 32), (192, 48)])
def test_squeeze_and_excitation(channels, squeezed):
    block = SqueezeExcite(channels)
    assert block.fc1.out_channels == squeezed
    images = torch.randn(2, channels, 3, 4)
    with torch.inference_mode():
        factors = 1 / (1 + (-block.fc2(block.fc1(images.mean((2, 3), keepdim=True)).clamp(min=0))).exp())
        torch.testing.assert_close(block(images), images * factors)


def test_a_downsampling_block_may_have_squeeze_and_excitation():
    block = RepViTBlock(8, 12, downsample=True, use_se=True).eval()
    assert isinstance(block.token_mixer[1], SqueezeExcite)
    assert block(torch.randn(1, 8, 5, 7)).shape == (1, 12, 3, 4)


@pytest.mark.parametrize("size", [(1, 1), (17, 33)])
def test_any_input_size(size):
    assert small(in_channels=1).eval()(torch.randn(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes to be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels to be at least 1, got -1"),
        ({"num_blocks": [1, 0]}, "num_blocks to be at least 1, got 0"),
        ({"widths": [8]}, "1 widths for 2 stages"),
        ({"widths": [7, 8]}, "even first width, .*got 7"),
    ],
)
def test_refuses_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.RepViT(**{"num_blocks": [1, 1], "widths": [8, 16], **arguments})


def test_no_weights_are_published():
    with pytest.raises(ValueError, match="no weights are published for repvit_m0_9"):
        models.repvit_m0_9(pretrained=True)


@pytest.mark.parametrize("fused", [False, True])
def test_training_reaches_every_parameter(fused):
    model = settle(small())
    if fused:
        model.reparametrize()
    model.train()
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_untrained_features_fit_float16():
    with torch.inference_mode():
        features = models.repvit_m1_1().eval().features(torch.randn(2, 3, 64, 64))
    assert 0.01 < float(features.std()) < 100


def test_fused_model_traces_with_a_dynamic_batch():
    model = settle(small())
    model.reparametrize()
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), model(images))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
