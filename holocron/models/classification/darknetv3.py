"""DarkNet-53: residual, and with strides in place of the poolings; the backbone of YOLOv3."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.classification.darknet import check_sizes
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = ["Darknet53_Checkpoint", "DarknetV3", "darknet53"]

# What each block adds to the variance of its input before any training, as in `init_weights`. At one, the activations
# of untrained networks leave float16 in evaluation mode.
_INITIAL_VARIANCE = 0.125


class Darknet53_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`darknet53`."""

    IMAGENETTE = imagenette_checkpoint(
        "darknet53",
        release="v0.2.1",
        sha256="5015f3fdf0963342e0c54790127350375ba269d871feed48f8328b2e43cf7819",
        size=162_584_273,
        num_params=40_595_178,
        top1=0.9417,
        top5=0.9957,
    )
    DEFAULT = IMAGENETTE


class DarknetBlock(nn.Module):
    """A 1 × 1 convolution and a 3 × 3 one, each with its activation, added to their input.

    Args:
        channels: channels of the input and of the output.
        hidden_channels: channels between the convolutions.
        conv: creates a convolution and what follows it, as :func:`holocron.models.blocks.conv_sequence` does.

    Shape:
        - input: (N, channels, H, W)
        - output: (N, channels, H, W)
    """

    def __init__(self, channels: int, hidden_channels: int, conv: Callable[..., list[nn.Module]]) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *conv(channels, hidden_channels, kernel_size=1),
            *conv(hidden_channels, channels, kernel_size=3, padding=1),
        )
        norms = [layer for layer in self.conv if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) and layer.affine]
        if norms:
            nn.init.constant_(norms[-1].weight, math.sqrt(_INITIAL_VARIANCE))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of ``x`` to it."""
        return x + self.conv(x)


class DarknetBodyV3(nn.Sequential):
    """The layers of DarkNet-53 before its classifier.

    Each stage starts with a 3 × 3 convolution of stride 2 to its width.

    Args:
        layout: (width, number of blocks) of each stage.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution, which keeps the resolution.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
        norm_layer: creates the normalization from the number of channels, :class:`torch.nn.BatchNorm2d` by default.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.

    Raises:
        ValueError: if there are no stages, or a number is out of range.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, layout[-1][0], ⌈H / 2 ** stages⌉, ⌈W / 2 ** stages⌉)
    """

    def __init__(
        self,
        layout: Sequence[tuple[int, int]],
        in_channels: int = 3,
        stem_channels: int = 32,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        check_sizes(
            in_channels=in_channels,
            stem_channels=stem_channels,
            # Half of each is the width of some convolution.
            half_widths=[width // 2 for width, _ in layout],
            num_blocks=[num_blocks for _, num_blocks in layout],
        )
        conv = partial(
            conv_sequence,
            act_layer=act_layer or nn.LeakyReLU(0.1, inplace=True),
            norm_layer=norm_layer or nn.BatchNorm2d,
            drop_layer=drop_layer,
            conv_layer=conv_layer,
            bias=False,
        )
        stages: list[nn.Module] = []
        previous = stem_channels
        for width, num_blocks in layout:
            blocks = [DarknetBlock(width, width // 2, conv) for _ in range(num_blocks)]
            stages.append(nn.Sequential(*conv(previous, width, kernel_size=3, padding=1, stride=2), *blocks))
            previous = width
        stem = nn.Sequential(*conv(in_channels, stem_channels, kernel_size=3, padding=1))
        super().__init__(OrderedDict(stem=stem, layers=nn.Sequential(*stages)))
        init_weights(self)


class DarknetV3(nn.Sequential):
    """DarkNet-53 classifier from `"YOLOv3: An Incremental Improvement" <https://arxiv.org/abs/1804.02767>`_.

    Args:
        layout: (width, number of blocks) of each stage.
        num_classes: number of classes K.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
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
        body = DarknetBodyV3(layout, in_channels, stem_channels, act_layer, norm_layer, drop_layer, conv_layer)
        classifier = nn.Linear(layout[-1][0], num_classes)
        init_weights(classifier)
        super().__init__(OrderedDict(features=body, pool=GlobalAvgPool2d(flatten=True), classifier=classifier))


@register_model(checkpoints=Darknet53_Checkpoint)
def darknet53(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> DarknetV3:
    """DarkNet-53 from `"YOLOv3: An Incremental Improvement" <https://arxiv.org/abs/1804.02767>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``Darknet53_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the layers of :class:`DarknetV3`.

    Returns:
        the model, in training mode
    """
    return build_with_checkpoint(
        partial(DarknetV3, [(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]),
        "darknet53",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=Darknet53_Checkpoint.DEFAULT,
        progress=progress,
        kwargs=kwargs,
    )
