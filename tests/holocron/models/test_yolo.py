"""YOLOv1 and YOLOv2: what their heads mean, which box answers for which object, the losses, and whether they learn."""

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.ops import box_iou
from torchvision.ops.misc import FrozenBatchNorm2d

from holocron import models
from holocron.models import YOLOv1, YOLOv2, build_model, get_model_info, yolov1, yolov2
from holocron.models.classification.darknetv2 import Darknet19_Checkpoint, DarknetV2
from holocron.models.detection.backbone import load_backbone
from holocron.models.detection.detector import select_detections, validate_targets
from holocron.models.detection.grid import assign_boxes
from holocron.models.download import sha256_of
from holocron.models.errors import CheckpointMismatchError, DownloadError
from holocron.trainer import DetectionTrainer

K = 3
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def small_v1(**kwargs):
    """A YOLOv1 of 112 × 112 pixels."""
    return YOLOv1([[8], [16]], **{"num_classes": K, "stem_channels": 4, "head_hidden_nodes": 16, **kwargs})


def small_v2(**kwargs):
    """A YOLOv2 of a stride of 8."""
    return YOLOv2([(8, 0), (8, 0), (16, 1)], **{"num_classes": K, "stem_chanels": 4, **kwargs})


SMALL = [pytest.param(small_v1, (112, 112), id="yolov1"), pytest.param(small_v2, (48, 64), id="yolov2")]


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def around(x, y, w, h):
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


# Reference: one number at a time, in float64.


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def softmax(values):
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def reference_cells(model, raw):
    """For each image and (row, column), the boxes as (x and y in the cell, w, h, objectness) and the probabilities."""
    raw = raw.double().numpy()
    images = []
    for numbers in raw:
        cells = {}
        if isinstance(model, YOLOv1):
            step = 5 * model.num_anchors + K
            for cell in range(49):
                here = numbers[cell * step : (cell + 1) * step]
                boxes = [[sigmoid(v) for v in here[5 * j : 5 * j + 5]] for j in range(model.num_anchors)]
                cells[divmod(cell, 7)] = boxes, [softmax(here[5 * model.num_anchors :])]
            shape = (7, 7)
        else:
            shape = numbers.shape[1:]
            for row in range(shape[0]):
                for column in range(shape[1]):
                    boxes, classes = [], []
                    for j, (w, h) in enumerate(model.anchors.tolist()):
                        here = numbers[j * (5 + K) : (j + 1) * (5 + K), row, column]
                        x, y, objectness = (sigmoid(here[index]) for index in (0, 1, 4))
                        boxes.append([x, y, w * math.exp(here[2]), h * math.exp(here[3]), objectness])
                        classes.append(softmax(here[5:]))
                    cells[row, column] = boxes, classes
        images.append((cells, shape))
    return images


def reference_corners(box, row, column, shape):
    x, y, w, h = (box[0] + column) / shape[1], (box[1] + row) / shape[0], box[2], box[3]
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def reference_decode(model, raw):
    boxes, scores = [], []
    for cells, shape in reference_cells(model, raw):
        for (row, column), (cell_boxes, classes) in cells.items():
            for j, box in enumerate(cell_boxes):
                corners = reference_corners(box, row, column, shape)
                boxes.append([min(max(value, 0), 1) for value in corners])
                scores.append([box[4] * p for p in classes[j if len(classes) > 1 else 0]])
    return np.reshape(boxes, (len(raw), -1, 4)), np.reshape(scores, (len(raw), -1, K))


def reference_iou(first, second):
    w = min(first[2], second[2]) - max(first[0], second[0])
    h = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(w, 0) * max(h, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return overlap / (area - overlap)


def reference_losses(model, raw, targets):
    sums = dict.fromkeys(["bbox_loss", "obj_loss", "noobj_loss", "clf_loss"], 0.0)
    for (cells, shape), entry in zip(reference_cells(model, raw), targets, strict=True):
        objects = []
        for box, label in zip(entry["boxes"].double().tolist(), entry["labels"].tolist(), strict=True):
            column = min(math.floor((box[0] + box[2]) / 2 * shape[1]), shape[1] - 1)
            row = min(math.floor((box[1] + box[3]) / 2 * shape[0]), shape[0] - 1)
            objects.append((box, label, row, column))
        for (row, column), (boxes, classes) in cells.items():
            here = [(box, label) for box, label, r, c in objects if (r, c) == (row, column)]
            pairs = [
                (reference_iou(box, reference_corners(predicted, row, column, shape)), -i, -j)
                for i, (box, _) in enumerate(here)
                for j, predicted in enumerate(boxes)
            ]
            made = {}
            for iou, i, j in sorted(pairs, reverse=True):
                if -j not in made and -i not in [i for i, _ in made.values()]:
                    made[-j] = -i, iou
            labels = {j: here[i][1] for j, (i, _) in made.items()}
            for j, (x, y, w, h, objectness) in enumerate(boxes):
                if j not in made:
                    sums["noobj_loss"] += model.lambda_noobj * objectness**2
                    continue
                i, iou = made[j]
                box = here[i][0]
                sums["obj_loss"] += model.lambda_obj * (iou - objectness) ** 2
                sums["bbox_loss"] += model.lambda_coords * (
                    ((box[0] + box[2]) / 2 * shape[1] - column - x) ** 2
                    + ((box[1] + box[3]) / 2 * shape[0] - row - y) ** 2
                    + (math.sqrt(box[2] - box[0]) - math.sqrt(w)) ** 2
                    + (math.sqrt(box[3] - box[1]) - math.sqrt(h)) ** 2
                )
            # Where the boxes of a cell share their probabilities: the shares of the classes; else the class of each.
            wanted = [(classes[0], list(labels.values()))] if len(classes) == 1 and labels else []
            wanted += [(classes[j], [label]) for j, label in labels.items() if len(classes) > 1]
            for probabilities, assigned in wanted:
                sums["clf_loss"] += model.lambda_class * sum(
                    (assigned.count(c) / len(assigned) - p) ** 2 for c, p in enumerate(probabilities)
                )
    return {name: value / len(targets) for name, value in sums.items()}


def random_raw(model, num_images, shape=(6, 8)):
    if isinstance(model, YOLOv1):
        return torch.randn(num_images, 49 * (5 * model.num_anchors + K))
    return torch.randn(num_images, len(model.anchors) * (5 + K), *shape)


def losses_of(model, raw, targets):
    return model.compute_losses(raw, validate_targets(targets, len(targets), K))


MODELS = [
    pytest.param(lambda: small_v1(lambda_obj=2, lambda_noobj=0.3, lambda_class=1.5, lambda_coords=4), id="yolov1"),
    pytest.param(lambda: small_v1(num_anchors=1), id="yolov1-one-box"),
    pytest.param(lambda: small_v2(lambda_obj=2, lambda_noobj=0.3, lambda_class=1.5, lambda_coords=4), id="yolov2"),
    pytest.param(lambda: small_v2(anchors=torch.tensor([[0.3, 0.2]])), id="yolov2-one-prior"),
]


@pytest.mark.parametrize("build", MODELS)
def test_decode_equals_the_reference(build):
    model = build()
    raw = random_raw(model, 2)
    boxes, scores = model.decode(raw)
    expected_boxes, expected_scores = reference_decode(model, raw)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-6)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert boxes.min() >= 0
    assert boxes.max() <= 1


SCENES = {
    "one object": [target([around(0.4, 0.6, 0.3, 0.2)], [1])],
    "several images": [
        target([around(0.2, 0.3, 0.1, 0.2), around(0.8, 0.7, 0.3, 0.4)], [0, 2]),
        EMPTY,
        target([[0.0, 0.0, 1.0, 1.0]], [1]),
    ],
    "no objects": [EMPTY, EMPTY],
    "two of one class in a cell": [target([around(0.51, 0.52, 0.2, 0.6), around(0.52, 0.51, 0.6, 0.2)], [1, 1])],
    "two classes in a cell": [target([around(0.51, 0.52, 0.2, 0.6), around(0.52, 0.51, 0.6, 0.2)], [0, 2])],
    "more in a cell than it has boxes": [
        target([around(0.51, 0.52, 0.1 + 0.1 * i, 0.8 - 0.1 * i) for i in range(7)], [0, 1, 2, 0, 1, 2, 0])
    ],
    "the very same box twice": [target([around(0.51, 0.52, 0.2, 0.3)] * 2, [0, 1])],
    "in the corners": [target([[0, 0, 1e-4, 1e-4], [1 - 1e-4, 1 - 1e-4, 1, 1]], [0, 1])],
    "crowds in two images": [
        target(
            np.random.default_rng(seed).uniform([0, 0, 0.4, 0.4], [0.4, 0.4, 1, 1], (9, 4)).astype("f").tolist(),
            3 * [0, 1, 2],
        )
        for seed in (0, 1)
    ],
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("build", MODELS)
def test_losses_equal_the_reference(build, scene):
    model, targets = build(), SCENES[scene]
    raw = random_raw(model, len(targets))
    losses = losses_of(model, raw, targets)
    expected = reference_losses(model, raw, targets)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.shape == ()
        assert value.item() == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize(("build", "size"), SMALL)
def test_an_untrained_head_sees_hardly_anything(build, size):
    model = build().eval()
    with torch.inference_mode():
        predictions = model.interpret(model.raw_outputs(torch.rand(1, 3, *size)))
    torch.testing.assert_close(predictions.objectness.mean(), torch.tensor(0.1), rtol=0.2, atol=0)
    torch.testing.assert_close(predictions.center.mean(), torch.tensor(0.5), rtol=0.1, atol=0)


def test_each_object_gets_one_box_and_each_box_one_object():
    iou = torch.tensor(
        [
            [0.5, 0.6],  # cell 4: the second object is better at box 1, and this one keeps box 0
            [0.1, 0.9],
            [0.2, 0.3],  # cell 7, alone: its best
            [0.7, 0.1],  # cell 9: three objects for two boxes; the worst is left out
            [0.6, 0.2],
            [0.3, 0.1],
            [0.0, 0.0],  # cell 1: no overlap at all, still box 0
        ]
    )
    cell = torch.tensor([4, 4, 7, 9, 9, 9, 1])
    assert assign_boxes(iou, cell).tolist() == [0, 1, 1, 0, 1, -1, 0]
    # The order of the objects matters to nothing but ties.
    order = torch.tensor([6, 5, 1, 3, 0, 2, 4])
    assert assign_boxes(iou[order], cell[order]).tolist() == [0, -1, 1, 0, 0, 1, 1]


def test_ties_go_to_the_earlier_object_and_box():
    assert assign_boxes(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)).tolist() == [0, 1, -1]
    assert assign_boxes(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("center", [(0.5, 0.5), (3 / 7 + 1e-4, 2 / 7 - 1e-4), (0.999, 0.001)])
def test_yolov1_object_belongs_to_the_cell_of_its_center(center):
    model = small_v1(lambda_coords=1, lambda_obj=1, lambda_noobj=1)
    raw = torch.zeros(1, 49 * (10 + K), requires_grad=True)
    box = around(*center, 0.002, 0.001)
    losses_of(model, raw, [target([box], [1])])["bbox_loss"].backward()
    touched = raw.grad.reshape(7, 7, 10 + K).abs().sum(-1).nonzero().tolist()
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    assert touched == [[math.floor(y * 7), math.floor(x * 7)]]


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        # On a border between cells: the one to the right and below.
        ([0.25, 0.125, 0.75, 0.375], (1, 2)),
        # So close to the far corner that the center is rounded to 1.
        ([1 - 2**-24, 1 - 2**-24, 1.0, 1.0], (3, 3)),
    ],
)
def test_center_on_a_border(box, cell):
    model = small_v2(anchors=torch.tensor([[0.5, 0.5]]))
    raw = torch.zeros(1, 5 + K, 4, 4, requires_grad=True)
    losses_of(model, raw, [target([box], [0])])["clf_loss"].backward()
    assert raw.grad.abs().sum(dim=(0, 1)).nonzero().tolist() == [list(cell)]


def test_yolov2_object_is_served_by_the_prior_of_its_shape():
    priors = torch.tensor([[0.1, 0.1], [0.2, 0.6], [0.6, 0.2]])
    model = small_v2(anchors=priors)
    raw = torch.zeros(1, 3 * (5 + K), 7, 7, requires_grad=True)
    tall, wide = around(0.5, 0.5, 0.2, 0.5), around(0.5, 0.5, 0.5, 0.2)
    losses = losses_of(model, raw, [target([wide, tall], [2, 0])])
    (gradient,) = torch.autograd.grad(losses["clf_loss"], raw)
    gradient = gradient.reshape(3, 5 + K, 7, 7)
    assert gradient.abs().sum(1).nonzero().tolist() == [[1, 3, 3], [2, 3, 3]]
    # Each towards the class of its own object.
    assert gradient[:, 5:, 3, 3].argmin(dim=1).tolist()[1:] == [0, 2]


@pytest.mark.parametrize("build", MODELS)
def test_losses_vanish_for_perfect_predictions(build):
    """A head that says what is there loses nothing, but for what saturation leaves."""
    model = build()
    x, y, w, h = 0.5, 0.5, 0.3, 0.2
    if isinstance(model, YOLOv1):
        raw = torch.zeros(1, 7, 7, 5 * model.num_anchors + K)
        raw[..., 4 : 5 * model.num_anchors : 5] = -30
        raw[0, 3, 3, :5] = torch.tensor([0, 0, math.log(w / (1 - w)), math.log(h / (1 - h)), 30])
        raw[0, 3, 3, -K + 1] = 30
        raw = raw.flatten(1)
    else:
        raw = torch.zeros(1, len(model.anchors), 5 + K, 7, 7)
        raw[:, :, 4] = -30
        raw[0, 0, 2:4, 3, 3] = (torch.tensor([w, h]) / model.anchors[0]).log()
        raw[0, 0, 4, 3, 3] = raw[0, 0, 6, 3, 3] = 30
        raw = raw.flatten(1, 2)
    targets = [target([around(x, y, w, h)], [1])]
    for name, value in losses_of(model, raw, targets).items():
        assert value.item() < 1e-6, name
    boxes, scores = model.decode(raw)
    best = scores.flatten(1).argmax().item()
    assert best % K == 1
    torch.testing.assert_close(boxes[0, best // K], targets[0]["boxes"][0])


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("scale", [1, 100, 1000])
def test_gradients_are_finite_however_far_off(build, scale):
    model = build()
    raw = (random_raw(model, 3) * scale).requires_grad_()
    sum(losses_of(model, raw, SCENES["several images"]).values()).backward()
    assert raw.grad.isfinite().all()
    assert raw.grad.abs().sum() > 0


@pytest.mark.parametrize("build", MODELS)
def test_divergence_shows_in_the_loss(build):
    model = build()
    raw = torch.full_like(random_raw(model, 3), float("nan"))
    assert sum(losses_of(model, raw, SCENES["several images"]).values()).isnan()
    assert all(len(entry["boxes"]) == 0 for entry in select_detections(*model.decode(raw), 0.0, 0.5))


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_heads(build, dtype):
    model = build()
    raw = (10 * random_raw(model, 1)).to(dtype)
    boxes, scores = model.decode(raw)
    assert boxes.dtype == scores.dtype == torch.float32
    assert boxes.isfinite().all()
    assert scores.isfinite().all()
    expected = model.decode(raw.float())
    assert boxes.equal(expected[0])
    assert all(value.isfinite() for value in losses_of(model, raw, SCENES["one object"]).values())


@pytest.mark.parametrize(("build", "size"), SMALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_detection_in_any_floating_point_type(build, size, dtype):
    model = build().to(dtype).eval()
    with torch.inference_mode():
        (detections,) = model(torch.rand(1, 3, *size, dtype=dtype))
    assert detections["boxes"].isfinite().all()


@pytest.mark.parametrize(("build", "size"), SMALL)
def test_training_step_on_lists_and_on_empty_images(build, size):
    model = build().train()
    images = torch.rand(3, 3, *size)
    for targets in (SCENES["several images"], [EMPTY] * 3):
        model.zero_grad()
        losses = model(list(images), targets)
        assert set(losses) == {"bbox_loss", "obj_loss", "noobj_loss", "clf_loss"}
        sum(losses.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert losses["bbox_loss"] == losses["obj_loss"] == losses["clf_loss"] == 0
    assert losses["noobj_loss"] > 0


@pytest.mark.parametrize(("build", "size"), SMALL)
def test_evaluation_gives_the_same_for_tensors_lists_and_single_images(build, size):
    model = build(box_score_thresh=0.0).train()
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        model(images, [EMPTY, EMPTY])
        model.eval()
        batch, listed = model(images), model(list(images))
        for index, image in enumerate(images):
            (alone,) = model([image])
            assert len(batch[index]["boxes"]) > 0
            for key, value in batch[index].items():
                assert value.equal(listed[index][key])
                assert len(alone[key]) == len(value)
            torch.testing.assert_close(alone["scores"], batch[index]["scores"], rtol=1e-4, atol=1e-6)
            assert batch[index]["scores"].diff().max() <= 0
            assert batch[index]["labels"].dtype == torch.int64
        model.box_score_thresh = 1.0
        assert [entry["boxes"].shape for entry in model(images)] == [(0, 4), (0, 4)]


@pytest.mark.parametrize(("build", "size"), SMALL)
def test_raw_outputs_and_decoding_can_be_exported(build, size):
    class Exported(nn.Module):
        def __init__(self, detector):
            super().__init__()
            self.detector = detector

        def forward(self, x):
            return self.detector.decode(self.detector.raw_outputs(x))

    module = Exported(build().eval())
    images = torch.rand(2, 3, *size)
    dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=16)}}
    program = torch.export.export(module, (images,), dynamic_shapes=dynamic).module()
    with torch.inference_mode():
        for batch in (images, torch.rand(3, 3, *size)):
            for value, expected in zip(program(batch), module(batch), strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def scene(size):
    """Rectangles whose color is their class, on black; the last image has none."""
    targets = [
        target([[0.1, 0.15, 0.4, 0.5], [0.55, 0.5, 0.95, 0.9]], [0, 1]),
        target([[0.3, 0.2, 0.8, 0.6]], [2]),
        EMPTY,
    ]
    images = torch.zeros(3, K, size, size)
    for image, entry in zip(images, targets, strict=True):
        for box, label in zip(entry["boxes"], entry["labels"], strict=True):
            left, top, right, bottom = (box * size).round().int().tolist()
            image[label, top:bottom, left:right] = 1
    return images, targets


@pytest.mark.parametrize(
    ("build", "size"),
    [
        pytest.param(lambda: small_v1(stem_channels=8, head_hidden_nodes=128), 112, id="yolov1"),
        pytest.param(lambda: YOLOv2([(8, 0), (16, 0), (32, 1)], num_classes=K, stem_chanels=8), 56, id="yolov2"),
    ],
)
def test_learns_a_batch_by_heart(build, size):
    model = build().train()
    images, targets = scene(size)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    history = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert np.mean(history[-10:]) < 0.1 * history[0]
    model.eval().box_score_thresh = 0.25
    with torch.inference_mode():
        detections = model(images)
    assert_found(detections, targets)


def assert_found(detections, targets):
    """Every object is found, with its class, and nothing is found that is not there."""
    for found, expected in zip(detections, targets, strict=True):
        if len(expected["boxes"]) == 0:
            assert len(found["boxes"]) == 0
            continue
        is_right = box_iou(expected["boxes"], found["boxes"]) > 0.5
        is_right &= expected["labels"][:, None] == found["labels"]
        assert is_right.any(dim=1).all()
        assert is_right.any(dim=0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "lr", "steps"), [("yolov1", 448, 1e-4, 96), ("yolov2", 96, 1e-3, 32)])
def test_published_layouts_learn_a_batch_by_heart(name, size, lr, steps):
    model = build_model(name, pretrained_backbone=False, num_classes=K).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, targets = scene(size)
    images, targets = images[[0, 2]], [targets[0], targets[2]]
    optimizer = torch.optim.Adam(model.parameters(), lr)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        history.append(loss.item())
    assert np.mean(history[-5:]) < 0.25 * history[0]
    model.eval().box_score_thresh = 0.25
    with torch.inference_mode():
        assert_found(model(images), targets)


@pytest.mark.parametrize(("build", "size"), SMALL)
def test_mixed_precision(build, size):
    model = build().train()
    images = torch.rand(3, 3, *size)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, SCENES["several images"])
    assert all(value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_trains_with_the_trainer(tmp_path):
    images, targets = scene(56)
    loader = DataLoader(
        list(zip(images, targets, strict=True)), batch_size=3, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True))
    )
    model = small_v2()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = DetectionTrainer(model, loader, loader, None, optimizer, output_file=str(tmp_path / "checkpoint.pth"))
    before = model.head.weight.detach().clone()
    trainer.fit_n_epochs(1, 1e-3)
    assert not model.head.weight.equal(before)
    assert 0 <= trainer.evaluate()["loc_err"] <= 1


@pytest.mark.parametrize(
    ("build", "shape", "match"),
    [
        (small_v1, (1, 3, 112, 96), r"112 x 112 pixels, got .*\(1, 3, 112, 96\)"),
        (small_v1, (1, 3, 113, 113), "112 x 112"),
        (small_v2, (1, 3, 48, 60), r"multiples of 8 pixels, got .*\(1, 3, 48, 60\)"),
        (small_v2, (1, 3, 4, 8), "multiples of 8"),
        (small_v2, (1, 1, 48, 64), "images of 3 channels, got 1"),
        (small_v1, (3, 112, 112), r"\(N, 3, H, W\), got \(3, 112, 112\)"),
        (small_v2, (1, 3, 0, 8), "pixels"),
    ],
)
def test_bad_images(build, shape, match):
    with pytest.raises(ValueError, match=match):
        build().eval()(torch.rand(shape))


@pytest.mark.parametrize(
    ("build", "kwargs", "match"),
    [
        (small_v1, {"num_classes": 0}, "num_classes to be at least 1, got 0"),
        (small_v1, {"in_channels": 0}, "in_channels to be at least 1, got 0"),
        (small_v1, {"num_anchors": 0}, "num_anchors to be at least 1, got 0"),
        (small_v1, {"head_hidden_nodes": 0}, "head_hidden_nodes to be at least 1, got 0"),
        (small_v1, {"lambda_coords": -1.0}, "lambda_coords to be finite and not negative, got -1.0"),
        (small_v2, {"lambda_noobj": float("nan")}, "lambda_noobj .* got nan"),
        (small_v2, {"rpn_nms_thresh": 2}, "rpn_nms_thresh .* got 2"),
        (small_v2, {"stem_chanels": 0}, "stem_channels .* got 0"),
        (small_v2, {"passthrough_ratio": 0}, r"passthrough_ratio to be in \[1, 8\], got 0"),
        (small_v2, {"passthrough_ratio": 9}, "passthrough_ratio .* got 9"),
        (small_v2, {"anchors": torch.rand(5)}, r"anchors of shape \(A, 2\), width and height, got \(5,\)"),
        (small_v2, {"anchors": torch.zeros(0, 2)}, r"got \(0, 2\)"),
        (small_v2, {"anchors": torch.tensor([[0.1, 0.0]])}, "anchors to be positive"),
        (small_v2, {"anchors": torch.tensor([[0.1, float("inf")]])}, "anchors to be positive"),
        (lambda **_: YOLOv1([]), {}, "stages"),
        (lambda **_: YOLOv1([[]]), {}, "layout"),
        (lambda **_: YOLOv2([(8, 1)]), {}, "2 stages"),
        (lambda **_: YOLOv2([]), {}, "widths"),
    ],
)
def test_bad_settings(build, kwargs, match):
    with pytest.raises(ValueError, match=match):
        build(**kwargs)


def test_own_anchors_are_copied():
    priors = torch.tensor([[0.3, 0.2]], dtype=torch.float16)
    model = small_v2(anchors=priors)
    priors.zero_()
    torch.testing.assert_close(model.anchors, torch.tensor([[0.3, 0.2]]), rtol=1e-3, atol=0)
    assert model.head.out_channels == 5 + K


def test_layers_of_the_users_choice():
    model = small_v1(norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU(), drop_layer=nn.Dropout2d)
    kinds = [type(layer) for layer in model.modules()]
    assert nn.BatchNorm2d in [type(layer) for layer in model.backbone.modules()]
    assert nn.LeakyReLU not in kinds
    assert nn.Dropout2d in kinds
    assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Conv2d))
    model = small_v2(backbone_norm_layer=FrozenBatchNorm2d)
    assert FrozenBatchNorm2d in [type(layer) for layer in model.backbone.modules()]
    assert isinstance(model.block6[1], nn.BatchNorm2d)


def test_registered_as_detectors():
    for name, size in (("yolov1", 448), ("yolov2", 416)):
        info = get_model_info(name)
        assert (info.task, info.input_size) == ("detection", (size, size))
        assert name in models.list_models("detection")


@pytest.mark.parametrize("build", [yolov1, yolov2])
def test_no_published_weights(build):
    with pytest.raises(ValueError, match=f"no weights are published for {build.__name__}"):
        build(pretrained=True)


def test_yolov1_says_that_its_backbone_is_untrained():
    with torch.device("meta"), pytest.warns(UserWarning, match="no weights are published for darknet24"):
        yolov1(num_classes=K)


def local_checkpoint(module, folder):
    """Published weights that are a file of this machine."""
    path = folder / "weights.pth"
    torch.save(module.state_dict(), path)
    published = Darknet19_Checkpoint.DEFAULT.value
    meta = replace(published.meta, url=path.as_uri(), sha256=sha256_of(path), size=path.stat().st_size)
    return replace(published, meta=meta)


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_backbone_gets_the_weights_of_the_classifier(tmp_path, norm_layer):
    classifier = DarknetV2([(8, 0), (8, 0), (16, 1)], stem_channels=4)
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    model = small_v2(backbone_norm_layer=norm_layer)
    load_backbone(model.backbone, local_checkpoint(classifier, tmp_path), progress=False)
    images = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().backbone(images)[0], classifier.eval().features(images))


def test_backbone_of_another_shape_is_refused(tmp_path):
    checkpoint = local_checkpoint(DarknetV2([(8, 0), (8, 0), (16, 1)], stem_channels=4), tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"stem.0.weight.*pretrained_backbone=False"):
        load_backbone(small_v2(in_channels=1).backbone, checkpoint, progress=False)


def test_yolov2_freezes_and_loads_its_backbone(monkeypatch):
    module = importlib.import_module("holocron.models.detection.yolov2")
    loaded = []
    monkeypatch.setattr(module, "load_backbone", lambda *args: loaded.append(args))
    with torch.device("meta"):
        model = yolov2(progress=False)
        assert [type(layer) for layer in model.backbone.stem][1] is FrozenBatchNorm2d
        assert loaded == [(model.backbone, Darknet19_Checkpoint.DEFAULT.value, False)]
        model = yolov2(backbone_norm_layer=nn.BatchNorm2d)
        assert isinstance(model.backbone.stem[1], nn.BatchNorm2d)
        assert isinstance(yolov2(pretrained_backbone=False).backbone.stem[1], nn.BatchNorm2d)
    assert len(loaded) == 2


def test_offline_the_way_out_is_named(monkeypatch):
    module = importlib.import_module("holocron.models.detection.backbone")

    def offline(url, **kwargs):
        raise DownloadError(f"cannot download {url}: no network")

    monkeypatch.setattr(module, "download", offline)
    with torch.device("meta"), pytest.raises(DownloadError, match=r"darknet19.*no network.*pretrained_backbone=False"):
        yolov2()
