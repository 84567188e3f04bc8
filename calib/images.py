"""The images that a model sees when it is calibrated: found, ordered, sampled and read in constant memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.images import IMAGE_EXTENSIONS
from runtime.manifest import Preprocessing
from runtime.preprocess import Preprocessor

from .errors import CalibrationError


def find_images(root: str | os.PathLike[str], samples: int | None = None, seed: int = 0) -> tuple[Path, ...]:
    """All images below a folder, or a random sample of them.

    Hidden files and folders are left out; links are followed, each folder is entered once. The sample depends on the
    names relative to `root`, on `samples` and on `seed` alone: it is the same on every machine, and a larger sample
    contains the smaller one.

    Args:
        root: the folder
        samples: number of images to draw without replacement; None or more than there are for all
        seed: of the draw

    Returns:
        the paths, sorted by their POSIX path relative to `root`

    Raises:
        CalibrationError: if `root` is no readable folder or has no image in it, or `samples` is below 1
    """
    folder = _folder(root)
    if samples is not None and samples < 1:
        raise CalibrationError(f"cannot calibrate on {samples} images: ask for 1 or more")
    found = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    if not found:
        raise CalibrationError(f"there is no image in {folder}: looked for {' '.join(sorted(IMAGE_EXTENSIONS))}")
    names = sorted(found)
    if samples is not None and samples < len(names):
        # Ranking by a hash needs no random generator whose stream might change with its version.
        names = sorted(sorted(names, key=lambda name: _rank(name, seed))[:samples])
    return tuple(found[name] for name in names)


def find_labelled_images(root: str | os.PathLike[str], labels: Sequence[str]) -> list[tuple[Path, int]]:
    """Images in one folder a class, with the index of their class.

    Folders are matched to labels by name, and then need not cover all labels. If no folder bears the name of a label,
    and there are as many folders as labels, they are matched in order: numbers by value, other names alphabetically.

    Args:
        root: the folder with the folders of the classes
        labels: names of the classes, in the order of the model's outputs

    Returns:
        path and class index, sorted by class, then by path

    Raises:
        CalibrationError: if the folders cannot be matched, or one of them has no image in it
    """
    folder = _folder(root)
    try:
        classes = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as e:
        raise CalibrationError(f"cannot read the folder {folder}: {e.strerror}") from e
    if not classes:
        raise CalibrationError(f"{folder} has no folders: put the images of each class in a folder of its name")
    numbers = all(path.name.isascii() and path.name.isdigit() for path in classes)
    classes.sort(key=lambda path: (int(path.name) if numbers else 0, path.name))
    unmatched = [path.name for path in classes if path.name not in labels]
    if not unmatched:
        ambiguous = [path.name for path in classes if labels.count(path.name) > 1]
        if ambiguous:
            raise CalibrationError(f"the folder {ambiguous[0]!r} of {folder} is the name of more than one label")
        indices = [labels.index(path.name) for path in classes]
    elif len(unmatched) < len(classes):
        raise CalibrationError(f"the folder {unmatched[0]!r} of {folder} is not a label of the model, others are")
    elif len(classes) == len(labels):
        indices = list(range(len(labels)))
    else:
        raise CalibrationError(
            f"{folder} has {len(classes)} folders, of which none bears the name of one of the model's {len(labels)} "
            f"labels (its first folder is {classes[0].name!r}, its first label {labels[0]!r})"
            if labels
            else f"the model has no labels to match the folders of {folder} with"
        )
    pairs = sorted(zip(indices, classes, strict=True))
    return [(path, index) for index, directory in pairs for path in find_images(directory)]


class ImageStream:
    """Preprocessed images, batch after batch, of which only two batches are in memory at a time.

    The next batch is decoded while the caller works on this one. Files that are not readable as images are skipped, and
    every batch but the last is full nonetheless. It can be iterated over more than once.

    Args:
        paths: the images
        preprocessing: how they become the network's input
        batch_size: number of images in a batch
    """

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int = 8) -> None:
        if not paths:
            raise CalibrationError("there are no images to read")
        if batch_size < 1:
            raise CalibrationError(f"cannot read images in batches of {batch_size}: ask for 1 or more")
        self.paths = tuple(paths)
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self._preprocess = Preprocessor(preprocessing)
        self._skipped: list[tuple[Path, str]] = []

    @property
    def skipped(self) -> tuple[tuple[Path, str], ...]:
        """The files that could not be read in the latest iteration, each with the reason."""
        return tuple(self._skipped)

    def __len__(self) -> int:
        """Number of batches, if no file is skipped."""
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Read the images.

        Yields:
            float32 arrays of shape (N, 3, H, W), N being the batch size or, at the end, what is left

        Raises:
            CalibrationError: if none of the files is readable
        """
        skipped: list[tuple[Path, str]] = []
        self._skipped = skipped
        remaining = iter(self.paths)
        any_read = False
        with ThreadPoolExecutor(1, thread_name_prefix="images") as reader:
            upcoming = reader.submit(self._read_batch, remaining, skipped)
            while (batch := upcoming.result()) is not None:
                any_read = True
                upcoming = reader.submit(self._read_batch, remaining, skipped)
                yield batch
                del batch
        if not any_read:
            raise CalibrationError(f"none of the {len(skipped)} images is readable; of the first: {skipped[0][1]}")

    def _read_batch(self, remaining: Iterator[Path], skipped: list[tuple[Path, str]]) -> NDArray[np.float32] | None:
        images = []
        for path in remaining:
            try:
                images.append(self._preprocess(path))
            except (ImageError, OSError) as e:
                skipped.append((path, str(e)))
            if len(images) == self.batch_size:
                break
        return np.stack(images) if images else None


def images_digest(paths: Sequence[Path]) -> str:
    """A name for a set of images: what is in the files, wherever they lie and whatever they are called.

    Args:
        paths: the files

    Returns:
        SHA-256 over their number and the sorted SHA-256 of each, 64 hexadecimal digits
    """
    digests = sorted(_file_digest(path) for path in paths)
    return hashlib.sha256(f"{len(digests)}\n".encode() + b"".join(digests)).hexdigest()


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    except OSError:  # the stream skips it too, so it counts as the file without contents
        return hashlib.sha256().digest()
    return digest.digest()


def _folder(root: str | os.PathLike[str]) -> Path:
    folder = Path(root)
    try:
        if not folder.exists():
            raise CalibrationError(f"there is no folder {folder}")
        if not folder.is_dir():
            raise CalibrationError(f"{folder} is not a folder: give the folder that the images are in")
    except (OSError, ValueError) as e:  # no permission on the way there; a name that no file can have
        raise CalibrationError(f"cannot read the folder {str(folder)!r}: {e}") from e
    return folder


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise CalibrationError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    entered = set()
    for directory, subfolders, files in os.walk(folder, onerror=fail, followlinks=True):
        # Links may lead back to a folder that was entered already.
        status = Path(directory).stat()
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS:
                yield Path(directory, name)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
