"""What a detector answers in PyTorch, by torchvision's suppression: what its graph is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holocron.models.detection.detector import select_detections
from runtime.manifest import Preprocessing
from runtime.post_processing import PostProcessing

from .detection import pixels_of_boxes
from .ranking import LARGEST_RANKED

__all__ = ["eager_detections"]


def eager_detections(
    decode: Callable[[Any], tuple[Tensor, Tensor]],
    post: PostProcessing,
    preprocessing: Preprocessing,
    frame_size: tuple[int, int] | None,
    device: torch.device,
) -> Callable[[Mapping[str, NDArray[np.float32]]], Mapping[str, NDArray[Any]]]:
    """What a detector's graph should make of raw heads.

    Args:
        decode: turns them into boxes and scores
        post: the thresholds and counts
        preprocessing: how an image becomes the network's input
        frame_size: height and width of every frame in whose pixels boxes are given; None for the network's input
        device: where it decodes
    """
    assert post.score_threshold is not None
    assert post.iou_threshold is not None
    assert post.candidates is not None
    score_threshold, iou_threshold, candidates = post.score_threshold, post.iou_threshold, post.candidates

    def expect(raw: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[Any]]:
        heads = tuple(torch.from_numpy(head).to(device) for head in raw.values())
        with torch.inference_mode():
            boxes, scores = (part.cpu() for part in decode(heads[0] if len(heads) == 1 else heads))
            has_extent = (boxes[..., :2] < boxes[..., 2:]).all(-1)
            best = torch.where(has_extent, scores.amax(-1), -1.0)
            taken = best.argsort(dim=1, descending=True, stable=True)[:, :candidates].sort(dim=1).values
            boxes, scores = (part.take_along_dim(taken[..., None], dim=1) for part in (boxes, scores))
            found = select_detections(boxes, scores, score_threshold, iou_threshold)
        rows = post.max_detections
        count = np.array([min(len(each["scores"]), rows or LARGEST_RANKED) for each in found])
        out = {
            "boxes": np.zeros((len(found), max(count, default=0), 4), np.float32),
            "labels": np.zeros((len(found), max(count, default=0)), np.int64),
            "count": count,
        }
        for i, each in enumerate(found):
            n = count[i]
            out["boxes"][i, :n] = pixels_of_boxes(each["boxes"][:n], preprocessing, frame_size).numpy()
            out["labels"][i, :n] = each["labels"][:n].numpy()
        return out

    return expect
