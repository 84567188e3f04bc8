import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from holocron import nn
from holocron.nn import functional as F


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_concat_downsample_stacks_sub_images(n, c, h, w, scale):
    x = torch.arange(n * c * h * w * scale**2, dtype=torch.float32).view(n, c, h * scale, w * scale)
    out = nn.ConcatDownsample2d(scale)(x)
    assert out.shape == (n, c * scale**2, h, w)
    for i in range(scale):
        for j in range(scale):
            first = (i * scale + j) * c
            assert torch.equal(out[:, first : first + c], x[:, :, i::scale, j::scale])


def test_concat_downsample_is_a_reordering_of_pixel_unshuffle():
    x = torch.randn(2, 3, 6, 4)
    interleaved = nnf.pixel_unshuffle(x, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(F.concat_downsample2d(x, 2), interleaved)


@pytest.mark.parametrize(
    ("shape", "scale", "match"), [((1, 1, 5, 4), 2, "divide"), ((1, 4, 4), 2, "x has"), ((1, 1, 4, 4), 0, "1 or")]
)
def test_concat_downsample_refuses(shape, scale, match):
    with pytest.raises(ValueError, match=match):
        F.concat_downsample2d(torch.zeros(shape), scale)


def test_concat_downsample_module_refuses():
    with pytest.raises(ValueError, match="scale_factor"):
        nn.ConcatDownsample2d(0)


@pytest.mark.parametrize("flatten", [False, True])
def test_global_pools(flatten):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    shape = (2, 3) if flatten else (2, 3, 1, 1)
    average, maximum = nn.GlobalAvgPool2d(flatten), nn.GlobalMaxPool2d(flatten)
    torch.testing.assert_close(average(x), nnf.adaptive_avg_pool2d(x, 1).view(shape))
    torch.testing.assert_close(maximum(x), nnf.adaptive_max_pool2d(x, 1).view(shape))
    assert gradcheck(average, x)
    assert gradcheck(maximum, x)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_z_pool(dim):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    array = x.detach().numpy()
    expected = np.concatenate([array.max(dim, keepdims=True), array.mean(dim, keepdims=True)], dim)
    np.testing.assert_allclose(nn.ZPool(dim)(x).detach().numpy(), expected)
    assert gradcheck(nn.ZPool(dim), x)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_blur_pool_equals_formula(kernel_size, stride):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64, requires_grad=True)
    row = np.array([1.0])
    for _ in range(kernel_size - 1):
        row = np.convolve(row, [0.5, 0.5])
    pad = (stride - 1 + kernel_size - 1) // 2
    padded = np.pad(x.detach().numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="reflect")
    h, w = ((size + 2 * pad - kernel_size) // stride + 1 for size in x.shape[2:])
    expected = np.zeros((2, 3, h, w))
    for i, j in np.ndindex(h, w):
        window = padded[:, :, i * stride : i * stride + kernel_size, j * stride : j * stride + kernel_size]
        expected[:, :, i, j] = np.einsum("nchw,h,w->nc", window, row, row)
    module = nn.BlurPool2d(3, kernel_size, stride).double()
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(module(torch.ones_like(x)), torch.ones(2, 3, h, w, dtype=torch.float64))


def test_blur_pool_holds_no_state_and_follows_the_type_of_its_input():
    module = nn.BlurPool2d(2)
    assert not module.state_dict()
    assert not list(module.parameters())
    assert module(torch.ones(1, 2, 7, 8)).shape == (1, 2, 4, 4)
    assert module(torch.ones(1, 2, 7, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    for kernel_size in (1, 0):
        with pytest.raises(AssertionError, match="kernel_size"):
            nn.BlurPool2d(2, kernel_size)


def test_spp_stacks_the_input_and_its_maxima():
    x = torch.randn(2, 3, 7, 6)
    out = nn.SPP([3, 5])(x)
    assert torch.equal(out[:, :3], x)
    for idx, size in enumerate((3, 5), start=1):
        windows = nnf.pad(x, [size // 2] * 4, value=-torch.inf).unfold(2, size, 1).unfold(3, size, 1)
        assert torch.equal(out[:, 3 * idx : 3 * idx + 3], windows.amax((-1, -2)))
    with pytest.raises(ValueError, match="odd"):
        nn.SPP([3, 4])
