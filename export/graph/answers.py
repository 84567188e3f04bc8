"""How alike the answers of two graphs are that give detections, classes or class maps, not what their networks say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.nms import NOT_FINITE
from runtime.post_processing import PostProcessing

from ..errors import VerificationError
from ..verify import Comparison, Outputs, Sums
from .check import ALIKE, ANSWERS, matched_detections

_COUNTED = ("detections", "class_map")
_ROUNDING = 2
"""How many may differ however few there are: a pair of boxes that are none, where a score lies at the threshold."""


class AnswerComparison(Comparison):
    """A comparison of the answers of an engine, which gives nothing else, with those of the float32 graph.

    Probabilities are compared as any output. Detections in common are counted, and their scores compared, the highest
    with the highest. Equal pixels of a class map are counted, and it is compared as scores that are 1 for the class of
    a pixel and 0 for all others.

    Args:
        post: what both do behind their networks
    """

    def __init__(self, post: PostProcessing) -> None:
        super().__init__(1 if post.kind == "probabilities" else None)
        self._kind = post.kind
        self._not_finite = 0

    @property
    def counts(self) -> bool:
        """Whether answers are right or wrong, and counted: where one is at a threshold, no error of it is small."""
        return self._kind in _COUNTED

    @property
    def detections(self) -> int | None:
        """How many detections there were on all images, those of both added up; None if these are no detections."""
        return self._compared if self._kind == "detections" else None

    def add(self, ours: Outputs, reference: Outputs) -> None:
        """Compare the answers to some images.

        Args:
            ours: outputs by name, N first
            reference: the same of what to compare with
        """
        if self._kind == "detections":
            super().add({"scores": _ranked(ours)}, {"scores": _ranked(reference)})
            self._count(*matched_detections(ours, reference, ALIKE))
        elif self._kind == "class_map":
            self._add_maps(ours, reference)
        elif self._kind == "top_classes":
            super().add({"scores": ours["scores"]}, {"scores": reference["scores"]})
            tops = [(int(x[0]), int(y[0])) for x, y in zip(ours["labels"], reference["labels"], strict=True)]
            self._tops += tops
            self._count(sum(a == b for a, b in tops), len(tops))
        else:
            super().add(ours, reference)
        if "status" in ours:
            bits = (np.asarray(outputs["status"], np.int64) & NOT_FINITE != 0 for outputs in (ours, reference))
            mine, theirs = bits
            self._not_finite += int((mine & ~theirs).sum())

    def check_counts(self, file: str, least: float, remedy: str) -> None:
        """Refuse an engine that gives too few of the answers that it should.

        Args:
            file: what to call it
            least: share of the answers that it must have in common with the float32 graph
            remedy: what to do about it

        Raises:
            VerificationError: with the number of answers that are right
        """
        if self._not_finite:
            raise VerificationError(
                f"{file} computes NaN or infinite values on {self._not_finite} of {self._images} images. Nothing was "
                f"written; {remedy}"
            )
        if self.counts and self._compared - self._equal > max((1 - least) * self._compared, _ROUNDING):
            raise VerificationError(
                f"{file} has {self._equal} of {self._compared} {ANSWERS[self._kind]} in common with the float32 graph "
                f"(at least {least:.1%}). Nothing was written; {remedy}"
            )

    def _add_maps(self, ours: Outputs, reference: Outputs) -> None:
        if "probabilities" in reference:
            super().add({"probabilities": ours["probabilities"]}, {"probabilities": reference["probabilities"]})
        else:
            self._images += len(reference["class_map"])
        sums = self._sums.setdefault("class_map", Sums())
        for x, y in zip(ours["class_map"], reference["class_map"], strict=True):
            equal = int((x == y).sum())
            sums.difference += 2 * (y.size - equal)  # a pixel of another class is off by 1 in two scores
            sums.reference += y.size
            sums.cosine = min(sums.cosine, equal / y.size)
            self._count(equal, y.size)

    def _count(self, equal: int, compared: int) -> None:
        self._equal += equal
        self._compared += compared


def _ranked(outputs: Outputs) -> NDArray[np.float32]:
    """Scores of the detections there are, the highest first, zeros behind them."""
    scores = np.array(outputs["scores"])
    for row, count in zip(scores, outputs["count"], strict=True):
        row[int(count) :] = 0
    return -np.sort(-scores, axis=1)
