"""The one error of calibration."""

from __future__ import annotations

from runtime.errors import HolocronError


class CalibrationError(HolocronError):
    """The images, the activations or the cache of a calibration cannot be used; the message says which and why."""
