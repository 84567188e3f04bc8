"""Second moments of a layer's inputs, as many images let them be known."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_MOST_COLUMNS = 4608
"""Inputs of a layer whose products are compensated together: 85 MB a matrix."""
_STRIP = 512


@dataclass
class Moments:
    """Second moments of a part of a layer's inputs, and how much those of single batches differ.

    Attributes:
        part: of the inputs of a group.
        sum: products of inputs, over all rows, of shape (G, K, K).
        squares: squared norms of the covariances within each batch, weighted with its rows, of shape (G,).
        means: inputs' mean of each batch, of shape (G, K).
        rows: number of rows of each batch.
    """

    part: slice
    sum: Tensor
    squares: Tensor
    means: list[Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def add(self, rows: Tensor) -> None:
        """Take in a batch of rows of shape (G, S, K)."""
        count = rows.shape[1]
        products = rows.transpose(1, 2) @ rows
        self.sum += products
        mean = rows.mean(1)
        products.div_(count).baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1.0)
        self.squares += count * products.square_().sum((1, 2))
        self.means.append(mean)
        self.rows.append(count)

    def covariance(self) -> Tensor:
        """Covariances as other images may be expected to have them, of shape (G, K, K).

        Few images make inputs look more dependent on each other than they are, and compensating what only seems to be
        dependent does harm. So what lies off the diagonal is made smaller, by the more the more batches differ from
        each other.

        Source: O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
        Journal of Multivariate Analysis 88 (2004), with batches of images in place of single samples, which depend on
        each other where they are of one image.
        """
        rows, batches = sum(self.rows), len(self.rows)
        found = self.sum.div_(rows)
        means = torch.stack(self.means, 1)
        shares = torch.tensor(self.rows, dtype=means.dtype)[:, None] / rows
        common = _squared_norm_within(found, means * shares, means)
        mean = (means * shares).sum(1)
        found.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1.0)
        diagonal = found.diagonal(dim1=1, dim2=2)
        apart = _squared_norm(found) - diagonal.square().sum(1)
        if batches > 1:
            noise = (self.squares / rows - common) / (batches - 1)
        else:
            noise = apart * min(1.0, found.shape[1] / rows)
        share = torch.where(apart > 0, (noise / apart.clamp_min(1e-30)).clamp(0.0, 1.0), 0.0)[:, None, None]
        kept = diagonal.clone()
        found.mul_(1.0 - share)
        found.diagonal(dim1=1, dim2=2).copy_(kept)
        return found


def _squared_norm(matrices: Tensor) -> Tensor:
    """Of matrices of shape (G, K, K), without a copy of them."""
    norms = [strip.square().sum((1, 2)) for strip in matrices.split(_STRIP, 1)]
    return torch.stack(norms).sum(0)


def _squared_norm_within(products: Tensor, weighted: Tensor, means: Tensor) -> Tensor:
    """Squared norm of the mean covariance within batches, strip after strip: a copy of it would double the memory.

    Args:
        products: mean products of inputs, of shape (G, K, K)
        weighted: means of the batches times their share of the rows, of shape (G, B, K)
        means: of the batches, of shape (G, B, K)
    """
    norms = [
        torch.baddbmm(strip, left.transpose(1, 2), means, alpha=-1.0).square_().sum((1, 2))
        for strip, left in zip(products.split(_STRIP, 1), weighted.split(_STRIP, 2), strict=True)
    ]
    return torch.stack(norms).sum(0)


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
        found.append(Moments(part, torch.zeros(shape), torch.zeros(groups)))
    return found


def columns_together(columns: int) -> int:
    """How many inputs of a layer are compensated together."""
    return min(columns, _MOST_COLUMNS)
