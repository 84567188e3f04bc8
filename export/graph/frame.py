"""A camera's frame as the network's input: the resize and the normalization as part of the graph.

Resizing is two matrix products (:mod:`runtime.resampling`). A weight of Pillow's has 22 bits behind the point, and
float32 holds no sum of such products exactly; on tensor cores float32 products keep 11 bits only (TF32). So each weight
is split into two whole numbers of at most 12 bits: products and sums of those are exact in float32 and in TF32 alike,
and the rounding to 8 bits after each product gives Pillow's own pixels on every backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from runtime.manifest import COLUMNS_INPUT, FRAME_INPUT, ROWS_INPUT, FrameSpec, Preprocessing
from runtime.resampling import WEIGHT_BITS, resize_matrices, rows_first

from ..onnx_graph import INPUT_NAME
from ..trace import MAX_TRACED_BATCH, trace_examples

if TYPE_CHECKING:
    import onnx

_LOW_BITS = 12
_UNIT = 2.0**-WEIGHT_BITS
_HIGH_UNIT = 2.0 ** (_LOW_BITS - WEIGHT_BITS)
_BANDS = 16
"""Into how many bands constant matrices are cut. More of them multiply fewer zeros, in smaller products."""


class FrameInput(nn.Module):
    """Frames of any size to the input of a network; the matrices that depend on the size are inputs too.

    The batch shares one height and width. A frame that is smaller lies in its upper left corner, and its matrices have
    zeros where it does not reach: what lies there is not seen. So one fixed shape serves frames of all sizes up to it,
    as CUDA graphs and batches of unequal frames need it, and a smaller shape costs less.

    Args:
        preprocessing: the network's size, the resizing and the normalization
        channels: order of a frame's channels, `"rgb"` or `"bgr"`
    """

    def __init__(self, preprocessing: Preprocessing, channels: str = "rgb") -> None:
        super().__init__()
        self.normalize = _Normalize(preprocessing, channels)

    def forward(self, frame: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Resize and normalize.

        Args:
            frame: uint8 of shape (N, h, w, 3)
            rows: float32 of shape (N, H, h), see :class:`runtime.resampling.ResizeMatrices`
            columns: float32 of shape (N, w, W)

        Returns:
            float32 of shape (N, 3, H, W)
        """
        pixels = frame.float().permute(0, 3, 1, 2)
        pixels = _rounded(*torch.chunk(pixels @ torch.cat(_split(columns), 2)[:, None], 2, 3))
        pixels = _rounded(*torch.chunk(torch.cat(_split(rows), 1)[:, None] @ pixels, 2, 2))
        return self.normalize(pixels)


class FixedFrameInput(nn.Module):
    """Frames of one size to the input of a network: the matrices are constants, multiplied where they are not zero.

    Args:
        preprocessing: the network's size, the resizing and the normalization
        frame_size: height and width of the frames, in pixels
        channels: order of a frame's channels, `"rgb"` or `"bgr"`
    """

    def __init__(self, preprocessing: Preprocessing, frame_size: tuple[int, int], channels: str = "rgb") -> None:
        super().__init__()
        matrices = resize_matrices(*frame_size, preprocessing)
        passes = {
            "columns": _BandedProduct(torch.from_numpy(matrices.columns.T.copy()), 3),
            "rows": _BandedProduct(torch.from_numpy(matrices.rows.copy()), 2),
        }
        order = ("rows", "columns") if rows_first(*frame_size, preprocessing) else ("columns", "rows")
        self.passes = nn.Sequential(*(passes[axis] for axis in order))
        self.normalize = _Normalize(preprocessing, channels)

    def forward(self, frame: Tensor) -> Tensor:
        """Resize and normalize.

        Args:
            frame: uint8 of shape (N, h, w, 3)

        Returns:
            float32 of shape (N, 3, H, W)
        """
        return self.normalize(self.passes(frame.float().permute(0, 3, 1, 2)))


def trace_frame_input(preprocessing: Preprocessing, frame: FrameSpec) -> onnx.ModelProto:
    """The graph that stands in front of a network which takes frames.

    Args:
        preprocessing: the network's size, the resizing and the normalization
        frame: which frames it takes

    Returns:
        a model whose inputs are those of :func:`runtime.manifest.frame_inputs` and whose output is called as the
        network's input is
    """
    H, W = preprocessing.size
    h, w = frame.size
    batch = torch.export.Dim("batch", min=1, max=MAX_TRACED_BATCH)
    if frame.fixed:
        module: nn.Module = FixedFrameInput(preprocessing, frame.size, frame.channels)
        examples = {FRAME_INPUT: torch.zeros(2, h, w, 3, dtype=torch.uint8)}
        return trace_examples(module.eval(), examples, ({0: batch},), [INPUT_NAME])
    module = FrameInput(preprocessing, frame.channels)
    # Neither 1, which the tracer would take for a constant, nor the network's own size, which it would take for equal.
    height, width = max(2, H + 3), max(2, W + 5)
    examples = {
        FRAME_INPUT: torch.zeros(2, height, width, 3, dtype=torch.uint8),
        ROWS_INPUT: torch.zeros(2, H, height),
        COLUMNS_INPUT: torch.zeros(2, width, W),
    }
    rows, columns = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)
    dynamic = ({0: batch, 1: rows, 2: columns}, {0: batch, 2: rows}, {0: batch, 1: columns})
    return trace_examples(module.eval(), examples, dynamic, [INPUT_NAME])


class _Normalize(nn.Module):
    """Pixels (N, 3, H, W) from 0 to 255 to the network's input, in the steps and the order of the host's."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing, channels: str) -> None:
        super().__init__()
        self.flipped = channels == "bgr"
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        if self.flipped:
            pixels = torch.cat(pixels.split(1, 1)[::-1], 1)
        return (pixels / 255 - self.mean) / self.std


@dataclass(frozen=True)
class _Band:
    """Which pixels of the source some pixels of the target are made of."""

    first: int
    last: int


class _BandedProduct(nn.Module):
    """One pass over rows or columns: the product with a constant matrix (T, S), and its rounding."""

    def __init__(self, weights: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        target, source = weights.shape
        self.is_identity = target == source and bool(torch.equal(weights, torch.eye(target)))
        self.bands: list[_Band] = []
        step = -(-target // _BANDS)
        for i, part in enumerate(() if self.is_identity else weights.split(step)):
            used = part.any(0).nonzero()
            band = _Band(int(used.min()), int(used.max()) + 1) if len(used) else _Band(0, 1)
            self.bands.append(band)
            halves = torch.cat(_split(part[:, band.first : band.last]))
            self.register_buffer(f"weights_{i}", halves if axis == 2 else halves.T.contiguous())

    def forward(self, pixels: Tensor) -> Tensor:
        if self.is_identity:
            return pixels
        halves = []
        for i, band in enumerate(self.bands):
            weights = getattr(self, f"weights_{i}")
            if self.axis == 2:
                product = weights @ pixels[:, :, band.first : band.last]
            else:
                product = pixels[:, :, :, band.first : band.last] @ weights
            halves.append(torch.chunk(product, 2, self.axis))
        high, low = (torch.cat(parts, self.axis) for parts in zip(*halves, strict=True))
        return _rounded(high, low)


def _split(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as whole numbers of 2⁻¹⁰ and, for what is left, of 2⁻²²: the sum of both is the weight."""
    high = torch.floor(weights / _HIGH_UNIT + 0.5)
    return high, (weights - high * _HIGH_UNIT) / _UNIT


def _rounded(high: Tensor, low: Tensor) -> Tensor:
    """The sum of both products of whole numbers as a pixel: rounded, halves upwards, and clipped to 8 bits.

    The two are not added before the whole part of the larger is taken off: their sum has more than 24 bits.
    """
    high = high * _HIGH_UNIT + 0.5
    whole = torch.floor(high)
    return torch.clamp(whole + torch.floor(high - whole + low * _UNIT), 0, 255)
