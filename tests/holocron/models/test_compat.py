"""Every builder against facts of the published release: signature, keys, shapes, and answers for known weights."""

import hashlib
import inspect
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from holocron import models
from holocron.models import build_model

FACTS = json.loads((Path(__file__).parents[2] / "data" / "compat_models.json").read_text())
# Above this a forward pass or the weights of the recipe alone take seconds.
LARGE = 60_000_000


def cases(entry):
    """The builders that have an entry in the table of facts, the largest marked slow."""
    for name, facts in FACTS.items():
        if entry in facts:
            large = facts.get("num_params", 0) > LARGE or facts["task"] == "segmentation"
            yield pytest.param(name, marks=pytest.mark.slow if large and entry == "golden" else ())


def build(name):
    offline = {"pretrained_backbone": False} if "pretrained_backbone" in FACTS[name]["signature"] else {}
    return build_model(name, **offline)


def wave(size, key, frequency):
    return np.sin(np.arange(size) * frequency + zlib.crc32(key.encode()) % 1000)


def golden_weights(state_dict):
    """Weights that anyone can make again from the names and shapes alone."""
    filled = {}
    for key, value in state_dict.items():
        if not value.is_floating_point() or key.endswith("anchors"):
            filled[key] = value
            continue
        values = wave(value.numel(), key, 0.37)
        if key.endswith("running_var"):
            values = 1 + 0.5 * values**2
        elif value.ndim >= 2:
            values = values * np.sqrt(4 / (value.numel() // value.shape[0]))
        elif key.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values = 0.1 * values
        filled[key] = torch.from_numpy(values.reshape(value.shape)).float()
    return filled


def raw_head(model, image):
    """What the published answers of detectors are: the output of the head, before any decoding."""
    return model.raw_outputs(image) if hasattr(model, "raw_outputs") else model(image)


@pytest.mark.parametrize("name", FACTS)
def test_signature(name):
    assert str(inspect.signature(getattr(models, name))) == FACTS[name]["signature"]


@pytest.mark.parametrize("name", list(cases("state_dict_sha256")))
def test_state_dict(name):
    expected = FACTS[name]
    with torch.device("meta"):
        try:
            model = build(name)
        except NotImplementedError:  # a builder that runs its encoder once to learn its shapes needs real tensors
            model = None
    model = model or build(name)
    assert type(model).__name__ == expected["class"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["num_params"]
    entries = model.state_dict()
    assert len(entries) == expected["num_entries"]
    lines = "".join(f"{key} {list(value.shape)}\n" for key, value in entries.items())
    assert hashlib.sha256(lines.encode()).hexdigest() == expected["state_dict_sha256"]


@pytest.mark.parametrize("name", list(cases("golden")))
def test_golden_answer(name):
    golden = FACTS[name]["golden"]
    model = build(name)
    model.load_state_dict(golden_weights(model.state_dict()))
    size = golden["input_size"]
    image = torch.from_numpy(wave(3 * size * size, "input", 0.011).reshape(1, 3, size, size)).float()
    with torch.inference_mode():
        output = raw_head(model.eval(), image)
    assert list(output.shape) == golden["output_shape"]
    reference = torch.tensor(golden["values"], dtype=torch.float64)
    error = (output.flatten()[golden["index"]].double() - reference).norm() / reference.norm()
    # The tolerance of the published recipe: MobileOne's answers are huge with these weights.
    assert error <= (1e-3 if name.startswith("mobileone") else 1e-4)
