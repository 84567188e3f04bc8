"""Convolutions against references that visit the windows one by one, in float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch.autograd import gradcheck

from holocron import nn
from holocron.nn import functional as F

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
SETTINGS = [
    {},
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2},
    {"padding": 1, "groups": 2},
    {"groups": 4, "bias": False},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "stride": 2},
    {"padding": 1, "padding_mode": "circular", "groups": 2},
]


def windows_of(x, k, stride=1, padding=0, dilation=1, padding_mode="zeros"):
    """Each window of an array (N, C, H, W) with its row and column in the output."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), mode=PAD_MODES[padding_mode])
    reach = dilation * (k - 1) + 1
    rows, cols = ((size - reach) // stride + 1 for size in x.shape[2:])
    for i, j in itertools.product(range(rows), range(cols)):
        top, left = i * stride, j * stride
        yield i, j, x[:, :, top : top + reach : dilation, left : left + reach : dilation]


def reference(module, x, compare):
    """Apply ``compare(window, filter)`` for each position, group and filter."""
    weight = module.weight.detach().numpy()
    settings = (module.kernel_size[0], module.stride[0], module.padding[0], module.dilation[0], module.padding_mode)
    found = list(windows_of(x.detach().numpy(), *settings))
    out = np.zeros((x.shape[0], len(weight), found[-1][0] + 1, found[-1][1] + 1))
    channels, filters = weight.shape[1], len(weight) // module.groups
    for i, j, window in found:
        for n, c in itertools.product(range(x.shape[0]), range(len(weight))):
            group = c // filters
            out[n, c, i, j] = compare(window[n, group * channels : (group + 1) * channels], weight[c])
    if module.bias is not None:
        out += module.bias.detach().numpy().reshape(1, -1, 1, 1)
    return out


def standardized(window, eps):
    return (window - window.mean()) / np.sqrt(window.var() + eps)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("eps", [1e-14, 1e-2])
def test_norm_conv_equals_formula(settings, eps):
    torch.manual_seed(0)
    module = nn.NormConv2d(4, 8, 3, eps=eps, **settings).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64) + 3
    expected = reference(module, x, lambda window, weight: (standardized(window, eps) * weight).sum())
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("settings", [{"padding": 1}, {"groups": 2, "stride": 2}], ids=str)
def test_norm_conv_gradient(settings):
    torch.manual_seed(0)
    module = nn.NormConv2d(2, 2, 2, **settings).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, x)

    assert gradcheck(call, (x, *module.parameters()))


@pytest.mark.parametrize("contrast", [1.0, 1e-2])
def test_norm_conv_in_float32_is_as_exact_as_building_the_windows(contrast):
    # Smooth regions far from the mean of the image: where E[x²] - E[x]² would lose the variance.
    torch.manual_seed(0)
    x = contrast * torch.randn(1, 8, 12, 12) + torch.linspace(0, 50, 12).view(-1, 1)
    module = nn.NormConv2d(8, 4, 3)
    exact = nn.NormConv2d(8, 4, 3).double()
    exact.load_state_dict(module.state_dict())
    windows = nnf.unfold(x, 3).transpose(1, 2)
    windows = windows - windows.mean(-1, keepdim=True)
    windows = windows / (windows.square().mean(-1, keepdim=True) + 1e-14).sqrt()
    built = (windows @ module.weight.flatten(1).T + module.bias).transpose(1, 2).view(1, 4, 10, 10)
    truth = exact(x.double())
    assert (module(x) - truth).norm() <= 4 * (built - truth).norm() + 1e-6 * truth.norm()


def test_norm_conv_does_not_see_scale_and_offset():
    torch.manual_seed(0)
    module = nn.NormConv2d(3, 5, 3).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(module(7 * x - 2), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norm_conv_of_constant_input_is_finite(dtype):
    x = torch.full((1, 3, 5, 5), 0.3, dtype=dtype, requires_grad=True)
    module = nn.NormConv2d(3, 4, 3, eps=1e-5).to(dtype)
    out = module(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, module.bias.view(1, -1, 1, 1).expand_as(out), atol=0.1, rtol=0)
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("normalize_slices", [False, True])
def test_add2d_equals_formula(settings, normalize_slices):
    torch.manual_seed(0)
    module = nn.Add2d(4, 8, 3, normalize_slices=normalize_slices, **settings).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)

    def distance(window, weight):
        return -np.abs((standardized(window, 1e-14) if normalize_slices else window) - weight).sum()

    np.testing.assert_allclose(module(x).detach().numpy(), reference(module, x, distance), rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("normalize_slices", [False, True])
def test_add2d_gradient(groups, normalize_slices):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2 // groups, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(
        lambda x, w: F.add2d(x, w, padding=0, groups=groups, normalize_slices=normalize_slices), (x, weight)
    )


@pytest.mark.parametrize("function", [F.norm_conv2d, F.add2d])
def test_functional_forms_take_pairs_and_refuse_misfits(function):
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 2)
    out = function(x, weight, None, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    assert out.shape == nnf.conv2d(x, weight, None, (2, 1), (1, 0), (1, 2), 2).shape
    assert function(x[:0], weight, groups=2).shape == (0, 6, 7, 7)
    for bad in ({"groups": 1}, {"groups": 4}, {"groups": 0}):
        with pytest.raises(ValueError, match="channels"):
            function(x, weight, **bad)
    with pytest.raises(ValueError, match="x has"):
        function(x[0], weight, groups=2)


def test_slim_conv_equals_formula():
    torch.manual_seed(0)
    module = nn.SlimConv2d(8, 3, padding=1, stride=2, r=2).double().eval()
    module.bn.running_mean.normal_()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    z = x.mean((2, 3))
    hidden = module.bn((z @ module.fc1.weight.flatten(1).T + module.fc1.bias)[..., None, None])[..., 0, 0].clamp(min=0)
    w = torch.sigmoid(hidden @ module.fc2.weight.flatten(1).T + module.fc2.bias)[..., None, None]
    top, bottom = x * w, x * w[:, list(range(7, -1, -1))]
    expected = torch.cat(
        [
            module.conv_top(top[:, :4] + top[:, 4:]),
            module.conv_bot2(module.conv_bot1(bottom[:, :4] + bottom[:, 4:])),
        ],
        dim=1,
    )
    torch.testing.assert_close(module(x), expected)
    assert expected.shape == (2, 6, 3, 3)
    assert set(dict(module.named_children())) == {"fc1", "bn", "fc2", "conv_top", "conv_bot1", "conv_bot2"}


def test_slim_conv_hands_its_settings_over():
    module = nn.SlimConv2d(16, 3, 1, 2, 2, 2, False, "reflect", r=4, L=6)
    for conv in (module.conv_top, module.conv_bot2):
        assert (conv.padding, conv.dilation, conv.groups, conv.bias, conv.padding_mode) == (
            (2, 2),
            (2, 2),
            2,
            None,
            "reflect",
        )
    assert module.fc1.out_channels == 6
    for channels in (7, 2):
        with pytest.raises(ValueError, match="in_channels"):
            nn.SlimConv2d(channels, 3)


@pytest.mark.parametrize(
    ("num_levels", "channels", "groups"),
    [(1, [64], [1]), (2, [32, 32], [1, 4]), (3, [16, 16, 32], [1, 4, 8]), (4, [16] * 4, [1, 4, 8, 16])],
)
def test_pyconv_stacks_growing_kernels(num_levels, channels, groups):
    module = nn.PyConv2d(16, 64, 3, num_levels, padding=1, stride=2, bias=False)
    assert [conv.out_channels for conv in module] == channels
    assert [conv.groups for conv in module] == groups
    assert [conv.kernel_size[0] for conv in module] == [3 + 2 * level for level in range(num_levels)]
    x = torch.randn(2, 16, 11, 8)
    torch.testing.assert_close(module(x), torch.cat([conv(x) for conv in module], 1))
    assert module(x).shape == (2, 64, 6, 4)
    assert list(module.state_dict()) == [f"{level}.weight" for level in range(num_levels)]


def test_pyconv_refuses():
    for kwargs, match in (
        ({"groups": [1]}, "groups"),
        ({"groups": 2}, "groups"),
        ({"num_levels": 0}, "num_levels"),
        ({"num_levels": 3, "out_channels": 6}, "out_channels"),
    ):
        with pytest.raises(ValueError, match=match):
            nn.PyConv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **kwargs})
    assert [conv.groups for conv in nn.PyConv2d(4, 8, 3, 2, groups=[2, 4])] == [2, 4]
    assert nn.PyConv2d(4, 8, 3, 1, groups=[2])[0].groups == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {},
        {"padding": 2},
        {"padding": 1, "groups": 2, "reduction_ratio": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "stride": 2},
        {"padding": 0, "stride": 3},
    ],
    ids=str,
)
def test_involution_equals_formula(settings):
    torch.manual_seed(0)
    module = nn.Involution2d(4, 3, **settings).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    s, p, d, g = (
        settings.get(key, default) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    )
    out = module(x)
    assert out.shape == nnf.conv2d(x, torch.zeros(4, 4, 3, 3).double(), None, s, p, d).shape

    def kernel_at(n, row, col):
        """From the mean of the pixels under the centre of the window and the stride - 1 that follow it."""
        pixels = []
        for i, j in itertools.product(range(row, row + s), range(col, col + s)):
            if i < 7 - d + p and j < 8 - d + p:  # a window fits around it
                inside = 0 <= i < 7 and 0 <= j < 8
                pixels.append(x[n, :, i, j] if inside else torch.zeros(4, dtype=torch.float64))
        mean = torch.stack(pixels).mean(0)
        reduced = module.reduce.weight.flatten(1) @ mean + module.reduce.bias
        return (module.span.weight.flatten(1) @ reduced + module.span.bias).view(g, 3, 3)

    for i, j, window in windows_of(x.numpy(), 3, s, p, d):
        for n in range(2):
            kernel = kernel_at(n, i * s - p + d, j * s - p + d).repeat_interleave(4 // g, 0).detach().numpy()
            np.testing.assert_allclose(out[n, :, i, j].detach().numpy(), (window[n] * kernel).sum((1, 2)), rtol=1e-8)


def test_involution_refuses_and_keeps_its_names():
    with pytest.raises(ValueError, match="groups"):
        nn.Involution2d(6, 3, groups=4)
    with pytest.raises(ValueError, match="reduction_ratio"):
        nn.Involution2d(6, 3, reduction_ratio=8)
    module = nn.Involution2d(4, 3, 1, reduction_ratio=2)
    assert list(module.state_dict()) == ["reduce.weight", "reduce.bias", "span.weight", "span.bias"]
    assert gradcheck(module.double(), torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("layer", ["norm", "add", "involution"])
def test_no_loop_over_pixels_or_channels(layer):
    """The number of traced operations does not depend on the size of the problem."""

    def count(channels, size):
        module = {
            "norm": lambda: nn.NormConv2d(channels, channels, 3, padding=1),
            "add": lambda: nn.Add2d(channels, channels, 3, padding=1),
            "involution": lambda: nn.Involution2d(channels, 3, 1),
        }[layer]()
        return len(torch.export.export(module, (torch.randn(1, channels, size, size),)).graph.nodes)

    assert count(2, 4) == count(8, 12)
