"""What `holocron-run --save` writes: a folder of class maps, of images with boxes, and of annotated videos."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..detections import Detections
from ..errors import BundleError, ImageError
from ..images import open_image
from ..model import Model
from ..results import Segmentation
from ..tasks import Result
from ..video import Video
from ..video.readers import Frame, VideoSource
from ..video.writer import VideoWriter
from .sources import Source

_FPS = 25.0  # of a video that is made of one that does not say


class SaveFolder:
    """Writes a file for each image and each video, under its name, with a number where two have the same.

    Args:
        folder: made if it is not there
        model: whose answers are written
        sources: all that is read, and so not to be written over

    Raises:
        BundleError: if the model's answers are nothing to look at
        ImageError: if the folder cannot be made
    """

    def __init__(self, folder: Path, model: Model, sources: Iterable[Source]) -> None:
        if model.task == "classification":
            raise BundleError(
                f"--save writes class maps and boxes, which a bundle for {model.task} does not give: leave it out"
            )
        self._folder, self._taken = folder, set[str]()
        self._sources = {_resolved(Path(source.name)) for source in sources}
        frame = model.manifest.frame
        self._bgr = frame is not None and frame.channels == "bgr"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ImageError(f"cannot make the folder {folder}: {e.strerror or e}") from e

    def save(self, image: Path, result: Result) -> str:
        """Write the class map of an image, or the image with its boxes.

        Returns:
            the file's path

        Raises:
            ImageError: if it cannot be written
        """
        assert isinstance(result, (Segmentation, Detections))
        path = self._path(image.stem, ".png")
        try:
            (result.image() if isinstance(result, Segmentation) else result.draw(open_image(image))).save(path)
        except OSError as e:
            raise ImageError(f"cannot write {path}: {e.strerror or e}") from e
        return str(path)

    def video(self, source: VideoSource, video: Video, every: int) -> VideoRecorder:
        """What records an annotated video.

        Args:
            source: of the frames
            video: the same, opened
            every: each N-th of its frames is recorded

        Raises:
            ImageError: if there is no library to write it with, or the file is one that is read
        """
        path = self._path(_stem(source), ".mp4")
        return VideoRecorder(path, (video.fps or _FPS) / every, video.live, self._bgr)

    def _path(self, stem: str, suffix: str) -> Path:
        name, number = f"{stem}{suffix}", 1
        while name in self._taken:
            name, number = f"{stem}-{number}{suffix}", number + 1
        self._taken.add(name)
        path = self._folder / name
        if _resolved(path) in self._sources:
            raise ImageError(f"--save would write over {path}, which is to be read: choose another folder")
        return path


class VideoRecorder(VideoWriter):
    """Writes the frames of a video with what was found in them.

    Args:
        path: of the file
        fps: frames per second
        live: whether frames are to be seen when they were taken, as some of a live source may be missing; if not,
            they follow each other
        bgr: whether the frames are BGR, not RGB

    Raises:
        ImageError: if neither library is installed
    """

    def __init__(self, path: Path, fps: float, live: bool, bgr: bool) -> None:
        super().__init__(path, fps)
        self.path = path
        self._fps, self._live, self._bgr = fps, live, bgr

    def add(self, frame: Frame, time: float | None, result: Result | None) -> None:
        """Draw an answer on a frame, or leave it as it is where there is no answer, and write it.

        Raises:
            ImageError: if it cannot be written
        """
        image = Image.fromarray(np.ascontiguousarray(frame[..., ::-1]) if self._bgr else frame)
        if isinstance(result, (Segmentation, Detections)):
            image = result.draw(image)
        self.write(image, round(time * self._fps) if self._live and time is not None else None)


def _stem(source: VideoSource) -> str:
    if source.is_camera:
        return source.name.strip("/").replace("/", "-").replace(" ", "-")
    if not source.is_address:
        return Path(source.name).stem
    address = urlsplit(source.name)
    stem = re.sub(r"[^\w.-]+", "-", Path(address.path).stem or address.netloc).strip(".-")
    return stem or "stream"


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, say: reading it is what fails
        return path
