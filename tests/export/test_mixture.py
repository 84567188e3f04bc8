"""`--max-drop` and `--tune` through the whole export: graphs, report, warnings, and what is refused."""

import itertools
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export import Tolerances, export_model
from export.cli import main
from export.errors import ExportError
from export.quantize import timing
from export.quantize.exempt import DEPTHWISE
from export.quantize.mixed import layer_names
from export.quantize.mixture import HeldImages, MixtureRequest, mix_precision
from runtime.backends import open_session


@pytest.fixture
def labelled(photos, tmp_path):
    """Photographs in folders of classes, whatever they show."""
    for i, path in enumerate(sorted(photos.iterdir())):
        target = tmp_path / "labelled" / str(i % 5) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "labelled"


@pytest.fixture
def export_tiny(tiny_net, preprocessing, photos, tmp_path):
    def export(**options):
        # Random weights answer a few photographs as they like: nothing here is about how well.
        tolerances = Tolerances(int8=10.0, int8_agreement=0.0, int8_accuracy_drop=1.0)
        given = {"int8": True, "calib": photos, "preprocessing": preprocessing, "tolerances": tolerances, **options}
        return export_model(tiny_net(), tmp_path / "bundle", **given)

    return export


@pytest.fixture
def fake_clock(monkeypatch):
    """Makes every graph take one second a call, so that no time on this machine decides anything."""
    ticks = itertools.count()
    monkeypatch.setattr(timing.time, "process_time", lambda: float(next(ticks)))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(timing, "profile_layers", lambda *_: {})


def int8_nodes(path):
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def test_no_points_to_lose_and_the_choice_is_in_the_report(export_tiny):
    result = export_tiny(max_drop=0.0)
    assert [summary.scheme for summary in result.quantization] == ["cpu", "trt"]
    for summary in result.quantization:
        stored = json.loads((result.bundle / f"int8.{summary.scheme}.json").read_text())
        assert stored["chosen"] == summary.chosen is not None
        chosen = summary.candidates[summary.chosen]
        assert chosen.drop == 0.0
        assert summary.drop_of == "agreement"
        by_rule = {layer.name for layer in summary.layers if layer.reason == DEPTHWISE}
        assert len(by_rule) == (summary.scheme == "trt")
        floats = {layer.name for layer in summary.layers if layer.precision != "int8"} - by_rule
        assert floats == set(chosen.kept_float)
        assert summary.int8_share == pytest.approx(chosen.int8_share)
        for layer in summary.layers:
            if layer.name in by_rule:
                continue
            assert layer.output_snr_db is not None
            assert 0 <= layer.output_agreement <= 1
            assert ("--max-drop 0" in layer.reason) == (layer.name in floats)
    assert (result.bundle / "report.html").is_file()


def test_with_labels_points_of_accuracy_are_counted(export_tiny, labelled, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("0\n1\n2\n3\n4\n")
    result = export_tiny(max_drop=100.0, eval_folder=labelled, labels=labels)
    for summary in result.quantization:
        assert summary.drop_of == "accuracy"
        assert summary.candidates[summary.chosen].kept_float == ()


def test_where_nothing_is_faster_in_int8_the_graph_is_float(export_tiny, fake_clock):
    result = export_tiny(tune="onnxruntime")
    assert int8_nodes(result.bundle / "model.int8.cpu.onnx") == 0
    assert int8_nodes(result.bundle / "model.int8.trt.onnx") > 0, "timed on a backend that does not run this scheme"
    (warning,) = [w for w in result.warnings if "onnxruntime" in w]
    assert "nothing is faster in INT8 on onnxruntime" in warning
    cpu, trt = result.quantization
    assert cpu.int8_share == 0
    assert {layer.reason for layer in cpu.layers} == {"in INT8 it does not make the whole faster on onnxruntime"}
    assert [layer.precision for layer in trt.layers] == ["int8", "float16", "int8", "int8"]  # the second is depthwise


def test_tuning_comes_first_and_accuracy_adds_to_it(tiny_onnx, minmax_int8, preprocessing, photos, fake_clock):
    images = tuple(sorted(photos.iterdir()))
    request = MixtureRequest(0.0, "onnxruntime", images, preprocessing, threads=1, seconds=0.0)
    assert request.concerns("trt")
    assert not request.tunes("trt")
    mixture = mix_precision(minmax_int8["cpu"], tiny_onnx, "cpu", request)
    assert mixture.tuned is not None
    assert set(mixture.tuned.kept_float) <= set(mixture.kept_float)
    (only,) = mixture.choice.candidates
    assert only.kept_float == mixture.kept_float == tuple(layer_names(tiny_onnx))
    assert only.latency_ms == mixture.tuned.float_ms


def test_a_mixed_trt_graph_becomes_float16_where_it_is_not_int8(export_tiny):
    result = export_tiny(max_drop=0.0)
    graph = onnx.load(result.bundle / "model.int8.trt.onnx").graph
    assert not any(t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1 for t in graph.initializer)
    session = open_session(result.bundle / "model.int8.trt.onnx", "onnxruntime")
    x = np.random.default_rng(0).standard_normal((2, 3, 24, 20), np.float32)
    assert session.run(x)["logits"].dtype == np.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": -1.0}, "--max-drop -1.0 is no number of points"),
        ({"max_drop": float("nan")}, "--max-drop nan is no number of points"),
        ({"max_drop": float("inf")}, "--max-drop inf is no number of points"),
        ({"max_drop": 101}, "--max-drop 101 is no number of points"),
        ({"max_drop": True}, "--max-drop True is no number of points"),
        ({"max_drop": "1"}, "--max-drop 1 is no number of points"),
        ({"tune": "cuda"}, "--tune cuda is no backend: expected one of onnxruntime"),
        ({"tune": "onnxruntime", "int8": False}, "--tune onnxruntime is of INT8 graphs: add --int8"),
        ({"max_drop": 0.5, "int8": False}, "--max-drop 0.5 is of INT8 graphs: add --int8"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(export_tiny, tmp_path, options, words):
    with pytest.raises(ExportError, match=words):
        export_tiny(**options)
    assert not (tmp_path / "bundle").exists()


def test_a_backend_that_is_not_installed(export_tiny, monkeypatch):
    monkeypatch.setattr("export.spec.unavailable", lambda _: "openvino is not installed: pip install it")
    with pytest.raises(ExportError, match="--tune openvino cannot time anything here: openvino is not installed"):
        export_tiny(tune="openvino")


def test_the_command_line_says_it_in_one_line(own_bundle):
    done = CliRunner().invoke(main, [str(own_bundle), "--int8", "--max-drop", "nan"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: --max-drop nan is no number of points from 0 to 100: 0.5 allows half a point\n"


def test_graphs_that_are_there_are_not_made_again_silently(tiny_bundle, recorder, tmp_path):
    from export.pipeline import run_export
    from export.spec import ExportSpec

    spec = ExportSpec(str(tiny_bundle), output=tmp_path / "copy", int8=True, max_drop=1.0)
    run_export(spec, recorder)
    assert any("add --force" in warning for warning in recorder.warnings)


def test_images_are_read_again_in_the_same_order_where_they_do_not_fit(photos, preprocessing, tmp_path, monkeypatch):
    paths = [*sorted(photos.iterdir()), tmp_path / "broken.png"]
    paths[3], paths[-1] = paths[-1], paths[3]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr("export.quantize.mixture._MOST_BATCH", 5)
    whole = HeldImages(paths, preprocessing)
    monkeypatch.setattr("export.quantize.mixture._HELD_BYTES", 5 * 3 * 24 * 20 * 4)
    partly = HeldImages(paths, preprocessing)
    assert whole.read == partly.read == tuple(i for i in range(len(paths)) if i != 3)
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(whole())), np.concatenate(list(partly())))
