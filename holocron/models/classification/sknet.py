"""SKNet: bottlenecks that choose between receptive fields, channel by channel, from what the image holds."""

from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor, nn

from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.classification.residual import Bottleneck, ConvLayers
from holocron.models.classification.resnet import ResNet, build_resnet
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = ["SKNet50_Checkpoint", "sknet50", "sknet101", "sknet152"]


class SKNet50_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`sknet50`."""

    IMAGENETTE = imagenette_checkpoint(
        "sknet50",
        release="v0.2.1",
        sha256="e2349031c838a4661cd729dbc7825605c9e0c966bd89bbcc9b39f0e324894d1f",
        size=141_253_623,
        num_params=35_224_394,
        top1=0.9437,
        top5=0.9954,
    )
    DEFAULT = IMAGENETTE


class SKConv2d(nn.Module):
    """Selective kernels: 3 × 3 convolutions of growing dilation, averaged with weights that come from their sum.

    The weights are one value for each path and channel, by global pooling and two 1 × 1 convolutions. In the family's
    published weights they pass a sigmoid before the softmax over the paths, which the paper does not have.

    Args:
        channels: channels of input and output.
        stride: stride of the convolutions.
        groups: groups of the 3 × 3 convolutions.
        layers: what the convolutions are made of and followed by.
        num_paths: number of paths; the dilation of path i is i + 1.
        reduction: divider of the channels between the two layers that compute the weights.
        min_channels: the least that it leaves.

    Raises:
        ValueError: if there are fewer than two paths; in training, if batch normalization meets a batch of one image.

    Shape:
        - input: (N, channels, H, W)
        - output: (N, channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        groups: int,
        layers: ConvLayers,
        *,
        num_paths: int = 2,
        reduction: int = 16,
        min_channels: int = 32,
    ) -> None:
        if num_paths < 2:
            raise ValueError(f"expected num_paths to be at least 2, got {num_paths}")
        super().__init__()
        self.num_paths: int = num_paths
        self.path_convs = nn.ModuleList(
            nn.Sequential(
                *layers.sequence(
                    channels, channels, kernel_size=3, stride=stride, padding=rate, dilation=rate, groups=groups
                )
            )
            for rate in range(1, num_paths + 1)
        )
        squeezed = max(channels // reduction, min_channels)
        self.sa = nn.Sequential(
            GlobalAvgPool2d(),
            *replace(layers, drop_layer=None).sequence(channels, squeezed, kernel_size=1),
            nn.Conv2d(squeezed, num_paths * channels, 1),
            nn.Sigmoid(),
        )
        self._normalizes_batches: bool = any(isinstance(layer, nn.BatchNorm2d) for layer in self.sa)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the paths to ``x`` and average them."""
        if self.training and self._normalizes_batches and x.shape[0] == 1:
            raise ValueError(
                "selective kernels normalize one value a channel and image: training needs batches of at least 2 "
                "images, got 1; with a DataLoader, drop_last=True leaves such a remainder out"
            )
        paths = [conv(x) for conv in self.path_convs]
        total = paths[0] + paths[1]
        for path in paths[2:]:
            total += path
        weights = self.sa(total).unflatten(1, (self.num_paths, -1)).softmax(dim=1).unbind(dim=1)
        out = weights[0] * paths[0]
        for weight, path in zip(weights[1:], paths[1:], strict=True):
            out = out + weight * path
        return out


def _selective_kernels(channels: int, stride: int, groups: int, layers: ConvLayers) -> list[nn.Module]:
    return [SKConv2d(channels, stride, groups, layers)]


_BLOCK = partial(Bottleneck, middle=_selective_kernels)


@register_model(checkpoints=SKNet50_Checkpoint)
def sknet50(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """SKNet-50 from `"Selective Kernel Networks" <https://arxiv.org/abs/1903.06586>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``SKNet50_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "sknet50", _BLOCK, (3, 4, 6, 3), SKNet50_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs
    )


@register_model()
def sknet101(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """SKNet-101 from `"Selective Kernel Networks" <https://arxiv.org/abs/1903.06586>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet("sknet101", _BLOCK, (3, 4, 23, 3), None, pretrained, checkpoint, progress, kwargs)


@register_model()
def sknet152(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ResNet:
    """SKNet-152 from `"Selective Kernel Networks" <https://arxiv.org/abs/1903.06586>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet("sknet152", _BLOCK, (3, 8, 36, 3), None, pretrained, checkpoint, progress, kwargs)
