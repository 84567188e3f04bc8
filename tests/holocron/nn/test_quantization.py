"""Fake quantization against numpy in float64, its gradients against closed forms and finite differences."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from holocron.models.classification.repvgg import RepVGG
from holocron.nn.quantization import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLinear,
    WeightQuantizer,
    convert,
    fake_quantize,
    learned_ranges,
    prepare_qat,
    save_ranges,
)
from holocron.nn.quantization.fake_quantize import round_up_to_half

CASES = [("trt", True), ("trt", False), ("cpu", True), ("cpu", False)]


def reference(x, scale, zero_point, low, high):
    codes = np.clip(np.rint(x.astype(np.float64) / scale) + zero_point, low, high)
    return (codes - zero_point) * scale


def images(n=4, size=16, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Normalization to fold, an in-place activation, a depthwise layer, a residual addition, dropout, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pointwise = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        out = self.pointwise(self.depthwise(x))
        out += x
        return self.head(self.dropout(F.relu(out, inplace=True).mean((2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.2, 2)
    return model


def quantizers(model, kind=ActivationQuantizer):
    return [module for module in model.modules() if isinstance(module, kind)]


# Rounding.


@given(
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20),
    st.floats(2.0**-6, 4, width=32),
    st.integers(0, 255),
)
def test_values_are_those_of_numpy(values, scale, zero_point):
    x = np.array(values, np.float32)
    ours = fake_quantize(torch.from_numpy(x), torch.tensor(scale), torch.tensor(float(zero_point)), 0, 255).numpy()
    # In float32, as in a graph: a ratio next to a half may be rounded to it, and only there may float64 differ.
    exact = np.abs(np.abs(x.astype(np.float64) / scale % 1) - 0.5) > 1e-4
    np.testing.assert_allclose(ours[exact], reference(x, scale, zero_point, 0, 255)[exact], rtol=1e-6, atol=1e-30)
    codes = np.clip(np.rint(x / np.float32(scale)) + np.float32(zero_point), 0, 255) - np.float32(zero_point)
    np.testing.assert_array_equal(ours, codes * np.float32(scale))


def test_halves_go_to_the_even_integer():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    out = fake_quantize(x, torch.tensor(1.0), torch.tensor(0.0), -128, 127)
    assert out.tolist() == [-2, -2, 0, 0, 2, 2]


def test_a_division_is_not_a_product_with_the_inverse():
    """PyTorch's own fake quantization multiplies, and gives some values another integer than backends do."""
    differing = 0
    for scale in np.linspace(0.01, 1, 50, dtype=np.float32):
        x = (np.arange(-400, 400, dtype=np.float32) + np.float32(0.5)) * scale
        ours = fake_quantize(torch.from_numpy(x), torch.tensor(scale), torch.tensor(0.0), -500, 500).numpy()
        np.testing.assert_array_equal(ours, np.rint(x / scale) * scale)
        differing += (np.rint(x / scale) != np.rint(x * (np.float32(1) / scale))).sum()
    assert differing


@given(st.floats(0, 2.0**17, width=32))
def test_scales_are_rounded_up_to_the_next_half(value):
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    found = round_up_to_half(torch.tensor([value])).item()
    above = halves[halves >= value]
    assert found == (above[0] if len(above) else 65504)


# Gradients.


def test_the_gradient_passes_through_what_is_not_clipped():
    x = torch.tensor([-3.0, -2.5, -1.2, 0.3, 1.26, 1.49, 1.6, 9.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.5), torch.tensor(0.0), -5, 3).sum().backward()
    # From −5.5 to 3.5 steps: what rounds to a code within the bounds.
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1 * (1.6 < 1.75), 0]


def test_scale_gradients_are_those_of_lsq():
    """Esser et al., equation 3: −v/s + round(v/s) inside, the bound outside."""
    x = torch.tensor([-0.9, -0.31, 0.04, 0.12, 0.26, 2.0])
    scale = torch.tensor(0.1, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (fake_quantize(x, scale, torch.tensor(0.0), -4, 7) * weights).sum().backward()
    ratio = x.double().numpy() / 0.1
    expected = np.where(ratio <= -4, -4, np.where(ratio >= 7, 7, np.rint(ratio) - ratio))
    assert scale.grad.item() == pytest.approx(float(expected @ weights.double().numpy()), rel=1e-5)


def test_zero_point_gradients_are_those_of_lsq_plus():
    x = torch.tensor([-1.0, 0.3, 0.52, 40.0])
    zero_point = torch.tensor(3.0, requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), zero_point, 0, 255).sum().backward()
    assert zero_point.grad.item() == pytest.approx(-0.2)  # −s for each of the two that are clipped


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
def test_where_everything_is_clipped_range_gradients_are_finite_differences(scheme):
    """There the output is smooth in the bound (under `trt` up to the rounding of the scale, which is passed over)."""
    quantizer = ActivationQuantizer(scheme)
    quantizer.calibrate(torch.tensor([0.0, 1.0]), 0.0, 1.0)
    x = torch.tensor([[5.0, 7.0, 9.0]])
    quantizer(x).sum().backward()
    gradient = quantizer.log_factor.grad[-1].item() * np.sqrt(3 * quantizer.codes[1])  # LSQ's factor taken back
    before = quantizer.params()[0].item()
    step = 0.01
    with torch.no_grad():
        high = quantizer.log_factor.clone()
        quantizer.log_factor[-1] = step
        up = quantizer(x).sum().item()
        quantizer.log_factor[-1] = -step
        down = quantizer(x).sum().item()
        quantizer.log_factor.copy_(high)
    assert quantizer.params()[0].item() == before
    assert gradient == pytest.approx((up - down) / (2 * step), rel=0.02)


def test_scales_of_channels_get_gradients_of_their_own():
    quantizer = WeightQuantizer("cpu", 3)
    weight = torch.tensor([[1.0, 0.3], [0.0, 0.0], [-2.0, 0.7]], requires_grad=True)
    quantizer.calibrate(weight, clip=False)
    quantizer(weight).square().sum().backward()
    assert quantizer.log_factor.grad.shape == (3,)
    assert quantizer.log_factor.grad[1] == 0
    assert (quantizer.log_factor.grad[[0, 2]] != 0).all()


# Ranges.


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
def test_calibration_finds_the_least_squared_error(scheme):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).abs()
    x[0] = 20 if scheme == "cpu" else 10  # one that is worth clipping
    quantizer = ActivationQuantizer(scheme)
    quantizer.calibrate(x, x.min().item(), x.max().item())
    chosen = (quantizer(x) - x).square().mean().item()
    quantizer.calibrated.copy_(torch.tensor([x.max()] if scheme == "trt" else [0.0, x.max()]))
    assert chosen < 0.9 * (quantizer(x) - x).square().mean().item()
    scale, zero_point = (value.item() for value in quantizer.params())
    assert zero_point == 0
    if scheme == "trt":
        assert float(np.float16(scale)) == scale


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
def test_zero_is_an_integer_and_constants_are_harmless(scheme):
    for values in (torch.zeros(5), torch.full((5,), 3.0), torch.full((5,), -3.0), torch.empty(0)):
        quantizer = ActivationQuantizer(scheme)
        low, high = (values.min().item(), values.max().item()) if values.numel() else (0.0, 0.0)
        quantizer.calibrate(values, low, high)
        assert quantizer(torch.zeros(3)).tolist() == [0, 0, 0]
        torch.testing.assert_close(quantizer(values), values, rtol=0.01, atol=0)
        assert all(torch.isfinite(value) for value in quantizer.params())


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_of_zeros_stay_zeros(scheme, per_channel):
    quantizer = WeightQuantizer(scheme, 2 if per_channel else None)
    quantizer.calibrate(torch.zeros(2, 3, 1, 1))
    assert quantizer(torch.zeros(2, 3, 1, 1)).abs().sum() == 0
    assert quantizer.scale().tolist() == [1.0] * (2 if per_channel else 1)


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
def test_weights_are_those_of_numpy(scheme):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for channels in (4, None):
        quantizer = WeightQuantizer(scheme, channels)
        quantizer.calibrate(weight, clip=False)
        scale = quantizer.scale().detach().double().numpy()
        largest = weight.flatten(1).abs().amax(1) if channels else weight.abs().amax().view(1)
        assert (scale >= largest.double().numpy() / 127 * (1 - 1e-7)).all()
        assert (scale <= largest.double().numpy() / 127 * 1.001).all()
        expected = reference(weight.numpy(), scale.reshape(-1, 1, 1, 1), 0, -127, 127)
        np.testing.assert_allclose(quantizer(weight).detach().numpy(), expected, rtol=1e-6)


def test_ranges_keep_their_sign_and_scale_whatever_an_optimizer_does():
    quantizer = ActivationQuantizer("cpu")
    quantizer.calibrate(torch.linspace(0, 6, 100), 0.0, 6.0)
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.05, weight_decay=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        quantizer(torch.linspace(-1, 60, 50)[None]).sum().neg().backward()
        optimizer.step()
    scale, zero_point = (value.item() for value in quantizer.params())
    assert scale > 2 * 6 / 255
    assert zero_point == 0  # what starts at 0 stays there


def test_a_range_is_learned_from_the_error():
    """Starting too wide by a factor, the range shrinks to about where a search puts it."""
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    quantizer = ActivationQuantizer("trt")
    quantizer.calibrate(x, x.min().item(), x.max().item())
    best = (quantizer(x) - x).square().mean().item()
    with torch.no_grad():
        quantizer.calibrated.mul_(8)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer(x) - x).square().mean().item() < 1.5 * best


# Networks.


@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_without_quantizers_nothing_but_the_weights_is_rounded(net, scheme, per_channel, monkeypatch):
    qat = prepare_qat(net, images(), scheme, per_channel)
    assert not qat.training
    for quantizer in quantizers(qat):
        quantizer.enabled = False
    monkeypatch.setattr(QuantizedConv2d, "quantized_weights", lambda layer, data: (layer.weight, layer.bias))
    monkeypatch.setattr(QuantizedLinear, "quantized_weights", lambda layer, data: (layer.weight, layer.bias))
    torch.testing.assert_close(qat(images(seed=1)), net(images(seed=1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_the_network_is_close_to_the_float_one(net, scheme, per_channel):
    qat = prepare_qat(net, images(8), scheme, per_channel)
    x = images(8, seed=1)
    error = (qat(x) - net(x)).norm() / net(x).norm()
    assert 0 < error < (0.1 if per_channel else 0.3)


@pytest.mark.parametrize(("scheme", "expected"), [("trt", 5), ("cpu", 6)])
def test_quantizers_stand_where_the_scheme_puts_them(net, scheme, expected):
    """`trt`: what three convolutions, the addition and the head read. `cpu`: also what the addition makes, to pool."""
    qat = prepare_qat(net, images(), scheme)
    roles = learned_ranges(qat)["activations"]
    inputs = {f"{name}.weight:input" for name in ("stem.0", "depthwise.0", "pointwise.0", "head")}
    assert inputs | {"add0:0", "add0:1"} <= set(roles)
    assert ("add0:output" in roles) == (scheme == "cpu")
    assert roles["add0:1"] == roles["depthwise.0.weight:input"] == roles["stem.0.weight:output"]
    assert len(quantizers(qat)) == expected


def test_normalization_is_folded_and_names_are_kept(net):
    qat = prepare_qat(net, images())
    assert not quantizers(qat, nn.BatchNorm2d)
    assert not quantizers(qat, nn.Dropout)
    names = {name for name, _ in qat.named_parameters()}
    assert {"stem.0.weight", "stem.0.bias", "head.weight", "stem.0.weight_quantizer.log_factor"} <= names
    assert isinstance(net.stem[1], nn.BatchNorm2d)  # the model itself is left alone
    assert net.stem[0].bias is None


def test_reparameterizable_networks_are_fused():
    torch.manual_seed(0)
    model = RepVGG([1, 2], [8, 16], num_classes=4).eval()
    qat = prepare_qat(model, images(2, 32), per_channel=False)
    assert sum(isinstance(module, QuantizedConv2d) for module in qat.modules()) == 3
    plain = convert(qat)
    torch.testing.assert_close(plain(images(2, 32)), model(images(2, 32)), rtol=1e-3, atol=1e-4)
    assert type(plain).__name__ == "RepVGG"


@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_convert_gives_back_the_plain_network(net, scheme, per_channel):
    qat = prepare_qat(net, images(), scheme, per_channel)
    before = {name: value.clone() for name, value in qat.state_dict().items()}
    plain = convert(qat)
    torch.testing.assert_close(plain(images(seed=1)), net(images(seed=1)), rtol=1e-4, atol=1e-5)
    assert set(plain.state_dict()) == {
        f"{layer}.{kind}" for layer in ("stem.0", "depthwise.0", "pointwise.0", "head") for kind in ("weight", "bias")
    }
    assert {type(module) for module in plain.modules()} <= {type(plain), nn.Module, nn.Conv2d, nn.Linear, nn.ReLU}
    with torch.no_grad():
        plain.get_submodule("head").weight.zero_()
    torch.testing.assert_close(qat.state_dict(), before)  # nothing is shared


def test_integer_biases_are_multiples_of_both_scales(net):
    qat = prepare_qat(net, images(), "cpu")
    node = next(node for node in qat.graph.nodes if node.target == "stem.0")
    layer, data = qat.get_submodule("stem.0"), qat.get_submodule(node.args[1].target)
    step = (data.params()[0] * layer.weight_scale(data)).detach().double().numpy()
    codes = layer.quantized_weights(data)[1].detach().double().numpy() / step
    np.testing.assert_allclose(codes, np.rint(layer.bias.detach().double().numpy() / step), atol=1e-3)


def test_a_bias_too_large_for_its_integer_widens_the_scale(net):
    with torch.no_grad():
        net.head.weight.mul_(1e-12)
        net.head.bias.fill_(3.0)
    qat = prepare_qat(net, images(), "cpu")
    torch.testing.assert_close(qat(images()), torch.full((4, 5), 3.0), rtol=1e-5, atol=0)


def test_gradients_reach_every_parameter(net):
    for scheme, per_channel in CASES:
        qat = prepare_qat(net, images(), scheme, per_channel)
        F.cross_entropy(qat(images()), torch.arange(4)).backward()
        for name, parameter in qat.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        assert sum(bool((p.grad != 0).any()) for p in qat.parameters()) > 0.8 * len(list(qat.parameters()))


def test_the_same_images_give_the_same_ranges(net):
    batches = list(images(8).split(3))
    first, second = (learned_ranges(prepare_qat(net, batches, "cpu")) for _ in range(2))
    assert first == second


def test_the_state_dict_goes_from_one_copy_to_another(net):
    trained = prepare_qat(net, images(), per_channel=False)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    fresh = prepare_qat(net, images(seed=3) * 5, per_channel=False)
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(images()), trained(images()), rtol=0, atol=0)
    assert learned_ranges(fresh) == learned_ranges(trained)
    torch.testing.assert_close(copy.deepcopy(trained)(images()), trained(images()), rtol=0, atol=0)


def test_learned_ranges_survive_json_exactly(net, tmp_path):
    qat = prepare_qat(net, images())
    ranges = learned_ranges(qat)
    save_ranges(qat, tmp_path / "ranges.json")
    assert json.loads((tmp_path / "ranges.json").read_text()) == ranges
    assert len(ranges["weights"]["stem.0.weight"]) == 8
    assert len(learned_ranges(prepare_qat(net, images(), per_channel=False))["weights"]["stem.0.weight"]) == 1
    with torch.no_grad():
        qat.get_submodule("head").weight.add_(1e-3)
    assert learned_ranges(qat)["digest"] != ranges["digest"]


# Equalization.


class Chain(nn.Module):
    def __init__(self, middle=None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), middle or nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        out = torch.relu(self.pool(x + self.depthwise(x)))
        return self.head(self.pointwise(out).mean((2, 3)))


def test_equalization_changes_no_answer_and_undoes_a_rescaling():
    torch.manual_seed(0)
    model = Chain().eval()
    plain = convert(prepare_qat(model, images(8), per_channel=False, equalize=True))
    torch.testing.assert_close(plain(images(8)), model(images(8)), rtol=1e-5, atol=1e-5)

    def error(equalize):
        x = images(16, seed=1)
        qat = prepare_qat(hardened, images(16), per_channel=False, equalize=equalize)
        return ((qat(x) - hardened(x)).norm() / hardened(x).norm()).item()

    torch.manual_seed(0)
    hardened = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    ).eval()
    factor = torch.exp(1.5 * torch.randn(8))
    with torch.no_grad():
        hardened[0].weight.mul_(factor.view(-1, 1, 1, 1))
        hardened[0].bias.mul_(factor)
        hardened[2].weight.div_(factor.view(1, -1, 1, 1))
    assert error(True) < 0.5 * error(False)


def test_one_scale_for_all_channels_is_equalized_by_default():
    torch.manual_seed(0)
    model = Chain().eval()

    def weights(*args, **kwargs):
        return convert(prepare_qat(model, images(8), "trt", *args, **kwargs)).state_dict()

    torch.testing.assert_close(weights(False), weights(False, equalize=True), rtol=0, atol=0)
    torch.testing.assert_close(weights(True), weights(True, equalize=False), rtol=0, atol=0)
    assert not torch.equal(weights(False)["head.weight"], weights(True)["head.weight"])
    torch.testing.assert_close(weights(False, equalize=False)["head.weight"], model.head.weight, rtol=0, atol=0)


def test_equalization_stops_at_what_is_not_homogeneous():
    """A layer before a sigmoid, a clipped activation or the output cannot be rescaled."""
    torch.manual_seed(0)
    for middle in (nn.ReLU6(), nn.GELU(), nn.Hardtanh()):
        model = Chain(middle).eval()
        with torch.no_grad():
            model.depthwise[0].weight.mul_(30)
        plain = convert(prepare_qat(model, images(8), equalize=True))
        torch.testing.assert_close(plain(images(8)), model(images(8)), rtol=1e-4, atol=1e-4)


def test_equalized_channels_have_the_same_range_on_both_sides():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[2] = 0  # a dead channel keeps what it has
    plain = convert(prepare_qat(model.eval(), images(), equalize=True))
    first, second = plain.get_submodule("0").weight, plain.get_submodule("2").weight
    made = first.flatten(1).abs().amax(1)
    read = second.view(2, 2, 3, 9).abs().amax((1, 3)).flatten()
    alive = [0, 1, 3, 4, 5]
    torch.testing.assert_close(made[alive], read[alive], rtol=5e-3, atol=0)
    torch.testing.assert_close(plain(images()), model(images()), rtol=1e-5, atol=1e-5)


# Bad input.


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(self.bn(self.conv(x))))


class TwoInputs(nn.Module):
    def forward(self, x, y=None):
        return x


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.b(torch.cat([x, x], 1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), "Branching cannot be traced"),
        (Twice(), "run more than once"),
        (TwoInputs(), "one tensor of images"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "cannot be folded"),
        (nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), "ConvTranspose2d"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(8, 2)), r"linear layer on \(2, 3, 8, 8\)"),
        (nn.Sequential(nn.ReLU()), "no convolution and no linear layer"),
    ],
)
def test_networks_that_cannot_be_prepared_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        prepare_qat(model.eval(), images(2, 8))


def test_what_only_one_scheme_cannot_do_is_refused_there():
    prepare_qat(Joined().eval(), images(2, 8), "trt")
    with pytest.raises(ValueError, match="joins, splits or resizes"):
        prepare_qat(Joined().eval(), images(2, 8), "cpu")


def test_bad_arguments_are_refused(net):
    with pytest.raises(ValueError, match="scheme"):
        prepare_qat(net, images(), "int4")
    with pytest.raises(ValueError, match="no batch"):
        prepare_qat(net, [])
    with pytest.raises(ValueError, match="batches of images"):
        prepare_qat(net, [(images(), 1)])
    with pytest.raises(ValueError, match="batches of images"):
        prepare_qat(net, images(0))
    with pytest.raises(ValueError, match="scheme"):
        ActivationQuantizer("int4")


def test_values_that_are_not_finite_are_refused(net):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"NaN|infinit"):
            prepare_qat(net, [images(), images() * value])
        broken = copy.deepcopy(net)
        with torch.no_grad():
            broken.head.weight[0, 0] = value
        with pytest.raises(ValueError, match=r"NaN|infinit"):
            prepare_qat(broken, images())


def test_only_prepared_networks_are_converted(net):
    for function in (convert, learned_ranges):
        with pytest.raises(ValueError, match="made by prepare_qat"):
            function(net)
    qat = prepare_qat(net, images())
    with pytest.raises(ValueError, match=r"prepared before|cannot be traced"):
        prepare_qat(qat, images())
    with torch.no_grad():
        qat.get_submodule("head").weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        learned_ranges(qat)
