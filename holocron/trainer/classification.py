"""Training of image classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm.auto import tqdm

from holocron.trainer import distributed
from holocron.trainer.core import Trainer
from holocron.trainer.reporting import bars_are_shown
from holocron.trainer.utils import mean_loss

__all__ = ["BinaryClassificationTrainer", "ClassificationTrainer"]


class ClassificationTrainer(Trainer):
    """Trains an image classifier: the model gives logits of shape (N, num_classes), the targets are class indices.

    The arguments are those of :class:`~holocron.trainer.Trainer`. Targets of shape (N, num_classes), as of mixup, are
    evaluated by their largest element.
    """

    is_binary: bool = False

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Evaluate the model on the validation set.

        The loss is the mean over the samples, those of batches with a NaN or infinite loss left out. With fewer than 5
        classes ``acc5`` counts as many as there are, and so is 1.

        Returns:
            ``val_loss``, and the top-1 and top-5 accuracies ``acc1`` and ``acc5`` in [0, 1]

        Raises:
            ValueError: if the validation loader is empty
        """
        sums = [0.0] * 5
        for x, target, loss, out in self._validate():
            labels = target.argmax(dim=1) if target.ndim == 2 and target.shape[1] > 1 else target.reshape(-1)
            hits = out.topk(min(5, out.shape[1]), dim=1).indices == labels[:, None]
            top1, top5 = torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum()]).tolist()
            finite = math.isfinite(loss)
            batch = (loss * len(x) if finite else 0, len(x) if finite else 0, len(x), top1, top5)
            sums = [total + value for total, value in zip(sums, batch, strict=True)]
        loss_sum, num_finite, num_samples, top1, top5 = distributed.sum_over_ranks(sums)
        val_loss = mean_loss(loss_sum, num_finite, num_samples)
        return {"val_loss": val_loss, "acc1": top1 / num_samples, "acc5": top5 / num_samples}

    @torch.no_grad()
    def plot_top_losses(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        classes: Sequence[str] | None = None,
        num_samples: int = 12,
        **kwargs: Any,
    ) -> None:
        """Show the training images with the highest losses, with loss, prediction and target above each.

        Args:
            mean: mean that the images were normalized with
            std: standard deviation that the images were normalized with
            classes: names of the classes; a binary classifier needs none
            num_samples: number of images to show
            **kwargs: arguments of :func:`matplotlib.pyplot.show`

        Raises:
            AssertionError: if `classes` is missing for a multi-class model
            ValueError: if `num_samples` is not positive, the criterion has no `reduction`, or there is no image
        """
        if not self.is_binary and classes is None:
            raise AssertionError("arg 'classes' must be specified for multi-class classification")
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples is expected to be a positive integer, got {num_samples!r}")
        if not hasattr(self.criterion, "reduction"):
            raise ValueError(
                f"the criterion {type(self.criterion).__name__} has no `reduction` to get a loss per image"
            )
        if distributed.rank() != 0:
            return

        # (loss, caption, image), highest loss first
        worst: list[tuple[float, str, Tensor]] = []
        self.model.eval()
        criterion: Any = self.criterion
        reduction, criterion.reduction = criterion.reduction, "none"
        try:
            for x, target in tqdm(self.train_loader, desc="Losses", leave=False, disable=not bars_are_shown()):
                x, target = self.to_cuda(x, target)
                loss, out = self._get_loss(x, target, return_logits=True)
                losses = loss.reshape(len(x), -1).mean(dim=1)
                kept = losses.topk(min(num_samples, len(x))).indices.tolist()
                worst += [
                    (losses[i].item(), self._caption(losses[i], out[i], target[i], classes), x[i].cpu()) for i in kept
                ]
                worst = sorted(worst, key=lambda entry: -math.inf if math.isnan(entry[0]) else -entry[0])[:num_samples]
        finally:
            criterion.reduction = reduction
        if not worst:
            raise ValueError("train_loader is empty: there is no image to plot")
        _plot_images(worst, mean, std, **kwargs)

    def _caption(self, loss: Tensor, logits: Tensor, target: Tensor, classes: Sequence[str] | None) -> str:
        assert classes is not None
        prob, index = torch.softmax(logits, dim=0).max(dim=0)
        label = target.argmax() if target.numel() > 1 else target.reshape(())
        return f"{loss.item():.3} / {classes[int(index)]} ({prob.item():.1%}) / {classes[int(label)]}"


class BinaryClassificationTrainer(ClassificationTrainer):
    """Trains a binary (or multi-label) image classifier: the model gives logits of any shape (N, ...).

    The arguments are those of :class:`~holocron.trainer.Trainer`; the targets have as many elements as the logits, and
    count as positive from 0.5.
    """

    is_binary: bool = True

    def _criterion_loss(self, out: Tensor, target: Tensor) -> Tensor:
        # Labels often come as integers of shape (N,); binary criteria want what the model gives.
        return super()._criterion_loss(out, target.view_as(out).to(out.dtype))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Evaluate the model on the validation set.

        The loss is the mean over the samples, those of batches with a NaN or infinite loss left out.

        Returns:
            ``val_loss``, and the accuracy ``acc`` in [0, 1] at a threshold of 0.5 on the probability

        Raises:
            ValueError: if the validation loader is empty
        """
        sums = [0.0] * 4
        for x, target, loss, out in self._validate():
            correct = ((target.view_as(out) >= 0.5) == (torch.sigmoid(out) >= 0.5)).sum().item()
            finite = math.isfinite(loss)
            batch = (loss * len(x) if finite else 0, len(x) if finite else 0, len(x), correct / out[0].numel())
            sums = [total + value for total, value in zip(sums, batch, strict=True)]
        loss_sum, num_finite, num_samples, correct = distributed.sum_over_ranks(sums)
        val_loss = mean_loss(loss_sum, num_finite, num_samples)
        return {"val_loss": val_loss, "acc": correct / num_samples}

    def _caption(self, loss: Tensor, logits: Tensor, target: Tensor, classes: Sequence[str] | None) -> str:
        probs = ", ".join(f"{prob:.2}" for prob in torch.sigmoid(logits).flatten().tolist())
        targets = ", ".join(f"{value:.2}" for value in target.float().flatten().tolist())
        return f"{loss.item():.3} / {probs} / {targets}"


def _plot_images(
    entries: Sequence[tuple[float, str, Tensor]], mean: Sequence[float], std: Sequence[float], **kwargs: Any
) -> None:
    from matplotlib import pyplot as plt

    num_cols = min(4, len(entries))
    num_rows = math.ceil(len(entries) / num_cols)
    _, axes = plt.subplots(num_rows, num_cols, figsize=(5 * num_cols, 5 * num_rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (_, caption, image) in zip(axes.flat, entries, strict=False):
        pixels = image.float() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        axis.imshow(to_pil_image(pixels.nan_to_num().clamp(0, 1)))
        axis.set_title(caption)
    plt.show(**kwargs)
