"""`holocron-export`: what it prints, where, and how it ends."""

import json
import pickle
import re
import signal
import sys

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from calib import METHODS
from export.cli import main
from export.progress import Silent, Terminal
from holocron.models import registry
from runtime.manifest import read_manifest


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command in an empty folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments):
        handler = signal.getsignal(signal.SIGTERM)
        done = CliRunner().invoke(main, [str(a) for a in arguments])
        assert signal.getsignal(signal.SIGTERM) is handler
        return done

    return run


@pytest.fixture
def architecture(monkeypatch, tiny_net):
    """The little classifier as an architecture that the command knows."""

    def tiny_arch(pretrained=False, checkpoint=None, progress=True, num_classes=5, **kwargs) -> nn.Module:
        return tiny_net(classes=num_classes)

    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    registry.register_model()(tiny_arch)
    return "tiny_arch"


def test_an_architecture_becomes_a_bundle(run, tmp_path, architecture, photos):
    done = run(architecture, "--weights", "none", "--input-size", 24, 20, "--num-classes", 3, "--calib", photos)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == architecture
    assert "model.onnx" in done.stdout
    assert re.search(r"tracing at 24×20: \d+\.\d s\n", done.stderr)
    manifest = read_manifest(tmp_path / "cwd" / architecture)
    assert manifest.labels == ("0", "1", "2")

    again = run(architecture, "--weights", "none")
    assert (again.exit_code, again.stdout) == (2, "")
    exists = f"error: {architecture} exists: pass --force to replace it, or choose another folder with -o"
    assert again.stderr == f"{exists}; or name it ./{architecture} to add to it\n"

    added = run(f"./{architecture}", "--fp16", "--json")
    assert (added.exit_code, json.loads(added.stdout)["made"]) == (0, ["model.fp16.onnx"])
    anew = run(architecture, "--weights", "none", "--input-size", 24, 20, "--num-classes", 4, "--force", "--json")
    assert (anew.exit_code, json.loads(anew.stdout)["made"]) == (0, ["model.onnx"])
    assert len(read_manifest(tmp_path / "cwd" / architecture).labels) == 4


def test_every_option_of_a_bundle(run, own_bundle, photos, tmp_path):
    out = tmp_path / "out"
    options = ["--fp16", "--int8", "--calib", photos, "--calib-samples", 5, "--calib-method", "minmax", "--seed", 7]
    done = run(own_bundle, "-o", out, *options, "--rtx", "--max-batch", 2, "--force", "--json", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["bundle"] == str(out)
    graphs = [file for file in result["made"] if file.endswith(".onnx")]
    assert sorted(graphs) == ["model.fp16.onnx", "model.int8.cpu.onnx", "model.int8.trt.onnx"]
    assert [a["engine"]["max_batch"] for a in result["artefacts"] if a["engine"]] == [2, 2]
    assert any("calibrating on 5 images only" in w for w in result["warnings"])
    by_file = {a["file"]: a for a in result["artefacts"]}
    assert by_file["model.int8.cpu.onnx"]["verification"]["reference"] == "onnx-fp32"
    assert [a.file for a in read_manifest(out).artefacts] == list(by_file)
    cache = json.loads((out / "calibration.json").read_text())
    assert (cache["method"], cache["image_count"]) == ("minmax", 5)


def test_json_is_alone_on_stdout(run, own_bundle):
    done = run(own_bundle, "--fp16", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["made"] == ["model.fp16.onnx"]
    assert "converting to float16" in done.stderr


def test_quiet_says_nothing_but_the_result(run, own_bundle):
    done = run(own_bundle, "--int8", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "model.int8.cpu.onnx" in done.stdout


def test_warnings_go_to_stderr(run, own_bundle):
    done = run(own_bundle, "--int8")
    assert "warning: calibrating on the few sample images" in done.stderr
    assert "warning:" not in done.stdout


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(run, flag):
    done = run(flag)
    assert (done.exit_code, done.stderr) == (0, "")
    documented = """
        --output --weights --num-classes --labels --input-size --fp16 --int8 --int8-report --calib --calib-samples
        --calib-method --eval --max-batch --trt --rtx --rtx-capability --cpp --force --seed --json --quiet
    """
    for option in documented.split():
        assert re.search(rf"{option}\b", done.stdout), option
    assert all(method in done.stdout for method in METHODS)
    assert "default|none|ENTRY|FILE" in done.stdout
    assert "no torch needed" in done.stdout


# Bad input: one line, exit code 2, nothing left.


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.fixture
def files(tmp_path, photos):
    """What the bad command lines below refer to."""
    root = tmp_path / "files"
    (root / "empty").mkdir(parents=True)
    (root / "unreadable").mkdir()
    (root / "unreadable" / "a.png").write_bytes(b"no image")
    (root / "labels.txt").write_text("cat\ndog\n")
    (root / "twice.txt").write_text("cat\ncat\n")
    (root / "taken").mkdir()
    (root / "taken" / "mine.txt").write_text("mine")
    (root / "corrupt.pth").write_bytes(b"PK\x03\x04 damaged")
    (root / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"head.weight": torch.zeros(3, 3)}, root / "other.pth")
    net = nn.Sequential(nn.Linear(2, 2))
    torch.save(net, root / "whole.pth")
    return root


BAD = {
    "nothing": ([], "Missing argument 'MODEL'"),
    "unknown option": (["repvgg_a0", "--fast"], "No such option"),
    "unknown architecture": (["repvg_a0"], "unknown model 'repvg_a0': did you mean"),
    "corrupt checkpoint": (
        ["mobileone_s0", "--weights", "{files}/corrupt.pth"],
        "damaged, cut off or of",
    ),
    "pickle that runs code": (["mobileone_s0", "--weights", "{files}/evil.pth"], "evil.pth"),
    "whole module": (["mobileone_s0", "--weights", "{files}/whole.pth"], "may run code"),
    "other architecture": (["mobileone_s0", "--weights", "{files}/other.pth"], "does not fit this MobileOne"),
    "no such weights": (["mobileone_s0", "--weights", "{files}/none.pth"], "no such file"),
    "labels and classes": (
        ["mobileone_s0", "--weights", "none", "--labels", "{files}/labels.txt", "--num-classes", "3"],
        "--labels has 2 names, --num-classes is 3",
    ),
    "repeated label": (["mobileone_s0", "--weights", "none", "--labels", "{files}/twice.txt"], "'cat' 2 times"),
    "no such labels": (["mobileone_s0", "--weights", "none", "--labels", "{files}/no.txt"], "cannot read the labels"),
    "labels that are a folder": (["mobileone_s0", "--labels", "{files}"], "is a directory"),
    "no such calibration folder": (
        ["{own}", "--int8", "--calib", "{files}/nowhere"],
        "nowhere is not a folder",
    ),
    "calibration file": (["{own}", "--int8", "--calib", "{files}/labels.txt"], "is a file"),
    "empty calibration folder": (["{own}", "--int8", "--calib", "{files}/empty"], "there is no image in"),
    "unreadable calibration folder": (["{own}", "--int8", "--calib", "{files}/unreadable"], "images is readable"),
    "empty evaluation folder": (["{own}", "--fp16", "--eval", "{files}/empty"], "has no folders"),
    "unknown method": (["{own}", "--int8", "--calib-method", "best"], "'best' is not one of"),
    "no samples": (["{own}", "--int8", "--calib-samples", "0"], "--calib-samples 0 is out of range"),
    "output that exists": (["mobileone_s0", "--weights", "none", "-o", "{own}"], "exists: pass --force"),
    "output that is no bundle": (
        ["mobileone_s0", "--weights", "none", "-o", "{files}/taken", "--force"],
        "holds something other than a bundle",
    ),
    "output that is a file": (["mobileone_s0", "-o", "{files}/labels.txt"], "is a file"),
    "option that a bundle does not take": (["{own}", "--num-classes", "3"], "--num-classes cannot change an existing"),
    "one number for a size": (["mobileone_s0", "--input-size", "32"], "requires 2 arguments"),
    "size of zero": (["mobileone_s0", "--input-size", "0", "32"], "--input-size 0 is out of range"),
    "size that the network cannot take": (
        ["{arch}", "--weights", "none", "--input-size", "1", "1", "--labels", "{files}/labels.txt", "--trt"],
        "--trt needs `tensorrt`|which has none",
    ),
    "capability without rtx": (["{own}", "--rtx-capability", "8.6"], "add --rtx"),
    "no capability": (["{own}", "--rtx", "--rtx-capability", "ada"], "'ada' is not a compute capability"),
    "trt": (["{own}", "--trt"], "--trt needs `tensorrt`|which has none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(run, own_bundle, files, tmp_path, monkeypatch, architecture, name):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    arguments, message = BAD[name]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = run(*[a.format(own=own_bundle, files=files, arch=architecture) for a in arguments])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not re.search(r": \d+\.\d s$|^warning: ", line)]
    assert len(errors) == 1, errors
    assert re.search(rf"^error: .*({message})", errors[0]), errors
    assert "this must not run" not in done.output
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("name", ["unknown architecture", "corrupt checkpoint", "empty calibration folder", "trt"])
def test_bad_input_is_exactly_one_line_when_quiet(run, own_bundle, files, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    arguments, _ = BAD[name]
    done = run(*[a.format(own=own_bundle, files=files) for a in arguments], "-q", "--json")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)


def test_a_download_that_fails(run, monkeypatch, tmp_path):
    from holocron.models import loading

    fetch = loading.download
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(
        loading, "download", lambda url, **options: fetch((tmp_path / "nowhere.pth").as_uri(), **options)
    )
    done = run("mobileone_s0", "-q")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]*nowhere\.pth[^\n]* --weights FILE or --weights none\n", done.stderr)
    assert list((tmp_path / "cwd").iterdir()) == []


def test_an_interrupt(run, own_bundle, monkeypatch):
    from export import cli

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_export", interrupted)
    done = run(own_bundle, "--fp16")
    assert (done.exit_code, done.stderr) == (130, "error: interrupted\n")


# Progress.


class Screen:
    def __init__(self, live):
        self.live, self.text = live, ""

    def isatty(self):
        return self.live

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_log_gets_a_line_a_step(capsys):
    screen = Screen(live=False)
    progress = Terminal(screen)
    with progress.stage("tracing"):
        progress.update(1, 2)
        progress.warn("look out")
    assert re.fullmatch(r"warning: look out\ntracing: \d+\.\d s\n", screen.text)


def test_a_terminal_counts_while_a_step_runs():
    screen = Screen(live=True)
    progress = Terminal(screen)
    with progress.stage("calibrating"):
        progress.update(1, None)
        progress.update(2, 2)
    assert screen.text.startswith("\rcalibrating …")
    assert "calibrating 1/? …" in screen.text
    assert "calibrating 2/2 …" in screen.text
    assert re.search(r"\r\x1b\[Kcalibrating: \d+\.\d s\n$", screen.text)


@pytest.mark.parametrize("live", [True, False])
def test_a_step_that_fails_leaves_the_line_to_the_error(live):
    screen = Screen(live)
    with pytest.raises(ValueError, match="no"), Terminal(screen).stage("tracing"):
        raise ValueError("no")
    assert screen.text.endswith("\n") is live


def test_silence(capsys):
    progress = Silent()
    with progress.stage("tracing"):
        progress.update(1, 2)
        progress.warn("look out")
    assert capsys.readouterr() == ("", "")
