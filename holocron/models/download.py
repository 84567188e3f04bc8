"""Fetching a file into the cache: resumed where it was cut, verified before it is trusted, safe to run concurrently."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from tqdm import tqdm

from holocron.models.errors import DownloadError, HashMismatchError, TruncatedDownloadError

__all__ = ["cache_directory", "download", "sha256_of"]

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0


def cache_directory() -> Path:
    """Folder that downloads are kept in: ``checkpoints`` under :func:`torch.hub.get_dir`, which follows TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str, *, sha256: str | None = None, size: int | None = None, progress: bool = True, folder: Path | None = None
) -> Path:
    """Return the local copy of a file, fetching it if there is none.

    The file arrives under a ``.part`` name and gets its own only once its digest is right, so whatever bears the final
    name is whole. A ``.part`` left by an interrupted call is continued with an HTTP range request, unless there is no
    digest that could tell whether the two halves belong together. Concurrent calls for one file wait for each other,
    and only the first of them fetches.

    Args:
        url: address of the file, ``http://``, ``https://`` or ``file://``.
        sha256: expected hexadecimal digest. Without it the content is taken as it comes.
        size: announced size in bytes, for the progress bar where the server does not tell.
        progress: whether to draw a progress bar on the standard error stream.
        folder: where the file is kept; :func:`cache_directory` if not given.

    Returns:
        path of the file, named like the last component of the address

    Raises:
        ValueError: if the address has another scheme or does not name a file.
        DownloadError: if the file cannot be fetched or written.
        TruncatedDownloadError: if the transfer ended early; the next call resumes it.
        HashMismatchError: if the content is not the expected one.
    """
    target = (cache_directory() if folder is None else folder) / _file_name(url)
    expected = None if sha256 is None else sha256.lower()
    if _is_valid(target, expected):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.with_name(target.name + ".lock")):
            # Whoever held the lock before may have fetched it.
            if not _is_valid(target, expected):
                part = target.with_name(target.name + ".part")
                _Transfer(url, part, target, expected, size, progress).run()
                part.replace(target)
    except OSError as error:
        raise DownloadError(
            f"cannot store {url} as {target}: {error.strerror or error}. Make room there, or set TORCH_HOME to another "
            "folder"
        ) from error
    return target


def _file_name(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https", "file"}:
        raise ValueError(f"cannot download {url!r}: expected an http://, https:// or file:// address")
    name = PurePosixPath(unquote(parts.path)).name
    if name in {"", ".."} or "\\" in name or "\0" in name:
        raise ValueError(f"cannot download {url!r}: the address does not end in the name of a file")
    return name


def _is_valid(path: Path, expected: str | None) -> bool:
    return path.is_file() and (expected is None or sha256_of(path) == expected)


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file that is removed afterwards; threads and processes alike wait for their turn."""
    try:
        import fcntl
    except ImportError:
        # Windows: two downloads of one file at once may spoil each other's part, which the digest then tells.
        yield
        return
    while True:
        file = lock.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        # The previous holder may have removed the file while we waited: then the lock we got is on nothing.
        try:
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        except FileNotFoundError:
            pass
        file.close()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


class _Transfer:
    """One attempt to complete a part file.

    Args:
        url: address of the file.
        part: file that what arrives is appended to.
        target: name the file will get, for the messages.
        sha256: expected digest, in lower case, or None.
        size: announced size in bytes, or None.
        progress: whether to draw a progress bar.
    """

    def __init__(
        self, url: str, part: Path, target: Path, sha256: str | None, size: int | None, progress: bool
    ) -> None:
        self.url = url
        self.part = part
        self.target = target
        self.sha256 = sha256
        self.size = size
        self.progress = progress
        self.digest = hashlib.sha256()

    def run(self) -> None:
        """Fetch what is missing of the part file and verify the whole.

        Raises:
            OSError: if the part file cannot be written.
        """
        have = self._reuse_part()
        # The interruption may have come after the last byte.
        if have and self.digest.hexdigest() == self.sha256:
            return
        with self._open(have) as response:
            start = have if self._continues(response, have) else 0
            if not start:
                self.digest = hashlib.sha256()
            self._receive(response, start)
        if self.sha256 is not None and self.digest.hexdigest() != self.sha256:
            self.part.unlink(missing_ok=True)
            raise HashMismatchError(
                f"{self.url} has sha256 {self.digest.hexdigest()}, expected {self.sha256}: the file was changed on the "
                "way or at its source. It has been removed; try again, and do not use it if this repeats"
            )

    def _reuse_part(self) -> int:
        """Count and digest the bytes of an earlier attempt."""
        if self.sha256 is None:
            self.part.unlink(missing_ok=True)
            return 0
        if not self.part.exists():
            return 0
        with self.part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self.digest.update(chunk)
            return file.tell()

    def _open(self, start: int) -> Any:
        request = urllib.request.Request(self.url, headers={"User-Agent": "holocron", "Accept-Encoding": "identity"})  # noqa: S310 - the scheme was checked
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310 - the scheme was checked
        except urllib.error.HTTPError as error:
            error.close()
            # The part is longer than the file: it belongs to something else.
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return self._open(0)
            raise DownloadError(self._failure(f"the server answered {error.code} {error.reason}")) from error
        except urllib.error.URLError as error:
            raise DownloadError(self._failure(str(error.reason))) from error
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(self._failure(str(error) or type(error).__name__)) from error

    def _failure(self, reason: str) -> str:
        digest = "" if self.sha256 is None else f" (sha256 {self.sha256})"
        return (
            f"cannot download {self.url}: {reason}. Without a network, fetch the file elsewhere and place it "
            f"at {self.target}{digest}"
        )

    @staticmethod
    def _continues(response: Any, start: int) -> bool:
        """Tell whether the server sends the rest, rather than the whole file again."""
        span = str(response.headers.get("Content-Range", ""))
        return bool(start) and response.status == http.client.PARTIAL_CONTENT and span.startswith(f"bytes {start}-")

    def _receive(self, response: Any, start: int) -> None:
        """Append the response to the part file, digesting it on the way."""
        length = _content_length(response.headers)
        total = None if length is None else start + length
        received = start
        with (
            self.part.open("ab" if start else "wb") as file,
            tqdm(
                desc=self.target.name,
                total=total if total is not None else self.size,
                initial=start,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=not self.progress,
            ) as bar,
        ):
            reason = "the connection closed"
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    reason = str(error) or type(error).__name__
                    break
                if not chunk:
                    if total is None or received >= total:
                        return
                    break
                file.write(chunk)
                self.digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        whole = "" if total is None else f" of {total}"
        if self.sha256 is None:
            # Nothing could tell whether a continuation belongs to what is there.
            self.part.unlink(missing_ok=True)
            remedy = "Try again"
        else:
            remedy = "What arrived is kept: the next call resumes from there"
        raise TruncatedDownloadError(f"{self.url} was cut off after {received}{whole} bytes ({reason}). {remedy}")


def _content_length(headers: Message) -> int | None:
    try:
        return int(headers["Content-Length"])
    except (TypeError, ValueError):
        return None
