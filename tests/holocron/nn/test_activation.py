import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from holocron import nn
from holocron.nn import functional as F


def hard_mish_reference(x):
    return x / 2 * np.minimum(2, np.maximum(0, x + 2))


def nl_relu_reference(x, beta):
    return np.log(1 + beta * np.maximum(0, x))


ARRAYS = st.lists(st.floats(-1e3, 1e3), max_size=12).map(lambda values: torch.tensor(values, dtype=torch.float64))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=ARRAYS, beta=st.floats(0, 10), inplace=st.booleans())
def test_activations_equal_formula(x, beta, inplace):
    for function, reference in (
        (F.hard_mish, hard_mish_reference),
        (lambda x, inplace: F.nl_relu(x, beta, inplace), lambda x: nl_relu_reference(x, beta)),
    ):
        given_x = x.clone()
        out = function(given_x, inplace=inplace)
        np.testing.assert_allclose(out.numpy(), reference(x.numpy()), rtol=1e-12, atol=1e-12)
        assert (out is given_x) == inplace
        if not inplace:
            assert torch.equal(given_x, x)


@pytest.mark.parametrize("module", [nn.HardMish(), nn.HardMish(True), nn.NLReLU(2.0), nn.NLReLU(2.0, True)], ids=repr)
def test_activation_gradient(module):
    # Away from the kinks at -2 and 0, where there is no derivative
    x = torch.tensor([-5.0, -2.5, -1.5, -0.5, 0.5, 3.0, 40.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: module(x.clone()), x)


def test_gradients_of_both_forms_agree_at_the_kink():
    for module in (nn.NLReLU, nn.HardMish):
        grads = []
        for inplace in (False, True):
            x = torch.tensor([-2.0, 0.0], requires_grad=True)
            module(inplace=inplace)(x.clone()).sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads)


def test_nl_relu_keeps_small_activations():
    assert F.nl_relu(torch.tensor(1e-9)) == torch.tensor(1e-9)


@pytest.mark.parametrize("call", [lambda: nn.NLReLU(-1.0), lambda: F.nl_relu(torch.ones(1), -1.0)])
def test_negative_slope_is_refused(call):
    with pytest.raises(ValueError, match="beta"):
        call()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_frelu_equals_formula(kernel_size):
    torch.manual_seed(0)
    module = nn.FReLU(3, kernel_size).double().eval()
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)

    pad = kernel_size // 2
    padded = np.pad(x.detach().numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    condition = np.zeros(x.shape)
    weight, bias = (p.detach().numpy() for p in (module.conv.weight, module.conv.bias))
    for n, c, i, j in np.ndindex(*x.shape):
        window = padded[n, c, i : i + kernel_size, j : j + kernel_size]
        condition[n, c, i, j] = (window * weight[c, 0]).sum() + bias[c]
    mean, var = (s.numpy().reshape(1, -1, 1, 1) for s in (module.bn.running_mean, module.bn.running_var))
    condition = (condition - mean) / np.sqrt(var + module.bn.eps)
    np.testing.assert_allclose(module(x).detach().numpy(), np.maximum(x.detach().numpy(), condition), rtol=1e-9)
    assert gradcheck(module, x[:1, :, :2, :2].detach().requires_grad_())


def test_frelu_refuses_even_kernels():
    with pytest.raises(ValueError, match="kernel_size"):
        nn.FReLU(3, 2)


def test_repr_names_the_settings():
    assert repr(nn.NLReLU(2.0, True)) == "NLReLU(beta=2.0, inplace=True)"
    assert repr(nn.HardMish()) == "HardMish()"
