"""From a name and a weights file to a module: what fits, and every way in which it does not."""

import pickle
import re

import pytest
import torch
from torch import nn

from export import ExportSpec
from export.errors import SourceError
from export.source import from_module, load_source, read_labels
from holocron import models
from holocron.models.registry import get_model_info
from runtime.manifest import Preprocessing

ARCH = "mobileone_s0"
PREPROCESSING = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def spec(model=ARCH, **options):
    return ExportSpec(model, **({"weights": "none", "input_size": (32, 32)} | options))


@pytest.fixture(scope="module")
def trained():
    """MobileOne-S0 for six classes, with statistics that are not those of a new model."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = models.build_model(ARCH, num_classes=6)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(buffer, std=0.1)
            elif name.endswith("running_var"):
                nn.init.uniform_(buffer, 0.8, 1.2)
    return model.eval()


@pytest.fixture(scope="module")
def expected(trained):
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        return x, trained(x)


@pytest.fixture
def weights(trained, tmp_path):
    path = tmp_path / "trained.pth"
    torch.save(trained.state_dict(), path)
    return path


def close(source, expected):
    x, logits = expected
    with torch.inference_mode():
        ours = source.module(x)
    return torch.linalg.norm(ours - logits) <= 1e-5 * torch.linalg.norm(logits)


# Weights.


def test_weights_of_a_file_tell_the_number_of_classes(weights, expected):
    source = load_source(spec(weights=str(weights)))
    assert source.labels == tuple("012345")
    assert source.trained
    assert close(source, expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in source.module.modules())
    assert source.provenance["weights"] == "trained.pth"
    assert source.provenance["architecture"] == ARCH
    assert re.fullmatch("[0-9a-f]{64}", source.provenance["weights_sha256"])


def test_weights_of_a_trainer(trained, expected, tmp_path):
    """A checkpoint of a training run has the state dict under "model", and names of wrappers before the keys."""
    state = {f"module.{k}": v for k, v in trained.state_dict().items()}
    torch.save({"model": state, "epoch": 3, "min_loss": 0.5, "optimizer": {"lr": 1e-3}}, tmp_path / "run.pth")
    assert close(load_source(spec(weights=str(tmp_path / "run.pth"))), expected)


def test_weights_of_the_reparameterized_form(expected, weights, tmp_path):
    plain = load_source(spec(weights=str(weights))).module
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    source = load_source(spec(weights=str(tmp_path / "plain.pth")))
    assert len(source.labels) == 6
    assert close(source, expected)


def test_random_weights_follow_the_seed():
    a, b, c = (load_source(spec(seed=seed)).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    source = load_source(spec(num_classes=4, seed=1))
    assert not source.trained
    assert source.labels == tuple("0123")
    assert source.provenance == {"architecture": ARCH, "weights": "random", "seed": "1"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": 9}, "for 6 classes, the model has 9"),
        ({"labels": "a\nb\n"}, "for 6 classes, the model has 2"),
        ({"model": "mobileone_s1"}, "does not fit this MobileOne"),
        ({"model": "repvgg_a0"}, "does not fit this RepVGG"),
    ],
)
def test_weights_that_do_not_fit(weights, tmp_path, given, message):
    if "labels" in given:
        (tmp_path / "labels.txt").write_text(given["labels"])
        given = {"labels": tmp_path / "labels.txt"}
    with pytest.raises(SourceError, match=message) as caught:
        load_source(spec(weights=str(weights), **given))
    assert "\n" not in str(caught.value)
    assert "trained.pth" in str(caught.value)


DAMAGE = {
    "empty": lambda data: b"",
    "a page": lambda data: b"<html>not found</html>",
    "cut off": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_corrupt_weights(weights, damage):
    weights.write_bytes(DAMAGE[damage](weights.read_bytes()))
    with pytest.raises(SourceError, match=r"trained\.pth cannot be read as a checkpoint: .*damaged, cut off") as caught:
        load_source(spec(weights=str(weights)))
    assert "\n" not in str(caught.value)


class Evil:
    """A pickle that runs code when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "inside a state dict"])
def test_a_pickle_that_runs_code_is_refused_and_never_runs(tmp_path, trained, form):
    evil, path = Evil(tmp_path / "ran"), tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        content = {**trained.state_dict(), "extra": evil} if form == "inside a state dict" else evil
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(SourceError) as caught:
        load_source(spec(weights=str(path)))
    assert "\n" not in str(caught.value)
    assert "evil.pth" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"model": {"weight": "text"}}, torch.zeros(3)], ids=str)
def test_files_that_hold_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(SourceError, match=r"odd\.pth"):
        load_source(spec(weights=str(tmp_path / "odd.pth")))


def test_weights_of_a_run_that_diverged(trained, tmp_path):
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    next(iter(state.values())).view(-1)[0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(SourceError, match=r"NaN or infinity in '"):
        load_source(spec(weights=str(tmp_path / "nan.pth")))


def test_a_weights_file_that_is_not_there_names_the_published_ones():
    entries = get_model_info("repvgg_a0").checkpoints
    name = f"{entries.__name__}.{next(iter(entries.__members__))}"
    with pytest.raises(SourceError, match=rf"--weights mine\.pth: no such file, .*of repvgg_a0 .*{re.escape(name)}"):
        load_source(spec("repvgg_a0", weights="mine.pth"))


def test_an_entry_of_another_architecture_is_not_taken():
    with pytest.raises(SourceError, match="no such file"):
        load_source(spec("repvgg_a0", weights="MobileOne_S0_Checkpoint.DEFAULT"))


def test_no_weights_are_published_for_everything(monkeypatch):
    bare = [name for name in models.list_models("classification") if get_model_info(name).default_checkpoint is None]
    if not bare:
        pytest.skip("every architecture has published weights")
    with pytest.raises(SourceError, match=rf"no weights are published for {bare[0]}: give --weights FILE"):
        load_source(spec(bare[0], weights="default"))


# Published checkpoints, from a server that is a folder.


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Makes the address of a published checkpoint lead to a file of ours, and its cache to an empty folder."""
    import dataclasses

    from holocron.models import loading

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    fetched = loading.download

    def serve(path, sha256=None):
        def download(url, **options):
            return fetched(path.as_uri(), **(options | ({} if sha256 is None else {"sha256": sha256})))

        monkeypatch.setattr(loading, "download", download)

    assert dataclasses.is_dataclass(get_model_info(ARCH).default_checkpoint)
    return serve


@pytest.mark.parametrize("form", ["default", "{name}.DEFAULT", "DEFAULT"])
def test_published_weights_bring_labels_and_preprocessing(published, tmp_path, form):
    from runtime.manifest import sha256_of

    info = get_model_info(ARCH)
    checkpoint = info.default_checkpoint
    categories = checkpoint.meta.categories
    torch.save(models.build_model(ARCH, num_classes=len(categories)).state_dict(), tmp_path / "served.pth")
    published(tmp_path / "served.pth", sha256_of(tmp_path / "served.pth"))
    source = load_source(spec(weights=form.format(name=info.checkpoints.__name__), input_size=None), progress=False)
    assert source.labels == tuple(categories)
    expected = checkpoint.pre_processing
    assert source.preprocessing.size == tuple(expected.input_shape[1:])
    assert (source.preprocessing.mean, source.preprocessing.std) == (expected.mean, expected.std)
    assert source.preprocessing.interpolation == expected.interpolation.value
    assert source.provenance["weights"] == checkpoint.meta.url


def test_a_download_of_something_else_says_how_to_go_on(published, tmp_path):
    (tmp_path / "served.pth").write_bytes(b"something else")
    published(tmp_path / "served.pth")
    with pytest.raises(SourceError, match=r"--weights FILE or --weights none$") as caught:
        load_source(spec(weights="default"), progress=False)
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_says_how_to_go_on(published, tmp_path):
    published(tmp_path / "nowhere.pth")
    with pytest.raises(SourceError, match=r"nowhere\.pth.*; or export other weights with --weights FILE"):
        load_source(spec(weights="default"), progress=False)


def test_published_weights_have_their_number_of_classes():
    with pytest.raises(SourceError, match=r"num_classes=\d+, not 3"):
        load_source(spec(weights="default", num_classes=3), progress=False)


# Architectures.


@pytest.mark.parametrize(
    ("name", "nearest"), [("repvg_a0", "repvgg_a0"), ("RepVGG-A0", "repvgg_a0"), ("mobilone_s1", "mobileone_s1")]
)
def test_an_unknown_architecture_names_the_nearest(name, nearest):
    with pytest.raises(SourceError, match=rf"{name}.*did you mean .*{nearest}"):
        load_source(spec(name))


def test_nothing_near_lists_all():
    with pytest.raises(SourceError, match=r"expected one of the 59 names of .*list_models"):
        load_source(spec("qqqq"))


def test_a_path_that_is_neither(tmp_path):
    with pytest.raises(SourceError, match=r"neither a bundle \(it has no manifest\.json\) nor an architecture"):
        load_source(spec(str(tmp_path)))


# Labels.


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("cat\r\ndog\r\n\r\n", ("cat", "dog")),
        ("\ufeffcat\ndog", ("cat", "dog")),
        (" tench, Tinca tinca \nÉtoile\n猫\n", ("tench, Tinca tinca", "Étoile", "猫")),
    ],
)
def test_labels(tmp_path, text, labels):
    assert read_labels(write(tmp_path, text)) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no label in line 1"),
        ("\n\n", "has no label in line 1"),
        ("cat\n\ndog\n", "has no label in line 2"),
        ("cat\ndog\ncat\n", "has the label 'cat' 2 times"),
        (b"\xff\xfe\x00", "cannot read the labels"),
    ],
)
def test_labels_that_cannot_serve(tmp_path, text, message):
    with pytest.raises(SourceError, match=rf"labels\.txt.*{message}|{message}.*labels\.txt") as caught:
        read_labels(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_labels_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(SourceError, match="cannot read the labels"):
            read_labels(path)


def test_a_file_too_large_for_labels(tmp_path):
    path = tmp_path / "labels.txt"
    with path.open("wb") as f:
        f.truncate(17 * 2**20)
    with pytest.raises(SourceError, match="larger than 16 MiB"):
        read_labels(path)


def test_labels_give_the_number_of_classes(tmp_path):
    source = load_source(spec(labels=write(tmp_path, "cat\ndog\neel")))
    assert source.labels == ("cat", "dog", "eel")
    with torch.inference_mode():
        assert source.module(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_labels_that_do_not_match_the_number_of_classes(tmp_path):
    with pytest.raises(SourceError, match="--labels has 2 names, --num-classes is 3"):
        load_source(spec(labels=write(tmp_path, "cat\ndog"), num_classes=3))


# Modules.


def test_a_module_is_counted_put_in_evaluation_mode_and_reparameterized(tiny_net):
    module = models.build_model(ARCH, num_classes=3).train()
    source = from_module(module, "mine", PREPROCESSING)
    assert source.module is module
    assert not module.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert source.labels == ("0", "1", "2")


def test_every_part_of_a_module_is_reparameterized():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = models.build_model(ARCH, num_classes=3), models.build_model(ARCH, num_classes=3)

        def forward(self, x):
            return self.a(x) + self.b(x)

    source = from_module(Two(), "two", PREPROCESSING)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in source.module.modules())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 4, 3), "gives something other than scores"),
        (nn.Conv2d(1, 4, 3), "does not run on images of 32×32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "does not run on images of 32×32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)).half(), r"parameters of torch\.float16: export it in float32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)).double(), r"parameters of torch\.float64"),
    ],
)
def test_modules_that_cannot_be_exported(module, message):
    with pytest.raises(SourceError, match=message) as caught:
        from_module(module, "mine", PREPROCESSING)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [AssertionError(), KeyError("k"), ValueError("several\nlines")])
def test_a_module_that_raises_anything(error):
    class Broken(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(SourceError, match=r"mine does not run on images of 32×32: \S") as caught:
        from_module(Broken(), "mine", PREPROCESSING)
    assert "\n" not in str(caught.value)


def test_labels_of_a_module_must_match():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    assert from_module(module, "mine", PREPROCESSING, labels=("a", "b")).labels == ("a", "b")
    with pytest.raises(SourceError, match="there are 3 labels and mine has 2 classes"):
        from_module(module, "mine", PREPROCESSING, labels=("a", "b", "c"))


def test_a_batch_norm_without_statistics_says_so():
    module = models.build_model(ARCH, num_classes=3)
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean = norm.running_var = None
    norm.track_running_stats = False
    with pytest.raises(SourceError, match="mine cannot be reparameterized: "):
        from_module(module, "mine", PREPROCESSING)
