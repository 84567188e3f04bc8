"""Segmentation on the frame, raw outputs of detectors, and networks that are not what their manifest says."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import runtime
from runtime import BundleError, Segmentation, cli
from runtime.bench import benchmark
from runtime.manifest import TASKS, Artefact, Manifest, Preprocessing, TensorSpec, Verification
from runtime.preprocess import padded_size

H, W, LABELS = 16, 24, ("dark", "red", "green", "blue")
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def colour_network(outputs=("logits",), batch="batch", stride=1):
    """Scores of 'dark' (a constant) and of each colour (its own plane); every output is the same tensor."""
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[1:, :, 0, 0] = np.eye(3)
    shape = [batch, 4, H // stride, W // stride]
    nodes = [helper.make_node("Conv", ["input", "w", "b"], ["scores"], strides=[stride, stride])]
    nodes += [helper.make_node("Identity", ["scores"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, H, W])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32([0.25, 0, 0, 0]), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def spec(*names, stride=1):
    return tuple(TensorSpec(name, "float32", ("batch", 4, H // stride, W // stride)) for name in names)


@pytest.fixture
def make_colours(tmp_path, make_bundle):
    def make(resize="squish", task="segmentation", names=("logits",), network=None, stride=1, **changes):
        values = {
            "task": task,
            "labels": LABELS,
            "inputs": (TensorSpec("input", "float32", ("batch", 3, H, W)),),
            "outputs": spec(*names, stride=stride),
            "preprocessing": Preprocessing((H, W), MEAN, STD, resize=resize, interpolation="nearest"),
        }
        folder = tmp_path / f"{task}-{resize}"
        return make_bundle(folder, {"fp32": network or colour_network(names, stride=stride)}, **(values | changes))

    return make


def quadrants(height, width):
    """An image of four rectangles, one for each label."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, width // 2 :, 0] = 255
    image[height // 2 :, : width // 2, 1] = 255
    image[height // 2 :, width // 2 :, 2] = 255
    return image


def truth(height, width):
    classes = np.zeros((height, width), np.uint8)
    classes[: height // 2, width // 2 :] = 1
    classes[height // 2 :, : width // 2] = 2
    classes[height // 2 :, width // 2 :] = 3
    return classes


class TestSegmentation:
    @pytest.mark.parametrize("opacity", [0, 0.25, 1])
    def test_drawing_lays_the_colours_over_the_image(self, make_colours, opacity):
        photograph = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        with runtime.load(make_colours(), backend="onnxruntime") as model:
            answer = model(quadrants(32, 48))
        drawn = np.asarray(answer.draw(Image.fromarray(photograph), opacity))
        colours = np.asarray(answer.image().convert("RGB"))
        np.testing.assert_allclose(drawn, (1 - opacity) * photograph + opacity * colours, atol=1)
        double = np.asarray(answer.draw(Image.new("RGB", (96, 64)), 1))
        np.testing.assert_array_equal(double, colours.repeat(2, 0).repeat(2, 1))

    def test_drawing_with_many_classes_and_a_wrong_opacity(self):
        many = Segmentation(np.int32([[0, 257]]), ("a",) * 300, (1, 2), Preprocessing((1, 2), MEAN, STD), True)
        assert np.asarray(many.draw(Image.new("RGB", (2, 1)), 1)).tolist() == [[[0, 0, 0], [128, 0, 0]]]
        with pytest.raises(ValueError, match="opacity is 2, expected 0 to 1"):
            many.draw(Image.new("RGB", (2, 1)), 2)

    @pytest.mark.parametrize("resize", ["squish", "pad"])
    @pytest.mark.parametrize("size", [(16, 24), (160, 240), (320, 240), (8, 120), (64, 6)])
    def test_classes_lie_where_they_lie_in_the_image(self, make_colours, cpu_backend, resize, size):
        with runtime.load(make_colours(resize), backend=cpu_backend) as model:
            answer = model(quadrants(*size))
        assert isinstance(answer, Segmentation)
        assert answer.class_map.dtype == np.uint8
        assert answer.class_map.shape == (H, W)
        found = answer.resized()
        assert found.shape == size
        # A pixel of the network spans some of the image, beside the borders of the rectangles.
        wrong = found != truth(*size)
        margin = np.ones(size, bool)
        for axis, (length, cells) in enumerate(zip(size, (H, W), strict=True)):
            reach = 1 + max(length / cells, size[0] / H, size[1] / W)
            near = np.abs(np.arange(length) + 0.5 - length / 2) <= reach
            margin &= ~(near[:, None] if axis == 0 else near[None, :])
        assert not (wrong & margin).any()

    def test_shares_add_up_and_leave_padding_out(self, make_colours):
        with runtime.load(make_colours("pad")) as model:
            regions = model(np.full((64, 8, 3), (255, 0, 0), np.uint8)).regions()
        assert [(r.label, r.index, r.share) for r in regions] == [("red", 1, 1.0)]

    def test_a_coarser_class_map_covers_the_whole_image(self, make_colours):
        with runtime.load(make_colours(stride=4)) as model:
            answer = model(quadrants(32, 48))
        assert answer.class_map.shape == (H // 4, W // 4)
        np.testing.assert_array_equal(answer.resized(), truth(32, 48))

    def test_regions_and_plain_values(self, make_colours):
        image = np.zeros((H, W, 3), np.uint8)
        image[:4, :, 2] = 255
        with runtime.load(make_colours()) as model:
            answer = model(image)
        assert [(r.label, r.share) for r in answer.regions()] == [("dark", 0.75), ("blue", 0.25)]
        assert answer.to_dict(1) == {"size": [H, W], "classes": [{"label": "dark", "index": 0, "share": 0.75}]}
        assert json.loads(json.dumps(answer.to_dict()))["classes"][1]["share"] == 0.25
        assert repr(answer) == "Segmentation(16×24, 'dark' on 75.0% of it)"
        with pytest.raises(ValueError, match="k is 0"):
            answer.regions(0)

    def test_the_picture_holds_the_classes(self, make_colours, tmp_path):
        with runtime.load(make_colours()) as model:
            answer = model(quadrants(32, 48))
        answer.image().save(tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), truth(32, 48))
            colours = [tuple(image.getpalette()[3 * i : 3 * i + 3]) for i in range(256)]
        assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]  # Pascal VOC's
        assert len(set(colours)) == 256

    def test_more_than_256_classes(self):
        labels = tuple(map(str, range(300)))
        class_map = np.arange(300, dtype=np.int32).reshape(15, 20)
        answer = Segmentation(class_map, labels, (15, 20), Preprocessing((15, 20), MEAN, STD))
        np.testing.assert_array_equal(np.asarray(answer.image()), class_map)
        assert len(answer.regions()) == 300

    @pytest.mark.parametrize(
        ("class_map", "labels"), [(np.zeros(4), ("a",)), (np.zeros((0, 4)), ("a",)), (np.zeros((2, 2)), ())]
    )
    def test_what_is_no_answer(self, class_map, labels):
        with pytest.raises(ValueError, match="are no answer"):
            Segmentation(class_map.astype(np.uint8), labels, (2, 2), Preprocessing((2, 2), MEAN, STD))

    def test_several_images_of_several_sizes(self, make_colours):
        sizes = [(16, 24), (40, 30), (5, 90)]
        with runtime.load(make_colours("pad")) as model:
            answers = model([quadrants(*size) for size in sizes] * 30)
        assert [a.frame_size for a in answers] == sizes * 30
        assert [a.resized().shape for a in answers[:3]] == sizes
        np.testing.assert_array_equal(answers[0].class_map, answers[3].class_map)

    def test_a_network_of_fixed_batch(self, make_colours):
        bundle = make_colours(
            network=colour_network(batch=4),
            inputs=(TensorSpec("input", "float32", (4, 3, H, W)),),
            outputs=(TensorSpec("logits", "float32", (4, 4, H, W)),),
        )
        with runtime.load(bundle) as model:
            answers = model([quadrants(H, W)] * 6)
            assert model.run([quadrants(H, W)] * 6)["logits"].shape == (6, 4, H, W)
        assert len(answers) == 6
        for answer in answers:
            np.testing.assert_array_equal(answer.class_map, truth(H, W))


@settings(max_examples=200, deadline=None)
@given(*[st.integers(1, 60)] * 4, st.integers(1, 3), st.booleans(), st.integers(0, 9))
def test_each_pixel_takes_the_class_under_its_centre(height, width, net_height, net_width, stride, squish, seed):
    cells = (max(1, net_height // stride), max(1, net_width // stride))
    class_map = np.random.default_rng(seed).integers(0, 9, cells, np.uint8)
    kind = Preprocessing((net_height, net_width), MEAN, STD, resize="squish" if squish else "pad")
    found = Segmentation(class_map, tuple("abcdefghi"), (height, width), kind).resized()
    inner = (net_height, net_width) if squish else padded_size(height, width, (net_height, net_width))
    offset = [0 if squish else (outer - part) // 2 for outer, part in zip((net_height, net_width), inner, strict=True)]
    sides = zip((height, width), inner, offset, (net_height, net_width), cells, strict=True)
    where = []
    for length, part, start, outer, count in sides:
        centres = [start * 2 * length + (2 * i + 1) * part for i in range(length)]  # in units of 1 / (2 · length)
        where.append([min(c * count // (2 * length * outer), count - 1) for c in centres])
    np.testing.assert_array_equal(found, class_map[np.ix_(*where)])


class TestDetection:
    def test_raw_heads_are_arrays_and_no_boxes(self, make_colours, cpu_backend):
        bundle = make_colours(task="detection", names=("head_0", "head_1"))
        with runtime.load(bundle, backend=cpu_backend) as model:
            outputs = model.run(quadrants(H, W))
            assert {name: array.shape for name, array in outputs.items()} == dict.fromkeys(
                ("head_0", "head_1"), (1, 4, H, W)
            )
            np.testing.assert_array_equal(outputs["head_0"][0].argmax(0), truth(H, W))
            with pytest.raises(BundleError, match=r"raw output of .* \('head_0', 'head_1'\), not boxes"):
                model(quadrants(H, W))

    def test_on_the_command_line_it_is_one_line(self, make_colours, tmp_path):
        Image.fromarray(quadrants(H, W)).save(tmp_path / "a.png")
        result = CliRunner().invoke(
            cli.run, [str(make_colours(task="detection", names=("head",))), str(tmp_path / "a.png")]
        )
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "not boxes" in result.stderr


class TestRun:
    def test_it_is_what_the_session_gives(self, bundle, picture):
        with runtime.load(bundle, "fp32") as model:
            outputs = model.run([picture, picture])
            np.testing.assert_array_equal(
                outputs["logits"], model.session.run(model.preprocess([picture] * 2))["logits"]
            )
            np.testing.assert_array_equal(model.run(picture)["logits"][0], model(picture).logits)
        with pytest.raises(runtime.BackendError, match="closed"):
            model.run(picture)

    def test_no_images_give_no_outputs(self, bundle):
        with runtime.load(bundle, "fp32") as model:
            assert model.run([]) == {}
            assert model([]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:3]}, "3 labels do not fit"),
        ({"labels": ()}, "0 labels do not fit"),
        ({"outputs": spec("scores")}, "says the outputs 'scores', the network has 'logits'"),
        ({"outputs": (TensorSpec("logits", "float32", ("batch", 4, H, W + 1)),)}, "says 'logits' of"),
        ({"outputs": (TensorSpec("logits", "float16", ("batch", 4, H, W)),)}, "says 'logits' of float16"),
        ({"outputs": spec("logits", "more")}, "segmentation has one output"),
        ({"outputs": (TensorSpec("logits", "float32", ("batch", 4)),)}, "4 labels do not fit a network that answers"),
        ({"task": "classification"}, r"4 labels do not fit .* classification has \(batch, classes\)"),
        ({"task": "detection", "labels": ()}, "a detector has one label at least"),
        ({"inputs": (TensorSpec("input", "float32", ("batch", 3, H, W)),) * 2}, "has one input"),
    ],
)
def test_a_manifest_of_another_network_is_refused(make_colours, changes, message):
    with pytest.raises(BundleError, match=message):
        runtime.load(make_colours(**changes))


class TestCommandLine:
    @pytest.fixture
    def pictures(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            Image.fromarray(quadrants(32, 48)).save(tmp_path / folder / "same.png")
        return tmp_path / "a", tmp_path / "b"

    def test_shares_of_every_class(self, make_colours, pictures):
        result = CliRunner().invoke(cli.run, [str(make_colours()), str(pictures[0])])
        assert result.exit_code == 0, result.stderr
        head, _, *rows = result.stdout.splitlines()
        assert head.split() == ["image", "label", "share"]
        assert [row.split()[-2:] for row in rows] == [[label, "0.2500"] for label in LABELS]

    def test_top_and_json(self, make_colours, pictures):
        result = CliRunner().invoke(cli.run, [str(make_colours()), str(pictures[0]), "--json", "--top", "2"])
        (answer,) = json.loads(result.stdout)
        assert answer["size"] == [32, 48]
        assert [c["label"] for c in answer["classes"]] == ["dark", "red"]

    def test_class_maps_are_saved_under_names_of_their_own(self, make_colours, pictures, tmp_path):
        out = tmp_path / "new" / "maps"
        result = CliRunner().invoke(cli.run, [str(make_colours()), *map(str, pictures), "--save", str(out), "--json"])
        assert [a["saved"] for a in json.loads(result.stdout)] == [str(out / "same.png"), str(out / "same-1.png")]
        with Image.open(out / "same-1.png") as image:
            np.testing.assert_array_equal(np.asarray(image), truth(32, 48))

    def test_a_classifier_has_nothing_to_save(self, bundle, pictures, tmp_path):
        result = CliRunner().invoke(cli.run, [str(bundle), str(pictures[0]), "--save", str(tmp_path / "maps")])
        assert result.exit_code == 2
        assert "--save writes class maps and boxes, which a bundle for classification does not give" in result.stderr
        assert not (tmp_path / "maps").exists()

    def test_a_folder_that_cannot_be_made(self, make_colours, pictures, tmp_path):
        (tmp_path / "file").write_text("")
        result = CliRunner().invoke(
            cli.run, [str(make_colours()), str(pictures[0]), "--save", str(tmp_path / "file" / "maps")]
        )
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("task", "names"), [("segmentation", ("logits",)), ("detection", ("head_0", "head_1"))])
def test_the_network_of_any_task_is_timed(make_colours, task, names):
    (row,) = benchmark(make_colours(task=task, names=names), backends=["onnxruntime"], iterations=2, warmup=0)
    assert row.iterations == 2
    assert row.p50_ms > 0


@pytest.mark.parametrize("task", TASKS)
def test_a_manifest_of_any_task_is_read_as_written(manifest_of, task):
    """An agreement of classes is nothing that raw heads have."""
    checked = Verification("pytorch", 4, 1e-6, 1.0, None if task == "detection" else 0.5)
    artefact = Artefact("model.onnx", "onnx", "fp32", 1, "0" * 64, verification=checked)
    manifest = manifest_of(task=task, artefacts=(artefact,))
    assert Manifest.from_json(manifest.to_json()) == manifest
    data = json.loads(manifest.to_json())
    del data["artefacts"][0]["verification"]["top1_agreement"]
    with pytest.raises(BundleError, match="lacks the key 'top1_agreement'"):
        Manifest.from_json(json.dumps(data))
