"""Structured dropout."""

from torch import Tensor, nn

from holocron.nn import functional as F

__all__ = ["DropBlock2d"]


class DropBlock2d(nn.Module):
    """Zero whole squares of activations while training, from `"DropBlock: A regularization method for convolutional
    networks" <https://arxiv.org/abs/1810.12890>`_; the identity in eval mode. See
    :func:`holocron.nn.functional.dropblock2d`.

    Args:
        p: expected fraction of dropped activations, from 0 to 1.
        block_size: side of the blocks in pixels; cut to the feature map where that is smaller.
        inplace: write the result over the input.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H, W)

    Raises:
        ValueError: if ``p`` is not in [0, 1] or ``block_size`` is below 1.
    """

    def __init__(self, p: float = 0.1, block_size: int = 7, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p has to be between 0 and 1, got {p}")
        if block_size < 1:
            raise ValueError(f"block_size has to be 1 or more, got {block_size}")
        self.p: float = p
        self.block_size: int = block_size
        self.inplace: bool = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Drop blocks of ``x`` if training."""
        return F.dropblock2d(x, self.p, self.block_size, self.inplace, self.training)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"
