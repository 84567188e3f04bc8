"""CSPDarkNet-53: DarkNet-53 with half of the channels past each stage; the backbone of YOLOv4."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.classification.darknet import check_sizes
from holocron.models.classification.darknetv3 import DarknetBlock
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d
from holocron.nn.modules.dropblock import DropBlock2d

__all__ = [
    "CSPDarknet53_Checkpoint",
    "CSPDarknet53_Mish_Checkpoint",
    "DarknetV4",
    "cspdarknet53",
    "cspdarknet53_mish",
]

_LAYOUT = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))


class CSPDarknet53_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`cspdarknet53`."""

    IMAGENETTE = imagenette_checkpoint(
        "cspdarknet53",
        release="v0.2.1",
        sha256="7a69463a4bd445beb6691dfd6ef7378efcf941f75d07d60034106ebedfcb82f8",
        size=106_732_575,
        num_params=26_627_434,
        top1=0.945,
        top5=0.9964,
    )
    DEFAULT = IMAGENETTE


class CSPDarknet53_Mish_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`cspdarknet53_mish`."""

    IMAGENETTE = imagenette_checkpoint(
        "cspdarknet53_mish",
        release="v0.2.1",
        sha256="1b660b3cb144195100c99ee3b9b863c37a5b5a59619c8de8c588b3d2af954b15",
        size=106_737_530,
        num_params=26_627_434,
        top1=0.9465,
        top5=0.9969,
    )
    DEFAULT = IMAGENETTE


class CSPStage(nn.Module):
    """Downsampling, then residual blocks on one half of the channels while the other half goes past them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_blocks: number of residual blocks. A stage of one block is the network's first and does not narrow: each
            half has all of the ``out_channels``.
        conv: creates a convolution and what follows it, as :func:`holocron.models.blocks.conv_sequence` does.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, ⌈H / 2⌉, ⌈W / 2⌉)
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, conv: Callable[..., list[nn.Module]]
    ) -> None:
        super().__init__()
        half, hidden = (out_channels, out_channels // 2) if num_blocks == 1 else (out_channels // 2, out_channels // 2)
        self.base_layer = nn.Sequential(
            *conv(in_channels, out_channels, kernel_size=3, padding=1, stride=2),
            # The convolutions to both halves, as one.
            *conv(out_channels, 2 * half, kernel_size=1),
        )
        blocks = [DarknetBlock(half, hidden, conv) for _ in range(num_blocks)]
        self.main = nn.Sequential(*blocks, *conv(half, half, kernel_size=1))
        self.transition = nn.Sequential(*conv(2 * half, out_channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        """Downsample ``x``, and merge what passes the blocks with what goes through them."""
        past, through = self.base_layer(x).chunk(2, dim=1)
        return self.transition(torch.cat([past, self.main(through)], dim=1))


class DarknetBodyV4(nn.Module):
    """The layers of CSPDarkNet-53 before its classifier, which YOLOv4 starts with.

    Args:
        layout: (width, number of blocks) of each stage.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution, which keeps the resolution.
        num_features: how many of the last stages to give the features of.
        act_layer: activation, leaky ReLU of slope 0.01 by default, as the published weights have it.
        norm_layer: creates the normalization from the number of channels, :class:`torch.nn.BatchNorm2d` by default.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.

    Raises:
        ValueError: if there are no stages, fewer than ``num_features``, or a number is out of range.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, layout[-1][0], ⌈H / 2 ** stages⌉, ⌈W / 2 ** stages⌉); with ``num_features`` above 1 a list of the
          outputs of that many stages, the last one at the end
    """

    def __init__(
        self,
        layout: Sequence[tuple[int, int]],
        in_channels: int = 3,
        stem_channels: int = 32,
        num_features: int = 1,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            in_channels=in_channels,
            stem_channels=stem_channels,
            # Half of each is the width of some convolution.
            half_widths=[width // 2 for width, _ in layout],
            num_blocks=[num_blocks for _, num_blocks in layout],
            num_features=num_features,
        )
        if num_features > len(layout):
            raise ValueError(f"expected num_features to be at most the {len(layout)} stages, got {num_features}")
        conv = partial(
            conv_sequence,
            act_layer=act_layer or nn.LeakyReLU(0.01, inplace=True),
            norm_layer=norm_layer or nn.BatchNorm2d,
            drop_layer=drop_layer,
            conv_layer=conv_layer,
            bias=False,
        )
        self.stem = nn.Sequential(*conv(in_channels, stem_channels, kernel_size=3, padding=1))
        stages: list[nn.Module] = []
        previous = stem_channels
        for width, num_blocks in layout:
            stages.append(CSPStage(previous, width, num_blocks, conv))
            previous = width
        self.stages = nn.Sequential(*stages)
        self.num_features: int = num_features
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Compute the features of images ``x``."""
        x = self.stem(x)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return x if self.num_features == 1 else features[-self.num_features :]


class DarknetV4(nn.Sequential):
    """CSPDarkNet-53 classifier from `"CSPNet: A New Backbone that can Enhance Learning Capability of CNN"
    <https://arxiv.org/abs/1911.11929>`_.

    Args:
        layout: (width, number of blocks) of each stage.
        num_classes: number of classes K.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution.
        act_layer: activation, leaky ReLU of slope 0.01 by default, as the published weights have it.
        norm_layer: creates the normalization from the number of channels, :class:`torch.nn.BatchNorm2d` by default.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.

    Raises:
        ValueError: if there are no stages, or a number is out of range.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, K), the logits
    """

    def __init__(
        self,
        layout: Sequence[tuple[int, int]],
        num_classes: int = 10,
        in_channels: int = 3,
        stem_channels: int = 32,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        check_sizes(num_classes=num_classes)
        body = DarknetBodyV4(layout, in_channels, stem_channels, 1, act_layer, norm_layer, drop_layer, conv_layer)
        classifier = nn.Linear(layout[-1][0], num_classes)
        init_weights(classifier)
        super().__init__(OrderedDict(features=body, pool=GlobalAvgPool2d(flatten=True), classifier=classifier))


@register_model(checkpoints=CSPDarknet53_Checkpoint)
def cspdarknet53(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> DarknetV4:
    """CSPDarkNet-53 from `"CSPNet: A New Backbone that can Enhance Learning Capability of CNN"
    <https://arxiv.org/abs/1911.11929>`_, with leaky ReLU.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``CSPDarknet53_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the layers of :class:`DarknetV4`.

    Returns:
        the model, in training mode
    """
    return build_with_checkpoint(
        partial(DarknetV4, _LAYOUT),
        "cspdarknet53",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=CSPDarknet53_Checkpoint.DEFAULT,
        progress=progress,
        kwargs=kwargs,
    )


@register_model(checkpoints=CSPDarknet53_Mish_Checkpoint)
def cspdarknet53_mish(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> DarknetV4:
    """CSPDarkNet-53 as in `"YOLOv4: Optimal Speed and Accuracy of Object Detection"
    <https://arxiv.org/abs/2004.10934>`_: with Mish, and DropBlock after each convolution.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``CSPDarknet53_Mish_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the layers of :class:`DarknetV4`.

    Returns:
        the model, in training mode
    """
    return build_with_checkpoint(
        partial(DarknetV4, _LAYOUT),
        "cspdarknet53_mish",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=CSPDarknet53_Mish_Checkpoint.DEFAULT,
        progress=progress,
        kwargs={"act_layer": nn.Mish(inplace=True), "drop_layer": DropBlock2d, **kwargs},
    )
