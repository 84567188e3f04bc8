"""The whole way from a float graph and images to INT8, on a small network, and on everything that can be wrong."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calib import CalibrationError, find_images
from export.errors import QuantizationError
from export.gate import tensorrt10_problems
from export.quantize import calibrate, quantize
from export.quantize.channel_classes import channel_classes
from export.quantize.equalize import Equalization, apply_factors
from export.quantize.exempt import DEPTHWISE
from export.quantize.optimize import quantize_calibrated
from runtime.backends import open_session
from runtime.manifest import Preprocessing
from runtime.preprocess import Preprocessor

SCHEMES = ("cpu", "trt")
SIZE = (24, 20)
PREPROCESSING = Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
node = helper.make_node


def random(*shape, seed=0):
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 20
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(fan_in / 2)).astype(np.float32)


NODES = [
    node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
    node("Relu", ["a"], ["r"]),
    node("Conv", ["r", "w2"], ["d"], pads=[1, 1, 1, 1], group=16),
    node("Relu", ["d"], ["rd"]),
    node("Conv", ["rd", "w3", "b3"], ["c"]),
    node("Add", ["c", "r"], ["s"]),
    node("Relu", ["s"], ["rs"]),
    node("Conv", ["rs", "w4", "b4"], ["e"], pads=[1, 1, 1, 1]),
    node("Relu", ["e"], ["re"]),
    node("GlobalAveragePool", ["re"], ["p"]),
    node("Flatten", ["p"], ["f"]),
    node("Gemm", ["f", "w5", "b5"], ["y"], transB=1),
]
SHAPES = {
    "w1": (16, 3, 3, 3),
    "b1": (16,),
    "w2": (16, 1, 3, 3),
    "w3": (16, 16, 1, 1),
    "b3": (16,),
    "w4": (24, 16, 3, 3),
    "b4": (24,),
    "w5": (10, 24),
    "b5": (10,),
}


def build(nodes=NODES, change=None, outputs=("y",), **more):
    """The network; `change` edits its constants by name."""
    arrays = {name: random(*shape) for name, shape in SHAPES.items()} | more
    if change is not None:
        change(arrays)
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in arrays.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def hardened(model):
    classes = channel_classes(model)
    generator = np.random.default_rng(0)
    factors = [np.exp(0.8 * generator.standard_normal(c.channels)).astype(np.float32) for c in classes]
    return apply_factors(model, Equalization(tuple(map(torch.from_numpy, factors)), tuple(classes), 1.0, 1.0))


def answers(model, images, preprocessing=PREPROCESSING):
    """Through the runtime, whose INT8 sums are exact on every processor."""
    x = Preprocessor(preprocessing).batch(images)
    session = open_session(model.SerializeToString(), "onnxruntime", threads=1)
    return {name: value.astype(np.float64) for name, value in session.run({"x": x}).items()}


def decibels(model, float_model, images, preprocessing=PREPROCESSING):
    ours, exact = answers(model, images, preprocessing)["y"], answers(float_model, images, preprocessing)["y"]
    assert np.isfinite(ours).all()
    return 10 * np.log10((exact**2).sum() / max(((ours - exact) ** 2).sum(), 1e-300))


def optimized(model, images, scheme, preprocessing=PREPROCESSING, **options):
    return quantize_calibrated(model, images, preprocessing, scheme, **{"effort": "fast", **options})


def check(model, scheme):
    onnx.checker.check_model(model, full_check=True)
    if scheme == "trt":
        assert tensorrt10_problems(model) == []


@pytest.fixture(scope="module")
def crops(photos, tmp_path_factory):
    """Photographs to calibrate on, and to judge by what is seen of them a few pixels further on."""
    folder = tmp_path_factory.mktemp("crops")
    for i, path in enumerate(find_images(photos)):
        with Image.open(path) as image:
            for j, (left, top) in enumerate(((0, 0), (18, 0), (0, 14), (18, 14), (9, 7))):
                for name, moved in (("calib", 0), ("judge", 2)):
                    box = (left + moved, top + moved, left + moved + 28, top + moved + 24)
                    image.crop(box).save(folder / f"{name}_{i:02}_{j}.png")
    paths = find_images(folder)
    return paths[:60:2], paths[60:]


@pytest.fixture
def made_images(tmp_path):
    def make(*arrays):
        paths = []
        for i, array in enumerate(arrays):
            paths.append(tmp_path / f"{i:03}.png")
            Image.fromarray(np.broadcast_to(np.asarray(array, np.uint8), (*SIZE, 3)).copy()).save(paths[-1])
        return paths

    return make


# What it is for.


@pytest.mark.parametrize(("scheme", "per_tensor"), [("cpu", False), ("trt", False), ("trt", True)])
def test_it_answers_better_than_plain_quantization_however_channels_are_scaled(scheme, per_tensor, crops, op_counts):
    calib, judges = crops
    model = build()
    before = model.SerializeToString()
    ours, plain = {}, {}
    for key, m in (("model", model), ("harder", hardened(model))):
        result = optimized(m, calib, scheme, per_tensor=per_tensor)
        check(result.model, scheme)
        counts = op_counts(result.model)
        assert counts["Conv"] == 4
        assert counts["DequantizeLinear"] > counts["QuantizeLinear"] >= 5
        assert result.report.scheme == scheme
        depthwise = {} if scheme == "cpu" else {"d": DEPTHWISE}
        assert result.report.kept_float == depthwise
        assert [layer.name for layer in result.report.layers] == [
            n for n in ("a", "d", "c", "e", "y") if n not in depthwise
        ]
        assert all(layer.rounded_error <= layer.nearest_error for layer in result.report.layers)
        usual = quantize(m, calibrate(m, calib, PREPROCESSING, "mse"), scheme)
        ours[key] = [decibels(result.model, m, images) for images in (calib, judges)]
        plain[key] = [decibels(usual, m, images) for images in (calib, judges)]
    assert model.SerializeToString() == before
    if not per_tensor:  # plain quantization has a scale for each channel
        assert ours["model"][0] > plain["model"][0] + 3
        assert ours["harder"][0] > plain["harder"][0] + 8
        assert ours["harder"][1] > plain["harder"][1]
    assert abs(ours["harder"][0] - ours["model"][0]) < 3
    assert ours["harder"][1] > 20


@pytest.mark.parametrize("scheme", ["cpu"])
def test_a_seed_gives_the_same_graph(scheme, crops):
    calib, _ = crops
    told = []
    first = optimized(build(), calib[:10], scheme, seed=1, progress=lambda done, total: told.append((done, total)))
    again = optimized(build(), calib[:10], scheme, seed=1)
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert first.report == again.report
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


@pytest.mark.slow
def test_more_effort_is_no_worse(crops):
    calib, judges = crops
    fast, normal = (
        decibels(optimized(build(), calib, "cpu", effort=e).model, build(), judges) for e in ("fast", "normal")
    )
    assert normal > fast - 1.0


# Images.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_of_one_colour(scheme, made_images):
    for colours in ([[200, 10, 90]], [0, 128, 255]):
        images = made_images(*colours)
        result = optimized(build(), images, scheme)
        check(result.model, scheme)
        assert decibels(result.model, build(), images) > 20


@pytest.mark.parametrize(("count", "scheme"), [(1, "cpu"), (1, "trt"), (9, "cpu")])
def test_a_single_image_and_the_same_image_again_and_again(count, scheme, crops):
    calib, judges = crops
    result = optimized(build(), [calib[0]] * count, scheme)
    check(result.model, scheme)
    assert decibels(result.model, build(), calib[:1]) > 20
    assert np.isfinite(answers(result.model, judges)["y"]).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_far_out_of_range(scheme, crops):
    """A deviation mistaken for one of pixels: inputs 255 times as large as the network was made for, or as small."""
    calib, judges = crops
    # As small ones cannot be told from a constant in float16, in which ONNX Runtime has the biases of `trt`.
    for deviation in (0.225 / 255, 0.225 * 255)[: 2 if scheme == "cpu" else 1]:
        preprocessing = Preprocessing(SIZE, (0.0, 0.5, 1.0), (deviation,) * 3)
        result = optimized(build(), calib, scheme, preprocessing)
        check(result.model, scheme)
        assert decibels(result.model, build(), judges, preprocessing) > 20


def test_no_image_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match="none of the 1 images is readable"):
        optimized(build(), [tmp_path / "a.png"], "cpu")
    with pytest.raises(CalibrationError, match="no images"):
        optimized(build(), [], "cpu")


def test_files_that_are_no_images_are_passed_over(tmp_path, crops):
    calib, _ = crops
    (tmp_path / "a.png").write_bytes(b"no image")
    result = optimized(build(), [tmp_path / "a.png", *calib[:9]], "cpu")
    assert decibels(result.model, build(), calib[:9]) > 20


# Networks.


def zeros(name, at=...):
    def change(arrays):
        arrays[name][at] = 0

    return change


def dead_relu(arrays):
    arrays["b4"][[1, 5]] = -1e3


def dead_inputs(arrays):
    arrays["w1"][3], arrays["b1"][3] = 0, 0
    arrays["w4"][:, 7] = 0


ODD = {
    "a channel of zeros": zeros("w1", 3),
    "weights of zero": zeros("w3"),
    "channels that are never positive": dead_relu,
    "channels that nothing makes and nobody reads": dead_inputs,
    "biases of zero": zeros("b3"),
}


@pytest.mark.parametrize(("name", "scheme"), [(name, SCHEMES[i % 2]) for i, name in enumerate(ODD)])
def test_dead_channels_and_zeros(name, scheme, crops):
    calib, _ = crops
    model = build(change=ODD[name])
    result = optimized(model, calib[:9], scheme)
    check(result.model, scheme)
    assert decibels(result.model, model, calib[:9]) > 20


@pytest.mark.parametrize(("name", "scheme"), [("w1", "cpu"), ("w5", "cpu"), ("w5", "trt")])
def test_constant_answers_stay_what_they_are(name, scheme, crops):
    """Nothing of the image passes: what is left are biases."""
    model = build(change=zeros(name))
    result = optimized(model, crops[0][:9], scheme)
    check(result.model, scheme)
    assert decibels(result.model, model, crops[1]) > 30


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_zeros(scheme, crops):
    model = build(change=lambda arrays: [a.fill(0) for a in arrays.values()])
    result = optimized(model, crops[0][:9], scheme)
    check(result.model, scheme)
    assert not answers(result.model, crops[1])["y"].any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_layers_share(scheme, crops):
    nodes = [
        *NODES[:2],
        node("Conv", ["r", "w3", "b3"], ["c"]),
        node("Relu", ["c"], ["rc"]),
        node("Conv", ["rc", "w3", "b3"], ["d"]),
        node("Relu", ["d"], ["rs"]),
        *NODES[7:],
    ]
    model = build(nodes)
    result = optimized(model, crops[0], scheme)
    check(result.model, scheme)
    assert decibels(result.model, model, crops[1]) > 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bias_of_a_row_is_a_bias(scheme, crops):
    def reshape(arrays):
        arrays["b5"] = arrays["b5"].reshape(1, -1)

    model = build(change=reshape)
    assert decibels(optimized(model, crops[0], scheme).model, model, crops[1]) > 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_that_nobody_reads_is_no_harm(scheme, crops):
    model = build([*NODES, node("Conv", ["rs", "w4", "b4"], ["unused"])])
    assert decibels(optimized(model, crops[0], scheme).model, model, crops[1]) > 20


@pytest.mark.parametrize("name", ["w1", "b1", "w5"])
def test_weights_that_are_not_finite_are_named(name, crops):
    def spoil(arrays):
        arrays[name].flat[0] = np.nan

    with pytest.raises(QuantizationError, match=f"{name} holds NaN or infinity"):
        optimized(build(change=spoil), crops[0], "cpu")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_channel_of_zeros_keeps_its_bias(scheme, crops):
    model = build(change=zeros("w1"))
    assert decibels(optimized(model, crops[0], scheme).model, model, crops[1]) > 20


@pytest.mark.parametrize(("operator", "scheme"), [("Selu", "cpu"), ("CumSum", "trt")])
def test_an_operator_that_is_not_supported_stays_float(operator, scheme, crops, op_counts):
    """Gradients end there: ranges go by their own errors, and the layers are rounded nonetheless."""
    odd = node("Selu", ["s"], ["rs"]) if operator == "Selu" else node("CumSum", ["s", "axis"], ["rs"], reverse=1)
    more = {} if operator == "Selu" else {"axis": np.array(2, np.int64)}
    model = build([*NODES[:6], odd, *NODES[7:]], **more)
    result = optimized(model, crops[0], scheme)
    onnx.checker.check_model(result.model, full_check=True)
    assert op_counts(result.model)[operator] == 1
    assert decibels(result.model, model, crops[1]) > 20
    layers = result.report.layers
    assert [layer.name for layer in layers] == ["a", *(["d"] if scheme == "cpu" else []), "c", "e", "y"]
    assert sum(layer.rounded_error for layer in layers) < 0.8 * sum(layer.nearest_error for layer in layers)
    assert {tensor.choice.method for tensor in result.report.tensors} == {"known", "mse"}
    assert result.calibration.factors == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_output_that_is_read_on(scheme, crops):
    model = build(outputs=("y", "rs"))
    result = optimized(model, crops[0], scheme)
    check(result.model, scheme)
    exact, ours = answers(model, crops[1]), answers(result.model, crops[1])
    assert exact.keys() == ours.keys()
    for name, value in exact.items():
        assert 10 * np.log10((value**2).sum() / ((ours[name] - value) ** 2).sum()) > 20


@pytest.mark.parametrize(("value", "scheme"), [(np.nan, "cpu"), (np.inf, "trt")])
def test_weights_that_are_not_finite_are_refused_by_name(value, scheme, crops):
    def spoil(arrays):
        arrays["w5"][2, 3] = value

    with pytest.raises(QuantizationError, match="w5 holds NaN or infinity"):
        optimized(build(change=spoil), crops[0][:9], scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_network_without_weights(scheme, crops):
    model = build([node("GlobalAveragePool", ["x"], ["p"]), node("Flatten", ["p"], ["y"])])
    result = optimized(model, crops[0][:9], scheme)
    onnx.checker.check_model(result.model, full_check=True)
    assert decibels(result.model, model, crops[1]) > 20
