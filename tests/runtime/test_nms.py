"""Suppression in numpy, for programs that decode raw heads themselves. `tests/export/test_nms.py` has it beside
torchvision.
"""

import numpy as np
import pytest

from runtime.nms import NOT_FINITE, TOO_MANY_CANDIDATES, TRUNCATED, nms, select_detections

BOXES = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10], [5, 5, 5, 9]], np.float32)


def test_keeps_the_best_of_those_that_overlap():
    scores = np.array([0.6, 0.9, 0.3, 0.8, 1.0], np.float32)
    assert nms(BOXES, scores, np.zeros(5), 0.5).tolist() == [4, 1, 2]
    assert nms(BOXES, scores, np.arange(5), 0.5).tolist() == [4, 1, 3, 0, 2]
    assert nms(BOXES, scores, np.zeros(5), 0.9).tolist() == [4, 1, 3, 2]  # an IoU of 0.9 is not above 0.9
    assert nms(BOXES, scores, np.zeros(5), 1.0).tolist() == [4, 1, 3, 0, 2]


def test_of_equal_scores_the_lower_index():
    scores = np.full(5, 0.5, np.float32)
    assert nms(BOXES, scores, np.zeros(5), 0.5).tolist() == [0, 2, 4]
    assert nms(BOXES[::-1], scores, np.zeros(5), 0.5).tolist() == [0, 1, 2]


def test_no_boxes():
    assert nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0)).tolist() == []
    found = select_detections(np.zeros((3, 4)), np.ones((3, 2)))
    assert (found.boxes.shape, found.scores.shape, found.labels.shape, found.status) == ((0, 4), (0,), (0,), 0)


def test_selects_by_class_score_and_extent():
    scores = np.array([[0.6, 0.2], [0.1, 0.9], [0.3, 0.3], [0.24, 0.1], [1.0, 0.0]], np.float32)
    found = select_detections(BOXES, scores, score_threshold=0.25, iou_threshold=0.5)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.labels.dtype == np.int32
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    np.testing.assert_array_equal(found.boxes, BOXES[[1, 0, 2]])
    assert found.status == 0


def test_says_what_is_missing():
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]], np.float32)
    assert select_detections(BOXES, scores, 0.1, 0.5, max_detections=1).status == TRUNCATED
    crowded = select_detections(BOXES, scores, 0.1, 0.5, max_detections=2, candidates=2)
    assert (len(crowded.boxes), crowded.status) == (1, TOO_MANY_CANDIDATES)
    scores[3] = np.nan
    assert select_detections(BOXES, scores, 0.1, 0.5).status == NOT_FINITE


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nms(BOXES, np.zeros(4), np.zeros(5)), ValueError, r"scores \(4,\).*do not fit"),
        (lambda: nms(BOXES[0], np.zeros(1), np.zeros(1)), ValueError, r"boxes \(4,\)"),
        (lambda: nms(BOXES, np.zeros(5), np.zeros(5), 1.1), ValueError, r"iou_threshold is 1\.1"),
        (lambda: nms(BOXES, np.zeros(5), np.zeros(5), None), TypeError, "iou_threshold is None"),
        (lambda: select_detections(BOXES, np.zeros(5)), ValueError, r"scores \(5,\) do not fit"),
        (lambda: select_detections(BOXES, np.zeros((5, 0))), ValueError, r"scores \(5, 0\) do not fit"),
        (lambda: select_detections(BOXES, np.zeros((5, 1)), -0.5), ValueError, r"score_threshold is -0\.5"),
        (lambda: select_detections(BOXES, np.zeros((5, 1)), candidates=9), ValueError, "candidates is 9, fewer than"),
        (lambda: select_detections(BOXES, np.zeros((5, 1)), max_detections="5"), TypeError, "max_detections is '5'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
