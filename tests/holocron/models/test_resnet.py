"""The residual families: against torchvision and formulas, their options, training, tracing, bad input."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from holocron import models
from holocron.models import ResNet, build_model, load_weights
from holocron.models.classification.res2net import Res2NetBottleneck, ScaleConv2d
from holocron.models.classification.residual import BasicBlock, Bottleneck, ConvLayers
from holocron.models.classification.sknet import SKConv2d
from holocron.models.classification.tridentnet import TridentConv2d
from holocron.nn import GlobalAvgPool2d, NormConv2d, PyConv2d

FAMILIES = (
    "resnet18", "resnet50d", "resnext50_32x4d", "res2net50_26w_4s", "tridentnet50", "pyconv_resnet50",
    "pyconvhg_resnet50", "sknet50",
)  # fmt: skip


def selective(channels, stride, groups, layers):
    return [SKConv2d(channels, stride, groups, layers)]


def tiny(block=Bottleneck, **kwargs):
    return ResNet(block, (1, 2), (16, 32), **kwargs)


TINY = {
    "basic": tiny,
    "bottleneck d": partial(tiny, deep_stem=True, avg_downsample=True),
    "grouped": partial(tiny, groups=4, width_per_group=16),
    "res2net": partial(tiny, Res2NetBottleneck, width_per_group=16),
    "trident": partial(ResNet, partial(Bottleneck, conv_layer=TridentConv2d), (1, 2), (24, 48), num_branches=3),
    "pyramid": partial(models.pyconv_resnet50, widths=(64, 32, 16, 16)),
    "selective": partial(tiny, partial(Bottleneck, middle=selective)),
}


def randomize_batch_norm(model):
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.2, 0.6)
            nn.init.normal_(layer.bias, 0, 0.1)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"])
def test_equals_torchvision(name):
    ours, theirs = build_model(name).eval(), getattr(torchvision.models, name)(num_classes=10).eval()
    randomize_batch_norm(theirs)
    # The same layers in the same order, under other names.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "resnext101_32x8d"])
def test_layout_of_the_deep_ones_is_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = build_model(name), getattr(torchvision.models, name)(num_classes=10)
    shapes = [[tuple(value.shape) for value in model.state_dict().values()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_sknet152_has_the_depth_of_the_paper():
    with torch.device("meta"):
        stages = models.sknet152().features[-4:]
    assert [len(stage) for stage in stages] == [3, 8, 36, 3]


@pytest.mark.parametrize("name", TINY)
def test_one_step_reaches_every_parameter(name):
    model = TINY[name](num_classes=3, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    logits = model(torch.randn(2, 1, 48, 48))
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    # Elsewhere a gradient may be zero by chance: a channel behind a ReLU can be off for two images.
    changed = [bool((old != new).any()) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.95 * len(changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_features_fit_float16_and_any_size_works(name):
    model = build_model(name).eval()
    largest = []
    for layer in model.modules():
        layer.register_forward_hook(lambda *call: largest.append(float(call[-1].abs().max())))
    with torch.inference_mode():
        assert model.features(torch.randn(1, 3, 32, 32)).std() > 0.01
        for size in ((1, 1), (17, 25)):
            assert model(torch.randn(1, 3, *size)).shape == (1, 10)
    assert max(largest) < 1000


@pytest.mark.parametrize("name", TINY)
def test_traces_with_a_dynamic_batch(name):
    model = TINY[name]().eval()
    program = torch.export.export(
        model, (torch.randn(2, 3, 33, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    for batch in (1, 5):
        images = torch.randn(batch, 3, 33, 32)
        with torch.inference_mode():
            torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("name", ["resnet18", "sknet50"])
def test_backbone_alone_loads_for_another_number_of_classes(name):
    source, target = build_model(name).eval(), build_model(name, num_classes=4).eval()
    with pytest.raises(models.CheckpointMismatchError, match=r"10 classes, the model has 4.*backbone_only=True"):
        load_weights(target, source.state_dict())
    head = target.head.weight.clone()
    load_weights(target, source.state_dict(), backbone_only=True)
    assert torch.equal(target.head.weight, head)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(target.features(images), source.features(images))


def test_residuals_start_small_or_at_zero():
    images = torch.randn(2, 64, 9, 9).relu()
    for zero, expected in ((True, 0.0), (False, 0.125**0.5)):
        block = tiny(zero_init_residual=zero).features[4][0]
        assert torch.equal(block.conv[-1].weight, torch.full((64,), expected))
        assert torch.equal(block.conv[1].weight, torch.ones(16))
        assert torch.equal(block(images), images) is zero
    # Without parameters of its own in the normalization, the convolution before it starts at zero.
    plain = tiny(zero_init_residual=True, norm_layer=nn.Identity).features[4][0]
    assert torch.equal(plain(images), images)


def test_options_of_the_stem_and_the_projection():
    images = torch.randn(1, 3, 64, 64)
    assert tiny().features(images).shape == (1, 128, 8, 8)
    assert tiny(stem_pool=False).features(images).shape == (1, 128, 16, 16)
    deep = tiny(deep_stem=True, avg_downsample=True)
    assert [layer.kernel_size for layer in deep.features if isinstance(layer, nn.Conv2d)] == [(3, 3)] * 3
    assert isinstance(deep.features[-1][0].downsample[0], nn.AvgPool2d)
    # A projection without stride has nothing to average; a block that keeps its shape has no projection.
    assert isinstance(ResNet(Bottleneck, (2,), (8,), avg_downsample=True).features[-1][0].downsample[0], nn.Identity)
    assert deep.features[-1][1].downsample is None
    for height in (7, 8, 9):
        assert deep.features[-1][0](torch.randn(1, 64, height, 8)).shape == (1, 128, (height + 1) // 2, 4)


def test_averaging_projection_uses_every_pixel_and_no_padding():
    projection = tiny(avg_downsample=True).eval().features[-1][0].downsample
    projection[1].weight.data.fill_(1 / 64)
    image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(1, 64, 3, 3)
    expected = torch.tensor([[2.0, 3.5], [6.5, 8.0]])
    torch.testing.assert_close(projection[:2](image)[0, 0], expected)


def test_layers_of_the_users_choice():
    model = tiny(
        act_layer=nn.PReLU(), norm_layer=partial(nn.GroupNorm, 4), drop_layer=nn.Dropout2d, conv_layer=NormConv2d
    )
    kinds = {type(layer) for layer in model.modules()}
    assert kinds >= {nn.PReLU, nn.GroupNorm, nn.Dropout2d, NormConv2d}
    assert not kinds & {nn.ReLU, nn.BatchNorm2d, nn.Conv2d}
    activations = [layer for layer in model.modules() if isinstance(layer, nn.PReLU)]
    # Each place has parameters of its own: the stem, and three in each of three blocks.
    assert len(activations) == 10
    assert len({layer.weight.data_ptr() for layer in activations}) == 10
    assert all(convolution.bias is None for convolution in model.modules() if isinstance(convolution, NormConv2d))
    # Group normalization trains on a single image, at any size.
    assert model(torch.randn(1, 3, 8, 8)).isfinite().all()


def test_options_reach_the_network_from_a_builder():
    wide = models.resnet50(width_per_group=128, num_classes=2)
    assert wide.features[4][0].conv[0].out_channels == 128
    assert models.resnext50_32x4d(groups=16).features[4][0].conv[3].groups == 16


def test_trident_branches_share_weights_and_differ_in_dilation():
    layer = TridentConv2d(6, 12, 3, stride=2, padding=1, bias=False)
    assert layer.weight.shape == (4, 2, 3, 3)
    image = torch.randn(2, 6, 11, 13)
    expected = [
        nn.functional.conv2d(image[:, 2 * i : 2 * i + 2], layer.weight, stride=2, padding=i + 1, dilation=i + 1)
        for i in range(3)
    ]
    torch.testing.assert_close(layer(image), torch.cat(expected, dim=1))
    # A 1 × 1 convolution is the same for each branch, and the projection of a block mixes them.
    pointwise = TridentConv2d(6, 3, 1)
    same = image[:, :2].repeat(1, 3, 1, 1)
    torch.testing.assert_close(pointwise(same)[:, :1], pointwise(same)[:, 2:])
    first = TINY["trident"]().features[-1][0]
    assert type(first.downsample[0]) is nn.Conv2d
    assert first.downsample[0].in_channels == 96


def test_trident_branches_start_from_the_same_features():
    model = models.tridentnet50().eval()
    with torch.inference_mode():
        stem = model.features[:5](torch.randn(1, 3, 32, 32))
    assert stem.shape[1] == 192
    assert torch.equal(stem[:, :64], stem[:, 64:128])
    assert torch.equal(stem[:, :64], stem[:, 128:])


@pytest.mark.parametrize("hierarchical", [True, False])
def test_scales_see_what_the_scale_before_saw(hierarchical):
    layer = ScaleConv2d(8, 1, 1, ConvLayers(), scale=4, hierarchical=hierarchical).eval()
    image = torch.randn(1, 8, 6, 6, requires_grad=True)
    out = layer(image)
    for part in range(4):
        (gradient,) = torch.autograd.grad(out[:, 2 * part : 2 * part + 2].sum(), image, retain_graph=True)
        seen = gradient.unflatten(1, (4, 2)).abs().sum(dim=(0, 2, 3, 4)) > 0
        # The last part is passed on as it is, or averaged.
        expected = [i <= part if hierarchical and part < 3 else i == part for i in range(4)]
        assert seen.tolist() == expected
    last = image[:, 6:] if hierarchical else nn.functional.avg_pool2d(image[:, 6:], 3, stride=1, padding=1)
    assert torch.equal(out[:, 6:], last)


def test_first_block_of_a_stage_has_no_hierarchy():
    stages = models.res2net50_26w_4s().features[-4:]
    assert all(stage[0].conv[3].pool is not None for stage in stages)
    assert all(block.conv[3].pool is None for stage in stages for block in stage[1:])
    assert Res2NetBottleneck(64, 64, groups=2).conv[3].conv[0][0].groups == 2


def test_selective_kernels_average_their_paths():
    layer = SKConv2d(8, 2, 1, ConvLayers(), num_paths=3).eval()
    randomize_batch_norm(layer)
    image = torch.randn(2, 8, 9, 9)
    with torch.inference_mode():
        paths = torch.stack([conv(image) for conv in layer.path_convs])
        scores = layer.sa[:-1](paths.sum(dim=0)).reshape(2, 3, 8)
        weights = torch.exp(1 / (1 + torch.exp(-scores)))
        weights /= weights.sum(dim=1, keepdim=True)
        expected = torch.einsum("pnchw,npc->nchw", paths, weights)
        torch.testing.assert_close(layer(image), expected)
    assert [conv[0].dilation for conv in layer.path_convs] == [(1, 1), (2, 2), (3, 3)]
    assert layer.sa[1].out_channels == 32
    assert isinstance(layer.sa[0], GlobalAvgPool2d)


def test_selective_kernels_say_that_one_image_is_too_few():
    model = TINY["selective"]()
    with pytest.raises(ValueError, match=r"at least 2 images, got 1.*drop_last"):
        model(torch.randn(1, 3, 64, 64))
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    grouped = tiny(partial(Bottleneck, middle=selective), norm_layer=partial(nn.GroupNorm, 4))
    assert grouped(torch.randn(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("pyconv_resnet50", [[1, 4, 8, 16], [1, 4, 8], [1, 4], [1]]),
        ("pyconvhg_resnet50", [[32, 32, 32, 32], [32, 64, 64], [32, 64], [32]]),
    ],
)
def test_pyramids_thin_out_from_stage_to_stage(name, groups):
    model = build_model(name).eval()
    pyramids = [[layer for layer in stage.modules() if isinstance(layer, PyConv2d)] for stage in model.features[-4:]]
    assert [len(stage) for stage in pyramids] == [3, 4, 6, 3]
    for stage, expected in zip(pyramids, groups, strict=True):
        for pyramid in stage:
            assert [level.groups for level in pyramid] == expected
            assert [level.kernel_size[0] for level in pyramid] == [3, 5, 7, 9][: len(expected)]
    with torch.inference_mode():
        assert model.features(torch.randn(1, 3, 64, 64)).shape == (1, 2048, 4, 4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
def test_builders_refuse_impossible_sizes(name, argument):
    with pytest.raises(ValueError, match=f"{argument} to be at least 1, got 0"):
        build_model(name, **{argument: 0})


@pytest.mark.parametrize("name", ["resnet152", "tridentnet50", "pyconv_resnet50", "sknet101"])
def test_builders_say_that_nothing_is_published(name):
    with pytest.raises(ValueError, match=f"no weights are published for {name}"):
        build_model(name, pretrained=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(BasicBlock, (), ()), "0 widths for 0 stages"),
        (lambda: ResNet(BasicBlock, (1, 1), (8,)), "1 widths for 2 stages"),
        (lambda: ResNet(BasicBlock, (1, 0), (8, 8)), "num_blocks to be at least 1, got 0"),
        (lambda: ResNet(BasicBlock, (1,), (-8,)), "widths to be at least 1, got -8"),
        (lambda: ResNet([BasicBlock], (1, 1), (8, 8)), "one block for each of 2 stages, got 1"),
        (lambda: ResNet(BasicBlock, (1,), (8,), num_branches=0), "num_branches to be at least 1, got 0"),
        (lambda: tiny(BasicBlock, groups=2), "groups=1 and width_per_group=64, got 2 and 64"),
        (lambda: tiny(groups=0), "groups=0 of width_per_group=64 leave no channels"),
        (lambda: tiny(groups=32, width_per_group=1), "leave no channels in a block of width 16"),
        (lambda: models.pyconv_resnet50(groups=2), "leave groups=2 out"),
        (lambda: ScaleConv2d(10, 1, 1, ConvLayers(), scale=4, hierarchical=True), "divide 10 channels, got 4"),
        (lambda: ScaleConv2d(12, 1, 2, ConvLayers(), scale=4, hierarchical=True), "groups=2 do not divide the 3"),
        (lambda: ScaleConv2d(8, 1, 1, ConvLayers(), scale=1, hierarchical=True), "2 or more.*got 1"),
        (lambda: ScaleConv2d(8, 2, 1, ConvLayers(), scale=4, hierarchical=True), "need stride 1, got 2"),
        (lambda: SKConv2d(8, 1, 1, ConvLayers(), num_paths=1), "num_paths to be at least 2, got 1"),
        (lambda: TridentConv2d(8, 6, 1), "3 branches cannot share 8 and 6 channels"),
    ],
)
def test_impossible_layouts(make, message):
    with pytest.raises(ValueError, match=message):
        make()
