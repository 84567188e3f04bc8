"""Every builder trains: one step with finite gradients, and a small batch learned by heart.

The cases come from the registry, so that no builder is left out. Of each file of models the smallest one runs by
default, the others are marked slow.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from holocron import models

FACTS = json.loads((Path(__file__).parents[2] / "data" / "compat_models.json").read_text())
TASKS = ("classification", "segmentation", "detection")
CLASSES = 4
SCORE = 0.95


@dataclass(frozen=True)
class Recipe:
    """How a builder learns a batch by heart: side of the images in pixels, learning rate, and most steps."""

    size: int
    lr: float = 1e-3
    steps: int = 60


RECIPES = {"classification": Recipe(32), "segmentation": Recipe(32), "detection": Recipe(96, steps=40)}
SPECIAL = {
    # Without normalization a larger step kills its ReLUs.
    "darknet24": Recipe(32, lr=1e-4),
    # Its fully connected layers fix the size, and are unnormalized too.
    "yolov1": Recipe(448, lr=1e-4, steps=120),
    # DropBlock takes parts of the objects away, another one in each step.
    "yolov4": Recipe(96, steps=80),
}
# The smallest of their files, yet half a minute each; their tests train a part of them.
LONG = {"unetp", "unet3p", "yolov1", "yolov2", "yolov4"}


def parameters_of(name):
    # Those without a figure are the deepest of their file.
    return FACTS.get(name, {}).get("num_params") or float("inf")


def cases(task):
    """The builders of a task; but for the smallest one of each file they are slow."""
    names = models.list_models(task)
    files = {}
    for name in names:
        files.setdefault(models.get_model_info(name).builder.__module__, []).append(name)
    small = {min(members, key=parameters_of) for members in files.values()} - LONG
    return [pytest.param(name, marks=() if name in small else pytest.mark.slow) for name in names]


def build(name):
    builder = models.get_model_info(name).builder
    offline = {"pretrained_backbone": False} if "pretrained_backbone" in inspect.signature(builder).parameters else {}
    return builder(num_classes=CLASSES, **offline).train()


def learn(name, model, images, compute_loss, is_learned):
    """Train until the batch is learned, with steps that shrink, and check the gradients of the first step.

    Returns:
        the loss of each step
    """
    recipe = SPECIAL.get(name) or RECIPES[models.get_model_info(name).task]
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, recipe.steps)
    history = []
    for step in range(recipe.steps):
        optimizer.zero_grad()
        output, loss = compute_loss(model, images)
        loss.backward()
        if step == 0:
            missing = [key for key, value in model.named_parameters() if value.grad is None]
            assert not missing
            infinite = [key for key, value in model.named_parameters() if not value.grad.isfinite().all()]
            assert not infinite
        optimizer.step()
        schedule.step()
        history.append(loss.item())
        if is_learned(output, history):
            break
    return history


def settle_statistics(model, images):
    """Give each normalization the statistics of this batch, in evaluation mode, which turns dropout off.

    Running averages need far more steps than a batch takes to be learned, and the sample variance that they keep is not
    that of the few values a channel has here.
    """

    def settle(layer, arguments):
        values = arguments[0].transpose(0, 1).flatten(1)
        layer.running_mean.copy_(values.mean(1))
        layer.running_var.copy_(values.var(1, unbiased=False))

    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(settle) for layer in norms]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()


def answer(model, images):
    settle_statistics(model, images)
    with torch.inference_mode():
        return model(images)


@pytest.mark.parametrize("name", cases("classification"))
def test_classifier(name):
    model = build(name)
    size = (SPECIAL.get(name) or RECIPES["classification"]).size
    # Noise has nothing in common that could be learned instead.
    images, labels = torch.randn(2 * CLASSES, 3, size, size), torch.arange(2 * CLASSES) % CLASSES
    assert (answer(model, images).argmax(1) == labels).float().mean() < SCORE
    model.train()

    def compute_loss(model, images):
        scores = model(images)
        return scores, F.cross_entropy(scores, labels)

    history = learn(name, model, images, compute_loss, lambda _, history: history[-1] < 0.05)
    assert history[-1] < 0.1 * history[0]
    assert (answer(model, images).argmax(1) == labels).float().mean() >= SCORE


@pytest.mark.parametrize("name", cases("segmentation"))
def test_segmenter(name):
    model = build(name)
    images, labels = patchwork(RECIPES["segmentation"].size)
    assert (answer(model, images).argmax(1) == labels).float().mean() < SCORE
    model.train()

    def compute_loss(model, images):
        scores = model(images)
        return scores, F.cross_entropy(scores, labels)

    def is_learned(scores, history):
        return (scores.argmax(1) == labels).float().mean() > 0.98

    history = learn(name, model, images, compute_loss, is_learned)
    assert history[-1] < 0.3 * history[0]
    assert (answer(model, images).argmax(1) == labels).float().mean() >= SCORE


def patchwork(size, patch=8):
    """Two images of patches, each in the colour of its class under noise, and the classes of the pixels."""
    labels = torch.randint(CLASSES, (2, size // patch, size // patch))
    labels = labels.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    colours = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.5], [0.0, 0.0, -1.5]])
    return colours[labels].permute(0, 3, 1, 2) + 0.3 * torch.randn(2, 3, size, size), labels


@pytest.mark.parametrize("name", cases("detection"))
def test_detector(name):
    model = build(name)
    images, targets = scene((SPECIAL.get(name) or RECIPES["detection"]).size)
    assert share_found(answer(model, images), targets) < SCORE
    model.train()

    def compute_loss(model, images):
        losses = model(images, targets)
        return None, sum(losses.values())

    history = learn(name, model, images, compute_loss, lambda *_: False)
    assert history[-1] < 0.2 * history[0]
    detections = answer(model, images)
    assert share_found(detections, targets) >= SCORE
    # What the model is surest of is an object, not something beside it.
    certain = [
        {key: value[: len(t["boxes"])] for key, value in d.items()} for d, t in zip(detections, targets, strict=True)
    ]
    assert share_found(certain, targets) >= SCORE


@pytest.mark.parametrize("name", ["yolov2"])
def test_one_step_of_a_detector(name):
    """By default the detectors only take a step; their tests let small ones learn."""
    model = build(name)
    images, targets = scene(64)
    sum(model(images, targets).values()).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def scene(size):
    """Two images of bright rectangles, each class in a colour of its own; boxes relative to the image."""
    targets = [
        {"boxes": torch.tensor([[0.1, 0.15, 0.45, 0.6]]), "labels": torch.tensor([0])},
        {"boxes": torch.tensor([[0.55, 0.1, 0.9, 0.5], [0.2, 0.55, 0.7, 0.9]]), "labels": torch.tensor([1, 2])},
    ]
    images = 0.1 * torch.randn(2, 3, size, size)
    for image, target in zip(images, targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            left, top, right, bottom = (box * size).round().int().tolist()
            image[label, top:bottom, left:right] += 1
    return images, targets


def share_found(detections, targets):
    """Share of the objects that a detection of the same class overlaps by more than half."""
    found = []
    for detected, target in zip(detections, targets, strict=True):
        right = box_iou(target["boxes"], detected["boxes"]) > 0.5
        right &= target["labels"][:, None] == detected["labels"]
        found += right.any(1).tolist()
    return sum(found) / len(found)


def test_every_task_is_here():
    assert sorted(name for task in TASKS for name in models.list_models(task)) == models.list_models()
