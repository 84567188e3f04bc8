"""Training of object detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from holocron.trainer import distributed
from holocron.trainer.core import Trainer
from holocron.trainer.reporting import bars_are_shown
from holocron.trainer.updates import autocast

__all__ = ["DetectionTrainer", "assign_iou"]


def assign_iou(gt_boxes: Tensor, pred_boxes: Tensor, iou_threshold: float = 0.5) -> tuple[list[int], list[int]]:
    """Pair ground truth boxes with predicted ones, the best overlap first, each box at most once.

    Args:
        gt_boxes: ground truth boxes of shape (N, 4), as (xmin, ymin, xmax, ymax)
        pred_boxes: predicted boxes of shape (M, 4), in the same format and unit
        iou_threshold: the smallest IoU that makes a pair

    Returns:
        the indices of the paired ground truth boxes, and of the predicted box of each
    """
    iou = box_iou(gt_boxes, pred_boxes).cpu()
    candidates = (iou >= iou_threshold).nonzero()
    # Stable, so that equal overlaps are taken in the order of the boxes.
    order = iou[candidates[:, 0], candidates[:, 1]].sort(descending=True, stable=True).indices
    gt_indices: list[int] = []
    pred_indices: list[int] = []
    gt_free, pred_free = [True] * len(gt_boxes), [True] * len(pred_boxes)
    for gt_index, pred_index in candidates[order].tolist():
        if gt_free[gt_index] and pred_free[pred_index]:
            gt_free[gt_index] = pred_free[pred_index] = False
            gt_indices.append(gt_index)
            pred_indices.append(pred_index)
    return gt_indices, pred_indices


class DetectionTrainer(Trainer):
    """Trains an object detector.

    The arguments are those of :class:`~holocron.trainer.Trainer`; the criterion is not used, since detectors compute
    their own loss. In training mode the model is called with the images and the targets, a list of dictionaries with
    ``boxes`` (N, 4) and ``labels`` (N,), and returns a dictionary of losses, which are added up; in evaluation mode it
    is called with the images and returns a list of dictionaries with ``boxes`` and ``labels``.
    """

    def _get_loss(self, x: Any, target: Any, return_logits: bool = False) -> Any:
        if return_logits:
            raise ValueError("a detector gives losses in training mode and boxes in evaluation mode, never both")
        with autocast(self.model, self.amp):
            losses: dict[str, Tensor] = self._forward(x, target)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    @torch.no_grad()
    def evaluate(self, iou_threshold: float = 0.5) -> dict[str, float | None]:  # type: ignore[override]
        """Evaluate the model on the validation set.

        Predicted boxes are paired with ground truth boxes by :func:`assign_iou`. With A pairs, C of them of the right
        class, P predictions and T targets, the errors are 1 − 2A / (P + T) for the localization, 1 − C / A for the
        classification and 1 − 2C / (P + T) end to end.

        Args:
            iou_threshold: the smallest IoU that makes a pair

        Returns:
            the errors in [0, 1] ``loc_err``, ``clf_err`` and ``det_err``, and ``val_loss``, which is the localization
            error; each is None where its denominator is 0

        Raises:
            ValueError: if the validation loader is empty
        """
        self.model.eval()
        sums = [0.0] * 4
        loader = self._loader(training=False)
        for x, target in tqdm(loader, desc="Validation", leave=False, disable=not bars_are_shown()):
            x, target = self.to_cuda(x, target)
            with autocast(self.model, self.amp):
                predictions = self.model(x)
            for predicted, expected in zip(predictions, target, strict=True):
                gt_indices, pred_indices = assign_iou(
                    expected["boxes"].float(), predicted["boxes"].float(), iou_threshold
                )
                right = (expected["labels"][gt_indices] == predicted["labels"][pred_indices]).sum().item()
                image = (1, len(gt_indices), right, len(predicted["boxes"]) + len(expected["boxes"]))
                sums = [total + value for total, value in zip(sums, image, strict=True)]
        num_images, num_pairs, num_right, num_boxes = distributed.sum_over_ranks(sums)
        if num_images == 0:
            raise ValueError("val_loader is empty: there is nothing to evaluate on")
        loc_err = 1 - 2 * num_pairs / num_boxes if num_boxes > 0 else None
        clf_err = 1 - num_right / num_pairs if num_pairs > 0 else None
        det_err = 1 - 2 * num_right / num_boxes if num_boxes > 0 else None
        return {"loc_err": loc_err, "clf_err": clf_err, "det_err": det_err, "val_loss": loc_err}
