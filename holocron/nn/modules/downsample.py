"""Layers that reduce the spatial extent of a feature map."""

from torch import Tensor, nn

__all__ = ["GlobalAvgPool2d"]


class GlobalAvgPool2d(nn.Module):
    """Average over the spatial dimensions, as in `"TResNet" <https://arxiv.org/abs/2003.13630>`_.

    A plain mean: unlike adaptive pooling it is one reduction in every exported graph, whatever the input size.

    Args:
        flatten: drop the two spatial dimensions instead of keeping them with size 1.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C) if ``flatten``, else (N, C, 1, 1)
    """

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.flatten: bool = flatten

    def forward(self, x: Tensor) -> Tensor:
        """Average ``x`` of shape (N, C, H, W) over its last two dimensions."""
        return x.mean(dim=(2, 3), keepdim=not self.flatten)

    def extra_repr(self) -> str:
        """Name the options in the printed form of the layer."""
        return f"flatten={self.flatten}"
