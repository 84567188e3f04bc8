"""The table: every builder as float32, float16 and INT8, against PyTorch on photographs and a real TensorRT builder."""

from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

from calib import find_images, sample_folder
from export.engine import build_engine
from export.float16 import check_activations, to_float16
from export.gate import tensorrt10_problems
from export.quantize import calibrate, quantize
from export.quantize.layers import operators_left_float
from export.source import from_module
from export.tasks import task_export
from export.trace import trace
from holocron import models
from holocron.models.classification.convnext import LayerScale
from holocron.models.classification.residual import ResidualBlock
from runtime.backends import open_session
from runtime.manifest import EngineInfo, Preprocessing
from runtime.preprocess import Preprocessor

CLASSES = 10
RTX = EngineInfo("tensorrt_rtx", "1", "8.6", 2)
LARGEST_ERROR = 1e-4
LARGEST_FLOAT16_ERROR = 2e-2
LARGEST_INT8_ERROR = 0.5

# Small inputs: what differs between the families is the graph, which does not depend on them.
SIZES = {"yolov1": 448, "yolov2": 64, "yolov4": 64} | dict.fromkeys(models.list_models("segmentation"), 64)
SMALLEST = 32
# One of each kind of graph, small enough for every run.
DEFAULT = ("mobileone_s0", "convnext_atto", "unet")

PLAIN = {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}
"""What a fused network is made of, and all that it is made of."""
RESIDUAL = PLAIN | {"MaxPool", "AveragePool", "Add", "Concat", "Split"}
DARKNET = (PLAIN - {"Relu"}) | {"LeakyRelu", "MaxPool", "Add"}
OPERATORS = {
    "repvgg": PLAIN,
    "mobileone": PLAIN,
    "resn": RESIDUAL,
    "res2net": RESIDUAL,
    "pyconv": RESIDUAL,
    "tridentnet": RESIDUAL,
    "darknet": DARKNET,
}

TABLE = [
    pytest.param(name, SIZES.get(name, SMALLEST), marks=() if name in DEFAULT else pytest.mark.slow)
    for name in models.list_models()
]


def prepare(module, run, seed=0):
    """Normalization that is nothing like that of a new model, yet keeps activations within float16; layer scales too.

    What a residual branch adds is small beside what it adds it to, as training makes it. Dozens of branches as large as
    that multiply rounding errors: with them sknet152's weights moved by half a unit of float16, all else in float32,
    move its output by 7 %, as much as PyTorch's own float16 does.

    Args:
        module: the model, which is changed in place
        run: feeds it photographs
        seed: of all that is drawn
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            norm.momentum = 1.0  # the statistics of the next batch, of which the scale of each layer is kept
        for part in module.modules():
            if isinstance(part, LayerScale):
                nn.init.uniform_(part.weight, 0.05, 0.5)
            elif isinstance(part, ResidualBlock):
                last = [m for m in part.conv.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][-1]
                nn.init.uniform_(last.weight, 0.1, 0.4)
        module.train()
        run(module)
        for norm in norms:
            scale = norm.running_var.mean()
            norm.running_mean.normal_(std=0.1).mul_(scale.sqrt())
            norm.running_var.uniform_(0.5, 2.0).mul_(scale)
    module.eval()


def relative_error(ours, reference):
    return np.linalg.norm(ours.astype(np.float64) - reference) / np.linalg.norm(reference.astype(np.float64))


def largest_error(ours, reference):
    return max(relative_error(ours[name], reference[name]) for name in reference)


def answer(module, method, batch):
    with torch.inference_mode():
        out = getattr(module, method)(torch.from_numpy(batch))
    return [tensor.numpy().copy() for tensor in (out if isinstance(out, (list, tuple)) else [out])]


def run_graph(data, batch):
    """Through the runtime's own session, which computes INT8 exactly on processors without its dot products."""
    session = open_session(data, "onnxruntime", 1)
    try:
        return session.run({"input": batch})
    finally:
        session.close()


def build(arch, batch):
    """The model with random weights and the normalization of a trained one; nothing is fetched for its backbone."""
    info = models.get_model_info(arch)
    offline = {"pretrained_backbone": False} if "pretrained_backbone" in signature(info.builder).parameters else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build_model(arch, num_classes=CLASSES, **offline)
    method = task_export(info.task).method
    prepare(model, lambda m: getattr(m, method)(torch.from_numpy(batch)))
    return model, method


@pytest.mark.parametrize(("arch", "size"), TABLE)
def test_every_builder(arch, size, op_counts, record_property):
    pytest.importorskip("tensorrt_rtx")
    info = models.get_model_info(arch)
    preprocessing = Preprocessing((size, size), info.mean, info.std)
    images = find_images(sample_folder(), 4)
    batch = Preprocessor(preprocessing).batch(images)
    model, method = build(arch, batch)
    trained = answer(model, method, batch)
    for output in trained:
        assert np.ptp(output, axis=0).max() > 0.01 * np.abs(output).max()  # it tells the photographs apart

    source = from_module(model, arch, preprocessing, task=info.task)  # reparameterized in place from here on
    names = [output.name for output in source.outputs]
    assert [output.shape[1:] for output in source.outputs] == [output.shape[1:] for output in trained]
    reference = dict(zip(names, trained, strict=True))
    fused = dict(zip(names, answer(source.module, "forward", batch), strict=True))
    graph = trace(source.module, (size, size), output_names=names)
    del model, source
    assert_nothing_is_left(arch, op_counts(graph))
    check_activations(graph, images[:2], preprocessing)
    ranges = calibrate(graph, images, preprocessing, "minmax")
    for scheme in ("cpu", "trt"):
        assert not {o.operator for o in operators_left_float(graph, scheme)} & {"Conv", "Gemm"}

    # One after the other: the largest has 350 million parameters.
    bounds = {"fp32": LARGEST_ERROR, "fp16": LARGEST_FLOAT16_ERROR, "int8.cpu": LARGEST_INT8_ERROR}
    bounds["int8.trt"] = LARGEST_INT8_ERROR
    for kind, bound in bounds.items():
        data = make(kind, graph, ranges)
        ours = run_graph(data, batch)
        errors = {"training form": largest_error(ours, reference), "fused": largest_error(ours, fused)}
        record_property(kind, str(errors))
        print(f"{arch} {size} {kind} {errors['training form']:.1e} {errors['fused']:.1e}")
        assert max(errors.values()) <= bound, kind
        assert kind == "int8.cpu" or build_engine(data, RTX)


def make(kind, graph, ranges):
    """One graph as a file; what is for TensorRT has passed the gate."""
    precision, _, scheme = kind.partition(".")
    if precision == "int8":
        graph = quantize(graph, ranges, scheme)
    elif precision == "fp16":
        graph = to_float16(graph)
    assert scheme == "cpu" or tensorrt10_problems(graph) == []
    return graph.SerializeToString()


def assert_nothing_is_left(arch, counts):
    """Of what the graph need not have: shapes that are computed, normalization that folds, identities."""
    assert not set(counts) & {"Identity", "Dropout", "Shape", "Gather", "Constant", "Cast", "Expand", "If", "Loop"}
    family = next((family for family in OPERATORS if arch.startswith(family)), None)
    if family is not None:
        assert set(counts) <= OPERATORS[family]
    # What a decoder normalizes of its encoder's features is read by the encoder too: that has nowhere to go.
    assert "BatchNormalization" not in counts or normalizes_its_encoder(arch)


def normalizes_its_encoder(arch):
    return models.get_model_info(arch).builder.__annotations__["return"] in (models.DynamicUNet, "DynamicUNet")


def test_the_table_has_every_builder():
    assert sorted(entry.values[0] for entry in TABLE) == models.list_models()
    assert len(TABLE) == 59
    assert {models.get_model_info(name).task for name in DEFAULT} == {"classification", "segmentation"}
