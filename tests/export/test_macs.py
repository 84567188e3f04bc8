"""Counting against closed forms, and against PyTorch's own counter."""

import numpy as np
import pytest
import torch
import torchvision
from onnx import helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from export.errors import ExportError
from export.macs import count_macs, node_macs
from export.trace import trace
from holocron import models


def build(make, nodes, inputs, outputs, initializers=None):
    return make(nodes, inputs, outputs, {k: np.zeros(v, np.float32) for k, v in (initializers or {}).items()})


@pytest.mark.parametrize(
    ("operator", "attributes", "weight", "shape", "expected"),
    [
        # 8 output channels, 10 × 6 positions, 3 input channels, 3 × 3 kernel
        ("Conv", {"pads": [1, 1, 1, 1]}, (8, 3, 3, 3), (3, 10, 6), 8 * 10 * 6 * 3 * 9),
        ("Conv", {"strides": [2, 2]}, (8, 3, 3, 3), (3, 11, 7), 8 * 5 * 3 * 3 * 9),
        ("Conv", {"group": 3}, (3, 1, 1, 5), (3, 10, 6), 3 * 10 * 2 * 5),
        ("Conv", {"dilations": [2, 2]}, (8, 3, 3, 3), (3, 10, 6), 8 * 6 * 2 * 27),
        ("ConvTranspose", {"strides": [2, 2]}, (3, 8, 2, 2), (3, 10, 6), 3 * 10 * 6 * 8 * 4),
        # larger than what is copied with its values
        ("Conv", {}, (512, 64, 1, 1), (64, 2, 2), 512 * 64 * 4),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions(operator, attributes, weight, shape, expected, batch, make_onnx):
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], **attributes)]
    model = build(make_onnx, nodes, {"x": ["n", *shape]}, {"y": ["n", None, None, None]}, {"w": weight})
    assert count_macs(model, batch) == batch * expected


def test_matrix_products(make_onnx):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Gemm", ["v", "h"], ["g"], transA=1),
        helper.make_node("MatMul", ["q", "k"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    model = build(
        make_onnx,
        nodes,
        {"x": [4, 20], "v": [4, 5], "q": [2, 7, 6], "k": [2, 6, 9]},
        {"g": [5, 30], "y": [2, 7, 9]},
        {"w": (30, 20), "b": (30,)},
    )
    assert count_macs(model) == 4 * 20 * 30 + 5 * 4 * 30 + 2 * 7 * 6 * 9


def test_a_shape_that_is_not_known(make_onnx):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Conv", ["r", "w"], ["y"], name="stem")]
    model = make_onnx(
        nodes,
        {"x": [1, 12], "s": ([4], 7)},
        {"y": [1, 8, None, None]},
        {"w": np.zeros((8, 3, 1, 1), np.float32)},
    )
    with pytest.raises(ExportError, match=r"the shape of 'y' at Conv 'stem' cannot be inferred"):
        count_macs(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet18(num_classes=7),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
        lambda: models.repvgg_a0(num_classes=7),
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.Flatten(), nn.LazyLinear(5)
        ),
    ],
)
def test_networks(make):
    model = make().eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 32, 32))
    assert count_macs(trace(model, (32, 32))) == counter.get_total_flops() // 2


def test_macs_of_each_node_add_up_in_graph_order(tiny_onnx):
    each = node_macs(tiny_onnx)
    assert sum(each.values()) == count_macs(tiny_onnx)
    assert [name for node in tiny_onnx.graph.node for name in node.output if name in each] == list(each)
    assert list(each.values()) == [16 * 27 * 120, 16 * 9 * 120, 16 * 16 * 120, 16 * 5]
