"""What every builder refuses, and how it says so. The cases come from the registry, so that no builder is left out."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from holocron import models
from holocron.models import CheckpointError, CheckpointMismatchError

FACTS = json.loads((Path(__file__).parents[2] / "data" / "compat_models.json").read_text())
EVERY = models.list_models()


def cases():
    """Every builder; all but the smallest of each file, from which they differ in numbers only, are slow."""
    files = {}
    for name in EVERY:
        files.setdefault(models.get_model_info(name).builder.__module__, []).append(name)
    # Those without a figure are the deepest of their file.
    sizes = {name: FACTS.get(name, {}).get("num_params") or float("inf") for name in EVERY}
    small = {min(members, key=sizes.get) for members in files.values()}
    return [pytest.param(name, marks=() if name in small else pytest.mark.slow) for name in EVERY]


BUILT = cases()
# The encoder is somebody else's network of RGB images.
RGB_ONLY = {"unet_tvresnet34", "unet_tvvgg11"}


def build(name, **kwargs):
    builder = models.get_model_info(name).builder
    offline = {"pretrained_backbone": False} if "pretrained_backbone" in inspect.signature(builder).parameters else {}
    return builder(**offline, **kwargs)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_number_of_classes(name, value):
    with pytest.raises(ValueError, match=rf"num_classes.* {value}\b"):
        build(name, num_classes=value)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in RGB_ONLY])
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_number_of_channels(name, value):
    with pytest.raises(ValueError, match=rf"in_channels.* {value}\b"):
        build(name, in_channels=value)


@pytest.mark.parametrize("name", EVERY)
def test_unknown_arguments(name):
    with pytest.raises(TypeError, match="number_of_classes"):
        build(name, number_of_classes=3)


@pytest.mark.parametrize("name", EVERY)
def test_weights_that_are_not_published(name):
    info = models.get_model_info(name)
    if info.default_checkpoint is None:
        with pytest.raises(ValueError, match=f"no weights are published for {name}"):
            build(name, pretrained=True)
    else:
        with pytest.raises(ValueError, match=rf"the checkpoint of {name} has num_classes=\d+, not 3: .*backbone_only"):
            build(name, pretrained=True, num_classes=3)


@pytest.mark.parametrize("name", BUILT)
def test_weights_of_another_number_of_classes(name):
    ours, theirs = build(name, num_classes=3), build(name, num_classes=5)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    given = theirs.state_dict()
    said = "is for 5 classes, the model has 3: build it with num_classes=5"
    if models.get_model_info(name).task == "detection":
        said = "is for another number of classes than the model's 3 .*: build it with the num_classes"
    with pytest.raises(CheckpointMismatchError, match=rf"^weights\.pth {said}.*, or load .*backbone_only=True\)$"):
        models.load_weights(ours, given, "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())

    models.load_weights(ours, given, backbone_only=True)
    after = ours.state_dict()
    kept = [key for key in after if not torch.equal(after[key], given[key]) or after[key].shape != given[key].shape]
    resized = {key for key in after if after[key].shape != given[key].shape}
    assert resized
    # The rest is a network whose features are those of the weights: of those that train, little stays as it was.
    assert resized <= set(kept)
    loaded = sum(after[key].numel() for key in after if key not in kept)
    assert loaded > 0.5 * sum(value.numel() for value in after.values())


@pytest.mark.parametrize("name", BUILT)
def test_weights_that_are_not_numbers(name):
    model = build(name, num_classes=3)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    key = next(iter(weights))
    weights[key].view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match=f"NaN or infinity in '{key}'"):
        models.load_weights(model, weights)


@pytest.mark.parametrize("name", BUILT)
def test_images_that_do_not_fit(name):
    """Of the wrong number of dimensions or channels, or without pixels: an error, not an answer of nonsense."""
    model = build(name, num_classes=3).eval()
    for shape in ((1, 4, 64, 64), (64, 64), (1, 3, 0, 64), (2, 3, 4, 64, 64)):
        with pytest.raises((ValueError, RuntimeError)), torch.inference_mode():
            model(torch.zeros(shape))


@pytest.mark.parametrize("name", BUILT)
def test_images_smaller_than_the_stride(name):
    """An answer of the right shape that is finite, or an error that names the size."""
    model = build(name, num_classes=3).eval()
    for size in (1, 2, 8, 17):
        try:
            with torch.inference_mode():
                answer = model(torch.randn(1, 3, size, size))
        except ValueError as error:
            said = str(error)
        else:
            is_map = models.get_model_info(name).task == "segmentation"
            assert answer.shape == ((1, 3, size, size) if is_map else (1, 3))
            said = f"{size}" if answer.isfinite().all() else "NaN"
        assert str(size) in said
