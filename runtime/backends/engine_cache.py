"""Small files that make the next start faster and that may be missing, stale or damaged at any time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

_MAGIC = b"holocron-cache-1\n"
_DIGEST = hashlib.sha256().digest_size
_LARGEST = 2**30


class PairedFile:
    """A cache that belongs to one other file: damaged, or of another, it reads as if it were not there.

    Args:
        path: of the cache
        owner: the bytes that it belongs to
    """

    def __init__(self, path: Path, owner: bytes) -> None:
        self.path = path
        self._owner = hashlib.sha256(owner).digest()
        self._content: bytes | None = None

    def read(self) -> bytes | None:
        """What was written last; None if there is nothing of use."""
        try:
            if self.path.stat().st_size > _LARGEST:
                return None
            data = self.path.read_bytes()
        except OSError:
            return None
        head = _MAGIC + self._owner
        digest, content = data[len(head) : len(head) + _DIGEST], data[len(head) + _DIGEST :]
        if not data.startswith(head) or hashlib.sha256(content).digest() != digest:
            return None
        self._content = content
        return content

    def write(self, content: bytes) -> None:
        """Replace the file at once, if the content is new; a folder that cannot be written is no error."""
        if content == self._content:
            return
        write_atomically(self.path, _MAGIC + self._owner + hashlib.sha256(content).digest() + content)
        self._content = content


def write_atomically(path: Path, data: bytes) -> bool:
    """Put a file in place whole, or not at all.

    Returns:
        whether it is there; False where the folder cannot be written or the disk is full
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        return False
    return True


def cache_folder() -> Path:
    """Where this user's caches are: `$XDG_CACHE_HOME/holocron-edge`, or in `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "holocron-edge"
