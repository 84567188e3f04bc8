"""What all detectors share: batches of images, ground truth, and the choice among candidate boxes."""

import pytest
import torch
from torch import nn

from holocron.models.detection.detector import Detector, batch_images, select_detections, validate_targets


class Fixed(Detector):
    """Gives the same candidates whatever it sees."""

    def __init__(self, boxes, scores, **kwargs):
        super().__init__(scores.shape[-1], **kwargs)
        self.boxes, self.scores = boxes, scores
        self.weight = nn.Parameter(torch.ones(()))

    def raw_outputs(self, x):
        return x.mean() * self.weight

    def decode(self, raw):
        return self.boxes, self.scores

    def compute_losses(self, raw, ground_truth):
        return {"loss": raw * len(ground_truth.boxes)}


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
BOX = [0.1, 0.2, 0.3, 0.4]


def test_batch_of_a_tensor_or_a_list():
    images = torch.rand(3, 2, 4, 5)
    assert batch_images(images, 2) is images
    assert batch_images(list(images), 2).equal(images)
    assert batch_images(tuple(images), 2).equal(images)


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        (torch.rand(3, 4, 4), ValueError, r"\(N, 3, H, W\), got \(3, 4, 4\)"),
        (torch.rand(2, 1, 4, 4), ValueError, "images of 3 channels, got 1"),
        (torch.rand(0, 3, 4, 4), ValueError, "at least one image"),
        ([], ValueError, "at least one image, got an empty list"),
        ([torch.rand(3, 4, 4), torch.rand(3, 4, 5)], ValueError, r"image 1 is of shape \(3, 4, 5\).*resize or pad"),
        ([torch.rand(1, 3, 4, 4)], ValueError, r"image 0 is of shape \(1, 3, 4, 4\)"),
        ([torch.rand(3, 4, 4), "cat.png"], TypeError, "image 1 is a str"),
        ("cat.png", TypeError, "image 0 is a str"),
        (None, TypeError, "got NoneType"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ValueError, "got torch.uint8: scale"),
    ],
)
def test_bad_images(images, error, match):
    with pytest.raises(error, match=match):
        batch_images(images, 3)


def test_ground_truth_is_one_table():
    truth = validate_targets([target([BOX, [0, 0, 1, 1]], [2, 0]), EMPTY, target([BOX], [1])], 3, 3)
    assert truth.boxes.equal(torch.tensor([BOX, [0, 0, 1, 1], BOX]))
    assert truth.labels.tolist() == [2, 0, 1]
    assert truth.image.tolist() == [0, 0, 2]
    assert truth.num_images == 3
    assert validate_targets([EMPTY], 1, 3).boxes.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_boxes_of_any_float_type(dtype):
    truth = validate_targets([{"boxes": torch.tensor([BOX], dtype=dtype), "labels": torch.tensor([0])}], 1, 1)
    assert truth.boxes.dtype == torch.float32


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (target([[0.1, 0.2, 1.5, 0.4]], [0]), r"box \[0.1, 0.2, 1.5, 0.4\] of image 1 is not within \[0, 1\]: divide"),
        (target([BOX, [-0.01, 0.2, 0.3, 0.4]], [0, 0]), r"box \[-0.01, .* of image 1 is not within"),
        (target([[0.1, float("nan"), 0.3, 0.4]], [0]), r"nan.* of image 1 .* finite"),
        (target([[0.1, 0.2, float("inf"), 0.4]], [0]), r"inf.* of image 1 .* finite"),
        (target([[0.3, 0.2, 0.3, 0.4]], [0]), r"box \[0.3, 0.2, 0.3, 0.4\] of image 1 has no extent"),
        (target([[0.1, 0.5, 0.3, 0.4]], [0]), "of image 1 has no extent"),
        (target([BOX], [3]), r"label 3 of image 1 is not in \[0, 3\)"),
        (target([BOX], [-1]), "label -1 of image 1"),
        (
            target([BOX], [0, 1]),
            r"labels of image 1 have to be int64 of shape \(1,\).* got torch.int64 of shape \(2,\)",
        ),
        ({"boxes": torch.tensor([BOX]), "labels": torch.tensor([0.0])}, "labels of image 1 .* got torch.float32"),
        ({"boxes": torch.tensor([BOX]), "labels": torch.tensor([0], dtype=torch.int32)}, "got torch.int32"),
        (
            {"boxes": torch.zeros(0), "labels": EMPTY["labels"]},
            r"boxes of image 1 .* shape \(0,\).*torch.zeros\(0, 4\)",
        ),
        ({"boxes": torch.zeros(1, 5), "labels": torch.tensor([0])}, r"boxes of image 1 .* \(1, 5\)"),
        (
            {"boxes": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.tensor([0])},
            "boxes of image 1 .* torch.int64",
        ),
        ({"boxes": torch.tensor([BOX])}, r"target of image 1 .* the keys \['boxes'\]"),
        ({"boxes": [BOX], "labels": [0]}, "dictionary of tensors"),
        (torch.tensor([BOX]), "target of image 1 .* a Tensor"),
    ],
)
def test_bad_targets(bad, match):
    with pytest.raises(ValueError, match=match):
        validate_targets([target([BOX], [0]), bad], 2, 3)


def test_one_target_an_image():
    with pytest.raises(ValueError, match="got 1 targets for 2 images"):
        validate_targets([EMPTY], 2, 3)


def test_threshold_and_extent():
    boxes = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6], [0.8, 0.8, 1.0, 1.0], [1.0, 0.2, 1.0, 0.4]]])
    scores = torch.tensor([[[0.1, 0.5], [0.49, 0.0], [0.9, 0.2], [0.99, 0.0]]])
    (kept,) = select_detections(boxes, scores, 0.5, 0.5)
    # At the threshold counts; a box clipped to nothing does not, however certain.
    assert kept["boxes"].equal(boxes[0, [2, 0]])
    assert kept["scores"].equal(torch.tensor([0.9, 0.5]))
    assert kept["labels"].equal(torch.tensor([0, 1]))


def test_suppression_is_per_class_and_per_image():
    # IoU of the first two: 0.08 / 0.12 = 2 / 3.
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.2], [0.1, 0.0, 0.6, 0.2], [0.0, 0.5, 0.5, 0.7]]).expand(2, 3, 4)
    scores = torch.tensor([[[0.6, 0], [0.8, 0], [0.7, 0]], [[0.6, 0], [0, 0.8], [0.7, 0]]])
    first, second = select_detections(boxes, scores, 0.1, 0.6)
    assert first["scores"].equal(torch.tensor([0.8, 0.7]))
    assert second["scores"].equal(torch.tensor([0.8, 0.7, 0.6]))
    assert second["labels"].tolist() == [1, 0, 0]
    for detections in select_detections(boxes, scores, 0.1, 0.7):
        assert len(detections["boxes"]) == 3


def test_nothing_passes():
    detections = select_detections(torch.rand(2, 5, 4), torch.zeros(2, 5, 3), 0.05, 0.5)
    assert len(detections) == 2
    for entry in detections:
        assert entry["boxes"].shape == (0, 4)
        assert entry["boxes"].dtype == entry["scores"].dtype == torch.float32
        assert entry["scores"].shape == entry["labels"].shape == (0,)
        assert entry["labels"].dtype == torch.int64


def test_losses_in_training_and_detections_in_evaluation():
    boxes, scores = torch.tensor([[BOX]]), torch.tensor([[[0.2, 0.6]]])
    model = Fixed(boxes, scores)
    images = torch.rand(1, 3, 4, 4)
    losses = model(images, [target([BOX, BOX], [0, 1])])
    assert losses["loss"].item() == pytest.approx(2 * images.mean().item())
    with pytest.raises(ValueError, match=r"needs target.*eval\(\)"):
        model(images)
    with pytest.raises(ValueError, match="label 2 of image 0"):
        model(images, [target([BOX], [2])])
    (detections,) = model.eval()(list(images))
    assert detections["labels"].tolist() == [1]
    assert detections["boxes"].equal(boxes[0])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"in_channels": 0}, "in_channels to be at least 1, got 0"),
        ({"rpn_nms_thresh": 1.1}, r"rpn_nms_thresh to be in \[0, 1\], got 1.1"),
        ({"box_score_thresh": -0.1}, "box_score_thresh .* got -0.1"),
        ({"box_score_thresh": float("nan")}, "box_score_thresh .* got nan"),
    ],
)
def test_bad_settings(kwargs, match):
    with pytest.raises(ValueError, match=match):
        Fixed(torch.rand(1, 1, 4), torch.rand(1, 1, 2), **kwargs)
    with pytest.raises(ValueError, match="num_classes to be at least 1, got 0"):
        Fixed(torch.rand(1, 1, 4), torch.rand(1, 1, 0))
