"""A network that reads pixels in place of a normalized image: the same answers, and nothing lost in 8 bits."""

import pytest
import torch
from torch import fx, nn

from holocron.nn.quantization import ActivationQuantizer, learned_ranges, load_ranges, prepare_qat
from holocron.nn.quantization.pixels import PIXEL_STEP, put_on_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized(pixels):
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def random_pixels(n=4, size=12, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)).float()


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, **options)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3), keepdim=True).flatten(1))


OPTIONS = [
    {},
    {"padding": 1},
    {"padding": (2, 0), "stride": 2},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "bias": False},
    {"padding": 1, "groups": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_function_stays_the_same(options):
    torch.manual_seed(0)
    net = Net(**options).eval()
    x = normalized(random_pixels())
    network = fx.symbolic_trace(net)
    expected = net(x)
    pixels = put_on_pixels(network, MEAN, STD)
    assert pixels is not None
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_images_lose_nothing(scheme, options):
    torch.manual_seed(0)
    x = normalized(random_pixels())
    model = prepare_qat(Net(**options).eval(), x, scheme, normalization=(MEAN, STD))
    told = learned_ranges(model)["activations"]["stem.weight:input"]
    assert told == {"scale": PIXEL_STEP, "zero_point": 0 if scheme == "trt" else 128}
    seen = []
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, ActivationQuantizer) and not m.learned}
    (quantizer,) = quantizers.values()
    quantizer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    model(x)
    # The margin is black after the normalization, which no pixel is exactly.
    before, after = (value[..., 2:-2, 2:-2] for value in seen[0])
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert (after / PIXEL_STEP).frac().eq(0).all()


def test_a_network_with_another_beginning_is_left_as_it_is():
    class Summed(Net):
        def forward(self, x):
            return super().forward(x) + x.mean()

    network = fx.symbolic_trace(Summed())
    code = network.code
    assert put_on_pixels(network, MEAN, STD) is None
    assert network.code == code
    x = normalized(random_pixels())
    with_pixels, without = (prepare_qat(Summed().eval(), x, normalization=n) for n in ((MEAN, STD), None))
    assert with_pixels.code == without.code


def test_wrong_normalization_is_refused():
    with pytest.raises(ValueError, match="of 3 channels"):
        put_on_pixels(fx.symbolic_trace(Net()), (0.5,), (0.5,))
    with pytest.raises(ValueError, match="positive deviations"):
        put_on_pixels(fx.symbolic_trace(Net()), MEAN, (0.2, 0.0, 0.2))


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_ranges_are_loaded_as_they_were_learned(scheme, per_channel):
    torch.manual_seed(0)
    net, x = Net(padding=1).eval(), normalized(random_pixels())
    first = prepare_qat(net, x, scheme, per_channel)
    second = prepare_qat(net, 3 * x, scheme, per_channel)
    told = learned_ranges(first)
    assert learned_ranges(second)["activations"] != told["activations"]
    load_ranges(second, told)
    found = learned_ranges(second)
    for name, expected in told["activations"].items():
        assert found["activations"][name]["zero_point"] == expected["zero_point"]
        assert found["activations"][name]["scale"] == pytest.approx(expected["scale"], rel=1e-6)
    for name, scales in told["weights"].items():
        assert found["weights"][name] == pytest.approx(scales, rel=1e-6)
    if scheme == "trt":  # whose scales float16 holds, and the next one is far
        assert found == told


def test_ranges_of_another_network_are_refused():
    x = normalized(random_pixels())
    model = prepare_qat(Net().eval(), x, "trt")
    told = learned_ranges(model)
    with pytest.raises(ValueError, match="scheme of the ranges is 'cpu'"):
        load_ranges(model, learned_ranges(prepare_qat(Net().eval(), x, "cpu")))
    with pytest.raises(ValueError, match=r"no range for head\.weight"):
        load_ranges(model, told | {"weights": {"stem.weight": told["weights"]["stem.weight"]}})
    with pytest.raises(ValueError, match="0 ranges for"):
        load_ranges(model, told | {"activations": {}})
