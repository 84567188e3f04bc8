"""From the scores of each class for each pixel to the class of each pixel, as part of a segmenter's graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.manifest import Preprocessing
from runtime.nms import NOT_FINITE
from runtime.results import cells_of_pixels

from .ranking import is_finite

__all__ = ["ClassMap", "Probabilities"]

_BYTE_CLASSES = 256


class ClassMap(nn.Module):
    """The likeliest class of each pixel of the network's input, or of the frame.

    A pixel takes the class of the cell that its centre falls into, as :class:`runtime.results.Segmentation` does.

    Args:
        cells: height and width of the network's scores
        preprocessing: how an image becomes the network's input
        frame_size: height and width of every frame, for a class map of its pixels; None for those of the network's
            input, where frames differ in size
        probabilities: also give those of the classes

    Shape:
        - scores: (N, K, h, w) float32, before softmax
        - class map: (N, H, W) uint8, int32 where there are more than 256 classes
        - status: (N,) int32, 0, or :data:`runtime.nms.NOT_FINITE`
        - probabilities: (N, K, h, w) float32, if they are asked for
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        cells: tuple[int, int],
        preprocessing: Preprocessing,
        frame_size: tuple[int, int] | None = None,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        rows, columns = cells_of_pixels(cells, preprocessing, frame_size)
        self._as_it_is = [rows.tolist(), columns.tolist()] == [list(range(side)) for side in cells]
        self._probabilities = probabilities
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("columns", torch.from_numpy(columns))

    def forward(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Turn scores into classes."""
        classes = scores.argmax(dim=1)
        if not self._as_it_is:
            classes = classes.index_select(1, self.rows).index_select(2, self.columns)
        if scores.shape[1] <= _BYTE_CLASSES:
            # TensorRT makes bytes from floats only.
            class_map = classes.to(torch.float32).to(torch.uint8)
        else:
            class_map = classes.to(torch.int32)
        status = (~is_finite([scores])).to(torch.int32) * NOT_FINITE
        return (class_map, status, scores.softmax(dim=1)) if self._probabilities else (class_map, status)


class Probabilities(nn.Module):
    """Softmax over the classes of scores (N, K) or (N, K, h, w)."""

    def forward(self, scores: Tensor) -> Tensor:
        """Turn scores into probabilities."""
        return scores.softmax(dim=1)
