"""What the networks of the U-Net family share: paths down and up, and inputs of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from holocron.models.blocks import conv_sequence

__all__ = [
    "Layers",
    "Segmenter",
    "UBlock",
    "UpPath",
    "bridge",
    "check_widths",
    "contracting_path",
    "crop_to_smallest",
    "double_conv",
    "smallest_feature",
    "smallest_input",
]

# What the two 3 × 3 convolutions of a block take off height and width without padding.
_VALID_LOSS = 4


class Layers(NamedTuple):
    """The kinds of layers that all blocks of a network are made of, as :func:`conv_sequence` takes them."""

    act_layer: nn.Module | None = None
    norm_layer: Callable[[int], nn.Module] | None = None
    drop_layer: Callable[..., nn.Module] | None = None
    conv_layer: Callable[..., nn.Module] | None = None


class Segmenter(nn.Module):
    """Base of the networks that score every pixel. It lets them take any size, whatever their own steps are.

    An image whose sides are not multiples of the stride is extended downwards and to the right, repeating its last row
    and column, and the scores of what was added are cut off again. A network without padding in its convolutions sees
    the image as it is, and scores fewer pixels than it is given.

    Args:
        stride: ratio between the input's resolution and that of the deepest features.
        min_size: least height and width of the input, in pixels.
        same_padding: whether the scores have the size of the input.
    """

    def __init__(self, stride: int, min_size: int, same_padding: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.min_size = min_size
        self.same_padding = same_padding

    def score(self, x: Tensor) -> Tensor:
        """Compute scores from images whose sides are multiples of the stride, or any where nothing is padded."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Score images of shape (N, C, H, W) into logits of shape (N, K, Ho, Wo).

        Args:
            x: the images. Ho, Wo are H, W where the network pads and ends at the input's resolution.

        Returns:
            the logits

        Raises:
            ValueError: if ``x`` is not a batch of images, or they are too small.
        """
        if x.ndim != 4:
            raise ValueError(f"expected a batch of images of shape (N, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"expected images of at least {self.min_size}×{self.min_size} pixels, got {height}×{width}: resize "
                "them, or build the network with fewer levels"
            )
        below, right = -height % self.stride, -width % self.stride
        if not self.same_padding or (below == 0 and right == 0):
            return self.score(x)
        logits = self.score(nnf.pad(x, (0, right, 0, below), mode="replicate"))
        # In proportion, since the scores of some networks are coarser than their input.
        kept_height = -(-height * logits.shape[-2] // (height + below))
        kept_width = -(-width * logits.shape[-1] // (width + right))
        return logits[..., :kept_height, :kept_width]


def check_widths(layout: Sequence[int], num_classes: int, in_channels: int, min_levels: int = 1) -> None:
    """Raise a ValueError unless these describe a network of the family.

    Args:
        layout: channels of each level.
        num_classes: number of classes.
        in_channels: channels of the input.
        min_levels: least number of levels.
    """
    if len(layout) < min_levels:
        raise ValueError(f"expected the channels of at least {min_levels} level(s), got layout={list(layout)}")
    for name, value, smallest in (
        ("layout", layout, min(layout)),
        ("num_classes", num_classes, num_classes),
        ("in_channels", in_channels, in_channels),
    ):
        if smallest < 1:
            raise ValueError(f"expected {name} to be at least 1, got {value}")


def smallest_feature(scales: Sequence[int], same_padding: bool) -> int:
    """Least height and width of the deepest features from which something is left at the end.

    Args:
        scales: how many times larger the features become before each block of the decoder, deepest first.
        same_padding: whether the blocks pad.

    Returns:
        the size in pixels: 1 where they do
    """
    size = 1
    for scale in reversed(scales):
        size = -(-(size + (0 if same_padding else _VALID_LOSS)) // scale)
    return size


def smallest_input(levels: int, same_padding: bool) -> int:
    """Least height and width of the input of a network that halves it ``levels`` times.

    Args:
        levels: number of blocks of the contracting path, each followed by a pooling.
        same_padding: whether its blocks, and those of the expansive path, pad.

    Returns:
        the size in pixels
    """
    size = smallest_feature([2] * levels, same_padding)
    for _ in range(levels):
        size = 2 * size + (0 if same_padding else _VALID_LOSS)
    return size


def double_conv(in_channels: int, out_channels: int, padding: int, layers: Layers) -> list[nn.Module]:
    """Two 3 × 3 convolutions with what follows each, without bias where that is a normalization.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, and between the two.
        padding: zero padding on each side, 0 or 1.
        layers: kinds of layers.

    Returns:
        modules to be put in a row
    """
    bias = layers.norm_layer is None
    return [
        layer
        for before in (in_channels, out_channels)
        for layer in conv_sequence(before, out_channels, *layers, kernel_size=3, padding=padding, bias=bias)
    ]


def contracting_path(in_channels: int, layout: Sequence[int], padding: int, layers: Layers) -> list[nn.Module]:
    """The way down: a block of two convolutions for each level, all but the first after a 2 × 2 max pooling.

    Args:
        in_channels: channels of the input.
        layout: channels after each level.
        padding: zero padding of the convolutions, 0 or 1.
        layers: kinds of layers.

    Returns:
        one module for each level
    """
    path: list[nn.Module] = []
    for before, after in pairwise((in_channels, *layout)):
        pooling: list[nn.Module] = [nn.MaxPool2d(2)] if path else []
        path.append(nn.Sequential(*pooling, *double_conv(before, after, padding, layers)))
    return path


def bridge(channels: int, layers: Layers) -> list[nn.Module]:
    """The turning point: two padded convolutions, the first to twice the channels, the second back.

    Args:
        channels: channels of input and output.
        layers: kinds of layers.

    Returns:
        modules to be put in a row
    """
    return [
        *conv_sequence(channels, 2 * channels, *layers, kernel_size=3, padding=1),
        *conv_sequence(2 * channels, channels, *layers, kernel_size=3, padding=1),
    ]


def crop_to_smallest(features: Sequence[Tensor]) -> list[Tensor]:
    """Cut the same margin off all sides of what is larger than the others, so that pixels stay aligned.

    Args:
        features: tensors of shape (N, C_i, H_i, W_i).

    Returns:
        tensors of shape (N, C_i, min H_i, min W_i)
    """
    height, width = (min(x.shape[dim] for x in features) for dim in (-2, -1))
    cropped = []
    for x in features:
        if x.shape[-2:] != (height, width):
            top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
            x = x[..., top : top + height, left : left + width]
        cropped.append(x)
    return cropped


class UpPath(nn.Module):
    """A step up: coarse features are doubled in size, put behind those of the finer level, and convolved twice.

    Args:
        in_channels: channels of the coarse features.
        skip_channels: channels of the finer ones, all of them together.
        out_channels: channels of the output.
        layers: kinds of layers.
        bilinear: interpolate; otherwise the upsampling is learned, by a transposed convolution to ``skip_channels``.
        padding: zero padding of the convolutions, 0 or 1. Without it the finer features are cropped to what is left
            of the coarse ones.

    Shape:
        - skips: (N, C_i, 2H, 2W), their channels adding up to skip_channels
        - x: (N, in_channels, H, W)
        - output: (N, out_channels, 2H, 2W), or 4 pixels less on each axis without padding
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        layers: Layers,
        bilinear: bool = True,
        padding: int = 1,
    ) -> None:
        super().__init__()
        self.upsample: nn.Module
        if bilinear:
            self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.upsample = nn.ConvTranspose2d(in_channels, skip_channels, 2, stride=2)
            in_channels = skip_channels
        self.block = nn.Sequential(*double_conv(skip_channels + in_channels, out_channels, padding, layers))

    def forward(self, skips: Sequence[Tensor], x: Tensor) -> Tensor:
        """Join the finer features ``skips`` with the coarse ``x``."""
        return self.block(torch.cat(crop_to_smallest([*skips, self.upsample(x)]), dim=1))


class UBlock(nn.Module):
    """A step up in the manner of `fastai <https://docs.fast.ai/vision.models.unet.html>`_, for encoders of any kind.

    The coarse features are upsampled by a 1 × 1 convolution and a pixel shuffle
    (`arXiv 1609.05158 <https://arxiv.org/abs/1609.05158>`_), and join the normalized features of the encoder.

    Args:
        in_channels: channels of the coarse features.
        skip_channels: channels of the encoder's features.
        out_channels: channels of the output.
        layers: kinds of layers; the encoder's features get batch normalization where there is no other.
        scale: ratio between the resolution of the encoder's features and that of the coarse ones.
        padding: zero padding of the 3 × 3 convolutions, 0 or 1. Without it the encoder's features are cropped.

    Shape:
        - skip: (N, skip_channels, scale · H, scale · W)
        - x: (N, in_channels, H, W)
        - output: (N, out_channels, scale · H, scale · W), or 4 pixels less on each axis without padding
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        layers: Layers,
        scale: int = 2,
        padding: int = 1,
    ) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            *conv_sequence(in_channels, 4 * in_channels, *layers, kernel_size=1), nn.PixelShuffle(2)
        )
        if scale != 2:
            # The deepest block joins features of one and the same resolution: it drops three pixels out of four again.
            self.upsample.append(nn.Upsample(scale_factor=scale / 2, mode="nearest"))
        self.bn = (layers.norm_layer or nn.BatchNorm2d)(skip_channels)
        activation = [layers.act_layer] if layers.act_layer is not None else []
        self.block = nn.Sequential(
            *activation, *double_conv(skip_channels + in_channels, out_channels, padding, layers)
        )

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Join the encoder's features ``skip`` with the coarse ``x``."""
        return self.block(torch.cat(crop_to_smallest([self.bn(skip), self.upsample(x)]), dim=1))
