"""A network small enough to be exported in a second, photographs, and two bundles that the workers of a run share."""

import contextlib
import fcntl
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_networks import TinyNet

from calib import TensorRange, find_images, sample_folder
from export import ExportResult, export_model
from export.onnx_graph import serialized_with_outputs
from export.quantize import insert_qdq, tensors_to_observe
from runtime.manifest import Preprocessing, read_manifest

SIZE = (24, 20)
LABELS = ("cat", "dog", "eel", "fox", "gnu")
PREPROCESSING = Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_tiny_net(seed=0, classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(classes).eval()


def build_onnx(nodes, inputs, outputs, initializers=None, opset=20):
    """A checked ONNX model; shapes by name, or (shape, type) where the type is not float32."""

    def value(name, spec):
        shape, kind = spec if isinstance(spec, tuple) else (spec, TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "graph",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def run_onnx(model, feeds, optimize=True):
    """Outputs of a model by name, through ONNX Runtime itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


@contextlib.contextmanager
def made_once(tmp_path_factory, name):
    """A folder that the first of the parallel workers fills, under a lock; the others find it filled."""
    root = tmp_path_factory.getbasetemp()
    if root.name.startswith("popen-gw"):
        root = root.parent
    folder = root / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Workers that run side by side get in each other's way with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What an interrupted export leaves is not for the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_net():
    """Makes the little classifier (N, 3, 24, 20) to (N, 5); the same weights for the same seed."""
    return make_tiny_net


@pytest.fixture(scope="session")
def preprocessing():
    return PREPROCESSING


@pytest.fixture(scope="session")
def make_onnx():
    return build_onnx


@pytest.fixture(scope="session")
def ort_run():
    return run_onnx


@pytest.fixture(scope="session")
def op_counts():
    """How many nodes of each type a model has."""

    def count(model):
        counts = {}
        for node in model.graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        return counts

    return count


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A dozen of the package's photographs, small. Not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    for i, path in enumerate(find_images(sample_folder())[:12]):
        with Image.open(path) as image:
            image.convert("RGB").resize((48, 40)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, photos) -> Path:
    """The little classifier with every graph and no engine. Not to be changed: see `own_bundle`."""
    with made_once(tmp_path_factory, "tiny") as folder:
        if not folder.exists():
            labels = folder.with_suffix(".txt")
            labels.write_text("\n".join(LABELS) + "\n")
            export_model(
                make_tiny_net(),
                folder,
                preprocessing=PREPROCESSING,
                labels=labels,
                fp16=True,
                int8=True,
                calib=photos,
            )
    return folder


@pytest.fixture(scope="session")
def float_bundle(tmp_path_factory, tiny_bundle) -> Path:
    """The same with the float32 graph alone. Not to be changed."""
    with made_once(tmp_path_factory, "float") as folder:
        if not folder.exists():
            export_model(make_tiny_net(), folder, preprocessing=PREPROCESSING)
    return folder


@pytest.fixture
def own_bundle(float_bundle, tmp_path) -> Path:
    """A bundle with the float32 graph that the test may change."""
    return Path(shutil.copytree(float_bundle, tmp_path / "own"))


@pytest.fixture(scope="session")
def tiny_onnx(float_bundle):
    """The little classifier's float32 graph, as traced."""
    return onnx.load(float_bundle / "model.onnx")


@pytest.fixture(scope="session")
def minmax_int8(tiny_onnx) -> dict[str, onnx.ModelProto]:
    """The little classifier with every layer in INT8, by scheme; what is not in integers is float32."""
    x = np.random.default_rng(1).standard_normal((32, 3, *SIZE), np.float32)
    names = tensors_to_observe(tiny_onnx)
    seen = {**run_onnx(serialized_with_outputs(tiny_onnx, names), {"input": x}), "input": x}
    ranges = {}
    for name in names:
        low, high = min(float(seen[name].min()), 0.0), max(float(seen[name].max()), 0.0)
        ranges[name] = TensorRange(low, high, max(-low, high), (low, high))
    return {scheme: insert_qdq(tiny_onnx, ranges, scheme) for scheme in ("cpu", "trt")}


@pytest.fixture(scope="session")
def mobileone_export(tmp_path_factory) -> ExportResult:
    """MobileOne-S0 at 32×32 with every graph and TensorRT-RTX engines of both precisions. Not to be changed."""
    pytest.importorskip("tensorrt_rtx")
    with made_once(tmp_path_factory, "mobileone_s0") as folder:
        if not folder.exists():
            export_model(
                "mobileone_s0",
                folder,
                weights="none",
                num_classes=7,
                input_size=(32, 32),
                fp16=True,
                int8=True,
                rtx=True,
                seed=3,
            )
    manifest = read_manifest(folder)
    return ExportResult(folder, manifest, tuple(a.file for a in manifest.artefacts), ())


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self):
        self.stages, self.warnings = [], []

    @contextlib.contextmanager
    def stage(self, title):
        self.stages.append(title)
        yield

    def update(self, done, total):
        pass

    def warn(self, message):
        self.warnings.append(message)

    def did(self, word):
        return any(stage.startswith(word) for stage in self.stages)


@pytest.fixture
def recorder():
    return Recorder()


def no_leftovers(folder, *expected):
    """Whether a folder holds these names and nothing else, hidden files included."""
    return sorted(path.name for path in folder.iterdir()) == sorted(expected)


@pytest.fixture(scope="session")
def holds_only():
    return no_leftovers
