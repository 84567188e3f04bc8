"""Training of semantic segmentation models."""

from __future__ import annotations

import math
from typing import Any

import torch

from holocron.trainer import distributed
from holocron.trainer.core import Trainer
from holocron.trainer.utils import mean_loss

__all__ = ["SegmentationTrainer"]


class SegmentationTrainer(Trainer):
    """Trains a segmentation model: logits of shape (N, num_classes, H, W), targets of class indices (N, H, W).

    Args:
        *args: the arguments of :class:`~holocron.trainer.Trainer`
        num_classes: number of classes
        **kwargs: the keyword arguments of :class:`~holocron.trainer.Trainer`

    Raises:
        ValueError: if `num_classes` is not positive
    """

    def __init__(self, *args: Any, num_classes: int = 10, **kwargs: Any) -> None:
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes is expected to be a positive integer, got {num_classes!r}")
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes

    @torch.no_grad()
    def evaluate(self, ignore_index: int = 255) -> dict[str, float]:
        """Evaluate the model on the validation set.

        The loss is the mean over the images, those of batches with a NaN or infinite loss left out. Pixels whose target
        is `ignore_index`, or no class, do not count. The mean IoU is over the classes that occur in the targets or the
        predictions; it and the accuracy are NaN if no pixel counts.

        Args:
            ignore_index: the target to ignore

        Returns:
            ``val_loss``, the accuracy over all pixels ``acc_global``, and ``mean_iou``

        Raises:
            ValueError: if the validation loader is empty, or the model gives more classes than `num_classes`
        """
        num_classes = self.num_classes
        confusion = torch.zeros(num_classes**2, dtype=torch.int64)
        sums = [0.0] * 3
        for x, target, loss, out in self._validate():
            if out.shape[1] > num_classes:
                raise ValueError(f"the model gives {out.shape[1]} classes, but num_classes={num_classes}")
            finite = math.isfinite(loss)
            batch = (loss * len(x) if finite else 0, len(x) if finite else 0, len(x))
            sums = [total + value for total, value in zip(sums, batch, strict=True)]
            counted = (target >= 0) & (target < num_classes) & (target != ignore_index)
            pairs = num_classes * target[counted].long() + out.argmax(dim=1)[counted]
            confusion += torch.bincount(pairs, minlength=num_classes**2).cpu()
        # float64 holds counts of pixels exactly up to 2^53.
        reduced = distributed.sum_over_ranks([*sums, *confusion.tolist()])
        matrix = torch.tensor(reduced[3:], dtype=torch.float64).reshape(num_classes, num_classes)
        hits = matrix.diag()
        iou = hits / (matrix.sum(dim=0) + matrix.sum(dim=1) - hits)
        return {
            "val_loss": mean_loss(*reduced[:3]),
            "acc_global": (hits.sum() / matrix.sum()).item(),
            "mean_iou": iou.nanmean().item(),
        }
