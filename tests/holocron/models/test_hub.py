"""Folders that hold a model: round trips, folders of others, damaged and hostile ones, and fetching them."""

import copy
import json
import os
import stat
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms import InterpolationMode

from holocron import models
from holocron.models import (
    CheckpointError,
    CheckpointMismatchError,
    DownloadError,
    HubConfig,
    hub_config,
    model_from_hf_hub,
    registry,
    save_hub_folder,
)
from holocron.models import hub as hub_module
from holocron.models.checkpoints import PreProcessing

ARCH = "repvgg_tiny"
CLASSES = ("cat", "dog", "Kätzchen 🐈")
CONFIG = {"arch": ARCH, "classes": list(CLASSES)}


def repvgg_tiny(pretrained=False, checkpoint=None, progress=True, **kwargs):
    return models.RepVGG([1, 2], [8, 12], **kwargs)


@pytest.fixture(scope="module", autouse=True)
def table():
    """A network that takes no time to build, known by name as every other."""
    models.register_model()(repvgg_tiny)
    yield
    del registry._MODELS[ARCH]


def randomized(model):
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model(table):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomized(models.build_model(ARCH, num_classes=3))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_hub_folder(model, tmp_path_factory.mktemp("hub") / "mine", ARCH, CLASSES)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may spoil."""
    copied = tmp_path / "folder"
    copied.mkdir()
    for path in saved.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def edit(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def assert_equal(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_round_trip(saved, model):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    loaded = model_from_hf_hub(str(saved))
    assert type(loaded) is type(model)
    assert not any(layer.training for layer in loaded.modules())
    assert_equal(loaded, model)
    assert_equal(model_from_hf_hub(saved), model)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


def test_round_trip_of_a_real_one(tmp_path):
    model = randomized(models.mobileone_s0(num_classes=3))
    save_hub_folder(model, tmp_path / "a", "mobileone_s0", CLASSES)
    assert_equal(model_from_hf_hub(tmp_path / "a"), model)


def test_what_the_files_say(saved, model):
    assert json.loads((saved / "config.json").read_text(encoding="utf-8")) == {
        "arch": ARCH,
        "task": "classification",
        "num_classes": 3,
        "classes": list(CLASSES),
        "input_shape": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }
    config = hub_config(saved)
    assert (config.arch, config.task, config.classes) == (ARCH, "classification", CLASSES)
    assert config.pre_processing == PreProcessing((3, 224, 224))
    weights = load_file(saved / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    umask = os.umask(0)
    os.umask(umask)
    for path in saved.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_everything_that_can_be_chosen_comes_back(tmp_path):
    model = models.build_model(ARCH, num_classes=2, in_channels=1)
    chosen = PreProcessing((1, 96, 128), (0.5,), (0.25,), InterpolationMode.BICUBIC)
    save_hub_folder(model, tmp_path / "a" / "b", ARCH, ["zero", "zero"], pre_processing=chosen)
    assert hub_config(tmp_path / "a" / "b") == HubConfig(ARCH, "classification", ("zero", "zero"), chosen)
    assert_equal(model_from_hf_hub(tmp_path / "a" / "b"), model)


def test_reparameterized_form(model, tmp_path):
    fused = copy.deepcopy(model)
    fused.reparametrize()
    save_hub_folder(fused, tmp_path / "fused", ARCH, CLASSES)
    assert_equal(model_from_hf_hub(tmp_path / "fused"), fused)


def test_wrapped_models(model, tmp_path):
    save_hub_folder(nn.DataParallel(model), tmp_path / "wrapped", ARCH, CLASSES)
    assert_equal(model_from_hf_hub(tmp_path / "wrapped"), model)


def test_half_precision_weights_load_as_float32(model, tmp_path):
    save_hub_folder(copy.deepcopy(model).half(), tmp_path / "half", ARCH, CLASSES)
    assert load_file(tmp_path / "half" / "model.safetensors")["head.weight"].dtype == torch.float16
    loaded = model_from_hf_hub(tmp_path / "half")
    assert torch.equal(loaded.head.weight, model.head.weight.half().float())


def test_saving_leaves_the_model_as_it_is(tmp_path):
    model = models.build_model(ARCH, num_classes=3).train()
    before = copy.deepcopy(model)
    save_hub_folder(model, tmp_path / "a", ARCH, CLASSES)
    assert all(layer.training for layer in model.modules())
    assert_equal(model, before)


@pytest.mark.parametrize(
    "content",
    [
        {"arch": ARCH, "num_classes": 3},
        {"arch": ARCH, "labels": list(CLASSES)},
        # What folders of the published library have beside it.
        {**CONFIG, "task": None, "url": None, "input_shape": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]},
        {**CONFIG, "library": {"name": "holocron"}, "interpolation": "bicubic"},
    ],
)
def test_folders_of_others(content, folder, model):
    (folder / "config.json").write_text(json.dumps(content))
    assert_equal(model_from_hf_hub(folder), model)
    config = hub_config(folder)
    assert config.classes == (("0", "1", "2") if "num_classes" in content else CLASSES)
    assert config.pre_processing.mean[0] == (0.5 if "mean" in content else 0.485)


def test_old_folders(folder, model):
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert_equal(model_from_hf_hub(folder), model)


def test_code_in_old_folders_is_not_run(folder, tmp_path):
    class Exploit:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'trace'}'",)

    (folder / "model.safetensors").unlink()
    torch.save({"model": Exploit()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="run code"):
        model_from_hf_hub(folder)
    assert not (tmp_path / "trace").exists()


def test_links_of_the_cache_are_followed(folder, model, tmp_path):
    """The Hub's own cache keeps the files elsewhere and links to them."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert_equal(model_from_hf_hub(snapshot), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": ...}, "None as 'arch', expected the name of a model"),
        ({"arch": 7}, "7 as 'arch'"),
        ({"arch": "mobileone_s9"}, r"unknown model 'mobileone_s9': did you mean mobileone_s"),
        ({"arch": "../../etc/passwd"}, "unknown model"),
        ({"arch": "__import__"}, "unknown model"),
        ({"task": "segmentation"}, "'segmentation' as 'task', expected 'classification'"),
        ({"classes": ...}, None),
        ({"classes": ..., "num_classes": ...}, "None as 'classes', expected a list of class names, or at least"),
        ({"classes": "cat"}, "'cat' as 'classes'"),
        ({"classes": []}, r"\[\] as 'classes'"),
        ({"classes": ["a", "b", ""]}, "none of them empty"),
        ({"classes": ["a", "b", 3]}, "none of them empty"),
        ({"classes": ["a", "b", "\ud800"]}, "none of them empty"),
        ({"classes": ["a", "b"]}, "3 as 'num_classes', expected 2, the number of names in 'classes'"),
        ({"num_classes": 0, "classes": ...}, "0 as 'num_classes', expected an integer from 1"),
        ({"num_classes": True, "classes": ...}, "True as 'num_classes'"),
        ({"num_classes": 3.0, "classes": ...}, "3.0 as 'num_classes'"),
        ({"num_classes": 10**400, "classes": ...}, "as 'num_classes'"),
        ({"num_classes": 999_999, "classes": ...}, "cannot be a repvgg_tiny of 999999 classes: its largest tensor"),
        ({"input_shape": [3, 224]}, r"\[3, 224\] as 'input_shape', expected channels, height and width"),
        ({"input_shape": [3, 0, 224]}, "as 'input_shape'"),
        ({"input_shape": [3, 224.0, 224]}, "as 'input_shape'"),
        ({"input_shape": [1, 224, 224]}, "as 'mean', expected 1 numbers"),
        ({"input_shape": [20_000, 2, 2], "mean": [0] * 20_000, "std": [1] * 20_000}, "20000 input channels"),
        ({"mean": [0, 0]}, r"\[0, 0\] as 'mean', expected 3 numbers, one a channel"),
        ({"mean": [0, 0, 10**400]}, "as 'mean'"),
        ({"mean": [0, 0, None]}, "as 'mean'"),
        ({"std": [1, 1, 0]}, "as 'std', expected 3 numbers above 0"),
        ({"interpolation": "magic"}, "'magic' as 'interpolation', expected one of nearest, "),
        ({"interpolation": []}, "as 'interpolation'"),
    ],
)
def test_bad_configurations(changes, message, folder):
    edit(folder, **changes)
    if message is None:
        model_from_hf_hub(folder)
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        model_from_hf_hub(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"arch": "mobil', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"arch": "repvgg_tiny", "num_classes": 3, "mean": [NaN, 0, 0]}', "NaN is not JSON"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_garbled_configurations(content, message, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        model_from_hf_hub(folder)


def test_a_configuration_of_gigabytes_is_not_read(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(CheckpointError, match="larger than 16 MiB"):
        model_from_hf_hub(folder)


def test_missing_files(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: expected model\.safetensors, or pytorch_model\.bin"):
        model_from_hf_hub(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        model_from_hf_hub(folder)
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        model_from_hf_hub(folder)


def test_weights_that_do_not_fit(folder):
    edit(folder, classes=["a", "b", "c", "d"], num_classes=4)
    with pytest.raises(CheckpointMismatchError, match=r"model\.safetensors is for 3 classes, the model has 4"):
        model_from_hf_hub(folder)
    edit(folder, arch="mobileone_s0", classes=list(CLASSES), num_classes=3)
    with pytest.raises(CheckpointMismatchError, match="does not fit this MobileOne"):
        model_from_hf_hub(folder)


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", b"\xff" * 8, whole[:100], whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
            model_from_hf_hub(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(value, folder, model):
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights["head.bias"][1] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 'head\.bias'"):
        model_from_hf_hub(folder)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("mobileone_s9", CLASSES), ValueError, "unknown model"),
        ((ARCH, "cat"), ValueError, "sequence of class names"),
        ((ARCH, ()), ValueError, "got none"),
        ((ARCH, ("a", "b", 3)), CheckpointError, "as 'classes'"),
        ((ARCH, ("a", "b", "\udc80")), ValueError, "as 'classes'"),
        ((ARCH, ("a", "b")), CheckpointMismatchError, "is for 3 classes, the model has 2"),
        (("mobileone_s0", CLASSES), CheckpointMismatchError, "does not fit this MobileOne"),
    ],
)
def test_what_is_not_saved(arguments, error, message, model, tmp_path):
    with pytest.raises(error, match=message):
        save_hub_folder(model, tmp_path / "a", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "expected",
    [
        PreProcessing((3, 224, 224), std=(1, 1, 0)),
        PreProcessing((3, 224, 224), mean=(0, 0, float("nan"))),
        PreProcessing((3, 224, 224), mean=(0, 0, object())),
        PreProcessing((3, -1, 224)),
    ],
)
def test_preprocessing_that_is_not_saved(expected, model, tmp_path):
    with pytest.raises(ValueError, match=r"as 'std'|not JSON compliant|cannot be written|as 'input_shape'"):
        save_hub_folder(model, tmp_path / "a", ARCH, CLASSES, pre_processing=expected)
    assert not list(tmp_path.iterdir())


def test_diverged_weights_are_not_saved(model, tmp_path):
    diverged = copy.deepcopy(model)
    diverged.head.weight.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        save_hub_folder(diverged, tmp_path / "a", ARCH, CLASSES)
    assert not list(tmp_path.iterdir())


def test_existing_folders(folder, model, tmp_path):
    other = copy.deepcopy(model)
    nn.init.zeros_(other.head.bias)
    with pytest.raises(FileExistsError, match=r"has config\.json and model\.safetensors already: pass overwrite=True"):
        save_hub_folder(other, folder, ARCH, CLASSES)
    assert_equal(model_from_hf_hub(folder), model)
    (folder / "README.md").write_text("mine")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    save_hub_folder(other, folder, ARCH, CLASSES, overwrite=True)
    assert_equal(model_from_hf_hub(folder), other)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    # A folder that has something else, say a cloned repository that is still empty, takes a model.
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / ".gitattributes").write_text("")
    save_hub_folder(model, tmp_path / "clone", ARCH, CLASSES)
    with pytest.raises(FileExistsError, match="is not a folder"):
        save_hub_folder(model, folder / "README.md", ARCH, CLASSES, overwrite=True)


@pytest.mark.parametrize("broken", ["weights", "config", "interrupt"])
def test_a_write_that_fails_leaves_what_was_there(broken, folder, model, tmp_path, monkeypatch):
    other = copy.deepcopy(model)
    nn.init.zeros_(other.head.bias)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt if broken == "interrupt" else OSError(28, "No space left on device")

    if broken == "weights":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    else:
        monkeypatch.setattr(hub_module, "_settle", fail)
    for target in (folder, tmp_path / "new" / "one"):
        with pytest.raises((OSError, KeyboardInterrupt)):
            save_hub_folder(other, target, ARCH, CLASSES, overwrite=True)
    assert_equal(model_from_hf_hub(folder), model)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["", "mobileone", "a/b/c", "../a", "a/..", "./missing", "/missing", "a/b c", "https://x.org/a", "a/b\n"]
)
def test_what_is_neither_a_folder_nor_a_repository(name):
    with pytest.raises(ValueError, match="neither a folder nor the id of a repository"):
        model_from_hf_hub(name)


def test_what_a_folder_takes(folder):
    with pytest.raises(TypeError, match=r"is a folder: revision can only be given with a repository id"):
        model_from_hf_hub(folder, revision="main")
    with pytest.raises(ValueError, match="none is not a folder"):
        model_from_hf_hub(folder / "none")
    with pytest.raises(TypeError, match="got a int"):
        model_from_hf_hub(3)


class Hub:
    """Stands for the client of the Hub: files of one repository, in a folder a commit as in the real cache."""

    def __init__(self, folder):
        self.commit = folder.parent / "snapshots" / "c0ffee"
        self.commit.mkdir(parents=True)
        for path in folder.iterdir():
            (self.commit / path.name).symlink_to(path)
        self.asked = []
        self.error = None

    def hf_hub_download(self, repo_id, filename, *, revision=None, token=None):
        self.asked.append((repo_id, filename, revision))
        if self.error is not None:
            raise self.error
        if not (self.commit / filename).exists():
            raise type("RemoteEntryNotFoundError", (type("EntryNotFoundError", (Exception,), {}),), {})("404")
        return str(self.commit / filename)


@pytest.fixture
def hub(folder, monkeypatch):
    client = Hub(folder)
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = client.hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return client


def test_fetching(hub, model):
    assert_equal(model_from_hf_hub("owner/mine", revision="v1", token="secret"), model)
    # The weights are those of the commit that the configuration was of, whatever the name means by now.
    assert hub.asked == [("owner/mine", "config.json", "v1"), ("owner/mine", "model.safetensors", "c0ffee")]
    assert hub_config("owner/mine").classes == CLASSES
    with pytest.raises(TypeError, match="magic"):
        model_from_hf_hub("owner/mine", magic=1)


def test_fetching_old_repositories(hub, folder, model):
    (hub.commit / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"owner/mine has no weights"):
        model_from_hf_hub("owner/mine")
    torch.save(model.state_dict(), hub.commit / "pytorch_model.bin")
    assert_equal(model_from_hf_hub("owner/mine"), model)
    (hub.commit / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the repository owner/mine has no config\.json"):
        model_from_hf_hub("owner/mine")


def failure(*names):
    kind = Exception
    for name in reversed(names):
        kind = type(name, (kind,), {})
    return kind("first line\nsecond line")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            failure("LocalEntryNotFoundError", "EntryNotFoundError"),
            "the Hub cannot be reached, and the file is not in",
        ),
        (failure("OfflineModeIsEnabled"), "cannot be reached"),
        (
            failure("GatedRepoError", "RepositoryNotFoundError"),
            "no repository owner/mine on the Hub, or it is not",
        ),
        (failure("RevisionNotFoundError"), "owner/mine has no revision 'v9'"),
        (failure("ConnectError"), r"cannot fetch config\.json of owner/mine: first line$"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_fetching_that_fails(error, message, hub):
    hub.error = error
    with pytest.raises(DownloadError, match=message) as caught:
        model_from_hf_hub("owner/mine", revision="v9")
    assert "\n" not in str(caught.value)


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"owner/mine is not a local folder.*pip install huggingface_hub"):
        model_from_hf_hub("owner/mine")


def test_a_folder_goes_before_a_repository(folder, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(folder.parent)
    Path("owner").mkdir()
    folder.rename("owner/mine")
    assert_equal(model_from_hf_hub("owner/mine"), model)
