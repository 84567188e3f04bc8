"""PyConvResNet: bottlenecks that look at several scales at once, with kernels that grow as they thin out."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from holocron.models.classification.residual import BlockFactory, Bottleneck, ConvLayers
from holocron.models.classification.resnet import ResNet, build_resnet
from holocron.models.registry import register_model
from holocron.nn.modules.conv import PyConv2d

__all__ = ["pyconv_resnet50", "pyconvhg_resnet50"]

# Groups of each level of the pyramid, stage by stage: with less resolution there is less for large kernels to see.
_GROUPS = ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1,))
_HIGH_GROUPS = ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32,))


def _pyramidal_convolution(
    channels: int, stride: int, groups: int, layers: ConvLayers, *, level_groups: Sequence[int]
) -> list[nn.Module]:
    if groups != 1:
        raise ValueError(f"each level of a pyramidal convolution has groups of its own: leave groups={groups} out")
    return replace(layers, conv_layer=PyConv2d).sequence(
        channels,
        channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        num_levels=len(level_groups),
        groups=list(level_groups),
    )


def _blocks(groups: Sequence[Sequence[int]]) -> list[BlockFactory]:
    """One kind of bottleneck for each stage."""
    return [
        partial(Bottleneck, middle=partial(_pyramidal_convolution, level_groups=level_groups))
        for level_groups in groups
    ]


@register_model()
def pyconv_resnet50(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> ResNet:
    """PyConvResNet-50 from `"Pyramidal Convolution: Rethinking Convolutional Neural Networks for Visual Recognition"
    <https://arxiv.org/abs/2006.11538>`_.

    The stem does not pool and the first stage does not stride, so that features have twice the resolution of ResNet's,
    and of the paper's, whose first stage strides.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "pyconv_resnet50",
        _blocks(_GROUPS),
        (3, 4, 6, 3),
        None,
        pretrained,
        None,
        progress,
        kwargs,
        stem_pool=False,
    )


@register_model()
def pyconvhg_resnet50(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> ResNet:
    """PyConvHGResNet-50, with more groups and twice the inner width, from `"Pyramidal Convolution: Rethinking
    Convolutional Neural Networks for Visual Recognition" <https://arxiv.org/abs/2006.11538>`_.

    It keeps the resolution of :func:`pyconv_resnet50`.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "pyconvhg_resnet50",
        _blocks(_HIGH_GROUPS),
        (3, 4, 6, 3),
        None,
        pretrained,
        None,
        progress,
        kwargs,
        stem_pool=False,
        width_per_group=128,
    )
