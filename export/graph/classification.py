"""From a classifier's logits to its likeliest classes, as part of its graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.nms import NOT_FINITE

from .ranking import choose_best, descending, is_finite

__all__ = ["TopClasses"]


class TopClasses(nn.Module):
    """The k likeliest classes, likeliest first; of equal logits the lower class first.

    Args:
        k: how many, at most the number of classes

    Shape:
        - logits: (N, K) float32
        - scores: (N, k) float32, softmax probabilities; labels: (N, k) int32
        - status: (N,) int32, 0, or :data:`runtime.nms.NOT_FINITE`
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rank the classes."""
        chosen, values = choose_best(logits, self.k)
        order = descending(values)
        labels = order if chosen is None else chosen.gather(1, order)
        scores = logits.softmax(dim=1).gather(1, labels)
        status = (~is_finite([logits])).to(torch.int32) * NOT_FINITE
        return scores, labels.to(torch.int32), status
