"""The C++ runtime beside the Python runtime: the same bundles and photographs, the same answers."""

import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import TinyBoxes, TinyNet, TinySegmenter

import runtime
from calib import find_images, sample_folder
from export import export_model
from runtime.manifest import Preprocessing

SIZE = (24, 32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUISH = Preprocessing(SIZE, MEAN, STD)
PAD = Preprocessing(SIZE, MEAN, STD, resize="pad", pad_mode="reflect", interpolation="bicubic")
MAX_FRAME = (600, 800)
RELATIVE = 1e-5


CLASSIFIERS = {
    "logits": {"preprocessing": SQUISH, "int8": True, "fp16": True},
    "probabilities": {"preprocessing": PAD, "probabilities": True},
    "top_k": {"preprocessing": SQUISH, "top_k": 3},
    "frames": {"preprocessing": SQUISH, "input": "frame", "max_frame": MAX_FRAME, "int8": True},
    "frames_bgr": {"preprocessing": PAD, "input": "frame", "max_frame": MAX_FRAME, "channels": "bgr"},
}
DETECTORS = {
    "plain": {"preprocessing": PAD, "int8": True},
    "frames": {"preprocessing": PAD, "input": "frame", "max_frame": MAX_FRAME},
}
SEGMENTERS = {
    "logits": {"preprocessing": PAD, "int8": True},
    "class_map": {"preprocessing": SQUISH, "class_map": True},
    "frames": {"preprocessing": SQUISH, "input": "frame", "max_frame": MAX_FRAME, "class_map": True},
}
NETWORKS = {"classification": TinyNet, "detection": TinyBoxes, "segmentation": TinySegmenter}
BUNDLES = [
    *(("classification", name, precision) for name in CLASSIFIERS for precision in ("fp32", "fp16", "int8.cpu")),
    *(("detection", name, precision) for name in DETECTORS for precision in ("fp32", "int8.cpu")),
    *(("segmentation", name, precision) for name in SEGMENTERS for precision in ("fp32", "int8.cpu")),
]
OPTIONS = {"classification": CLASSIFIERS, "detection": DETECTORS, "segmentation": SEGMENTERS}
BUNDLES = [
    (task, name, precision)
    for task, name, precision in BUNDLES
    if precision == "fp32" or OPTIONS[task][name].get("int8" if "int8" in precision else "fp16")
]


@pytest.fixture(scope="session")
def photographs():
    """RGB arrays of unequal sizes."""
    sizes = [None, (57, 431), (640, 36), (24, 32), (599, 800)]
    images = []
    for path, size in zip(find_images(sample_folder())[::7], sizes, strict=False):
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            images.append(np.asarray(rgb if size is None else rgb.resize(size[::-1])))
    return [image for image in images if image.shape[0] <= MAX_FRAME[0] and image.shape[1] <= MAX_FRAME[1]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Makes a bundle once; `(task, name)`."""
    made = {}
    root = tmp_path_factory.mktemp("parity")

    def export(task, name):
        if (task, name) not in made:
            with torch.random.fork_rng():
                torch.manual_seed(4)
                network = NETWORKS[task]().eval()
            folder = root / f"{task}_{name}"
            options = dict(OPTIONS[task][name])
            if task == "detection":
                options |= {"score_threshold": 0.2, "iou_threshold": 0.5, "max_detections": 96}
            export_model(
                network, folder, task=task, calib=sample_folder(), calib_samples=8, effort="fast", verify_samples=2,
                **options,
            )  # fmt: skip
            made[task, name] = folder
        return made[task, name]

    return export


@pytest.fixture(params=BUNDLES, ids="-".join)
def opened(request, exported, library):
    """A bundle in both runtimes, on OpenVINO with one thread."""
    task, name, precision = request.param
    folder = exported(task, name)
    with (
        runtime.load(folder, precision, "openvino", 1) as python,
        library.load(folder, precision) as cpp,
    ):
        yield python, cpp


def in_order(model, images):
    """Arrays as the Python runtime takes them: of a network of BGR frames they are in that order."""
    frame = model.manifest.frame
    return [image[..., ::-1] for image in images] if frame is not None and frame.channels == "bgr" else images


def same_classification(found, wanted):
    classes, logits = found
    expected = wanted.top(len(classes))
    assert len(classes) == len(wanted.top(1000))
    assert [c[0] for c in classes] == [p.index for p in expected]
    assert [c[2] for c in classes] == [p.label for p in expected]
    np.testing.assert_allclose([c[1] for c in classes], [p.score for p in expected], rtol=RELATIVE)
    if logits is None:
        assert not hasattr(wanted, "logits")
    else:
        np.testing.assert_allclose(logits, wanted.logits, rtol=RELATIVE, atol=1e-6)


def same_detections(found, wanted):
    objects, status = found
    assert status == wanted.status
    assert [o[2] for o in objects] == wanted.labels.tolist()
    np.testing.assert_allclose([o[1] for o in objects], wanted.scores, rtol=RELATIVE)
    np.testing.assert_allclose(np.reshape([o[0] for o in objects], (-1, 4)), wanted.boxes, rtol=RELATIVE, atol=1e-4)


def same_segmentation(found, wanted):
    cells, pixels, classes = found
    np.testing.assert_array_equal(cells, wanted.class_map)
    np.testing.assert_array_equal(pixels, wanted.resized())
    assert [(c[0], c[1], c[2]) for c in classes] == [(r.index, r.share, r.label) for r in wanted.regions()]


SAME = {"classification": same_classification, "detection": same_detections, "segmentation": same_segmentation}
METHODS = {"classification": "classify", "detection": "detect", "segmentation": "segment"}


class TestAnswers:
    def test_of_one_photograph_after_the_other(self, opened, photographs):
        python, cpp = opened
        assert len(photographs) >= 4
        for image in photographs:
            (found,) = getattr(cpp, METHODS[python.task])([image])
            SAME[python.task](found, python(in_order(python, [image])[0]))

    def test_of_a_batch(self, opened, photographs):
        python, cpp = opened
        images = photographs * 8
        found = getattr(cpp, METHODS[python.task])(images)
        wanted = python(in_order(python, images))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            SAME[python.task](one, other)

    def test_of_nothing(self, opened):
        python, cpp = opened
        assert getattr(cpp, METHODS[python.task])([]) == python([]) == []

    def test_say_where_they_come_from(self, opened):
        python, cpp = opened
        for what in ("precision", "backend", "device"):
            assert cpp.text(what) == getattr(python, what)
        assert cpp.text("artefact") == python.artefact.file
        assert cpp.text("name") == python.manifest.name


class TestTensors:
    def test_the_network_is_fed_the_same_bytes(self, opened, photographs):
        python, cpp = opened
        for images in ([photographs[0]], photographs):
            found, wanted = cpp.feeds(images), python.feeds(in_order(python, images))
            assert set(found) == set(wanted)
            for name, array in wanted.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)

    def test_outputs_are_the_same(self, opened, photographs):
        python, cpp = opened
        wanted = python.run(in_order(python, photographs))
        for found in (cpp.run_images(photographs), cpp.run(python.feeds(in_order(python, photographs)))):
            assert set(found) == set(wanted)
            for name, array in wanted.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                np.testing.assert_allclose(found[name], array, rtol=RELATIVE, atol=1e-6)


class TestFrames:
    """Other formats than RGB, beside the same pixels as RGB."""

    @pytest.mark.parametrize("name", ["logits", "frames", "frames_bgr"])
    def test_of_every_format_and_of_a_part(self, exported, library, c_interface, photographs, name):
        rgb = photographs[0]
        bgra = np.dstack([rgb[..., ::-1], np.zeros(rgb.shape[:2], np.uint8)])
        wide = np.zeros((rgb.shape[0], rgb.shape[1] + 5, 3), np.uint8)
        wide[:, : rgb.shape[1]] = rgb
        large = np.full((rgb.shape[0] + 9, rgb.shape[1] + 8, 3), 77, np.uint8)
        large[4 : 4 + rgb.shape[0], 3 : 3 + rgb.shape[1]] = rgb
        region = (3, 4, rgb.shape[1], rgb.shape[0])
        frames = {
            "bgr": c_interface.frame_of(np.ascontiguousarray(rgb[..., ::-1]), c_interface.BGR),
            "bgra": c_interface.frame_of(bgra, c_interface.BGRA),
            "rgba": c_interface.frame_of(rgba := bgra[..., [2, 1, 0, 3]].copy(), c_interface.RGBA),
            "strided": c_interface.frame_of(wide[:, : rgb.shape[1]]),
            "region": c_interface.frame_of(large, c_interface.RGB, region),
        }
        assert rgba.shape[2] == 4
        reversed_copy = np.ascontiguousarray(rgb[..., ::-1])
        frames["bgr"] = c_interface.frame_of(reversed_copy, c_interface.BGR)
        with library.load(exported("classification", name), "fp32") as model:
            (wanted,) = model.classify([rgb])
            for frame in frames.values():
                ((classes, logits),) = model.classify([frame])
                assert classes == wanted[0]
                np.testing.assert_array_equal(logits, wanted[1])

    def test_larger_than_the_network_takes(self, exported, library):
        folder = exported("classification", "frames")
        large = np.zeros((MAX_FRAME[0] + 1, 4, 3), np.uint8)
        with library.load(folder) as cpp, runtime.load(folder, backend="openvino") as python:
            with pytest.raises(library.Error, match="takes frames of up to") as found:
                cpp.classify([large])
            with pytest.raises(runtime.ImageError) as wanted:
                python([large])
        assert str(found.value) == str(wanted.value)


def test_a_c_program_says_the_same(exported, openvino_build, photographs, tmp_path):
    program = openvino_build.folder / "tests" / "holocron_c_program"
    image = photographs[0]
    (tmp_path / "image.rgb").write_bytes(image.tobytes())
    for task, name, precision in (
        ("classification", "logits", "int8.cpu"),
        ("detection", "plain", "fp32"),
        ("segmentation", "logits", "fp32"),
    ):
        folder = exported(task, name)
        height, width = image.shape[:2]
        command = [program, folder, precision, tmp_path / "image.rgb", width, height]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=60)
        lines = [line.split() for line in done.stdout.splitlines()]
        with runtime.load(folder, precision, "openvino", 1) as model:
            answer = model(image)
        if task == "detection":
            assert [int(line[0]) for line in lines] == answer.labels.tolist()
            numbers = np.array([line[1:] for line in lines], np.float64)
            np.testing.assert_allclose(numbers[:, 0], answer.scores, rtol=RELATIVE)
            np.testing.assert_allclose(numbers[:, 1:], answer.boxes, rtol=RELATIVE, atol=1e-4)
        else:
            entries = answer.top(99) if task == "classification" else answer.regions()
            scores = [e.score if task == "classification" else e.share for e in entries]
            assert [int(line[0]) for line in lines] == [e.index for e in entries]
            np.testing.assert_allclose([float(line[1]) for line in lines], scores, rtol=RELATIVE)
