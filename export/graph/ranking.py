"""Taking and sorting the best of some scores inside a graph, the same way on every backend.

ONNX Runtime, OpenVINO and TensorRT differ in which of two equal values their TopK takes, and in how ArgMax breaks ties.
So every TopK here whose indices are read is of distinct keys, whole numbers that float32 holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LARGEST_RANKED = 3839
"""TensorRT 10 sorts fewer than 3840 values, the squares of which are exact in float32 too."""
MOST_VALUES = 2**23
"""Up to so many values the keys of :func:`choose_best` are exact."""


def choose_best(scores: Tensor, count: int) -> tuple[Tensor | None, Tensor]:
    """The indices of the highest scores, of equal ones the first.

    Args:
        scores: (N, P) float32, P at most :data:`MOST_VALUES`
        count: how many, K, at most P and :data:`LARGEST_RANKED`

    Returns:
        int64 indices (N, K) in ascending order, those that equal the least score after the others; None where all are
        chosen. And their scores (N, K).
    """
    total = scores.shape[1]
    if count == total:
        return None, scores
    least = scores.topk(count, dim=1).values[:, -1:]
    backwards = total - torch.arange(total, dtype=torch.float32, device=scores.device)
    key = torch.where(scores > least, backwards + total, torch.where(scores == least, backwards, 0.0))
    chosen = key.topk(count, dim=1).indices
    return chosen, scores.gather(1, chosen)


def descending(scores: Tensor) -> Tensor:
    """Indices (N, K) that sort scores (N, K), the highest first, of equal ones the first first."""
    size = scores.shape[1]
    values, index = scores.topk(size, dim=1)
    # Whole numbers below 2 ** 24: a place in the order of the values, and among equal ones the index.
    key = _first_of_equals(values) * size + index.to(torch.float32)
    return index.gather(1, key.topk(size, dim=1, largest=False).indices)


def _first_of_equals(values: Tensor) -> Tensor:
    """Of sorted values (N, K), where the first lies that equals each: (N, K) float32.

    The largest start of a run up to each place: within rows of about √K values, and over the rows before.
    """
    size = values.shape[1]
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    place = torch.arange(size, dtype=torch.float32, device=values.device)
    is_new = values[:, 1:] != values[:, :-1]
    start = nn.functional.pad(torch.where(is_new, place[1:], 0.0), (1, height * width - size))
    rows = start.reshape(-1, height, width)
    up_to = _ahead(width, strictly=False, like=rows)
    within = torch.where(up_to, rows[..., None], 0.0).amax(dim=2)
    before = torch.where(_ahead(height, strictly=True, like=rows), within[:, :, -1:], 0.0).amax(dim=1)
    return torch.maximum(within, before[..., None]).flatten(1)[:, :size]


def _ahead(size: int, *, strictly: bool, like: Tensor) -> Tensor:
    """Whether the place of each row comes ahead of that of each column, or else is the same."""
    place = torch.arange(size, device=like.device)
    return place[:, None] < place if strictly else place[:, None] <= place


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, K, D) of values (N, P, D) at indices (N, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def is_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all values of each image are finite, (N,): only then is their sum, of values far from the largest."""
    total = torch.stack([tensor.flatten(1).sum(dim=1) for tensor in tensors]).sum(dim=0)
    return total.abs() <= torch.finfo(torch.float32).max
