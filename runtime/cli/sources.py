"""What a command line names: images, folders of images, videos, addresses of streams, a camera."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ..errors import ImageError
from ..images import list_images
from ..video import VIDEO_EXTENSIONS
from ..video.readers import VideoSource, is_address

_DEVICE = re.compile(r"/dev/.+")


@dataclass(frozen=True)
class ImageFile:
    """One image, or what is wrong with a folder that stands for several."""

    path: Path
    error: ImageError | None = None

    @property
    def name(self) -> str:
        """As the answers call it."""
        return str(self.path)


Source = ImageFile | VideoSource


def camera_source(ctx: click.Context, param: click.Parameter, value: str | None) -> VideoSource | None:
    """Callback of `--camera`: the number of a camera, or its path.

    Raises:
        click.BadParameter: if it is neither
    """
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return VideoSource(int(value))
    if _DEVICE.fullmatch(value) is None:
        raise click.BadParameter(
            f"{value!r} is no camera: expected a number, such as 0, or a path, such as /dev/video0", ctx, param
        )
    return VideoSource(value)


def list_sources(arguments: Sequence[str], camera: VideoSource | None = None) -> list[Source]:
    """The images and videos of a command line, in order: a folder is its images, and a camera comes last.

    Args:
        arguments: paths and addresses
        camera: of `--camera`
    """
    sources = [source for argument in arguments for source in _sources_of(argument)]
    return sources if camera is None else [*sources, camera]


def _sources_of(argument: str) -> Sequence[Source]:
    if is_address(argument):
        return [VideoSource(argument)]
    path = Path(argument)
    if path.is_dir():
        try:
            return [ImageFile(image) for image in list_images(path)]
        except ImageError as e:
            return [ImageFile(path, e)]
    return [VideoSource(argument) if path.suffix.lower() in VIDEO_EXTENSIONS else ImageFile(path)]
