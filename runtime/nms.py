"""Non-maximum suppression in numpy, for what a detector's raw heads decode to; and what its status flags mean.

It answers as the graphs do that `holocron-export` puts behind detectors, and as `torchvision.ops.batched_nms`: greedy,
within each class, of equal scores the lower index first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNSETTLED = 1
"""The graph has too few steps for this scene: every box that belongs there is, but some should have been suppressed."""
TRUNCATED = 2
"""There are more detections than rows: the least certain are missing."""
TOO_MANY_CANDIDATES = 4
"""More boxes reached the score threshold than take part: detections less certain than those may be missing."""
NOT_FINITE = 8
"""The network answered with NaN or infinite values: the detections mean nothing."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The detections of one image, the best first.

    Attributes:
        boxes: float32 array of shape `(n, 4)`, as they were given.
        scores: float32 array of shape `(n,)`.
        labels: int32 array of shape `(n,)`.
        status: 0, or a sum of the flags of this module.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    status: int


def check_limits(score_threshold: float, iou_threshold: float, max_detections: int, candidates: int) -> None:
    """Refuse thresholds and counts that no suppression can have.

    Raises:
        TypeError: if a count is not an integer, or a threshold not a number
        ValueError: naming the value that is out of its range
    """
    for name, threshold in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.floating)):
            raise TypeError(f"{name} is {threshold!r}, expected a number")
        if not 0 <= threshold <= 1:
            raise ValueError(f"{name} is {threshold}, expected a number from 0 to 1")
    for name, count in (("max_detections", max_detections), ("candidates", candidates)):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise TypeError(f"{name} is {count!r}, expected an integer")
        if count < 1:
            raise ValueError(f"{name} is {count}, expected 1 at least")
    if candidates < max_detections:
        raise ValueError(
            f"candidates is {candidates}, fewer than the {max_detections} of max_detections, which are chosen from them"
        )


def nms(
    boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], iou_threshold: float = 0.45
) -> NDArray[np.int64]:
    """Which boxes greedy suppression keeps, class by class.

    Args:
        boxes: array of shape `(n, 4)`, as (xmin, ymin, xmax, ymax)
        scores: array of shape `(n,)`
        labels: array of shape `(n,)`; boxes of different labels do not suppress each other
        iou_threshold: a box is dropped if it overlaps a better one by an IoU above this, computed in float32

    Returns:
        indices of the boxes that are kept, the best first; of equal scores the lower index first

    Raises:
        ValueError: if the shapes do not fit, or the threshold is not from 0 to 1
        TypeError: if the threshold is not a number
    """
    check_limits(0.0, iou_threshold, 1, 1)
    boxes, scores, labels = np.asarray(boxes, np.float32), np.asarray(scores), np.asarray(labels)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1] or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} do not fit: expected (n, 4), "
            "(n,) and (n,)"
        )
    order = np.argsort(-scores, kind="stable")
    kept = [_nms_of_class(boxes, order[labels[order] == label], iou_threshold) for label in np.unique(labels)]
    chosen = np.zeros(len(scores), bool)
    for indices in kept:
        chosen[indices] = True
    return order[chosen[order]]


def _nms_of_class(boxes: NDArray[np.float32], order: NDArray[np.int64], iou_threshold: float) -> list[int]:
    """The kept of the boxes at these indices, which are sorted, the best first."""
    xmin, ymin, xmax, ymax = boxes[order].T
    area = (xmax - xmin) * (ymax - ymin)
    left = np.arange(len(order))
    kept = []
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is above no threshold
        while len(left):
            first, left = left[0], left[1:]
            kept.append(int(order[first]))
            width = np.minimum(xmax[first], xmax[left]) - np.maximum(xmin[first], xmin[left])
            height = np.minimum(ymax[first], ymax[left]) - np.maximum(ymin[first], ymin[left])
            overlap = np.maximum(width, 0) * np.maximum(height, 0)
            iou = overlap / (area[first] + area[left] - overlap)
            left = left[~(iou.astype(np.float64) > iou_threshold)]
    return kept


def select_detections(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_detections: int = 100,
    candidates: int = 300,
) -> Selection:
    """The detections among the candidate boxes of one image.

    Args:
        boxes: array of shape `(P, 4)`, as (xmin, ymin, xmax, ymax); those without extent are left out
        scores: array of shape `(P, C)`: each box is of its best class, of equal ones the first
        score_threshold: a box needs that score at least
        iou_threshold: a box is dropped if it overlaps a better one of its class by an IoU above this
        max_detections: at most that many are given, the most certain
        candidates: at most that many boxes take part, the most certain

    Returns:
        the detections

    Raises:
        ValueError: if the shapes do not fit, or a number is out of its range
        TypeError: if a count is not an integer, or a threshold not a number
    """
    check_limits(score_threshold, iou_threshold, max_detections, candidates)
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.ndim != 2 or len(scores) != len(boxes) or not scores.shape[1]:
        raise ValueError(f"boxes {boxes.shape} and scores {scores.shape} do not fit: expected (P, 4) and (P, C)")
    finite = bool(np.isfinite(boxes).all() and np.isfinite(scores).all())
    best = scores.max(axis=1)
    labels = scores.argmax(axis=1).astype(np.int32)
    has_extent = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    valid = np.flatnonzero((best >= np.float32(score_threshold)) & has_extent)
    taken = valid[np.argsort(-best[valid], kind="stable")[:candidates]]
    kept = taken[nms(boxes[taken], best[taken], labels[taken], iou_threshold)]
    status = NOT_FINITE * (not finite)
    status += TRUNCATED * (len(kept) > max_detections)
    status += TOO_MANY_CANDIDATES * (len(valid) > candidates and len(kept) < max_detections)
    kept = kept[:max_detections]
    return Selection(boxes[kept], best[kept], labels[kept], status)
