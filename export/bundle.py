"""Writing a bundle so that whoever looks sees the old one whole, or the new one whole, and never anything between."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from runtime.manifest import MANIFEST_NAME, Artefact, EngineInfo, Manifest

from .errors import ExportError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class BundleWriter:
    """Collects a bundle's files in a hidden folder beside the destination and renames it into place at the end.

    A context manager: leaving it without :meth:`commit`, through an error, a full disk or an interrupt, removes the
    hidden folder and leaves the destination as it was.

    Args:
        destination: the bundle's folder
        replace: whether an existing folder is replaced

    Raises:
        ExportError: if the destination exists and is not to be replaced, or is no folder, or cannot be written
    """

    def __init__(self, destination: Path, replace: bool = False) -> None:
        self.destination = destination
        check_destination(destination, replace)
        self._replace = replace
        self._staging: Path | None = None
        self._made_parents: list[Path] = []

    def __enter__(self) -> BundleWriter:
        parent = self.destination.absolute().parent
        try:
            self._made_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            self._staging = staging_folder(parent / self.destination.name)
        except OSError as e:
            self._remove()
            raise _disk_error(e, parent) from e
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        with contextlib.suppress(OSError):  # it holds something: the bundle itself, or what somebody else put there
            for folder in self._made_parents:
                folder.rmdir()

    @property
    def folder(self) -> Path:
        """The hidden folder that becomes the bundle."""
        if self._staging is None:
            raise RuntimeError("the bundle writer is not open")
        return self._staging

    def add(
        self,
        file: str,
        data: bytes,
        kind: str = "onnx",
        precision: str = "fp32",
        scheme: str | None = None,
        engine: EngineInfo | None = None,
    ) -> Artefact:
        """Write one artefact.

        Args:
            file: its name in the bundle
            data: its content
            kind: `"onnx"` or `"engine"`
            precision: `"fp32"`, `"fp16"` or `"int8"`
            scheme: quantization scheme of an int8 artefact
            engine: what an engine was built with

        Returns:
            its entry for the manifest, not yet verified

        Raises:
            ExportError: if the disk does not take it
        """
        self.write(file, data)
        digest = hashlib.sha256(data).hexdigest()
        return Artefact(file, kind, precision, len(data), digest, scheme=scheme, engine=engine)

    def keep(self, bundle: Path, file: str) -> None:
        """Take over a file of an existing bundle, by a hard link where the file system has them."""
        target = self.folder / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link((bundle / file).resolve(), target)  # of a link, what it leads to
            except OSError:
                shutil.copyfile(bundle / file, target)
        except OSError as e:
            raise _disk_error(e, target) from e

    def write(self, file: str, data: bytes) -> None:
        """Write any file of the bundle, on the disk when this returns.

        Raises:
            ExportError: if the disk does not take it
        """
        path = self.folder / file
        try:
            with path.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise _disk_error(e, path) from e

    def commit(self, manifest: Manifest) -> Path:
        """Write the manifest and move the bundle into place.

        Args:
            manifest: of the finished bundle

        Returns:
            the bundle's folder

        Raises:
            ExportError: if the folder cannot be moved there, or somebody else put one there meanwhile
        """
        self.write(MANIFEST_NAME, manifest.to_json().encode())
        check_destination(self.destination, self._replace)
        try:
            if self.destination.exists():
                _exchange(self.folder, self.destination)  # the old bundle is now the hidden folder, and goes with it
            else:
                self.folder.rename(self.destination)
        except OSError as e:
            raise _disk_error(e, self.destination) from e
        return self.destination


def check_destination(destination: Path, replace: bool) -> None:
    """Refuse a destination that must not be written, before any work is done for it.

    Raises:
        ExportError: if it exists and is not to be replaced, or is something other than a bundle
    """
    if destination.name in ("", ".", ".."):
        raise ExportError(f"{destination} cannot be a bundle's folder: name one, as in -o exports/repvgg_a0")
    if not destination.exists() and not destination.is_symlink():
        return
    if not destination.is_dir() or destination.is_symlink():
        raise ExportError(f"{destination} exists and is not a folder: choose another with -o")
    if not replace:
        add = f"; or name it ./{destination} to add to it" if destination.name == str(destination) else ""
        raise ExportError(f"{destination} exists: pass --force to replace it, or choose another folder with -o{add}")
    if any(destination.iterdir()) and not (destination / MANIFEST_NAME).is_file():
        raise ExportError(f"{destination} holds something other than a bundle, and --force replaces bundles only")


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, atomically where the system can."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        swap = getattr(libc, "renameat2", None)
        if swap is not None:
            if swap(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
                return
            if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = new.with_suffix(".replaced")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    with contextlib.suppress(OSError):
        shutil.rmtree(aside)


def staging_folder(destination: Path) -> Path:
    """Make an empty folder beside a destination, to be filled and renamed into its place.

    Args:
        destination: whose parent exists

    Raises:
        OSError: if it cannot be made
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent))
    try:
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)  # mkdtemp makes it private; this is as readable as any folder of its owner
    except OSError:
        staging.rmdir()
        raise
    return staging


def _disk_error(error: OSError, path: Path) -> ExportError:
    reasons = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EACCES: "permission denied: choose a folder that you may write with -o",
        errno.EROFS: "the file system is read-only: choose another folder with -o",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return ExportError(f"cannot write {path}: {reason}")
