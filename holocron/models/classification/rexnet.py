"""ReXNet: inverted residual blocks whose channels grow by the same step from each block to the next."""

import copy
import math
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn

from holocron.models.blocks import check_layout, conv_sequence, init_weights
from holocron.models.checkpoints import Checkpoint, imagenet_checkpoint, imagenette_checkpoint
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = [
    "ReXNet",
    "ReXNet1_0x_Checkpoint",
    "ReXNet1_3x_Checkpoint",
    "ReXNet1_5x_Checkpoint",
    "ReXNet2_0x_Checkpoint",
    "ReXNet2_2x_Checkpoint",
    "rexnet1_0x",
    "rexnet1_3x",
    "rexnet1_5x",
    "rexnet2_0x",
    "rexnet2_2x",
]

# Per stage of the paper's table: number of blocks, stride of the first one.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (5, 2))
# The first stages have no squeeze-and-excitation.
_FIRST_SE_STAGE = 2
_STEM_WIDTH = 32
_HEAD_WIDTH = 1280
_EXPANSION = 6


class ReXNet1_0x_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`rexnet1_0x`."""

    IMAGENET1K = imagenet_checkpoint(
        "rexnet1_0x",
        release="v0.1.2",
        sha256="ab7b973341a59832099f6ee2a41eb51121b287ad4adaae8b2cd8dd92ef058f01",
        size=14_351_299,
        num_params=4_796_186,
        top1=0.7786,
        top5=0.9387,
    )
    IMAGENETTE = imagenette_checkpoint(
        "rexnet1_0x",
        release="v0.2.1",
        sha256="7c19fd53a5433927e9b4b22fa9cb0833eb1e4c3254b4079b6818fce650a77943",
        size=14_351_299,
        num_params=3_527_996,
        top1=0.9439,
        top5=0.9962,
    )
    DEFAULT = IMAGENET1K


class ReXNet1_3x_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`rexnet1_3x`."""

    IMAGENET1K = imagenet_checkpoint(
        "rexnet1_3x",
        release="v0.1.2",
        sha256="95479104024ce294abbdd528df62bd1a23e67a9db2956e1d6cdb9a9759dc1c69",
        size=14_351_299,
        num_params=7_556_198,
        top1=0.795,
        top5=0.9468,
    )
    IMAGENETTE = imagenette_checkpoint(
        "rexnet1_3x",
        release="v0.2.1",
        sha256="cf85ae919cbc9484f9fa150106451f68d2e84c73f1927a1b80aeeaa243ccd65b",
        size=23_920_480,
        num_params=5_907_848,
        top1=0.9488,
        top5=0.9939,
    )
    DEFAULT = IMAGENET1K


class ReXNet1_5x_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`rexnet1_5x`."""

    IMAGENET1K = imagenet_checkpoint(
        "rexnet1_5x",
        release="v0.1.2",
        sha256="c42a16ac73470d64852b8317ba9e875c833595a90a086b90490a696db9bb6a96",
        size=14_351_299,
        num_params=9_727_562,
        top1=0.8031,
        top5=0.9517,
    )
    IMAGENETTE = imagenette_checkpoint(
        "rexnet1_5x",
        release="v0.2.1",
        sha256="4b9d7a5901da6c2b9386987a6120bc86089d84df7727e43b78a4dfe2fc1c719a",
        size=31_625_286,
        num_params=7_825_772,
        top1=0.9447,
        top5=0.9962,
    )
    DEFAULT = IMAGENET1K


class ReXNet2_0x_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`rexnet2_0x`."""

    IMAGENET1K = imagenet_checkpoint(
        "rexnet2_0x",
        release="v0.1.2",
        sha256="c8802402442551c77fe3874f84d4d7eb1bd67cce274375db11a869ed074a1089",
        size=14_351_299,
        num_params=16_365_244,
        top1=0.8031,
        top5=0.9517,
    )
    IMAGENETTE = imagenette_checkpoint(
        "rexnet2_0x",
        release="v0.2.1",
        sha256="3f00641e48a6d1d3c9794534eb372467e0730700498933c9e79e60c838671d13",
        size=55_724_412,
        num_params=13_829_854,
        top1=0.9524,
        top5=0.9957,
    )
    DEFAULT = IMAGENET1K


class ReXNet2_2x_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`rexnet2_2x`."""

    IMAGENETTE = imagenette_checkpoint(
        "rexnet2_2x",
        release="v0.2.1",
        sha256="b23b28475329e413bfb491503460db8f47a838ec8dcdc5d13ade6f40ee5841a6",
        size=67_217_933,
        num_params=16_694_966,
        top1=0.9544,
        top5=0.9946,
    )
    DEFAULT = IMAGENETTE


class SEBlock(nn.Module):
    """Squeeze-and-excitation with a normalized bottleneck, from `"Squeeze-and-Excitation Networks"
    <https://arxiv.org/abs/1709.01507>`_.

    Args:
        channels: channels of input and output.
        se_ratio: how many times fewer channels the bottleneck has.
        norm_layer: creates the normalization from the number of channels.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int, se_ratio: int, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        squeezed = max(channels // se_ratio, 1)
        self.pool = GlobalAvgPool2d()
        self.conv = nn.Sequential(
            *conv_sequence(channels, squeezed, nn.ReLU6(inplace=True), norm_layer, kernel_size=1, bias=False),
            *conv_sequence(squeezed, channels, nn.Sigmoid(), kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``x`` by a factor between 0 and 1."""
        return x * self.conv(self.pool(x))


class ReXBlock(nn.Module):
    """Inverted residual block: expansion, depthwise 3 × 3 convolution, squeeze-and-excitation, linear projection.

    Where the resolution stays, the input is added to the first channels of the output.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        expansion: how many times more channels there are inside; 1 leaves the expansion out.
        stride: stride of the depthwise convolution.
        se_ratio: reduction of squeeze-and-excitation, None for a block without.
        act_layer: activation of the expansion; a copy of it is used.
        norm_layer: creates the normalization from the number of channels.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
        se_ratio: int | None,
        act_layer: nn.Module,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.new_channels: int | None = None
        if stride == 1 and in_channels <= out_channels:
            self.new_channels = out_channels - in_channels
        width = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += conv_sequence(in_channels, width, copy.deepcopy(act_layer), norm_layer, kernel_size=1, bias=False)
        layers += conv_sequence(
            width, width, None, norm_layer, kernel_size=3, stride=stride, padding=1, groups=width, bias=False
        )
        if se_ratio is not None:
            layers.append(SEBlock(width, se_ratio, norm_layer))
        layers.append(nn.ReLU6(inplace=True))
        layers += conv_sequence(width, out_channels, None, norm_layer, kernel_size=1, bias=False)
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` and, where the shapes allow it, add it to the result."""
        out = self.conv(x)
        if self.new_channels is not None:
            # Zeros in the place of the new channels, and not a sum over a slice: the exported graph then has one
            # residual addition, which is quantized like those of other networks.
            out += nnf.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x
        return out


class ReXNet(nn.Module):
    """ReXNet classifier from `"Rethinking Channel Dimensions for Efficient Model Design" <https://arxiv.org/abs/2007.00992>`_.

    Args:
        width_mult: factor on the channels of every layer.
        depth_mult: factor on the number of blocks of every stage, rounded up.
        num_classes: number of classes K.
        in_channels: channels of the input.
        in_planes: channels after the first block, before ``width_mult``.
        final_planes: how many channels the blocks add to that in equal steps, before ``width_mult``.
        use_se: whether blocks of the third and later stages have squeeze-and-excitation.
        se_ratio: how many times fewer channels the bottleneck of squeeze-and-excitation has.
        dropout_ratio: probability of dropout before the classifier.
        act_layer: activation of stem, expansions and last convolution; SiLU by default.
        norm_layer: creates the normalization from the number of channels; batch normalization by default.

    Raises:
        ValueError: if a number of channels, classes or blocks would not be positive, or ``dropout_ratio`` is not a
            probability.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, K), the logits
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        in_planes: int = 16,
        final_planes: int = 180,
        use_se: bool = True,
        se_ratio: int = 12,
        dropout_ratio: float = 0.2,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        for name, factor in (("width_mult", width_mult), ("depth_mult", depth_mult)):
            if not 0 < factor < math.inf:
                raise ValueError(f"expected {name} to be positive, got {factor}")
        if se_ratio < 1:
            raise ValueError(f"expected se_ratio to be at least 1, got {se_ratio}")
        act_layer = nn.SiLU(inplace=True) if act_layer is None else act_layer
        norm_layer = nn.BatchNorm2d if norm_layer is None else norm_layer

        depths = [math.ceil(depth * depth_mult) for depth, _ in _STAGES]
        step = final_planes / sum(depths)
        widths = [round((in_planes + step * index) * width_mult) for index in range(sum(depths))]
        stem_width, head_width = round(_STEM_WIDTH * width_mult), math.ceil(_HEAD_WIDTH * width_mult)
        check_layout([1] * len(widths), widths, num_classes, in_channels)
        check_layout((1, 1), (stem_width, head_width), num_classes, in_channels)

        layers = conv_sequence(
            in_channels,
            stem_width,
            copy.deepcopy(act_layer),
            norm_layer,
            kernel_size=3,
            stride=2,
            padding=1,
            bias=False,
        )
        previous, expansion = stem_width, 1
        for stage, (depth, (_, first_stride)) in enumerate(zip(depths, _STAGES, strict=True)):
            ratio = se_ratio if use_se and stage >= _FIRST_SE_STAGE else None
            for stride in (first_stride, *[1] * (depth - 1)):
                width = widths[len(layers) - 3]
                layers.append(ReXBlock(previous, width, expansion, stride, ratio, act_layer, norm_layer))
                previous, expansion = width, _EXPANSION
        layers += conv_sequence(previous, head_width, copy.deepcopy(act_layer), norm_layer, kernel_size=1, bias=False)
        self.features = nn.Sequential(*layers)
        self.pool = GlobalAvgPool2d(flatten=True)
        self.head = nn.Sequential(nn.Dropout(dropout_ratio), nn.Linear(head_width, num_classes))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of shape (N, in_channels, H, W) into logits of shape (N, K)."""
        return self.head(self.pool(self.features(x)))


_WIDTH_MULTS = {"1_0x": 1.0, "1_3x": 1.3, "1_5x": 1.5, "2_0x": 2.0, "2_2x": 2.2}


def _rexnet(
    arch: str, default: Enum, pretrained: bool, checkpoint: Checkpoint | None, progress: bool, kwargs: dict[str, Any]
) -> ReXNet:
    return build_with_checkpoint(
        partial(ReXNet, _WIDTH_MULTS[arch.removeprefix("rexnet")]),
        arch,
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=default,
        progress=progress,
        kwargs=kwargs,
    )


@register_model(checkpoints=ReXNet1_0x_Checkpoint)
def rexnet1_0x(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ReXNet:
    """ReXNet-1.0× from `"Rethinking Channel Dimensions for Efficient Model Design" <https://arxiv.org/abs/2007.00992>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ReXNet1_0x_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (1000 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ReXNet` after ``width_mult``.

    Returns:
        the model, in training mode
    """
    return _rexnet("rexnet1_0x", ReXNet1_0x_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=ReXNet1_3x_Checkpoint)
def rexnet1_3x(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ReXNet:
    """ReXNet-1.3× from `"Rethinking Channel Dimensions for Efficient Model Design" <https://arxiv.org/abs/2007.00992>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ReXNet1_3x_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (1000 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ReXNet` after ``width_mult``.

    Returns:
        the model, in training mode
    """
    return _rexnet("rexnet1_3x", ReXNet1_3x_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=ReXNet1_5x_Checkpoint)
def rexnet1_5x(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ReXNet:
    """ReXNet-1.5× from `"Rethinking Channel Dimensions for Efficient Model Design" <https://arxiv.org/abs/2007.00992>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ReXNet1_5x_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (1000 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ReXNet` after ``width_mult``.

    Returns:
        the model, in training mode
    """
    return _rexnet("rexnet1_5x", ReXNet1_5x_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=ReXNet2_0x_Checkpoint)
def rexnet2_0x(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ReXNet:
    """ReXNet-2.0× from `"Rethinking Channel Dimensions for Efficient Model Design" <https://arxiv.org/abs/2007.00992>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ReXNet2_0x_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (1000 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ReXNet` after ``width_mult``.

    Returns:
        the model, in training mode
    """
    return _rexnet("rexnet2_0x", ReXNet2_0x_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model(checkpoints=ReXNet2_2x_Checkpoint)
def rexnet2_2x(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ReXNet:
    """ReXNet-2.2× from `"Rethinking Channel Dimensions for Efficient Model Design" <https://arxiv.org/abs/2007.00992>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ReXNet2_2x_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (1000 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ReXNet` after ``width_mult``.

    Returns:
        the model, in training mode
    """
    return _rexnet("rexnet2_2x", ReXNet2_2x_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)
