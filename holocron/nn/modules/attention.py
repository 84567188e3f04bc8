"""Attention over channels and positions."""

from torch import Tensor, nn

from .downsample import ZPool

__all__ = ["SAM", "DimAttention", "TripletAttention"]


class SAM(nn.Module):
    """Spatial attention of `"CBAM: Convolutional Block Attention Module" <https://arxiv.org/abs/1807.06521>`_ as
    modified in `"YOLOv4: Optimal Speed and Accuracy of Object Detection" <https://arxiv.org/abs/2004.10934>`_: each
    position is scaled by the sigmoid of a linear combination of its own channels.

    Args:
        in_channels: channels of the input.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H, W)
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each position of ``x``."""
        return x * self.conv(x).sigmoid()


class DimAttention(nn.Module):
    """One branch of :class:`TripletAttention`: scale the input by a map over two of its dimensions, computed from the
    maximum and the mean over the third.

    Args:
        dim: the dimension that is pooled: 1 (channels), 2 (rows) or 3 (columns).

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H, W)

    Raises:
        ValueError: if ``dim`` is another one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim not in {1, 2, 3}:
            raise ValueError(f"dim has to be 1, 2 or 3, got {dim}")
        self.dim: int = dim
        self.compress = nn.Sequential(
            ZPool(dim=1),
            nn.Conv2d(2, 1, 7, padding=3, bias=False),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x`` across its other two dimensions."""
        # Swapping the pooled dimension with the channels keeps the other two where they are.
        scale = self.compress(x.transpose(1, self.dim)).transpose(1, self.dim)
        return x * scale

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"dim={self.dim}"


class TripletAttention(nn.Module):
    """Attention across each pair of dimensions, from `"Rotate to Attend: Convolutional Triplet Attention Module"
    <https://arxiv.org/abs/2010.03045>`_: the mean of three branches that pool the channels, the rows and the columns.

    Shape:
        - input: (N, C, H, W)
        - output: (N, C, H, W)
    """

    def __init__(self) -> None:
        super().__init__()
        self.c_branch = DimAttention(dim=1)
        self.h_branch = DimAttention(dim=2)
        self.w_branch = DimAttention(dim=3)

    def forward(self, x: Tensor) -> Tensor:
        """Average the three branches."""
        return (self.c_branch(x) + self.h_branch(x) + self.w_branch(x)) / 3
