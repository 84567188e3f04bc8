"""The example in C++ that `--cpp` writes beside a bundle."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from export.cli import main
from export.cpp_project import CHECKSUMS, check_project, project_files, project_folder, write_project
from export.errors import ExportError
from runtime.manifest import TASKS, read_manifest

RUNTIME = Path(__file__).resolve().parents[2] / "runtime" / "cpp"
METHODS = {"classification": "classify", "detection": "detect", "segmentation": "segment"}


@pytest.fixture
def manifest(own_bundle):
    return read_manifest(own_bundle)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def needs(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"the example is not built: there is no {tool} here")


def test_a_project_lies_beside_its_bundle(own_bundle, manifest):
    folder = write_project(own_bundle, manifest)
    assert folder == project_folder(own_bundle) == own_bundle.parent / f"{own_bundle.name}_cpp"
    assert sorted(snapshot(folder)) == ["CMakeLists.txt", "README.md", CHECKSUMS, "main.cpp"]
    assert not list(own_bundle.parent.glob(".*"))
    assert f"../{own_bundle.name} photo.jpg" in (folder / "README.md").read_text()
    for line in (folder / CHECKSUMS).read_text().splitlines():
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_method(own_bundle, manifest, task):
    files = project_files(own_bundle, replace(manifest, task=task))
    assert f"model.{METHODS[task]}(image.frame())" in files["main.cpp"]
    assert not any("@" in text.replace("@CMAKE", "") for text in files.values())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_compiles(own_bundle, manifest, task, tmp_path):
    needs("c++")
    (tmp_path / "main.cpp").write_text(project_files(own_bundle, replace(manifest, task=task))["main.cpp"])
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
    done = subprocess.run(
        ["c++", *options, f"-I{RUNTIME / 'include'}", "main.cpp"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ['a"; rm -rf *', "`id`", "@PRINT@", "a\nb", "*bold* [x](y) <b>", "数"])
def test_a_name_of_any_characters_is_text(own_bundle, manifest, name):
    files = project_files(own_bundle, replace(manifest, name=name))
    plain = project_files(own_bundle, manifest)
    for code in ("CMakeLists.txt", "main.cpp"):
        assert files[code] == plain[code]
    title = files["README.md"].splitlines()[0]
    assert title.endswith(" in C++")
    assert files["README.md"].count("\n") == plain["README.md"].count("\n")


def test_a_project_as_it_was_written_is_written_again(own_bundle, manifest):
    folder = write_project(own_bundle, manifest)
    (folder / "build").mkdir()
    (folder / "README.md").unlink()
    write_project(own_bundle, replace(manifest, task="detection"))
    assert "detect" in (folder / "main.cpp").read_text()
    assert (folder / "README.md").is_file()
    assert (folder / "build").is_dir()
    check_project(own_bundle)


def test_what_was_changed_is_kept_unless_forced(own_bundle, manifest):
    folder = write_project(own_bundle, manifest)
    original = (folder / "main.cpp").read_bytes()
    (folder / "main.cpp").write_bytes(original + b"// mine\n")
    before = snapshot(folder)
    with pytest.raises(ExportError, match=r"was changed since --cpp wrote it \(main\.cpp\): pass --force"):
        write_project(own_bundle, manifest)
    assert snapshot(folder) == before
    write_project(own_bundle, manifest, force=True)
    assert (folder / "main.cpp").read_bytes() == original


@pytest.mark.parametrize("kind", ["empty", "other", "file", "link", "dangling", "foreign list"])
def test_what_is_not_ours_is_never_replaced(own_bundle, manifest, tmp_path, kind):
    folder = project_folder(own_bundle)
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        write_project(own_bundle, manifest).rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "dangling":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        folder.mkdir()
        if kind == "other":
            (folder / "main.cpp").write_text("mine")
        if kind == "foreign list":
            (folder / CHECKSUMS).write_text(f"{'0' * 64}  ../../victim\n")
    for force in (False, True):
        with pytest.raises(ExportError, match="exists, and --cpp did not write it: move it away"):
            write_project(own_bundle, manifest, force)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written(own_bundle, manifest):
    own_bundle.parent.chmod(0o500)
    try:
        with pytest.raises(ExportError, match="Permission denied"):
            write_project(own_bundle, manifest)
    finally:
        own_bundle.parent.chmod(0o700)


def test_an_interrupt_leaves_nothing(own_bundle, manifest, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    before = sorted(own_bundle.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_project(own_bundle, manifest)
    assert sorted(own_bundle.parent.iterdir()) == before


def test_the_command_line(own_bundle):
    done = CliRunner().invoke(main, [str(own_bundle), "--cpp", "--json", "-q"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["cpp_project"] == str(project_folder(own_bundle))
    done = CliRunner().invoke(main, [str(own_bundle), "--cpp", "-q"])
    assert done.stdout.splitlines()[-2:] == [f"example in C++: {project_folder(own_bundle)}", str(own_bundle)]

    (project_folder(own_bundle) / "main.cpp").write_text("mine")
    before = (own_bundle / "manifest.json").read_bytes()
    done = CliRunner().invoke(main, [str(own_bundle), "--cpp", "--fp16"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "was changed since --cpp wrote it" in done.stderr
    assert (own_bundle / "manifest.json").read_bytes() == before  # it is refused before there is work


@pytest.mark.slow
def test_it_builds_and_runs(own_bundle, manifest, photos, tmp_path):
    needs("cmake", "c++")
    folder = write_project(own_bundle, manifest)
    openvino = importlib.util.find_spec("openvino")
    python = f"-DPython3_EXECUTABLE={sys.executable}"  # where OpenVINO's wheel is
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", folder, "-B", build, f"-DHOLOCRON_RUNTIME={RUNTIME}", python],
        ["cmake", "--build", build, "--target", "example"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(min(photos.iterdir())) as image:
        image.convert("RGB").save(tmp_path / "photo.ppm")
    done = subprocess.run([build / "example", own_bundle, tmp_path / "photo.ppm"], capture_output=True, text=True)
    if openvino is None:
        pytest.skip("the example was built, and not run: OpenVINO's Python wheel, which has the headers, is not here")
    assert (done.returncode, done.stderr) == (0, "")
    ranked = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert {label for _, label in ranked} == set(manifest.labels)
    assert [float(score) for score, _ in ranked] == sorted((float(score) for score, _ in ranked), reverse=True)
