"""Rounding in torch against ONNX Runtime's operators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from calib import TensorRange
from export.quantize.fake import FakeQuantizer
from export.quantize.qdq import activation_params

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
