"""ConvNeXt: a residual network with what made transformers strong, in plain convolutions."""

from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from holocron.models.blocks import check_layout
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = [
    "ConvNeXt",
    "ConvNeXt_Atto_Checkpoint",
    "convnext_atto",
    "convnext_base",
    "convnext_femto",
    "convnext_large",
    "convnext_nano",
    "convnext_pico",
    "convnext_small",
    "convnext_tiny",
    "convnext_xl",
]

_STEM_STRIDE = 4
_EXPANSION = 4
_EPS = 1e-6


class ConvNeXt_Atto_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`convnext_atto`."""

    IMAGENETTE = imagenette_checkpoint(
        "convnext_atto",
        release="v0.2.1",
        sha256="f38217e7361060e6fe00e8fa95b0e8774150190eed9e55c812bbd3b6ab378ce9",
        size=13_535_258,
        num_params=3_377_730,
        top1=0.8759,
        top5=0.9832,
    )
    DEFAULT = IMAGENETTE


# The next three kinds of layers take and give (N, C, H, W) but work on (N, H, W, C), where the channels of a pixel lie
# side by side in memory. Between them the permutations cancel: nothing is moved.


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization of each pixel over its channels.

    Args:
        channels: number of channels.
        eps: added to the variance.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int, eps: float = _EPS) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each pixel of ``x``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PointwiseConv2d(nn.Conv2d):
    """Convolution of 1 × 1, computed as the matrix product that it is, which on a CPU is the faster of the two.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of each pixel of ``x``."""
        if torch.compiler.is_exporting():
            # Exported graphs keep the convolution: it is what backends fuse and quantize best.
            return super().forward(x)
        return nnf.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PixelGELU(nn.GELU):
    """GELU, applied in the order in which the pixels lie in memory: out of it PyTorch has only a slower kernel.

    Shape:
        - input: (N, C, H, W)
        - output: the same
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``."""
        if torch.compiler.is_exporting():
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """A learned factor for each channel, from `"Going deeper with Image Transformers"
    <https://arxiv.org/abs/2103.17239>`_.

    Args:
        channels: number of channels.
        init_value: where every factor starts.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int, init_value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``x``."""
        return x * self.weight[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 × 7 convolution, normalization and a two-layer perceptron on each pixel, beside the identity.

    Args:
        channels: channels of input and output.
        drop_prob: probability that an image skips the block in training.
        layer_scale: initial value of the factors on the block's result.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int, drop_prob: float, layer_scale: float) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels),
            LayerNorm2d(channels),
            PointwiseConv2d(channels, _EXPANSION * channels),
            PixelGELU(),
            PointwiseConv2d(_EXPANSION * channels, channels),
            LayerScale(channels, layer_scale),
        )
        self.drop_path = StochasticDepth(drop_prob, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` and add it to the result."""
        out: Tensor = self.drop_path(self.conv(x))
        # In place: no layer before needs its own result for the backward pass.
        out += x
        return out


class ConvNeXt(nn.Module):
    """ConvNeXt classifier from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    A stem divides the resolution by 4, and a convolution between each two stages by 2.

    Args:
        num_blocks: number of blocks of each stage.
        widths: channels of each stage.
        num_classes: number of classes K.
        in_channels: channels of the input.
        stochastic_depth_prob: probability that an image skips the last block in training; from the first block on it
            grows linearly from 0. On ImageNet the paper uses 0.1 for Tiny, 0.4 for Small, 0.5 for Base and Large.
        layer_scale: initial value of the factors on each block's result.

    Raises:
        ValueError: if there are no stages, their two lists differ in length, a number is not positive or
            ``stochastic_depth_prob`` is not below 1; in ``forward``, if the image is smaller than what is divided by
            (32 pixels for four stages).

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, K), the logits
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        stochastic_depth_prob: float = 0.1,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        check_layout(num_blocks, widths, num_classes, in_channels)
        if not 0 <= stochastic_depth_prob < 1:
            raise ValueError(f"expected stochastic_depth_prob to be in [0, 1), got {stochastic_depth_prob}")
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, widths[0], kernel_size=_STEM_STRIDE, stride=_STEM_STRIDE),
            LayerNorm2d(widths[0]),
        ]
        last_block = max(sum(num_blocks) - 1, 1)
        drop_probs = (stochastic_depth_prob * block / last_block for block in range(sum(num_blocks)))
        for depth, width, following in zip(num_blocks, widths, [*widths[1:], None], strict=True):
            blocks: list[nn.Module] = [ConvNeXtBlock(width, next(drop_probs), layer_scale) for _ in range(depth)]
            if following is not None:
                blocks.append(nn.Sequential(LayerNorm2d(width), nn.Conv2d(width, following, kernel_size=2, stride=2)))
            layers.append(nn.Sequential(*blocks))
        self.min_size = _STEM_STRIDE * 2 ** (len(widths) - 1)
        self.features = nn.Sequential(*layers)
        self.pool = GlobalAvgPool2d(flatten=True)
        self.head = nn.Sequential(nn.LayerNorm(widths[-1], eps=_EPS), nn.Linear(widths[-1], num_classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of shape (N, in_channels, H, W) into logits of shape (N, K)."""
        height, width = x.shape[-2:]
        if height < self.min_size or width < self.min_size:
            raise ValueError(
                f"expected an image of at least {self.min_size} × {self.min_size} pixels, by which the resolution is "
                f"divided, got {height} × {width}"
            )
        return self.head(self.pool(self.features(x)))


# Number of blocks and channels of each stage.
_LAYOUTS = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xl": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}


def _convnext(
    arch: str,
    default: Enum | None,
    pretrained: bool,
    checkpoint: Checkpoint | None,
    progress: bool,
    kwargs: dict[str, Any],
) -> ConvNeXt:
    return build_with_checkpoint(
        partial(ConvNeXt, *_LAYOUTS[arch.removeprefix("convnext_")]),
        arch,
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=default,
        progress=progress,
        kwargs=kwargs,
    )


@register_model(checkpoints=ConvNeXt_Atto_Checkpoint)
def convnext_atto(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Atto from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``ConvNeXt_Atto_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_atto", ConvNeXt_Atto_Checkpoint.DEFAULT, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_femto(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Femto from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_femto", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_pico(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Pico from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_pico", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_nano(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Nano from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_nano", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_tiny(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Tiny from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_tiny", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_small(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Small from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_small", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_base(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Base from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_base", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_large(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-Large from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_large", None, pretrained, checkpoint, progress, kwargs)


@register_model()
def convnext_xl(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> ConvNeXt:
    """ConvNeXt-XL from `"A ConvNet for the 2020s" <https://arxiv.org/abs/2201.03545>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`ConvNeXt` after ``widths``.

    Returns:
        the model, in training mode
    """
    return _convnext("convnext_xl", None, pretrained, checkpoint, progress, kwargs)
