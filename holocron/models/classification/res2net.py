"""Res2Net: bottlenecks whose 3 × 3 convolution is a hierarchy of narrow ones, each fed the one before."""

from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.classification.residual import Bottleneck, ConvLayers
from holocron.models.classification.resnet import ResNet, build_resnet
from holocron.models.registry import register_model

__all__ = ["Res2Net50_26w_4s_Checkpoint", "res2net50_26w_4s"]


class Res2Net50_26w_4s_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`res2net50_26w_4s`."""

    IMAGENETTE = imagenette_checkpoint(
        "res2net50_26w_4s",
        release="v0.2.1",
        sha256="345170e8ff75d10330af55674090b0d9aa751e14b6f3b4a95bb8ea6cdd65be4b",
        size=95_020_747,
        num_params=23_670_610,
        top1=0.9394,
        top5=0.9941,
    )
    DEFAULT = IMAGENETTE


class ScaleConv2d(nn.Module):
    """Split the channels into equal parts and convolve all but the last, each with the result of the one before added.

    Where the output is not the input's size (``hierarchical`` is false), there is nothing to add: the parts are
    convolved by themselves, and the last is averaged over 3 × 3 pixels with the same stride.

    Args:
        channels: channels of input and output.
        stride: stride of the convolutions.
        groups: groups of each convolution.
        layers: what the convolutions are made of and followed by.
        scale: number of parts.
        hierarchical: whether parts build on each other.

    Raises:
        ValueError: if ``scale`` is below 2 or does not divide ``channels``, ``groups`` do not divide a part, or a
            hierarchy has a stride.

    Shape:
        - input: (N, channels, H, W)
        - output: (N, channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(
        self, channels: int, stride: int, groups: int, layers: ConvLayers, *, scale: int, hierarchical: bool
    ) -> None:
        if scale < 2 or channels % scale:
            raise ValueError(f"scale has to be 2 or more and to divide {channels} channels, got {scale}")
        width = channels // scale
        if width % groups:
            raise ValueError(f"groups={groups} do not divide the {width} channels of each of {scale} parts")
        if hierarchical and stride != 1:
            raise ValueError(f"parts that build on each other need stride 1, got {stride}")
        super().__init__()
        self.scale: int = scale
        self.conv = nn.ModuleList(
            nn.Sequential(*layers.sequence(width, width, kernel_size=3, stride=stride, padding=1, groups=groups))
            for _ in range(scale - 1)
        )
        self.pool: nn.AvgPool2d | None = None if hierarchical else nn.AvgPool2d(3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the parts of ``x``."""
        *parts, last = x.chunk(self.scale, dim=1)
        outputs: list[Tensor] = []
        for conv, part in zip(self.conv, parts, strict=True):
            outputs.append(conv(part + outputs[-1] if outputs and self.pool is None else part))
        outputs.append(last if self.pool is None else self.pool(last))
        return torch.cat(outputs, dim=1)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"scale={self.scale}"


class Res2NetBottleneck(Bottleneck):
    """A bottleneck with :class:`ScaleConv2d` in the middle.

    Args:
        in_channels: channels of the input.
        width: a quarter of the channels of the output.
        stride: stride of the middle.
        scale: number of parts that the middle splits its channels into.
        width_per_group: channels of each part where ``width`` is 64.
        **options: further arguments of :class:`Bottleneck`.

    Raises:
        ValueError: if the channels do not allow it.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, 4 * width, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        scale: int = 4,
        width_per_group: int = 26,
        groups: int = 1,
        **options: Any,
    ) -> None:
        # The first block of a stage is the one that changes the shape, whether or not it has a stride.
        hierarchical = stride == 1 and in_channels == self.expansion * width
        middle = partial(_scale_convolution, scale=scale, hierarchical=hierarchical)
        super().__init__(
            in_channels,
            width,
            stride,
            groups=groups,
            width_per_group=scale * width_per_group,
            middle=middle,
            **options,
        )


def _scale_convolution(
    channels: int, stride: int, groups: int, layers: ConvLayers, *, scale: int, hierarchical: bool
) -> list[nn.Module]:
    return [ScaleConv2d(channels, stride, groups, layers, scale=scale, hierarchical=hierarchical)]


@register_model(checkpoints=Res2Net50_26w_4s_Checkpoint)
def res2net50_26w_4s(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """Res2Net-50 (26w × 4s) from
    `"Res2Net: A New Multi-scale Backbone Architecture" <https://arxiv.org/abs/1904.01169>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``Res2Net50_26w_4s_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "res2net50_26w_4s",
        Res2NetBottleneck,
        (3, 4, 6, 3),
        Res2Net50_26w_4s_Checkpoint.DEFAULT,
        pretrained,
        checkpoint,
        progress,
        kwargs,
        width_per_group=26,
    )
