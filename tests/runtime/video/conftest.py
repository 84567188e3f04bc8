"""Videos made here, OpenCV or what stands in for it, and networks that say what colour a frame has."""

import importlib.util
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.manifest import FrameSpec, Preprocessing, TensorSpec
from runtime.nms import UNSETTLED
from runtime.post_processing import PostProcessing
from runtime.video import libraries

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
H, W = 48, 64
STAND_IN = Path(__file__).with_name("opencv.py")


def solid(colour, height=H, width=W):
    return np.full((height, width, 3), COLOURS.get(colour, colour), np.uint8)


def colourful(count, height=H, width=W):
    """Frames that are red, green, blue, red…"""
    return [solid(list(COLOURS)[i % 3], height, width) for i in range(count)]


def write_video(path, frames, rate=10, codec="mpeg4", options=None):
    with av.open(str(path), "w", options=options or {}) as container:
        track = container.add_stream(codec, rate=rate)
        track.height, track.width = frames[0].shape[:2]
        track.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return path


def colour_of(frame):
    """Which colour most of a frame has, for codecs change it a little."""
    return list(COLOURS)[int(np.asarray(frame, np.float64).mean(axis=(0, 1)).argmax())]


def network(nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def videos():
    """The functions of this file that make videos."""

    class Videos:
        solid, colourful, write, colour_of = map(staticmethod, (solid, colourful, write_video, colour_of))

    return Videos


@pytest.fixture
def ride(tmp_path):
    """Twelve frames, red, green, blue…, ten a second."""
    return write_video(tmp_path / "ride.mp4", colourful(12))


@pytest.fixture
def stand_in():
    """The module that stands in for OpenCV."""
    name = "holocron_tests_opencv"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, STAND_IN)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def opencv(stand_in, monkeypatch):
    """Puts the stand-in, with cameras, in OpenCV's place; at the end all is released, and no rule was broken."""
    cv2 = stand_in.OpenCV()
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    monkeypatch.setattr(libraries, "installed", lambda name: name == "cv2")
    yield cv2
    for _ in range(100):
        if not cv2.alive:
            break
        time.sleep(0.02)
    assert not cv2.alive
    assert cv2.faults == []


@pytest.fixture(params=["av", "cv2"])
def library(request, monkeypatch):
    """The one library that is installed; of OpenCV the real one, where it is."""
    if request.param == "cv2" and importlib.util.find_spec("cv2") is None:
        request.getfixturevalue("opencv")
    monkeypatch.setattr(libraries, "installed", lambda name: name == request.param)
    return request.param


@pytest.fixture
def no_threads_left():
    def check():
        for _ in range(100):
            if not any(thread.name.startswith("stream") for thread in threading.enumerate()):
                return True
            time.sleep(0.02)
        return False

    return check


@pytest.fixture
def segmenter(make_bundle, tmp_path):
    """The class of a pixel is its colour: dark, red, green or blue."""
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[1:, :, 0, 0] = np.eye(3)
    data = network(
        [helper.make_node("Conv", ["input", "w", "b"], ["logits"])],
        {"input": (TensorProto.FLOAT, ["batch", 3, 12, 16])},
        {"logits": (TensorProto.FLOAT, ["batch", 4, 12, 16])},
        {"w": weight, "b": np.float32([0.25, 0, 0, 0])},
    )
    return make_bundle(
        tmp_path / "segmenter",
        {"fp32": data},
        task="segmentation",
        labels=("dark", *COLOURS),
        inputs=(TensorSpec("input", "float32", ("batch", 3, 12, 16)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4, 12, 16)),),
        preprocessing=Preprocessing((12, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation="nearest"),
    )


@pytest.fixture
def bgr_segmenter(make_bundle, tmp_path):
    """The same for frames of 48 × 64 pixels in BGR, which it takes as they are: dark, blue, green or red."""
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[1:, :, 0, 0] = np.eye(3)
    data = network(
        [
            helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "w", "b"], ["logits"]),
        ],
        {"frame": (TensorProto.UINT8, ["batch", H, W, 3])},
        {"logits": (TensorProto.FLOAT, ["batch", 4, H, W])},
        {"w": weight, "b": np.float32([64, 0, 0, 0])},
    )
    return make_bundle(
        tmp_path / "frames",
        {"fp32": data},
        task="segmentation",
        labels=("dark", "blue", "green", "red"),
        inputs=(TensorSpec("frame", "uint8", ("batch", H, W, 3)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4, H, W)),),
        preprocessing=Preprocessing((H, W), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        frame=FrameSpec("bgr", (H, W), True),
    )


@pytest.fixture
def detector(make_bundle, tmp_path):
    """Finds an ant in the upper left quarter of whatever it sees, and says that it is not certain."""
    values = {
        "boxes": np.float32([[[0, 0, 8, 6]]]),
        "scores": np.float32([[0.75]]),
        "labels": np.int32([[0]]),
        "count": np.int32([1]),
        "status": np.int32([UNSETTLED]),
    }
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    nodes, constants = [helper.make_node("Shape", ["input"], ["n"], start=0, end=1)], {}
    for name, array in values.items():
        constants |= {f"{name}_value": array, f"{name}_rest": np.array(array.shape[1:], np.int64)}
        nodes += [
            helper.make_node("Concat", ["n", f"{name}_rest"], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [name]),
        ]
    shapes = {name: ("batch", *array.shape[1:]) for name, array in values.items()}
    data = network(
        nodes,
        {"input": (TensorProto.FLOAT, ["batch", 3, 12, 16])},
        {name: (kinds[array.dtype.name], list(shapes[name])) for name, array in values.items()},
        constants,
    )
    return make_bundle(
        tmp_path / "detector",
        {"fp32": data},
        task="detection",
        labels=("ant",),
        inputs=(TensorSpec("input", "float32", ("batch", 3, 12, 16)),),
        outputs=tuple(TensorSpec(name, array.dtype.name, shapes[name]) for name, array in values.items()),
        preprocessing=Preprocessing((12, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        post_processing=PostProcessing("detections", "network", 0.25, 0.5, 1, 10, 8),
    )
