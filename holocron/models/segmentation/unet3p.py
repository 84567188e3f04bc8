"""UNet 3+: every level of the decoder sees every level of the network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import PreProcessing
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.models.segmentation.blocks import Layers, Segmenter, check_widths, contracting_path

__all__ = ["UNet3p", "unet3p"]


class FSAggreg(nn.Module):
    """Full-scale aggregation: features of all levels, brought to the resolution of one, narrowed, and convolved.

    Finer levels are max-pooled, coarser ones interpolated bilinearly. A 3 × 3 convolution narrows each level to as many
    channels as the finest has, where it is not that one itself; another one fuses what is then concatenated.

    Args:
        fine_channels: channels of the encoder's levels above this one, finest first.
        skip_channels: channels of the encoder's level.
        coarse_channels: channels of the decoder's levels below, and of the deepest level, finest first.
        layers: kinds of layers of the fusion.

    Shape:
        - fine: (N, fine_channels[i], H · 2 ** (F - i), W · 2 ** (F - i)), F = len(fine_channels)
        - skip: (N, skip_channels, H, W)
        - coarse: (N, coarse_channels[i], H / 2 ** (i + 1), W / 2 ** (i + 1))
        - output: (N, K, H, W), where K is the number of levels times the channels of the finest
    """

    def __init__(
        self, fine_channels: list[int], skip_channels: int, coarse_channels: list[int], layers: Layers
    ) -> None:
        super().__init__()
        width = fine_channels[0] if fine_channels else skip_channels

        def narrow(channels: int) -> nn.Module:
            return conv_sequence(channels, width, conv_layer=layers.conv_layer, kernel_size=3, padding=1)[0]

        self.downsamples = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2 ** (len(fine_channels) - index)), narrow(channels))
            for index, channels in enumerate(fine_channels)
        )
        self.skip = narrow(skip_channels) if fine_channels else nn.Identity()
        self.upsamples = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2 ** (index + 1), mode="bilinear", align_corners=True), narrow(channels)
            )
            for index, channels in enumerate(coarse_channels)
        )
        fused = (len(fine_channels) + 1 + len(coarse_channels)) * width
        self.block = nn.Sequential(
            *conv_sequence(fused, fused, *layers, kernel_size=3, padding=1, bias=layers.norm_layer is None)
        )

    def forward(self, fine: list[Tensor], skip: Tensor, coarse: list[Tensor]) -> Tensor:
        """Aggregate the encoder's finer levels, its own level, and the decoder's coarser ones."""
        features = [down(x) for down, x in zip(self.downsamples, fine, strict=True)]
        features.append(self.skip(skip))
        features.extend(up(x) for up, x in zip(self.upsamples, coarse, strict=True))
        return self.block(torch.cat(features, dim=1))


class UNet3p(Segmenter):
    """UNet 3+ from `"UNet 3+: A Full-Scale Connected UNet For Medical Image Segmentation" <https://arxiv.org/abs/2004.08790>`_.

    The finest level of the decoder is classified; there is neither deep supervision nor a classification branch.

    Args:
        layout: channels of each level of the contracting path, the deepest included.
        in_channels: channels of the input.
        num_classes: number of classes K.
        act_layer: activation; ReLU by default.
        norm_layer: creates the normalization from the number of channels; batch normalization by default.
        drop_layer: creates the regularization from its probability ``p``; none by default.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`, which is the default.

    Raises:
        ValueError: if there are fewer than two levels, or a number of channels or classes is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W of at least ``2 ** (len(layout) - 1)`` pixels
        - output: (N, K, H, W), the logits
    """

    def __init__(
        self,
        layout: list[int],
        in_channels: int = 3,
        num_classes: int = 10,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        check_widths(layout, num_classes, in_channels, min_levels=2)
        stride = 2 ** (len(layout) - 1)
        super().__init__(stride, stride)
        act_layer = nn.ReLU(inplace=True) if act_layer is None else act_layer
        norm_layer = nn.BatchNorm2d if norm_layer is None else norm_layer
        layers = Layers(act_layer, norm_layer, drop_layer, conv_layer)
        self.encoder = nn.ModuleList(contracting_path(in_channels, layout, 1, layers))

        width = len(layout) * layout[0]
        self.decoder = nn.ModuleList(
            FSAggreg(layout[:row], layout[row], [width] * (len(layout) - 2 - row) + [layout[-1]], layers)
            for row in range(len(layout) - 1)
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        init_weights(self)

    def score(self, x: Tensor) -> Tensor:
        """Compute logits from images whose sides are multiples of the stride."""
        features: list[Tensor] = []
        for level in self.encoder:
            x = level(x)
            features.append(x)
        decoded = [features.pop()]
        for aggregate in reversed(self.decoder):
            skip = features.pop()
            decoded.insert(0, aggregate(features, skip, decoded))
        return self.classifier(decoded[0])


@register_model(task="segmentation", pre_processing=PreProcessing(input_shape=(3, 256, 256)))
def unet3p(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> UNet3p:
    """UNet 3+ from `"UNet 3+: A Full-Scale Connected UNet For Medical Image Segmentation" <https://arxiv.org/abs/2004.08790>`_.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`UNet3p`; the layout is the paper's by default.

    Returns:
        the model, in training mode
    """
    kwargs = {"layout": [64, 128, 256, 512, 1024], **kwargs}
    return build_with_checkpoint(
        UNet3p, "unet3p", pretrained=pretrained, checkpoint=None, default=None, progress=progress, kwargs=kwargs
    )
