"""Fine-tuning of networks that compute with fake quantization."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from holocron.trainer import distributed
from holocron.trainer.classification import ClassificationTrainer
from holocron.trainer.core import Target
from holocron.trainer.updates import autocast
from holocron.trainer.utils import mean_loss

__all__ = ["DistillationLoss", "QuantizationTrainer", "UnlabelledDataset"]


class DistillationLoss(nn.Module):
    """Divergence of a student's class probabilities from a teacher's, `Hinton et al.
    <https://arxiv.org/abs/1503.02531>`_.

    Args:
        temperature: that both logits are divided by; the loss is multiplied by its square

    Shape:
        - input: (N, K) logits of the student
        - target: (N, K) logits of the teacher
        - output: ()

    Raises:
        ValueError: if the temperature is not positive
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is expected to be positive, got {temperature!r}")
        self.temperature = temperature

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compare logits."""
        student, teacher = (F.log_softmax(logits / self.temperature, dim=1) for logits in (x, target))
        return self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"temperature={self.temperature}"


class UnlabelledDataset(Dataset[tuple[Tensor, int]]):
    """Images without labels, as the trainers take them: each comes with −1 in place of a class.

    Args:
        images: a dataset of image tensors
    """

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(cast(Sized, self.images))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], -1


class QuantizationTrainer(ClassificationTrainer):
    """Fine-tunes a classifier that :func:`~holocron.nn.quantization.prepare_qat` made.

    With labels it trains as :class:`~holocron.trainer.ClassificationTrainer`. With a `teacher`, usually the float
    network that the model was made from, it trains the model to answer as the teacher does, and needs no label: the
    criterion is given the teacher's output in place of the target, e.g. :class:`DistillationLoss`. A few epochs at a
    low learning rate of an adaptive optimizer are enough, since the network starts next to where it should end.

    Args:
        model: the network with fake quantization
        train_loader: the training data, pairs of images and labels; see :class:`UnlabelledDataset` for images alone
        val_loader: the validation data, the same way
        criterion: the loss, called with the output of the model, and the target or the teacher's output
        optimizer: the optimizer
        teacher: the network to answer like, which is put in evaluation mode and gets no gradient
        **kwargs: further arguments of :class:`~holocron.trainer.Trainer`
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        criterion: nn.Module,
        optimizer: Optimizer,
        teacher: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if teacher is model:
            raise ValueError("teacher is the model itself: pass the float network that it was made from")
        self.teacher = teacher
        super().__init__(model, train_loader, val_loader, criterion, optimizer, **kwargs)
        if self.teacher is not None:
            self.teacher = self.teacher.eval()

    def set_device(self, gpu: int | None = None) -> None:
        """Move the model, the teacher and the criterion to a GPU.

        Args:
            gpu: index of the GPU; nothing moves when it is None
        """
        super().set_device(gpu)
        if gpu is not None and self.teacher is not None:
            self.teacher = self.teacher.to(f"cuda:{gpu}")

    def _get_loss(self, x: Tensor, target: Target, return_logits: bool = False) -> Any:
        if self.teacher is None:
            return super()._get_loss(x, target, return_logits)
        with torch.no_grad(), autocast(self.teacher, self.amp):
            answer = self.teacher(x)
        return super()._get_loss(x, answer.float() if self.amp else answer, return_logits)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Evaluate the model on the validation set.

        Returns:
            with a teacher ``val_loss`` and ``agreement``, the share of images on which the two have the same first
            class; otherwise what :class:`~holocron.trainer.ClassificationTrainer` gives

        Raises:
            ValueError: if the validation loader is empty
        """
        if self.teacher is None:
            return super().evaluate()
        sums = [0.0] * 4
        for x, _, loss, out in self._validate():
            same = (out.argmax(dim=1) == self.teacher(x).argmax(dim=1)).sum().item()
            finite = math.isfinite(loss)
            batch = (loss * len(x) if finite else 0, len(x) if finite else 0, len(x), same)
            sums = [total + value for total, value in zip(sums, batch, strict=True)]
        loss_sum, num_finite, num_samples, same = distributed.sum_over_ranks(sums)
        return {"val_loss": mean_loss(loss_sum, num_finite, num_samples), "agreement": same / num_samples}
