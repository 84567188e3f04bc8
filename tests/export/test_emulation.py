"""Layers put into INT8 one by one, in networks that give out what they read on: against graphs that are mixed so."""

import numpy as np
import pytest
import torch
from onnx import helper

from calib import TensorRange
from export.float16 import to_float16
from export.quantize import insert_qdq, tensors_to_observe
from export.quantize.emulation import Emulation
from export.quantize.mixed import keep_float, layer_names

SCHEMES = ("cpu", "trt")


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def pyramid(make_onnx):
    """Two levels of features, both given out, of which the second is made of the first."""
    return make_onnx(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["fine"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["fine"], ["r"]),
            helper.make_node("Conv", ["r", "w2"], ["c"], group=2),
            helper.make_node("Conv", ["fine", "w3", "b3"], ["side"]),
            helper.make_node("Add", ["c", "side"], ["coarse"]),
        ],
        {"x": ["n", 3, 6, 5]},
        {"fine": ["n", 8, 6, 5], "coarse": ["n", 4, 6, 5]},
        {
            "w1": random(8, 3, 3, 3),
            "b1": random(8),
            "w2": random(4, 4, 1, 1),
            "w3": random(4, 8, 1, 1),
            "b3": random(4),
        },
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_given_out_and_read_on_is_rounded_for_its_readers_alone(pyramid, ort_run, scheme):
    x = random(3, 3, 6, 5)
    ranges = dict.fromkeys(tensors_to_observe(pyramid), TensorRange(-20.0, 20.0, 20.0, (-20.0, 20.0)))
    quantized = insert_qdq(pyramid, ranges, scheme)
    emulation = Emulation(quantized, pyramid, scheme)
    names = layer_names(pyramid)
    found = {name: outputs for name, outputs, _ in emulation.one_by_one(torch.from_numpy(x))}
    assert sorted(found) == sorted(names)
    exact = ort_run(pyramid, {"x": x})
    for name in names:
        mixed = keep_float(quantized, pyramid, scheme, [other for other in names if other != name])
        ran = ort_run(mixed, {"x": x}, optimize=False)
        together = emulation.run(torch.from_numpy(x), {other for other in names if other != name})
        for output in ("fine", "coarse"):
            # A value between two codes may fall to either side.
            off = np.linalg.norm(found[name][output].numpy() - ran[output])
            assert off <= 5e-3 * np.linalg.norm(exact[output]), (name, output)
            if scheme == "cpu":
                assert torch.equal(found[name][output], together[output])
            else:  # where what is not in integers is float16
                difference = (found[name][output] - together[output]).norm()
                assert difference <= 5e-3 * np.linalg.norm(exact[output])
    np.testing.assert_allclose(found["side"]["fine"].numpy(), exact["fine"], rtol=1e-4, atol=1e-4)


def test_float16_is_what_the_exported_graph_makes_of_it(pyramid, ort_run):
    x = random(3, 3, 6, 5)
    ranges = dict.fromkeys(tensors_to_observe(pyramid), TensorRange(-20.0, 20.0, 20.0, (-20.0, 20.0)))
    quantized = insert_qdq(pyramid, ranges, "trt")
    emulation = Emulation(quantized, pyramid, "trt")
    for kept in ((), layer_names(pyramid)[:1], layer_names(pyramid)):
        ran = ort_run(to_float16(keep_float(quantized, pyramid, "trt", kept)), {"x": x}, optimize=False)
        found = emulation.run(torch.from_numpy(x), kept)
        for output in ("fine", "coarse"):
            value = found[output]
            assert torch.equal(value, value.half().float())
            # To the last bit of float16 or two, or where a value between two codes falls to the other side.
            same = np.isclose(value.numpy(), ran[output], rtol=2e-3, atol=2e-3)
            assert same.mean() > 0.9, (kept, output)
