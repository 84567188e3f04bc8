"""What is exported with learned ranges against the network that they were learned with, bit by bit where bits are."""

import functools
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.errors import QuantizationError
from export.gate import check_tensorrt10
from export.quantize.learned import LearnedRanges, insert_learned, quantize_learned, read_ranges
from export.trace import trace
from holocron import models
from holocron.models.classification.repvgg import RepVGG
from holocron.nn.quantization import (
    ActivationQuantizer,
    QuantizedConv2d,
    QuantizedLinear,
    convert,
    learned_ranges,
    prepare_qat,
    save_ranges,
)

SIZE = (24, 20)
CASES = [("trt", True), ("trt", False), ("cpu", True), ("cpu", False)]


def images(n=4, size=SIZE, seed=0):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A stem that pools, residual additions of which one is read twice, and a pooled head: what ResNets are made of."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU6()
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        out = torch.relu(self.a(x))
        out += x
        y = self.act(out)
        y = y + self.b(y)
        return self.head(self.drop(torch.flatten(self.avg(y), 1)))


class Excitation(nn.Module):
    """Gates and a curve, which stay float, between layers that do not; and a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.gelu = nn.GELU()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(gate)
        x = self.twice(self.gelu(self.twice(x))) + x
        return self.head(x.mean((2, 3)))


class Chain(nn.Module):
    """Plain, depthwise and pointwise, without a bias here and there."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.depthwise(self.stem(x).relu()).relu()
        return self.head(self.pointwise(x).relu().mean((2, 3), keepdim=True).flatten(1))


NETWORKS = {"chain": Chain, "residual": Residual, "excitation": Excitation}


def make(name):
    torch.manual_seed(3)
    net = NETWORKS[name]().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
    return net


def train(qat, steps=6):
    """A few updates, so that nothing is where the calibration put it."""
    optimizer = torch.optim.Adam(qat.parameters(), lr=3e-3)
    for step in range(steps):
        loss = torch.nn.functional.cross_entropy(qat(images(8, seed=10 + step)), torch.arange(8) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return qat.eval()


@functools.cache
def traced(name):
    return trace(convert(prepare_qat(make(name), images(2))), SIZE)


def graph_of(name, qat):
    """The graph of a trained network: its own weights in the one traced graph, since tracing takes long."""
    graph = onnx.ModelProto()
    graph.CopyFrom(traced(name))
    state = convert(qat).state_dict()
    for tensor in graph.graph.initializer:
        values = state.pop(tensor.name, None)
        if values is not None:
            tensor.CopyFrom(numpy_helper.from_array(values.numpy(), tensor.name))
    assert not state
    return graph


@functools.cache
def trained_case(name, scheme, per_channel):
    qat = train(prepare_qat(make(name), images(8), scheme, per_channel))
    return qat, graph_of(name, qat)


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_the_exported_graph_answers_as_the_trained_network(name, scheme, per_channel, ort_run):
    qat, graph = trained_case(name, scheme, per_channel)
    before = graph.SerializeToString()
    quantized = insert_learned(graph, read_ranges(learned_ranges(qat)))
    assert graph.SerializeToString() == before
    x = images(16, seed=5)
    with torch.no_grad():
        expected = qat(x).numpy()
    found = ort_run(quantized, {"input": x.numpy()}, optimize=False)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("scheme", "per_channel"), CASES)
def test_integers_and_scales_are_equal_bit_by_bit(name, scheme, per_channel):
    qat, graph = trained_case(name, scheme, per_channel)
    quantized = insert_learned(graph, read_ranges(learned_ranges(qat)))
    stored = initializers(quantized)
    layers = {n: m for n, m in qat.named_modules() if isinstance(m, (QuantizedConv2d, QuantizedLinear))}
    assert layers
    data = {n.target: qat.get_submodule(n.args[1].target) for n in qat.graph.nodes if n.target in layers}
    for layer_name, layer in layers.items():
        scale = layer.weight_scale(data[layer_name]).detach()
        codes = torch.round(layer.weight.detach() / scale.view(-1, *[1] * (layer.weight.ndim - 1))).clamp(-127, 127)
        np.testing.assert_array_equal(stored[f"{layer_name}.weight_quantized"], codes.numpy())
        np.testing.assert_array_equal(
            stored[f"{layer_name}.weight_scale"], np.broadcast_to(scale.numpy(), (layer.weight.shape[0],))
        )
    seen = {
        (stored[n.input[1]].item(), stored[n.input[2]].item())
        for n in quantized.graph.node
        if n.op_type == "QuantizeLinear"
    }
    quantizers = [m for m in qat.modules() if isinstance(m, ActivationQuantizer)]
    assert seen == {tuple(value.item() for value in quantizer.params()) for quantizer in quantizers}


def test_a_reparameterized_network_exports_what_it_was_trained_as(ort_run):
    """Branches fused, ranges equalized, one scale a tensor: the same integers, and the same class for every image."""
    torch.manual_seed(4)
    model = RepVGG([1, 2, 1], [8, 16, 24], num_classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_(0, 0.1)
        logits = model(images(64, seed=6))
        model.head.weight.div_(logits.std(0).view(-1, 1))  # so that classes differ
        model.head.bias.copy_(-logits.mean(0) / logits.std(0))
    qat = train(prepare_qat(model, images(8), per_channel=False))
    quantized = insert_learned(trace(convert(qat), SIZE), read_ranges(learned_ranges(qat)))
    stored = initializers(quantized)
    for name, layer in qat.named_modules():
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            codes = layer.weight_quantizer(layer.weight) / layer.weight_quantizer.scale()
            np.testing.assert_array_equal(stored[f"{name}.weight_quantized"], codes.detach().round().numpy())
    x = images(64, seed=6)
    with torch.no_grad():
        expected = qat(x).numpy()
    found = ort_run(quantized, {"input": x.numpy()}, optimize=False)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert len(set(expected.argmax(1))) > 1
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_the_whole_graph_for_tensorrt_differs_by_what_float16_rounds(ort_run):
    qat, graph = trained_case("residual", "trt", False)
    quantized = quantize_learned(graph, read_ranges(learned_ranges(qat)))
    x = images(16, seed=5)
    with torch.no_grad():
        expected = qat(x).numpy()
    found = ort_run(quantized, {"input": x.numpy()})["logits"]
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    check_tensorrt10(quantized, "model.int8.trt.onnx")
    scales = [n.input[1] for n in quantized.graph.node if n.op_type == "QuantizeLinear"]
    stored, learned = initializers(quantized), learned_ranges(qat)
    assert {stored[name].dtype for name in scales} == {np.dtype(np.float16)}
    assert {float(stored[name]) for name in scales} == {v["scale"] for v in learned["activations"].values()}


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=pytest.mark.slow) for a in ("repvgg_a0", "mobileone_s0", "repvit_m0_9", "resnet18")]
)
@pytest.mark.parametrize(("scheme", "per_channel"), [("trt", False), ("cpu", True)])
def test_families(arch, scheme, per_channel, ort_run):
    torch.manual_seed(0)
    model = models.build_model(arch, num_classes=10).eval()
    with torch.no_grad():  # what normalization has learned, so that folding it is something
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_(0, 0.1)
    x = images(4, (64, 64))
    qat = prepare_qat(model, x, scheme, per_channel).eval()
    quantized = insert_learned(trace(convert(qat), (64, 64)), read_ranges(learned_ranges(qat)))
    with torch.no_grad():
        expected = qat(x).numpy()
    found = ort_run(quantized, {"input": x.numpy()}, optimize=False)["logits"]
    # Sums in another order round a few activations to the next integer, and deep networks carry that on.
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_dead_channels_and_images_of_one_colour_export_too(ort_run):
    net = make("residual")
    with torch.no_grad():
        net.a.weight[2] = 0
        net.a.bias[2] = 0
        net.b.weight.zero_()
        net.b.bias.zero_()
    for scheme, per_channel in CASES:
        qat = prepare_qat(net, torch.zeros(2, 3, *SIZE), scheme, per_channel).eval()
        quantized = insert_learned(graph_of("residual", qat), read_ranges(learned_ranges(qat)))
        x = images(4)
        with torch.no_grad():
            expected = qat(x).numpy()
        found = ort_run(quantized, {"input": x.numpy()}, optimize=False)["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# What is refused.


@pytest.fixture(scope="module")
def trained():
    qat = prepare_qat(make("chain"), images(8)).eval()
    return graph_of("chain", qat), learned_ranges(qat)


def test_a_file_gives_what_the_mapping_gives(trained, tmp_path):
    qat = prepare_qat(make("chain"), images(8), "cpu").eval()
    save_ranges(qat, tmp_path / "ranges.json")
    assert read_ranges(tmp_path / "ranges.json") == read_ranges(learned_ranges(qat))
    assert read_ranges(str(tmp_path / "ranges.json")).scheme == "cpu"


def test_ranges_of_another_network_are_refused(trained):
    graph, ranges = trained
    other = traced("residual")
    with pytest.raises(QuantizationError, match="do not fit this network"):
        insert_learned(other, read_ranges(ranges))
    with pytest.raises(QuantizationError, match="is quantized and has none"):
        insert_learned(graph, read_ranges({**ranges, "activations": {"add9:0": {"scale": 1.0, "zero_point": 0}}}))
    more = {**ranges, "activations": {**ranges["activations"], "add9:0": {"scale": 1.0, "zero_point": 0}}}
    with pytest.raises(QuantizationError, match="it has no 'add9:0'"):
        insert_learned(graph, read_ranges(more))


def test_ranges_that_contradict_each_other_are_refused():
    qat = prepare_qat(make("residual"), images(8)).eval()
    ranges = learned_ranges(qat)
    role = next(role for role in ranges["activations"] if role.startswith("add"))
    ranges["activations"][role] = {"scale": 2.0, "zero_point": 0}
    with pytest.raises(QuantizationError, match="has several"):
        insert_learned(graph_of("residual", qat), read_ranges(ranges))


def test_other_weights_are_refused(trained):
    graph, ranges = trained
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    tensor = next(t for t in changed.graph.initializer if t.name == "head.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, "head.weight"))
    with pytest.raises(QuantizationError, match="learned with other weights"):
        insert_learned(changed, read_ranges(ranges))
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, "head.weight"))
    with pytest.raises(QuantizationError, match="NaN"):
        insert_learned(changed, read_ranges(ranges))


def test_a_graph_without_layers_is_refused(trained, make_onnx):
    graph = make_onnx([onnx.helper.make_node("Relu", ["input"], ["out"])], {"input": ["n", 3]}, {"out": ["n", 3]})
    with pytest.raises(QuantizationError, match="do not fit"):
        insert_learned(graph, read_ranges(trained[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
        ({"scheme": "int4"}, "scheme"),
        ({"per_channel": 1}, "per_channel"),
        ({"digest": "0"}, "SHA-256"),
        ({"weights": {}}, "weights"),
        ({"weights": {"a": 1.0}}, "list of numbers"),
        ({"weights": {"a": []}}, "list of numbers"),
        ({"weights": {"a": [0.0]}}, "positive"),
        ({"weights": {"a": [float("nan")]}}, "positive"),
        ({"weights": {"a": [0.1]}}, "float16 does not hold"),
        ({"weights": {"a": [1e6]}}, "float16 does not hold"),
        ({"activations": []}, "activations"),
        ({"activations": {"a": 1.0}}, "zero_point"),
        ({"activations": {"a": {"scale": 1.0, "zero_point": 3}}}, "zero_point"),
        ({"activations": {"a": {"scale": "1", "zero_point": 0}}}, "positive"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_bad_files_are_refused(trained, change, message, tmp_path):
    with pytest.raises(QuantizationError, match=message):
        read_ranges({**trained[1], **change})
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({**trained[1], **change}))
    with pytest.raises(QuantizationError, match=message):
        read_ranges(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\udcff", '{"version": 1}', "[" * 100_000])
def test_files_that_are_nothing_of_the_kind_are_refused(text, tmp_path):
    path = tmp_path / "ranges.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(QuantizationError):
        read_ranges(path)
    with pytest.raises(QuantizationError, match="cannot read"):
        read_ranges(tmp_path / "missing.json")


def test_learned_ranges_are_plain_and_frozen(trained):
    learned = read_ranges(trained[1])
    assert isinstance(learned, LearnedRanges)
    with pytest.raises(AttributeError):
        learned.scheme = "cpu"
