"""The DarkNet families: features for detectors, training, bad input."""

import pytest
import torch
from torch import nn

from holocron.models import DarknetV1, DarknetV2, DarknetV3, DarknetV4, build_model
from holocron.models.classification.darknet import DarknetBodyV1, conv_chain
from holocron.models.classification.darknetv2 import DarknetBodyV2
from holocron.models.classification.darknetv3 import DarknetBlock, DarknetBodyV3
from holocron.models.classification.darknetv4 import CSPStage, DarknetBodyV4
from holocron.nn import DropBlock2d

NAMES = ["darknet24", "darknet19", "darknet53", "cspdarknet53", "cspdarknet53_mish"]
SMALL = {
    "v1": (DarknetV1, [[12], [8, 16, 16]]),
    "v2": (DarknetV2, [(12, 0), (16, 1)]),
    "v3": (DarknetV3, [(12, 1), (16, 2)]),
    "v4": (DarknetV4, [(12, 1), (16, 2)]),
}


def small(family, **kwargs):
    factory, layout = SMALL[family]
    return factory(layout, **{"num_classes": 3, "stem_channels": 8, **kwargs})


@pytest.mark.parametrize("family", SMALL)
def test_training_reaches_every_parameter(family):
    model = small(family, in_channels=1)
    nn.functional.cross_entropy(model(torch.randn(4, 1, 24, 24)), torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", SMALL)
def test_one_batch_is_learned_by_heart(family):
    model = small(family)
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((model(images).argmax(dim=1) == labels).float().mean()) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_builders_learn_one_batch_by_heart(name):
    model = build_model(name, num_classes=2)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4 if name == "darknet24" else 1e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    # What was learned, without the part of it that is dropped at random.
    for layer in model.modules():
        if isinstance(layer, DropBlock2d):
            layer.eval()
    assert float((model(images).argmax(dim=1) == labels).float().mean()) >= 0.95


@pytest.mark.parametrize("name", NAMES)
def test_untrained_features_fit_float16(name):
    model = build_model(name).eval()
    with torch.inference_mode():
        features = model.features(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 1024, 2, 2)
    assert 0.01 < float(features.std()) < 100


@pytest.mark.parametrize("family", SMALL)
def test_traces_with_a_dynamic_batch(family):
    model = small(family).eval()
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["v3", "v4"])
@pytest.mark.parametrize("size", [(1, 1), (17, 33)])
def test_strided_convolutions_take_any_size(family, size):
    assert small(family).eval()(torch.randn(1, 3, *size)).shape == (1, 3)


@pytest.mark.parametrize(("family", "smallest"), [("v1", 7), ("v2", 4)])
def test_images_that_cannot_be_pooled(family, smallest):
    model = small(family).eval()
    assert model(torch.randn(1, 3, smallest, smallest + 10)).shape == (1, 3)
    with pytest.raises(
        ValueError, match=f"{smallest} x {smallest} pixels or more, got {smallest + 10} x {smallest - 1}"
    ):
        model(torch.randn(1, 3, smallest + 10, smallest - 1))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(3, 16, 16\)"):
        model(torch.randn(3, 16, 16))


def test_smallest_input_of_the_published_layouts():
    for name, smallest in (("darknet24", 31), ("darknet19", 32)):
        with torch.device("meta"):
            model = build_model(name).eval()
            assert model.features.smallest_input == smallest
            assert model(torch.empty(1, 3, smallest, smallest)).shape == (1, 10)


def test_kernels_of_a_chain():
    layers = conv_chain(lambda given, made, **kwargs: [nn.Conv2d(given, made, **kwargs)], [4, 8, 8, 2, 3])
    assert [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers] == [
        (4, 8, 3),
        (8, 8, 1),
        (8, 2, 1),
        (2, 3, 3),
    ]


def test_features_for_yolov1():
    body = DarknetBodyV1([[12], [8, 16]], 3, 8, nn.ReLU(), nn.BatchNorm2d)
    assert body(torch.randn(2, 3, 32, 48)).shape == (2, 16, 4, 6)
    assert all(layer.bias is None for layer in body.modules() if isinstance(layer, nn.Conv2d))
    assert not any(isinstance(layer, nn.LeakyReLU) for layer in body.modules())


def test_features_for_yolov2():
    plain, both = (
        DarknetBodyV2([(8, 0), (12, 1), (16, 1)]).eval(),
        DarknetBodyV2([(8, 0), (12, 1), (16, 1)], passthrough=True),
    )
    both.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 48)
    features, finer = both.eval()(images)
    assert features.shape == (2, 16, 4, 6)
    assert finer.shape == (2, 12, 8, 12)
    assert features.equal(plain(images))
    assert features.equal(both.layers[-1](finer))


def test_features_for_yolov4():
    layout = [(8, 1), (12, 1), (16, 2)]
    one, all_of_them = DarknetBodyV4(layout).eval(), DarknetBodyV4(layout, num_features=3).eval()
    all_of_them.load_state_dict(one.state_dict())
    images = torch.randn(2, 3, 32, 48)
    features = all_of_them(images)
    assert [tuple(map_.shape) for map_ in features] == [(2, 8, 16, 24), (2, 12, 8, 12), (2, 16, 4, 6)]
    assert features[-1].equal(one(images))


def test_a_block_adds_to_its_input():
    block = DarknetBlock(6, 3, lambda given, made, **kwargs: [nn.Conv2d(given, made, bias=False, **kwargs)])
    x = torch.randn(2, 6, 5, 5)
    expected = x + nn.functional.conv2d(nn.functional.conv2d(x, block.conv[0].weight), block.conv[1].weight, padding=1)
    assert torch.equal(block(x), expected)
    nn.init.zeros_(block.conv[1].weight)
    assert block(x).equal(x)


@pytest.mark.parametrize(("num_blocks", "half"), [(1, 8), (2, 4)])
def test_half_of_the_channels_go_past_the_blocks(num_blocks, half):
    stage = CSPStage(4, 8, num_blocks, lambda given, made, **kwargs: [nn.Conv2d(given, made, bias=False, **kwargs)])
    # Nothing comes out of the blocks: what remains is what went past them.
    nn.init.zeros_(stage.main[-1].weight)
    x = torch.randn(2, 4, 7, 9)
    weight = stage.base_layer[1].weight[:half]
    past = nn.functional.conv2d(stage.base_layer[0](x), weight)
    expected = nn.functional.conv2d(past, stage.transition[0].weight[:, :half])
    assert stage(x).shape == (2, 8, 4, 5)
    torch.testing.assert_close(stage(x), expected)


def test_layers_of_the_users_choice():
    class Convolution(nn.Conv2d):
        pass

    for family in SMALL:
        choice = {"act_layer": nn.ReLU(), "norm_layer": nn.InstanceNorm2d, "drop_layer": nn.Dropout2d}
        kinds = {type(layer) for layer in small(family, conv_layer=Convolution, **choice).features.modules()}
        assert {nn.ReLU, nn.InstanceNorm2d, nn.Dropout2d, Convolution} <= kinds
        assert not kinds & {nn.LeakyReLU, nn.BatchNorm2d, nn.Conv2d}


def test_builders_take_layers_too():
    with torch.device("meta"):
        kinds = {type(layer) for layer in build_model("cspdarknet53_mish", act_layer=nn.ReLU()).modules()}
        assert nn.ReLU in kinds
        assert DropBlock2d in kinds
        assert nn.Mish not in kinds


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "stem_channels"])
def test_builders_refuse_impossible_sizes(name, argument):
    with torch.device("meta"), pytest.raises(ValueError, match=f"{argument} to be at least 1, got 0"):
        build_model(name, **{argument: 0})


@pytest.mark.parametrize(
    ("factory", "layout", "match"),
    [
        (DarknetBodyV1, [], "stages to be at least 1, got 0"),
        (DarknetBodyV1, [[8], []], "layout to be at least 1, got none"),
        (DarknetBodyV1, [[8], [8, -1]], "layout to be at least 1, got -1"),
        (DarknetBodyV2, [], "half_widths to be at least 1, got none"),
        (DarknetBodyV2, [(8, 0), (1, 1)], "half_widths to be at least 1, got 0"),
        (DarknetBodyV2, [(8, -1)], "no negative number of pairs"),
        (DarknetBodyV3, [(8, 0)], "num_blocks to be at least 1, got 0"),
        (DarknetBodyV3, [(0, 1)], "half_widths to be at least 1, got 0"),
        (DarknetBodyV4, [(8, 1), (8, 0)], "num_blocks to be at least 1, got 0"),
    ],
)
def test_bad_layouts(factory, layout, match):
    with pytest.raises(ValueError, match=match):
        factory(layout)


def test_features_that_a_body_does_not_have():
    with pytest.raises(ValueError, match="at least 2 stages for passthrough=True"):
        DarknetBodyV2([(8, 1)], passthrough=True)
    with pytest.raises(ValueError, match="at most the 2 stages, got 3"):
        DarknetBodyV4([(8, 1), (8, 1)], num_features=3)
    with pytest.raises(ValueError, match="num_features to be at least 1, got 0"):
        DarknetBodyV4([(8, 1), (8, 1)], num_features=0)


def test_no_weights_are_published_for_darknet24():
    with pytest.raises(ValueError, match="no weights are published for darknet24"):
        build_model("darknet24", pretrained=True)
