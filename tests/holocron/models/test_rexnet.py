"""ReXNet: its blocks against what the paper says, options, bad input, training, tracing, published weights."""

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from holocron import models
from holocron.models import build_model, load_weights
from holocron.models.checkpoints import IMAGENET_CATEGORIES, IMAGENETTE_CATEGORIES
from holocron.models.classification.rexnet import ReXBlock, SEBlock

NAMES = [f"rexnet{width}" for width in ("1_0x", "1_3x", "1_5x", "2_0x", "2_2x")]


def small(**kwargs):
    return models.ReXNet(**{"width_mult": 0.25, "num_classes": 3, **kwargs})


@pytest.mark.parametrize(("in_channels", "out_channels"), [(6, 6), (6, 9)])
def test_the_input_is_added_to_the_first_channels(in_channels, out_channels):
    block = ReXBlock(in_channels, out_channels, 2, 1, None, nn.SiLU(), nn.BatchNorm2d).double().eval()
    images = torch.randn(2, in_channels, 5, 7).double()
    kept = images.clone()
    with torch.inference_mode():
        expected = block.conv(images)
        expected[:, :in_channels] += images
        assert torch.equal(block(images), expected)
    assert torch.equal(images, kept)


@pytest.mark.parametrize(("out_channels", "stride"), [(9, 2), (4, 1)])
def test_no_residual_where_the_shapes_do_not_allow_it(out_channels, stride):
    block = ReXBlock(6, out_channels, 1, stride, None, nn.SiLU(), nn.BatchNorm2d).eval()
    images = torch.randn(1, 6, 5, 7)
    with torch.inference_mode():
        assert torch.equal(block(images), block.conv(images))


def test_squeeze_and_excitation_scales_channels():
    block = SEBlock(24, 12, nn.BatchNorm2d).eval()
    images = torch.randn(2, 24, 3, 4)
    with torch.inference_mode():
        squeezed = block.conv[1](block.conv[0](images.mean((2, 3), keepdim=True))).clamp(0, 6)
        factors = 1 / (1 + (-block.conv[3](squeezed)).exp())
        assert factors.shape == (2, 24, 1, 1)
        torch.testing.assert_close(block(images), images * factors)
    assert SEBlock(4, 12, nn.BatchNorm2d).conv[0].out_channels == 1


def test_blocks_of_the_paper():
    model = models.rexnet1_0x()
    blocks = [layer for layer in model.features if isinstance(layer, ReXBlock)]
    assert len(blocks) == 16
    # Six kinds of resolution, five of them halved by the first block of a stage or the stem.
    with torch.inference_mode():
        features, sizes = torch.randn(1, 3, 64, 64), []
        for layer in model.eval().features:
            features = layer(features)
            sizes.append(features.shape[-1])
    assert sizes == [32] * 4 + [16] * 2 + [8] * 2 + [4] * 6 + [2] * 8
    with_se = [any(isinstance(layer, SEBlock) for layer in block.conv) for block in blocks]
    assert with_se == [False] * 3 + [True] * 13


def test_options():
    assert small(in_channels=1).eval()(torch.randn(2, 1, 40, 33)).shape == (2, 3)
    assert not any(isinstance(layer, SEBlock) for layer in small(use_se=False).modules())
    deeper = small(depth_mult=1.5)
    assert sum(isinstance(layer, ReXBlock) for layer in deeper.modules()) == 2 + 3 + 3 + 5 + 5 + 8
    assert deeper.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert small(dropout_ratio=0.5).head[0].p == 0.5

    model = small(act_layer=nn.PReLU(), norm_layer=lambda channels: nn.GroupNorm(1, channels))
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.SiLU) for layer in model.modules())
    # Each place has an activation of its own: one that learns is not shared, and one can be replaced alone.
    assert len({id(layer) for layer in model.modules() if isinstance(layer, nn.PReLU)}) == 17
    assert models.rexnet1_3x().features[2] is not models.rexnet1_3x().features[21]


def test_dropout_acts_in_training_only():
    model = small(norm_layer=lambda channels: nn.GroupNorm(1, channels), dropout_ratio=0.5)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.equal(model.train()(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, "num_classes to be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels to be at least 1, got -1"),
        ({"width_mult": 0}, "width_mult to be positive, got 0"),
        ({"width_mult": float("nan")}, "width_mult to be positive, got nan"),
        ({"width_mult": 0.01}, "widths to be at least 1, got 0"),
        ({"depth_mult": -1.0}, r"depth_mult to be positive, got -1\.0"),
        ({"depth_mult": float("inf")}, "depth_mult to be positive, got inf"),
        ({"in_planes": -4}, "widths to be at least 1, got -1"),
        ({"se_ratio": 0}, "se_ratio to be at least 1, got 0"),
        ({"dropout_ratio": 1.5}, r"probability .* got 1\.5"),
    ],
)
def test_refuses_impossible_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


@pytest.mark.parametrize("size", [(1, 1), (17, 33)])
def test_any_input_size(size):
    assert small().eval()(torch.randn(1, 3, *size)).isfinite().all()


def test_training_reaches_every_parameter():
    model = small(in_channels=1)
    nn.functional.cross_entropy(model(torch.randn(4, 1, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["rexnet1_0x", "rexnet2_2x"])
def test_untrained_features_fit_float16(name):
    with torch.inference_mode():
        features = build_model(name).eval().features(torch.randn(2, 3, 64, 64))
    assert 0.01 < float(features.std()) < 100


def test_traces_with_a_dynamic_batch():
    model = small().eval()
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), model(images))
    # A residual stays one addition: nothing is scattered into slices.
    assert not any("scatter" in str(node.target) or "slice" in str(node.target) for node in program.graph.nodes)


def test_a_backbone_loads_without_its_classifier():
    source, target = small(num_classes=5), small(num_classes=3)
    before = target.head[1].weight.clone()
    load_weights(target, source.state_dict(), backbone_only=True)
    assert torch.equal(target.features[0].weight, source.features[0].weight)
    assert torch.equal(target.head[1].weight, before)
    with pytest.raises(models.CheckpointMismatchError, match="5 classes, the model has 3"):
        load_weights(target, source.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints(name, compat_checkpoints):
    enumeration = models.get_model_info(name).checkpoints
    published = {key.partition(".")[2]: facts for key, facts in compat_checkpoints.items() if facts["arch"] == name}
    assert set(enumeration.__members__) == set(published)
    for entry, facts in published.items():
        checkpoint = enumeration[entry].value
        meta, processing = checkpoint.meta, checkpoint.pre_processing
        assert (meta.arch, meta.url, meta.sha256) == (name, facts["url"], facts["sha256"])
        assert (meta.size, meta.num_params) == (facts["size"], facts["num_params"])
        assert checkpoint.evaluation.dataset.value == facts["dataset"]
        assert {metric.value: value for metric, value in checkpoint.evaluation.results.items()} == facts["results"]
        assert meta.categories == (IMAGENET_CATEGORIES if facts["num_classes"] == 1000 else IMAGENETTE_CATEGORIES)
        assert list(processing.input_shape) == facts["input_shape"]
        assert (list(processing.mean), list(processing.std)) == (facts["mean"], facts["std"])
        assert processing.interpolation is InterpolationMode(facts["interpolation"])


def test_imagenet_categories():
    assert len(set(IMAGENET_CATEGORIES)) == 1000
    assert (IMAGENET_CATEGORIES[0], IMAGENET_CATEGORIES[999]) == ("tench", "toilet tissue")


def test_a_checkpoint_needs_its_number_of_classes():
    with pytest.raises(ValueError, match=r"num_classes=1000, not 10: .*backbone alone"):
        models.rexnet1_0x(pretrained=True, num_classes=10)
    with pytest.raises(ValueError, match=r"is for rexnet1_0x, not for rexnet1_3x"):
        models.rexnet1_3x(checkpoint=models.ReXNet1_0x_Checkpoint.DEFAULT.value)
