"""A bundle small enough to build for every test: one convolution, pooling, and a linear layer of four classes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.manifest import METADATA_KEY, VARIANT_KEY, Artefact, Manifest, Preprocessing, TensorSpec

LABELS = ("cat", "dog", "eel", "fox")
SIZE = 16


def tiny_network(variant="fp32", batch="batch", bias=0.0, input_name="input", classes=4, metadata=None):
    """ONNX bytes of the little classifier in one of the four variants; the same weights every time."""
    generator = np.random.default_rng(7)
    kernel = (generator.standard_normal((8, 3, 3, 3)) * 0.3).astype(np.float32)
    linear = generator.standard_normal((8, classes)).astype(np.float32)
    constants, nodes, image = {"linear": linear, "bias": np.full(classes, bias, np.float32)}, [], input_name
    if variant.startswith("int8"):
        zero = np.uint8(128) if variant == "int8.cpu" else np.int8(0)
        scale = np.abs(kernel).max(axis=(1, 2, 3)).astype(np.float32) / np.float32(127)
        constants |= {
            "image_scale": np.float32(6 / 255),
            "image_zero": zero,
            "kernel_q": np.round(kernel / scale[:, None, None, None]).astype(np.int8),
            "kernel_scale": scale,
            "kernel_zero": np.zeros(8, np.int8),
        }
        nodes += [
            helper.make_node("QuantizeLinear", [image, "image_scale", "image_zero"], ["image_q"]),
            helper.make_node("DequantizeLinear", ["image_q", "image_scale", "image_zero"], ["image_d"]),
            helper.make_node("DequantizeLinear", ["kernel_q", "kernel_scale", "kernel_zero"], ["kernel"], axis=0),
        ]
        image = "image_d"
    else:
        constants["kernel"] = kernel
    nodes += [
        helper.make_node("Conv", [image, "kernel"], ["conv"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "linear", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_manifest(**changes):
    """The manifest of the little classifier, without artefacts unless they are given."""
    values = {
        "name": "tiny",
        "task": "classification",
        "labels": LABELS,
        "inputs": (TensorSpec("input", "float32", ("batch", 3, SIZE, SIZE)),),
        "outputs": (TensorSpec("logits", "float32", ("batch", len(LABELS))),),
        "preprocessing": Preprocessing((SIZE, SIZE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    return Manifest(**(values | changes))


def write_bundle(folder, networks, **changes):
    """Write a bundle whose artefacts are the given bytes by variant."""
    folder.mkdir(parents=True, exist_ok=True)
    artefacts = []
    for variant, data in networks.items():
        precision, _, scheme = variant.partition(".")
        file = "model.onnx" if variant == "fp32" else f"model.{variant}.onnx"
        (folder / file).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        artefacts.append(Artefact(file, "onnx", precision, len(data), digest, scheme or None))
    manifest = tiny_manifest(artefacts=tuple(artefacts), **changes)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def network():
    return tiny_network


@pytest.fixture(scope="session")
def manifest_of():
    return tiny_manifest


@pytest.fixture(scope="session")
def make_bundle():
    return write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle with the variants fp32, int8.cpu and int8.trt. Not to be changed: see `own_bundle`."""
    variants = ("fp32", "int8.cpu", "int8.trt")
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", {v: tiny_network(v) for v in variants})


@pytest.fixture
def own_bundle(tmp_path) -> Path:
    """A bundle with fp32 and int8.cpu that the test may damage."""
    return write_bundle(tmp_path / "own", {v: tiny_network(v) for v in ("fp32", "int8.cpu")})


@pytest.fixture
def edit_manifest():
    """Change a bundle's manifest.json as decoded JSON."""

    def edit(folder, change):
        path = folder / "manifest.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")

    return edit


@pytest.fixture
def lone_onnx(tmp_path) -> Path:
    """An ONNX file with our metadata, outside any bundle."""
    path = tmp_path / "lone.onnx"
    metadata = {METADATA_KEY: tiny_manifest().to_json(), VARIANT_KEY: "int8.cpu", "other": "ünïcode"}
    path.write_bytes(tiny_network("int8.cpu", metadata=metadata))
    return path


@pytest.fixture
def picture():
    """A uint8 RGB array of a size that the network does not take."""
    return np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(params=["onnxruntime", "openvino"])
def cpu_backend(request):
    pytest.importorskip(request.param)
    return request.param
