"""The INT8 report in the bundle: summaries as data, what is read off the graphs, and what a rerun does."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from calib import ImageStream, TensorRange, find_images
from export import export_model
from export.bundle import BundleWriter
from export.cli import main
from export.errors import ExportError
from export.int8_report import render_report
from export.int8_report.files import read_summary, write_report
from export.quantize import insert_qdq, tensors_to_observe
from export.quantize.optimize import quantize_calibrated
from export.quantize.summarize import Observations, observe_images, summarize, summarize_report
from export.quantize.summary import Candidate, LayerSummary, QuantizationSummary, RangeSummary
from export.report import ExportResult, layer_table
from runtime.manifest import Manifest, Preprocessing, read_manifest

PREPROCESSING = Preprocessing((64, 48), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def manifest(*artefacts):
    return Manifest("tiny", "classification", ("a", "b"), (), (), PREPROCESSING, artefacts)


def layer(name="conv", **values):
    return LayerSummary(**({"name": name, "operator": "Conv", "macs": 2_000_000, "precision": "int8"} | values))


def activation(name="relu", **values):
    given = {"method": "mse", "low": 0.0, "high": 4.0, "observed": (0.0, 5.0), "histogram": (50, 30, 12, 7, 1)}
    return RangeSummary(tensor=name, **(given | values))


def summary(layers=(), ranges=(), scheme="cpu", **values):
    given = {"effort": "normal", "seconds": 143.2, "images": 256}
    return QuantizationSummary(scheme=scheme, layers=tuple(layers), ranges=tuple(ranges), **(given | values))


def full(scheme="cpu"):
    """A summary in which everything is known."""
    layers = [
        layer(
            f"conv_{i}",
            macs=1_000_000 * (i + 1),
            precision="int8" if i else "float32",
            reason="" if i else "costs 3 dB",
            snr_db=20.0 + i,
            output_snr_db=40.0 - i,
            output_agreement=0.99,
            rounding_gain=2.25,
            bias_shift=0.031,
            equalized=i == 2,
            int8_ms=0.125,
            float_ms=0.25,
        )
        for i in range(4)
    ]
    drops = [(0.9, 1.0, 8.0), (0.4, 0.95, 9.0), (0.5, 0.9, 9.5), (0.1, 0.85, 10.0)]
    candidates = tuple(Candidate(("conv_0",) * i, share, drop, 30.0, ms) for i, (drop, share, ms) in enumerate(drops))
    ranges = [activation(f"relu_{i}") for i in range(3)]
    return summary(layers, ranges, scheme, candidates=candidates, chosen=1, stays_float=(("Softmax", 2),))


def text(page):
    """What a page says; it is XML, whose parser forgives nothing."""
    return " ".join("".join(ET.fromstring(page).itertext()).replace("\u00a0", " ").split())


# The summary as data.


def test_a_summary_survives_json():
    known = full()
    assert QuantizationSummary.from_dict(json.loads(json.dumps(known.to_dict(), allow_nan=False))) == known
    odd = summary([layer(snr_db=math.inf)], [activation(low=-math.inf)], seconds=math.nan)
    again = QuantizationSummary.from_dict(json.loads(json.dumps(odd.to_dict(), allow_nan=False)))
    assert again.layers[0].snr_db is None  # JSON has no infinity
    assert math.isnan(again.ranges[0].low)
    assert math.isnan(again.seconds)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": None},
        {"layers": [{"name": "x"}]},
        {"layers": [5]},
        {"layers": 5},
        {"scheme": 3},
        {"images": "many"},
        {"images": True},
        {"images": 2.5},
        {"seconds": "1"},
        {"chosen": 4},
        {"chosen": -1},
        {"stays_float": [["Softmax"]]},
        {"candidates": [{"kept_float": [1], "int8_share": 1.0, "drop": 0.0, "snr_db": 1.0}]},
        {"ranges": [{"tensor": "a", "method": "m", "low": 0.0, "high": 1.0, "observed": [0.0]}]},
        {
            "ranges": [
                {"tensor": "a", "method": "m", "low": 0.0, "high": 1.0, "observed": [0.0, 1.0], "histogram": ["1"]}
            ]
        },
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_summary(change):
    with pytest.raises(ValueError, match="this is not a quantization summary"):
        QuantizationSummary.from_dict(full().to_dict() | change)


def test_the_table_on_the_terminal():
    printed = layer_table(full())
    assert "int8.cpu: 90.0% of the multiply-accumulates in INT8" in printed
    assert re.search(r"^ *1 +conv_0 +Conv +float32 +1\.00 +40\.0 dB +costs 3 dB$", printed, re.MULTILINE)
    many = summary([layer(f"c{i}", snr_db=float(i)) for i in range(99)] + [layer("z" * 400)])
    printed = layer_table(many)
    assert "16 of 100 layers, those with the least signal to noise" in printed
    assert [line.split()[1] for line in printed.splitlines()[4:]] == [f"c{i}" for i in range(16)]
    assert max(map(len, layer_table(summary([layer("z" * 400)])).splitlines())) < 120
    assert "0.0%" in layer_table(summary())
    assert "nan" not in layer_table(summary([layer(snr_db=math.nan)]))


# Reading a summary off the graphs.


@pytest.fixture(scope="module")
def reported(tmp_path_factory, tiny_net, preprocessing, photos) -> ExportResult:
    """The little classifier with its report. Not to be changed."""
    folder = tmp_path_factory.mktemp("reported") / "tiny"
    return export_model(tiny_net(), folder, preprocessing=preprocessing, int8=True, int8_report=True, calib=photos)


def test_what_is_read_off_the_graphs(reported):
    cpu, trt = reported.quantization
    assert (cpu.scheme, trt.scheme) == ("cpu", "trt")
    # 12 by 10 positions behind the first convolution's stride of two.
    macs = [16 * 27 * 120, 16 * 9 * 120, 16 * 16 * 120, 16 * 5]
    for known in (cpu, trt):
        assert [entry.macs for entry in known.layers] == macs
        assert [entry.operator for entry in known.layers] == ["Conv", "Conv", "Conv", "Gemm"]
        assert all(20 < entry.snr_db < 80 for entry in known.layers if entry.precision == "int8")
        assert known.images == 12
        assert known.seconds > 0
        for entry in known.ranges:
            assert sum(entry.histogram) > 0
            assert len(entry.histogram) in (1, 64)
        assert known.ranges[0].tensor == "input_pixels"
    assert [entry.precision for entry in cpu.layers] == ["int8"] * 4
    assert [entry.precision for entry in trt.layers] == ["int8", "float16", "int8", "int8"]
    assert "depthwise" in trt.layers[1].reason
    assert cpu.int8_share == 1.0
    assert trt.int8_share == pytest.approx(1 - macs[1] / sum(macs))
    assert cpu.stays_float == ()
    assert trt.stays_float == (("GlobalAveragePool", 1),)
    # Nothing negative comes out of the pooling: it is spread over all codes.
    *others, pooled = trt.ranges
    assert pooled.low == 0, pooled
    assert all(entry.low == pytest.approx(-128 / 127 * entry.high) for entry in others)
    assert any(entry.low == 0 for entry in cpu.ranges)


def test_the_files_of_the_report(reported):
    folder = reported.bundle
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "int8.cpu.json", "int8.trt.json"} <= names
    said = text((folder / "report.html").read_text())
    assert "tinynet in INT8" in said
    by_scheme = {a.scheme: a.verification for a in read_manifest(folder).artefacts if a.scheme}
    for known in reported.quantization:
        assert read_summary(folder, known.scheme) == known
        assert f"relative error of the output{100 * by_scheme[known.scheme].relative_error:.1f} %" in said
        assert f"{known.layers[0].snr_db:.1f}" in said
    # What --json prints is JSON as the standard has it.
    printed = json.loads(json.dumps(reported.to_dict(), allow_nan=False))
    assert [entry["scheme"] for entry in printed["quantization"]] == ["cpu", "trt"]
    assert "int8.cpu: 100.0% of the multiply-accumulates in INT8" in "".join(reported.layer_tables())


@pytest.fixture
def own_report(reported, tmp_path):
    """A bundle with a report that the test may change."""
    return shutil.copytree(reported.bundle, tmp_path / "own")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_another_export_keeps_the_report_while_it_is_true(own_report, photos):
    before = contents(own_report)
    export_model(own_report, fp16=True, calib=photos)
    after = contents(own_report)
    assert before.items() <= after.items()
    anew = export_model(own_report, int8=True, calib=photos, force=True)
    assert not {"report.html", "int8.cpu.json", "int8.trt.json"} & set(contents(own_report))
    assert any("report.html is gone" in warning for warning in anew.warnings)
    assert anew.quantization == ()
    # The graphs were made without a report: what can be read off them is told, and that there would be more.
    later = export_model(own_report, int8=True, int8_report=True, calib=photos)
    assert later.made == ()
    assert [[entry.precision for entry in known.layers] for known in later.quantization] == [
        ["int8"] * 4,
        ["int8", "float16", "int8", "int8"],  # the second is depthwise
    ]
    assert all(known.ranges == () and math.isnan(known.seconds) for known in later.quantization)
    assert sum("was made without --int8-report" in warning for warning in later.warnings) == 2
    assert "was not measured" in text((own_report / "report.html").read_text())


def test_a_report_of_graphs_that_are_there_says_what_was_known(own_report, photos, reported):
    (own_report / "report.html").unlink()
    before = contents(own_report)
    again = export_model(own_report, int8=True, int8_report=True, calib=photos)
    assert (again.made, again.quantization, again.warnings) == ((), reported.quantization, ())
    assert contents(own_report) == {**before, "report.html": (reported.bundle / "report.html").read_bytes()}


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"layers": NaN}'])
def test_a_summary_that_is_damaged_is_as_none(own_report, photos, damage):
    (own_report / "int8.cpu.json").write_bytes(damage)
    again = export_model(own_report, int8=True, int8_report=True, calib=photos)
    assert [len(known.ranges) > 0 for known in again.quantization] == [False, True]
    assert read_summary(own_report, "cpu").layers == again.quantization[0].layers


def test_a_report_without_int8(tmp_path, reported):
    with pytest.raises(ExportError, match="--int8-report tells of what --int8 makes: add --int8"):
        export_model(reported.bundle, tmp_path / "out", int8_report=True)


def test_the_option(reported, photos, tmp_path):
    out = tmp_path / "out"
    options = ["--int8", "--int8-report", "--calib", photos, "-q"]
    done = CliRunner().invoke(main, list(map(str, [reported.bundle, "-o", out, "--force", *options])))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "int8.cpu: 100.0% of the multiply-accumulates in INT8" in done.stdout
    assert done.stdout.splitlines()[-1] == str(out)
    printed = CliRunner().invoke(main, list(map(str, [out, *options, "--json"])))
    assert json.loads(printed.stdout)["quantization"][0]["layers"][0]["macs"] == 16 * 27 * 120
    assert (out / "report.html").is_file()


def test_layers_that_no_kernel_has_and_layers_kept_float(make_onnx, ort_run):
    """A transposed convolution in groups, a product of two activations, and a layer that somebody left in float."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["c", "t"], ["u"], group=2, strides=[2, 2]),
        helper.make_node("Reshape", ["u", "s"], ["r"]),
        helper.make_node("MatMul", ["r", "r"], ["m"]),
        helper.make_node("MatMul", ["m", "g"], ["y"]),
    ]
    model = make_onnx(
        nodes,
        {"x": [1, 3, 4, 4]},
        {"y": [1, 16, 8]},
        {
            "w": generator.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "t": generator.normal(size=(4, 2, 2, 2)).astype(np.float32),
            "g": generator.normal(size=(16, 8)).astype(np.float32),
            "s": np.array([1, 16, 16], np.int64),
        },
    )
    names = tensors_to_observe(model)
    ranges = {name: TensorRange(-3.0, 3.0, 3.0, (-3.0, 3.0)) for name in names}
    quantized = insert_qdq(model, ranges, "cpu")
    known = summarize(model, quantized, "cpu", ranges, method="mse", images=3)
    assert [(entry.operator, entry.precision) for entry in known.layers] == [
        ("Conv", "int8"),
        ("ConvTranspose", "float32"),
        ("MatMul", "float32"),
        ("MatMul", "int8"),
    ]
    assert [entry.macs for entry in known.layers] == [4 * 16 * 27, 4 * 16 * 2 * 4, 16 * 16 * 16, 16 * 16 * 8]
    assert "not constant" in known.layers[1].reason
    assert [entry.tensor for entry in known.ranges] == ["x", "c", "m"]
    float_one = summarize(model, model, "trt", ranges, method={}, images=0, layer_facts={"c": {"reason": "2 dB"}})
    assert {entry.precision for entry in float_one.layers} == {"float16"}
    assert float_one.ranges == ()
    assert [entry.reason for entry in float_one.layers][::3] == ["2 dB", "kept in higher precision"]
    assert "2 dB" in text(render_report([known, float_one], manifest()))


def test_noise_and_histograms_against_numpy(make_onnx, photos, preprocessing):
    """A graph that multiplies by 1.01 in place of 1: the noise is a hundredth of the signal."""
    height, width = preprocessing.size

    def scaled(by):
        weight = (np.eye(3, dtype=np.float32) * np.float32(by)).reshape(3, 3, 1, 1)
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
        shape = ["n", 3, height, width]
        return make_onnx(nodes, {"x": shape}, {"z": shape}, {"w": weight})

    images = find_images(photos)[:3]
    pixels = np.concatenate(list(ImageStream(images, preprocessing, batch_size=3)))
    ranges = {"x": TensorRange(-1.0, 1.0, 1.0, (-1.0, 1.0)), "z": TensorRange(0.0, 0.0, 1.0, (0.0, 1.0))}
    seen = observe_images(scaled(1.01), images, preprocessing, ranges, scaled(1.0))
    assert seen.snr_db == {"y": pytest.approx(40.0, abs=1e-3)}
    assert seen.histograms["z"] == (pixels.size,)
    assert list(seen.histograms["x"]) == list(np.histogram(np.clip(pixels, -1, 1), 64, (-1, 1))[0])
    exact = observe_images(scaled(1.0), images, preprocessing, {}, scaled(1.0))
    assert (exact.snr_db, exact.histograms) == ({"y": math.inf}, {})
    assert observe_images(scaled(1.0), images, preprocessing, {}) == Observations()


def test_what_the_quantizer_says(tiny_onnx, photos, preprocessing):
    images = find_images(photos)[:4]
    for scheme in ("cpu", "trt"):
        made = quantize_calibrated(tiny_onnx, images, preprocessing, scheme, effort="fast")
        chosen = {tensor.name: tensor.chosen for tensor in made.report.tensors}
        seen = observe_images(made.model, images, preprocessing, chosen)
        known = summarize_report(tiny_onnx, made.model, made.report, images=4, observations=seen)
        assert known.effort == "fast"
        rounded = [entry for entry in known.layers if entry.precision == "int8"]
        for entry, outcome in zip(rounded, made.report.layers, strict=True):
            assert (entry.name, entry.snr_db, entry.bias_shift) == (
                outcome.name,
                outcome.signal_to_noise,
                outcome.bias_shift,
            )
            assert entry.rounding_gain == outcome.nearest_error / outcome.rounded_error
        by_name = {entry.tensor: entry for entry in known.ranges}
        # Each range is one that the graph rounds to: the scale of its QuantizeLinear times the number of codes.
        scales = {n.input[1]: n for n in made.model.graph.node if n.op_type == "QuantizeLinear"}
        values = {
            t.name: float(onnx.numpy_helper.to_array(t)) for t in made.model.graph.initializer if t.name in scales
        }
        for name, entry in by_name.items():
            if f"{name}_scale" in values:
                assert (entry.high - entry.low) / 255 == pytest.approx(values[f"{name}_scale"], rel=1e-6)
        assert "relu" in by_name
        text(render_report([known], manifest()))


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    with BundleWriter(tmp_path / "tiny") as writer:
        write_report([full()], manifest(), writer)
        assert sorted(p.name for p in writer.folder.iterdir()) == ["int8.cpu.json", "report.html"]
        assert json.loads((writer.folder / "int8.cpu.json").read_text())["int8_share"] == pytest.approx(0.9)
        odd = summary([layer("\ud800")])
        write_report([odd], manifest(), writer)
        assert read_summary(writer.folder, "cpu") == odd
    assert not list(tmp_path.iterdir())
