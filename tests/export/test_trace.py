"""Tracing and simplifying: the graph computes what the module does, plainly, and tells nothing of its machine."""

import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from calib import find_images
from export.errors import ExportError
from export.simplify import simplify
from export.trace import trace
from runtime.preprocess import Preprocessor


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_answers_as_the_module_does_at_any_batch(tiny_net, tiny_onnx, ort_run, batch):
    x = np.random.default_rng(batch).standard_normal((batch, 3, 24, 20)).astype(np.float32)
    with torch.inference_mode():
        expected = tiny_net()(torch.from_numpy(x)).numpy()
    (logits,) = ort_run(tiny_onnx, {"input": x}).values()
    assert logits.shape == (batch, 5)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_answers_as_the_module_does_on_photographs(tiny_net, tiny_onnx, ort_run, photos, preprocessing):
    x = Preprocessor(preprocessing).batch(find_images(photos))
    with torch.inference_mode():
        expected = tiny_net()(torch.from_numpy(x)).numpy()
    logits = ort_run(tiny_onnx, {"input": x})["logits"]
    assert np.linalg.norm(logits - expected) <= 1e-5 * np.linalg.norm(expected)


def test_is_one_file_of_opset_20_with_the_agreed_names(tiny_onnx):
    assert [(o.domain, o.version) for o in tiny_onnx.opset_import] == [("", 20)]
    assert tiny_onnx.ir_version == 9
    (image,), (logits,) = tiny_onnx.graph.input, tiny_onnx.graph.output
    assert (image.name, logits.name) == ("input", "logits")
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param
    assert not batch.HasField("dim_value")
    assert [d.dim_value for d in rest] == [3, 24, 20]
    assert image.type.tensor_type.elem_type == logits.type.tensor_type.elem_type == TensorProto.FLOAT
    assert not any(t.data_location == TensorProto.EXTERNAL for t in tiny_onnx.graph.initializer)
    onnx.checker.check_model(tiny_onnx, full_check=True)


@pytest.mark.parametrize("variant", ["", ".fp16", ".int8.cpu", ".int8.trt"])
def test_tells_no_paths_and_no_stack_traces(tiny_bundle, variant):
    data = (tiny_bundle / f"model{variant}.onnx").read_bytes()
    assert not re.search(rb"\.py\b|stack_trace|pkg\.torch|/usr/|/home/|/tmp/|/work/|Traceback|conftest", data)
    model = onnx.load_from_string(data)
    assert not model.doc_string
    assert not model.graph.doc_string
    assert {p.key for p in model.metadata_props} == {"holocron.manifest", "holocron.variant"}
    assert not model.functions
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        assert not part.metadata_props
        assert not part.doc_string


def test_pooling_and_flattening_become_the_operators_that_kernels_exist_for(tiny_onnx, op_counts):
    assert op_counts(tiny_onnx) == {"Conv": 3, "Relu": 3, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}


def test_the_module_is_left_as_it_was(tiny_net):
    module = tiny_net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    trace(module, (24, 20))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("error", [RuntimeError("first line\nsecond line"), ValueError("")])
def test_what_cannot_be_traced_is_one_line(error):
    class Broken(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(ExportError, match=r"Broken cannot be traced at 8×6: \S") as caught:
        trace(Broken(), (8, 6))
    assert "\n" not in str(caught.value)


def _inferred(model):
    return onnx.shape_inference.infer_shapes(model)


def _initializer(model, name, values):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2], [-2, 3]])
@pytest.mark.parametrize("last", ["Reshape", "Squeeze"])
def test_rewriting_preserves_results(make_onnx, ort_run, op_counts, axes, last):
    second = np.array([-1, 6], np.int64) if last == "Reshape" else np.array([2, 3], np.int64)
    model = make_onnx(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Identity", ["same"], ["again"]),
            helper.make_node("ReduceMean", ["again", "axes"], ["mean"], keepdims=1),
            helper.make_node(last, ["mean", "second"], ["y"]),
        ],
        {"x": ["batch", 6, 5, 4]},
        {"y": ["batch", 6]},
        {"axes": np.array(axes, np.int64), "second": second, "unused": np.ones(3, np.float32)},
    )
    before = model.SerializeToString(deterministic=True)
    simple = simplify(_inferred(model))
    assert op_counts(simple) == {"GlobalAveragePool": 1, "Flatten": 1}
    assert not simple.graph.initializer
    assert model.SerializeToString(deterministic=True) == before
    x = np.random.default_rng(0).standard_normal((3, 6, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(ort_run(simple, {"x": x})["y"], ort_run(model, {"x": x})["y"], atol=1e-6)


def test_a_mean_that_drops_its_dimensions(make_onnx, ort_run, op_counts):
    model = make_onnx(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        {"x": ["batch", 6, 5, 4]},
        {"y": ["batch", 6]},
        {"axes": np.array([2, 3], np.int64)},
    )
    simple = simplify(_inferred(model))
    assert op_counts(simple) == {"GlobalAveragePool": 1, "Flatten": 1}
    x = np.random.default_rng(0).standard_normal((3, 6, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(ort_run(simple, {"x": x})["y"], x.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "keepdims", "shape", "out"),
    [
        ([1], 1, ["batch", 6, 5, 4], ["batch", 1, 5, 4]),  # over the channels
        ([1, 2], 1, ["batch", 6, 5], ["batch", 1, 1]),  # no feature map
        ([2], 1, ["batch", 6, 5, 4], ["batch", 6, 1, 4]),
        ([1, 2], 0, ["batch", 6, 5, 4], ["batch", 4]),
    ],
)
def test_other_means_stay(make_onnx, ort_run, op_counts, axes, keepdims, shape, out):
    model = make_onnx(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims)],
        {"x": shape},
        {"y": out},
        {"axes": np.array(axes, np.int64)},
    )
    assert op_counts(simplify(_inferred(model))) == {"ReduceMean": 1}


def test_a_reshape_that_mixes_images_stays(make_onnx, op_counts):
    model = make_onnx(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": [4, 6, 1, 1]},
        {"y": [2, 12]},
        {"shape": np.array([2, 12], np.int64)},
    )
    assert op_counts(simplify(_inferred(model))) == {"Reshape": 1}


def test_an_identity_that_names_an_output_stays(make_onnx, ort_run):
    model = make_onnx(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Identity", ["a"], ["y"])], {"x": [2]}, {"y": [2]}
    )
    x = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(ort_run(simplify(_inferred(model)), {"x": x})["y"], [0, 2])


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_rectifier_behind_joined_convolutions_moves_to_each(make_onnx, ort_run, op_counts, activation):
    limits = ["", "six"] if activation == "Clip" else []
    model = make_onnx(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Conv", ["x", "v"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
            helper.make_node(activation, ["c", *limits], ["r"]),
            helper.make_node("Conv", ["r", "u"], ["y"]),
        ],
        {"x": ["n", 3, 5, 5]},
        {"y": ["n", 2, 5, 5]},
        {
            "w": np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32),
            "v": np.random.default_rng(1).standard_normal((2, 3, 1, 1)).astype(np.float32),
            "u": np.random.default_rng(2).standard_normal((2, 6, 1, 1)).astype(np.float32),
            "six": np.float32(0.5),
        },
    )
    x = np.random.default_rng(3).standard_normal((2, 3, 5, 5)).astype(np.float32)
    expected = ort_run(model, {"x": x})["y"]
    simple = simplify(_inferred(model))
    assert op_counts(simple) == {"Conv": 3, activation: 2, "Concat": 1}
    np.testing.assert_allclose(ort_run(simple, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_rectifier_behind_what_others_read_stays(make_onnx, op_counts):
    model = make_onnx(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Conv", ["a", "w"], ["b"]),
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": ["n", 3, 5, 5]},
        {"y": ["n", 6, 5, 5]},
        {"w": np.ones((3, 3, 1, 1), np.float32)},
    )
    assert op_counts(simplify(_inferred(model)))["Relu"] == 1


class Resized(nn.Module):
    """Sizes that follow those of the input, as decoders that meet an encoder halfway ask for."""

    def __init__(self, mode):
        super().__init__()
        self.mode, self.conv = mode, nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.options = {} if mode == "nearest" else {"align_corners": False}

    def forward(self, x):
        return nn.functional.interpolate(self.conv(x), size=x.shape[-2:], mode=self.mode, **self.options)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_sizes_of_a_resize_are_constant(ort_run, op_counts, mode):
    module = Resized(mode).eval()
    graph = trace(module, (22, 18))
    assert op_counts(graph) == {"Conv": 1, "Resize": 1}
    x = torch.randn(3, 3, 22, 18)
    with torch.no_grad():
        np.testing.assert_allclose(ort_run(graph, {"input": x.numpy()})["logits"], module(x).numpy(), atol=1e-5)


def test_several_outputs_keep_their_order_and_names(ort_run):
    class Two(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x[:, :, ::2]

    graph = trace(Two().eval(), (8, 6), output_names=("head_0", "head_1"))
    assert [output.name for output in graph.graph.output] == ["head_0", "head_1"]
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 6)).astype(np.float32)
    out = ort_run(graph, {"input": x})
    np.testing.assert_allclose(out["head_0"], x.mean((2, 3)), atol=1e-6)
    np.testing.assert_array_equal(out["head_1"], x[:, :, ::2])
