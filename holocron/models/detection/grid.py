"""What YOLOv1 and YOLOv2 share: a grid of cells, each of which answers for the objects centered in it."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from holocron.models.detection.detector import Detector, GroundTruth

__all__ = ["GridDetector", "GridPredictions", "assign_boxes", "init_objectness"]

# Below this side, relative to the image, the root is cut off: there the side itself hardly depends on the network any
# more, and the product of its derivative and the root's, infinite at 0, would be NaN.
_SMALLEST_SIDE = 1e-12

# Probability of an object that an untrained head gives each box.
_OBJECTNESS_PRIOR = 0.1


class GridPredictions(NamedTuple):
    """What the head says about each of the A boxes of each cell of an H × W grid, for N images.

    Attributes:
        center: (N, H, W, A, 2), center (x, y) of the box within its cell, in [0, 1].
        size: (N, H, W, A, 2), width and height of the box relative to the image, not negative.
        objectness: (N, H, W, A), in [0, 1], trained to be the IoU of the box with an object.
        probabilities: (N, H, W, A, K) or, where the boxes of a cell have them in common, (N, H, W, 1, K); each class
            given that there is an object.
    """

    center: Tensor
    size: Tensor
    objectness: Tensor
    probabilities: Tensor

    def corners(self) -> Tensor:
        """Boxes of shape (N, H, W, A, 4), as (xmin, ymin, xmax, ymax) relative to the image, which they may exceed."""
        height, width = self.center.shape[1:3]
        column = torch.arange(width, dtype=self.center.dtype, device=self.center.device)
        row = torch.arange(height, dtype=self.center.dtype, device=self.center.device)
        x = (self.center[..., 0] + column[:, None]) / width
        y = (self.center[..., 1] + row[:, None, None]) / height
        center, half = torch.stack([x, y], dim=-1), self.size / 2
        return torch.cat([center - half, center + half], dim=-1)


class GridDetector(Detector[Tensor]):
    r"""A detector that predicts a fixed number of boxes for each cell of a grid.

    Of the boxes of the cell that an object is centered in, the one that has the highest IoU with it is responsible for
    it. With several objects in a cell, each box still answers for one object at most: the pair of the highest IoU is
    made first, then the best pair of the others, and so on (:func:`assign_boxes`). Objects for which no box is left
    count for nothing.

    The losses are sums over all cells :math:`i` and boxes :math:`j` of an image, averaged over the images of the batch:

    - ``bbox_loss``: :math:`\lambda_{coords} \sum \mathbb{1}_{ij}^{obj} [(x - \hat x)^2 + (y - \hat y)^2 +
      (\sqrt w - \sqrt{\hat w})^2 + (\sqrt h - \sqrt{\hat h})^2]`, with the center relative to the cell and the size
      relative to the image
    - ``obj_loss``: :math:`\lambda_{obj} \sum \mathbb{1}_{ij}^{obj} (C - \hat C)^2`, where :math:`C` is the IoU of the
      box with its object, taken as a constant
    - ``noobj_loss``: :math:`\lambda_{noobj} \sum (1 - \mathbb{1}_{ij}^{obj}) \hat C^2`
    - ``clf_loss``: :math:`\lambda_{class} \sum \mathbb{1}^{obj} \sum_c (p(c) - \hat p(c))^2`, over the boxes that have
      an object or, where the boxes of a cell share their probabilities, over the cells that have one. There
      :math:`p` is the mean of the one-hot classes of the objects that the boxes of the cell answer for.

    Args:
        num_classes: number of classes K.
        in_channels: channels of the images.
        rpn_nms_thresh: IoU in [0, 1] above which the less certain one of two boxes of a class is dropped.
        box_score_thresh: score in [0, 1] below which boxes are dropped.
        lambda_obj: weight of the objectness of responsible boxes.
        lambda_noobj: weight of the objectness of the others.
        lambda_class: weight of the classification.
        lambda_coords: weight of the coordinates.

    Raises:
        ValueError: if a number is outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        rpn_nms_thresh: float,
        box_score_thresh: float,
        lambda_obj: float,
        lambda_noobj: float,
        lambda_class: float,
        lambda_coords: float,
    ) -> None:
        super().__init__(num_classes, in_channels, rpn_nms_thresh, box_score_thresh)
        self.lambda_obj = lambda_obj
        self.lambda_noobj = lambda_noobj
        self.lambda_class = lambda_class
        self.lambda_coords = lambda_coords
        for name in ("lambda_obj", "lambda_noobj", "lambda_class", "lambda_coords"):
            weight = getattr(self, name)
            if not 0 <= weight < math.inf:
                raise ValueError(f"expected {name} to be finite and not negative, got {weight}")

    @abstractmethod
    def interpret(self, raw: Tensor) -> GridPredictions:
        """Tell the numbers of the head apart, in their own floating-point type."""

    def decode(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the output of the head into P = H · W · A candidate boxes an image, row by row of the grid.

        Args:
            raw: what :meth:`raw_outputs` gives.

        Returns:
            boxes of shape (N, P, 4), as (xmin, ymin, xmax, ymax) relative to the image and clipped to it, and scores of
            shape (N, P, K), objectness times class probability
        """
        predictions = self.interpret(_at_least_float32(raw))
        scores = predictions.objectness[..., None] * predictions.probabilities
        return predictions.corners().clamp(0, 1).flatten(1, 3), scores.flatten(1, 3)

    def compute_losses(self, raw: Tensor, ground_truth: GroundTruth) -> dict[str, Tensor]:
        """Measure how far the output of the head is from the ground truth, see the formulas of the class.

        Args:
            raw: what :meth:`raw_outputs` gives.
            ground_truth: the objects in the images.

        Returns:
            the scalars ``bbox_loss``, ``obj_loss``, ``noobj_loss`` and ``clf_loss``
        """
        predictions = self.interpret(_at_least_float32(raw))
        num_images, height, width, num_boxes = predictions.objectness.shape
        boxes, labels, image, _ = ground_truth

        position = (boxes[:, :2] + boxes[:, 2:]) / 2 * boxes.new_tensor([width, height])
        # A center on the far border of the image is in the last cell.
        column_row = torch.minimum(position.long(), image.new_tensor([width - 1, height - 1]))
        cell = (image * height + column_row[:, 1]) * width + column_row[:, 0]
        with torch.no_grad():
            iou = _paired_iou(boxes[:, None], predictions.corners().flatten(0, 2)[cell])
        box = assign_boxes(iou, cell)
        served = box >= 0
        cell, box, iou = cell[served], box[served], iou[served].gather(1, box[served, None])[:, 0]
        slot = cell * num_boxes + box

        center_error = predictions.center.flatten(0, 3)[slot] - (position - column_row)[served]
        side = predictions.size.flatten(0, 3)[slot].clamp(min=_SMALLEST_SIDE)
        size_error = side.sqrt() - (boxes[:, 2:] - boxes[:, :2])[served].sqrt()

        objectness = predictions.objectness.flatten()
        is_free = torch.ones_like(objectness).index_fill_(0, slot, 0)

        shared = predictions.probabilities.shape[3] != num_boxes
        probabilities = predictions.probabilities.flatten(0, 3)
        votes = torch.zeros_like(probabilities).index_put_(
            (cell if shared else slot, labels[served]), probabilities.new_ones(()), accumulate=True
        )
        num_votes = votes.sum(dim=1, keepdim=True)
        class_error = (votes / num_votes.clamp(min=1) - probabilities) * (num_votes > 0)

        return {
            "bbox_loss": self.lambda_coords * (center_error.square().sum() + size_error.square().sum()) / num_images,
            "obj_loss": self.lambda_obj * (iou - objectness[slot]).square().sum() / num_images,
            "noobj_loss": self.lambda_noobj * (is_free * objectness.square()).sum() / num_images,
            "clf_loss": self.lambda_class * class_error.square().sum() / num_images,
        }


def assign_boxes(iou: Tensor, cell: Tensor) -> Tensor:
    """Give each object one box of its cell, and each box one object at most, the pair of the highest IoU first.

    Of pairs with equal IoU the one of the earlier object counts as the better, then that of the earlier box.

    Args:
        iou: IoU of each of M objects with the A boxes of the cell that it is centered in, of shape (M, A).
        cell: number of that cell, of shape (M,); objects of different images are in different cells.

    Returns:
        the box of each object, int64 of shape (M,), -1 for objects for which their cell has no box left
    """
    num_objects, num_boxes = iou.shape
    assigned = torch.full_like(cell, -1)
    if num_objects == 0:
        return assigned
    occupied, group, crowd = torch.unique(cell, return_inverse=True, return_counts=True)
    taken = torch.zeros(len(occupied), num_boxes, dtype=torch.bool, device=iou.device)
    pair_group = group.repeat_interleave(num_boxes)
    pair = torch.arange(num_objects * num_boxes, device=iou.device)
    # Each round makes the best pair that is left in every cell at once; most cells have one object, and need one round.
    for _ in range(min(num_boxes, int(crowd.max()))):
        is_open = (assigned < 0)[:, None] & ~taken[group]
        value = torch.where(is_open, iou, -1).flatten()
        best = value.new_full((len(occupied),), -1).scatter_reduce(0, pair_group, value, "amax")
        is_best = (value == best[pair_group]) & is_open.flatten()
        first = pair.new_full((len(occupied),), len(pair)).scatter_reduce(
            0, pair_group, torch.where(is_best, pair, len(pair)), "amin"
        )
        first = first[first < len(pair)]
        winner, box = first // num_boxes, first % num_boxes
        assigned[winner] = box
        taken[group[winner], box] = True
    return assigned


def init_objectness(bias: Tensor) -> None:
    """Initialize in place the biases of the objectness, so that each box starts as one that hardly has an object.

    The idea is that of `"Focal Loss for Dense Object Detection" <https://arxiv.org/abs/1708.02002>`_. Starting from one
    half, the many boxes without an object make the first steps so large that a network may never recover: YOLOv1 did
    not, with stochastic gradient descent on three images.

    Args:
        bias: the biases, of any shape, before the sigmoid.
    """
    nn.init.constant_(bias, math.log(_OBJECTNESS_PRIOR / (1 - _OBJECTNESS_PRIOR)))


def _at_least_float32(raw: Tensor) -> Tensor:
    """Half precision would move boxes by pixels."""
    return raw.float() if raw.dtype in {torch.float16, torch.bfloat16} else raw


def _paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of boxes of shapes (..., 4) that broadcast, in [0, 1]."""
    overlap = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(boxes1[..., :2], boxes2[..., :2])
    intersection = overlap.clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (boxes1, boxes2)]
    union = areas[0] + areas[1] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
