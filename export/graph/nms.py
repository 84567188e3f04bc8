"""Class-aware non-maximum suppression in plain tensor operations of fixed shape, as part of an exported graph.

The best K candidates are sorted, and a K × K matrix says which of them would suppress which. Greedy suppression is the
fixed point of `keep = not (keep · matrix)`; each step from all ones settles one more link of every chain of
suppressions ("Enhancing Geometric Factors in Model Learning and Inference for Object Detection and Instance
Segmentation", Cluster-NMS, arXiv 2005.03572). The number of steps is fixed in the graph. A scene with a longer chain is
reported, not passed off as an answer.

No step leaves the order of equal scores to the backend: see :mod:`export.graph.ranking`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from runtime.nms import NOT_FINITE, TOO_MANY_CANDIDATES, TRUNCATED, UNSETTLED, check_limits

from .ranking import LARGEST_RANKED, MOST_VALUES, choose_best, descending, is_finite, rows_at

__all__ = ["NMSOutput", "NonMaxSuppression"]

_BLOCK = 320
"""Candidates up to which the matrix is made in one piece, and settled at once. More are settled block after block: a
block fits into a processor's cache, and what one decides is not decided again with the next."""
_LEFT_OUT = -1.0
"""Score of what is no candidate: below every score."""


class NMSOutput(NamedTuple):
    """The detections of N images, the best first, in M rows each.

    Attributes:
        boxes: (N, M, 4) float32, as the boxes that were given; 0 in rows that are not used.
        scores: (N, M) float32, descending; 0 in rows that are not used.
        labels: (N, M) int32, the class; -1 in rows that are not used.
        counts: (N,) int32, how many rows are used.
        status: (N,) int32, 0, or a sum of the flags of :mod:`runtime.nms`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    status: Tensor


class NonMaxSuppression(nn.Module):
    """Greedy suppression of overlapping boxes of a class, to be put behind a detector before it is exported.

    The answer is that of `torchvision.ops.batched_nms` on the same candidates, those that tie included: of equal scores
    that of the lower index counts as the better. IoU is computed in float32 as torchvision does.

    Args:
        score_threshold: a candidate's score is at least this, from 0 to 1.
        iou_threshold: a box is dropped if it overlaps a better one of its class by an IoU above this, from 0 to 1.
        max_detections: number of rows M of the outputs; the least certain detections beyond are dropped.
        candidates: number of candidates K that take part, those with the highest scores, from M to 3839.
        steps: how often the suppression is applied, 2 at least: chains of up to `steps` - 1 boxes are settled, in which
            each suppresses the next.
        multi_label: whether every class of a box is a candidate of its own; otherwise its best one alone, of equal ones
            the first.

    Raises:
        ValueError: if a number is out of its range
        TypeError: if a count is not an integer

    Shape:
        - boxes: (N, P, 4), as (xmin, ymin, xmax, ymax); one without extent is no candidate
        - scores: (N, P, C), not negative
        - output: :class:`NMSOutput`
    """

    def __init__(
        self,
        score_threshold: float = 0.25,
        iou_threshold: float = 0.45,
        max_detections: int = 100,
        candidates: int = 300,
        steps: int = 16,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        check_limits(score_threshold, iou_threshold, max_detections, candidates)
        if candidates > LARGEST_RANKED:
            raise ValueError(
                f"candidates is {candidates}, expected {LARGEST_RANKED} at most: TensorRT sorts no more values"
            )
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"steps is {steps!r}, expected an integer")
        if steps < 2:
            raise ValueError(f"steps is {steps}, expected 2 at least: the last shows whether anything still changes")
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.candidates = candidates
        self.steps = steps
        self.multi_label = multi_label

    def extra_repr(self) -> str:
        """The numbers, for printing."""
        return (
            f"score_threshold={self.score_threshold}, iou_threshold={self.iou_threshold}, "
            f"max_detections={self.max_detections}, candidates={self.candidates}, steps={self.steps}, "
            f"multi_label={self.multi_label}"
        )

    def forward(self, boxes: Tensor, scores: Tensor, watched: Sequence[Tensor] = ()) -> NMSOutput:
        """Select the detections.

        Args:
            boxes: (N, P, 4) float32, as (xmin, ymin, xmax, ymax)
            scores: (N, P, C) float32
            watched: tensors, N first, that boxes and scores were computed from: what is not finite there is reported,
                even where decoding clipped it away

        Returns:
            the detections

        Raises:
            ValueError: if the shapes are not those, or there are more values than indices can be told apart
        """
        num_boxes, num_classes = scores.shape[1:]
        if boxes.shape[1:] != (num_boxes, 4):
            raise ValueError(f"boxes of shape {tuple(boxes.shape)} do not fit scores of shape {tuple(scores.shape)}")
        total = num_boxes * (num_classes if self.multi_label else 1)
        if total > MOST_VALUES:
            raise ValueError(f"{total} candidates are more than the {MOST_VALUES} that this can tell apart")
        finite = is_finite([boxes, scores, *watched])

        best = scores.flatten(1) if self.multi_label else scores.amax(dim=2)
        has_extent = (boxes[..., :2] < boxes[..., 2:]).all(dim=2)
        if self.multi_label:
            has_extent = has_extent[..., None].expand_as(scores).flatten(1)
        # Not `~(best < threshold)`: NaN is no candidate.
        valid = (best >= self.score_threshold) & has_extent
        num_valid = valid.to(torch.int32).sum(dim=1, dtype=torch.int32)
        best = torch.where(valid, best, _LEFT_OUT)

        chosen, values = choose_best(best, min(self.candidates, total))
        boxes, labels = self._details(chosen, boxes, scores)
        order = descending(values)
        values, labels = values.gather(1, order), labels.gather(1, order)
        boxes = rows_at(boxes, order)

        keep, unsettled = self._suppress(boxes, labels)
        keep = keep & (values >= 0)
        num_kept = keep.to(torch.int32).sum(dim=1, dtype=torch.int32)
        return self._output(boxes, values, labels, keep, num_kept, num_valid, unsettled, finite)

    def _details(self, chosen: Tensor | None, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, K, 4) and classes (N, K) of the candidates of these indices, None standing for all in order."""
        num_classes = scores.shape[2]
        if self.multi_label:
            if chosen is None:
                chosen = torch.arange(boxes.shape[1] * num_classes, device=boxes.device).expand(boxes.shape[0], -1)
            box = torch.div(chosen, num_classes, rounding_mode="trunc")
            return rows_at(boxes, box), (chosen - box * num_classes).to(boxes.dtype)
        if chosen is not None:
            boxes, scores = rows_at(boxes, chosen), rows_at(scores, chosen)
        # The first of the largest: which one ArgMax takes is up to the backend. Class numbers are exact in float32.
        number = torch.arange(num_classes, dtype=scores.dtype, device=scores.device)
        is_best = scores == scores.amax(dim=2, keepdim=True)
        return boxes, torch.where(is_best, number, float(num_classes)).amin(dim=2)

    def _suppress(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the sorted candidates (N, K) are kept, and of which images (N,) that is not settled yet.

        Block after block. Of each there are two answers, one that has all boxes that belong there and one that has no
        others; what the first lacks is suppressed for certain. Once settled they are the same.
        """
        size = boxes.shape[1]
        count = -(-size // _BLOCK)
        edges = [size * i // count for i in range(count + 1)]
        most: list[Tensor] = []  # (N, 1, block), of each block
        least: list[Tensor] = []
        for start, end in itertools.pairwise(edges):
            inner = self._suppressing(boxes, labels, (start, end), (start, end))
            below: Sequence[Tensor | float] = 0.5, 0.5
            if start > 0:
                earlier = torch.cat([torch.cat(least, dim=2), torch.cat(most, dim=2)], dim=1)
                sums = torch.matmul(earlier, self._suppressing(boxes, labels, (0, start), (start, end)))
                below = (0.5 - sums).split(1, dim=1)
            keep = before = torch.ones_like(inner[:, :1])
            for step in range(self.steps):
                # From one that has all that belongs there, one that has nothing else; and the other way round.
                before = keep
                keep = (torch.matmul(keep, inner) < below[(step + 1) % 2]).to(torch.float16)
            most.append(keep if self.steps % 2 == 0 else before)
            least.append(before if self.steps % 2 == 0 else keep)
        kept, certain = torch.cat(most, dim=2)[:, 0], torch.cat(least, dim=2)[:, 0]
        return kept > 0.5, (kept != certain).any(dim=1)

    def _suppressing(self, boxes: Tensor, labels: Tensor, by: tuple[int, int], of: tuple[int, int]) -> Tensor:
        """Whether each of the candidates of one range would suppress each of another, 1 or 0: of itself, if it comes
        before; the other range comes behind.
        """
        # Not 0, for 0 / 0 is above a threshold to OpenVINO, and not to others.
        smallest = torch.finfo(boxes.dtype).tiny
        xmin, ymin, xmax, ymax = boxes[:, slice(*by), :, None].unbind(dim=2)
        area = ((xmax - xmin) * (ymax - ymin)).clamp(min=smallest)
        left, top, right, bottom = boxes[:, None, slice(*of)].unbind(dim=3)
        other_area = ((right - left) * (bottom - top)).clamp(min=smallest)
        width = torch.minimum(xmax, right) - torch.maximum(xmin, left)
        height = torch.minimum(ymax, bottom) - torch.maximum(ymin, top)
        # One of the two clamped is enough: a product below 0 is not above any threshold either.
        overlap = width.clamp(min=0) * height
        iou = overlap / (area + other_area - overlap)
        threshold: Tensor | float = _float32_down(self.iou_threshold)
        if by == of:
            position = torch.arange(by[1] - by[0], device=boxes.device)
            # No IoU is above 2.
            threshold = torch.where(position[:, None] < position, threshold, 2.0)
        same_class = labels[:, slice(*by), None] == labels[:, None, slice(*of)]
        # Zeros and ones, whose products are right in any type: TensorRT-RTX has none of float32 for Turing.
        return ((iou > threshold) & same_class).to(torch.float16)

    def _output(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        keep: Tensor,
        num_kept: Tensor,
        num_valid: Tensor,
        unsettled: Tensor,
        finite: Tensor,
    ) -> NMSOutput:
        size = boxes.shape[1]
        position = torch.arange(size, dtype=boxes.dtype, device=boxes.device)
        key = torch.where(keep, size - position, 0.0)
        rows = min(self.max_detections, size)
        key, index = key.topk(rows, dim=1)
        used = key > 0
        boxes = torch.where(used[..., None], rows_at(boxes, index), 0.0)
        scores = torch.where(used, scores.gather(1, index), 0.0)
        labels = torch.where(used, labels.gather(1, index), -1.0).to(torch.int32)
        missing = self.max_detections - rows
        if missing:  # fewer boxes in all than rows
            boxes = nn.functional.pad(boxes, (0, 0, 0, missing))
            scores = nn.functional.pad(scores, (0, missing))
            labels = nn.functional.pad(labels, (0, missing), value=-1)
        fits = num_kept <= self.max_detections
        status = (
            unsettled.to(torch.int32) * UNSETTLED
            + (~fits).to(torch.int32) * TRUNCATED
            + ((num_valid > size) & (num_kept < self.max_detections)).to(torch.int32) * TOO_MANY_CANDIDATES
            + (~finite).to(torch.int32) * NOT_FINITE
        )
        return NMSOutput(boxes, scores, labels, used.to(torch.int32).sum(dim=1, dtype=torch.int32), status)


def _float32_down(value: float) -> float:
    """The largest float32 that is not above a number: float32 values are above either or neither."""
    rounded = np.float32(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-1)))
