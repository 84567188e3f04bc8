"""Operators of computer vision."""

from . import boxes
from .boxes import aspect_ratio_consistency, box_ciou, box_giou, ciou_loss, diou_loss, iou_penalty

__all__ = [
    "aspect_ratio_consistency",
    "box_ciou",
    "box_giou",
    "boxes",
    "ciou_loss",
    "diou_loss",
    "iou_penalty",
]
