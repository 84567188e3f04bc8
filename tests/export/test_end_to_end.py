"""Graphs that answer what a program wants: verified, run by the runtime, equal to PyTorch on photographs."""

import json

import numpy as np
import onnx
import pytest
import torch
from tiny_networks import TinyBoxes, TinySegmenter
from torch import nn
from torchvision.ops import batched_nms

import runtime
from calib import find_images
from export import ExportSpec, export_model
from export.base import load_network, load_onnx
from export.engine import build_engine
from export.errors import ExportError, SourceError, VerificationError
from export.gate import tensorrt10_problems
from export.graph import check
from export.graph.attach import attach, tail_behind
from export.graph.check import matched_detections
from export.graph.detection import Detector
from export.graph.outputs import make_tail
from export.graph.segmentation import ClassMap
from export.onnx_graph import graph_digest
from export.pipeline import run_export
from export.source import from_module
from export.trace import trace
from holocron import models
from holocron.models.detection.detector import select_detections
from runtime import Classification, Detections, Segmentation, TopClasses
from runtime.backends import open_session
from runtime.manifest import EngineInfo, Preprocessing, read_manifest
from runtime.nms import NOT_FINITE
from runtime.post_processing import PostProcessing
from runtime.preprocess import Preprocessor
from runtime.results import cells_of_pixels

SIZE = (24, 32)
PAD = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resize="pad")
RTX = EngineInfo("tensorrt_rtx", "1.7.1", "8.6", 2)


def seeded(kind, *args):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return kind(*args).eval()


@pytest.fixture(scope="module")
def detector(tmp_path_factory, photos):
    """A detector with every graph, its images padded. Not to be changed."""
    return export_model(
        seeded(TinyBoxes),
        tmp_path_factory.mktemp("e2e") / "boxes",
        task="detection",
        preprocessing=PAD,
        score_threshold=0.2,
        iou_threshold=0.5,
        max_detections=96,
        fp16=True,
        int8=True,
        calib=photos,
    )


def eager(module, batch, score_threshold, iou_threshold):
    with torch.no_grad():
        boxes, scores = module.decode(module.raw_outputs(torch.from_numpy(batch)))
    return select_detections(boxes, scores, score_threshold, iou_threshold)


class TestDetections:
    def test_the_manifest_says_what_the_outputs_are(self, detector):
        manifest = read_manifest(detector.bundle)
        assert [(o.name, o.dtype, o.shape) for o in manifest.outputs] == [
            ("boxes", "float32", ("batch", 96, 4)),
            ("scores", "float32", ("batch", 96)),
            ("labels", "int32", ("batch", 96)),
            ("count", "int32", ("batch",)),
            ("status", "int32", ("batch",)),
        ]
        assert manifest.post_processing == PostProcessing("detections", "network", 0.2, 0.5, 96, 300, 16)
        assert all("calibrating" in warning for warning in detector.warnings)

    def test_every_precision_was_verified(self, detector):
        for artefact in detector.manifest.artefacts:
            result = artefact.verification
            assert result.relative_error < {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.2}[artefact.precision]
            assert result.top1_agreement > {"fp32": 0.999, "fp16": 0.95, "int8": 0.8}[artefact.precision]
        assert "matched boxes" in detector.table()

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_boxes_lie_where_pytorch_has_them_in_the_photograph(self, detector, photos, backend):
        pytest.importorskip(backend)
        paths = find_images(photos)
        expected = eager(seeded(TinyBoxes), Preprocessor(PAD).batch(paths), 0.2, 0.5)
        with runtime.load(detector.bundle, "fp32", backend, 1) as model:
            answers = model(list(paths))
        assert sum(len(answer) for answer in answers) > 12
        for answer, wanted in zip(answers, expected, strict=True):
            assert isinstance(answer, Detections)
            assert answer.status == 0
            # Photographs are 40 × 48: scaled to 24 × 29, in the middle of 24 × 32.
            boxes = wanted["boxes"].numpy() * (32, 24, 32, 24) - (1, 0, 1, 0)
            boxes = np.clip(boxes * (48 / 29, 40 / 24, 48 / 29, 40 / 24), 0, (48, 40, 48, 40))
            keep = (boxes[:, :2] < boxes[:, 2:]).all(1)
            np.testing.assert_allclose(answer.boxes, boxes[keep], atol=1e-3)
            np.testing.assert_allclose(answer.scores, wanted["scores"].numpy()[keep], atol=1e-5)
            assert answer.labels.tolist() == wanted["labels"][torch.from_numpy(keep)].tolist()

    @pytest.mark.parametrize("precision", ["fp16", "int8.cpu", "int8.trt"])
    def test_lower_precision_finds_much_the_same(self, detector, photos, precision):
        paths = list(find_images(photos))
        batch = Preprocessor(PAD).batch(paths)
        found = {}
        for variant in ("fp32", precision):
            with runtime.load(detector.bundle, variant, "onnxruntime", 1) as model:
                found[variant] = model.session.run(batch)
        matched, total = matched_detections(found["fp32"], found[precision], 0.5)
        assert total > 24
        assert matched > 0.8 * total

    def test_only_the_network_is_quantized(self, detector, op_counts):
        """What decodes and suppresses is the same, in float32, in every graph."""
        tails = {}
        for variant in ("", ".fp16", ".int8.cpu", ".int8.trt"):
            tail = tail_behind(load_onnx(detector.bundle / f"model{variant}.onnx"))
            tails[variant] = graph_digest(tail)
            assert not {"QuantizeLinear", "DequantizeLinear"} & op_counts(tail).keys()
        assert len(set(tails.values())) == 1

    def test_the_network_comes_back_as_it_was(self, detector):
        file = detector.bundle / "model.onnx"
        network = load_network(file, detector.manifest)
        source = from_module(seeded(TinyBoxes), "boxes", PAD, task="detection")
        assert graph_digest(network) == graph_digest(trace(source.module, SIZE, output_names=("head",)))
        whole = attach(network, tail_behind(load_onnx(file)))
        assert graph_digest(whole) == graph_digest(load_onnx(file))

    def test_another_export_adds_to_it_and_reads_the_calibration(self, detector, tmp_path, photos, recorder):
        out = tmp_path / "more"
        spec = ExportSpec(str(detector.bundle), out, int8=True, force=True, calib=photos)
        run_export(spec, recorder)
        assert recorder.did("reading the calibration")
        manifest = read_manifest(out)
        assert manifest.post_processing == detector.manifest.post_processing
        for artefact in manifest.artefacts:
            before, after = (graph_digest(load_onnx(folder / artefact.file)) for folder in (detector.bundle, out))
            assert before == after

    def test_tensorrt_takes_them(self, detector):
        pytest.importorskip("tensorrt_rtx")
        for variant in ("", ".fp16", ".int8.trt"):
            model = onnx.load(detector.bundle / f"model{variant}.onnx")
            assert tensorrt10_problems(model) == []
        assert len(build_engine((detector.bundle / "model.int8.trt.onnx").read_bytes(), RTX)) > 1000

    def test_a_lone_file_opens(self, detector, photos):
        with runtime.load(detector.bundle / "model.int8.cpu.onnx") as model:
            assert isinstance(model(find_images(photos)[0]), Detections)

    def test_raw_gives_the_heads(self, tmp_path, photos):
        result = export_model(
            seeded(TinyBoxes), tmp_path / "raw", task="detection", preprocessing=PAD, end_to_end=False, calib=photos
        )
        assert [o.name for o in result.manifest.outputs] == ["head"]
        assert "post_processing" not in json.loads((result.bundle / "manifest.json").read_text())

    def test_thresholds_are_the_detectors_own_unless_given(self):
        module = seeded(TinyBoxes)
        module.box_score_thresh, module.rpn_nms_thresh = 0.33, 0.6
        source = from_module(module, "boxes", PAD, task="detection")
        post = make_tail(ExportSpec("boxes"), source).post_processing
        assert (post.score_threshold, post.iou_threshold, post.candidates) == (0.33, 0.6, 300)
        post = make_tail(ExportSpec("boxes", score_threshold=0.0, max_detections=500), source).post_processing
        assert (post.score_threshold, post.iou_threshold, post.candidates) == (0.0, 0.6, 500)
        del module.box_score_thresh, module.rpn_nms_thresh
        post = make_tail(ExportSpec("boxes"), source).post_processing
        assert (post.score_threshold, post.iou_threshold) == (0.25, 0.45)

    def test_a_frame_of_known_size_has_its_boxes_in_its_own_pixels(self):
        """The graph itself undoes resizing and padding; rows that are not used stay 0."""
        source = from_module(seeded(TinyBoxes), "boxes", PAD, task="detection")
        spec = ExportSpec("boxes", score_threshold=0.2, iou_threshold=0.5)
        framed, plain = make_tail(spec, source, (40, 48)), make_tail(spec, source)
        assert framed.post_processing.coordinates == "frame"
        x = torch.randn(3, 3, *SIZE)
        with torch.no_grad():
            (head,) = (source.module(x),)
            ours, theirs = framed.module(head), plain.module(head)
        used = (ours.labels >= 0)[..., None]
        scale = torch.tensor([48 / 29, 40 / 24] * 2)
        expected = ((theirs.boxes - torch.tensor([1.0, 0, 1, 0])) * scale).clamp(min=0)
        expected = torch.minimum(expected, torch.tensor([48.0, 40, 48, 40])) * used
        torch.testing.assert_close(ours.boxes, expected, atol=1e-4, rtol=0)
        assert (~used).any()

    def test_as_one_module(self):
        module = seeded(TinyBoxes)
        source = from_module(module, "boxes", PAD, task="detection")
        tail = make_tail(ExportSpec("boxes", score_threshold=0.2, iou_threshold=0.5), source)
        x = torch.randn(2, 3, *SIZE)
        with torch.no_grad():
            found = Detector(module, tail.module)(x)
        expected = eager(module, x.numpy(), 0.2, 0.5)
        assert found.counts.tolist() == [len(each["scores"]) for each in expected]

    def test_values_that_are_not_finite_are_no_answer(self, tmp_path, photos, detector):
        """A weight of infinity: the network's own sums are NaN, which no threshold shows."""
        model = onnx.load(detector.bundle / "model.onnx")
        bias = next(t for t in model.graph.initializer if t.name.endswith("head.bias"))
        bias.raw_data = np.full(16, np.nan, np.float32).tobytes()
        session = open_session(model.SerializeToString(), "onnxruntime", 1)
        outputs = session.run(np.zeros((1, 3, *SIZE), np.float32))
        assert outputs["status"] & NOT_FINITE
        path = tmp_path / "broken.onnx"
        onnx.save(model, path)
        with runtime.load(path) as broken, pytest.raises(runtime.BackendError, match="NaN or infinite"):
            broken(find_images(photos)[0])


class TestClassMaps:
    def test_a_class_map(self, tmp_path, photos):
        result = export_model(
            seeded(TinySegmenter),
            tmp_path / "map",
            task="segmentation",
            preprocessing=PAD,
            class_map=True,
            probabilities=True,
            fp16=True,
            calib=photos,
        )
        assert [(o.name, o.dtype, o.shape) for o in result.manifest.outputs] == [
            ("class_map", "uint8", ("batch", *SIZE)),
            ("status", "int32", ("batch",)),
            ("probabilities", "float32", ("batch", 3, 12, 16)),
        ]
        plain = export_model(seeded(TinySegmenter), tmp_path / "scores", task="segmentation", preprocessing=PAD)
        paths = list(find_images(photos))
        with runtime.load(result.bundle, "fp32") as model, runtime.load(plain.bundle) as reference:
            for ours, theirs in zip(model(paths), reference(paths), strict=True):
                assert isinstance(ours, Segmentation)
                assert ours.class_map.shape == SIZE
                np.testing.assert_array_equal(ours.resized(), theirs.resized())
                np.testing.assert_allclose(ours.probabilities.sum(0), 1, atol=1e-5)
        for artefact in result.manifest.artefacts:
            assert tensorrt10_problems(onnx.load(result.bundle / artefact.file)) == []

    @pytest.mark.parametrize("frame", [(40, 48), (24, 32), (13, 90)])
    def test_in_the_pixels_of_a_frame(self, frame):
        scores = torch.randn(2, 3, 12, 16)
        class_map, status = ClassMap((12, 16), PAD, frame)(scores)
        assert class_map.dtype == torch.uint8
        assert status.tolist() == [0, 0]
        expected = Segmentation(scores[0].argmax(0).numpy().astype(np.uint8), ("a", "b", "c"), frame, PAD).resized()
        np.testing.assert_array_equal(class_map[0].numpy(), expected)
        assert ClassMap((12, 16), PAD, frame)(torch.full((1, 3, 12, 16), torch.nan))[1].tolist() == [NOT_FINITE]

    def test_more_than_256_classes_are_int32(self):
        class_map, _ = ClassMap((2, 2), Preprocessing((2, 2), PAD.mean, PAD.std))(
            torch.eye(300)[None, :, :4].reshape(1, 300, 2, 2)
        )
        assert class_map.dtype == torch.int32
        assert PostProcessing("class_map").output_types(300)["class_map"] == "int32"

    def test_tensorrt_takes_the_bytes(self):
        pytest.importorskip("tensorrt_rtx")
        source = from_module(seeded(TinySegmenter), "map", PAD, task="segmentation")
        tail = make_tail(ExportSpec("map", class_map=True), source, (40, 48))
        model = tail.trace(source.outputs)
        assert tensorrt10_problems(model) == []
        assert len(build_engine(model.SerializeToString(), RTX)) > 1000

    def test_cells_of_the_networks_own_pixels(self):
        rows, columns = cells_of_pixels((12, 16), PAD, None)
        assert rows.tolist() == [i // 2 for i in range(24)]
        assert columns.tolist() == [i // 2 for i in range(32)]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, tiny_net, preprocessing, photos):
    folder = tmp_path_factory.mktemp("classes")
    options = {"preprocessing": preprocessing, "calib": photos}
    return {
        "logits": export_model(tiny_net(), folder / "logits", **options),
        "probabilities": export_model(tiny_net(), folder / "p", probabilities=True, int8=True, **options),
        "top": export_model(tiny_net(), folder / "top", top_k=3, fp16=True, **options),
    }


class TestClasses:
    def test_all_answer_alike(self, classifiers, photos):
        paths = list(find_images(photos))
        answers = {}
        for name, result in classifiers.items():
            with runtime.load(result.bundle, "fp32") as model:
                answers[name] = model(paths)
        for logits, probabilities, top in zip(*answers.values(), strict=True):
            assert isinstance(probabilities, Classification)
            assert isinstance(top, TopClasses)
            np.testing.assert_allclose(probabilities.probabilities(), logits.probabilities(), atol=1e-6)
            assert [p.index for p in top.top()] == [p.index for p in logits.top(3)]
            assert [p.score for p in top.top(2)] == pytest.approx([p.score for p in logits.top(2)], abs=1e-6)
            assert (top.index, top.label, top.score) == (logits.index, logits.label, pytest.approx(logits.score))
            assert top.to_dict(2)["top"][1]["label"] == logits.to_dict(2)["top"][1]["label"]

    def test_agreement_is_that_of_the_logits(self, classifiers):
        for result in classifiers.values():
            for artefact in result.manifest.artefacts:
                assert artefact.verification.top1_agreement > (0.99 if artefact.precision == "fp32" else 0.7)

    def test_the_graphs(self, classifiers):
        assert [(o.name, o.shape) for o in classifiers["probabilities"].manifest.outputs] == [
            ("probabilities", ("batch", 5))
        ]
        assert [(o.name, o.dtype) for o in classifiers["top"].manifest.outputs] == [
            ("scores", "float32"),
            ("labels", "int32"),
            ("status", "int32"),
        ]
        for file in ("model.onnx", "model.fp16.onnx"):
            assert tensorrt10_problems(onnx.load(classifiers["top"].bundle / file)) == []

    def test_equal_logits(self):
        from export.graph.classification import TopClasses as Module

        logits = torch.tensor([[1.0, 3, 3, 0, 3, 1]])
        assert Module(2)(logits)[1].tolist() == [[1, 2]]
        assert Module(5)(logits)[1].tolist() == [[1, 2, 4, 0, 5]]
        assert Module(6)(logits)[1].tolist() == [[1, 2, 4, 0, 5, 3]]


class TestFrames:
    """Frames in, results out: what stands in front of the network and what stands behind it, together."""

    @pytest.mark.parametrize("fixed", [True, False])
    def test_boxes_of_frames(self, tmp_path, photos, detector, fixed):
        size = {"frame": (40, 48)} if fixed else {"max_frame": (64, 64)}
        result = export_model(
            seeded(TinyBoxes),
            tmp_path / "frames",
            task="detection",
            preprocessing=PAD,
            score_threshold=0.2,
            iou_threshold=0.5,
            max_detections=96,
            fp16=fixed,
            input="frame",
            calib=photos,
            **size,
        )
        assert result.manifest.post_processing.coordinates == ("frame" if fixed else "network")
        paths = list(find_images(photos))[:4]
        with runtime.load(result.bundle, "fp32") as framed, runtime.load(detector.bundle, "fp32") as plain:
            for ours, theirs in zip(framed(paths), plain(paths), strict=True):
                np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)
                assert ours.labels.tolist() == theirs.labels.tolist()
        network = load_network(result.bundle / "model.onnx", result.manifest)
        assert graph_digest(network) == graph_digest(load_network(detector.bundle / "model.onnx", detector.manifest))
        more = export_model(str(result.bundle), tmp_path / "more", int8=True, calib=photos)
        assert more.manifest.post_processing == result.manifest.post_processing

    def test_a_class_map_of_frames(self, tmp_path, photos):
        result = export_model(
            seeded(TinySegmenter),
            tmp_path / "frames",
            task="segmentation",
            preprocessing=PAD,
            class_map=True,
            input="frame",
            frame=(40, 48),
            calib=photos,
        )
        plain = export_model(seeded(TinySegmenter), tmp_path / "plain", task="segmentation", preprocessing=PAD)
        assert result.manifest.outputs[0].shape == ("batch", 40, 48)
        path = find_images(photos)[0]
        with runtime.load(result.bundle) as framed, runtime.load(plain.bundle) as other:
            ours, theirs = framed(path), other(path)
            assert ours.class_map.shape == (40, 48)
            assert (ours.resized() == theirs.resized()).mean() > 0.99


class TestVerification:
    def test_a_wrong_graph_is_refused(self, tmp_path, photos, monkeypatch):
        """Boxes that PyTorch would have suppressed: the heads are right, what is made of them is not."""
        monkeypatch.setattr("holocron.models.detection.detector.batched_nms", lambda *a: batched_nms(*a[:3], a[3] / 4))
        with pytest.raises(VerificationError, match=r"model\.onnx: \d+ of \d+ detections are what they should be"):
            export_model(
                seeded(TinyBoxes),
                tmp_path / "out",
                task="detection",
                preprocessing=PAD,
                score_threshold=0.05,
                iou_threshold=0.9,
                calib=photos,
            )
        assert not (tmp_path / "out").exists()

    def test_nothing_found_is_said(self, tmp_path, photos):
        result = export_model(
            seeded(TinyBoxes),
            tmp_path / "out",
            task="detection",
            preprocessing=PAD,
            score_threshold=1.0,
            calib=photos,
        )
        assert [w for w in result.warnings if "found nothing on these images" in w]
        assert result.manifest.artefacts[0].verification.top1_agreement is None

    def test_detections_are_matched_whatever_their_order(self):
        def outputs(rows):
            boxes = np.array([[box for box, _ in rows]], np.float32).reshape(1, -1, 4)
            return {"boxes": boxes, "labels": np.array([[c for _, c in rows]]), "count": np.array([len(rows)])}

        a, b, c = (0, 0, 10, 10), (20, 20, 30, 30), (0, 0, 10, 6)
        assert matched_detections(outputs([(a, 0), (b, 1)]), outputs([(b, 1), (a, 0)]), 0.5) == (4, 4)
        assert matched_detections(outputs([(a, 0), (b, 1)]), outputs([(b, 0), (a, 0)]), 0.5) == (2, 4)
        assert matched_detections(outputs([(a, 0), (c, 0)]), outputs([(c, 0)]), 0.5) == (2, 3)
        assert matched_detections(outputs([]), outputs([(a, 0)]), 0.5) == (0, 1)
        assert matched_detections(outputs([]), outputs([]), 0.5) == (0, 0)

    def test_other_answers_are_compared_in_numpy(self):
        scores = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
        expected = check.expect_in_numpy(PostProcessing("top_classes", top_k=2))({"logits": scores})
        assert check.equal_answers("top_classes", expected, expected) == (16, 16)
        wrong = {**expected, "labels": expected["labels"] + 1}
        assert check.equal_answers("top_classes", wrong, expected) == (8, 16)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"score_threshold": 1.2}, r"--score-threshold 1\.2 is out of range, expected a number from 0 to 1"),
            ({"iou_threshold": -1}, "--iou-threshold -1 is out of range"),
            ({"iou_threshold": float("nan")}, "--iou-threshold nan"),
            ({"score_threshold": True}, "--score-threshold True"),
            ({"max_detections": 0}, "--max-detections 0 is out of range, expected an integer from 1 to 3839"),
            ({"candidates": 4000}, "--candidates 4000 is out of range"),
            ({"candidates": 50}, "--candidates 50 are fewer than the 100 of --max-detections"),
            ({"candidates": 5, "max_detections": 6}, "--candidates 5 are fewer than the 6"),
            ({"nms_steps": 1}, "--nms-steps 1 is out of range"),
            ({"top_k": 0}, "--top-k 0 is out of range"),
            ({"end_to_end": False, "top_k": 2}, "--top-k is of what --raw leaves out"),
            ({"end_to_end": False, "class_map": True}, "--class-map is of what --raw leaves out"),
        ],
    )
    def test_before_any_work(self, options, message):
        with pytest.raises(ExportError, match=message):
            ExportSpec("yolov2", **options)

    @pytest.mark.parametrize(
        ("task", "options", "message"),
        [
            ("detection", {"top_k": 2}, "--top-k says nothing about detection"),
            ("detection", {"class_map": True}, "--class-map says nothing about detection"),
            ("segmentation", {"candidates": 200}, "--candidates says nothing about segmentation"),
            ("segmentation", {"top_k": 2}, "--top-k says nothing about segmentation"),
        ],
    )
    def test_options_of_another_task(self, task, options, message):
        source = from_module(seeded(TinyBoxes if task == "detection" else TinySegmenter), "x", PAD, task=task)
        with pytest.raises(ExportError, match=message):
            make_tail(ExportSpec("x", **options), source)

    def test_options_of_another_task_for_a_classifier(self, tiny_net, preprocessing):
        source = from_module(tiny_net(), "x", preprocessing)
        with pytest.raises(ExportError, match="--score-threshold says nothing about classification"):
            make_tail(ExportSpec("x", score_threshold=0.5), source)
        with pytest.raises(ExportError, match="--top-k 6 is more than the 5 classes"):
            make_tail(ExportSpec("x", top_k=6), source)

    def test_a_detector_that_does_not_decode(self):
        module = seeded(TinyBoxes)
        module.decode = None
        source = from_module(module, "x", PAD, task="detection")
        assert make_tail(ExportSpec("x"), source) is None
        with pytest.raises(ExportError, match=r"the detector has no method `decode`.*--raw"):
            make_tail(ExportSpec("x", max_detections=5), source)

    @pytest.mark.parametrize("option", [{"top_k": 2}, {"end_to_end": True}, {"end_to_end": False}, {"candidates": 100}])
    def test_a_bundle_is_what_it_is(self, float_bundle, option):
        with pytest.raises(ExportError, match="cannot change an existing bundle"):
            export_model(str(float_bundle), **option)

    def test_a_tensor_of_the_same_name(self, tmp_path, photos):
        class Named(TinySegmenter):
            def __init__(self):
                super().__init__()
                self.status = nn.Parameter(torch.ones(3, 1, 1))

            def forward(self, x):
                return super().forward(x * self.status)

        with pytest.raises(ExportError, match="the network has a tensor 'status' already"):
            export_model(
                seeded(Named), tmp_path / "out", task="segmentation", preprocessing=PAD, calib=photos, class_map=True
            )

    def test_source_errors_are_export_errors(self):
        assert issubclass(SourceError, ExportError)


def build(arch):
    """A detector or segmenter of the registry with random weights and few classes."""
    options = {"pretrained_backbone": False} if models.get_model_info(arch).task == "detection" else {}
    if arch == "yolov1":
        options["head_hidden_nodes"] = 16
    return seeded(lambda: models.build_model(arch, num_classes=4, **options))


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("yolov2", 64),
        pytest.param("yolov1", 448, marks=pytest.mark.slow),
        pytest.param("yolov4", 64, marks=pytest.mark.slow),
    ],
)
def test_detectors_of_the_registry_equal_pytorch_on_photographs(arch, size, photos):
    module = build(arch)
    module.box_score_thresh, module.rpn_nms_thresh = 0.001, 0.6
    preprocessing = Preprocessing((size, size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    source = from_module(module, arch, preprocessing, task="detection")
    tail = make_tail(ExportSpec(arch, max_detections=300), source)
    names = [o.name for o in source.outputs]
    graph = attach(trace(source.module, (size, size), output_names=names), tail.trace(source.outputs))
    assert tensorrt10_problems(graph) == []
    batch = Preprocessor(preprocessing).batch(find_images(photos)[:3])
    with torch.no_grad():
        expected = module(torch.from_numpy(batch))
    wanted = {
        "boxes": [each["boxes"].numpy() * size for each in expected],
        "labels": [each["labels"].numpy() for each in expected],
        "count": [len(each["labels"]) for each in expected],
    }
    assert min(wanted["count"]) > 0
    wanted = {
        "boxes": np.stack([np.pad(b, ((0, 300 - len(b)), (0, 0))) for b in wanted["boxes"]]),
        "labels": np.stack([np.pad(lab, (0, 300 - len(lab))) for lab in wanted["labels"]]),
        "count": np.array(wanted["count"]),
    }
    for backend in ("onnxruntime", "openvino"):
        session = open_session(graph.SerializeToString(), backend, 1)
        outputs = session.run(batch)
        session.close()
        assert not outputs["status"].any()
        matched, total = matched_detections(outputs, wanted, 0.99)
        assert matched >= 0.995 * total, backend
    pytest.importorskip("tensorrt_rtx")
    assert len(build_engine(tail.trace(source.outputs).SerializeToString(), RTX)) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["yolov1", "yolov2", "yolov4", *models.list_models("segmentation")])
def test_every_detector_and_segmenter_end_to_end(arch, tmp_path, photos):
    """Float32, float16 and INT8, verified, and engines of those built by TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx")
    detects = models.get_model_info(arch).task == "detection"
    size = 448 if arch == "yolov1" else 64
    result = export_model(
        arch,
        tmp_path / "out",
        weights="none",
        num_classes=4,
        input_size=(size, size),
        end_to_end=True,
        score_threshold=0.02 if detects else None,
        fp16=True,
        int8=True,
        rtx=True,
        calib=photos,
        verify_samples=4,
    )
    kinds = [(a.kind, a.variant) for a in result.manifest.artefacts]
    assert kinds.count(("engine", "fp16")) == kinds.count(("engine", "int8.trt")) == 1
    with runtime.load(result.bundle, "int8.cpu") as model:
        answer = model(find_images(photos)[0])
    assert isinstance(answer, Detections if detects else Segmentation)
