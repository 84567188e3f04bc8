"""The U-Net family: sizes, options, bad input, training, encoders. Answers are in test_compat.py."""

import copy
from functools import partial
from urllib.error import URLError

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as nnf
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from export.gate import tensorrt10_problems
from export.trace import trace
from holocron import models
from holocron.models import build_model
from holocron.models.segmentation.blocks import Layers, UBlock, UpPath, crop_to_smallest

STRIDES = {
    "unet": 16,
    "unet2": 8,
    "unet_tvvgg11": 16,
    "unet_tvresnet34": 32,
    "unet_rexnet13": 32,
    "unetp": 16,
    "unetpp": 16,
    "unet3p": 16,
}
BUILDERS = list(STRIDES)
PLAIN = {"unet": models.UNet, "unetp": models.UNetp, "unetpp": models.UNetpp, "unet3p": models.UNet3p}
IN_CHANNELS = ["unet", "unetp", "unetpp", "unet3p", "unet2", "unet_rexnet13"]
LAYOUT = [8, 16, 32]


def build(name, **kwargs):
    if name in ("unet_tvvgg11", "unet_tvresnet34", "unet_rexnet13"):
        kwargs = {"pretrained_backbone": False, **kwargs}
    return build_model(name, **kwargs)


def small_encoder(in_channels=3, stride=1):
    """Features at full (or half), a half and a quarter of that resolution."""
    layers = nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(),
    )
    return IntermediateLayerGetter(layers, {"1": "fine", "4": "middle", "6": "coarse"})


def small(name, **kwargs):
    """A network of each class that runs in milliseconds."""
    if name == "dynamic":
        return models.DynamicUNet(small_encoder(), **{"input_shape": (3, 64, 64), **kwargs})
    return PLAIN[name](LAYOUT, **kwargs)


SMALL = [*PLAIN, "dynamic"]


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_are_registered(name):
    info = models.get_model_info(name)
    assert info.task == "segmentation"
    assert info.input_size == (256, 256)
    assert info.default_checkpoint is None
    assert name in models.list_models("segmentation")
    assert getattr(models.segmentation, name) is getattr(models, name) is info.builder


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_score_every_pixel(name):
    model = build(name, num_classes=4)
    assert model.training
    assert model.stride == model.min_size == STRIDES[name]
    with torch.inference_mode():
        assert model.eval()(torch.randn(2, 3, 64, 32)).shape == (2, 4, 64, 32)


@pytest.mark.parametrize("name", IN_CHANNELS)
def test_in_channels(name):
    model = build(name, in_channels=2).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 2, 32, 32)).shape[-2:] == (32, 32)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (40, 23), (33, 8)])
def test_any_size_is_padded_to_the_stride_and_cropped(name, size):
    model = small(name, num_classes=5).eval()
    images = torch.randn(2, 3, *size)
    below, right = -size[0] % model.stride, -size[1] % model.stride
    with torch.inference_mode():
        logits = model(images)
        extended = model(nnf.pad(images, (0, right, 0, below), mode="replicate"))
    assert logits.shape == (2, 5, *size)
    assert torch.equal(logits, extended[..., : size[0], : size[1]])


@pytest.mark.parametrize("name", SMALL)
def test_too_small_images(name):
    model = small(name).eval()
    least = model.min_size
    with torch.inference_mode():
        assert model(torch.randn(1, 3, least, least)).shape[-2:] == (least, least)
    for height, width in ((least - 1, 64), (64, least - 1), (1, 1)):
        with pytest.raises(ValueError, match=rf"at least {least}×{least} pixels, got {height}×{width}"):
            model(torch.randn(1, 3, height, width))


@pytest.mark.parametrize("name", SMALL)
def test_needs_a_batch_of_images(name):
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(3, 32, 32\)"):
        small(name)(torch.randn(3, 32, 32))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": []}, r"layout=\[\]"),
        ({"layout": [8, 0, 4]}, r"layout .*\[8, 0, 4\]"),
        ({"layout": [8, -4]}, r"layout .*\[8, -4\]"),
        ({"num_classes": 0}, "num_classes .* got 0"),
        ({"in_channels": -1}, "in_channels .* got -1"),
    ],
)
def test_impossible_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)
    with pytest.raises(ValueError, match=message):
        PLAIN[name](**{"layout": LAYOUT, **arguments})


def test_full_scale_aggregation_needs_two_levels():
    with pytest.raises(ValueError, match=r"at least 2 level\(s\), got layout=\[8\]"):
        models.UNet3p([8])


@pytest.mark.parametrize("name", ["unet2", "unet_rexnet13", "unet_tvvgg11", "unet_tvresnet34"])
def test_impossible_arguments_of_dynamic_builders(name):
    with pytest.raises(ValueError, match=r"num_classes .* got 0"):
        build(name, num_classes=0)
    if name in IN_CHANNELS:
        with pytest.raises(ValueError, match=r"in_channels .* got 0"):
            build(name, in_channels=0)


@pytest.mark.parametrize("name", BUILDERS)
def test_no_weights_are_published(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ValueError, match=f"no weights are published for {name}.*pretrained=False"):
        build_model(name, pretrained=True)


@pytest.mark.parametrize("name", ["unet_tvvgg11", "unet_tvresnet34", "unet_rexnet13"])
def test_encoder_weights_without_a_network(name, monkeypatch):
    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", fail)
    with pytest.raises(models.DownloadError, match=f"{name} .*no route to host.*pretrained_backbone=False"):
        build_model(name, progress=False)


def test_encoder_weights_of_torchvision_are_kept(monkeypatch):
    published = {
        key: torch.full_like(value, 0.125) for key, value in torchvision.models.resnet34().state_dict().items()
    }
    asked = []

    def load(url, *_, progress, **__):
        asked.append((url.rpartition("/")[2].partition("-")[0], progress))
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    model = models.unet_tvresnet34(progress=False)
    assert asked == [("resnet34", False)]
    weights = model.encoder.state_dict()
    assert weights
    assert all(torch.equal(value, published[key]) for key, value in weights.items())
    assert model.training
    assert model.encoder.bn1.training


def test_encoder_weights_of_rexnet_are_kept(monkeypatch):
    def load(model, checkpoint, progress):
        assert (checkpoint.meta.arch, progress) == ("rexnet1_3x", False)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.125)

    monkeypatch.setattr("holocron.models.loading.load_checkpoint", load)
    model = models.unet_rexnet13(progress=False)
    assert all((parameter == 0.125).all() for parameter in model.encoder.parameters())
    with pytest.raises(ValueError, match=r"3 channels, not for in_channels=1.*pretrained_backbone=False"):
        models.unet_rexnet13(in_channels=1)


@pytest.mark.parametrize("bilinear", [True, False])
def test_valid_convolutions_crop_as_in_the_paper(bilinear):
    # The paper's 572 × 572 tile keeps 388 pixels, and here 452: the bridge, 28 pixels wide there, pads instead.
    model = models.UNet([2, 4, 8, 16], same_padding=False, bilinear_upsampling=bilinear).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 572, 572)).shape == (1, 10, 452, 452)


@pytest.mark.parametrize("name", ["unet", "dynamic"])
def test_least_input_of_valid_convolutions_leaves_one_pixel(name):
    model = small(name, same_padding=False).eval()
    with torch.inference_mode():
        assert min(model(torch.randn(1, 3, model.min_size, model.min_size + 3)).shape[-2:]) >= 1
    with pytest.raises(ValueError, match=f"at least {model.min_size}"):
        model(torch.randn(1, 3, model.min_size - 1, 256))
    # Below that the network really is at its end, except where the stride rounds the same feature size.
    model.min_size -= model.stride
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 3, model.min_size, model.min_size))


def test_valid_convolutions_see_the_middle_of_the_image():
    # What is cropped from a map twice as large is the same pixels as in a network that sees only the middle.
    torch.manual_seed(3)
    model = small("unet", same_padding=False).eval()
    images = torch.randn(1, 3, 140, 140)
    with torch.inference_mode():
        logits = model(images)
        margin = (140 - logits.shape[-1]) // 2
        changed = images.clone()
        changed[..., 70, 70] += 10
        difference = (model(changed) - logits).abs().sum(dim=(0, 1))
    centre = (difference.argmax() // difference.shape[1], difference.argmax() % difference.shape[1])
    assert [abs(int(c) + margin - 70) <= 4 for c in centre] == [True, True]


def test_learned_upsampling():
    model = models.UNet(LAYOUT, bilinear_upsampling=False)
    learned = [layer for layer in model.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in learned] == [(32, 32), (32, 16), (16, 8)]
    assert model(torch.randn(1, 3, 24, 32)).shape == (1, 10, 24, 32)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("layout", [[5, 7, 6], [3, 1], [4, 4, 4, 4]])
def test_layouts_that_do_not_double(name, layout):
    model = PLAIN[name](layout).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10, 32, 32)


@pytest.mark.parametrize("name", SMALL)
def test_kinds_of_layers(name):
    class Convolution(nn.Conv2d):
        pass

    model = small(
        name,
        act_layer=nn.GELU(),
        norm_layer=partial(nn.GroupNorm, 1),
        drop_layer=nn.Dropout2d,
        conv_layer=Convolution,
    )
    kinds = {type(layer) for layer in model.modules() if not isinstance(layer, IntermediateLayerGetter)}
    assert {nn.GELU, nn.GroupNorm, nn.Dropout2d, Convolution} <= kinds
    assert nn.BatchNorm2d not in kinds
    if name != "dynamic":
        assert nn.ReLU not in kinds
        assert [layer for layer in model.modules() if type(layer) is nn.Conv2d] == [model.classifier]
    assert all(layer.p == 0.1 for layer in model.modules() if isinstance(layer, nn.Dropout2d))
    assert model(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_final_upsampling():
    images = torch.randn(1, 3, 31, 36)
    for final_upsampling, size in ((True, (31, 36)), (False, (16, 18))):
        model = models.DynamicUNet(small_encoder(stride=2), final_upsampling=final_upsampling).eval()
        assert model.stride == 8
        with torch.inference_mode():
            assert model(images).shape == (1, 10, *size)


def test_input_shape_is_what_the_encoder_takes():
    model = models.DynamicUNet(small_encoder(in_channels=5), input_shape=(5, 9, 200)).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 5, 9, 200)).shape == (1, 10, 9, 200)
    with pytest.raises(ValueError, match=r"does not take inputs of input_shape=\(3, 256, 256\)"):
        models.DynamicUNet(small_encoder(in_channels=5))
    for shape in ((3, 0, 64), (3, 64), (3, 64, -1)):
        with pytest.raises(ValueError, match="input_shape to be"):
            models.DynamicUNet(small_encoder(), input_shape=shape)


def test_encoders_of_other_strides():
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 4, 4), nn.Conv2d(8, 8, 1))
    model = models.DynamicUNet(IntermediateLayerGetter(layers, {"0": "a", "1": "b", "2": "c"})).eval()
    assert model.stride == 4
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 20, 18)).shape == (1, 10, 20, 18)


@pytest.mark.parametrize(
    "encoder",
    [
        IntermediateLayerGetter(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"1": "unpadded"}),
        IntermediateLayerGetter(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), {"0": "a", "1": "flat"}),
        IntermediateLayerGetter(nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), {"0": "a", "1": "finer"}),
        IntermediateLayerGetter(nn.Sequential(nn.MaxPool2d((2, 1))), {"0": "squeezed"}),
    ],
)
def test_encoders_that_do_not_fit(encoder):
    with pytest.raises(ValueError, match=f"{list(encoder.return_layers.values())[-1]!r} does not fit"):
        models.DynamicUNet(encoder, input_shape=(3, 64, 64))


def test_encoder_without_features():
    with pytest.raises(ValueError, match="no features"):
        models.DynamicUNet(IntermediateLayerGetter(nn.Sequential(nn.ReLU()), {}))


def test_encoder_is_left_as_it_was():
    backbone = torchvision.models.resnet18()
    backbone.layer1.eval()
    encoder = IntermediateLayerGetter(backbone, {"relu": "0", "layer1": "1", "layer2": "2"})
    modes = [module.training for module in encoder.modules()]
    weights = copy.deepcopy(encoder.state_dict())
    models.DynamicUNet(encoder, input_shape=(3, 64, 64))
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, weights[key]) for key, value in encoder.state_dict().items())


def test_deepest_block_keeps_one_pixel_of_four():
    block = UBlock(3, 3, 5, Layers(nn.Identity()), scale=1).eval()
    x = torch.randn(2, 3, 4, 6)
    convolution = block.upsample[0]
    with torch.inference_mode():
        assert torch.equal(block.upsample(x), convolution(x)[:, ::4])


def test_up_path_joins_finer_features_first():
    path = UpPath(2, 3, 4, Layers())
    seen = []
    path.block[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    finer, coarse = torch.randn(1, 3, 4, 4), torch.full((1, 2, 2, 2), 7.0)
    path([finer[:, :1], finer[:, 1:]], coarse)
    torch.testing.assert_close(seen[0], torch.cat([finer, torch.full((1, 2, 4, 4), 7.0)], dim=1))


def test_crop_to_smallest_keeps_the_middle():
    large = torch.arange(49.0).reshape(1, 1, 7, 7)
    cropped, kept = crop_to_smallest([large, torch.zeros(1, 2, 3, 5)])
    assert torch.equal(cropped, large[:, :, 2:5, 1:6])
    assert kept.shape == (1, 2, 3, 5)


def stripes_and_squares(num_images, size):
    """Images whose classes a network can only tell from colour and place together."""
    generator = torch.Generator().manual_seed(5)
    images = 0.1 * torch.randn(num_images, 3, size, size, generator=generator)
    target = torch.zeros(num_images, size, size, dtype=torch.long)
    for index in range(num_images):
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        target[index, top : top + size // 2, left : left + size // 2] = 1
        target[index, :, 3 * index : 3 * index + 4] = 2
    images[:, 0] += (target == 1).float()
    images[:, 1] += (target == 2).float()
    return images, target


def overfit(model, size, lr, steps=80):
    """Best pixel accuracy within some steps of training, on the batch that is trained on."""
    images, target = stripes_and_squares(2, size)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr)
    best = 0.0
    for step in range(steps):
        logits = model(images)
        best = max(best, float((logits.argmax(dim=1) == target).float().mean()))
        if best > 0.95:
            break
        optimizer.zero_grad()
        nnf.cross_entropy(logits, target).backward()
        if step == 0:
            gradients = [parameter.grad for parameter in model.parameters()]
            assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        optimizer.step()
    return best


@pytest.mark.parametrize("name", SMALL)
def test_overfits_one_batch(name):
    assert overfit(small(name, num_classes=3), 32, lr=3e-3) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_builder_overfits_one_batch(name):
    # Where normalization follows every convolution of the encoder, larger steps are stable and needed.
    lr = 2e-3 if name == "unet_rexnet13" else 3e-4
    assert overfit(build(name, num_classes=3), 64, lr) > 0.95


# One traced network takes seconds, so the default run has one of each kind of upsampling and of padding.
TRACED = {("unet", (32, 48)), ("dynamic", (37, 50))}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=() if (name, size) in TRACED else pytest.mark.slow)
        for name in (*SMALL, "learned", "valid")
        for size in ((32, 48), (37, 50))
    ],
)
def test_trace(name, size):
    options = {"learned": {"bilinear_upsampling": False}, "valid": {"same_padding": False}}.get(name)
    if name == "valid":
        size = (size[0] + 48, size[1] + 48)
    model = (small(name) if options is None else models.UNet(LAYOUT, **options)).eval()
    graph = trace(model, size)
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"Shape", "If", "Loop", "Gather", "Range", "Reshape"}
    assert tensorrt10_problems(graph) == []
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        with torch.inference_mode():
            expected = model(images).numpy()
        (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert answer.shape == expected.shape
        assert np.linalg.norm(answer - expected) <= 1e-4 * np.linalg.norm(expected)
