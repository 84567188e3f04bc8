"""The whole export, seen from outside: what lands in the bundle, and that it answers as PyTorch does."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import runtime
from calib import find_images
from export import ExportSpec, export_model
from export.errors import ExportError
from export.pipeline import run_export
from export.source import load_source
from runtime.manifest import METADATA_KEY, VARIANT_KEY, Preprocessing, artefact_path, read_manifest

VARIANTS = {
    "model.onnx": "fp32",
    "model.fp16.onnx": "fp16",
    "model.int8.cpu.onnx": "int8.cpu",
    "model.int8.trt.onnx": "int8.trt",
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# MobileOne-S0, `--fp16 --int8 --rtx`.


def test_the_manifest_describes_the_bundle(mobileone_export):
    folder = mobileone_export.bundle
    manifest = read_manifest(folder)
    engines = [a for a in manifest.artefacts if a.kind == "engine"]
    assert names(folder) == sorted([*VARIANTS, *[e.file for e in engines], "calibration.json", "manifest.json"])
    for artefact in manifest.artefacts:
        assert artefact_path(folder, artefact).is_file()  # of this size and hash
    assert (manifest.name, manifest.task, manifest.labels) == ("mobileone_s0", "classification", tuple("0123456"))
    (image,), (logits,) = manifest.inputs, manifest.outputs
    assert (image.name, image.dtype, image.shape) == ("input", "float32", ("batch", 3, 32, 32))
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float32", ("batch", 7))
    assert manifest.preprocessing.size == (32, 32)
    assert manifest.provenance["weights"] == "random"
    assert manifest.provenance["seed"] == "3"
    assert {"holocron_edge", "torch", "created", "architecture"} <= set(manifest.provenance)
    assert {a.file: a.variant for a in manifest.artefacts if a.kind == "onnx"} == VARIANTS


def test_every_graph_was_verified_and_no_engine(mobileone_export):
    bounds = {"fp32": 1e-5, "fp16": 1e-2, "int8.cpu": 0.2, "int8.trt": 0.2}
    for artefact in read_manifest(mobileone_export.bundle).artefacts:
        result = artefact.verification
        if artefact.kind == "engine":
            assert result is None
            continue
        assert (result.reference, result.backend, result.images) == ("pytorch", "onnxruntime", 32)
        assert result.relative_error <= bounds[artefact.variant]
        # Of an untrained network some image answers almost nothing, and INT8 turns that answer anywhere: the cosine is
        # the worst image's, so only the relative error over all images speaks for INT8 here.
        assert (-1 if artefact.precision == "int8" else 0.999) < result.cosine <= 1 + 1e-6
        assert (result.accuracy, result.labelled_images) == (None, 0)


def test_engines_say_what_they_were_built_with(mobileone_export):
    import tensorrt_rtx

    engines = [a for a in read_manifest(mobileone_export.bundle).artefacts if a.kind == "engine"]
    assert [e.variant for e in engines] == ["fp16", "int8.trt"]
    for e in engines:
        assert e.engine.library == "tensorrt_rtx"
        assert e.engine.version == tensorrt_rtx.__version__
        assert (e.engine.compute_capability, e.engine.max_batch) == ("8.6", 1)
        assert e.file == f"model.{e.variant}.tensorrt_rtx-{'.'.join(e.engine.version.split('.')[:3])}-sm86.engine"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_runtime_answers_as_pytorch_does(mobileone_export, photos, precision, backend):
    pytest.importorskip(backend)
    spec = ExportSpec("mobileone_s0", weights="none", num_classes=7, input_size=(32, 32), seed=3)
    module = load_source(spec).module
    images = list(find_images(photos))
    with runtime.load(mobileone_export.bundle, precision, backend, threads=1) as model:
        batch = model.preprocess(images)
        logits = model.session.run(batch)["logits"]
        answers = model(images)
    with torch.inference_mode():
        expected = module(torch.from_numpy(batch)).numpy()
    bound = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.2}[precision]
    assert np.linalg.norm(logits - expected) <= bound * np.linalg.norm(expected)
    assert [a.top(1)[0].label for a in answers] == [str(i) for i in logits.argmax(1)]


@pytest.mark.parametrize("file", VARIANTS)
def test_a_lone_graph_opens_too(mobileone_export, photos, tmp_path, file):
    path = tmp_path / "renamed.onnx"
    shutil.copy(mobileone_export.bundle / file, path)
    metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert metadata[VARIANT_KEY] == VARIANTS[file]
    assert json.loads(metadata[METADATA_KEY])["artefacts"] == []
    image = find_images(photos)[0]
    variant = VARIANTS[file]
    with runtime.load(path) as lone, runtime.load(mobileone_export.bundle, variant, lone.backend) as whole:
        assert lone.precision == variant
        assert lone.labels == whole.labels
        np.testing.assert_allclose(lone(image).logits, whole(image).logits, rtol=1e-5)


def test_onnx_runtime_fuses_all_of_it(mobileone_export, tmp_path, op_counts):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    path = mobileone_export.bundle / "model.int8.cpu.onnx"
    onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    counts = op_counts(onnx.load(tmp_path / "optimized.onnx"))
    convolutions = op_counts(onnx.load(mobileone_export.bundle / "model.onnx"))["Conv"]
    assert counts.pop("QLinearConv") == convolutions
    assert counts.pop("QGemm") == 1
    # The normalized image becomes pixels again, which is what is rounded.
    assert [counts.pop(op) for op in ("Pad", "Mul", "Add")] == [1, 1, 1]
    assert set(counts) <= {"QuantizeLinear", "QLinearGlobalAveragePool", "Flatten", "DequantizeLinear"}
    assert counts["QuantizeLinear"] == 1


# A module.


class TwoLayers(nn.Module):
    """The simplest thing that one might bring."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_any_module_is_exported(tmp_path, monkeypatch, photos, recorder, preprocessing):
    monkeypatch.chdir(tmp_path)
    module = TwoLayers()
    result = export_model(module, preprocessing=preprocessing, int8=True, calib=photos, progress=recorder)
    assert result.bundle.name == "twolayers"
    assert not module.training
    assert set(result.made) == {"model.onnx", "model.int8.cpu.onnx", "model.int8.trt.onnx"}
    assert result.manifest == read_manifest(tmp_path / "twolayers")
    assert result.manifest.labels == ("0", "1", "2")
    assert result.warnings == tuple(recorder.warnings)
    assert "calibrating on 12 images only" in result.warnings[0]
    json.dumps(result.to_dict())
    assert "model.int8.cpu.onnx" in result.table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocessing": None}, "exporting a module needs `preprocessing`"),
        ({"weights": "none"}, "a module has its weights and classes already"),
        ({"num_classes": 3}, "a module has its weights and classes already"),
        ({"input_size": (8, 8)}, "in `preprocessing` or as `input_size`, not in both"),
        ({"preprocessing": Preprocessing((24, 20), (0.5,) * 3, (0.5, 0.0, 0.5))}, r"preprocessing\.std is .*positive"),
        ({"preprocessing": Preprocessing((24, 20), (0.5,), (0.5,))}, "needs 2 values in size and 3 each"),
        ({"preprocessing": Preprocessing((24, 20), (0.5,) * 3, (0.5,) * 3, interpolation="best")}, "is 'best'"),
        ({"preprocessing": Preprocessing((24, 20), (np.float32(0.5),) * 3, (0.5,) * 3)}, "give plain numbers"),
    ],
)
def test_a_module_with_options_that_make_no_sense(tmp_path, tiny_net, preprocessing, recorder, options, message):
    with pytest.raises(runtime.HolocronError, match=message):
        export_model(tiny_net(), tmp_path / "out", **({"preprocessing": preprocessing} | options), progress=recorder)
    assert not recorder.did("tracing")
    assert names(tmp_path) == []


# Determinism.


def test_two_exports_are_byte_identical(tiny_net, tiny_bundle, preprocessing, photos, tmp_path, calibrations):
    """And the second reads the first one's calibration; that a calibration itself is repeatable is shown below."""
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\neel\nfox\ngnu")
    again = shutil.copytree(tiny_bundle, tmp_path / "again")
    options = {"preprocessing": preprocessing, "labels": labels, "fp16": True, "int8": True, "calib": photos}
    result = export_model(tiny_net(), again, **options, force=True)
    assert len(result.made) == 4
    assert calibrations == []
    first, second = contents(tiny_bundle), contents(again)
    assert first.keys() == second.keys()
    for file in (*VARIANTS, "calibration.json"):
        assert first[file] == second[file], file
    a, b = (json.loads(c["manifest.json"]) for c in (first, second))
    assert a["provenance"].pop("created")
    assert b["provenance"].pop("created")
    assert a == b


def test_graphs_added_later_are_those_made_at_once(own_bundle, tiny_bundle, photos, tiny_net, preprocessing, tmp_path):
    """But for the metadata, which name what was known then."""
    result = export_model(own_bundle, fp16=True, int8=True, calib=photos)
    assert sorted(result.made) == ["model.fp16.onnx", "model.int8.cpu.onnx", "model.int8.trt.onnx"]
    for file in result.made:
        later, at_once = (onnx.load(folder / file).graph for folder in (own_bundle, tiny_bundle))
        assert later.SerializeToString(deterministic=True) == at_once.SerializeToString(deterministic=True)


# Adding to a bundle.


def test_only_what_is_missing_is_added(own_bundle, photos, holds_only):
    before = contents(own_bundle)
    assert export_model(own_bundle, fp16=True).made == ("model.fp16.onnx",)
    fp16 = (own_bundle / "model.fp16.onnx").read_bytes()
    assert (own_bundle / "model.onnx").read_bytes() == before["model.onnx"]
    second = export_model(own_bundle, fp16=True, int8=True, calib=photos)
    assert sorted(second.made) == ["model.int8.cpu.onnx", "model.int8.trt.onnx"]
    assert (own_bundle / "model.fp16.onnx").read_bytes() == fp16
    third = export_model(own_bundle, fp16=True, int8=True, calib=photos)
    assert third.made == ()
    assert [a.file for a in third.manifest.artefacts] == sorted(VARIANTS)
    assert all(a.verification is not None for a in third.manifest.artefacts)
    assert holds_only(own_bundle, *VARIANTS, "manifest.json", "calibration.json")
    assert holds_only(own_bundle.parent, "own")
    references = {a.file: a.verification.reference for a in third.manifest.artefacts}
    assert references.pop("model.onnx") == "pytorch"
    assert set(references.values()) == {"onnx-fp32"}


def test_a_graph_that_is_asked_for_again_is_made_again_with_force(tiny_bundle, photos, tmp_path):
    bundle = tmp_path / "own"
    shutil.copytree(tiny_bundle, bundle)
    result = export_model(bundle, int8=True, calib=photos, calib_method="minmax", force=True)
    assert sorted(result.made) == ["model.int8.cpu.onnx", "model.int8.trt.onnx"]
    assert (bundle / "model.int8.cpu.onnx").read_bytes() != (tiny_bundle / "model.int8.cpu.onnx").read_bytes()
    assert (bundle / "model.fp16.onnx").read_bytes() == (tiny_bundle / "model.fp16.onnx").read_bytes()
    assert json.loads((bundle / "calibration.json").read_text())["method"] == "minmax"


def test_output_copies_and_leaves_the_original(own_bundle, tmp_path):
    before = contents(own_bundle)
    result = export_model(own_bundle, tmp_path / "copy", fp16=True)
    assert contents(own_bundle) == before
    assert names(result.bundle) == ["manifest.json", "model.fp16.onnx", "model.onnx"]
    with pytest.raises(ExportError, match="copy exists: pass --force"):
        export_model(own_bundle, tmp_path / "copy", fp16=True)
    export_model(own_bundle, tmp_path / "copy", force=True)
    assert names(tmp_path / "copy") == ["manifest.json", "model.onnx"]


def test_a_bundle_through_a_link_is_written_where_it_lies(own_bundle, tmp_path):
    (tmp_path / "link").symlink_to(own_bundle)
    result = export_model(tmp_path / "link", fp16=True)
    assert result.bundle == own_bundle.resolve()
    assert (tmp_path / "link").is_symlink()
    assert "model.fp16.onnx" in names(own_bundle)


def test_a_path_is_a_bundle_whatever_architectures_are_called(float_bundle, tmp_path, monkeypatch):
    shutil.copytree(float_bundle, tmp_path / "repvgg_a0")
    monkeypatch.chdir(tmp_path)
    for path in ("./repvgg_a0", Path("repvgg_a0"), tmp_path / "repvgg_a0"):
        assert export_model(path, fp16=True, force=True).made == ("model.fp16.onnx",)
    with pytest.raises(ExportError, match=r"^repvgg_a0 exists: .*or name it \./repvgg_a0 to add to it$"):
        export_model("repvgg_a0", fp16=True)


def test_a_bundle_is_found_by_its_bare_name_where_no_architecture_has_it(own_bundle, monkeypatch):
    monkeypatch.chdir(own_bundle.parent)
    assert export_model("own", fp16=True).made == ("model.fp16.onnx",)


@pytest.mark.parametrize("model", [".", "./", "../own", "../own/"])
def test_a_bundle_from_within(own_bundle, monkeypatch, model):
    monkeypatch.chdir(own_bundle)
    export_model(model, fp16=True)
    assert "model.fp16.onnx" in names(own_bundle)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"weights": "none"}, "--weights"),
        ({"num_classes": 5}, "--num-classes"),
        ({"input_size": (8, 8)}, "--input-size"),
        ({"labels": "labels.txt"}, "--labels"),
    ],
)
def test_options_that_cannot_change_a_bundle(own_bundle, options, option):
    before = contents(own_bundle)
    with pytest.raises(ExportError, match=rf"^{option} cannot change an existing bundle"):
        export_model(own_bundle, fp16=True, **options)
    assert contents(own_bundle) == before


@pytest.mark.parametrize("damage", ["truncated", "edited", "missing", "no float graph", "another version"])
def test_a_damaged_bundle_is_refused_and_left(own_bundle, damage):
    graph, manifest = own_bundle / "model.onnx", own_bundle / "manifest.json"
    data = graph.read_bytes()
    if damage == "truncated":
        graph.write_bytes(data[:-1])
    elif damage == "edited":
        graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        graph.unlink()
    elif damage == "another version":
        manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    else:
        content = json.loads(manifest.read_text())
        content["artefacts"] = []
        manifest.write_text(json.dumps(content))
    before = contents(own_bundle)
    with pytest.raises(runtime.HolocronError) as caught:
        export_model(own_bundle, fp16=True)
    assert "\n" not in str(caught.value)
    assert contents(own_bundle) == before
    assert names(own_bundle.parent) == ["own"]


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from export.cli import main
main(sys.argv[1:])
"""


def run_without(blocked, *arguments):
    script = textwrap.dedent(BLOCKED).format(blocked=tuple(blocked))
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )


TRAINING_SIDE = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino", "holocron")


def test_an_engine_is_added_without_torch_and_onnx(own_bundle):
    pytest.importorskip("tensorrt_rtx")
    done = run_without(TRAINING_SIDE, own_bundle, "--rtx", "-q", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = json.loads(done.stdout)["made"]
    assert made.startswith("model.fp32.tensorrt_rtx-")
    assert (own_bundle / made).stat().st_size > 1000
    assert read_manifest(own_bundle).artefacts[-1].engine.compute_capability == "8.6"


def test_a_graph_is_added_without_torch(own_bundle):
    done = run_without(("torch", "torchvision", "holocron"), own_bundle, "--fp16", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.fp16.onnx" in names(own_bundle)


def test_quantizing_without_torch_says_what_it_needs(own_bundle, photos):
    before = contents(own_bundle)
    done = run_without(("torch", "torchvision", "holocron"), own_bundle, "--int8", "--calib", photos, "-q")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "--int8 needs PyTorch" in line
    assert "holocron-edge[train]" in line
    assert contents(own_bundle) == before


@pytest.mark.parametrize(
    ("blocked", "arguments", "message"),
    [
        (("torch", "torchvision"), ["repvgg_a0", "--weights", "none"], "needs the export extra"),
        (("onnx",), ["{own}", "--fp16"], "needs `onnx`"),
        (("tensorrt",), ["{own}", "--trt"], "--trt needs `tensorrt`, which is not installed"),
    ],
)
def test_what_is_missing_is_one_line(own_bundle, tmp_path, monkeypatch, blocked, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = contents(own_bundle)
    done = run_without(blocked, *[a.format(own=own_bundle) for a in arguments])
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stderr
    assert contents(own_bundle) == before
    assert names(tmp_path) == ["own"]


# The calibration cache.


@pytest.fixture
def calibrations(monkeypatch):
    """Counts how often images are really run through the network."""
    from export.quantize import optimize

    real, calls = optimize.observe_network, []

    def observe_network(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(optimize, "observe_network", observe_network)
    return calls


def test_a_rerun_reads_the_calibration(own_bundle, photos, calibrations, recorder):
    export_model(own_bundle, int8=True, calib=photos)
    assert len(calibrations) == 1
    first = contents(own_bundle)
    result = export_model(own_bundle, int8=True, calib=photos, force=True, progress=recorder)
    assert len(calibrations) == 1
    assert recorder.did("reading the calibration on 12 images")
    assert not recorder.did("through the float network")
    assert len(result.made) == 2
    after = contents(own_bundle)
    assert all(
        onnx.load_from_string(first[f]).graph.SerializeToString(deterministic=True)
        == onnx.load_from_string(after[f]).graph.SerializeToString(deterministic=True)
        for f in result.made
    )
    assert first["calibration.json"] == after["calibration.json"]


def test_the_same_images_under_other_names_are_the_same_images(own_bundle, photos, calibrations, tmp_path):
    export_model(own_bundle, int8=True, calib=photos)
    moved = tmp_path / "moved"
    moved.mkdir()
    for i, path in enumerate(find_images(photos)):
        shutil.copy(path, moved / f"photo{i}.png")
    export_model(own_bundle, int8=True, calib=moved, force=True)
    assert len(calibrations) == 1


@pytest.mark.parametrize("change", ["method", "samples", "images", "seed"])
def test_another_calibration_is_made_anew(own_bundle, photos, calibrations, tmp_path, change):
    export_model(own_bundle, int8=True, calib=photos, calib_samples=8)
    options = {"calib": photos, "calib_samples": 8}
    if change == "method":
        options["calib_method"] = "percentile"
    elif change == "samples":
        options["calib_samples"] = 9
    elif change == "seed":
        options["seed"] = 1
    else:
        shutil.copytree(photos, tmp_path / "photos")
        for path in find_images(tmp_path / "photos"):
            path.write_bytes(path.read_bytes() + b"changed")
        options["calib"] = tmp_path / "photos"
    export_model(own_bundle, int8=True, force=True, **options)
    assert len(calibrations) == 2


def test_another_model_is_calibrated_anew(own_bundle, photos, calibrations, tiny_net, preprocessing):
    export_model(own_bundle, int8=True, calib=photos)
    export_model(tiny_net(seed=1), own_bundle, preprocessing=preprocessing, int8=True, calib=photos, force=True)
    assert len(calibrations) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema_version": 99}', None])
def test_a_damaged_cache_is_made_anew(own_bundle, photos, calibrations, damage):
    export_model(own_bundle, int8=True, calib=photos)
    cache = own_bundle / "calibration.json"
    whole = cache.read_text()
    cache.write_text(whole.replace('"symmetric"', '"asymmetric_"', 1) if damage is None else damage)
    export_model(own_bundle, int8=True, calib=photos, force=True)
    assert len(calibrations) == 2
    assert cache.read_text() == whole


def test_the_cache_stays_where_nothing_is_calibrated(own_bundle, photos):
    export_model(own_bundle, int8=True, calib=photos)
    before = (own_bundle / "calibration.json").read_bytes()
    export_model(own_bundle, fp16=True)
    assert (own_bundle / "calibration.json").read_bytes() == before


# Images.


def test_the_default_images_come_with_a_warning(own_bundle):
    result = export_model(own_bundle, int8=True)
    assert any("the few sample images of the package: pass images like those it will see" in w for w in result.warnings)


def test_unreadable_images_are_counted(own_bundle, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    result = export_model(own_bundle, int8=True, calib=tmp_path / "photos")
    assert any("1 of 13 calibration images could not be read" in w for w in result.warnings)
    assert any("1 of 13 verification images could not be read" in w for w in result.warnings)
    assert json.loads((own_bundle / "calibration.json").read_text())["image_count"] == 12


@pytest.mark.parametrize("content", [None, b"no image"])
def test_folders_without_a_readable_image(own_bundle, tmp_path, content):
    (tmp_path / "photos").mkdir()
    if content is not None:
        (tmp_path / "photos" / "a.png").write_bytes(content)
    before = contents(own_bundle)
    with pytest.raises(runtime.HolocronError):
        export_model(own_bundle, int8=True, calib=tmp_path / "photos")
    assert contents(own_bundle) == before


# What was asked.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "--num-classes 0 is out of range, expected an integer from 1 to 1000000"),
        ({"num_classes": 2.0}, "--num-classes 2.0 is out of range"),
        ({"num_classes": True}, "--num-classes True is out of range"),
        ({"calib_samples": 0}, "--calib-samples 0"),
        ({"max_batch": 5000}, "--max-batch 5000"),
        ({"max_batch": 8}, "--max-batch 8 is of an engine"),
        ({"seed": -1}, "--seed -1"),
        ({"input_size": (0, 5)}, "--input-size 0"),
        ({"input_size": (32, 99999)}, "--input-size 99999"),
        ({"input_size": (3, 32, 32)}, "--input-size takes height and width"),
        (
            {"calib_method": "best"},
            "--calib-method 'best' is unknown, expected one of auto, minmax, percentile, entropy, mse",
        ),
        ({"effort": "most"}, "--effort 'most' is unknown, expected one of fast, normal, high"),
        ({"per_tensor": True}, "--per-tensor is of INT8 graphs: add --int8"),
        ({"calib": "nowhere"}, "--calib nowhere is not a folder"),
        ({"eval_folder": "nowhere"}, "--eval nowhere is not a folder"),
        ({"rtx_capabilities": ("8.6",)}, "--rtx-capability says what --rtx builds for: add --rtx"),
        ({"rtx": True, "rtx_capabilities": ("ampere",)}, "'ampere' is not a compute capability"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(ExportError, match=message.replace(".", r"\.")):
        export_model("repvgg_a0", tmp_path / "out", **options)
    assert names(tmp_path) == []


def test_capabilities_are_built_for_once_each():
    assert ExportSpec("x", rtx=True).capabilities == ("8.6",)
    assert ExportSpec("x", rtx=True, rtx_capabilities=("8.9", "7.5", "8.9")).capabilities == ("8.9", "7.5")


def test_an_engine_for_each_capability(own_bundle):
    pytest.importorskip("tensorrt_rtx")
    result = export_model(own_bundle, rtx=True, rtx_capabilities=("12.0", "8.9"), max_batch=4)
    assert [a.engine.compute_capability for a in result.manifest.artefacts if a.engine] == ["12.0", "8.9"]
    assert {a.engine.max_batch for a in result.manifest.artefacts if a.engine} == {4}


def test_progress_is_told_every_step(own_bundle, photos, recorder):
    spec = ExportSpec(str(own_bundle), int8=True, fp16=True, calib=photos)
    run_export(spec, recorder)
    steps = (
        "checking",
        "converting to float16",
        "running 12 images through the float network",
        "choosing ranges for cpu (auto)",
        "rounding weights for trt (normal)",
        "verifying 3 artefacts",
    )
    assert all(recorder.did(step) for step in steps)
