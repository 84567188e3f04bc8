"""The example applications of the C++ runtime, run on small bundles, beside the Python runtime."""

import json
import re
import subprocess
from dataclasses import fields

import numpy as np
import onnx
import pytest
from avi import write_avi
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import runtime
from runtime.bench import BenchRow
from runtime.images import open_image
from runtime.manifest import Preprocessing, TensorSpec
from runtime.post_processing import PostProcessing

H, W = 16, 24
TWO_BOXES = np.float32([(3, 2, 21, 14), (0, 0, 12, 8), (0, 0, 0, 0)])
ORIENTATION = 0x0112


@pytest.fixture
def example(openvino_build):
    def run(name, *arguments, expect=0):
        program = openvino_build.example(name)
        if program is None:
            pytest.skip(f"the example {name} was not built: what it needs is not here")
        command = [str(part) for part in (program, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == expect, done.stderr
        return done

    return run


@pytest.fixture
def photograph():
    """Smooth enough to come through JPEG, with sides of its own."""
    y, x = np.mgrid[:45, :60] / 60
    return np.stack([255 * x, 200 * y, 120 + 90 * np.sin(9 * x * y)], -1).astype(np.uint8)


@pytest.fixture
def detector(tmp_path, make_bundle):
    """A bundle that finds the same two objects in every image."""
    arrays = {
        "boxes": TWO_BOXES,
        "scores": np.float32([0.75, 0.5, 0]),
        "labels": np.int32([1, 0, -1]),
        "count": np.int32(2),
        "status": np.int32(0),
    }
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    nodes, constants, outputs = [helper.make_node("Shape", ["input"], ["n"], start=0, end=1)], {}, []
    for name, array in arrays.items():
        constants |= {f"{name}_value": array[None], f"{name}_rest": np.array(array.shape, np.int64)}
        nodes += [
            helper.make_node("Concat", ["n", f"{name}_rest"], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [name]),
        ]
        outputs.append(helper.make_tensor_value_info(name, kinds[array.dtype.name], ["batch", *array.shape]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, H, W])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "constant", [image], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return make_bundle(
        tmp_path / "detector",
        {"fp32": model.SerializeToString()},
        task="detection",
        labels=("ant", "bee"),
        inputs=(TensorSpec("input", "float32", ("batch", 3, H, W)),),
        outputs=tuple(TensorSpec(name, a.dtype.name, ("batch", *a.shape)) for name, a in arrays.items()),
        preprocessing=Preprocessing((H, W), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        post_processing=PostProcessing("detections", "network", 0.25, 0.5, 3, 10, 8),
    )


def ranking(text):
    """Score and label of each line that is set in."""
    return [(float(score), label) for score, label in re.findall(r"^  (\S+) (.+)$", text, re.MULTILINE)]


def assert_classified_as_in_python(done, bundle, path):
    assert done.stdout.startswith(str(path))
    precision = re.search(r"in (\S+) on openvino", done.stderr)[1]
    with runtime.load(bundle, precision, "openvino") as model:
        expected = model(path).top(5)
    found = ranking(done.stdout)
    assert [label for _, label in found] == [each.label for each in expected]
    np.testing.assert_allclose([score for score, _ in found], [each.score for each in expected], rtol=1e-4)


@pytest.mark.parametrize("extension", ["ppm", "pgm", "png", "jpg"])
def test_classify_reads_files_as_python_does(example, bundle, photograph, tmp_path, extension):
    path = tmp_path / f"image.{extension}"
    image = Image.fromarray(photograph)
    (image.convert("L") if extension == "pgm" else image).save(path)
    assert_classified_as_in_python(example("classify", bundle, path), bundle, path)


def test_classify_drops_alpha(example, bundle, photograph, tmp_path):
    alpha = np.linspace(0, 255, photograph.shape[0] * photograph.shape[1]).reshape(*photograph.shape[:2], 1)
    path = tmp_path / "image.png"
    Image.fromarray(np.concatenate([photograph, alpha.astype(np.uint8)], -1)).save(path)
    assert_classified_as_in_python(example("classify", bundle, path), bundle, path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_detect_turns_a_photograph_upright(example, detector, photograph, tmp_path, orientation, endian):
    folder = tmp_path / "photographs"
    folder.mkdir()
    exif = Image.Exif()
    exif.endian = endian
    exif[ORIENTATION] = orientation
    Image.fromarray(photograph).save(folder / "a.jpg", exif=exif, quality=95, subsampling=0)
    example("detect_folder", detector, folder, tmp_path / "out")
    upright = np.asarray(open_image(folder / "a.jpg"))
    (written,) = (tmp_path / "out").iterdir()
    with Image.open(written) as image:
        drawn = np.asarray(image)
    assert drawn.shape == upright.shape
    np.testing.assert_array_equal(drawn[-1], upright[-1])  # below both boxes


def test_detect_draws_the_boxes_of_each_image_of_a_folder(example, detector, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b.png", "a.ppm"):
        Image.fromarray(np.full((2 * H, 2 * W, 3), 9, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    done = example("detect_folder", detector, folder, tmp_path / "out" / "deeper")
    assert re.findall(r"^(\S+): 2 objects", done.stdout, re.MULTILINE) == ["a.ppm", "b.png"]
    assert ranking(done.stdout)[:2] == [(0.75, "bee (6, 4) to (42, 28)"), (0.5, "ant (0, 0) to (24, 16)")]
    written = sorted((tmp_path / "out" / "deeper").iterdir())
    assert [path.stem for path in written] == ["a", "b"]
    for path in written:
        with Image.open(path) as image:
            drawn = np.asarray(image)
        assert drawn.shape == (2 * H, 2 * W, 3)
        edge = {"ant": drawn[0, 5], "bee": drawn[10, 6]}
        assert not np.array_equal(edge["ant"], edge["bee"])
        np.testing.assert_array_equal(drawn[4, 6:42], np.broadcast_to(edge["bee"], (36, 3)))  # it lies on top
        np.testing.assert_array_equal(drawn[5:15, 7:23], np.full((10, 16, 3), 9))
        np.testing.assert_array_equal(drawn[29:], np.full((3, 2 * W, 3), 9))


@pytest.mark.parametrize("batch", [1, 3])
def test_benchmark_prints_what_holocron_bench_prints(example, bundle, batch):
    options = ("--precision", "fp32", "--backend", "openvino", "--batch", batch, "--threads", 1)
    done = example("benchmark", bundle, *options, "--iterations", 7, "--warmup", 1)
    (row,) = json.loads(done.stdout)
    assert list(row) == [field.name for field in fields(BenchRow)]
    values = BenchRow(**row)
    assert (values.precision, values.backend, values.device) == ("fp32", "openvino", "cpu")
    assert (values.threads, values.batch, values.iterations) == (1, batch, 7)
    assert 0 < values.p50_ms <= values.p90_ms <= values.p99_ms
    assert values.images_per_second > 0
    assert 1 < values.peak_memory_mb < 10_000


def test_camera_takes_what_opencv_captures(example, bundle, photograph, tmp_path):
    for i in range(4):
        Image.fromarray(np.roll(photograph, i, 1)).save(tmp_path / f"frame_{i:03}.png")
    done = example("camera", bundle, tmp_path / "frame_%03d.png", 3)
    found = re.findall(r"^(\d): (\S+) (\S+)$", done.stdout, re.MULTILINE)
    assert [number for number, _, _ in found] == ["0", "1", "2"]
    precision = re.search(r"ms each in (\S+) on openvino", done.stderr)[1]
    with runtime.load(bundle, precision, "openvino") as model:
        for i, label, score in found:
            expected = model(tmp_path / f"frame_{int(i):03}.png").top(1)[0]
            assert label == expected.label
            assert float(score) == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize(("codec", "tolerance"), [("raw", 1e-5), ("mjpg", 0.01)])
def test_camera_plays_a_video(example, bundle, photograph, tmp_path, codec, tolerance):
    frames = [np.roll(photograph, 7 * i, 1) for i in range(5)]
    write_avi(tmp_path / "video.avi", frames, codec)
    done = example("camera", bundle, tmp_path / "video.avi")
    found = re.findall(r"^(\d): (\S+) (\S+)$", done.stdout, re.MULTILINE)
    assert [int(number) for number, _, _ in found] == list(range(5))
    precision = re.search(r"^5 frames, \S+ ms each in (\S+) on openvino", done.stderr, re.MULTILINE)[1]
    with runtime.load(bundle, precision, "openvino") as model:
        for (_, label, score), frame in zip(found, frames, strict=True):
            expected = {each.label: each.score for each in model(frame).top(4)}
            assert float(score) == pytest.approx(expected[label], abs=tolerance)
            assert expected[label] >= max(expected.values()) - tolerance


class TestBadInput:
    @pytest.mark.parametrize("name", ["classify", "detect_folder", "benchmark", "camera"])
    def test_nothing_at_all_is_answered_with_the_usage(self, example, name):
        assert example(name, expect=2).stderr.startswith("usage: ")

    @pytest.mark.parametrize("name", ["classify", "detect_folder", "benchmark", "camera"])
    def test_no_bundle(self, example, tmp_path, name):
        more = {"classify": ["a.ppm"], "detect_folder": [tmp_path, tmp_path], "benchmark": [], "camera": []}[name]
        done = example(name, tmp_path / "nothing", *more, expect=2)
        assert re.fullmatch(r"error: .*nothing is not there: .*\n", done.stderr)

    def test_no_image(self, example, bundle, tmp_path):
        assert "cannot read" in example("classify", bundle, tmp_path / "a.ppm", expect=2).stderr
        assert "not built for" in example("classify", bundle, tmp_path / "a.xyz", expect=2).stderr
        assert "has no images" in example("detect_folder", bundle, tmp_path, tmp_path / "out", expect=2).stderr

    @pytest.mark.parametrize("extension", ["ppm", "png", "jpg"])
    def test_a_damaged_image(self, example, bundle, photograph, tmp_path, extension):
        whole, cut = tmp_path / f"whole.{extension}", tmp_path / f"cut.{extension}"
        Image.fromarray(photograph).save(whole)
        for length in (1, 9, 40, whole.stat().st_size // 2):
            cut.write_bytes(whole.read_bytes()[:length])
            assert "cannot be decoded" in example("classify", bundle, cut, expect=2).stderr

    @pytest.mark.parametrize("header", [b"P6 0 5 255\n", b"P6 -1 5 255\n", b"P6 99999 99999 255\n", b"P6 2 2 65535\n"])
    def test_a_ppm_of_an_absurd_size(self, example, bundle, tmp_path, header):
        path = tmp_path / "a.ppm"
        path.write_bytes(header + bytes(100))
        assert "cannot be decoded" in example("classify", bundle, path, expect=2).stderr

    def test_a_task_that_is_not_the_model_s(self, example, bundle, photograph, tmp_path):
        Image.fromarray(photograph).save(tmp_path / "a.ppm")
        done = example("detect_folder", bundle, tmp_path, tmp_path / "out", expect=2)
        assert done.stderr.startswith("error: ")

    @pytest.mark.parametrize(
        "options", [["--batch", "0"], ["--batch", "x"], ["--threads"], ["--what", "1"], ["--backend", "none"]]
    )
    def test_options_of_the_benchmark(self, example, bundle, options):
        assert example("benchmark", bundle, *options, expect=2).stderr.startswith("error: ")
