"""Rounding in torch against ONNX Runtime's operators, and its gradients against those of the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from calib import TensorRange
from export.quantize.fake import FakeQuantizer, fake_quantize
from export.quantize.qdq import QuantParams, activation_params

values = hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-300, 300, width=32))


@pytest.mark.parametrize("scheme", ["cpu", "trt"])
@settings(max_examples=30, deadline=None)
@given(x=values, low=st.floats(-200, 0), high=st.floats(0.1, 200))
def test_it_is_what_a_pair_of_onnx_operators_makes_of_a_tensor(scheme, x, low, high, make_onnx, ort_run):
    params = activation_params(TensorRange(low, high, max(-low, high), (low, high)), scheme)
    pair = make_onnx(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {"x": ["n"]},
        {"y": ["n"], "q": (["n"], TensorProto.UINT8 if scheme == "cpu" else TensorProto.INT8)},
        {"s": params.scale, "z": params.zero_point},
    )
    expected = ort_run(pair, {"x": x}, optimize=False)["y"]
    ours = FakeQuantizer(params)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=float(params.scale) * 1.001)
    assert (np.abs(ours - expected) > 1e-5 * float(params.scale) * 256).mean() <= 0.05, "ties alone may differ"


@given(values, st.floats(0.01, 5), st.sampled_from([(0.0, -128.0, 127.0), (3.0, 0.0, 15.0), (128.0, 0.0, 255.0)]))
@settings(deadline=None)
def test_both_forms_round_alike(x, step, codes):
    zero, low, high = codes
    scale = torch.tensor(step)
    ours = fake_quantize(torch.from_numpy(x), scale, zero, low, high)
    step = float(scale)
    expected = (np.clip(np.rint(x / np.float32(step)) + zero, low, high) - zero) * np.float32(step)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6)
    if (low, high) in ((-128.0, 127.0), (0.0, 255.0)):
        point = np.array(zero, np.uint8 if high == 255 else np.int8)
        again = FakeQuantizer(QuantParams(np.float32(step), point))(torch.from_numpy(x))
        torch.testing.assert_close(ours, again)


@given(values, st.floats(0.05, 5), st.sampled_from([(0.0, -8.0, 7.0), (3.0, 0.0, 15.0)]))
@settings(deadline=None)
def test_gradients_are_those_of_rounding_taken_for_the_identity(x, step, codes):
    """y = s · (clip(round(x/s) + z) − z), differentiated by torch with round as x + (round(x) − x) held constant."""
    zero, low, high = codes
    results = []
    for form in ("ours", "definition"):
        v = torch.from_numpy(x).double().requires_grad_()
        s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        if form == "ours":
            y = fake_quantize(v, s, zero, low, high)
        else:
            u = v / s
            rounded = u + (torch.round(u) - u).detach()
            inside = (torch.round(u) + zero >= low) & (torch.round(u) + zero <= high)
            ends = torch.clamp(torch.round(u) + zero, low, high).detach() - zero
            y = s * torch.where(inside, rounded, ends)
        weights = torch.linspace(-1, 2, len(x), dtype=torch.float64)
        results.append((y.detach(), *torch.autograd.grad((y * weights).sum(), (v, s))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
