"""Batch collation."""

from holocron.utils.data.collate import Mixup

__all__ = ["Mixup"]
