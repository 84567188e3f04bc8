"""From images to the arrays that a network takes: preprocessed here, or as frames for a network that does it itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backends.base import Array
from .errors import ImageError
from .images import ImageSource, open_image
from .manifest import COLUMNS_INPUT, FRAME_INPUT, ROWS_INPUT, Manifest
from .preprocess import Preprocessor, resize_rows
from .resampling import ResizeMatrices, resize_matrices, resize_matrices_after_rows, rows_first

Feeds = dict[str, Array]
Sizes = list[tuple[int, int]]


class Feeder(Protocol):
    """Turns images into the inputs of one network. Holds no state that a call changes: threads may share one."""

    def __call__(self, images: Sequence[ImageSource], first: int = 0) -> tuple[Feeds, Sizes]:
        """The inputs for several images.

        Args:
            images: N images, 1 at least, as :func:`~runtime.images.open_image` takes them
            first: number of the first one, for the errors about images without a name

        Returns:
            the inputs by name, N first, and the height and width of each image as it was, upright

        Raises:
            ImageError: if one is not an image that can be taken; images without a path are named by their number
        """
        ...


def make_feeder(manifest: Manifest, preprocessor: Preprocessor) -> Feeder:
    """What feeds a manifest's network.

    Args:
        manifest: of the model
        preprocessor: what resizes and normalizes for a network that does not do it itself
    """
    return ImageFeeder(manifest, preprocessor) if manifest.frame is None else FrameFeeder(manifest)


class ImageFeeder:
    """Feeds a network that takes resized and normalized images.

    Args:
        manifest: of the model
        preprocessor: what resizes and normalizes
    """

    def __init__(self, manifest: Manifest, preprocessor: Preprocessor) -> None:
        self._spec = manifest.inputs[0]
        self._preprocessor = preprocessor

    def __call__(self, images: Sequence[ImageSource], first: int = 0) -> tuple[Feeds, Sizes]:
        """See :class:`Feeder`."""
        batch, sizes = self._preprocessor.batch_with_sizes(images, first)
        return {self._spec.name: batch.astype(self._spec.dtype, copy=False)}, sizes


class FrameFeeder:
    """Feeds a network that resizes and normalizes frames itself.

    An array of three channels is taken for a frame in the network's own order of channels; files and Pillow images,
    which are RGB, are brought into that order. Frames of unequal sizes share a batch: the smaller ones are filled up
    with zeros, which their matrices leave out.

    Args:
        manifest: of the model, with a frame
    """

    def __init__(self, manifest: Manifest) -> None:
        assert manifest.frame is not None
        self._name = manifest.name
        self._frame = manifest.frame
        self._preprocessing = manifest.preprocessing

    def __call__(self, images: Sequence[ImageSource], first: int = 0) -> tuple[Feeds, Sizes]:
        """See :class:`Feeder`.

        Raises:
            ImageError: also if one is larger than the frames that the network takes, or its size is another than theirs
        """
        frames = [self._open(image, f"image {first + i}") for i, image in enumerate(images)]
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        if self._frame.fixed:
            return {FRAME_INPUT: np.stack(frames) if len(frames) > 1 else frames[0][None]}, sizes
        reduced, matrices = zip(*map(self._matrices, frames), strict=True)
        return _batched(reduced, matrices), sizes

    def _open(self, source: ImageSource, unnamed: str) -> NDArray[np.uint8]:
        if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape[2:] == (3,) and source.size:
            self._check_size(source, unnamed)
            return np.ascontiguousarray(source)
        path = source if isinstance(source, (str, os.PathLike)) else getattr(source, "filename", None)
        pixels = np.asarray(open_image(source, None if path else unnamed))
        self._check_size(pixels, str(path or unnamed))
        # Of an array with alpha or of grey Pillow keeps the order; whatever else there is, it opens as RGB.
        is_rgb = not isinstance(source, np.ndarray)
        return np.ascontiguousarray(pixels[..., ::-1]) if is_rgb and self._frame.channels == "bgr" else pixels

    def _check_size(self, pixels: NDArray[np.uint8], name: str) -> None:
        (height, width), (h, w) = pixels.shape[:2], self._frame.size
        if self._frame.fixed and (height, width) != (h, w):
            raise ImageError(
                f"{name} has {height} x {width} pixels (height x width), {self._name} takes frames of {h} x {w} only: "
                f"resize it, or export the model with --frame {height} {width} or with --max-frame"
            )
        if height > h or width > w:
            raise ImageError(
                f"{name} has {height} x {width} pixels (height x width), {self._name} takes frames of up to {h} x {w}: "
                f"reduce it, or export the model with --max-frame {max(height, h)} {max(width, w)}"
            )

    def _matrices(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ResizeMatrices]:
        height, width = frame.shape[:2]
        if not rows_first(height, width, self._preprocessing):
            return frame, resize_matrices(height, width, self._preprocessing)
        # The graph multiplies by the columns first. The few frames that Pillow takes the other way get the first of
        # their two passes from Pillow itself: they are narrow ones.
        reduced = np.asarray(resize_rows(Image.fromarray(frame), self._preprocessing))
        return reduced, resize_matrices_after_rows(height, width, self._preprocessing)


def _batched(frames: Sequence[NDArray[np.uint8]], matrices: Sequence[ResizeMatrices]) -> Feeds:
    if len(frames) == 1:  # nothing is copied
        return {
            FRAME_INPUT: frames[0][None],
            ROWS_INPUT: matrices[0].rows[None],
            COLUMNS_INPUT: matrices[0].columns[None],
        }
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    batch = np.zeros((len(frames), height, width, 3), np.uint8)
    rows = np.zeros((len(frames), len(matrices[0].rows), height), np.float32)
    columns = np.zeros((len(frames), width, matrices[0].columns.shape[1]), np.float32)
    for i, (frame, matrix) in enumerate(zip(frames, matrices, strict=True)):
        h, w = frame.shape[:2]
        batch[i, :h, :w], rows[i, :, :h], columns[i, :w] = frame, matrix.rows, matrix.columns
    return {FRAME_INPUT: batch, ROWS_INPUT: rows, COLUMNS_INPUT: columns}


def run_in_parts(run: Callable[[Feeds], Feeds], feeds: Mapping[str, Array], largest: int | None, fixed: bool) -> Feeds:
    """Run a network on more entries than it takes at once, in parts of one size; zeros fill up the last.

    Args:
        run: the network
        feeds: its inputs by name, N first, N 1 at least
        largest: how many entries it takes at once; None for any number
        fixed: whether it takes no fewer either

    Returns:
        the outputs by name, of N entries
    """
    count = len(next(iter(feeds.values())))
    step = count if largest is None else largest if fixed else min(count, largest)
    parts = []
    for start in range(0, count, step):
        filled = min(step, count - start)
        outputs = run({name: _filled_up(array[start : start + step], step) for name, array in feeds.items()})
        parts.append({name: array[:filled] for name, array in outputs.items()})
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([outputs[name] for outputs in parts]) for name in parts[0]}


def _filled_up(array: Array, count: int) -> Array:
    """An array of that many entries, zeros behind those that are there."""
    missing = count - len(array)
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else array
