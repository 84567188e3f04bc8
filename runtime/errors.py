"""The errors of the tools: one small hierarchy, each message one line that names the value and the remedy."""

from __future__ import annotations


class HolocronError(Exception):
    """Base of every error that a user can act on. The command lines print it as one line and exit with 2."""


class BundleError(HolocronError):
    """A bundle, its manifest or one of its files is missing, edited, truncated or of an unknown version."""


class BackendError(HolocronError):
    """The precision, backend or device that was asked for does not exist here, or failed to open the network."""


class ImageError(HolocronError):
    """What was given as an image is not one, or is one that cannot be taken."""


class InputError(HolocronError):
    """An array given to the network has the wrong name, type, shape or values."""
