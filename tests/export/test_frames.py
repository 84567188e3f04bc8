"""Bundles whose networks take frames: exported, added to, opened, and refused where the options make no sense."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

import runtime
from calib import CalibrationError, find_images
from export import ExportSpec, export_model
from export.cli import main
from export.errors import ExportError
from export.gate import tensorrt10_problems
from export.graph.join import behind, in_front, join
from export.onnx_graph import graph_digest
from export.verify import FrameStream
from runtime.errors import BundleError, ImageError
from runtime.manifest import FrameSpec, Manifest, TensorSpec, frame_inputs, read_manifest
from runtime.preprocess import Preprocessor

MAX_FRAME = (60, 80)
VARIANTS = ("", ".fp16", ".int8.cpu", ".int8.trt")


@pytest.fixture(scope="module")
def frame_bundle(tmp_path_factory, tiny_net, preprocessing, photos):
    """The little classifier as `tiny_bundle` has it, but for frames. Not to be changed."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("frames") / "tiny"
    options = {"input": "frame", "channels": "bgr", "max_frame": MAX_FRAME}
    export_model(
        tiny_net(), folder, preprocessing=preprocessing, fp16=True, int8=True, rtx=True, calib=photos, **options
    )
    return folder


@pytest.fixture(scope="module")
def fixed_bundle(tmp_path_factory, tiny_net, preprocessing):
    folder = tmp_path_factory.mktemp("frames") / "fixed"
    export_model(tiny_net(), folder, preprocessing=preprocessing, input="frame", frame=(48, 64))
    return folder


@pytest.fixture(scope="module")
def frames(photos):
    with_sizes = [(60, 80), (59, 33), (24, 20), (7, 80)]
    images = []
    for path, (height, width) in zip(find_images(photos), with_sizes, strict=False):
        with Image.open(path) as image:
            images.append(image.convert("RGB").resize((width, height)))
    return images


def logits(bundle, images, precision="fp32", **options):
    with runtime.load(bundle, precision, **options) as model:
        return model.run(images)["logits"]


def network_logits(net, preprocessing, images):
    import torch

    with torch.no_grad():
        return net(torch.from_numpy(Preprocessor(preprocessing).batch(images))).numpy()


def test_the_manifest_says_what_the_network_takes(frame_bundle):
    manifest = read_manifest(frame_bundle)
    assert manifest.frame == FrameSpec("bgr", MAX_FRAME, False)
    assert manifest.inputs == (
        TensorSpec("frame", "uint8", ("batch", "height", "width", 3)),
        TensorSpec("rows", "float32", ("batch", 24, "height")),
        TensorSpec("columns", "float32", ("batch", "width", 20)),
    )
    kinds = sorted((a.kind, a.variant) for a in manifest.artefacts)
    assert kinds == [
        ("engine", "fp16"),
        ("engine", "int8.trt"),
        *(("onnx", v) for v in ("fp16", "fp32", "int8.cpu", "int8.trt")),
    ]
    for artefact in manifest.artefacts:
        if artefact.kind == "onnx":
            assert artefact.verification.reference == "pytorch"
            assert artefact.verification.images == 12
    (float32,) = [a for a in manifest.artefacts if a.variant == "fp32"]
    assert float32.verification.relative_error < 1e-5


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_answers_as_the_network_does_to_what_preprocessing_makes_of_the_frames(
    frame_bundle, frames, tiny_net, preprocessing, backend
):
    pytest.importorskip(backend)
    expected = network_logits(tiny_net(), preprocessing, frames)
    np.testing.assert_allclose(logits(frame_bundle, frames, backend=backend), expected, rtol=1e-4, atol=1e-5)
    for image, row in zip(frames, expected, strict=True):
        found = logits(frame_bundle, np.asarray(image)[..., ::-1], backend=backend)  # in the order of a camera
        np.testing.assert_allclose(found[0], row, rtol=1e-4, atol=1e-5)


def test_a_fixed_size_has_one_input(fixed_bundle, frames, tiny_net, preprocessing):
    manifest = read_manifest(fixed_bundle)
    assert manifest.frame == FrameSpec("rgb", (48, 64), True)
    assert manifest.inputs == (TensorSpec("frame", "uint8", ("batch", 48, 64, 3)),)
    images = [image.resize((64, 48)) for image in frames]
    expected = network_logits(tiny_net(), preprocessing, images)
    np.testing.assert_allclose(logits(fixed_bundle, images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ImageError, match=r"has 60 x 80 pixels .* takes frames of 48 x 64 only: .*--frame 60 80"):
        logits(fixed_bundle, frames[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_behind_is_the_one_without_frames(frame_bundle, tiny_bundle, variant):
    """Calibrated, quantized and converted as if there were nothing in front."""
    with_frames = onnx.load(frame_bundle / f"model{variant}.onnx")
    without = onnx.load(tiny_bundle / f"model{variant}.onnx")
    assert graph_digest(behind(with_frames)) == graph_digest(without)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_part_in_front_is_float32_in_every_graph(frame_bundle, variant):
    model = onnx.load(frame_bundle / f"model{variant}.onnx")
    front = in_front(model)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in front.graph.node}
    assert {tensor.data_type for tensor in front.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert graph_digest(front) == graph_digest(in_front(onnx.load(frame_bundle / "model.onnx")))
    if variant != ".int8.cpu":
        assert tensorrt10_problems(model) == []


def test_taken_apart_and_joined_again_it_is_the_same(frame_bundle):
    model = onnx.load(frame_bundle / "model.onnx")
    before = graph_digest(model)
    assert graph_digest(join(in_front(model), behind(onnx.load(frame_bundle / "model.onnx")))) == before
    assert graph_digest(model) == before


def test_names_of_the_network_stay_its_own(make_onnx, ort_run):
    """A network may well call a tensor as the part in front does."""
    node = onnx.helper.make_node
    front = make_onnx(
        [node("Add", ["frame", "one"], ["sum"]), node("Mul", ["sum", "sum"], ["input"])],
        {"frame": [2]},
        {"input": [2]},
        {"one": np.ones(2, np.float32)},
    )
    network = make_onnx(
        [node("Sub", ["input", "one"], ["sum"]), node("Neg", ["sum"], ["frame/sum"])],
        {"input": [2]},
        {"frame/sum": [2]},
        {"one": np.full(2, 5, np.float32)},
    )
    found = ort_run(join(front, network), {"frame": np.array([1, 2], np.float32)})
    np.testing.assert_array_equal(found["frame/sum"], -(np.array([4, 9]) - 5))


def test_graphs_are_added_to_a_bundle_as_to_any(fixed_bundle, tmp_path, photos, frames):
    added = export_model(fixed_bundle, tmp_path / "more", fp16=True, int8=True, calib=photos)
    assert {a.variant for a in added.manifest.artefacts} == {"fp32", "fp16", "int8.cpu", "int8.trt"}
    assert added.manifest.frame == FrameSpec("rgb", (48, 64), True)
    image = frames[0].resize((64, 48))
    reference = logits(added.bundle, image)
    for precision, tolerance in (("fp16", 0.02), ("int8.cpu", 0.2), ("int8.trt", 0.2)):
        found = logits(added.bundle, image, precision, backend="onnxruntime")
        assert np.linalg.norm(found - reference) < tolerance * np.linalg.norm(reference)
    with pytest.raises(ExportError, match="--input cannot change an existing bundle"):
        export_model(fixed_bundle, fp16=True, input="frame")


def test_an_image_that_cannot_be_read_is_left_out_of_the_verification(tmp_path, preprocessing, photos):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in find_images(photos)[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad.png").write_bytes(b"not an image")
    stream = FrameStream(find_images(folder), frame_manifest(preprocessing))
    assert [(batch.shape, fed["frame"].shape[0]) for fed, batch in stream] == [((1, 3, 24, 20), 1)] * 3
    assert [path.name for path, _ in stream.skipped] == ["bad.png"]
    with pytest.raises(CalibrationError, match="none of the 1 images is readable"):
        list(FrameStream([folder / "bad.png"], frame_manifest(preprocessing)))


def frame_manifest(preprocessing):
    frame = FrameSpec("rgb", MAX_FRAME, False)
    outputs = (TensorSpec("logits", "float32", ("batch", 5)),)
    return Manifest(
        "tiny",
        "classification",
        tuple("abcde"),
        frame_inputs(frame, preprocessing),
        outputs,
        preprocessing,
        frame=frame,
    )


def test_what_no_frame_is(frame_bundle, frames):
    with runtime.load(frame_bundle, "fp32") as model:
        expected = model.run(frames[0])["logits"]
        for bad, message in (
            (np.zeros((61, 80, 3), np.uint8), r"image 0 has 61 x 80 pixels .* up to 60 x 80: .*--max-frame 61 80"),
            (np.zeros((60, 81, 3), np.uint8), r"has 60 x 81 pixels .*--max-frame 60 81"),
            (np.zeros((10, 10, 3), np.float32), "image 0 is float32: expected uint8"),
            (np.zeros((0, 10, 3), np.uint8), "image 0 has no pixels"),
            (np.zeros((3, 10, 12), np.uint8), "move the channels last"),
            (Image.new("RGB", (81, 10)), r"image 0 has 10 x 81 pixels"),
        ):
            with pytest.raises(ImageError, match=message):
                model(bad)
        assert model([]) == []
        np.testing.assert_array_equal(model.run(frames[0])["logits"], expected)  # it goes on as before
    with pytest.raises(BundleError, match="takes frames as they are: leave fast_decode out"):
        runtime.load(frame_bundle, fast_decode=True)


def test_the_command_line(tmp_path, frame_bundle):
    result = CliRunner().invoke(main, ["x", "--frame", "10", "20"])
    assert (result.exit_code, result.stderr) == (2, "error: --frame 10 20 is of frames: add --input frame\n")
    photo = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (200, 10, 30)).save(photo)
    from runtime.cli import run

    result = CliRunner().invoke(run, [str(frame_bundle), str(photo), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["image"] == str(photo)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "video"}, "--input video is unknown, expected one of image, frame"),
        ({"input": "frame", "channels": "grb"}, "--channels grb is unknown"),
        ({"channels": "bgr"}, "--channels bgr is of frames: add --input frame"),
        ({"max_frame": (10, 10)}, "--max-frame 10 10 is of frames: add --input frame"),
        ({"input": "frame", "frame": (10, 10), "max_frame": (10, 10)}, "give one"),
        ({"input": "frame", "frame": (0, 10)}, "--frame 0 is out of range"),
        ({"input": "frame", "max_frame": (10, 9000)}, "--max-frame 9000 is out of range"),
        ({"input": "frame", "frame": (10,)}, "--frame takes height and width"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ExportError, match=message):
        ExportSpec("repvgg_a0", **options)


def test_the_largest_frame_is_1080p_unless_told():
    assert ExportSpec("x", input="frame").frame_spec == FrameSpec("rgb", (1080, 1920), False)
    assert ExportSpec("x").frame_spec is None
