"""Taking and sorting the best of some scores inside a graph, the same way on every backend.

ONNX Runtime, OpenVINO and TensorRT differ in which of two equal values their TopK takes, and in how ArgMax breaks ties.
So every TopK here whose indices are read is of distinct keys, whole numbers that float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    place = torch.arange(size, device=scores.device)
    first, other = scores[:, :, None], scores[:, None]
    is_before = (other > first) | ((other == first) & (place < place[:, None]))
    # Nothing is computed between this sum and its reader: OpenVINO (2026.4) fuses a reduction over the last dimension
    # with an addition behind it, and then adds along the wrong one.
    return is_before.to(torch.float32).sum(dim=2).topk(size, dim=1, largest=False).indices


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, K, D) of values (N, P, D) at indices (N, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def is_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all values of each image are finite, (N,): only then is their sum, of values far from the largest."""
    total = torch.stack([tensor.flatten(1).sum(dim=1) for tensor in tensors]).sum(dim=0)
    return total.abs() <= torch.finfo(torch.float32).max
