"""MobileOne: depthwise-separable convolutions, over-parameterized with parallel branches that fold away afterwards."""

from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import check_layout, conv_bn, init_weights
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.models.reparam import BranchSum, reparametrize
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = [
    "MobileOne",
    "MobileOne_S0_Checkpoint",
    "MobileOne_S1_Checkpoint",
    "MobileOne_S2_Checkpoint",
    "MobileOne_S3_Checkpoint",
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "mobileone_s3",
]


class MobileOne_S0_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`mobileone_s0`."""

    IMAGENETTE = imagenette_checkpoint(
        "mobileone_s0",
        release="v0.2.1",
        sha256="9ddd1fe9d6c0a73d3c4d51d3c967a8a27ff5e545705afc557b4d4ac0f34395cb",
        size=17_708_169,
        num_params=4_277_991,
        top1=0.8808,
        top5=0.9883,
    )
    DEFAULT = IMAGENETTE


class MobileOne_S1_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`mobileone_s1`."""

    IMAGENETTE = imagenette_checkpoint(
        "mobileone_s1",
        release="v0.2.1",
        sha256="d4ec5433cff3d55d562b7a35fc0c95568ff8f4591bf822dd3e699535bdff90eb",
        size=14_594_817,
        num_params=3_555_188,
        top1=0.9126,
        top5=0.9918,
    )
    DEFAULT = IMAGENETTE


class MobileOne_S2_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`mobileone_s2`."""

    IMAGENETTE = imagenette_checkpoint(
        "mobileone_s2",
        release="v0.2.1",
        sha256="b748859c45a636ea22f0f68a3b7e75e5fb6ffb31178a5a3137931a21b4c41697",
        size=23_866_479,
        num_params=5_854_324,
        top1=0.9131,
        top5=0.9921,
    )
    DEFAULT = IMAGENETTE


class MobileOne_S3_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`mobileone_s3`."""

    IMAGENETTE = imagenette_checkpoint(
        "mobileone_s3",
        release="v0.2.1",
        sha256="7f357baf0754136b4a02e7aec4129874db93ee462f43588b77def730db0b2bca",
        size=33_080_943,
        num_params=8_140_276,
        top1=0.9106,
        top5=0.9931,
    )
    DEFAULT = IMAGENETTE


class DepthwiseBranches(BranchSum):
    """Several depthwise 3 × 3 convolutions, a depthwise 1 × 1 one and, for stride 1, the identity, summed.

    Each branch ends in batch normalization.

    Args:
        channels: channels of input and output.
        num_branches: how many 3 × 3 convolutions run in parallel.
        stride: stride of all convolutions.

    Shape:
        - input: (N, channels, H, W)
        - output: (N, channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(self, channels: int, num_branches: int, stride: int = 1) -> None:
        branches: list[nn.Module] = [nn.BatchNorm2d(channels)] if stride == 1 else []
        branches.append(conv_bn(channels, channels, 1, stride, groups=channels))
        branches.extend(conv_bn(channels, channels, 3, stride, padding=1, groups=channels) for _ in range(num_branches))
        super().__init__(branches)


class PointwiseBranches(BranchSum):
    """Several 1 × 1 convolutions and, where the channels allow it, the identity, summed.

    Each branch ends in batch normalization.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_branches: how many convolutions run in parallel.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, num_branches: int) -> None:
        branches: list[nn.Module] = [nn.BatchNorm2d(in_channels)] if in_channels == out_channels else []
        branches.extend(conv_bn(in_channels, out_channels, 1) for _ in range(num_branches))
        super().__init__(branches)


def _separable_block(in_channels: int, out_channels: int, num_branches: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        DepthwiseBranches(in_channels, num_branches, stride),
        nn.ReLU(inplace=True),
        PointwiseBranches(in_channels, out_channels, num_branches),
        nn.ReLU(inplace=True),
    )


class MobileOne(nn.Module):
    """MobileOne classifier from `"MobileOne: An Improved One millisecond Mobile Backbone" <https://arxiv.org/abs/2206.04040>`_.

    A stem and four stages of depthwise-separable blocks. The stem and the first block of each stage halve the
    resolution.

    Args:
        num_blocks: number of blocks of each stage.
        widths: output channels of the stem, then of each stage.
        num_branches: how many copies of each convolution are trained in parallel.
        num_classes: number of classes K.
        in_channels: channels of the input.

    Raises:
        ValueError: if there are no stages, the lists do not fit each other, or a number is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, K), the logits
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        widths: Sequence[int],
        num_branches: int = 1,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        # The stem counts as a stage of one block.
        check_layout((1, *num_blocks), widths, num_classes, in_channels)
        if num_branches < 1:
            raise ValueError(f"expected num_branches to be at least 1, got {num_branches}")
        layers = [_separable_block(in_channels, widths[0], num_branches, stride=2)]
        previous = widths[0]
        for depth, width in zip(num_blocks, widths[1:], strict=True):
            blocks = [_separable_block(previous, width, num_branches, stride=2)]
            blocks.extend(_separable_block(width, width, num_branches) for _ in range(depth - 1))
            layers.append(nn.Sequential(*blocks))
            previous = width
        self.features = nn.Sequential(*layers)
        self.pool = GlobalAvgPool2d(flatten=True)
        self.head = nn.Linear(previous, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of shape (N, in_channels, H, W) into logits of shape (N, K)."""
        return self.head(self.pool(self.features(x)))

    def reparametrize(self) -> None:
        """Fold the branches of each block, in place, into one depthwise and one pointwise convolution with a bias.

        What is left is a plain chain of convolutions and ReLU; its state dict has
        ``features.<stage>.<block>.{0,2}.weight`` and ``.bias`` (``features.0.{0,2}`` for the stem), and loads into
        another model on which this method was called. Calling it again changes nothing.

        Raises:
            ValueError: if the model is in training mode.
        """
        reparametrize(self)


_DEPTHS = (2, 8, 10, 1)
_WIDTHS = {
    "s0": (48, 48, 128, 256, 1024),
    "s1": (64, 96, 192, 512, 1280),
    "s2": (64, 96, 256, 640, 2048),
    "s3": (64, 128, 320, 768, 2048),
}
_BRANCHES = {"s0": 4, "s1": 1, "s2": 1, "s3": 1}


def _mobileone(
    arch: str, default: Enum, pretrained: bool, checkpoint: Checkpoint | None, progress: bool, kwargs: dict[str, Any]
) -> MobileOne:
    variant = arch.removeprefix("mobileone_")
    return build_with_checkpoint(
        partial(MobileOne, _DEPTHS, _WIDTHS[variant], _BRANCHES[variant]),
        arch,
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=default,
        progress=progress,
        kwargs=kwargs,
    )


@register_model(checkpoints=MobileOne_S0_Checkpoint)
def mobileone_s0(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> MobileOne:
    """MobileOne-S0 from `"MobileOne: An Improved One millisecond Mobile Backbone" <https://arxiv.org/abs/2206.04040>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``MobileOne_S0_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`MobileOne`.

    Returns:
        the model, in training mode
    """
    return _mobileone("mobileone_s0", MobileOne_S0_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=MobileOne_S1_Checkpoint)
def mobileone_s1(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> MobileOne:
    """MobileOne-S1 from `"MobileOne: An Improved One millisecond Mobile Backbone" <https://arxiv.org/abs/2206.04040>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``MobileOne_S1_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`MobileOne`.

    Returns:
        the model, in training mode
    """
    return _mobileone("mobileone_s1", MobileOne_S1_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=MobileOne_S2_Checkpoint)
def mobileone_s2(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> MobileOne:
    """MobileOne-S2 from `"MobileOne: An Improved One millisecond Mobile Backbone" <https://arxiv.org/abs/2206.04040>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``MobileOne_S2_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`MobileOne`.

    Returns:
        the model, in training mode
    """
    return _mobileone("mobileone_s2", MobileOne_S2_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=MobileOne_S3_Checkpoint)
def mobileone_s3(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> MobileOne:
    """MobileOne-S3 from `"MobileOne: An Improved One millisecond Mobile Backbone" <https://arxiv.org/abs/2206.04040>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``MobileOne_S3_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`MobileOne`.

    Returns:
        the model, in training mode
    """
    return _mobileone("mobileone_s3", MobileOne_S3_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)
