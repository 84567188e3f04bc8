"""Segmentation and detection through the whole export: bundle, verification, runtime, and what each refuses."""

import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import runtime
from calib import find_images
from export import ExportSpec, Tolerances, export_model
from export.cli import main
from export.errors import ExportError, SourceError, VerificationError
from export.source import _classes_of, load_source
from export.tasks import task_export
from export.verify import Comparison, check
from holocron import models
from holocron.models.reparam import reparametrize
from runtime.manifest import TASKS, Artefact, TensorSpec

LABELS = ("sky", "road", "car")


class TinySegmenter(nn.Module):
    """A U-Net of one level: pooling, bilinear and nearest upsampling, a skip connection, normalization."""

    def __init__(self, classes=3, mode="bilinear"):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode=mode)
        self.head = nn.Conv2d(20, classes, 1)

    def forward(self, x):
        skip = self.stem(x)
        return self.head(torch.cat([skip, self.up(self.down(skip))], 1))


class TinyDetector(nn.Module):
    """Raw heads at two scales; calling it decodes, as detectors do, with shapes that depend on the data."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Mish())
        self.fine, self.coarse = nn.Conv2d(8, 5 + num_classes, 1), nn.Conv2d(8, 5 + num_classes, 3, 2, 1)

    def raw_outputs(self, x):
        x = self.body(x)
        return [self.fine(x), self.coarse(x)]

    def forward(self, x):
        return [head[head > 0] for head in self.raw_outputs(x)]


def seeded(kind, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval()


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(LABELS))
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, preprocessing, photos, labels):
    folder = tmp_path_factory.mktemp("segmenter") / "bundle"
    return export_model(
        seeded(TinySegmenter),
        folder,
        task="segmentation",
        preprocessing=preprocessing,
        labels=labels,
        fp16=True,
        int8=True,
        calib=photos,
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory, preprocessing, photos):
    folder = tmp_path_factory.mktemp("detector") / "bundle"
    module = seeded(TinyDetector)
    return export_model(
        module, folder, task="detection", preprocessing=preprocessing, fp16=True, int8=True, calib=photos
    )


def test_every_task_of_the_manifest_can_be_exported():
    for task in TASKS:
        assert task_export(task)
    assert set(TASKS) == {models.get_model_info(name).task for name in models.list_models()}
    with pytest.raises(ExportError, match="there is no task 'tracking'"):
        task_export("tracking")


class TestSegmentation:
    def test_the_manifest(self, segmenter):
        manifest = segmenter.manifest
        assert manifest.task == "segmentation"
        assert manifest.labels == LABELS
        assert manifest.outputs == (TensorSpec("logits", "float32", ("batch", 3, 24, 20)),)
        assert [a.variant for a in manifest.artefacts] == ["fp16", "int8.cpu", "int8.trt", "fp32"]
        for a in manifest.artefacts:
            assert 0 <= a.verification.top1_agreement <= 1  # of pixels
            assert a.verification.relative_error < {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.2}[a.precision]
        assert segmenter.manifest.artefacts[-1].verification.top1_agreement > 0.999

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8.cpu", "int8.trt"])
    def test_the_runtime_answers_as_pytorch_does(self, segmenter, photos, precision):
        path = find_images(photos)[0]
        with runtime.load(segmenter.bundle, precision, "onnxruntime", 1) as model:
            answer = model(path)
            with torch.no_grad():
                expected = seeded(TinySegmenter)(torch.from_numpy(model.preprocess(path))).argmax(1)[0].numpy()
        assert answer.labels == LABELS
        assert (answer.class_map == expected).mean() > (0.9 if precision.startswith("int8") else 0.99)

    def test_the_table_says_what_agrees_and_what_stays_float(self, segmenter):
        assert "pixel agreement" in segmenter.table()
        cpu, trt = segmenter.float_lines()
        assert cpu.startswith("int8.cpu keeps in float: ")
        assert "1 Resize (interpolates between values)" in cpu
        assert "1 Sigmoid (not linear, integers would only approximate it)" in trt
        operators = segmenter.to_dict()["float_operators"]["int8.trt"]
        assert {"Sigmoid", "Mul", "Resize"} <= {o["operator"] for o in operators}
        json.dumps(segmenter.to_dict())

    def test_normalization_is_folded(self, segmenter):
        graph = onnx.load(segmenter.bundle / "model.onnx").graph
        assert "BatchNormalization" not in {n.op_type for n in graph.node}

    def test_a_graph_is_added_to_the_bundle(self, segmenter, photos, tmp_path):
        result = export_model(segmenter.bundle, tmp_path / "out", int8=True, force=True, calib=photos)
        assert result.made == ("model.int8.cpu.onnx", "model.int8.trt.onnx")
        assert result.manifest.artefacts[0].verification.top1_agreement is not None

    def test_labelled_folders_say_nothing_about_it(self, segmenter, photos, tmp_path):
        with pytest.raises(ExportError, match="says nothing about segmentation"):
            export_model(segmenter.bundle, tmp_path / "out", fp16=True, force=True, eval_folder=photos)
        assert not (tmp_path / "out").exists()

    def test_a_module_for_another_task_is_refused(self, tmp_path, preprocessing):
        with pytest.raises(
            SourceError, match=r"something other than scores \(N, K\) for classification: it has outputs"
        ):
            export_model(seeded(TinySegmenter), tmp_path / "out", preprocessing=preprocessing)

    def test_task_is_of_a_module(self, tmp_path):
        with pytest.raises(ExportError, match="`task` is of a module"):
            export_model("unet", tmp_path / "out", task="segmentation")
        with pytest.raises(ExportError, match="there is no task 'depth'"):
            export_model(
                seeded(TinySegmenter),
                tmp_path / "o",
                task="depth",
                preprocessing=runtime.manifest.Preprocessing((24, 20), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            )


class TestDetection:
    def test_the_manifest(self, detector):
        assert detector.manifest.task == "detection"
        assert detector.manifest.labels == ("0", "1", "2")
        assert detector.manifest.outputs == (
            TensorSpec("head_0", "float32", ("batch", 8, 12, 10)),
            TensorSpec("head_1", "float32", ("batch", 8, 6, 5)),
        )
        for a in detector.manifest.artefacts:
            assert a.verification.top1_agreement is None
            assert a.verification.relative_error < {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.2}[a.precision]
        assert detector.table()

    @pytest.mark.parametrize("precision", ["fp32", "int8.cpu"])
    def test_the_runtime_gives_the_raw_heads(self, detector, photos, precision):
        paths = list(find_images(photos)[:3])
        with runtime.load(detector.bundle, precision, "onnxruntime", 1) as model:
            outputs = model.run(paths)
            with torch.no_grad():
                expected = seeded(TinyDetector).raw_outputs(torch.from_numpy(model.preprocess(paths)))
        for name, head in zip(("head_0", "head_1"), expected, strict=True):
            difference = np.linalg.norm(outputs[name] - head.numpy()) / np.linalg.norm(head.numpy())
            assert difference < (1e-5 if precision == "fp32" else 0.2)

    @pytest.mark.parametrize("classes", [None, 0, True, 2.0])
    def test_the_number_of_classes_must_be_known(self, tmp_path, preprocessing, classes):
        module = seeded(TinyDetector)
        module.num_classes = classes
        with pytest.raises(SourceError, match="no attribute `num_classes`"):
            export_model(module, tmp_path / "out", task="detection", preprocessing=preprocessing)

    def test_a_module_without_raw_outputs(self, tmp_path, preprocessing):
        with pytest.raises(SourceError, match="has no method `raw_outputs`"):
            export_model(seeded(TinySegmenter), tmp_path / "out", task="detection", preprocessing=preprocessing)

    def test_labels_must_match(self, tmp_path, preprocessing, labels):
        with pytest.raises(SourceError, match="there are 3 labels and tinydetector has 7 classes"):
            export_model(
                seeded(TinyDetector, num_classes=7),
                tmp_path / "out",
                task="detection",
                preprocessing=preprocessing,
                labels=labels,
            )


class TestComparison:
    def test_the_worst_of_several_outputs_counts_and_is_named(self):
        good, bad = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
        comparison = Comparison(class_axis=None)
        comparison.add({"a": good, "b": bad * 3}, {"a": good, "b": bad})
        result = comparison.result("pytorch")
        assert comparison.errors() == {"a": 0, "b": 2}
        assert (result.relative_error, result.cosine, result.top1_agreement) == (2, pytest.approx(1), None)
        artefact = Artefact("model.onnx", "onnx", "fp32", 1, "0" * 64)
        with pytest.raises(VerificationError, match=r"relative error 2 of 'b' \(at most 0\.0001\)"):
            check(artefact, result, Tolerances(), True, comparison.errors())

    def test_pixels_are_counted_one_by_one(self):
        reference = np.zeros((2, 3, 4, 5), np.float32)
        reference[:, 1] = 1
        ours = reference.copy()
        ours[1, 2, :2, :] = 5
        comparison = Comparison()
        for i in range(2):
            comparison.add({"logits": ours[i : i + 1]}, {"logits": reference[i : i + 1]})
        result = comparison.result("pytorch")
        assert result.images == 2
        assert result.top1_agreement == 0.75
        assert result.relative_error == pytest.approx(np.sqrt(10 * 25 / 40))

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4)])
    def test_nan_in_any_output_is_a_failure(self, shape):
        reference = np.ones(shape, np.float32)
        broken = reference.copy()
        broken.flat[-1] = np.nan
        comparison = Comparison()
        comparison.add({"a": reference, "b": broken}, {"a": reference, "b": reference})
        result = comparison.result("pytorch")
        assert np.isnan(result.relative_error)
        with pytest.raises(VerificationError, match="relative error nan of 'b'"):
            check(Artefact("m.onnx", "onnx", "fp32", 1, "0" * 64), result, Tolerances(), True, comparison.errors())


def spec(model, **options):
    return ExportSpec(model, **({"weights": "none"} | options))


class TestArchitectures:
    @pytest.mark.parametrize(
        ("arch", "size", "outputs"),
        [
            ("unet_rexnet13", (64, 96), [("logits", ("batch", 5, 64, 96))]),
            ("yolov2", (64, 96), [("head", ("batch", 50, 2, 3))]),
        ],
    )
    def test_no_weights_are_fetched_for_a_backbone(self, monkeypatch, arch, size, outputs):
        def fetch(*args, **kwargs):
            raise AssertionError("the network was asked")

        monkeypatch.setattr("holocron.models.loading.download", fetch)
        monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
        source = load_source(spec(arch, num_classes=5, input_size=size))
        assert source.labels == ("0", "1", "2", "3", "4")
        assert [(o.name, o.shape) for o in source.outputs] == outputs

    @pytest.mark.parametrize("arch", ["unet", "yolov4"])
    def test_without_published_weights_it_says_what_to_do(self, arch):
        with pytest.raises(SourceError, match=f"no weights are published for {arch}: give --weights FILE, or"):
            load_source(spec(arch, weights="default"))

    @pytest.mark.parametrize(
        ("arch", "size"), [("rexnet1_0x", 32), ("unet_tvvgg11", 32), ("yolov2", 64), ("darknet19", 64)]
    )
    def test_weights_of_a_file_tell_the_number_of_classes(self, tmp_path, arch, size):
        """Whatever the family calls its classifier, and however the classes lie in it."""
        info = models.get_model_info(arch)
        offline = {"pretrained_backbone": False} if arch.startswith(("unet_", "yolo")) else {}
        path = tmp_path / "weights.pth"
        torch.save(info.builder(num_classes=7, **offline).state_dict(), path)
        assert len(load_source(spec(arch, weights=str(path), input_size=(size, size))).labels) == 7

    @pytest.mark.parametrize(
        "arch", ["convnext_atto", "repvgg_a0", "darknet53", "yolov1", "yolov4", "unet3p", "repvit_m0_9"]
    )
    def test_the_tensor_that_tells_is_found_in_every_family(self, arch):
        """In training form and, where that is another, reparameterized."""
        info = models.get_model_info(arch)
        offline = {"pretrained_backbone": False} if arch.startswith("yolo") else {}
        # Shapes are all that counts; fusing RepViT needs numbers too.
        with torch.device("cpu" if arch.startswith("repvit") else "meta"):
            module = info.builder(num_classes=7, **offline).eval()
            assert _classes_of(info, module.state_dict(), fused=False) == 7
            reparametrize(module)
            assert _classes_of(info, module.state_dict(), fused=True) == 7

    def test_weights_of_another_architecture_do_not(self, tmp_path):
        path = tmp_path / "weights.pth"
        torch.save({"some.weight": torch.zeros(3, 4)}, path)
        with pytest.raises(SourceError, match="does not fit this UNet"):
            load_source(spec("unet", weights=str(path), input_size=(32, 32)))

    def test_an_input_that_the_network_cannot_take(self):
        with pytest.raises(SourceError, match="yolov2 does not run on images of 50×50: "):
            load_source(spec("yolov2", input_size=(50, 50)))


def test_a_segmenter_on_the_command_line(tmp_path):
    arguments = ["unet", "--weights", "none", "--num-classes", "3", "--input-size", "32", "32"]
    result = CliRunner().invoke(
        main, [*arguments, "-o", str(tmp_path / "out"), "--int8", "--verify-samples", "2", "--calib-samples", "2", "-q"]
    )
    assert result.exit_code == 0, result.output
    assert "pixel agreement" in result.output
    assert "int8.trt keeps in float: " in result.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["task"] == "segmentation"
