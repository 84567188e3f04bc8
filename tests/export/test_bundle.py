"""Writing a bundle: whole or not at all, whatever happens meanwhile."""

import errno
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from export import bundle as bundle_module
from export import export_model
from export.bundle import BundleWriter, check_destination
from export.errors import ExportError
from runtime.manifest import Manifest, Preprocessing, TensorSpec, artefact_path, read_manifest


def manifest(*artefacts):
    return Manifest(
        "tiny",
        "classification",
        ("a", "b"),
        (TensorSpec("input", "float32", ("batch", 3, 8, 8)),),
        (TensorSpec("logits", "float32", ("batch", 2)),),
        Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        tuple(artefacts),
    )


def write(destination, data=b"graph", replace=False):
    with BundleWriter(destination, replace) as writer:
        return writer.commit(manifest(writer.add("model.onnx", data)))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_is_written(tmp_path, holds_only):
    folder = write(tmp_path / "new" / "deep" / "tiny")
    assert holds_only(folder.parent, "tiny")
    assert holds_only(folder, "manifest.json", "model.onnx")
    (artefact,) = read_manifest(folder).artefacts
    assert artefact_path(folder, artefact).read_bytes() == b"graph"
    assert (artefact.size, artefact.kind, artefact.precision, artefact.scheme) == (5, "onnx", "fp32", None)
    assert artefact.sha256 == hashlib.sha256(b"graph").hexdigest()


def test_it_is_as_readable_as_any_folder(tmp_path):
    mask = os.umask(0o022)
    try:
        folder = write(tmp_path / "tiny")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "manifest.json").stat().st_mode) == 0o644
    assert os.umask(mask) == mask


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
@pytest.mark.parametrize("existing", [False, True])
def test_leaving_early_leaves_nothing(tmp_path, holds_only, error, existing):
    destination = tmp_path / "new" / "tiny"
    if existing:
        write(destination, b"old")

    def leave():
        with BundleWriter(destination, replace=True) as writer:
            writer.add("model.onnx", b"new")
            raise error

    with pytest.raises(type(error)):
        leave()
    if existing:
        assert holds_only(destination.parent, "tiny")
        assert contents(destination)["model.onnx"] == b"old"
    else:
        assert holds_only(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["artefact", "manifest"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, holds_only, code, when):
    destination = tmp_path / "new" / "tiny"
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == (1 if when == "artefact" else 2):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ExportError, match=r"^cannot write .*(model\.onnx|manifest\.json): \S") as caught:
        write(destination)
    assert "\n" not in str(caught.value)
    if code == errno.ENOSPC:
        assert "the disk is full: free some space" in str(caught.value)
    assert holds_only(tmp_path)


def test_a_disk_that_fills_while_files_are_kept(tmp_path, monkeypatch, holds_only):
    old = write(tmp_path / "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExportError, match="the disk is full"), BundleWriter(tmp_path / "tiny") as writer:
        writer.keep(old, "model.onnx")
    assert holds_only(tmp_path, "old")


def test_a_name_that_is_too_long(tmp_path, holds_only):
    with pytest.raises((ExportError, OSError)):
        write(tmp_path / ("x" * 300))
    assert holds_only(tmp_path)


def test_replacing(tmp_path, holds_only):
    write(tmp_path / "tiny", b"old")
    write(tmp_path / "tiny", b"new", replace=True)
    assert holds_only(tmp_path, "tiny")
    assert contents(tmp_path / "tiny")["model.onnx"] == b"new"


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("fails", [False, True])
def test_replacing_where_folders_cannot_be_exchanged(tmp_path, monkeypatch, holds_only, reason, fails):
    """On a file system or a system without renameat2."""
    write(tmp_path / "tiny", b"old")

    class Libc:
        def __init__(self, *args, **kwargs):
            pass

        def renameat2(self, *args):
            return -1

    monkeypatch.setattr(bundle_module.ctypes, "CDLL", Libc)
    monkeypatch.setattr(bundle_module.ctypes, "get_errno", lambda: reason)
    if fails:
        rename = Path.rename

        def stop(self, target):
            if self.name.endswith(".partial"):
                raise PermissionError(errno.EACCES, "no")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", stop)
        with pytest.raises(ExportError, match="permission denied"):
            write(tmp_path / "tiny", b"new", replace=True)
    else:
        write(tmp_path / "tiny", b"new", replace=True)
    assert holds_only(tmp_path, "tiny")
    assert contents(tmp_path / "tiny")["model.onnx"] == (b"old" if fails else b"new")


def test_an_exchange_that_fails(tmp_path, monkeypatch, holds_only):
    write(tmp_path / "tiny", b"old")

    class Libc:
        def __init__(self, *args, **kwargs):
            pass

        def renameat2(self, *args):
            return -1

    monkeypatch.setattr(bundle_module.ctypes, "CDLL", Libc)
    monkeypatch.setattr(bundle_module.ctypes, "get_errno", lambda: errno.EACCES)
    with pytest.raises(ExportError, match="permission denied: choose a folder"):
        write(tmp_path / "tiny", b"new", replace=True)
    assert holds_only(tmp_path, "tiny")
    assert contents(tmp_path / "tiny")["model.onnx"] == b"old"


def test_what_must_not_be_replaced(tmp_path):
    write(tmp_path / "tiny")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("tiny")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = contents(tmp_path / "photos") | contents(tmp_path / "tiny")

    refused = {
        ("tiny", False): "exists: pass --force to replace it, or choose another folder with -o",
        ("file", True): "exists and is not a folder",
        ("pipe", True): "exists and is not a folder",
        ("link", True): "exists and is not a folder",
        ("dangling", True): "exists and is not a folder",
        ("photos", True): "holds something other than a bundle, and --force replaces bundles only",
        (".", True): "cannot be a bundle's folder",
        ("..", True): "cannot be a bundle's folder",
    }
    for (name, replace), message in refused.items():
        destination = tmp_path / name if name[0] != "." else Path(name)
        with pytest.raises(ExportError, match=message):
            check_destination(destination, replace)
        with pytest.raises(ExportError, match=message):
            BundleWriter(destination, replace)
    assert contents(tmp_path / "photos") | contents(tmp_path / "tiny") == before
    check_destination(tmp_path / "tiny", True)
    check_destination(tmp_path / "new", False)


def test_an_empty_folder_is_taken_with_force_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="exists: pass --force"):
        write(tmp_path / "empty")
    write(tmp_path / "empty", replace=True)
    assert read_manifest(tmp_path / "empty").name == "tiny"


def test_somebody_else_who_was_faster_wins(tmp_path, holds_only):
    with BundleWriter(tmp_path / "tiny") as writer:
        artefact = writer.add("model.onnx", b"ours")
        write(tmp_path / "tiny", b"theirs")
        with pytest.raises(ExportError, match="exists: pass --force"):
            writer.commit(manifest(artefact))
    assert holds_only(tmp_path, "tiny")
    assert contents(tmp_path / "tiny")["model.onnx"] == b"theirs"


def test_photographs_put_there_meanwhile_survive_force(tmp_path):
    with BundleWriter(tmp_path / "tiny", replace=True) as writer:
        artefact = writer.add("model.onnx", b"ours")
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "a.png").write_bytes(b"mine")
        with pytest.raises(ExportError, match="holds something other than a bundle"):
            writer.commit(manifest(artefact))
    assert contents(tmp_path / "tiny") == {"a.png": b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path, holds_only):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ExportError, match="permission denied: choose a folder that you may write"):
        write(tmp_path / "closed" / "tiny")
    assert holds_only(tmp_path / "closed")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_permissions_as_the_system_reports_them(tmp_path, monkeypatch, holds_only, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(bundle_module.tempfile, "mkdtemp", refuse)
    with pytest.raises(ExportError, match=rf"^cannot write {tmp_path}.*: choose (a|another) folder .*-o$"):
        write(tmp_path / "new" / "tiny")
    assert holds_only(tmp_path)


def test_a_parent_that_is_a_file(tmp_path, holds_only):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ExportError, NotADirectoryError)):
        write(tmp_path / "file" / "tiny")
    assert holds_only(tmp_path, "file")


@pytest.mark.parametrize("links", [True, False])
def test_kept_files_are_linked_or_copied(tmp_path, monkeypatch, links):
    old = write(tmp_path / "old", b"graph")
    if not links:

        def refuse(*args, **kwargs):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.keep(old, "model.onnx")
        writer.commit(read_manifest(old))
    a, b = old / "model.onnx", tmp_path / "tiny" / "model.onnx"
    assert b.read_bytes() == b"graph"
    assert a.samefile(b) is links
    shutil.rmtree(old)
    assert b.read_bytes() == b"graph"


def test_of_a_link_the_file_is_kept(tmp_path):
    old = write(tmp_path / "old", b"graph")
    (old / "model.onnx").rename(old / "data")
    (old / "model.onnx").symlink_to("data")
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.keep(old, "model.onnx")
        writer.commit(read_manifest(old))
    kept = tmp_path / "tiny" / "model.onnx"
    assert not kept.is_symlink()
    assert kept.read_bytes() == b"graph"


def test_a_writer_that_is_not_open(tmp_path):
    with pytest.raises(RuntimeError, match="not open"):
        BundleWriter(tmp_path / "tiny").write("a", b"")


# Through the exporter, in a process that is stopped halfway.


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130), (signal.SIGINT, 130)],
    ids=["kill -9", "SIGTERM", "Ctrl-C"],
)
def test_an_export_that_is_stopped_leaves_the_old_bundle_whole(own_bundle, photos, tmp_path, number, code):
    before = contents(own_bundle)
    marker = tmp_path / "halfway"
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import pathlib, sys, time
            from export import cli, pipeline

            marker = pathlib.Path(sys.argv[1])

            def commit(self, manifest):
                marker.write_text("all files are written, the manifest is not")
                time.sleep(60)

            pipeline.BundleWriter.commit = commit
            cli.main(sys.argv[2:])
            """
        )
    )
    command = [sys.executable, script, marker, own_bundle, "--int8", "--calib", photos, "-q"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert marker.exists(), process.communicate()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert contents(own_bundle) == before
    for artefact in read_manifest(own_bundle).artefacts:
        artefact_path(own_bundle, artefact)
    leftovers = [p.name for p in own_bundle.parent.iterdir() if p.name not in ("own", "halfway", "script.py")]
    if number == signal.SIGKILL:
        assert all(name.startswith(".own.") for name in leftovers)  # hidden, and no bundle's name
        # What is left does not stand in the way of the next try.
        export_model(own_bundle, int8=True, calib=photos)
    else:
        assert leftovers == []
        assert (out, err) == ("", "error: interrupted\n")
