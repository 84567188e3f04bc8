"""The calibration images that are used when none are given: photographs in the public domain (see `SOURCES.json`)."""

from __future__ import annotations

from pathlib import Path


def sample_folder() -> Path:
    """The folder of the sample images.

    They show that a calibration runs. A model that is meant for other pictures wants its own: ranges measured on these
    may clip what those need.

    Returns:
        the folder, for :func:`~calib.images.find_images`
    """
    return Path(__file__).parent
