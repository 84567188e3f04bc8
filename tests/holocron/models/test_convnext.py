"""ConvNeXt against torchvision's with the same weights; its layers, options, bad input, training and tracing."""

import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt as TorchvisionConvNeXt
from torchvision.models.convnext import CNBlockConfig

from holocron import models
from holocron.models import load_weights
from holocron.models.classification.convnext import ConvNeXtBlock, LayerNorm2d, LayerScale, PixelGELU, PointwiseConv2d

DEPTHS, WIDTHS = (1, 2, 2, 1), (8, 12, 16, 24)


def small(**kwargs):
    return models.ConvNeXt(DEPTHS, WIDTHS, **{"num_classes": 3, **kwargs})


def randomize(model):
    """Weights as after training: without it the first layer scales hide what the blocks compute."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return model


def from_torchvision(ours, reference):
    """Weights of torchvision's model, which has the same parameters in the same order but for the layer scales."""
    layers = [layer for layer in reference.modules() if isinstance(layer, nn.Conv2d | nn.Linear | nn.LayerNorm)]
    scales = [block.layer_scale.flatten() for block in reference.modules() if hasattr(block, "layer_scale")]
    # The norm of the classifier is the last layer but one in both.
    weights = iter([value for layer in layers for value in (layer.weight, layer.bias)])
    remaining = iter(scales)
    state = {}
    for name, parameter in ours.named_parameters():
        value = next(remaining if name.endswith("conv.5.weight") else weights)
        state[name] = value.detach().reshape(parameter.shape)
    assert next(weights, None) is None
    assert next(remaining, None) is None
    return state


def test_equals_torchvision_with_the_same_weights():
    settings = [
        CNBlockConfig(width, following, depth)
        for width, following, depth in zip(WIDTHS, [*WIDTHS[1:], None], DEPTHS, strict=True)
    ]
    reference = randomize(TorchvisionConvNeXt(settings, num_classes=3)).double().eval()
    model = small().double().eval()
    model.load_state_dict(from_torchvision(model, reference))
    images = torch.randn(2, 3, 70, 96).double()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layers_against_plain_ones(memory_format):
    images = torch.randn(2, 6, 5, 4).double().contiguous(memory_format=memory_format)
    norm = randomize(LayerNorm2d(6)).double()
    centred = images - images.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = expected * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(norm(images), expected)

    pointwise = PointwiseConv2d(6, 9).double()
    torch.testing.assert_close(pointwise(images), nn.functional.conv2d(images, pointwise.weight, pointwise.bias))
    torch.testing.assert_close(PixelGELU()(images), nn.functional.gelu(images))
    scale = randomize(LayerScale(6, 1.0)).double()
    torch.testing.assert_close(scale(images), torch.einsum("nchw,c->nchw", images, scale.weight))


def test_blocks_start_as_the_identity_and_drop_more_often_with_depth():
    model = small(stochastic_depth_prob=0.5, layer_scale=0.25)
    blocks = [layer for layer in model.modules() if isinstance(layer, ConvNeXtBlock)]
    assert [block.drop_path.p for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert all((block.conv[5].weight == 0.25).all() for block in blocks)

    block = ConvNeXtBlock(6, 0.5, 1.0).train()
    images = torch.randn(64, 6, 5, 4)
    with torch.inference_mode():
        full = block.conv(images)
        added = block(images) - images
        skipped = (added == 0).flatten(1).all(1)
        assert 10 < int(skipped.sum()) < 54
        torch.testing.assert_close(added[~skipped], 2 * full[~skipped], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(block.eval()(images), images + full)


def test_options():
    assert small(in_channels=1).eval()(torch.randn(2, 1, 64, 33)).shape == (2, 3)
    two_stages = models.ConvNeXt([1, 1], [8, 12])
    assert two_stages.eval()(torch.randn(1, 3, 8, 9)).shape == (1, 10)
    assert models.convnext_atto(stochastic_depth_prob=0).features[5][1].drop_path.p == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, "num_classes to be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels to be at least 1, got -1"),
        ({"stochastic_depth_prob": 1}, r"stochastic_depth_prob to be in \[0, 1\), got 1"),
        ({"stochastic_depth_prob": float("nan")}, "got nan"),
    ],
)
def test_refuses_impossible_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_refuses_stages_that_do_not_fit():
    with pytest.raises(ValueError, match="2 widths for 1 stages"):
        models.ConvNeXt([1], [8, 8])
    with pytest.raises(ValueError, match="num_blocks to be at least 1, got 0"):
        models.ConvNeXt([1, 0], [8, 8])


@pytest.mark.parametrize("size", [(31, 64), (64, 16), (1, 1)])
def test_refuses_images_that_vanish(size):
    with pytest.raises(ValueError, match=rf"at least 32 × 32 .*, got {size[0]} × {size[1]}"):
        small().eval()(torch.randn(1, 3, *size))
    assert small().eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_training_reaches_every_parameter():
    model = small(in_channels=1)
    nn.functional.cross_entropy(model(torch.randn(4, 1, 32, 64)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dynamic", [{0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}])
def test_traces_to_convolutions(dynamic):
    model = randomize(small()).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dynamic,))
    images = torch.randn(5, 3, 96 if 2 in dynamic else 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
    calls = [str(node.target) for node in program.graph.nodes]
    assert sum("conv2d" in call for call in calls) == 4 + 3 * sum(DEPTHS)
    # Only the classifier is a linear layer.
    assert sum("linear" in call for call in calls) == 1


def test_a_backbone_loads_without_its_classifier():
    source, target = randomize(small(num_classes=5)), small()
    before = target.head[1].weight.clone()
    load_weights(target, source.state_dict(), backbone_only=True)
    assert torch.equal(target.features[0].weight, source.features[0].weight)
    assert torch.equal(target.head[1].weight, before)


def test_checkpoint(compat_checkpoints):
    facts = compat_checkpoints["ConvNeXt_Atto_Checkpoint.IMAGENETTE"]
    checkpoint = models.ConvNeXt_Atto_Checkpoint.DEFAULT.value
    assert checkpoint is models.ConvNeXt_Atto_Checkpoint.IMAGENETTE.value
    meta = checkpoint.meta
    assert (meta.arch, meta.url, meta.sha256) == ("convnext_atto", facts["url"], facts["sha256"])
    assert (meta.size, meta.num_params) == (facts["size"], facts["num_params"])
    assert {metric.value: value for metric, value in checkpoint.evaluation.results.items()} == facts["results"]
    with pytest.raises(ValueError, match="no weights are published for convnext_tiny"):
        models.convnext_tiny(pretrained=True)
