"""Weights rounded for the outputs of their layers: on the grid, nearer to the float network, means as they were."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holocron.nn.quantization import QuantizedConv2d, QuantizedLinear, compensate, convert, learned_ranges, prepare_qat
from holocron.nn.quantization.rounding import round_compensating

CASES = [("trt", True), ("trt", False), ("cpu", True), ("cpu", False)]


def images(n=16, size=12, seed=0):
    """Smooth images: neighbouring pixels, and so the inputs of a layer, depend on each other."""
    noise = torch.randn(n, 3, size + 4, size + 4, generator=torch.Generator().manual_seed(seed))
    return 5 * F.avg_pool2d(noise, 5, 1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.conv = nn.Conv2d(16, 16, 3, padding="same", dilation=2)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        x = self.depthwise(self.stem(x).relu()).relu()
        x = self.pointwise(x).relu() + x
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():  # a few large weights, which make the one scale of a tensor coarse
        for layer in (model.stem, model.depthwise, model.pointwise, model.conv, model.head):
            layer.weight.view(-1)[::29] *= 12
    return model


def layers(model):
    kinds = (QuantizedConv2d, QuantizedLinear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_the_network_gets_nearer_to_the_float_one(net, scheme, per_channel):
    def error(activations):
        for quantizer in qat.activation_quantizers:
            quantizer.enabled = activations
        x = images(64, seed=1)
        with torch.no_grad():
            return ((qat(x) - net(x)).norm() / net(x).norm()).item()

    qat = prepare_qat(net, images(64), scheme, per_channel)
    whole, weights = error(True), error(False)
    for quantizer in qat.activation_quantizers:
        quantizer.enabled = True
    compensate(qat, images(64))
    assert error(True) < whole
    assert error(False) < 0.7 * weights


@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_weights_lie_on_their_grid_and_ranges_stay(net, scheme, per_channel):
    qat = prepare_qat(net, images(), scheme, per_channel).train()
    ranges = learned_ranges(qat)
    compensate(qat, images())
    assert qat.training
    assert learned_ranges(qat)["activations"] == ranges["activations"]
    for layer in layers(qat).values():
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=1e-6, atol=0)
    if scheme == "trt":  # `cpu` may widen scales for larger biases
        assert learned_ranges(qat)["weights"] == ranges["weights"]


def test_the_mean_of_every_layer_is_that_of_the_float_network(net):
    qat = prepare_qat(net, images(), per_channel=False)
    plain = convert(qat)
    compensate(qat, images())
    means = [{}, {}]
    for model, noted in zip((plain, qat), means, strict=True):
        for name in layers(qat):
            model.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name, noted=noted: noted.update(
                    {name: out.transpose(0, 1).flatten(1).mean(1)}
                )
            )
        with torch.no_grad():
            model(images())
    for name in ("stem", "depthwise", "conv", "head"):
        torch.testing.assert_close(means[1][name], means[0][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(3, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=3),
        nn.Conv2d(3, 4, 3, dilation=(1, 2), padding=(2, 1)),
    ],
)
def test_a_layer_is_rounded_by_the_moments_of_its_unfolded_input(layer):
    model = nn.Sequential(layer).eval()
    qat = prepare_qat(model, images(size=8), per_channel=False)
    quantizer, rounded = qat.activation_quantizers[0], qat.get_submodule("0")
    weight, scale = rounded.weight.detach().clone(), rounded.weight_quantizer.scale().detach()
    x = quantizer(images(size=8)).detach()
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    groups = layer.groups
    rows = unfolded.transpose(1, 2).flatten(0, 1).view(-1, groups, weight[0].numel()).transpose(0, 1)
    rows = rows - rows.mean(1, keepdim=True)
    moments = rows.transpose(1, 2) @ rows / rows.shape[1]
    scales = scale.expand(len(weight)).reshape(groups, -1)
    expected = round_compensating(weight.reshape(groups, -1, weight[0].numel()), moments, scales)
    compensate(qat, images(size=8))
    found = torch.round(rounded.weight.detach() / scale)
    assert (found == expected.view(weight.shape)).float().mean() > 0.98  # sums in another order
    assert (found != torch.round(weight / scale)).any()


def test_the_seed_decides_which_places_are_looked_at(net):
    x = images(64, 40)
    found = []
    for seed in (0, 0, 1):
        qat = prepare_qat(net, x, per_channel=False)
        compensate(qat, x, seed)
        found.append(qat.get_submodule("conv").weight.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(self.conv(x).relu()).mean((2, 3)))


def test_layers_that_run_twice_stay_as_they_are():
    torch.manual_seed(0)
    qat = prepare_qat(Twice().eval(), images())
    before = {name: layer.weight.detach().clone() for name, layer in layers(qat).items()}
    compensate(qat, images())
    assert torch.equal(qat.get_submodule("conv").weight, before["conv"])
    assert not torch.equal(qat.get_submodule("head").weight, before["head"])


def test_images_that_are_all_alike_round_to_the_nearest():
    torch.manual_seed(0)
    qat = prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.ones(4, 3, 4, 4))
    expected = qat.get_submodule("0").weight_quantizer(qat.get_submodule("0").weight).detach()
    compensate(qat, torch.ones(4, 3, 4, 4))
    torch.testing.assert_close(qat.get_submodule("0").weight.detach(), expected)


def test_bad_arguments_are_refused(net):
    with pytest.raises(ValueError, match="made by prepare_qat"):
        compensate(net, images())
    with pytest.raises(ValueError, match="no image"):
        compensate(prepare_qat(net, images()), images(0))
