"""Frames resized in the graph, against Pillow and torchvision: the same pixels, whatever runs the graph."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from calib import find_images, sample_folder
from export.engine import build_engine
from export.gate import tensorrt10_problems
from export.graph.frame import FixedFrameInput, FrameInput, trace_frame_input
from export.onnx_graph import element_types
from holocron.transforms import Resize, ResizeMethod
from runtime.feeds import FrameFeeder
from runtime.manifest import EngineInfo, FrameSpec, Manifest, Preprocessing, TensorSpec, frame_inputs
from runtime.resampling import rows_first

SIZE = (96, 128)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = (
    *[(96, 128), (97, 127), (48, 64), (30, 40), (1, 1), (2, 300), (300, 2), (96, 500), (500, 128), (128, 96)],
    *[(224, 224), (240, 320), (333, 500), (500, 333), (375, 500), (480, 640), (640, 480), (640, 360)],
    *[(720, 1280), (1080, 1920)],
)
FILTERS = ("bilinear", "bicubic", "nearest")
SMALL = [size for size in SIZES if size[0] * size[1] < 200_000]


def preprocessing(size=SIZE, resize="squish", interpolation="bilinear", pad_mode="constant", mean=MEAN, std=STD):
    return Preprocessing(size, mean, std, resize, pad_mode, interpolation)


def manifest(spec, frame):
    outputs = (TensorSpec("input", "float32", ("batch", 3, *spec.size)),)
    return Manifest("tiny", "segmentation", ("a", "b", "c"), frame_inputs(frame, spec), outputs, spec, frame=frame)


def feeds(images, spec, frame):
    return FrameFeeder(manifest(spec, frame))(images)[0]


def reference(image, spec):
    """The library's own transform and torchvision's normalization."""
    method = ResizeMethod.SQUISH if spec.resize == "squish" else ResizeMethod.PAD
    resize = Resize(spec.size, method, spec.pad_mode, interpolation=InterpolationMode(spec.interpolation))
    x = torch.from_numpy(np.array(resize(image))).permute(2, 0, 1).float().div(255)
    return F.normalize(x, list(spec.mean), list(spec.std)).numpy()


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photos():
    """A photograph in each of twenty sizes, each another one."""
    paths = find_images(sample_folder())
    images = {}
    for i, (height, width) in enumerate(SIZES):
        with Image.open(paths[i % len(paths)]) as image:
            images[height, width] = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return images


@pytest.fixture(scope="module")
def any_size():
    """The graph for frames of any size; it does not depend on how they are resized."""
    return trace_frame_input(preprocessing(), FrameSpec("rgb", (1080, 1920), False))


@pytest.fixture(scope="module")
def any_size_session(any_size):
    return session(any_size)


@pytest.fixture(scope="module")
def one_size():
    """The graph for frames of 480 × 640, padded."""
    return trace_frame_input(preprocessing(SIZE, "pad", "bicubic"), FrameSpec("bgr", (480, 640), True))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("resize", ["squish", "pad"])
def test_photographs_of_twenty_sizes_are_pillows_to_the_bit(any_size_session, photos, resize, interpolation):
    """The bound is 1 of 255 everywhere and 99 of 100 pixels equal: all are."""
    assert len(SIZES) == 20
    spec, frame = preprocessing(SIZE, resize, interpolation), FrameSpec("rgb", (1080, 1920), False)
    for size, photo in photos.items():
        (found,) = any_size_session.run(None, feeds([photo], spec, frame))
        np.testing.assert_array_equal(found[0], reference(photo, spec), err_msg=str(size))


def test_some_of_the_sizes_are_those_that_pillow_takes_the_other_way():
    """Or the test above would not show that they agree too."""
    assert any(rows_first(*size, preprocessing()) for size in SMALL)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(("squish", "constant", "edge", "reflect", "symmetric")),
    st.sampled_from(("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")),
    st.booleans(),
)
@example(3000, 40, "squish", "bicubic", True)  # more pixels to a sum than low parts of weights surely have room for
@example(40, 4000, "squish", "lanczos", True)
@example(185, 185, "constant", "hamming", True)  # two pixels tell that Pillow's constants are of single precision
def test_any_size_and_filter(any_size_session, height, width, mode, interpolation, extreme):
    image = noise(height, width, height * 201 + width)
    if extreme:  # black and white: bicubic overshoots on both sides, and is clipped
        image = np.where(image < 128, 0, 255).astype(np.uint8)
    squish = mode == "squish"
    spec = preprocessing(SIZE, "squish" if squish else "pad", interpolation, "constant" if squish else mode)
    (found,) = any_size_session.run(None, feeds([image], spec, FrameSpec("rgb", (4000, 4000), False)))
    np.testing.assert_array_equal(found[0], reference(Image.fromarray(image), spec))


def test_frames_of_unequal_sizes_share_a_batch(any_size_session, photos):
    spec, frame = preprocessing(SIZE, "pad", "bicubic"), FrameSpec("rgb", (1080, 1920), False)
    images = [photos[size] for size in ((333, 500), (640, 360), (96, 128), (1, 1))]
    (found,) = any_size_session.run(None, feeds(images, spec, frame))
    for answer, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(answer, reference(image, spec))


def test_what_a_smaller_frame_leaves_of_the_buffer_is_not_seen(any_size_session, photos):
    """So that one fixed shape, and one CUDA graph, serves all."""
    spec, frame = preprocessing(), FrameSpec("rgb", (1080, 1920), False)
    fed = feeds([photos[240, 320]], spec, frame)
    stale = noise(270, 350)[None]
    stale[:, :240, :320] = fed["frame"]
    rows, columns = np.zeros((1, SIZE[0], 270), np.float32), np.zeros((1, 350, SIZE[1]), np.float32)
    rows[:, :, :240], columns[:, :320] = fed["rows"], fed["columns"]
    (found,) = any_size_session.run(None, {"frame": stale, "rows": rows, "columns": columns})
    np.testing.assert_array_equal(found[0], reference(photos[240, 320], spec))


@pytest.mark.parametrize(
    ("frame_size", "resize", "interpolation", "channels"),
    [
        ((1080, 1920), "squish", "bilinear", "rgb"),
        ((480, 640), "pad", "bicubic", "bgr"),
        ((640, 360), "squish", "bicubic", "rgb"),  # by rows first
        ((500, 128), "squish", "nearest", "rgb"),  # the columns stay
        ((96, 128), "pad", "bilinear", "bgr"),  # nothing to resize
        ((2, 300), "pad", "bilinear", "rgb"),
        ((1, 1), "squish", "bicubic", "rgb"),
    ],
)
def test_a_fixed_size_is_pillows_to_the_bit(photos, frame_size, resize, interpolation, channels):
    spec, frame = preprocessing(SIZE, resize, interpolation), FrameSpec(channels, frame_size, True)
    fed = torch.from_numpy(feeds([photos[frame_size]] * 2, spec, frame)["frame"])
    for answer in FixedFrameInput(spec, frame_size, channels)(fed).numpy():
        np.testing.assert_array_equal(answer, reference(photos[frame_size], spec))


def test_the_traced_graph_of_a_fixed_size(one_size, photos):
    assert [value.name for value in one_size.graph.input] == ["frame"]
    spec, frame = preprocessing(SIZE, "pad", "bicubic"), FrameSpec("bgr", (480, 640), True)
    (found,) = session(one_size).run(None, feeds([photos[480, 640]] * 2, spec, frame))
    for answer in found:
        np.testing.assert_array_equal(answer, reference(photos[480, 640], spec))


@pytest.mark.parametrize("pad_mode", ["edge", "reflect", "symmetric"])
def test_every_kind_of_padding_of_a_fixed_size(photos, pad_mode):
    spec, frame = preprocessing(SIZE, "pad", "bilinear", pad_mode), FrameSpec("rgb", (333, 500), True)
    fed = torch.from_numpy(feeds([photos[333, 500]], spec, frame)["frame"].copy())
    found = FixedFrameInput(spec, frame.size)(fed)
    np.testing.assert_array_equal(found[0].numpy(), reference(photos[333, 500], spec))


def test_eager_and_traced_are_equal(any_size_session, photos):
    spec, frame = preprocessing(), FrameSpec("rgb", (1080, 1920), False)
    fed = feeds([photos[333, 500]], spec, frame)
    eager = FrameInput(spec)(*(torch.from_numpy(np.array(fed[name])) for name in ("frame", "rows", "columns")))
    np.testing.assert_array_equal(eager.numpy(), any_size_session.run(None, fed)[0])


def test_openvino_agrees(any_size, photos):
    """It multiplies by 1/255 where everybody else divides by 255: the last bit of the normalization, no pixel."""
    ov = pytest.importorskip("openvino")
    spec, frame = preprocessing(), FrameSpec("rgb", (1080, 1920), False)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = ov.Core()
    compiled = core.compile_model(core.read_model(any_size.SerializeToString()), "CPU", settings)
    for size in ((333, 500), (30, 40), (480, 640)):
        found = compiled(feeds([photos[size]], spec, frame))[0][0]
        expected = reference(photos[size], spec)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_array_equal(pixels(found), pixels(expected))


def pixels(normalized):
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return np.round((normalized * std + mean) * 255)


def test_constants_are_banded_and_exact_on_tensor_cores(one_size):
    """Whole numbers of 11 bits and a sign lose nothing in TF32; and few of them are multiplied."""
    products = [node for node in one_size.graph.node if node.op_type == "MatMul"]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in one_size.graph.initializer}
    weights = [constants[name] for node in products for name in node.input if name in constants]
    assert len(weights) == len(products)
    for matrix in weights:
        np.testing.assert_array_equal(matrix, np.round(matrix))
        assert np.abs(matrix).max() <= 2048
    halves = 2  # each weight is split
    assert sum(matrix.size for matrix in weights) < halves * (96 * 480 + 128 * 640) / 8


@pytest.mark.parametrize(("graph", "fixed"), [("any_size", False), ("one_size", True)])
def test_tensorrt_takes_it(request, graph, fixed):
    model = request.getfixturevalue(graph)
    assert tensorrt10_problems(model) == []
    assert element_types(model)["frame"] == onnx.TensorProto.UINT8
    pytest.importorskip("tensorrt_rtx")
    info = EngineInfo("tensorrt_rtx", "1.7.1", "8.6", 4)
    assert build_engine(model.SerializeToString(), info, FrameSpec("rgb", (480, 640), fixed))
