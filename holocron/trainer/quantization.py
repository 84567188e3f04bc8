"""Fine-tuning of networks that compute with fake quantization."""

from __future__ import annotations

import math
from collections.abc import Sized
from pathlib import Path
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

__all__ = ["DistillationLoss", "QuantizationTrainer", "UnlabelledDataset", "VariedDataset"]


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


class VariedDataset(Dataset[Tensor]):
    """Variants of a few images, for a teacher to answer: flipped, shifted and mixed, anew each time one is read.

    Half of the images are mirrored, each is moved by up to an eighth of its size (what is moved in is its reflection),
    and half are mixed with another one, which keeps the larger part (`mixup <https://arxiv.org/abs/1710.09412>`_, with
    the teacher's answer in place of mixed labels). The draws are those of torch's global generator.

    Args:
        images: a dataset of image tensors (C, H, W) of one size
        variants: how often each image is read in an epoch, in another variant each time

    Raises:
        ValueError: if `variants` is not a positive integer
    """

    def __init__(self, images: Dataset[Tensor], variants: int = 1) -> None:
        if not isinstance(variants, int) or variants < 1:
            raise ValueError(f"variants is expected to be a positive number for each image, got {variants!r}")
        self.images = images
        self.variants = variants

    def __len__(self) -> int:
        return self.variants * len(cast(Sized, self.images))

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} variants, there is no number {index}")
        count = len(cast(Sized, self.images))
        image = _moved(self.images[index % count])
        if torch.rand(()) < 0.5:
            other = _moved(self.images[int(torch.randint(count, ()))])
            image = torch.lerp(image, other, 0.5 * torch.rand(()).item())
        return image


def _moved(image: Tensor) -> Tensor:
    """An image, mirrored or not, and shifted."""
    if torch.rand(()) < 0.5:
        image = image.flip(-1)
    height, width = image.shape[-2:]
    down, right = height // 8, width // 8
    padded = F.pad(image[None], (right, right, down, down), mode="reflect")[0]
    top, left = int(torch.randint(2 * down + 1, ())), int(torch.randint(2 * right + 1, ()))
    return padded[..., top : top + height, left : left + width]


class QuantizationTrainer(ClassificationTrainer):
    """Fine-tunes a classifier that :func:`~holocron.nn.quantization.prepare_qat` made.

    With labels it trains as :class:`~holocron.trainer.ClassificationTrainer`. With a `teacher`, usually the float
    network that the model was made from, it trains the model to answer as the teacher does, and needs no label: the
    criterion is given the teacher's output in place of the target, e.g. :class:`DistillationLoss`. A few epochs at a
    low learning rate of an adaptive optimizer are enough, since the network starts next to where it should end. It ends
    as it was best on the validation set, its start included.

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

    def fit_n_epochs(self, num_epochs: int, lr: float, *args: Any, **kwargs: Any) -> None:
        """Train the model, and leave it as it was best on the validation set, which may be as it started.

        Weights that were rounded with care are a good start, and a few images can lead away from it.

        Args:
            num_epochs: number of epochs of the schedule
            lr: the learning rate
            *args: further arguments of :meth:`holocron.trainer.Trainer.fit_n_epochs`
            **kwargs: the same

        Raises:
            ValueError: as there
        """
        resumed = math.isfinite(self.min_loss) and Path(self.output_file).exists()
        if not resumed:
            start = self.evaluate()["val_loss"]
            self.min_loss = math.inf if math.isnan(start) else start
            self.save(self.output_file)
            distributed.barrier()
        super().fit_n_epochs(num_epochs, lr, *args, **kwargs)
        best = torch.load(self.output_file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(best["model"])

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
