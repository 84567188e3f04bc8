"""The command lines `holocron-run` and `holocron-bench`."""

from .commands import bench, run

__all__ = ["bench", "run"]
