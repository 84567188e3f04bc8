"""Detections, and the other answers that a graph computes itself, from networks that are constants."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import runtime
from runtime import BackendError, BundleError, Classification, Detections, Segmentation, TopClasses, cli
from runtime.detections import boxes_in_frame
from runtime.manifest import Manifest, Preprocessing, TensorSpec
from runtime.nms import NOT_FINITE, TOO_MANY_CANDIDATES, TRUNCATED, UNSETTLED
from runtime.post_processing import PostProcessing

H, W, NAMES = 16, 24, ("ant", "bee", "cow")
KINDS = {np.float32: TensorProto.FLOAT, np.int32: TensorProto.INT32, np.uint8: TensorProto.UINT8}
DETECTIONS = PostProcessing("detections", "network", 0.25, 0.5, 3, 10, 8)


def constant_network(outputs):
    """A network that gives the same for every image, whatever it shows."""
    nodes, constants, values = [helper.make_node("Shape", ["input"], ["n"], start=0, end=1)], {}, []
    for name, array in outputs.items():
        array = np.asarray(array)
        constants |= {f"{name}_value": array[None], f"{name}_rest": np.array(array.shape, np.int64)}
        nodes += [
            helper.make_node("Concat", ["n", f"{name}_rest"], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [name]),
        ]
        values.append(helper.make_tensor_value_info(name, KINDS[array.dtype.type], ["batch", *array.shape]))
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, H, W])],
        values,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def found(boxes, scores, labels, status=0, count=None):
    """Outputs of three rows."""
    missing = 3 - len(boxes)
    return {
        "boxes": np.concatenate([np.float32(boxes).reshape(-1, 4), np.zeros((missing, 4), np.float32)]),
        "scores": np.float32([*scores, *[0] * missing]),
        "labels": np.int32([*labels, *[-1] * missing]),
        "count": np.int32(len(boxes) if count is None else count),
        "status": np.int32(status),
    }


TWO = found([(0, 0, 12, 8), (6, 4, 24, 16)], [0.75, 0.5], [1, 0])


@pytest.fixture
def make(tmp_path, make_bundle):
    def make(outputs, post, task="detection", resize="squish", **changes):
        values = {
            "task": task,
            "labels": NAMES,
            "inputs": (TensorSpec("input", "float32", ("batch", 3, H, W)),),
            "outputs": tuple(
                TensorSpec(name, np.asarray(a).dtype.name, ("batch", *np.shape(a))) for name, a in outputs.items()
            ),
            "preprocessing": Preprocessing((H, W), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize=resize),
            "post_processing": post,
        }
        return make_bundle(tmp_path / "bundle", {"fp32": constant_network(outputs)}, **(values | changes))

    return make


def picture(height, width):
    return np.zeros((height, width, 3), np.uint8)


class TestDetections:
    def test_boxes_are_in_pixels_of_the_image(self, make, cpu_backend):
        with runtime.load(make(TWO, DETECTIONS), backend=cpu_backend) as model:
            wide, same = model([picture(32, 96), picture(H, W)])
        assert isinstance(wide, Detections)
        np.testing.assert_allclose(wide.boxes, [(0, 0, 48, 16), (24, 8, 96, 32)], rtol=1e-6)
        np.testing.assert_allclose(same.boxes, [(0, 0, 12, 8), (6, 4, 24, 16)])
        assert wide.labels.tolist() == [1, 0]
        assert wide.scores.tolist() == [0.75, 0.5]
        assert wide.names == NAMES

    def test_padding_is_undone_and_what_lies_in_it_left_out(self, make):
        outputs = found([(0, 0, 6, 16), (10, 0, 30, 8), (0, 2, 3, 9)], [0.9, 0.8, 0.7], [2, 1, 0])
        # 32 × 32 becomes 16 × 16 in the middle of 16 × 24: columns 4 to 20.
        with runtime.load(make(outputs, DETECTIONS, resize="pad")) as model:
            answer = model(picture(32, 32))
        np.testing.assert_allclose(answer.boxes, [(0, 0, 4, 32), (12, 0, 32, 16)])
        assert answer.labels.tolist() == [2, 1]

    def test_boxes_of_a_frame_stay(self, make):
        post = PostProcessing("detections", "frame", 0.25, 0.5, 3, 10, 8)
        with runtime.load(make(TWO, post, resize="pad")) as model:
            np.testing.assert_array_equal(model(picture(32, 32)).boxes, TWO["boxes"][:2])

    def test_objects_and_plain_values(self, make):
        with runtime.load(make(TWO, DETECTIONS)) as model:
            answer = model(picture(H, W))
        assert len(answer) == 2
        first, second = answer
        assert (first.label, first.index, first.score, first.box) == ("bee", 1, 0.75, (0, 0, 12, 8))
        assert second.label == "ant"
        assert [d.label for d in answer.top(1)] == ["bee"]
        assert json.loads(json.dumps(answer.to_dict(1))) == {
            "size": [H, W],
            "status": 0,
            "detections": [{"label": "bee", "index": 1, "score": 0.75, "box": [0, 0, 12, 8]}],
        }
        assert len(answer.to_dict()["detections"]) == 2
        assert repr(answer) == "Detections(2 objects, first 'bee' with score 0.7500)"
        with pytest.raises(ValueError, match="k is 0"):
            answer.top(0)

    def test_nothing_found(self, make):
        with runtime.load(make(found([], [], []), DETECTIONS)) as model:
            answer = model(picture(5, 7))
        assert list(answer) == []
        assert answer.boxes.shape == (0, 4)
        assert repr(answer) == "Detections(0 objects)"
        drawn = answer.draw(Image.new("RGB", (7, 5)))
        assert not np.asarray(drawn).any()

    @pytest.mark.parametrize(
        ("status", "words"),
        [(UNSETTLED, "--nms-steps"), (TRUNCATED, "--max-detections"), (TOO_MANY_CANDIDATES, "--candidates")],
    )
    def test_says_what_is_not_as_it_should_be(self, make, status, words):
        with runtime.load(make(TWO | {"status": np.int32(status)}, DETECTIONS)) as model:
            answer = model(picture(H, W))
        assert answer.status == answer.to_dict()["status"] == status
        (remark,) = answer.remarks
        assert words in remark

    def test_drawing_leaves_the_image_alone(self, make):
        with runtime.load(make(TWO, DETECTIONS)) as model:
            answer = model(picture(160, 240))
        image = Image.new("RGB", (240, 160), (255, 255, 255))
        drawn = answer.draw(image)
        assert drawn.size == image.size
        assert (np.asarray(image) == 255).all()
        pixels = np.asarray(drawn)
        changed = (pixels != 255).any(-1)
        assert changed[0, :120].all()  # the upper edge of the first box, on the border of the image
        assert changed[40:159, 60].all()
        assert not changed[20:35, 130:].any()
        larger = answer.draw(image.resize((480, 320)))
        assert (np.asarray(larger)[:8, :16] != 255).any()
        assert answer.draw(Image.new("L", (24, 16))).mode == "RGB"

    def test_any_label_can_be_drawn(self):
        answer = Detections(np.float32([(0, 0, 5, 5)]), np.float32([1]), np.int32([0]), ("Straßenbahn 電車",), (10, 10))
        answer.draw(Image.new("RGB", (100, 100)))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"status": np.int32(NOT_FINITE)}, BackendError, "NaN or infinite"),
            ({"scores": np.float32([np.nan, 0, 0])}, BackendError, "NaN or infinite"),
            ({"count": np.int32(4)}, BundleError, "says 4 boxes of 3"),
            ({"count": np.int32(-1)}, BundleError, "says -1 boxes"),
            ({"labels": np.int32([1, 3, -1])}, BundleError, "answered the class 3 of 3"),
            ({"labels": np.int32([-1, 0, -1])}, BundleError, "answered the class 0 of 3"),
        ],
    )
    def test_answers_that_mean_nothing(self, make, change, error, message):
        with runtime.load(make(TWO | change, DETECTIONS)) as model, pytest.raises(error, match=message):
            model(picture(H, W))

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ((np.zeros((2, 4)), np.zeros(1), np.zeros(2, int)), "do not fit"),
            ((np.zeros((2, 3)), np.zeros(2), np.zeros(2, int)), "do not fit"),
            ((np.zeros((1, 4)), np.zeros(1), np.array([3])), "do not fit 3 names"),
            ((np.zeros((1, 4)), np.zeros(1), np.array([-1])), "do not fit 3 names"),
        ],
    )
    def test_arrays_that_do_not_fit(self, arrays, message):
        with pytest.raises(ValueError, match=message):
            Detections(*arrays, NAMES, (H, W))

    def test_there_and_back(self):
        """A box of an image, put into the network's pixels as preprocessing puts the image, comes back."""
        for resize in ("squish", "pad"):
            preprocessing = Preprocessing((224, 192), (0.0,) * 3, (1.0,) * 3, resize=resize)
            for height, width in ((100, 300), (300, 100), (224, 192), (1, 999)):
                top, left, nh, nw = runtime.preprocess.padded_box(height, width, preprocessing)
                box = np.array([0.2 * width, 0.1 * height, 0.9 * width, 0.7 * height])
                moved = np.float32(box * np.tile((nw / width, nh / height), 2) + np.tile((left, top), 2))[None]
                np.testing.assert_allclose(boxes_in_frame(moved, (height, width), preprocessing)[0], box, rtol=1e-3)


class TestOthers:
    def test_class_map(self, make, cpu_backend):
        class_map = np.zeros((H, W), np.uint8)
        class_map[:, 12:] = 2
        outputs = {"class_map": class_map, "status": np.int32(0)}
        with runtime.load(make(outputs, PostProcessing("class_map"), "segmentation"), backend=cpu_backend) as model:
            answer = model(picture(32, 48))
        assert isinstance(answer, Segmentation)
        assert answer.resized().shape == (32, 48)
        assert [(r.label, r.share) for r in answer.regions()] == [("ant", 0.5), ("cow", 0.5)]
        assert answer.probabilities is None

    def test_class_map_of_the_frame(self, make):
        outputs = {"class_map": np.full((9, 7), 1, np.uint8), "status": np.int32(0)}
        with runtime.load(make(outputs, PostProcessing("class_map", "frame"), "segmentation")) as model:
            np.testing.assert_array_equal(model(picture(9, 7)).resized(), outputs["class_map"])

    def test_probabilities_of_pixels(self, make):
        probabilities = np.full((3, 4, 6), 0.25, np.float32)
        probabilities[2] = 0.5
        with runtime.load(
            make({"probabilities": probabilities}, PostProcessing("probabilities"), "segmentation")
        ) as model:
            answer = model(picture(H, W))
        np.testing.assert_array_equal(answer.probabilities, probabilities)
        assert (answer.class_map == 2).all()

    def test_probabilities(self, make):
        outputs = {"probabilities": np.float32([0.25, 0.0, 0.75])}
        with runtime.load(make(outputs, PostProcessing("probabilities"), "classification")) as model:
            answer = model(picture(H, W))
        assert isinstance(answer, Classification)
        np.testing.assert_allclose(answer.probabilities(), [0.25, 0, 0.75], atol=1e-7)
        assert (answer.label, [p.index for p in answer.top()]) == ("cow", [2, 0, 1])

    def test_top_classes(self, make):
        outputs = {"scores": np.float32([0.75, 0.125]), "labels": np.int32([2, 0]), "status": np.int32(0)}
        with runtime.load(make(outputs, PostProcessing("top_classes", top_k=2), "classification")) as model:
            answer = model(picture(H, W))
        assert isinstance(answer, TopClasses)
        assert (answer.label, answer.index, answer.score) == ("cow", 2, 0.75)
        assert [p.label for p in answer.top()] == ["cow", "ant"]
        assert answer.to_dict(1) == {
            "label": "cow",
            "index": 2,
            "score": 0.75,
            "top": [{"label": "cow", "index": 2, "score": 0.75}],
        }
        assert repr(answer) == "TopClasses('cow', score=0.7500, 1 other classes)"
        with pytest.raises(ValueError, match="k is 0"):
            answer.top(0)
        with pytest.raises(ValueError, match="there is no class"):
            TopClasses(())


class TestManifest:
    def test_comes_back_from_json(self, make):
        manifest = runtime.manifest.read_manifest(make(TWO, DETECTIONS))
        assert manifest.post_processing == DETECTIONS
        assert Manifest.from_json(manifest.to_json()) == manifest

    def test_a_network_without_it_has_no_such_key(self, manifest_of):
        assert "post_processing" not in json.loads(manifest_of().to_json())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kind": "boxes"}, r"post_processing\.kind is 'boxes', expected one of detections, class_map"),
            ({"coordinates": "screen"}, r"coordinates is 'screen', expected one of network, frame"),
            ({"score_threshold": None}, r"score_threshold is missing"),
            ({"score_threshold": "high"}, "score_threshold is 'high', expected a finite number"),
            ({"steps": 0}, "steps is 0, expected an integer from 1"),
            ({"top_k": 3}, "top_k is given, which detections does not have"),
            ({"with_probabilities": 1}, "with_probabilities is 1, expected true or false"),
            ({"colour": "red"}, "has the unknown key 'colour'"),
        ],
    )
    def test_entries_that_mean_nothing(self, make, edit_manifest, change, message):
        bundle = make(TWO, DETECTIONS)
        edit_manifest(bundle, lambda data: data["post_processing"].update(change))
        with pytest.raises(BundleError, match=message):
            runtime.load(bundle)

    @pytest.mark.parametrize(
        ("outputs", "post", "task", "message"),
        [
            (TWO, DETECTIONS, "classification", "classification has no detections"),
            (
                TWO,
                PostProcessing("class_map"),
                "segmentation",
                r"class_map are the outputs class_map \(uint8\), status",
            ),
            (TWO, PostProcessing("detections", "network", 0.2, 0.5, 4, 9, 8), "detection", "not of the shapes boxes"),
            (
                {"probabilities": np.zeros(4, np.float32)},
                PostProcessing("probabilities"),
                "classification",
                "for 3 classes are not of the shapes",
            ),
        ],
    )
    def test_networks_that_do_something_else(self, make, outputs, post, task, message):
        with pytest.raises(BundleError, match=message):
            runtime.load(make(outputs, post, task))


class TestCommand:
    @pytest.fixture
    def pictures(self, tmp_path):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name in ("a", "b"):
            Image.fromarray(picture(32, 48)).save(folder / f"{name}.png")
        return folder

    def test_lists_every_object(self, make, pictures):
        result = CliRunner().invoke(cli.run, [str(make(TWO, DETECTIONS)), str(pictures)])
        assert result.exit_code == 0
        head, _, *lines = (line.split() for line in result.stdout.splitlines())
        assert head == ["image", "label", "score", "box"]
        assert [line[-6:] for line in lines] == [
            ["bee", "0.7500", "0.0", "0.0", "24.0", "16.0"],
            ["ant", "0.5000", "12.0", "8.0", "48.0", "32.0"],
        ] * 2

    def test_saves_boxes_and_prints_json(self, make, pictures, tmp_path):
        arguments = [str(make(TWO, DETECTIONS)), str(pictures), "--save", str(tmp_path / "out"), "--json", "--top", "1"]
        result = CliRunner().invoke(cli.run, arguments)
        assert result.exit_code == 0
        first, _second = json.loads(result.stdout)
        assert first["detections"] == [{"label": "bee", "index": 1, "score": 0.75, "box": [0, 0, 24, 16]}]
        with Image.open(first["saved"]) as image:
            assert image.size == (48, 32)
            assert np.asarray(image).any()
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]

    def test_warns_of_what_is_not_settled(self, make, pictures):
        bundle = make(TWO | {"status": np.int32(UNSETTLED)}, DETECTIONS)
        result = CliRunner().invoke(cli.run, [str(bundle), str(pictures / "a.png")])
        assert result.exit_code == 0
        assert result.stderr.startswith("warning: ")
        assert "--nms-steps" in result.stderr
