"""Augmentations of whole batches, for the ``collate_fn`` of a loader."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

__all__ = ["Mixup"]


class Mixup(nn.Module):
    """Mix each sample of a batch with another one, as in `"mixup: Beyond Empirical Risk Minimization"
    <https://arxiv.org/pdf/1710.09412.pdf>`_.

    One weight per batch is drawn from Beta(alpha, alpha), by the random generator of PyTorch.

    Args:
        num_classes: number of classes; with 1, targets are probabilities
        alpha: strength of the mixing; 0 only turns the targets into probabilities

    Raises:
        ValueError: if `alpha` is negative or `num_classes` is not positive

    Example:
        >>> from torch.utils.data import default_collate
        >>> from holocron.utils.data import Mixup
        >>> mix = Mixup(num_classes=10, alpha=0.4)
        >>> x, target = mix(*default_collate([(torch.zeros(3, 8, 8), 1), (torch.ones(3, 8, 8), 7)]))
        >>> target.shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, alpha: float = 0.2) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` is expected to be a positive integer, got {num_classes!r}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"`alpha` only takes positive values, got {alpha!r}")
        self.num_classes: int = num_classes
        self.alpha: float = alpha

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            inputs: floating point tensor of shape (N, ...)
            targets: class indices of shape (N,), or probabilities of shape (N, num_classes)

        Returns:
            the mixed inputs of shape (N, ...), and the mixed probabilities of shape (N, num_classes)

        Raises:
            TypeError: if the inputs are integers
            ValueError: if the shape or the range of the targets does not fit
        """
        if not inputs.is_floating_point():
            raise TypeError(
                f"inputs are expected to be floating point to be mixed, got {inputs.dtype}; scale them first"
            )
        targets = self._as_probabilities(targets).to(inputs)
        if targets.shape != (len(inputs), self.num_classes):
            raise ValueError(
                f"targets are expected to be of shape ({len(inputs)},) or ({len(inputs)}, {self.num_classes}), "
                f"got {tuple(targets.shape)}"
            )
        if self.alpha == 0:
            return inputs, targets
        weight = torch.distributions.Beta(self.alpha, self.alpha).sample().item()
        partner = torch.randperm(len(inputs), device=inputs.device)
        return (
            inputs * weight + inputs[partner] * (1 - weight),
            targets * weight + targets[partner] * (1 - weight),
        )

    def _as_probabilities(self, targets: Tensor) -> Tensor:
        if targets.ndim != 1:
            return targets
        if self.num_classes == 1:
            return targets[:, None]
        if targets.is_floating_point() or (len(targets) and not 0 <= targets.min() <= targets.max() < self.num_classes):
            raise ValueError(
                f"targets of shape (N,) are expected to be class indices below num_classes={self.num_classes}, got "
                f"{targets.dtype} in [{targets.min().item()}, {targets.max().item()}]"
            )
        return one_hot(targets.long(), self.num_classes)

    def extra_repr(self) -> str:
        """Show the arguments in ``repr``."""
        return f"num_classes={self.num_classes}, alpha={self.alpha}"
