"""From a detector's raw heads to the detections, as part of its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runtime.manifest import Preprocessing
from runtime.preprocess import padded_box

from .nms import NMSOutput, NonMaxSuppression

__all__ = ["DetectionPostProcessing", "Detector", "pixels_of_boxes"]

Decode = Callable[[Any], tuple[Tensor, Tensor]]


class DetectionPostProcessing(nn.Module):
    """Decode raw heads, suppress what overlaps, and say where the rest is in pixels.

    What decodes is a method, not a part of this module: the detector's weights are not carried along.

    Args:
        decode: maps raw heads to boxes (N, P, 4), (xmin, ymin, xmax, ymax) relative to the image, and scores (N, P, K),
            as :meth:`holocron.models.detection.detector.Detector.decode` does; it is given the tensor where there is
            one head, a tuple where there are several
        nms: what selects the detections
        preprocessing: how an image becomes the network's input
        frame_size: height and width of every frame, in whose pixels boxes are given; None for those of the network's
            input, where frames differ in size

    Shape:
        - heads: float32, N first
        - boxes: (N, M, 4) float32, (xmin, ymin, xmax, ymax) in pixels, in the order of descending scores; clipped to
          the frame where that is known
        - scores: (N, M) float32, labels: (N, M) int32, count: (N,) int32, status: (N,) int32: those of
          :class:`~export.graph.nms.NMSOutput`
    """

    scale: Tensor
    offset: Tensor
    limit: Tensor

    def __init__(
        self,
        decode: Decode,
        nms: NonMaxSuppression,
        preprocessing: Preprocessing,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.nms = nms
        self._decode = decode
        scale, offset, limit = _placement(preprocessing, frame_size)
        self.register_buffer("scale", torch.tensor(scale * 2))
        self.register_buffer("offset", torch.tensor(offset * 2))
        self.register_buffer("limit", torch.tensor(limit * 2))

    def forward(self, *heads: Tensor) -> NMSOutput:
        """Turn raw heads into detections."""
        boxes, scores = self._decode(heads[0] if len(heads) == 1 else heads)
        found = self.nms(boxes, scores, heads)
        pixels = torch.minimum((found.boxes * self.scale + self.offset).clamp(min=0), self.limit)
        # Rows that are not used stay 0, wherever the padding lies.
        used = (found.labels >= 0)[..., None]
        return found._replace(boxes=torch.where(used, pixels, 0.0))


class Detector(nn.Module):
    """A network and what turns its raw heads into detections, as one module: for PyTorch, or to be traced at once.

    Args:
        network: has a method `raw_outputs` that gives one tensor or several
        post_processing: what becomes of them
    """

    def __init__(self, network: nn.Module, post_processing: DetectionPostProcessing) -> None:
        super().__init__()
        self.network = network
        self.post_processing = post_processing

    def forward(self, x: Tensor) -> NMSOutput:
        """Detect what is in images (N, C, H, W)."""
        raw: Any = self.network.raw_outputs(x)  # type: ignore[operator]
        heads: Sequence[Tensor] = raw if isinstance(raw, (list, tuple)) else [raw]
        return self.post_processing(*heads)


def pixels_of_boxes(boxes: Tensor, preprocessing: Preprocessing, frame_size: tuple[int, int] | None) -> Tensor:
    """Where boxes are, in pixels.

    Args:
        boxes: (..., 4), (xmin, ymin, xmax, ymax) relative to the network's input
        preprocessing: how an image becomes that
        frame_size: height and width of the image in whose pixels they are wanted; None for those of the network's input

    Returns:
        (..., 4), clipped to the image
    """
    scale, offset, limit = (torch.tensor(pair * 2) for pair in _placement(preprocessing, frame_size))
    return torch.minimum((boxes * scale + offset).clamp(min=0), limit)


Pair = tuple[float, float]


def _placement(preprocessing: Preprocessing, frame_size: tuple[int, int] | None) -> tuple[Pair, Pair, Pair]:
    """What relative coordinates (x, y) are multiplied with, what is added, and where the frame ends, in pixels."""
    H, W = preprocessing.size
    if frame_size is None:
        return (float(W), float(H)), (0.0, 0.0), (float(W), float(H))
    height, width = frame_size
    top, left, inner_height, inner_width = padded_box(height, width, preprocessing)
    by_x, by_y = width / inner_width, height / inner_height
    return (W * by_x, H * by_y), (-left * by_x, -top * by_y), (float(width), float(height))
