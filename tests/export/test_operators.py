"""What people's own modules are made of: each through tracing, both INT8 schemes, the gate and a TensorRT builder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib import find_images
from export.engine import build_engine
from export.float16 import to_float16
from export.gate import tensorrt10_problems
from export.quantize import calibrate, quantize
from export.trace import trace
from runtime.backends import open_session
from runtime.manifest import EngineInfo, Preprocessing
from runtime.preprocess import Preprocessor

RTX = EngineInfo("tensorrt_rtx", "1", "8.6", 2)
PREPROCESSING = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Module(nn.Module):
    """A function of an image and some layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def attention(x, stem, q, k, v, out):
    tokens = stem(x).flatten(2).transpose(1, 2)
    weights = torch.softmax(q(tokens) @ k(tokens).transpose(1, 2) / 4, -1)
    return out(weights @ v(tokens)).transpose(1, 2)


def gated(x, stem, squeeze, out):
    x = F.silu(stem(x))
    return out(x * torch.sigmoid(squeeze(F.adaptive_avg_pool2d(x, 1))))


def dense(x, stem, middle, out):
    x = F.mish(stem(x))
    a, b = x.chunk(2, 1)
    return out(torch.cat([a, F.max_pool2d(middle(b), 5, 1, 2), x[:, 2:4]], 1))


conv = nn.Conv2d


KINDS = {
    "transposed convolution": lambda: Module(
        lambda x, a, t, b: b(F.relu(t(F.relu(a(x))))), conv(3, 8, 3), nn.ConvTranspose2d(8, 12, 4, 2, 1), conv(12, 4, 1)
    ),
    "transposed convolution in groups": lambda: Module(
        lambda x, a, t, b: b(t(F.relu(a(x)))), conv(3, 8, 3), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), conv(12, 4, 1)
    ),
    "matrices on pixels": lambda: Module(
        lambda x, a, b, c: c(F.gelu(b(a(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        conv(3, 8, 4, 4),
        nn.Linear(8, 16),
        nn.Linear(16, 8),
    ),
    "attention": lambda: Module(attention, conv(3, 16, 8, 8), *[nn.Linear(16, 16) for _ in range(4)]),
    "squeeze and excitation": lambda: Module(gated, conv(3, 8, 3), conv(8, 8, 1), conv(8, 4, 1)),
    "parts that are joined": lambda: Module(dense, conv(3, 8, 3), conv(4, 6, 1), conv(12, 4, 1)),
    "group normalization": lambda: Module(
        lambda x, a, n, b: b(F.hardswish(n(a(x)))), conv(3, 8, 3), nn.GroupNorm(2, 8), conv(8, 4, 1)
    ),
    "layer normalization": lambda: Module(
        lambda x, a, n, b: b(n(a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        conv(3, 8, 3),
        nn.LayerNorm(8),
        conv(8, 4, 1),
    ),
    "pixels shuffled both ways": lambda: Module(
        lambda x, a, b: F.pixel_shuffle(b(F.leaky_relu(F.pixel_unshuffle(a(x), 2), 0.1)), 2),
        conv(3, 8, 3, padding=1),
        conv(32, 16, 1),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_traced_quantized_and_built(kind, photos):
    pytest.importorskip("tensorrt_rtx")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = KINDS[kind]().eval()
    images = find_images(photos)[:4]
    batch = Preprocessor(PREPROCESSING).batch(images)
    with torch.no_grad():
        expected = module(torch.from_numpy(batch)).numpy()
    graph = trace(module, (32, 32))
    ranges = calibrate(graph, images, PREPROCESSING, "minmax")
    graphs = {
        "fp32": (graph, 1e-5),
        "fp16": (to_float16(graph), 5e-3),
        "cpu": (quantize(graph, ranges, "cpu"), 0.05),
        "trt": (quantize(graph, ranges, "trt"), 0.05),
    }
    for name, (model, bound) in graphs.items():
        data = model.SerializeToString()
        ours = open_session(data, "onnxruntime", 1).run(batch)["logits"]
        assert np.linalg.norm(ours - expected) <= bound * np.linalg.norm(expected), name
        if name != "cpu":
            assert tensorrt10_problems(model) == []
            assert build_engine(data, RTX)
