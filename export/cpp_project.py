"""An example in C++ that opens a bundle: a folder beside it, ready to be built."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from runtime.manifest import Manifest

from .bundle import staging_folder
from .errors import ExportError

CHECKSUMS = "holocron-export.sha256"
"""File of a project that lists the others as they were written, as `sha256sum` does."""

_TEMPLATE = "cpp_template"
_NAMES = ("CMakeLists.txt", "main.cpp", "README.md")

_CLASSIFICATION = """\
void print(const holocron::Classification& result) {
    for (const auto& each : result.top(5)) {
        std::cout << each.score << ' ' << each.label << '\\n';
    }
}
"""
_DETECTION = """\
void print(const holocron::Detections& result) {
    for (std::size_t i = 0; i < result.size(); ++i) {
        const auto& box = result[i].box;
        std::cout << result[i].score << ' ' << result.label(i) << ' ' << box.xmin << ' ' << box.ymin << ' ' << box.xmax
                  << ' ' << box.ymax << '\\n';
    }
    for (const auto& remark : result.remarks()) {
        std::cerr << remark << '\\n';
    }
}
"""
_SEGMENTATION = """\
void print(const holocron::Segmentation& result) {
    for (const auto& each : result.regions()) {
        std::cout << each.share << ' ' << each.label << '\\n';
    }
}
"""
# The method of a model, what it does to an image, how its answer is printed.
_TASKS = {
    "classification": ("classify", "classifies", _CLASSIFICATION),
    "detection": ("detect", "finds the objects in", _DETECTION),
    "segmentation": ("segment", "tells the classes of the pixels of", _SEGMENTATION),
}


def project_folder(bundle: Path) -> Path:
    """Where the project of a bundle is: beside it, `repvgg_a0_cpp` of `repvgg_a0`."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}_cpp")


def check_project(bundle: Path, force: bool = False) -> None:
    """Make sure that the project of a bundle may be written.

    Args:
        bundle: the folder
        force: whether files that were changed since they were written are replaced

    Raises:
        ExportError: if there is something in its place that was not written by this, or was changed since
    """
    folder = project_folder(bundle)
    if not folder.exists() and not folder.is_symlink():
        return
    written = _checksums(folder)
    if written is None:
        raise ExportError(f"{folder} exists, and --cpp did not write it: move it away")
    changed = [name for name, digest in written.items() if _digest(folder / name) not in (digest, None)]
    if changed and not force:
        raise ExportError(
            f"{folder} was changed since --cpp wrote it ({', '.join(changed)}): pass --force to replace these files, "
            "or leave out --cpp"
        )


def write_project(bundle: Path, manifest: Manifest, force: bool = False) -> Path:
    """Write the project of a bundle: whole or not at all where there is none; over one that is there file by file.

    Args:
        bundle: the folder
        manifest: of the bundle
        force: whether files that were changed since they were written are replaced

    Returns:
        the project's folder

    Raises:
        ExportError: if there is something in its place, see :func:`check_project`, or it cannot be written
    """
    check_project(bundle, force)
    folder = project_folder(bundle)
    contents = project_files(bundle, manifest)
    sums = "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in contents.items())
    try:
        if folder.exists():
            # The checksums first: a file that an interrupt leaves as it was before reads as changed, not as foreign.
            for name, text in {CHECKSUMS: sums, **contents}.items():
                _replace(folder / name, text)
        else:
            _create(folder, {**contents, CHECKSUMS: sums})
    except OSError as e:
        raise ExportError(f"cannot write {folder}: {e.strerror or e}") from e
    return folder


def project_files(bundle: Path, manifest: Manifest) -> dict[str, str]:
    """The project's files by name.

    Args:
        bundle: the folder, which they name relative to the project
        manifest: of the bundle
    """
    method, does, printer = _TASKS[manifest.task]
    # In Markdown a name stands for itself; it may hold what a shell or Markdown would read.
    title = "".join(c if c.isalnum() or c in " -." else f"\\{c}" for c in manifest.name if c.isprintable())
    values = {
        "METHOD": method,
        "PRINT": printer,
        "DOES": does,
        "TITLE": title,
        "BUNDLE": shlex.quote(f"../{bundle.absolute().name}"),
    }
    template = files("export") / _TEMPLATE
    contents = {}
    for name in _NAMES:
        text = (template / name).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        contents[name] = text
    return contents


def _checksums(folder: Path) -> Mapping[str, str] | None:
    """The files that were written to a folder; None if it is not one of ours."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    written = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if name not in _NAMES:
            return None
        written[name] = digest
    return written


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is gone."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _create(folder: Path, contents: Mapping[str, str]) -> None:
    staging = staging_folder(folder)
    try:
        for name, text in contents.items():
            (staging / name).write_text(text, encoding="utf-8")
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _replace(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.partial")
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise
