"""ResNet and ResNeXt, and the residual network that other families put blocks of their own into."""

import math
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holocron.models.blocks import check_layout, init_weights
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.classification.residual import (
    BasicBlock,
    BlockFactory,
    Bottleneck,
    ConvLayers,
    RepeatChannels,
    ResidualBlock,
)
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = [
    "ResNeXt50_32x4d_Checkpoint",
    "ResNet",
    "ResNet18_Checkpoint",
    "ResNet34_Checkpoint",
    "ResNet50D_Checkpoint",
    "ResNet50_Checkpoint",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50d",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
]

# Share of the residual in the variance after a block before any training, as for the branches beside an identity in
# `init_weights`. At one, the activations of an untrained network of 50 blocks leave float16 in evaluation mode.
_RESIDUAL_VARIANCE = 0.125
_STEM_CHANNELS = 64


class ResNet18_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`resnet18`."""

    IMAGENETTE = imagenette_checkpoint(
        "resnet18",
        release="v0.2.1",
        sha256="fc07006c894cac8cf380fed699bc5a68463698753c954632f52bb8595040f781",
        size=44_787_043,
        num_params=11_181_642,
        top1=0.9361,
        top5=0.9946,
    )
    DEFAULT = IMAGENETTE


class ResNet34_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`resnet34`."""

    IMAGENETTE = imagenette_checkpoint(
        "resnet34",
        release="v0.2.1",
        sha256="412b07927cc1938ee3add8d0f6bb18b42786646182f674d75f1433d086914485",
        size=85_267_035,
        num_params=21_289_802,
        top1=0.9381,
        top5=0.9949,
    )
    DEFAULT = IMAGENETTE


class ResNet50_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`resnet50`."""

    IMAGENETTE = imagenette_checkpoint(
        "resnet50",
        release="v0.2.1",
        sha256="5b913f0b8148b483ba15541ab600cf354ca42b326e4896c4c3dbc51eb1e80e70",
        size=94_384_682,
        num_params=23_528_522,
        top1=0.9378,
        top5=0.9954,
    )
    DEFAULT = IMAGENETTE


class ResNet50D_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`resnet50d`."""

    IMAGENETTE = imagenette_checkpoint(
        "resnet50d",
        release="v0.2.1",
        sha256="6218d936fa67c0047f1ec65564213db538aa826d84f2df1d4fa3224531376e6c",
        size=94_464_810,
        num_params=23_547_754,
        top1=0.9465,
        top5=0.9952,
    )
    DEFAULT = IMAGENETTE


class ResNeXt50_32x4d_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`resnext50_32x4d`."""

    IMAGENETTE = imagenette_checkpoint(
        "resnext50_32x4d",
        release="v0.2.1",
        sha256="5832c4ce33522a9eb7a8b5abe31cf30621721a92d4f99b4b332a007d81d071fe",
        size=92_332_638,
        num_params=23_000_394,
        top1=0.9455,
        top5=0.9949,
    )
    DEFAULT = IMAGENETTE


class ResNet(nn.Module):
    """Residual network from `"Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>`_.

    The stem halves the resolution, and again where it pools; each stage but the first halves it in its first block. As
    in the usual revision of the paper, a bottleneck does so in its 3 × 3 convolution.

    Args:
        block: creates a block, like those of :mod:`holocron.models.classification.residual`: called as
            ``block(in_channels, width, stride, groups=..., width_per_group=..., avg_downsample=..., layers=...)``.
            A sequence has one for each stage.
        num_blocks: number of blocks of each stage.
        widths: width of the blocks of each stage.
        num_classes: number of classes K.
        in_channels: channels of the input.
        zero_init_residual: start each block as the identity, after `Goyal et al. <https://arxiv.org/abs/1706.02677>`_;
            by default its residual starts with an eighth of the variance.
        width_per_group: channels of a group in bottlenecks of width 64.
        groups: groups of the 3 × 3 convolutions in bottlenecks.
        deep_stem: three 3 × 3 convolutions in place of the stem's 7 × 7 one, as in ResNet-C and ResNet-D, from `"Bag of
            Tricks for Image Classification with Convolutional Neural Networks" <https://arxiv.org/abs/1812.01187>`_.
        stem_pool: max pooling at the end of the stem.
        avg_downsample: average the pixels that strided projections would skip, as in ResNet-D.
        num_branches: how often the features of the stem are repeated before the first stage, for blocks of that many
            branches.
        act_layer: activation, copied to each place where it stands; ReLU by default.
        norm_layer: creates the normalizations from the number of channels; batch normalization by default.
        drop_layer: creates a regularization after each convolution, from its drop probability ``p``; None for none.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`, which is the default.

    Raises:
        ValueError: if the stages do not fit each other, a number is not positive, or the blocks do not take it.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size; in training, batch normalization needs two images, or one
          of which more than a pixel is left after the strides
        - output: (N, K), the logits
    """

    def __init__(
        self,
        block: BlockFactory | Sequence[BlockFactory],
        num_blocks: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        zero_init_residual: bool = False,
        width_per_group: int = 64,
        groups: int = 1,
        deep_stem: bool = False,
        stem_pool: bool = True,
        avg_downsample: bool = False,
        num_branches: int = 1,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_layout(num_blocks, widths, num_classes, in_channels)
        factories = list(block) if isinstance(block, Sequence) else [block] * len(num_blocks)
        if len(factories) != len(num_blocks):
            raise ValueError(f"expected one block for each of {len(num_blocks)} stages, got {len(factories)}")
        if num_branches < 1:
            raise ValueError(f"expected num_branches to be at least 1, got {num_branches}")
        layers = ConvLayers(
            act_layer or nn.ReLU(inplace=True), norm_layer or nn.BatchNorm2d, drop_layer, conv_layer or nn.Conv2d
        )
        features = _stem(in_channels, deep_stem, stem_pool, layers)
        if num_branches > 1:
            features.append(RepeatChannels(num_branches))
        previous = num_branches * _STEM_CHANNELS
        for stage, (depth, width, factory) in enumerate(zip(num_blocks, widths, factories, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depth):
                made = factory(
                    previous,
                    width,
                    2 if stage > 0 and index == 0 else 1,
                    groups=groups,
                    width_per_group=width_per_group,
                    avg_downsample=avg_downsample,
                    layers=layers,
                )
                blocks.append(made)
                previous = made.out_channels
            features.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*features)
        self.pool = GlobalAvgPool2d(flatten=True)
        self.head = nn.Linear(previous, num_classes)
        init_weights(self)
        _scale_residuals(self, 0.0 if zero_init_residual else math.sqrt(_RESIDUAL_VARIANCE))

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of shape (N, in_channels, H, W) into logits of shape (N, K)."""
        return self.head(self.pool(self.features(x)))


def _stem(in_channels: int, deep: bool, pool: bool, layers: ConvLayers) -> list[nn.Module]:
    if deep:
        half = _STEM_CHANNELS // 2
        stem = [
            *layers.sequence(in_channels, half, kernel_size=3, stride=2, padding=1),
            *layers.sequence(half, half, kernel_size=3, padding=1),
            *layers.sequence(half, _STEM_CHANNELS, kernel_size=3, padding=1),
        ]
    else:
        stem = layers.sequence(in_channels, _STEM_CHANNELS, kernel_size=7, stride=2, padding=3)
    return [*stem, nn.MaxPool2d(3, stride=2, padding=1)] if pool else stem


def _scale_residuals(model: nn.Module, scale: float) -> None:
    """Multiply the last weight of each residual, that of its normalization where it has one."""
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, ResidualBlock):
                weights = [weight for name, weight in block.conv.named_parameters() if name.endswith("weight")]
                weights[-1].mul_(scale)


def build_resnet(
    arch: str,
    block: BlockFactory | Sequence[BlockFactory],
    num_blocks: Sequence[int],
    default: Enum | None,
    pretrained: bool,
    checkpoint: Checkpoint | None,
    progress: bool,
    kwargs: dict[str, Any],
    **layout: Any,
) -> ResNet:
    """Build a residual network of any family: what their builders have in common.

    Args:
        arch: name of the builder.
        block: creates the blocks, as for :class:`ResNet`.
        num_blocks: number of blocks of each stage.
        default: the checkpoint that ``pretrained`` stands for, None where nothing is published.
        pretrained: load the default weights.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        kwargs: what the user asks of :class:`ResNet`; it counts more than ``layout``.
        **layout: what the architecture asks of it.

    Returns:
        the model, in training mode
    """
    return build_with_checkpoint(
        partial(ResNet, block, num_blocks, **layout),
        arch,
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=default,
        progress=progress,
        kwargs=kwargs,
    )


@register_model(checkpoints=ResNet18_Checkpoint)
def resnet18(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNet-18 from `"Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ResNet18_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "resnet18", BasicBlock, (2, 2, 2, 2), ResNet18_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs
    )


@register_model(checkpoints=ResNet34_Checkpoint)
def resnet34(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNet-34 from `"Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ResNet34_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "resnet34", BasicBlock, (3, 4, 6, 3), ResNet34_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs
    )


@register_model(checkpoints=ResNet50_Checkpoint)
def resnet50(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNet-50 from `"Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ResNet50_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "resnet50", Bottleneck, (3, 4, 6, 3), ResNet50_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs
    )


@register_model(checkpoints=ResNet50D_Checkpoint)
def resnet50d(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNet-50-D from
    `"Bag of Tricks for Image Classification with Convolutional Neural Networks" <https://arxiv.org/abs/1812.01187>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ResNet50D_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "resnet50d",
        Bottleneck,
        (3, 4, 6, 3),
        ResNet50D_Checkpoint.DEFAULT,
        pretrained,
        checkpoint,
        progress,
        kwargs,
        deep_stem=True,
        avg_downsample=True,
    )


@register_model()
def resnet101(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNet-101 from `"Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet("resnet101", Bottleneck, (3, 4, 23, 3), None, pretrained, checkpoint, progress, kwargs)


@register_model()
def resnet152(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNet-152 from `"Deep Residual Learning for Image Recognition" <https://arxiv.org/abs/1512.03385>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet("resnet152", Bottleneck, (3, 8, 36, 3), None, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=ResNeXt50_32x4d_Checkpoint)
def resnext50_32x4d(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNeXt-50 (32 × 4d) from
    `"Aggregated Residual Transformations for Deep Neural Networks" <https://arxiv.org/abs/1611.05431>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ResNeXt50_32x4d_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "resnext50_32x4d",
        Bottleneck,
        (3, 4, 6, 3),
        ResNeXt50_32x4d_Checkpoint.DEFAULT,
        pretrained,
        checkpoint,
        progress,
        kwargs,
        groups=32,
        width_per_group=4,
    )


@register_model()
def resnext101_32x8d(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """ResNeXt-101 (32 × 8d) from
    `"Aggregated Residual Transformations for Deep Neural Networks" <https://arxiv.org/abs/1611.05431>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "resnext101_32x8d",
        Bottleneck,
        (3, 4, 23, 3),
        None,
        pretrained,
        checkpoint,
        progress,
        kwargs,
        groups=32,
        width_per_group=8,
    )
