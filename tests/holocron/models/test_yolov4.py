"""YOLOv4: what its head means, which prior answers for which object, what is lost, and whether it learns."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou
from torchvision.ops.misc import FrozenBatchNorm2d

from holocron import models
from holocron.models import YOLOv4, get_model_info, yolov4
from holocron.models.classification.darknetv4 import CSPDarknet53_Mish_Checkpoint, DarknetV4
from holocron.models.detection.backbone import load_backbone
from holocron.models.detection.detector import validate_targets
from holocron.models.detection.yolov4 import assign_anchors
from holocron.models.download import sha256_of
from holocron.models.errors import CheckpointMismatchError, DownloadError
from holocron.nn import DropBlock2d

K = 3
LAYOUT = [(4, 1), (8, 1), (8, 2)]
# Strides of 2, 4 and 8 pixels.
SIZE = (16, 24)
GRIDS = [(8, 12), (4, 6), (2, 3)]
PRIORS = (
    torch.tensor(
        [[[12, 16], [19, 36], [40, 28]], [[36, 75], [76, 55], [72, 146]], [[142, 110], [192, 243], [459, 401]]]
    )
    / 608
)
NUM_PREDICTIONS = 3 * sum(height * width for height, width in GRIDS)
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def identity(p):
    return nn.Identity()


def small(**kwargs):
    return YOLOv4(LAYOUT, **{"num_classes": K, "stem_channels": 4, **kwargs})


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def around(x, y, w, h):
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def random_maps(num_images, scale=1.0):
    return tuple(scale * torch.randn(num_images, 3 * (5 + K), height, width) for height, width in GRIDS)


def number(image, scale, prior, row, column):
    """Number of a prediction among those of all images."""
    before = sum(3 * height * width for height, width in GRIDS[:scale])
    height, width = GRIDS[scale]
    return image * NUM_PREDICTIONS + before + (prior * height + row) * width + column


# Reference: one number at a time, in float64.


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def cross_entropy(logit, expected):
    probability = sigmoid(logit)
    return -math.log(probability if expected else 1 - probability)


def reference_predictions(maps, image):
    """(box, objectness logit, class logits) of each prediction for an image."""
    for raw, priors, stretch in zip(maps, PRIORS.tolist(), (1.2, 1.1, 1.05), strict=True):
        height, width = raw.shape[2:]
        for prior, (prior_width, prior_height) in enumerate(priors):
            for row in range(height):
                for column in range(width):
                    x, y, w, h, objectness, *classes = raw[image, prior * (5 + K) :, row, column].tolist()[: 5 + K]
                    box = around(
                        (column + stretch * sigmoid(x) - (stretch - 1) / 2) / width,
                        (row + stretch * sigmoid(y) - (stretch - 1) / 2) / height,
                        prior_width * math.exp(w),
                        prior_height * math.exp(h),
                    )
                    yield box, objectness, classes


def reference_iou(box1, box2):
    width = min(box1[2], box2[2]) - max(box1[0], box2[0])
    height = min(box1[3], box2[3]) - max(box1[1], box2[1])
    intersection = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (box1, box2)]
    return intersection / (sum(areas) - intersection)


def reference_ciou_loss(box1, box2):
    iou = reference_iou(box1, box2)
    distance = sum(((box1[i] + box1[i + 2]) / 2 - (box2[i] + box2[i + 2]) / 2) ** 2 for i in (0, 1))
    diagonal = sum((max(box1[i + 2], box2[i + 2]) - min(box1[i], box2[i])) ** 2 for i in (0, 1))
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (box1, box2)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return 1 - iou + distance / diagonal + (v**2 / (1 - iou + v) if v else 0)


def reference_assignment(objects):
    """Number of the prediction of each of the (image, box)."""
    answer, taken = [None] * len(objects), set()
    while any(slot is None for slot in answer):
        wishes = {}
        for index, (image, box) in enumerate(objects):
            if answer[index] is not None:
                continue
            options = []
            for scale, (height, width) in enumerate(GRIDS):
                column, row = (int((box[i] + box[i + 2]) / 2 * (width, height)[i]) for i in (0, 1))
                for prior, sides in enumerate(PRIORS[scale].tolist()):
                    slot = number(image, scale, prior, row, column)
                    shape = [0, 0, box[2] - box[0], box[3] - box[1]]
                    if slot not in taken:
                        options.append((-reference_iou(shape, [0, 0, *sides]), scale * 3 + prior, slot))
            if options:
                value, _, slot = min(options)
                wishes.setdefault(slot, []).append((value, index))
            else:
                answer[index] = -1
        for slot, candidates in wishes.items():
            answer[min(candidates)[1]] = slot
            taken.add(slot)
    return answer


def reference_losses(maps, targets):
    losses = dict.fromkeys(["bbox_loss", "obj_loss", "noobj_loss", "clf_loss"], 0.0)
    objects = [(image, box) for image, entry in enumerate(targets) for box in entry["boxes"].tolist()]
    labels = [label for entry in targets for label in entry["labels"].tolist()]
    assigned = reference_assignment(objects)
    for image, entry in enumerate(targets):
        for slot, (box, objectness, classes) in enumerate(reference_predictions(maps, image)):
            slot += image * NUM_PREDICTIONS
            if slot in assigned:
                index = assigned.index(slot)
                losses["bbox_loss"] += reference_ciou_loss(box, objects[index][1])
                losses["obj_loss"] += cross_entropy(objectness, True)
                losses["clf_loss"] += sum(
                    cross_entropy(logit, label == labels[index]) for label, logit in enumerate(classes)
                )
            elif all(reference_iou(box, other) <= 0.7 for other in entry["boxes"].tolist()):
                losses["noobj_loss"] += cross_entropy(objectness, False)
    return {name: value / len(targets) for name, value in losses.items()}


def test_decoding_equals_the_reference():
    maps = random_maps(2)
    boxes, scores = small().decode(maps)
    for image in range(2):
        predictions = list(reference_predictions(maps, image))
        assert len(predictions) == NUM_PREDICTIONS == boxes.shape[1]
        expected = torch.tensor([box for box, _, _ in predictions]).clamp(0, 1)
        torch.testing.assert_close(boxes[image], expected, rtol=1e-5, atol=1e-6)
        expected = torch.tensor([[sigmoid(o) * sigmoid(c) for c in classes] for _, o, classes in predictions])
        torch.testing.assert_close(scores[image], expected, rtol=1e-5, atol=1e-6)


def test_zeros_are_the_priors_in_the_middle_of_their_cells():
    boxes, scores = small().decode(tuple(torch.zeros_like(raw) for raw in random_maps(1)))
    for scale, prior, row, column in ((0, 0, 3, 4), (1, 2, 1, 2), (2, 1, 1, 0)):
        height, width = GRIDS[scale]
        expected = torch.tensor(around((column + 0.5) / width, (row + 0.5) / height, *PRIORS[scale, prior].tolist()))
        torch.testing.assert_close(boxes[0, number(0, scale, prior, row, column)], expected.clamp(0, 1))
    assert scores.unique().tolist() == [0.25]


def test_centers_reach_the_border_of_their_cell():
    maps = random_maps(1)
    maps[2][:, :2] = 4.0
    boxes = small().head.interpret(maps).boxes[0]
    box = boxes[number(0, 2, 0, 0, 1)]
    assert float(box[0] + box[2]) / 2 > 2 / 3
    assert float(box[1] + box[3]) / 2 > 1 / 2


@pytest.mark.parametrize("scale", range(3))
@pytest.mark.parametrize("prior", range(3))
def test_an_object_of_the_shape_of_a_prior_is_its_own(scale, prior):
    width, height = (PRIORS[scale, prior] * 1.05).tolist()
    boxes = torch.tensor([around(0.41, 0.58, width, height), around(0.55, 0.45, width, height)])
    slot = assign_anchors(boxes, torch.tensor([0, 1]), 2, PRIORS, GRIDS)
    rows, columns = GRIDS[scale]
    cells = [(int(0.58 * rows), int(0.41 * columns)), (int(0.45 * rows), int(0.55 * columns))]
    assert slot.tolist() == [number(image, scale, prior, *cell) for image, cell in enumerate(cells)]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # Smaller than any prior, and larger.
        (around(0.9999, 0.9999, 1e-4, 1e-4), (0, 0, 7, 11)),
        ([0, 0, 1, 1], (2, 2, 1, 1)),
        # A center on the line between cells is in the later one, one that rounds to the border in the last.
        (around(0.5, 0.5, 12 / 608, 16 / 608), (0, 0, 4, 6)),
        ([1 - 2**-24, 1 - 2**-24, 1, 1], (0, 0, 7, 11)),
        # Wide or tall.
        (around(0.1, 0.3, 0.15, 0.08), (1, 1, 1, 0)),
        (around(0.1, 0.3, 0.1, 0.3), (1, 2, 1, 0)),
    ],
)
def test_the_cell_and_the_prior_of_an_object(box, expected):
    slot = assign_anchors(torch.tensor([box], dtype=torch.float32), torch.tensor([0]), 1, PRIORS, GRIDS)
    assert slot.tolist() == [number(0, *expected)]


def test_no_prediction_answers_for_two_objects():
    width, height = PRIORS[1, 1].tolist()
    fitting, wider = around(0.4, 0.4, width, height), around(0.4, 0.4, 1.2 * width, height)
    boxes = torch.tensor([wider, fitting, fitting])
    slot = assign_anchors(boxes, torch.tensor([0, 0, 1]), 2, PRIORS, GRIDS)
    # The better fit has it, though it comes later; another image is no competition.
    assert slot[1:].tolist() == [number(0, 1, 1, 1, 2), number(1, 1, 1, 1, 2)]
    assert slot.tolist() == reference_assignment([(0, wider), (0, fitting), (1, fitting)])
    assert len(set(slot.tolist())) == 3


def test_a_crowd_has_as_many_answers_as_there_are_priors():
    box = around(0.4, 0.4, 0.1, 0.1)
    slot = assign_anchors(torch.tensor([box] * 11), torch.zeros(11, dtype=torch.int64), 1, PRIORS, GRIDS).tolist()
    cells = [(3, 4), (1, 2), (0, 1)]
    assert sorted(slot[:9]) == sorted(
        number(0, scale, prior, *cells[scale]) for scale in range(3) for prior in range(3)
    )
    assert slot[9:] == [-1, -1]
    losses = small().compute_losses(random_maps(1), validate_targets([target([box] * 11, [0] * 11)], 1, K))
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_the_reference(seed):
    torch.manual_seed(seed)
    sides = 0.02 + 0.5 * torch.rand(40, 2) ** 3
    # In a few places, for there to be competition.
    center = 0.3 + 0.15 * torch.randint(3, (40, 2))
    boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    image = torch.randint(2, (40,)).sort().values
    slot = assign_anchors(boxes, image, 2, PRIORS, GRIDS)
    assert slot.tolist() == reference_assignment(list(zip(image.tolist(), boxes.double().tolist(), strict=True)))


@pytest.mark.parametrize(
    "targets",
    [
        [target([around(0.4, 0.4, 0.2, 0.3)], [1])],
        [EMPTY, target([around(0.4, 0.4, 0.2, 0.3), around(0.7, 0.2, 0.05, 0.04), [0, 0, 1, 1]], [1, 0, 2])],
        [target([around(0.4, 0.4, 0.1, 0.1)] * 2, [0, 2]), target([around(0.41, 0.4, 0.1, 0.1)], [2])],
        [EMPTY, EMPTY],
    ],
    ids=["one", "several", "crowd", "none"],
)
def test_losses_equal_the_reference(targets):
    maps = random_maps(len(targets))
    losses = small().compute_losses(maps, validate_targets(targets, len(targets), K))
    expected = reference_losses(maps, targets)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_predictions_near_an_object_are_not_called_wrong():
    maps = tuple(torch.zeros_like(raw) for raw in random_maps(2))
    # The prior of the finest grid, scaled to the object that one of the coarsest answers for.
    sides = PRIORS[2, 0]
    maps[0][:, 2:4, 3, 4] = (sides / PRIORS[0, 0]).log()
    object_at = around(4.5 / 12, 3.5 / 8, *(sides * 1.05).tolist())
    targets = [target([object_at], [0]), EMPTY]
    near = box_iou(small().head.interpret(maps).boxes[0], torch.tensor([object_at]))[:, 0] > 0.7
    assert near[number(0, 0, 0, 3, 4)]
    answers = int(assign_anchors(torch.tensor([object_at]), torch.tensor([0]), 1, PRIORS, GRIDS))
    assert answers >= number(0, 2, 0, 0, 0)
    others = 2 * NUM_PREDICTIONS - int(near.sum()) - int(not near[answers])
    losses = small().compute_losses(maps, validate_targets(targets, 2, K))
    assert float(losses["noobj_loss"]) == pytest.approx(others * math.log(2) / 2, rel=1e-5)
    assert float(losses["noobj_loss"]) == pytest.approx(reference_losses(maps, targets)["noobj_loss"], rel=1e-5)


def test_losses_of_a_perfect_answer_are_zero():
    boxes = torch.tensor([around(0.4, 0.4, 0.2, 0.3), around(0.7, 0.2, 0.05, 0.04)])
    maps = tuple(torch.zeros_like(raw) for raw in random_maps(1))
    for raw in maps:
        raw.view(1, 3, 5 + K, *raw.shape[2:])[:, :, 4] = -50
    for scale, stretch in enumerate((1.2, 1.1, 1.05)):
        height, width = GRIDS[scale]
        view = maps[scale].view(3, 5 + K, height, width)
        for box in boxes:
            center, sides = (box[:2] + box[2:]) / 2 * torch.tensor([width, height]), box[2:] - box[:2]
            column, row = center.long().tolist()
            within = (center - center.floor() + (stretch - 1) / 2) / stretch
            for prior in range(3):
                slot = assign_anchors(boxes, torch.zeros(2, dtype=torch.int64), 1, PRIORS, GRIDS)
                if number(0, scale, prior, row, column) in slot.tolist():
                    view[prior, :2, row, column] = within.logit()
                    view[prior, 2:4, row, column] = (sides / PRIORS[scale, prior]).log()
                    view[prior, 4:, row, column] = torch.tensor([50.0, -50, 50, -50])
    model = small()
    losses = model.compute_losses(maps, validate_targets([{"boxes": boxes, "labels": torch.tensor([1, 1])}], 1, K))
    assert all(float(loss) < 1e-5 for loss in losses.values())
    candidates, scores = model.decode(maps)
    assert int((scores > 0.5).sum()) == 2
    found = candidates[scores[..., 1] > 0.5]
    torch.testing.assert_close(found[found[:, 0].argsort()], boxes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 1000])
def test_losses_and_gradients_stay_finite(dtype, scale):
    maps = tuple(raw.to(dtype).requires_grad_() for raw in random_maps(2, scale))
    targets = [target([around(0.4, 0.4, 0.2, 0.3), around(0.7, 0.2, 0.05, 0.04)], [1, 0]), EMPTY]
    model = small()
    losses = model.compute_losses(maps, validate_targets(targets, 2, K))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(raw.grad.isfinite().all() for raw in maps)
    boxes, scores = model.decode(maps)
    assert boxes.dtype == scores.dtype == torch.float32
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("as_list", [False, True])
def test_training_reaches_every_parameter(as_list):
    model = small(drop_layer=identity)
    images = torch.rand(2, 3, *SIZE)
    targets = [target([around(0.4, 0.4, 0.2, 0.3), around(0.7, 0.2, 0.05, 0.04), [0, 0, 1, 1]], [1, 0, 2]), EMPTY]
    losses = model(list(images) if as_list else images, targets)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_images_without_objects_train():
    model = small()
    losses = model(torch.rand(2, 3, *SIZE), [EMPTY, EMPTY])
    assert losses["noobj_loss"].item() > 0
    assert [losses[name].item() for name in ("bbox_loss", "obj_loss", "clf_loss")] == [0, 0, 0]
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def scene():
    """Two images with rectangles of two colors on noise, and where they are."""
    images = 0.1 * torch.rand(2, 3, 64, 64)
    targets = [
        target([[0.125, 0.125, 0.5, 0.5], [0.625, 0.5, 0.9375, 0.75]], [0, 2]),
        target([[0.25, 0.25, 0.75, 0.875]], [1]),
    ]
    for image, entry in zip(images, targets, strict=True):
        for box, label in zip((entry["boxes"] * 64).long().tolist(), entry["labels"].tolist(), strict=True):
            image[label, box[1] : box[3], box[0] : box[2]] = 1
    return images, targets


def fit(model, images, targets, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return history


def test_loss_decreases_on_two_images():
    model = YOLOv4([(8, 1), (16, 1), (16, 1), (32, 1)], num_classes=K, stem_channels=8, drop_layer=identity)
    history = fit(model, *scene(), 40)
    assert history[-1] < 0.5 * history[0]


@pytest.mark.slow
def test_two_images_are_learned_by_heart():
    images, targets = scene()
    model = YOLOv4([(8, 1), (16, 1), (32, 1), (64, 1)], num_classes=K, stem_channels=8, drop_layer=identity)
    history = fit(model, images, targets, 150)
    assert history[-1] < 0.05 * history[0]
    # Statistics of the weights that the last steps ended in.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
    with torch.no_grad():
        model(images, targets)
        detections = model.eval()(images)
    for detected, expected in zip(detections, targets, strict=True):
        certain = detected["scores"] > 0.5
        overlap = box_iou(detected["boxes"][certain], expected["boxes"])
        assert overlap.shape[0] == overlap.shape[1]
        assert overlap.max(dim=0).values.min() > 0.6
        assert detected["labels"][certain][overlap.argmax(dim=0)].equal(expected["labels"])


def test_evaluation_gives_detections():
    model = small().eval()
    model.box_score_thresh = 1e-4
    with torch.inference_mode():
        detections = model([torch.rand(3, *SIZE) for _ in range(2)])
    assert len(detections) == 2
    for detected in detections:
        count = len(detected["scores"])
        assert count > 0
        assert detected["boxes"].shape == (count, 4)
        assert ((detected["boxes"] >= 0) & (detected["boxes"] <= 1)).all()
        assert detected["labels"].dtype == torch.int64
        assert (detected["scores"].diff() <= 0).all()
    # An untrained network claims nothing.
    model.box_score_thresh = 0.05
    assert model(torch.rand(1, 3, *SIZE))[0]["boxes"].shape == (0, 4)


def test_every_map_depends_on_every_feature():
    model = small(drop_layer=identity).eval()
    features = [
        torch.randn(1, width, *grid, requires_grad=True) for (width, _), grid in zip(LAYOUT, GRIDS, strict=True)
    ]
    for raw, grid in zip(model.head(model.neck(features)), GRIDS, strict=True):
        assert raw.shape == (1, 3 * (5 + K), *grid)
        assert all(gradient.any() for gradient in torch.autograd.grad(raw.sum(), features, retain_graph=True))


def test_the_published_layout():
    with torch.device("meta"):
        model = yolov4(pretrained_backbone=False)
        shapes = [tuple(raw.shape) for raw in model.raw_outputs(torch.empty(1, 3, 608, 416))]
    assert shapes == [(1, 255, 76, 52), (1, 255, 38, 26), (1, 255, 19, 13)]
    info = get_model_info("yolov4")
    assert (info.task, info.input_size) == ("detection", (608, 608))
    assert "yolov4" in models.list_models("detection")


def test_decoding_traces_with_a_dynamic_batch():
    class Decoded(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.decode(self.model.raw_outputs(x))

    decoded = Decoded(small().eval())
    program = torch.export.export(
        decoded, (torch.rand(2, 3, *SIZE),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    images = torch.rand(3, 3, *SIZE)
    with torch.inference_mode():
        for traced, eager in zip(program.module()(images), decoded(images), strict=True):
            torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("size", [(16, 20), (7, 8)])
def test_sizes_that_the_stride_does_not_divide(size):
    with pytest.raises(ValueError, match=r"multiples of 8 pixels, got .*: resize or pad"):
        small().eval()(torch.rand(1, 3, *size))


def test_bad_input():
    model = small()
    images = torch.rand(2, 3, *SIZE)
    with pytest.raises(ValueError, match="needs target"):
        model(images)
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        model(images, [EMPTY])
    with pytest.raises(ValueError, match=r"label 3 of image 1 is not in \[0, 3\)"):
        model(images, [EMPTY, target([[0.1, 0.1, 0.2, 0.2]], [3])])
    with pytest.raises(ValueError, match="not within"):
        model(images, [EMPTY, target([[10.0, 10, 20, 20]], [0])])
    with pytest.raises(ValueError, match="no extent"):
        model(images, [EMPTY, target([[0.3, 0.1, 0.2, 0.2]], [0])])
    with pytest.raises(ValueError, match="not within"):
        model(images, [EMPTY, target([[math.nan, 0.1, 0.2, 0.2]], [0])])
    with pytest.raises(ValueError, match="image 1 is of shape"):
        model([torch.rand(3, 16, 16), torch.rand(3, 16, 24)], [EMPTY, EMPTY])
    with pytest.raises(ValueError, match="images of 3 channels, got 1"):
        model(images[:, :1], [EMPTY, EMPTY])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_classes": 0}, "num_classes to be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels to be at least 1, got 0"),
        ({"stem_channels": 0}, "stem_channels to be at least 1, got 0"),
        ({"anchors": torch.rand(9, 2)}, r"of shape \(3, A, 2\).*got \(9, 2\)"),
        ({"anchors": torch.zeros(3, 2, 2)}, "anchors to be positive"),
        ({"anchors": torch.full((3, 1, 2), math.inf)}, "anchors to be positive"),
    ],
)
def test_bad_settings(kwargs, match):
    with pytest.raises(ValueError, match=match):
        small(**kwargs)


def test_bad_layouts():
    with pytest.raises(ValueError, match="at most the 2 stages, got 3"):
        YOLOv4([(8, 1), (8, 1)])
    with pytest.raises(ValueError, match="half_widths to be at least 1, got 0"):
        YOLOv4([(8, 1), (1, 1), (8, 1)])
    with pytest.raises(ValueError, match="num_blocks to be at least 1, got 0"):
        YOLOv4([(8, 1), (8, 0), (8, 1)])


def test_own_anchors_are_copied():
    priors = torch.rand(3, 2, 2) + 0.1
    model = small(anchors=priors)
    assert model.raw_outputs(torch.rand(2, 3, *SIZE))[0].shape == (2, 2 * (5 + K), 8, 12)
    kept = priors.clone()
    priors.zero_()
    assert model.head.yolo2.anchors.equal(kept[1])


def test_odd_widths():
    model = YOLOv4([(5, 1), (7, 1), (9, 1)], num_classes=K, stem_channels=3, in_channels=1)
    assert [tuple(raw.shape[2:]) for raw in model.raw_outputs(torch.rand(2, 1, *SIZE))] == GRIDS


def test_no_published_weights():
    with pytest.raises(ValueError, match="no weights are published for yolov4"):
        yolov4(pretrained=True)


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_backbone_gets_the_weights_of_the_classifier(tmp_path, norm_layer):
    classifier = DarknetV4(LAYOUT, stem_channels=4, act_layer=nn.Mish(), drop_layer=DropBlock2d)
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    published = CSPDarknet53_Mish_Checkpoint.DEFAULT.value
    meta = replace(published.meta, url=path.as_uri(), sha256=sha256_of(path), size=path.stat().st_size)
    checkpoint = replace(published, meta=meta)

    model = small(backbone_norm_layer=norm_layer)
    load_backbone(model.backbone, checkpoint, progress=False)
    images = torch.rand(1, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().backbone(images)[-1], classifier.eval().features(images))
    with pytest.raises(CheckpointMismatchError, match=r"stem.0.weight.*pretrained_backbone=False"):
        load_backbone(small(in_channels=1).backbone, checkpoint, progress=False)


def test_builder_freezes_and_loads_its_backbone(monkeypatch):
    module = importlib.import_module("holocron.models.detection.yolov4")
    loaded = []
    monkeypatch.setattr(module, "load_backbone", lambda *args: loaded.append(args))
    with torch.device("meta"):
        model = yolov4(progress=False)
        assert isinstance(model.backbone.stem[1], FrozenBatchNorm2d)
        assert isinstance(model.neck.fpn[1], nn.BatchNorm2d)
        assert loaded == [(model.backbone, CSPDarknet53_Mish_Checkpoint.DEFAULT.value, False)]
        assert isinstance(yolov4(backbone_norm_layer=nn.BatchNorm2d).backbone.stem[1], nn.BatchNorm2d)
        assert isinstance(yolov4(pretrained_backbone=False).backbone.stem[1], nn.BatchNorm2d)
    assert len(loaded) == 2


def test_offline_the_way_out_is_named(monkeypatch):
    module = importlib.import_module("holocron.models.detection.backbone")

    def offline(url, **kwargs):
        raise DownloadError(f"cannot download {url}: no network")

    monkeypatch.setattr(module, "download", offline)
    with (
        torch.device("meta"),
        pytest.raises(DownloadError, match=r"cspdarknet53_mish.*no network.*pretrained_backbone=False"),
    ):
        yolov4()
