"""What can go wrong between an address and a model with weights in it."""

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "DownloadError",
    "HashMismatchError",
    "TruncatedDownloadError",
]


class DownloadError(RuntimeError):
    """A file could not be fetched; the message names the address and what to do about it."""


class HashMismatchError(DownloadError):
    """A file is complete but is not the one that was announced. It has been removed."""


class TruncatedDownloadError(DownloadError):
    """A transfer ended early. What arrived is kept, and the next call resumes from there."""


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be read safely."""


class CheckpointMismatchError(CheckpointError):
    """A readable checkpoint belongs to another architecture, or to another number of classes."""
