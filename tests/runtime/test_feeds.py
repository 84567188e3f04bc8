"""What networks are fed with that take frames: the arrays themselves, and the matrices that belong to them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from runtime import load
from runtime.errors import BundleError, ImageError
from runtime.feeds import FrameFeeder
from runtime.manifest import FrameSpec, Manifest, Preprocessing, TensorSpec, frame_inputs
from runtime.preprocess import resize
from runtime.resampling import WEIGHT_BITS

SIZE = 16
SPEC = Preprocessing((SIZE, SIZE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def feeder(manifest_of, channels="rgb", size=(60, 80), fixed=False, spec=SPEC):
    frame = FrameSpec(channels, size, fixed)
    return FrameFeeder(manifest_of(frame=frame, inputs=frame_inputs(frame, spec), preprocessing=spec))


def product(weights, pixels):
    units = np.round(weights.astype(np.float64) * 2**WEIGHT_BITS).astype(np.int64)
    sums = np.tensordot(units, pixels.astype(np.int64), 1) + 2 ** (WEIGHT_BITS - 1)
    return np.clip(sums >> WEIGHT_BITS, 0, 255)


def resized(feeds, i):
    """What the graph makes of one frame: columns first, each product rounded."""
    columns_first = product(feeds["columns"][i].T, feeds["frame"][i].transpose(1, 0, 2))
    return product(feeds["rows"][i], columns_first.transpose(1, 0, 2))


@pytest.mark.parametrize("mode", ["squish", "pad"])
def test_frames_of_any_size_share_a_batch(manifest_of, mode):
    spec = Preprocessing((SIZE, SIZE), SPEC.mean, SPEC.std, mode, "reflect", "bicubic")
    images = [noise(h, w, h) for h, w in ((60, 80), (20, 30), (16, 16), (60, 17), (1, 1), (3, 70))]
    feeds, sizes = feeder(manifest_of, spec=spec)(images)
    assert sizes == [image.shape[:2] for image in images]
    assert {name: array.dtype for name, array in feeds.items()} == {"frame": "u1", "rows": "f4", "columns": "f4"}
    for i, image in enumerate(images):
        np.testing.assert_array_equal(resized(feeds, i), np.asarray(resize(Image.fromarray(image), spec)))


def test_one_frame_is_not_copied(manifest_of):
    frame = noise(40, 50)
    feeds, _ = feeder(manifest_of)([frame])
    assert feeds["frame"].shape == (1, 40, 50, 3)
    assert np.shares_memory(feeds["frame"], frame)
    again, _ = feeder(manifest_of)([frame])
    assert np.shares_memory(feeds["rows"], again["rows"])


def test_strides_of_any_kind_are_taken(manifest_of):
    whole = noise(80, 100)
    views = (whole[60:10:-1, 10:70], whole[:60, :80, ::-1], whole[::2, ::2], whole.transpose(1, 0, 2)[:60, :60])
    for view in views:
        feeds, _ = feeder(manifest_of)([view])
        assert feeds["frame"].flags.c_contiguous
        np.testing.assert_array_equal(feeds["frame"][0], view)


def test_arrays_are_in_the_networks_order_and_pictures_are_brought_into_it(manifest_of, tmp_path):
    pixels = noise(20, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    bgr = feeder(manifest_of, "bgr")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels[..., ::-1].copy()):
        np.testing.assert_array_equal(bgr([source])[0]["frame"][0], pixels[..., ::-1])
    with_alpha = np.dstack([pixels[..., ::-1], np.full((20, 30), 7, np.uint8)])
    np.testing.assert_array_equal(bgr([with_alpha])[0]["frame"][0], pixels[..., ::-1])
    grey = pixels[..., 0]
    np.testing.assert_array_equal(bgr([grey])[0]["frame"][0], np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((61, 80, 3), np.uint8), r"image 7 has 61 x 80 pixels .* tiny takes frames of up to 60 x 80"),
        (np.zeros((4, 200, 3), np.uint8), r"--max-frame 60 200"),
        (np.zeros((4, 5, 3), np.int16), "image 7 is int16: expected uint8"),
        (np.zeros((4, 5, 3)), "image 7 is float64"),
        (np.zeros((0, 5, 3), np.uint8), "image 7 has no pixels"),
        (np.zeros((2, 4, 5, 3), np.uint8), "image 7 has the shape"),
        (np.zeros((4, 5, 2), np.uint8), "image 7 has the shape"),
        (None, "image 7 is a NoneType"),
    ],
)
def test_what_no_frame_is(manifest_of, bad, message):
    with pytest.raises(ImageError, match=message):
        feeder(manifest_of)([bad], first=7)


def test_a_fixed_size_is_the_only_one(manifest_of, tmp_path):
    fixed = feeder(manifest_of, size=(20, 30), fixed=True)
    feeds, _ = fixed([noise(20, 30), noise(20, 30, 1)])
    assert list(feeds) == ["frame"]
    assert feeds["frame"].shape == (2, 20, 30, 3)
    Image.fromarray(noise(30, 20)).save(tmp_path / "tall.png")
    with pytest.raises(ImageError, match=r"tall\.png has 30 x 20 pixels .* takes frames of 20 x 30 only"):
        fixed([tmp_path / "tall.png"])
    with pytest.raises(ImageError, match="19 x 30"):
        fixed([noise(19, 30)])


# Opening a network that takes frames.


def frame_network(height="height", width="width", extra=()):
    """The mean of each channel of the resized frame; without the rounding, which is not what is tested here."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Unsqueeze", ["columns", "one"], ["c"]),
        helper.make_node("Unsqueeze", ["rows", "one"], ["r"]),
        helper.make_node("MatMul", ["planes", "c"], ["narrow"]),
        helper.make_node("MatMul", ["r", "narrow"], ["small"]),
        helper.make_node("GlobalAveragePool", ["small"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["logits"]),
    ]
    inputs = {
        "frame": (TensorProto.UINT8, ["batch", height, width, 3]),
        "rows": (TensorProto.FLOAT, ["batch", SIZE, height]),
        "columns": (TensorProto.FLOAT, ["batch", width, SIZE]),
        **dict(extra),
    }
    graph = helper.make_graph(
        nodes,
        "frames",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def frame_bundle(make_bundle, folder, data, **changes):
    frame = FrameSpec("rgb", (60, 80), False)
    values = {
        "labels": ("r", "g", "b"),
        "outputs": (TensorSpec("logits", "float32", ("batch", 3)),),
        "frame": frame,
        "inputs": frame_inputs(frame, SPEC),
    }
    return make_bundle(folder, {"fp32": data}, **(values | changes))


def test_a_model_feeds_frames(make_bundle, tmp_path, cpu_backend):
    images = [noise(60, 80), noise(20, 30) // 2, noise(5, 5) // 3]
    with load(frame_bundle(make_bundle, tmp_path / "b", frame_network()), backend=cpu_backend) as model:
        together = model.run(images)["logits"]
        for image, row in zip(images, together, strict=True):
            np.testing.assert_allclose(model.run(image)["logits"][0], row, rtol=1e-5)
            np.testing.assert_allclose(row, image.mean((0, 1)), atol=8)
        assert [answer.label for answer in model(images)] == [model.labels[i] for i in together.argmax(1)]
        assert model.run([]) == {}
        with pytest.raises(ImageError, match="no images to feed"):
            model.feeds([])
        with pytest.raises(ImageError, match="up to 60 x 80"):
            model([images[0], noise(70, 70)])
        assert model.feeds(images[0])["frame"].shape == (1, 60, 80, 3)
        assert model.preprocess(images[0]).shape == (1, 3, SIZE, SIZE)


def test_a_network_that_takes_something_else_is_refused(make_bundle, tmp_path):
    with_another = frame_network(extra={"more": (TensorProto.FLOAT, ["batch", 1])}.items())
    fixed = FrameSpec("rgb", (60, 80), True)
    for i, (data, changes, message) in enumerate(
        (
            (with_another, {}, "the inputs 'frame', 'rows', 'columns', the network has .*'more'"),
            (frame_network(), {"frame": fixed, "inputs": frame_inputs(fixed, SPEC)}, "says the inputs 'frame', the"),
            (
                frame_network(),
                {"frame": None, "inputs": (TensorSpec("input", "float32", ("batch", 3, 16, 16)),)},
                "one",
            ),
        )
    ):
        with pytest.raises(BundleError, match=message):
            load(frame_bundle(make_bundle, tmp_path / str(i), data, **changes), backend="onnxruntime")


# The manifest.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["frame"].update(channels="grb"), "frame.channels is 'grb', expected one of rgb, bgr"),
        (lambda d: d["frame"].update(size=[60]), "frame.size needs 2 values"),
        (lambda d: d["frame"].update(size=[60, 0]), r"frame.size\[1\] is 0"),
        (lambda d: d["frame"].update(fixed=1), "frame.fixed is 1, expected true or false"),
        (lambda d: d["frame"].update(fixed=True), "inputs are not those of a network that takes such frames"),
        (lambda d: d["frame"].update(stride=4), "frame has the unknown key 'stride'"),
        (lambda d: d["frame"].pop("size"), "frame lacks the key 'size'"),
        (lambda d: d.update(frame=3), "frame is a number, expected an object"),
        (lambda d: d["inputs"].pop(), "inputs are not those"),
    ],
)
def test_a_wrong_frame_in_the_manifest_is_refused(make_bundle, edit_manifest, tmp_path, change, message):
    folder = frame_bundle(make_bundle, tmp_path / "b", frame_network())
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=message):
        load(folder)


def test_a_manifest_with_a_frame_is_equal_after_a_round_trip(manifest_of):
    frame = FrameSpec("bgr", (60, 80), False)
    manifest = manifest_of(frame=frame, inputs=frame_inputs(frame, SPEC))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert '"frame": {' in manifest.to_json()
    assert '"frame"' not in manifest_of().to_json()  # which earlier readers open as before
