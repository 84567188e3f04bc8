"""RepVGG: a plain stack of 3 × 3 convolutions, trained with parallel branches that fold into them afterwards."""

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import check_layout, conv_bn, init_weights
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.models.reparam import BranchSum, ReparametrizableBlock, reparametrize
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = [
    "RepVGG",
    "RepVGG_A0_Checkpoint",
    "RepVGG_A1_Checkpoint",
    "RepVGG_A2_Checkpoint",
    "RepVGG_B0_Checkpoint",
    "RepVGG_B1_Checkpoint",
    "RepVGG_B2_Checkpoint",
    "repvgg_a0",
    "repvgg_a1",
    "repvgg_a2",
    "repvgg_b0",
    "repvgg_b1",
    "repvgg_b2",
    "repvgg_b3",
]


class RepVGG_A0_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`repvgg_a0`."""

    IMAGENETTE = imagenette_checkpoint(
        "repvgg_a0",
        release="v0.2.1",
        sha256="d3f54b28567fcd7e3e32ffbcffb5bb5c64fd97b7139cba0bfe9ad0bd7765cdaa",
        size=99_183_419,
        num_params=24_741_642,
        top1=0.9292,
        top5=0.9946,
    )
    DEFAULT = IMAGENETTE


class RepVGG_A1_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`repvgg_a1`."""

    IMAGENETTE = imagenette_checkpoint(
        "repvgg_a1",
        release="v0.2.1",
        sha256="8d3269fb5181c0fe75ef617872238135f3002f41e82e5ef7492d62a402ffae50",
        size=120_724_868,
        num_params=30_119_946,
        top1=0.9378,
        top5=0.9918,
    )
    DEFAULT = IMAGENETTE


class RepVGG_A2_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`repvgg_a2`."""

    IMAGENETTE = imagenette_checkpoint(
        "repvgg_a2",
        release="v0.2.1",
        sha256="cb442207d0c4627e3a16d7a8b4bf5342a182fd924cf4a044ac3a832014e7d4cf",
        size=194_822_538,
        num_params=48_629_514,
        top1=0.9363,
        top5=0.9939,
    )
    DEFAULT = IMAGENETTE


class RepVGG_B0_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`repvgg_b0`."""

    IMAGENETTE = imagenette_checkpoint(
        "repvgg_b0",
        release="v0.2.1",
        sha256="fdcdd2b739f19b47572be5a98ec407c08935d02adf1ab0bf90d7bc92c710fe2d",
        size=127_668_600,
        num_params=31_845_642,
        top1=0.9269,
        top5=0.9921,
    )
    DEFAULT = IMAGENETTE


class RepVGG_B1_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`repvgg_b1`."""

    IMAGENETTE = imagenette_checkpoint(
        "repvgg_b1",
        release="v0.2.1",
        sha256="3e5b28d7803965546efadeb20abb84d8fef765dd08170677467a9c06294224c4",
        size=403_763_795,
        num_params=100_829_194,
        top1=0.9396,
        top5=0.9939,
    )
    DEFAULT = IMAGENETTE


class RepVGG_B2_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`repvgg_b2`."""

    IMAGENETTE = imagenette_checkpoint(
        "repvgg_b2",
        release="v0.2.1",
        sha256="dc810d889e8533f3ab24d75d8bf4cec84380abfb3b10ee01009997eab6a35d4b",
        size=630_382_163,
        num_params=157_462_410,
        top1=0.9414,
        top5=0.9957,
    )
    DEFAULT = IMAGENETTE


class RepVGGBlock(nn.Module, ReparametrizableBlock):
    """A 3 × 3 convolution, a 1 × 1 convolution and, where the shape allows it, the identity, summed before a ReLU.

    Each branch ends in batch normalization. :meth:`fuse` gives the single convolution that the three amount to.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of both convolutions; the identity branch exists only for 1.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        branches: list[nn.Module] = [
            conv_bn(in_channels, out_channels, 3, stride, padding=1),
            conv_bn(in_channels, out_channels, 1, stride),
        ]
        if stride == 1 and in_channels == out_channels:
            branches.append(nn.BatchNorm2d(out_channels))
        self.branches = BranchSum(branches)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branches to ``x``, then the activation."""
        return self.activation(self.branches(x))

    def fuse(self) -> nn.Sequential:
        """Build the convolution that the branches amount to, followed by the activation."""
        return nn.Sequential(OrderedDict(conv=self.branches.fuse(), activation=self.activation)).eval()


class RepVGG(nn.Module):
    """RepVGG classifier from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Each stage halves the resolution in its first block. In this family's published weights every stage is one block
    deeper than in the paper's table.

    Args:
        num_blocks: number of blocks of each stage.
        widths: output channels of each stage.
        num_classes: number of classes K.
        in_channels: channels of the input.

    Raises:
        ValueError: if there are no stages, their two lists differ in length, or a number is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, K), the logits
    """

    def __init__(
        self, num_blocks: Sequence[int], widths: Sequence[int], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_layout(num_blocks, widths, num_classes, in_channels)
        stages: list[nn.Module] = []
        previous = in_channels
        for depth, width in zip(num_blocks, widths, strict=True):
            blocks = [RepVGGBlock(previous, width, stride=2)]
            blocks.extend(RepVGGBlock(width, width) for _ in range(depth - 1))
            stages.append(nn.Sequential(*blocks))
            previous = width
        self.features = nn.Sequential(*stages)
        self.pool = GlobalAvgPool2d(flatten=True)
        self.head = nn.Linear(previous, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of shape (N, in_channels, H, W) into logits of shape (N, K)."""
        return self.head(self.pool(self.features(x)))

    def reparametrize(self) -> None:
        """Fold each block, in place, into one convolution with a bias, followed by its ReLU.

        What is left is a plain chain of convolutions; its state dict has ``features.<stage>.<block>.conv.weight`` and
        ``.bias``, and loads into another model on which this method was called. Calling it again changes nothing.

        Raises:
            ValueError: if the model is in training mode.
        """
        reparametrize(self)


_DEPTHS = {"a": (2, 3, 5, 15, 2), "b": (2, 5, 7, 17, 2)}
_WIDTHS = {
    "a0": (48, 48, 96, 192, 1280),
    "a1": (64, 64, 128, 256, 1280),
    "a2": (64, 96, 192, 384, 1408),
    "b0": (64, 64, 128, 256, 1280),
    "b1": (64, 128, 256, 512, 2048),
    "b2": (64, 160, 320, 640, 2560),
    "b3": (64, 192, 384, 768, 2560),
}


def _repvgg(
    arch: str,
    default: Enum | None,
    pretrained: bool,
    checkpoint: Checkpoint | None,
    progress: bool,
    kwargs: dict[str, Any],
) -> RepVGG:
    variant = arch.removeprefix("repvgg_")
    return build_with_checkpoint(
        partial(RepVGG, _DEPTHS[variant[0]], _WIDTHS[variant]),
        arch,
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=default,
        progress=progress,
        kwargs=kwargs,
    )


@register_model(checkpoints=RepVGG_A0_Checkpoint)
def repvgg_a0(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-A0 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``RepVGG_A0_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_a0", RepVGG_A0_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=RepVGG_A1_Checkpoint)
def repvgg_a1(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-A1 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``RepVGG_A1_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_a1", RepVGG_A1_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=RepVGG_A2_Checkpoint)
def repvgg_a2(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-A2 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``RepVGG_A2_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_a2", RepVGG_A2_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=RepVGG_B0_Checkpoint)
def repvgg_b0(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-B0 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``RepVGG_B0_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_b0", RepVGG_B0_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=RepVGG_B1_Checkpoint)
def repvgg_b1(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-B1 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``RepVGG_B1_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_b1", RepVGG_B1_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=RepVGG_B2_Checkpoint)
def repvgg_b2(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-B2 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``RepVGG_B2_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_b2", RepVGG_B2_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model()
def repvgg_b3(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepVGG:
    """RepVGG-B3 from `"RepVGG: Making VGG-style ConvNets Great Again" <https://arxiv.org/abs/2101.03697>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepVGG`.

    Returns:
        the model, in training mode
    """
    return _repvgg("repvgg_b3", None, pretrained, checkpoint, progress, kwargs)
