"""A training that starts where calibration ends: nearer to the float network, and exported as it is."""

import itertools

import pytest
import torch
from torch import nn

from export.errors import QuantizationError
from export.quantize.learned import insert_learned, read_ranges
from export.quantize.warm_start import start_from_calibration
from export.trace import trace
from holocron.nn.quantization import ActivationQuantizer, WeightQuantizer, convert, learned_ranges, prepare_qat

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (24, 20)
CASES = [("trt", True), ("trt", False), ("cpu", True), ("cpu", False)]


def photographs(n, seed=0):
    """Images of 8 bits, smooth as photographs are, normalized."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 5, generator=generator)
    pixels = nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1).mul(255).round()
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Net(nn.Module):
    """Plain layers with channels of very different sizes, a depthwise one, a residual addition and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.chain = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.head = nn.Linear(16 * 120, 5)
        layers = [self.stem, *self.chain]
        with torch.no_grad():
            for layer in self.chain:
                layer.weight.mul_(2.0)
            for layer, after in itertools.pairwise(layers):
                spread = torch.exp(torch.randn(16))
                layer.weight.mul_(spread.view(-1, 1, 1, 1))
                layer.bias.mul_(spread)
                after.weight.div_(spread.view(-1, 1, 1))

    def forward(self, x):
        x = self.stem(x).relu()
        for layer in self.chain:
            x = layer(x).relu()
        x = self.pointwise(self.depthwise(x).relu()) + x
        return self.head(x.relu().flatten(1))


def prepared(scheme, per_channel, images, normalization=(MEAN, STD)):
    torch.manual_seed(3)
    net = Net().eval()
    return net, prepare_qat(net, images, scheme, per_channel, equalize=False, normalization=normalization)


@torch.no_grad()
def error(net, model, images):
    expected = net(images)
    return float((model(images) - expected).square().mean() / expected.square().mean())


@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_it_starts_closer_to_the_float_network_and_is_exported_as_it_is(scheme, per_channel, ort_run):
    images, others = photographs(16), photographs(32, seed=1)
    net, model = prepared(scheme, per_channel, images)
    model.eval()
    before = error(net, model, others)
    start_from_calibration(model, images, effort="fast")
    assert error(net, model, others) < 0.7 * before
    quantized = insert_learned(trace(convert(model), SIZE), read_ranges(learned_ranges(model)))
    found = ort_run(quantized, {"input": others.numpy()}, optimize=False)["logits"]
    with torch.no_grad():
        expected = model(others)
    # Equal, but where a sum in another order falls on the other side of a half somewhere on the way.
    difference = (torch.from_numpy(found) - expected).abs() / expected.abs().max()
    assert difference.median() < 1e-5
    assert difference.max() < 0.02


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
def test_the_weights_lie_on_their_grid_which_no_training_moves(scheme):
    images = photographs(8)
    _, model = prepared(scheme, False, images)
    start_from_calibration(model, images, effort="fast")
    told = learned_ranges(model)
    for name, scales in told["weights"].items():
        codes = model.get_parameter(name).detach() / torch.tensor(scales)
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train()(images).square().sum().backward()
    optimizer.step()
    after = learned_ranges(model)
    assert after["weights"] == told["weights"]
    first = "stem.weight:input"
    assert after["activations"][first] == told["activations"][first]
    assert after["activations"] != told["activations"]


def test_the_same_images_give_the_same_start():
    images = photographs(8)
    states = []
    for _ in range(2):
        _, model = prepared("trt", True, images)
        start_from_calibration(model, images, effort="fast", seed=7)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_without_pixels_too():
    images = photographs(8)
    net, model = prepared("trt", False, images, normalization=None)
    before = error(net, model, images)
    start_from_calibration(model, images, effort="fast")
    assert error(net, model, images) < before
    assert all(q.learned for q in model.modules() if isinstance(q, ActivationQuantizer))
    assert not any(q.learned for q in model.modules() if isinstance(q, WeightQuantizer))


def test_progress_counts_the_layers():
    images, seen = photographs(8), []
    _, model = prepared("cpu", True, images)
    start_from_calibration(model, images, effort="fast", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(10)]


def test_a_network_in_which_gradients_end():
    """Its own gradients pass in torch, but one operator of its graph is left to ONNX Runtime."""

    class Cumulative(Net):
        def forward(self, x):
            return super().forward(x).cumsum(1)

    images = photographs(4)
    torch.manual_seed(3)
    model = prepare_qat(Cumulative().eval(), images, "trt", equalize=False, normalization=(MEAN, STD))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(QuantizationError, match="gradients do not pass CumSum of the exported network: train it as"):
        start_from_calibration(model, images, effort="fast")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_started_is_refused():
    images = photographs(4)
    net, model = prepared("trt", True, images)
    with pytest.raises(ValueError, match="expected a network made by prepare_qat"):
        start_from_calibration(net, images)
    with pytest.raises(ValueError, match="no image to calibrate on"):
        start_from_calibration(model, images[:0])
    with pytest.raises(ValueError, match="effort is 'most'"):
        start_from_calibration(model, images, effort="most")
