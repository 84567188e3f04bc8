"""RepViT: a mobile network in the shape of a vision transformer, whose branches fold into single convolutions."""

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from holocron.models.blocks import check_layout, conv_bn, init_weights
from holocron.models.checkpoints import Checkpoint
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.models.reparam import ReparametrizableBlock, fuse_branches, fuse_conv_bn, reparametrize
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = ["RepViT", "repvit_m0_9", "repvit_m1_0", "repvit_m1_1"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_SE_REDUCTION = 4
_SE_DIVISOR = 8
_EXPANSION = 2
# What stands beside an identity starts at an eighth of its variance: a deep network then starts as a shallow one, and
# even untrained it stays within what float16 can hold.
_RESIDUAL_GAIN = math.sqrt(0.125)


class ConvBN(nn.Sequential, ReparametrizableBlock):
    """Convolution without bias followed by batch normalization, which :meth:`fuse` folds into it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel, odd; the padding keeps the resolution, up to ``stride``.
        stride: stride of the convolution.
        groups: number of groups.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(*conv_bn(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups))

    def fuse(self) -> nn.Conv2d:
        """Build the convolution with a bias that the two amount to."""
        return fuse_branches([self])


class NormLinear(nn.Sequential, ReparametrizableBlock):
    """Batch normalization of a vector followed by a linear layer, which :meth:`fuse` makes one linear layer.

    Args:
        in_features: size of the input.
        out_features: size of the output.

    Shape:
        - input: (N, in_features)
        - output: (N, out_features)
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.BatchNorm1d(in_features), nn.Linear(in_features, out_features))

    def fuse(self) -> nn.Linear:
        """Build the linear layer that the two amount to in evaluation mode."""
        norm, linear = copy.deepcopy(self).to("cpu", torch.float64)
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(linear, nn.Linear)
        assert norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            # The layer's answer to what normalization makes of zeros is the bias.
            linear.bias.copy_(linear(norm(torch.zeros(1, norm.num_features, dtype=torch.float64)))[0])
            linear.weight.mul_(scale)
        linear.requires_grad_(any(parameter.requires_grad for parameter in self.parameters()))
        return _like(self[1], linear)


class RepDepthwise(nn.Module, ReparametrizableBlock):
    """A depthwise 3 × 3 convolution, a depthwise 1 × 1 one and the identity, summed and normalized.

    Args:
        channels: channels of input and output.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = conv_bn(channels, channels, 3, padding=1, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Sum what the branches make of ``x`` and normalize it."""
        out = self.conv3(x)
        out += self.conv1(x)
        out += x
        return self.norm(out)

    def fuse(self) -> nn.Conv2d:
        """Build the depthwise 3 × 3 convolution with a bias that all of it amounts to in evaluation mode."""
        exact = copy.deepcopy(self).to("cpu", torch.float64)
        summed = fuse_branches([exact.conv3, exact.conv1])
        with torch.no_grad():
            summed.weight[:, 0, 1, 1] += 1
        return _like(self.conv1, fuse_conv_bn(summed, exact.norm))


def _like(layer: nn.Module, exact: ModuleT) -> ModuleT:
    """Cast a folded layer, once, to the device and type of a layer that it replaces."""
    parameter = next(layer.parameters())
    return exact.to(parameter.device, parameter.dtype)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation from `"Squeeze-and-Excitation Networks" <https://arxiv.org/abs/1709.01507>`_.

    Args:
        channels: channels of input and output; inside there is a fourth of them, to the nearest multiple of 8.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(math.floor(channels / _SE_REDUCTION / _SE_DIVISOR + 0.5), 1) * _SE_DIVISOR
        self.pool = GlobalAvgPool2d()
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``x`` by a factor between 0 and 1."""
        return x * torch.sigmoid(self.fc2(self.activation(self.fc1(self.pool(x)))))


class ChannelMixer(nn.Module):
    """A two-layer perceptron on each pixel, beside the identity.

    Args:
        channels: channels of input and output.

    Shape:
        - input: (N, channels, H, W)
        - output: the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            ConvBN(channels, _EXPANSION * channels, 1), nn.GELU(), ConvBN(_EXPANSION * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` and add it to the result."""
        out: Tensor = self.block(x)
        out += x
        return out


class RepViTBlock(nn.Sequential):
    """A token mixer, which relates pixels, and then a channel mixer.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, as many unless the block downsamples.
        downsample: whether the block halves the resolution.
        use_se: whether the token mixer has squeeze-and-excitation.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, H, W), or H and W halved and rounded up
    """

    def __init__(self, in_channels: int, out_channels: int, *, downsample: bool = False, use_se: bool = False) -> None:
        depthwise: nn.Module
        if downsample:
            depthwise = ConvBN(in_channels, in_channels, 3, stride=2, groups=in_channels)
        else:
            depthwise = RepDepthwise(in_channels)
        token_mixer = nn.Sequential(depthwise, SqueezeExcite(in_channels) if use_se else nn.Identity())
        if downsample:
            token_mixer.append(ConvBN(in_channels, out_channels, 1))
        super().__init__(OrderedDict(token_mixer=token_mixer, channel_mixer=ChannelMixer(out_channels)))


class RepViT(nn.Module):
    """RepViT classifier from `"RepViT: Revisiting Mobile CNN From ViT Perspective" <https://arxiv.org/abs/2307.09283>`_.

    A stem divides the resolution by 4, and a block between each two stages by 2. In each stage every other block has
    squeeze-and-excitation, from the first on; the last one has none.

    Args:
        num_blocks: number of blocks of each stage, besides the one that leads to it.
        widths: channels of each stage.
        num_classes: number of classes K.
        in_channels: channels of the input.

    Raises:
        ValueError: if there are no stages, their two lists differ in length, a number is not positive, or the first
            width is odd.

    Shape:
        - input: (N, in_channels, H, W), H and W of any size
        - output: (N, K), the logits
    """

    def __init__(
        self, num_blocks: Sequence[int], widths: Sequence[int], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_layout(num_blocks, widths, num_classes, in_channels)
        if widths[0] % 2:
            raise ValueError(f"expected an even first width, half of which the stem starts with, got {widths[0]}")
        stem = nn.Sequential(
            ConvBN(in_channels, widths[0] // 2, 3, stride=2), nn.GELU(), ConvBN(widths[0] // 2, widths[0], 3, stride=2)
        )
        stages = [stem]
        previous = widths[0]
        for depth, width in zip(num_blocks, widths, strict=True):
            blocks = [RepViTBlock(previous, width, downsample=True)] if len(stages) > 1 else []
            blocks += [RepViTBlock(width, width, use_se=index % 2 == 0 and index + 1 < depth) for index in range(depth)]
            stages.append(nn.Sequential(*blocks))
            previous = width
        self.features = nn.Sequential(*stages)
        self.pool = GlobalAvgPool2d(flatten=True)
        self.head = NormLinear(previous, num_classes)
        init_weights(self)
        for layer in self.modules():
            if isinstance(layer, ChannelMixer):
                nn.init.constant_(layer.block.get_parameter("2.1.weight"), _RESIDUAL_GAIN)
            elif isinstance(layer, RepDepthwise):
                # The two convolutions share the gain; the second has no normalization to set it.
                nn.init.constant_(layer.conv3.get_parameter("1.weight"), _RESIDUAL_GAIN / math.sqrt(2))
                nn.init.normal_(layer.conv1.weight, std=_RESIDUAL_GAIN / math.sqrt(2))
            elif isinstance(layer, SqueezeExcite):
                # Channels start with much the same factor: a chain of random ones leaves most tiny beside a few.
                nn.init.normal_(layer.fc2.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of shape (N, in_channels, H, W) into logits of shape (N, K)."""
        return self.head(self.pool(self.features(x)))

    def reparametrize(self) -> None:
        """Fold every batch normalization and every parallel branch, in place, into convolutions with a bias.

        The classifier's normalization goes into its linear layer. The state dict that is left has a weight and a bias
        for each layer, and loads into another model on which this method was called. Calling it again changes nothing.

        Raises:
            ValueError: if the model is in training mode.
        """
        reparametrize(self)


# Number of blocks and channels of each stage.
_LAYOUTS = {
    "m0_9": ((3, 3, 15, 2), (48, 96, 192, 384)),
    "m1_0": ((3, 3, 15, 2), (56, 112, 224, 448)),
    "m1_1": ((3, 3, 13, 2), (64, 128, 256, 512)),
}


def _repvit(
    arch: str, pretrained: bool, checkpoint: Checkpoint | None, progress: bool, kwargs: dict[str, Any]
) -> RepViT:
    return build_with_checkpoint(
        partial(RepViT, *_LAYOUTS[arch.removeprefix("repvit_")]),
        arch,
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=None,
        progress=progress,
        kwargs=kwargs,
    )


@register_model()
def repvit_m0_9(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepViT:
    """RepViT-M0.9 from `"RepViT: Revisiting Mobile CNN From ViT Perspective" <https://arxiv.org/abs/2307.09283>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepViT`.

    Returns:
        the model, in training mode
    """
    return _repvit("repvit_m0_9", pretrained, checkpoint, progress, kwargs)


@register_model()
def repvit_m1_0(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepViT:
    """RepViT-M1.0 from `"RepViT: Revisiting Mobile CNN From ViT Perspective" <https://arxiv.org/abs/2307.09283>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepViT`.

    Returns:
        the model, in training mode
    """
    return _repvit("repvit_m1_0", pretrained, checkpoint, progress, kwargs)


@register_model()
def repvit_m1_1(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> RepViT:
    """RepViT-M1.1 from `"RepViT: Revisiting Mobile CNN From ViT Perspective" <https://arxiv.org/abs/2307.09283>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        checkpoint: load these weights instead.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default) and ``in_channels`` (3 by default) of :class:`RepViT`.

    Returns:
        the model, in training mode
    """
    return _repvit("repvit_m1_1", pretrained, checkpoint, progress, kwargs)
