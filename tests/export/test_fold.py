"""Folding normalization and constant factors into layers, against ONNX Runtime on the graph as it was."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from export.fold import fold_layers
from export.trace import trace

SHAPE = [2, 6, 9, 7]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def norm(channels, seed=5):
    """Scale, shift, mean and variance of a trained normalization: the variances span four orders of magnitude."""
    generator = np.random.default_rng(seed)
    variance = 10.0 ** generator.uniform(-3, 1, channels)
    values = (generator.uniform(-1.5, 1.5, channels), generator.normal(size=channels), generator.normal(size=channels))
    return dict(zip("gbmv", [v.astype(np.float32) for v in (*values, variance)], strict=True))


def batch_norm(data, output, prefix="", **attributes):
    return helper.make_node("BatchNormalization", [data, *(prefix + k for k in "gbmv")], [output], **attributes)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], **attributes)


def prefixed(prefix, values):
    return {prefix + k: v for k, v in values.items()}


def pad(n):
    return {"pads": [n, n, n, n]}


W = random(8, 6, 3, 3)
CASES = {
    "behind a convolution": (
        [node("Conv", ["x", "w"], "c", **pad(1)), batch_norm("c", "y")],
        {"w": W, **norm(8)},
        [2, 8, 9, 7],
    ),
    "with a bias and another epsilon": (
        [node("Conv", ["x", "w", "bias"], "c"), batch_norm("c", "y", epsilon=0.1)],
        {"w": W, "bias": random(8), **norm(8)},
        [2, 8, 7, 5],
    ),
    "grouped": (
        [node("Conv", ["x", "w"], "c", group=3), batch_norm("c", "y")],
        {"w": random(12, 2, 3, 3), **norm(12)},
        [2, 12, 7, 5],
    ),
    "behind a transposed convolution": (
        [node("ConvTranspose", ["x", "w", "bias"], "c", strides=[2, 2]), batch_norm("c", "y")],
        {"w": random(6, 4, 2, 2), "bias": random(4), **norm(4)},
        [2, 4, 18, 14],
    ),
    "behind a transposed convolution in groups": (
        [node("ConvTranspose", ["x", "w"], "c", group=2), batch_norm("c", "y")],
        {"w": random(6, 2, 2, 2), **norm(4)},
        [2, 4, 10, 8],
    ),
    "before an unpadded convolution": (
        [batch_norm("x", "n"), node("Conv", ["n", "w", "bias"], "y", strides=[2, 2])],
        {"w": W, "bias": random(8), **norm(6)},
        [2, 8, 4, 3],
    ),
    "before a grouped convolution": (
        [batch_norm("x", "n"), node("Conv", ["n", "w"], "y", group=3)],
        {"w": random(9, 2, 1, 1), **norm(6)},
        [2, 9, 9, 7],
    ),
    "on both sides": (
        [batch_norm("x", "n"), node("Conv", ["n", "w"], "c"), batch_norm("c", "y", "o")],
        {"w": W, **norm(6), **prefixed("o", norm(8, 6))},
        [2, 8, 7, 5],
    ),
    "factor and addend": (
        [
            node("Conv", ["x", "w"], "c"),
            batch_norm("c", "n"),
            node("Mul", ["layer_scale", "n"], "scaled"),
            node("Sub", ["scaled", "one"], "s"),
            node("Div", ["s", "two"], "d"),
            node("Add", ["d", "addend"], "y"),
        ],
        {
            "w": W,
            **norm(8),
            "layer_scale": random(1, 8, 1, 1),
            "one": np.float32(1),
            "two": np.full((1, 1, 1), 2, np.float32),
            "addend": random(8, 1, 1),
        },
        [2, 8, 7, 5],
    ),
    "behind convolutions that a Concat joins": (
        [
            node("Conv", ["x", "w"], "a", **pad(1)),
            node("Conv", ["x", "w"], "e", pads=[2, 2, 2, 2], dilations=[2, 2]),
            node("Conv", ["x", "u"], "c"),
            node("Concat", ["a", "e", "c"], "j", axis=1),
            batch_norm("j", "y"),
        ],
        {"w": W, "u": random(3, 6, 1, 1), **norm(19)},
        [2, 19, 9, 7],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_and_the_answer_is_the_same(make_onnx, ort_run, op_counts, name):
    nodes, constants, shape = CASES[name]
    model = onnx.shape_inference.infer_shapes(make_onnx(nodes, {"x": SHAPE}, {"y": shape}, constants))
    x = random(*SHAPE, seed=1)
    expected = ort_run(model, {"x": x}, optimize=False)["y"]
    folded = fold_layers(copy.deepcopy(model))
    onnx.checker.check_model(folded)
    assert set(op_counts(folded)) <= {"Conv", "ConvTranspose", "Concat"}
    ours = ort_run(folded, {"x": x}, optimize=False)["y"]
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_matrices(make_onnx, ort_run, op_counts, transposed, before):
    w = random(5, 6) if transposed else random(6, 5)
    gemm = node("Gemm", ["n" if before else "x", "w", "bias"], "y" if before else "c", transB=int(transposed))
    nodes = [batch_norm("x", "n"), gemm] if before else [gemm, batch_norm("c", "y")]
    constants = {"w": w, "bias": random(5, seed=2), **norm(6 if before else 5)}
    model = onnx.shape_inference.infer_shapes(make_onnx(nodes, {"x": [3, 6]}, {"y": [3, 5]}, constants))
    x = random(3, 6, seed=1)
    expected = ort_run(model, {"x": x}, optimize=False)["y"]
    folded = fold_layers(copy.deepcopy(model))
    assert op_counts(folded) == {"Gemm": 1}
    np.testing.assert_allclose(ort_run(folded, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


STAY = {
    "a padded convolution behind": [batch_norm("x", "n"), node("Conv", ["n", "w"], "y", **pad(1))],
    "a convolution that pads by itself": [batch_norm("x", "n"), node("Conv", ["n", "w"], "y", auto_pad="SAME_UPPER")],
    "read twice": [
        node("Conv", ["x", "w"], "c", **pad(1)),
        batch_norm("c", "n"),
        node("Add", ["c", "n"], "y"),
    ],
    "given out": [node("Conv", ["x", "w"], "z", **pad(1)), batch_norm("z", "y")],
    "a rectifier between": [node("Conv", ["x", "w"], "c", **pad(1)), node("Relu", ["c"], "r"), batch_norm("r", "y")],
    "joined by rows": [
        node("Conv", ["x", "w"], "a", **pad(1)),
        node("Conv", ["x", "w"], "e", **pad(1)),
        node("Concat", ["a", "e"], "j", axis=2),
        batch_norm("j", "y"),
    ],
}


@pytest.mark.parametrize("name", STAY)
def test_what_cannot_fold_stays_in_a_form_that_float16_holds(make_onnx, ort_run, op_counts, name):
    constants = {"w": random(6, 6, 3, 3), **norm(6)}
    constants["v"] = constants["v"] * np.float32(1e6)  # beyond float16
    rows = 18 if name == "joined by rows" else 9
    outputs = {"y": [2, 6, rows, 7]} | ({"z": [2, 6, 9, 7]} if name == "given out" else {})
    model = onnx.shape_inference.infer_shapes(make_onnx(STAY[name], {"x": SHAPE}, outputs, constants))
    x = random(*SHAPE, seed=1)
    expected = ort_run(model, {"x": x}, optimize=False)
    folded = fold_layers(fold_layers(copy.deepcopy(model)))  # twice is as good as once
    onnx.checker.check_model(folded)
    assert op_counts(folded) == op_counts(model)
    ours = ort_run(folded, {"x": x}, optimize=False)
    for output in outputs:
        np.testing.assert_allclose(ours[output], expected[output], rtol=1e-4, atol=1e-5)
    (left,) = [n for n in folded.graph.node if n.op_type == "BatchNormalization"]
    values = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    np.testing.assert_array_equal(values[left.input[3]], 0)
    np.testing.assert_array_equal(values[left.input[4]], 1)


@pytest.mark.parametrize(
    ("constant", "shape"),
    [
        (random(1, 1, 1, 7), SHAPE),  # along the width
        (random(1, 6, 9, 1), SHAPE),  # along channels and height
        (random(3, 1, 1, 1, 1), [3, 2, 6, 9, 7]),  # more dimensions than the tensor
    ],
)
def test_constants_that_vary_otherwise_stay(make_onnx, ort_run, op_counts, constant, shape):
    nodes = [node("Conv", ["x", "w"], "c", **pad(1)), node("Mul", ["c", "k"], "y")]
    model = make_onnx(nodes, {"x": SHAPE}, {"y": shape}, {"w": random(6, 6, 3, 3), "k": constant})
    model = onnx.shape_inference.infer_shapes(model)
    expected = ort_run(model, {"x": random(*SHAPE)})["y"]
    folded = fold_layers(copy.deepcopy(model))
    assert op_counts(folded) == {"Conv": 1, "Mul": 1}
    np.testing.assert_array_equal(ort_run(folded, {"x": random(*SHAPE)})["y"], expected)


def test_a_weight_that_others_read_stays_for_them(make_onnx, ort_run):
    nodes = [
        node("Conv", ["x", "w"], "c", **pad(1)),
        batch_norm("c", "n"),
        node("Conv", ["n", "w"], "y", **pad(1)),
    ]
    model = make_onnx(nodes, {"x": SHAPE}, {"y": SHAPE}, {"w": random(6, 6, 3, 3), **norm(6)})
    model = onnx.shape_inference.infer_shapes(model)
    expected = ort_run(model, {"x": random(*SHAPE)}, optimize=False)["y"]
    ours = ort_run(fold_layers(copy.deepcopy(model)), {"x": random(*SHAPE)})["y"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


class Branches(nn.Module):
    """Shared weights under three dilations with one normalization, a normalization before a layer, a layer scale."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm, self.first, self.last = nn.BatchNorm2d(24), nn.BatchNorm2d(3), nn.BatchNorm1d(24)
        self.point, self.scale = nn.Conv2d(24, 24, 1), nn.Parameter(torch.rand(24, 1, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.first(x)
        parts = [nn.functional.conv2d(x, self.conv.weight, padding=d, dilation=d) for d in (1, 2, 3)]
        x = torch.relu(self.norm(torch.cat(parts, 1)))
        x = x + self.scale * self.point(x)
        return self.head(self.last(x.mean((2, 3))))


def test_a_traced_module_with_random_statistics(ort_run, op_counts):
    torch.manual_seed(0)
    module = Branches()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.1, 3)
    x = torch.randn(3, 3, 20, 16)
    module.eval()
    graph = trace(module, (20, 16))
    # The first one stands before padded convolutions: it is the one that stays.
    assert op_counts(graph)["BatchNormalization"] == 1
    assert "Mul" not in op_counts(graph)
    with torch.no_grad():
        expected = module(x).numpy()
    ours = ort_run(graph, {"input": x.numpy()})["logits"]
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
