"""Which tensors are quantized with whose range, and what stays float: on small graphs worked out by hand."""

import numpy as np
import onnx
import pytest
from onnx import helper

from calib import make_observer
from export.onnx_graph import GraphIndex, serialized_with_outputs
from export.quantize import insert_qdq, tensors_to_observe
from export.quantize.layers import operators_left_float, quantized_tensors, range_sources
from export.quantize.qdq import activation_params
from runtime.backends import open_session

SHAPE = [2, 4, 6, 6]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs if isinstance(outputs, list) else [outputs], **attributes)


@pytest.fixture
def graph(make_onnx):
    def make(nodes, output=(2, 4, 6, 6), **constants):
        constants = {"w": random(4, 4, 1, 1), "v": random(4, 4, 1, 1, seed=1) * 9} | constants
        used = {name for n in nodes for name in n.input}
        kept = {name: value for name, value in constants.items() if name in used}
        return onnx.shape_inference.infer_shapes(make_onnx(nodes, {"x": SHAPE}, {"y": list(output)}, kept))

    return make


def minmax(model, x, ort_run):
    names = tensors_to_observe(model)
    seen = {"x": x, **ort_run(serialized_with_outputs(model, names), {"x": x})}
    ranges = {}
    for name in names:
        observer = make_observer("minmax", name)
        observer.observe(seen[name])
        ranges[name] = observer.ranges()
    return ranges


def params(model, ranges, scheme="cpu"):
    """Scale and zero point of each quantized activation, read from the finished graph."""
    quantized = insert_qdq(model, ranges, scheme)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    found = {}
    for n in quantized.graph.node:
        if n.op_type == "QuantizeLinear":
            found[n.input[0]] = (float(values[n.input[1]]), int(values[n.input[2]]))
    return quantized, found


def left(model, scheme):
    return {o.operator: o.count for o in operators_left_float(model, scheme)}


def joined():
    """A skip connection as in a U-Net: the first part is read twice, the second is made for the Concat alone."""
    return [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "skip"),
        node("Conv", ["skip", "v"], "b"),
        node("MaxPool", ["b"], "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", ["skip", "m"], "j", axis=1),
        node("Conv", ["j", "u"], "y"),
    ]


class TestConcat:
    def test_what_is_made_for_it_alone_has_its_range(self, graph):
        model = graph(joined(), u=random(4, 8, 1, 1))
        assert quantized_tensors(GraphIndex(model), "cpu") == ["x", "skip", "b", "m", "j"]
        sources = range_sources(GraphIndex(model), "cpu")
        assert sources == {"x": "x", "skip": "skip", "b": "j", "m": "j", "j": "j"}
        assert tensors_to_observe(model) == ["x", "skip", "j"]
        assert left(model, "cpu") == {}

    def test_integers_are_joined_as_they_are_or_converted_once(self, graph, ort_run):
        model, x = graph(joined(), u=random(4, 8, 1, 1)), random(*SHAPE, seed=3)
        ranges = minmax(model, x, ort_run)
        quantized, found = params(model, ranges)
        assert found["m"] == found["b"] == found["j"] != found["skip"]
        for name in ("skip", "m", "j"):
            quantized.graph.output.append(helper.make_tensor_value_info(f"{name}_dequantized", 1, None))
        out = ort_run(quantized, {"x": x}, optimize=False)
        own, behind = out["skip_dequantized"], out["j_dequantized"]
        np.testing.assert_array_equal(behind[:, 4:], out["m_dequantized"])  # moved, not rounded again
        scale, zero = found["j"]
        again = (np.clip(np.rint(own / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale)
        np.testing.assert_allclose(behind[:, :4], again, rtol=1e-6)

    def test_integer_kernels_answer_as_the_graph_says(self, graph, ort_run):
        model, x = graph(joined(), u=random(4, 8, 1, 1)), random(*SHAPE, seed=3)
        quantized, _ = params(model, minmax(model, x, ort_run))
        said, exact = ort_run(quantized, {"x": x}, optimize=False)["y"], ort_run(model, {"x": x})["y"]
        fused = open_session(quantized.SerializeToString(), "onnxruntime", 1).run(x)["y"]
        assert np.linalg.norm(fused - said) <= 0.01 * np.linalg.norm(said)
        assert np.linalg.norm(said - exact) <= 0.05 * np.linalg.norm(exact)

    def test_under_trt_only_inputs_of_layers_are_quantized(self, graph):
        model = graph(joined(), u=random(4, 8, 1, 1))
        assert range_sources(GraphIndex(model), "trt") == {"x": "x", "skip": "skip", "j": "j"}

    def test_a_float_part_that_others_read_keeps_it_float(self, graph):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("Sigmoid", ["a"], "s"),
            node("Conv", ["x", "v"], "b"),
            node("Concat", ["s", "b"], "j", axis=1),
            node("Mul", ["j", "j"], "q"),
            node("Conv", ["q", "u"], "z"),
            node("Mul", ["z", "s"], "y"),
        ]
        model = graph(nodes, u=random(4, 8, 1, 1))
        assert "j" not in quantized_tensors(GraphIndex(model), "cpu")
        assert left(model, "cpu") == {"Mul": 2, "Sigmoid": 1, "Concat": 1}

    def test_nested_ones_share_one_range(self, graph):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("Conv", ["x", "v"], "b"),
            node("Concat", ["a", "b"], "j", axis=1),
            node("Conv", ["x", "w"], "c"),
            node("Concat", ["j", "c"], "k", axis=1),
            node("Conv", ["k", "u"], "y"),
        ]
        sources = range_sources(GraphIndex(graph(nodes, u=random(4, 12, 1, 1))), "cpu")
        assert {sources[name] for name in "abcjk"} == {"k"}


class TestMoving:
    @pytest.mark.parametrize(
        ("op", "shape", "attributes", "extra"),
        [
            ("MaxPool", (2, 4, 6, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, []),
            ("DepthToSpace", (2, 1, 12, 12), {"blocksize": 2}, []),
            (
                "Resize",
                (2, 4, 12, 12),
                {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"},
                ["", "two"],
            ),
            ("Slice", (2, 2, 6, 6), {}, ["one", "three", "one"]),
        ],
    )
    @pytest.mark.parametrize("activation", ["Relu", "Mish"])
    def test_integers_are_moved_not_rounded_again(self, graph, ort_run, op, shape, attributes, extra, activation):
        """Behind a float activation too: it is rounded before it is moved, not after."""
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node(activation, ["a"], "r"),
            node(op, ["r", *extra], "m", **attributes),
            node("Conv", ["m", "u"], "y"),
        ]
        model = graph(
            nodes,
            output=(shape[0], 4, *shape[2:]),
            u=random(4, shape[1], 1, 1),
            two=np.float32([1, 1, 2, 2]),
            one=np.int64([1]),
            three=np.int64([3]),
        )
        x = random(*SHAPE, seed=3)
        quantized, found = params(model, minmax(model, x, ort_run))
        assert found["r"] == found["m"]
        assert set(left(model, "cpu")) == {activation} - {"Relu"}
        session = open_session(quantized.SerializeToString(), "onnxruntime", 1)
        fused, said = session.run(x)["y"], ort_run(quantized, {"x": x}, optimize=False)["y"]
        assert np.linalg.norm(fused - said) <= 0.01 * np.linalg.norm(said)

    def test_parts_of_a_float_tensor_have_ranges_of_their_own(self, graph):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("Split", ["a"], ["p", "q"], axis=1, num_outputs=2),
            node("Conv", ["p", "u"], "c"),
            node("Conv", ["q", "u"], "d"),
            node("Concat", ["c", "d"], "y", axis=1),
        ]
        index = GraphIndex(graph(nodes, u=random(2, 2, 1, 1)))
        assert range_sources(index, "trt") == {"x": "x", "p": "p", "q": "q"}
        cpu = range_sources(index, "cpu")
        assert cpu["a"] == cpu["p"] == cpu["q"] == "a"

    def test_interpolation_stays_float_and_is_rounded_once(self, graph, ort_run):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("Resize", ["a", "", "two"], "r", mode="linear"),
            node("Conv", ["r", "w"], "y"),
        ]
        model = graph(nodes, output=(2, 4, 12, 12), two=np.float32([1, 1, 2, 2]))
        x = random(*SHAPE, seed=3)
        assert left(model, "cpu") == {"Resize": 1}
        quantized, _ = params(model, minmax(model, x, ort_run))
        fused = open_session(quantized.SerializeToString(), "onnxruntime", 1).run(x)["y"]
        np.testing.assert_allclose(fused, ort_run(quantized, {"x": x}, optimize=False)["y"], atol=0.05)


class TestAdds:
    def test_what_is_spread_over_another_stays_float(self, graph):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("GlobalAveragePool", ["a"], "g"),
            node("Add", ["a", "g"], "y"),
        ]
        assert left(graph(nodes), "cpu") == {"Add": 1}
        assert left(graph(nodes), "trt") == {"Add": 1, "GlobalAveragePool": 1}

    def test_squeeze_and_excitation_scales_in_float(self, graph):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("GlobalAveragePool", ["a"], "g"),
            node("Conv", ["g", "v"], "e"),
            node("Sigmoid", ["e"], "s"),
            node("Mul", ["a", "s"], "m"),
            node("Add", ["m", "x"], "y"),
        ]
        model = graph(nodes)
        assert quantized_tensors(GraphIndex(model), "trt") == ["x", "g", "m"]
        assert quantized_tensors(GraphIndex(model), "cpu") == ["x", "a", "g", "e", "m"]
        assert left(model, "cpu") == {"Sigmoid": 1, "Mul": 1}


class TestLayers:
    def test_a_pool_of_floats_stays_float(self, graph):
        nodes = [
            node("Conv", ["x", "w"], "a"),
            node("Mish", ["a"], "s"),
            node("GlobalAveragePool", ["s"], "g"),
            node("Mul", ["s", "g"], "y"),
        ]
        model = graph(nodes)
        assert quantized_tensors(GraphIndex(model), "cpu") == ["x", "a"]
        assert left(model, "cpu") == {"Mish": 1, "GlobalAveragePool": 1, "Mul": 1}

    @pytest.mark.parametrize("scheme", ["cpu", "trt"])
    def test_a_transposed_convolution_in_groups_stays_float(self, graph, scheme):
        model = graph([node("ConvTranspose", ["x", "t"], "y", group=2)], t=random(4, 2, 1, 1))
        assert quantized_tensors(GraphIndex(model), scheme) == []
        assert left(model, scheme) == {"ConvTranspose": 1}

    @pytest.mark.parametrize("scheme", ["cpu", "trt"])
    def test_attention_stays_float_between_its_layers(self, graph, scheme):
        nodes = [
            node("Conv", ["x", "w"], "q"),
            node("Conv", ["x", "v"], "k"),
            node("MatMul", ["q", "k"], "s"),
            node("Softmax", ["s"], "p", axis=-1),
            node("MatMul", ["p", "q"], "y"),
        ]
        assert left(graph(nodes), scheme) == {"MatMul": 2, "Softmax": 1}

    def test_each_has_its_reason(self, graph):
        nodes = [node("Conv", ["x", "w"], "a"), node("Mish", ["a"], "m"), node("Trilu", ["m"], "y")]
        reasons = {o.operator: o.reason for o in operators_left_float(graph(nodes), "trt")}
        assert reasons == {
            "Mish": "not linear, integers would only approximate it",
            "Trilu": "no integer kernel has it",
        }


def test_a_range_of_zeros_can_be_joined(graph, ort_run):
    """A dead branch: its integers are zeros under any scale."""
    nodes = [node("Conv", ["x", "zero"], "a"), node("Conv", ["x", "w"], "b")]
    nodes += [node("Concat", ["a", "b"], "j", axis=1), node("Conv", ["j", "u"], "y")]
    model, x = graph(nodes, u=random(4, 8, 1, 1), zero=np.zeros((4, 4, 1, 1), np.float32)), random(*SHAPE)
    quantized, found = params(model, minmax(model, x, ort_run))
    assert found["a"] == found["b"] == found["j"]
    expected = activation_params(minmax(model, x, ort_run)["j"], "cpu")
    assert found["j"] == (float(expected.scale), int(expected.zero_point))
    assert np.isfinite(ort_run(quantized, {"x": x}, optimize=False)["y"]).all()
