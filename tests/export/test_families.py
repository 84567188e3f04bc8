"""The table: every RepVGG and MobileOne as float32, float16 and INT8, against PyTorch and real TensorRT builders."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from calib import find_images, sample_folder
from export.engine import build_engine
from export.float16 import check_activations, to_float16
from export.gate import tensorrt10_problems
from export.quantize import calibrate, quantize
from export.source import from_module
from export.trace import trace
from holocron import models
from runtime.manifest import EngineInfo, Preprocessing
from runtime.preprocess import Preprocessor

CLASSES = 10
RTX = EngineInfo("tensorrt_rtx", "1", "8.6", 2)
LARGEST_ERROR = 1e-5
OPERATORS = {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}

SMALL = [("mobileone_s0", 32), ("repvgg_a0", 32)]
REST = [
    *[(f"repvgg_{kind}", 224) for kind in ("a0", "a1", "a2", "b0", "b1", "b2", "b3")],
    *[(f"mobileone_s{i}", 224) for i in range(4)],
]
TABLE = SMALL + [pytest.param(*entry, marks=pytest.mark.slow) for entry in REST]


def build(arch, batch, seed=0):
    """A model whose normalization is nothing like that of a new one, yet keeps its activations within float16."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = models.build_model(arch, num_classes=CLASSES)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            norm.momentum = 1.0  # the statistics of the next batch, of which the scale of each layer is kept
        model.train()(batch)
        for norm in norms:
            scale = norm.running_var.mean()
            norm.running_mean.normal_(std=0.1).mul_(scale.sqrt())
            norm.running_var.uniform_(0.5, 2.0).mul_(scale)
    return model.eval()


def relative_error(ours, reference):
    return np.linalg.norm(ours.astype(np.float64) - reference) / np.linalg.norm(reference.astype(np.float64))


@pytest.mark.parametrize(("arch", "size"), TABLE)
def test_every_builder(arch, size, ort_run, op_counts, record_property):
    pytest.importorskip("tensorrt_rtx")
    preprocessing = Preprocessing((size, size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = find_images(sample_folder(), 8)
    batch = Preprocessor(preprocessing).batch(images)
    module = build(arch, torch.from_numpy(batch))
    with torch.inference_mode():
        trained = module(torch.from_numpy(batch)).numpy()
    assert np.ptp(trained, axis=0).max() > 0.01 * np.abs(trained).max()  # it tells the photographs apart

    source = from_module(copy.deepcopy(module), arch, preprocessing)
    with torch.inference_mode():
        fused = source.module(torch.from_numpy(batch)).numpy()
    graph = trace(source.module, (size, size))
    assert set(op_counts(graph)) == OPERATORS
    logits = ort_run(graph, {"input": batch})["logits"]
    errors = {"training form": relative_error(logits, trained), "reparameterized": relative_error(logits, fused)}
    record_property("relative_error", str(errors))
    print(arch, size, errors)
    assert max(errors.values()) <= LARGEST_ERROR

    check_activations(graph, images[:2], preprocessing)
    half = to_float16(graph)
    assert relative_error(ort_run(half, {"input": batch})["logits"], fused) <= 2e-2
    ranges = calibrate(graph, images[:4], preprocessing, "minmax").ranges
    integer = quantize(graph, ranges, "trt")
    assert op_counts(integer)["QuantizeLinear"] == op_counts(graph)["Conv"] + op_counts(graph)["Gemm"]
    assert relative_error(ort_run(integer, {"input": batch[:2]})["logits"], fused[:2]) <= 0.5
    for model in (graph, half, integer):
        assert tensorrt10_problems(model) == []
        assert build_engine(model.SerializeToString(), RTX)


def test_the_table_has_every_builder():
    families = [name for name in models.list_models("classification") if name.startswith(("repvgg", "mobileone"))]
    assert sorted(arch for arch, _ in REST) == sorted(families)
    assert len(families) == 11
