"""Reading checkpoints that are good, damaged, hostile or of something else, and building models with them."""

import dataclasses
import os
import pickle

import pytest
import torch
from torch import nn

from holocron import models
from holocron.models import CheckpointError, CheckpointMismatchError, load_state_dict, load_weights
from holocron.models.classification.mobileone import MobileOne_S1_Checkpoint
from holocron.models.download import sha256_of


class Small(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, num_classes)


class Exploit:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


@pytest.fixture
def weights():
    return Small().state_dict()


def assert_same(loaded, expected):
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        dict,
        lambda weights: {"model": weights, "epoch": 3, "min_loss": 0.5, "optimizer": {}},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"model": {f"_orig_mod.module.{key}": value for key, value in weights.items()}},
        lambda weights: {f"module._orig_mod.{key}": value for key, value in weights.items()},
    ],
)
def test_forms_of_a_checkpoint(wrap, weights, tmp_path):
    torch.save(wrap(weights), tmp_path / "a.pth")
    assert_same(load_state_dict(tmp_path / "a.pth"), weights)
    assert_same(load_state_dict(str(tmp_path / "a.pth")), weights)


def test_legacy_format(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_same(load_state_dict(tmp_path / "a.pth"), weights)


def test_safetensors(weights, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(weights, tmp_path / "a.safetensors")
    assert_same(load_state_dict(tmp_path / "a.safetensors"), weights)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"b\.safetensors cannot be read"):
        load_state_dict(tmp_path / "b.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(zipped, tmp_path):
    path = tmp_path / "hostile.pth"
    torch.save({"model": Exploit(tmp_path / "trace")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"hostile\.pth was refused: .*system.* run code"):
        load_state_dict(path)
    assert not (tmp_path / "trace").exists()


def test_plain_pickle_is_not_run(tmp_path):
    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Exploit(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match=r"hostile\.pth cannot be read"):
        load_state_dict(path)
    assert not (tmp_path / "trace").exists()


def test_whole_model_is_refused(tmp_path):
    torch.save(Small(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"state_dict\(\)"):
        load_state_dict(tmp_path / "model.pth")


def test_damaged_files(weights, tmp_path):
    torch.save(weights, tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    path = tmp_path / "bad.pth"
    for content in (
        b"",
        b"not a checkpoint",
        good[: len(good) // 2],
        good[:-20],
        b"\x80\x02",
        b"PK\x03\x04" + b"\0" * 50,
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read as a checkpoint") as caught:
            load_state_dict(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [], torch.zeros(2), {"a": 1}, {"model": {"a": "b"}}, {1: torch.zeros(1)}])
def test_what_is_not_a_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="a state dict"):
        load_state_dict(tmp_path / "a.pth")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth is not a file"):
        load_state_dict(tmp_path / "none.pth")


def test_float16_weights_are_cast(weights):
    model = Small()
    load_weights(model, {key: value.half() if value.is_floating_point() else value for key, value in weights.items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.weight.detach(), weights["head.weight"].half().float())


def test_files_without_the_batch_counter(weights):
    load_weights(Small(), {key: value for key, value in weights.items() if "num_batches" not in key})


def test_number_of_classes():
    model = Small(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = Small(7).state_dict()
    with pytest.raises(CheckpointMismatchError, match=r"a\.pth is for 7 classes, the model has 3.*backbone_only=True"):
        load_weights(model, other, "a.pth")
    assert_same(model.state_dict(), before)
    load_weights(model, other, "a.pth", backbone_only=True)
    assert torch.equal(model.features[0].weight, other["features.0.weight"])
    assert torch.equal(model.head.weight, before["head.weight"])


def test_another_architecture(weights):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2))
    with pytest.raises(
        CheckpointMismatchError, match=r"it lacks '0\.weight', '0\.bias', '1\.weight' and 1 more"
    ) as caught:
        load_weights(model, weights, "a.pth")
    assert "has unknown 'features.0.weight'" in str(caught.value)
    reshaped = {**weights, "features.0.weight": torch.zeros(4, 1, 3, 3)}
    with pytest.raises(CheckpointMismatchError, match=r"'features\.0\.weight' of shape \(4, 1, 3, 3\) instead of"):
        load_weights(Small(), reshaped)


def test_the_reparameterized_form_is_recognized():
    fused = models.mobileone_s1().eval()
    fused.reparametrize()
    with pytest.raises(CheckpointMismatchError, match=r"reparameterized form of MobileOne"):
        load_weights(models.mobileone_s1(), fused.state_dict(), "fused.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((3,), float("nan")), "NaN or infinity in 'head.bias'"),
        (torch.full((3,), float("inf")), "NaN or infinity in 'head.bias'"),
        (torch.zeros(3, dtype=torch.int8), r"'head\.bias' as torch\.int8"),
    ],
)
def test_values_that_are_no_weights(weights, value, message):
    model = Small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, {**weights, "head.bias": value}, "a.pth")
    assert_same(model.state_dict(), before)


@pytest.fixture
def published(tmp_path):
    """A checkpoint of MobileOne-S1 that is published on this machine, for two classes, and the weights in it."""
    model = models.mobileone_s1(num_classes=2)
    path = tmp_path / "published" / "mobileone_s1.pth"
    path.parent.mkdir()
    torch.save(model.state_dict(), path)
    original = MobileOne_S1_Checkpoint.DEFAULT.value
    meta = dataclasses.replace(original.meta, url=path.as_uri(), sha256=sha256_of(path), categories=("cat", "dog"))
    return dataclasses.replace(original, meta=meta), model.state_dict()


def test_checkpoint_sets_the_number_of_classes(published, cache):
    checkpoint, weights = published
    model = models.mobileone_s1(checkpoint=checkpoint, progress=False)
    assert_same(model.state_dict(), weights)
    assert (cache / "mobileone_s1.pth").exists()
    assert_same(models.mobileone_s1(checkpoint=checkpoint, progress=False, num_classes=2).state_dict(), weights)


def test_pretrained_loads_the_default_entry(published, monkeypatch):
    checkpoint, _ = published
    loaded = []
    monkeypatch.setattr(
        "holocron.models.loading.load_checkpoint", lambda model, entry, progress: loaded.append((entry, progress))
    )
    models.mobileone_s1(pretrained=True, progress=False)
    models.mobileone_s1(checkpoint=MobileOne_S1_Checkpoint.IMAGENETTE)
    models.mobileone_s1(pretrained=True, checkpoint=checkpoint)
    default = MobileOne_S1_Checkpoint.DEFAULT.value
    assert loaded == [(default, False), (default, True), (checkpoint, True)]


@pytest.mark.parametrize(
    ("builder", "kwargs", "error", "message"),
    [
        (
            "mobileone_s1",
            {"num_classes": 5},
            ValueError,
            "num_classes=2, not 5: leave num_classes out.*backbone_only=True",
        ),
        ("mobileone_s1", {"in_channels": 1}, ValueError, "in_channels=3, not 1"),
        ("repvgg_a0", {}, ValueError, "for mobileone_s1, not for repvgg_a0"),
    ],
)
def test_arguments_that_contradict_the_checkpoint(published, builder, kwargs, error, message):
    with pytest.raises(error, match=message):
        getattr(models, builder)(checkpoint=published[0], progress=False, **kwargs)


def test_what_is_not_published_or_not_a_checkpoint():
    with pytest.raises(ValueError, match="no weights are published for repvgg_b3"):
        models.repvgg_b3(pretrained=True)
    with pytest.raises(TypeError, match="expected a Checkpoint, got 'imagenette'"):
        models.repvgg_a0(checkpoint="imagenette")
