"""Engines that are run where they are built: on a small stand-in for a GPU, and on a real one where there is one."""

import json
import shutil
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from gpu_stand_ins import stand_ins
from tiny_networks import TinyBoxes, TinyNet, TinySegmenter

from calib import find_images
from export import Tolerances, engine, export_model
from export.cli import main
from export.engine_options import EngineBuild
from export.errors import EngineError, VerificationError
from export.graph.answers import AnswerComparison
from runtime.backends import cuda as driver
from runtime.backends import unavailable
from runtime.manifest import Preprocessing, read_manifest
from runtime.post_processing import PostProcessing

KINDS = {1: "FLOAT", 2: "UINT8", 6: "INT32"}
PREPROCESSING = Preprocessing((24, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
DETECTIONS = {"task": "detection", "score_threshold": 0.2, "iou_threshold": 0.5, "max_detections": 96}


def seeded(kind):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return kind().eval()


class Machine:
    """A machine whose GPU computes what ONNX Runtime makes of a graph, and does to that what a fault does."""

    def __init__(self, install, monkeypatch):
        self._install, self._patch = install, monkeypatch
        self.built, self.fed = [], []

    def __call__(self, fault=None, library="tensorrt", version="10.3.0", capability="8.7", fixed=False, **cuda_options):
        self.cuda, self.trt = self._install("lazy", library, version, capability, **cuda_options)

        def build(graph, info, frame, *, detailed, timing_cache, progress):
            assert (info.library, info.version) == (library, version)
            self.built.append(graph)
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]

            def network(feeds):
                self.fed.append(len(next(iter(feeds.values()))))
                outputs = dict(zip(names, session.run(None, feeds), strict=True))
                return outputs if fault is None else fault(outputs)

            name = f"built {len(fake_tensorrt.NETWORKS)}"
            fake_tensorrt.NETWORKS[name] = network
            model = onnx.load_from_string(graph)
            largest = {} if frame is None else dict(zip(("height", "width"), frame.size, strict=True))
            return fake_tensorrt.make_plan(
                name,
                [(*tensor(i), *profile(i, info.max_batch, largest, fixed)) for i in model.graph.input],
                [(*tensor(o), [-1, *profile(o, 1, {}, True)[0][1:]]) for o in model.graph.output],
                library=library,
                version=version,
                capability=info.compute_capability,
                stripped=info.stripped,
            )

        self._patch.setattr(engine, "device_count", lambda: self.cuda.devices)
        self._patch.setattr(engine, "check_builder", lambda *_: None)
        self._patch.setattr(engine, "build_engine", build)
        return self


def tensor(value):
    return value.name, KINDS[value.type.tensor_type.elem_type]


def profile(value, max_batch, largest, fixed):
    """The smallest and the largest shape of a tensor of a graph."""
    dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    high = [d if isinstance(d, int) else largest.get(d, max_batch) for d in dims]
    return high if fixed else [d if isinstance(d, int) else 1 for d in dims], high


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photos):
    """Bundles with a float32 graph, each made once. Not to be changed."""
    made = {}

    def export(network, options):
        key = repr((network, options))
        if key not in made:
            folder = tmp_path_factory.mktemp("exported") / "bundle"
            export_model(seeded(network), folder, preprocessing=PREPROCESSING, calib=photos, **options)
            made[key] = folder
        return made[key]

    return export


@pytest.fixture
def machine(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    fake = {}
    monkeypatch.setattr(fake_tensorrt, "NETWORKS", fake)
    with stand_ins(monkeypatch) as install:
        yield Machine(install, monkeypatch)


def only_engine(result):
    (found,) = [a for a in result.manifest.artefacts if a.kind == "engine"]
    return found


def scaled(factor):
    return lambda outputs: {name: array * np.float32(factor) for name, array in outputs.items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("library", "version", "capability"), [("tensorrt", "10.3.0", "8.7"), ("tensorrt_rtx", "1.7.1", "8.6")]
)
def test_each_engine_is_run_as_it_will_be(tiny_bundle, photos, tmp_path, machine, library, version, capability):
    here = machine(library=library, version=version, capability=capability)
    wanted = {"trt": True} if library == "tensorrt" else {"rtx": True}
    result = export_model(
        tiny_bundle, tmp_path / "out", fp16=True, int8=True, calib=photos, max_batch=3, verify_samples=12, **wanted
    )
    by_variant = {(a.kind, a.variant): a for a in read_manifest(tmp_path / "out").artefacts}
    for variant in ("fp16", "int8.trt"):
        of_engine, of_graph = by_variant["engine", variant].verification, by_variant["onnx", variant].verification
        assert (of_engine.backend, of_engine.reference, of_engine.images) == (library, "onnx-fp32", 12)
        # Here the engine's kernels are ONNX Runtime's own, and the figures those of the graph on the same images.
        assert of_engine.relative_error == pytest.approx(of_graph.relative_error, rel=0.2)
        assert of_engine.cosine == pytest.approx(of_graph.cosine, rel=1e-3)
        assert of_graph.backend == "onnxruntime"
    assert here.fed == [3] * 2 * (3 + 2)  # 8 and 4 images, 3 at once, twice
    assert (result.notes, result.warnings) == ((), ())
    rows = [line for line in result.table().splitlines() if ".engine" in line]
    assert len(rows) == 2
    assert all(row.rstrip().endswith(library) for row in rows)


def test_engines_of_a_new_model_are_compared_with_pytorch(photos, preprocessing, tmp_path, machine):
    """Which answers once an image, and whose images are read once, however much is compared."""
    machine()
    batches = []

    class Counting(TinyNet):
        def forward(self, x):
            if type(x) is torch.Tensor and not torch.compiler.is_exporting():
                batches.append(len(x))
            return super().forward(x)

    result = export_model(
        seeded(Counting), tmp_path / "out", preprocessing=preprocessing, fp16=True, trt=True, calib=photos
    )
    verification = only_engine(result).verification
    assert (verification.reference, verification.images, verification.backend) == ("pytorch", 12, "tensorrt")
    assert verification.relative_error < 1e-2
    assert batches[-2:] == [8, 4]
    assert batches.count(8) == 1


@pytest.mark.parametrize(
    ("graphs", "fault", "problem"),
    [
        ({"fp16": True}, scaled(1.04), r"relative error 0\.04 \(at most 0\.03\)"),
        ({"fp16": True}, scaled(np.nan), r"relative error nan \(at most 0\.03\)"),
        ({"int8": True}, scaled(0), r"relative error 1 \(at most 0\.5\)"),
        ({"int8": True}, lambda o: {"logits": np.roll(o["logits"], 1, axis=1)}, r"relative error .*at most 0\.5"),
    ],
)
def test_a_broken_engine_ends_the_export(tiny_bundle, photos, tmp_path, machine, holds_only, graphs, fault, problem):
    machine(fault)
    (variant,) = {"fp16": "fp16", "int8": "int8.trt"}[next(iter(graphs))].split(",")
    with pytest.raises(VerificationError, match=problem) as caught:
        export_model(tiny_bundle, tmp_path / "out" / "bundle", calib=photos, trt=True, **graphs)
    assert str(caught.value).startswith(
        f"model.{variant}.tensorrt-10.3.0-sm87.engine does not answer as onnx-fp32 does: "
    )
    assert str(caught.value).endswith(
        f"Nothing was written; TensorRT 10.3.0 makes something else of the {variant} graph than it says: build the "
        "engine with another --engine-level, or with another version of the library"
    )
    assert "--calib" not in str(caught.value)
    assert holds_only(tmp_path)


@pytest.mark.parametrize(("off", "passes"), [(9e-4, True), (1.1e-3, False)])
def test_a_float32_engine_sums_in_another_order_and_no_more(own_bundle, tmp_path, machine, off, passes):
    machine(scaled(1 + off))
    if passes:
        result = export_model(own_bundle, tmp_path / "out", trt=True)
        assert only_engine(result).verification.relative_error == pytest.approx(off, rel=0.01)
    else:
        with pytest.raises(VerificationError, match=r"model\.fp32\..*relative error 0\.0011 \(at most 0\.001\)"):
            export_model(own_bundle, tmp_path / "out", trt=True)
        wide = Tolerances(fp32_engine=2e-3)
        assert only_engine(export_model(own_bundle, tmp_path / "out", trt=True, tolerances=wide)).verification


def test_a_trained_engine_that_agrees_too_rarely(tmp_path, tiny_bundle, machine, photos, monkeypatch):
    """INT8 may be far off and must still say the same: that bound is an engine's as well as a graph's."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "trained"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["provenance"]["weights"] = "mine.pth"
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def second(outputs):
        logits = outputs["logits"].copy()
        best = np.argsort(-logits, axis=1)[:, :2]
        for row, (a, b) in zip(logits, best, strict=True):
            row[a], row[b] = row[b] - 1e-3, row[a]
        return {"logits": logits}

    machine(second)
    with pytest.raises(VerificationError, match=r"int8\.trt\.tensorrt.*top-1 agreement .* on 12 images"):
        export_model(folder, trt=True, calib=photos)


def test_labels_say_how_accurate_an_engine_is(tiny_bundle, photos, tmp_path, machine):
    import runtime

    folder = tmp_path / "labelled"
    with runtime.load(tiny_bundle, "fp32", "onnxruntime") as model:
        for path in find_images(photos):
            target = folder / model(path).label
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    machine()
    found = only_engine(export_model(tiny_bundle, tmp_path / "out", trt=True, eval_folder=folder)).verification
    assert (found.labelled_images, found.reference_accuracy) == (12, 1)
    assert found.accuracy == found.top1_agreement


class TestNotRun:
    """What this machine cannot run stays without a verification, and one line says so."""

    def test_without_a_gpu(self, tiny_bundle, photos, tmp_path, machine):
        machine(library="tensorrt_rtx", version="1.7.1", devices=0)
        out = tmp_path / "out"
        command = [str(tiny_bundle), "-o", str(out), "--fp16", "--int8", "--rtx"]
        done = CliRunner().invoke(main, [*command, "--calib", str(photos), "-q"])
        assert done.exit_code == 0, done.output
        (line,) = [line for line in done.output.splitlines() if line.startswith("not verified")]
        assert line == (
            "not verified, since not run here: model.fp16.tensorrt_rtx-1.7.1-sm86.engine, "
            "model.int8.trt.tensorrt_rtx-1.7.1-sm86.engine (there is no NVIDIA GPU); "
            "`holocron-export BUNDLE --rtx --rtx-capability 8.6` makes up for it where they run"
        )
        assert done.output.count("not run here") == 2 + 1  # in the table, and here
        engines = [a for a in read_manifest(out).artefacts if a.kind == "engine"]
        assert [a.verification for a in engines] == [None, None]
        again = CliRunner().invoke(main, [str(out), "-o", str(tmp_path / "again"), "--rtx", "--json", "-q"])
        assert json.loads(again.stdout)["notes"] == [line]

    def test_for_another_gpu(self, own_bundle, tmp_path, machine):
        here = machine(library="tensorrt_rtx", version="1.7.1", capability="8.9")
        result = export_model(own_bundle, tmp_path / "out", rtx=True, rtx_capabilities=("8.6", "8.9"))
        verified = {a.engine.compute_capability: a.verification for a in result.manifest.artefacts if a.engine}
        assert verified["8.6"] is None
        assert verified["8.9"].backend == "tensorrt_rtx"
        assert result.notes == (
            "not verified, since not run here: model.fp32.tensorrt_rtx-1.7.1-sm86.engine (was built with TensorRT-RTX "
            "1.7.1 for compute capability 8.6, here are TensorRT-RTX 1.7.1 and 8.9); `holocron-export BUNDLE --rtx "
            "--rtx-capability 8.6` makes up for it where they run",
        )
        assert len(here.trt.controls.engines) == 1

    @pytest.mark.parametrize(
        ("missing", "reason"),
        [("cuda.bindings.runtime", "cuda-python is not installed"), ("onnxruntime", "onnxruntime is not installed")],
    )
    def test_without_what_running_takes(self, own_bundle, tmp_path, machine, monkeypatch, missing, reason):
        import sys

        machine()
        if missing == "onnxruntime":
            monkeypatch.setattr("export.verifier.unavailable", lambda name: f"{name} is not installed: pip install it")
        else:
            monkeypatch.setitem(sys.modules, missing, None)
        result = export_model(own_bundle, tmp_path / "out", trt=True)
        assert only_engine(result).verification is None
        (note,) = result.notes
        assert reason in note
        assert note.endswith("`holocron-export BUNDLE --trt` makes up for it where they run")

    def test_a_driver_that_is_too_old(self, own_bundle, tmp_path, machine):
        machine().cuda.fail("cudaGetDevice", "cudaErrorNoDevice", times=9)
        result = export_model(own_bundle, tmp_path / "out", trt=True)
        assert only_engine(result).verification is None
        assert "cudaErrorNoDevice" in result.notes[0]

    def test_it_is_made_up_for_where_they_run(self, own_bundle, tmp_path, machine):
        machine(library="tensorrt_rtx", version="1.7.1", capability="8.6", devices=0)
        export_model(own_bundle, rtx=True, rtx_capabilities=("8.6", "8.9"))
        before = contents(own_bundle)
        here = machine(library="tensorrt_rtx", version="1.7.1", capability="8.6")
        here.built.clear()
        result = export_model(own_bundle, rtx=True, rtx_capabilities=("8.6",))
        assert (result.made, here.built) == ((), [])
        verified = {a.engine.compute_capability: a.verification for a in result.manifest.artefacts if a.engine}
        assert verified["8.6"].backend == "tensorrt_rtx"
        assert verified["8.9"] is None
        assert read_manifest(own_bundle) == result.manifest
        after = contents(own_bundle)
        del before["manifest.json"], after["manifest.json"]
        assert after == before
        export_model(own_bundle, rtx=True, rtx_capabilities=("8.6",))  # it is known now
        assert len(here.trt.controls.engines) == 1

    def test_one_that_proves_broken_there(self, own_bundle, machine):
        machine(scaled(2), "tensorrt_rtx", "1.7.1", "8.6", devices=0)
        export_model(own_bundle, rtx=True)
        before = contents(own_bundle)
        machine(None, "tensorrt_rtx", "1.7.1", "8.6")
        with pytest.raises(VerificationError, match=r"model\.fp32\.tensorrt_rtx-1\.7\.1-sm86\.engine does not answer"):
            export_model(own_bundle, rtx=True)
        assert contents(own_bundle) == before


class TestKindsOfEngines:
    def test_without_its_weights(self, tiny_bundle, tmp_path, machine):
        here = machine()
        result = export_model(tiny_bundle, tmp_path / "out", trt=True, engine=EngineBuild(strip_weights=True))
        assert here.trt.controls.refitted == (tiny_bundle / "model.int8.trt.onnx").read_bytes()
        assert only_engine(result).engine.stripped
        assert only_engine(result).verification.backend == "tensorrt"

    def test_of_one_batch_alone(self, own_bundle, photos, tmp_path, machine):
        """As the deep learning accelerator takes it: 8 and 4 images are three batches of 5, two of them filled up."""
        here = machine(fixed=True)
        found = only_engine(export_model(own_bundle, tmp_path / "out", trt=True, max_batch=5, calib=photos))
        assert (found.verification.images, here.fed) == (12, [5, 5, 5])
        assert found.verification.relative_error < 1e-6

    @pytest.mark.parametrize("size", [{"max_frame": (60, 80)}, {"frame": (40, 48)}])
    def test_of_frames(self, photos, preprocessing, tmp_path, machine, size):
        machine()
        options = {"input": "frame", "channels": "bgr", "calib": photos, **size}
        made = export_model(seeded(TinyNet), tmp_path / "new", preprocessing=preprocessing, trt=True, **options)
        found = only_engine(made).verification
        assert (found.reference, found.images) == ("pytorch", 12)
        assert found.relative_error < 1e-5
        again = only_engine(export_model(made.bundle, tmp_path / "again", trt=True, force=True, calib=photos))
        assert (again.verification.reference, again.verification.relative_error) == ("onnx-fp32", 0)
        machine(scaled(1.1))
        with pytest.raises(VerificationError, match=r"relative error 0\.1 "):
            export_model(made.bundle, trt=True, force=True, calib=photos)

    def test_that_does_not_open(self, own_bundle, machine):
        before = contents(own_bundle)
        machine().trt.controls.fail("deserialize_cuda_engine", "magic tag does not match")
        with pytest.raises(
            EngineError,
            match=r"^model\.fp32\.tensorrt-10\.3\.0-sm87\.engine does not run on the GPU that it is for: "
            r".*magic tag does not match\. Nothing was written$",
        ):
            export_model(own_bundle, trt=True)
        assert contents(own_bundle) == before

    @pytest.mark.parametrize(
        ("call", "problem"),
        [("cudaMalloc", "not enough memory"), ("cudaStreamSynchronize", "cudaErrorMemoryAllocation")],
    )
    def test_on_a_gpu_that_fails(self, own_bundle, machine, call, problem):
        machine().cuda.fail(call)
        with pytest.raises(EngineError, match=rf"sm87\.engine does not run .*{problem}"):
            export_model(own_bundle, trt=True)

    def test_of_another_network(self, own_bundle, float_bundle, machine, monkeypatch):
        here = machine()
        build = engine.build_engine

        def other(graph, *args, **options):
            model = onnx.load_from_string(graph)
            model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
            return build(model.SerializeToString(), *args, **options)

        monkeypatch.setattr(engine, "build_engine", other)
        with pytest.raises(EngineError, match="the manifest says the outputs 'logits', the network has 'scores'"):
            export_model(own_bundle, trt=True)
        assert here.cuda.alive() == []


def moved(outputs):
    """The first of the boxes lies elsewhere in half the images, and so does the next."""
    boxes = outputs["boxes"].copy()
    boxes[:, ::2] += 7
    return {**outputs, "boxes": boxes}


def unlike(name):
    return lambda outputs: {**outputs, name: np.roll(outputs[name], 1, axis=1)}


def not_finite(outputs):
    return {**outputs, "status": outputs["status"] | 8}


ENDS = {
    "boxes": (TinyBoxes, DETECTIONS, moved, "detections in common with the float32 graph"),
    "lost": (TinyBoxes, DETECTIONS, not_finite, "computes NaN or infinite values on 12 of 12 images"),
    "map": (
        TinySegmenter,
        {"task": "segmentation", "class_map": True},
        unlike("class_map"),
        r"pixels in common with the float32 graph \(at least 90\.0%\)",
    ),
    "map and scores": (
        TinySegmenter,
        {"task": "segmentation", "class_map": True, "probabilities": True, "input": "frame", "frame": (40, 48)},
        unlike("class_map"),
        "pixels in common",
    ),
    "probabilities": (TinyNet, {"probabilities": True}, unlike("probabilities"), "relative error"),
    "best": (TinyNet, {"top_k": 3}, scaled(0.9), "relative error 0.1 "),
}


class TestEndToEnd:
    """Engines that give answers and nothing of their networks."""

    @pytest.mark.parametrize("kind", ENDS)
    def test_right_and_wrong(self, kind, exported, photos, tmp_path, machine):
        network, options, fault, problem = ENDS[kind]
        machine()
        made = export_model(exported(network, options), tmp_path / "out", calib=photos, trt=True, max_batch=2)
        found = only_engine(made).verification
        assert (found.reference, found.backend, found.images) == ("onnx-fp32", "tensorrt", 12)
        assert (found.relative_error, found.top1_agreement) == (0, 1)
        assert found.cosine == pytest.approx(1)
        machine(fault)
        with pytest.raises(VerificationError, match=problem) as caught:
            export_model(made.bundle, trt=True, force=True, max_batch=2, calib=photos)
        assert "--engine-level" in str(caught.value)

    @pytest.mark.parametrize(("lost", "passes"), [(0, True), (1, True), (2, True), (3, False)])
    def test_one_detection_more_or_less_is_rounding(self, lost, passes):
        """Of few, one is a large share."""
        reference = {
            "boxes": np.tile(np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32), (4, 1, 1)),
            "scores": np.tile(np.array([0.9, 0.5], np.float32), (4, 1)),
            "labels": np.zeros((4, 2), np.float32),
            "count": np.array([1, 1, 1, 1], np.float32),
            "status": np.zeros(4, np.float32),
        }
        comparison = AnswerComparison(PostProcessing("detections"))
        ours = {**reference, "count": np.where(np.arange(4) < lost, 0, 1).astype(np.float32)}
        comparison.add(ours, reference)
        result = comparison.result("onnx-fp32", backend="tensorrt")
        assert result.top1_agreement == pytest.approx(2 * (4 - lost) / (8 - lost))
        assert result.relative_error == pytest.approx((lost / 4) ** 0.5)  # what lies behind the count is no score
        if passes:
            comparison.check_counts("an.engine", 0.9, "do this")
        else:
            with pytest.raises(
                VerificationError, match=r"^an\.engine has 2 of 5 detections in common .*at least 90\.0%.*; do this$"
            ):
                comparison.check_counts("an.engine", 0.9, "do this")

    def test_an_engine_need_not_be_better_than_its_graph(self):
        """Where float16 or INT8 costs a quarter of the pixels, that is no fault of the engine."""
        rng = np.random.default_rng(0)
        reference = {"class_map": rng.integers(0, 5, (3, 20, 20)).astype(np.float32)}
        ours = reference["class_map"].copy()
        ours[:, :5] += 1
        comparison = AnswerComparison(PostProcessing("class_map"))
        comparison.add({"class_map": ours}, reference)
        result = comparison.result("onnx-fp32")
        assert (result.top1_agreement, result.cosine) == (0.75, 0.75)
        assert result.relative_error == pytest.approx(0.5**0.5)
        comparison.check_counts("an.engine", 0.75 - 0.1, "")
        with pytest.raises(VerificationError, match="has 900 of 1200 pixels in common"):
            comparison.check_counts("an.engine", 0.76, "")

    def test_nothing_found_is_said(self, photos, tmp_path, machine):
        machine()
        made = export_model(
            *(seeded(TinyBoxes), tmp_path / "out"),
            **(DETECTIONS | {"score_threshold": 1.0, "preprocessing": PREPROCESSING, "calib": photos, "trt": True}),
        )
        assert only_engine(made).verification.top1_agreement is None
        (warning,) = [text for text in made.warnings if ".engine" in text]
        assert warning.endswith("float32 graph found nothing on these images: its boxes were not compared")


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize(
    ("network", "options"),
    [
        (TinyNet, {}),
        (TinyNet, {"fp16": True, "int8": True}),
        (TinyNet, {"input": "frame", "max_frame": (60, 80)}),
        (TinyNet, {"top_k": 3, "engine": EngineBuild(strip_weights=True)}),
        (TinyBoxes, {**DETECTIONS, "fp16": True}),
        (TinySegmenter, {"task": "segmentation", "class_map": True, "int8": True}),
    ],
)
def test_on_a_real_gpu(library, network, options, photos, tmp_path):
    reason = unavailable(library)
    if reason is not None:
        pytest.skip(reason)
    capability = driver.device_capability(0)
    where = {"trt": True} if library == "tensorrt" else {"rtx": True, "rtx_capabilities": (capability,)}
    try:
        result = export_model(
            *(seeded(network), tmp_path / "out"),
            **{"preprocessing": PREPROCESSING, "calib": photos, "max_batch": 4, **where, **options},
        )
    except EngineError as e:
        if "does not build for compute capability" in str(e):
            pytest.skip(str(e))
        raise
    engines = [a for a in result.manifest.artefacts if a.kind == "engine"]
    assert len(engines) == options.get("fp16", False) + options.get("int8", False) or len(engines) == 1
    for each in engines:
        found = each.verification
        assert (found.backend, found.images) == (library, 12)
        assert found.top1_agreement > {"fp32": 0.99, "fp16": 0.9, "int8": 0.7}[each.precision]
    assert result.notes == ()
