"""Whether what a graph makes of its network's outputs is right, and how alike the detections of two networks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.manifest import Verification
from runtime.post_processing import PostProcessing

from ..errors import VerificationError
from ..verify import Comparison, Outputs

Expect = Callable[[Mapping[str, NDArray[np.float32]]], Mapping[str, NDArray[Any]]]
"""Makes of a network's own outputs what its post-processing should."""

_SAME_BOX, ALIKE = 0.99, 0.5
"""IoU from which on two boxes are the same, and from which on they are of the same object."""
_LEAST_SHARE = 0.99
"""Of what must be equal. Not all of it: where a score is within rounding of a threshold, either answer is right."""
_CLOSE = 1e-4


class PostComparison(Comparison):
    """A comparison of two networks' own outputs, and of what is made of them.

    What a graph makes of its network's outputs is compared with what should become of those very outputs: rounding in
    the network changes neither. For detectors it also counts how many detections the two networks have in common.

    Args:
        post: what the graph does
        expect: what it should do
        class_axis: see :class:`~export.verify.Comparison`
    """

    def __init__(self, post: PostProcessing, expect: Expect, class_axis: int | None) -> None:
        super().__init__(class_axis)
        self._post, self._expect = post, expect
        self._right = self._checked = 0
        self._found = self._wanted = 0

    def add(self, ours: Outputs, reference: Outputs) -> None:
        """Compare the answers to some images.

        Args:
            ours: the network's own outputs and those of its graph, by name, N first
            reference: the own outputs of the network to compare with
        """
        super().add(ours, reference)
        expected = self._expect({name: ours[name] for name in reference})
        right, checked = equal_answers(self._post.kind, ours, expected)
        self._right += right
        self._checked += checked
        if self._post.kind == "detections":
            matched, total = matched_detections(ours, self._expect(reference), ALIKE)
            self._found += matched
            self._wanted += total

    def check(self, file: str) -> None:
        """Refuse a graph whose post-processing is not what it should be.

        Args:
            file: what to call it

        Raises:
            VerificationError: with the share of answers that are right
        """
        if self._right < _LEAST_SHARE * self._checked:
            raise VerificationError(
                f"{file}: {self._right} of {self._checked} {ANSWERS[self._post.kind]} are what they should be, given "
                "the network's own outputs. Nothing was written; report this with the model, or export it with --raw"
            )

    @property
    def detections(self) -> int | None:
        """How many detections the two networks have on all images together; None if they are no detectors."""
        return self._wanted if self._post.kind == "detections" else None

    def result(self, reference: str, targets: Any = None, backend: str = "onnxruntime") -> Verification:
        """See :meth:`export.verify.Comparison.result`; of detectors the agreement is in detections."""
        result = super().result(reference, targets, backend)
        return replace(result, top1_agreement=self._found / self._wanted) if self._wanted else result


ANSWERS = {
    "detections": "detections",
    "class_map": "pixels",
    "probabilities": "probabilities",
    "top_classes": "of the best classes",
}


def equal_answers(kind: str, ours: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """How many answers of a graph are as expected, and how many there are.

    Args:
        kind: one of :data:`runtime.post_processing.KINDS`
        ours: the graph's outputs by name
        expected: the same; those that are not there are not compared
    """
    if kind == "detections":
        return matched_detections(ours, expected, _SAME_BOX)
    right = total = 0
    for name, wanted in expected.items():
        got = np.asarray(ours[name], np.float64)
        same = np.abs(got - wanted) <= (_CLOSE if wanted.dtype.kind == "f" else 0)
        right += int(same.sum())
        total += same.size
    return right, total


def matched_detections(
    ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]], iou: float
) -> tuple[int, int]:
    """How many detections two graphs have in common, whatever their order, and how many both have.

    Each of ours, the best first, is paired with the one of theirs of its class that overlaps it most and is not paired
    yet, if by that IoU at least.

    Args:
        ours: `boxes` (N, M, 4), `labels` (N, M) and `count` (N,)
        theirs: the same; M may be another
        iou: least overlap of two that count as the same

    Returns:
        twice the number of pairs, and the number of detections of both together
    """
    matched = total = 0
    for i in range(len(ours["count"])):
        a, b = int(ours["count"][i]), int(theirs["count"][i])
        total += a + b
        if not a or not b:
            continue
        overlap = _iou(ours["boxes"][i, :a], theirs["boxes"][i, :b])
        overlap[ours["labels"][i, :a, None] != theirs["labels"][i, None, :b]] = -1
        for row in overlap:
            best = int(row.argmax())
            if row[best] >= iou:
                matched += 2
                overlap[:, best] = -1
    return matched, total


def _iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    inner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.maximum(inner, 0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    return np.asarray(overlap / np.maximum(union, 1e-12))


def expect_in_numpy(post: PostProcessing, size: tuple[int, int] | None = None) -> Expect:
    """What a classifier's or segmenter's post-processing should make of its scores, written out in numpy.

    Args:
        post: what the graph does
        size: height and width of the class map; one of another size than the scores is not compared
    """

    def expect(raw: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[Any]]:
        (scores,) = raw.values()
        exponentials = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        if post.kind == "probabilities":
            return {"probabilities": probabilities}
        if post.kind == "top_classes":
            labels = np.argsort(-scores, axis=1, kind="stable")[:, : post.top_k]
            return {"labels": labels, "scores": np.take_along_axis(probabilities, labels, 1)}
        expected: dict[str, NDArray[Any]] = {"probabilities": probabilities} if post.with_probabilities else {}
        if scores.shape[2:] == size:
            expected["class_map"] = scores.argmax(1)
        return expected

    return expect
