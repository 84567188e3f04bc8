"""Second moments of a layer's inputs, as many images let them be known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_COLUMNS = 4608
"""Inputs of a layer whose products are compensated together: 85 MB a matrix."""


@dataclass
class Moments:
    """Second moments of a part of a layer's inputs, and how much those of single batches differ."""

    part: slice
    sum: Tensor
    within: Tensor
    squares: Tensor
    batches: int = 0

    def add(self, rows: Tensor) -> None:
        """Take in a batch of rows of shape (G, S, K)."""
        products = rows.transpose(1, 2) @ rows
        self.sum += products
        mean = rows.mean(1)
        products.div_(rows.shape[1]).sub_(mean[:, :, None] * mean[:, None, :])
        self.within += products
        self.squares += products.square_().sum((1, 2))
        self.batches += 1

    def covariance(self, mean: Tensor, rows: int) -> Tensor:
        """Covariances as other images may be expected to have them, of shape (G, K, K).

        Few images make inputs look more dependent on each other than they are, and compensating what only seems to be
        dependent does harm. So what lies off the diagonal is made smaller, by the more the more batches differ from
        each other.

        Source: O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
        Journal of Multivariate Analysis 88 (2004), with batches of images in place of single samples, which depend on
        each other where they are of one image.
        """
        found = self.sum.div_(rows)
        found.sub_(mean[:, self.part, None] * mean[:, None, self.part])
        diagonal = found.diagonal(dim1=1, dim2=2)
        apart = found.square().sum((1, 2)) - diagonal.square().sum(1)
        if self.batches > 1:
            common = self.within.div_(self.batches).square_().sum((1, 2))
            noise = (self.squares / self.batches - common) / (self.batches - 1)
        else:
            noise = apart * min(1.0, found.shape[1] / rows)
        share = torch.where(apart > 0, (noise / apart.clamp_min(1e-30)).clamp(0.0, 1.0), 0.0)[:, None, None]
        kept = diagonal.clone()
        found.mul_(1.0 - share)
        found.diagonal(dim1=1, dim2=2).copy_(kept)
        return found


def no_moments(groups: int, columns: int) -> list[Moments]:
    """Moments before anything was seen, in blocks of columns that fit into memory.

    Args:
        groups: of the layer
        columns: inputs of each group

    Returns:
        the blocks
    """
    count = -(-columns // _MOST_COLUMNS)
    size = -(-columns // count)
    found = []
    for start in range(0, columns, size):
        part = slice(start, min(start + size, columns))
        shape = (groups, part.stop - part.start, part.stop - part.start)
        found.append(Moments(part, torch.zeros(shape), torch.zeros(shape), torch.zeros(groups)))
    return found


def columns_together(columns: int) -> int:
    """How many inputs of a layer are compensated together."""
    return min(columns, _MOST_COLUMNS)
