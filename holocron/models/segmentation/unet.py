"""U-Net: a contracting path, an expansive path, and connections between them; also on top of classifiers' features."""

import http.client
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import PreProcessing
from holocron.models.classification.rexnet import rexnet1_3x
from holocron.models.errors import DownloadError
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.models.segmentation.blocks import (
    Layers,
    Segmenter,
    UBlock,
    UpPath,
    bridge,
    check_widths,
    contracting_path,
    smallest_feature,
    smallest_input,
)

__all__ = ["DynamicUNet", "UNet", "unet", "unet2", "unet_rexnet13", "unet_tvresnet34", "unet_tvvgg11"]

ModelT = TypeVar("ModelT", bound=nn.Module)

# Encoders halve their input at most six times, so that from multiples of this their strides can be read off exactly.
_PROBE_MULTIPLE = 64


class UNet(Segmenter):
    """U-Net from `"U-Net: Convolutional Networks for Biomedical Image Segmentation" <https://arxiv.org/abs/1505.04597>`_.

    Args:
        layout: channels of each level of the contracting path.
        in_channels: channels of the input.
        num_classes: number of classes K.
        act_layer: activation; ReLU by default.
        norm_layer: creates the normalization from the number of channels; none by default.
        drop_layer: creates the regularization from its probability ``p``; none by default.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`, which is the default.
        same_padding: pad so that the output has the size of the input. Otherwise both paths lose a margin, as in the
            paper, and the output is of the middle of the image.
        bilinear_upsampling: interpolate; otherwise the upsampling is learned, by transposed convolutions.

    Raises:
        ValueError: if there are no levels, or a number of channels or classes is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W of at least ``2 ** len(layout)`` pixels, more without padding
        - output: (N, K, H, W), the logits; less than H, W without padding
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
        same_padding: bool = True,
        bilinear_upsampling: bool = True,
    ) -> None:
        check_widths(layout, num_classes, in_channels)
        super().__init__(2 ** len(layout), smallest_input(len(layout), same_padding), same_padding)
        act_layer = nn.ReLU(inplace=True) if act_layer is None else act_layer
        layers = Layers(act_layer, norm_layer, drop_layer, conv_layer)
        padding = int(same_padding)
        self.encoder = nn.ModuleList(contracting_path(in_channels, layout, padding, layers))
        self.bridge = nn.Sequential(nn.MaxPool2d(2), *bridge(layout[-1], layers))

        self.decoder = nn.ModuleList([])
        previous = layout[-1]
        for index in reversed(range(len(layout))):
            width = layout[index]
            # Interpolation keeps the channels of a level, so they are halved before it rather than by it.
            after = max(width // 2, 1) if bilinear_upsampling and index > 0 else width
            self.decoder.append(UpPath(previous, width, after, layers, bilinear_upsampling, padding))
            previous = after
        self.classifier = nn.Conv2d(layout[0], num_classes, 1)
        init_weights(self)

    def score(self, x: Tensor) -> Tensor:
        """Compute logits from images whose sides are multiples of the stride, or any without padding."""
        features = []
        for level in self.encoder:
            x = level(x)
            features.append(x)
        x = self.bridge(x)
        for up_path in self.decoder:
            x = up_path([features.pop()], x)
        return self.classifier(x)


class DynamicUNet(Segmenter):
    """U-Net with features of any network as its contracting path.

    The expansive path follows `fastai <https://docs.fast.ai/vision.models.unet.html>`_: pixel shuffles for upsampling,
    batch normalization on what the encoder hands over, two convolutions.

    Args:
        encoder: returns features of decreasing resolution, by name.
        num_classes: number of classes K.
        act_layer: activation; ReLU by default.
        norm_layer: creates the normalization from the number of channels. By default there is batch normalization on
            the encoder's features only.
        drop_layer: creates the regularization from its probability ``p``; none by default.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`, which is the default.
        same_padding: pad the convolutions of the expansive path. Otherwise the output loses a margin.
        input_shape: (C, H, W) of an input that the encoder takes, (3, 256, 256) by default. The encoder runs once on
            zeros of that shape, H and W rounded up to multiples of 64, to find out what it returns.
        final_upsampling: double the resolution after the last block, for encoders whose first features have half the
            input's. Otherwise the output has the resolution of these features.

    Raises:
        ValueError: if ``num_classes`` is not positive, the encoder does not take ``input_shape``, or its features are
            not maps whose resolutions divide each other.

    Shape:
        - input: (N, C, H, W), H and W of at least the stride of the encoder
        - output: (N, K, H, W), the logits, where the encoder's first features, doubled or not as asked, have the size
          of the input
    """

    def __init__(
        self,
        encoder: IntermediateLayerGetter,
        num_classes: int = 10,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
        same_padding: bool = True,
        input_shape: tuple[int, int, int] | None = None,
        final_upsampling: bool = False,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"expected num_classes to be at least 1, got {num_classes}")
        widths, strides = _probe(encoder, (3, 256, 256) if input_shape is None else input_shape)
        # The bridge keeps the resolution, so the deepest features meet themselves in the first block.
        scales = [1, *(coarse // fine for fine, coarse in zip(strides[-2::-1], strides[:0:-1], strict=True))]
        super().__init__(strides[-1], strides[-1] * smallest_feature(scales, same_padding), same_padding)
        act_layer = nn.ReLU(inplace=True) if act_layer is None else act_layer
        layers = Layers(act_layer, norm_layer, drop_layer, conv_layer)
        self.encoder = encoder
        self.bridge = nn.Sequential((norm_layer or nn.BatchNorm2d)(widths[-1]), act_layer, *bridge(widths[-1], layers))
        self.decoder = nn.ModuleList(
            UBlock(width, width, after, layers, scale, int(same_padding))
            for width, after, scale in zip(widths[::-1], [*widths[-2::-1], widths[0]], scales, strict=True)
        )
        self.upsample: nn.Sequential | None = None
        if final_upsampling:
            self.upsample = nn.Sequential(
                *conv_sequence(widths[0], 4 * widths[0], *layers, kernel_size=1), nn.PixelShuffle(2)
            )
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)
        # Not the encoder, which may be trained already.
        for module in (self.bridge, self.decoder, self.upsample, self.classifier):
            if module is not None:
                init_weights(module)

    def score(self, x: Tensor) -> Tensor:
        """Compute logits from images whose sides are multiples of the stride, or any without padding."""
        features = list(self.encoder(x).values())
        x = self.bridge(features[-1])
        for block in self.decoder:
            x = block(features.pop(), x)
        if self.upsample is not None:
            x = self.upsample(x)
        return self.classifier(x)


def _probe(encoder: nn.Module, input_shape: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """Run an encoder once, in evaluation mode, and leave it as it was.

    Args:
        encoder: returns feature maps by name.
        input_shape: (C, H, W) of its input.

    Returns:
        the channels and the stride of each feature map
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"expected input_shape to be (C, H, W), all of them positive, got {tuple(input_shape)}")
    channels, *size = input_shape
    height, width = (_PROBE_MULTIPLE * math.ceil(side / _PROBE_MULTIPLE) for side in size)
    example = next(encoder.parameters(), torch.empty(0))
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        with torch.no_grad():
            features = encoder(torch.zeros(1, channels, height, width, device=example.device, dtype=example.dtype))
    except RuntimeError as error:
        raise ValueError(f"the encoder does not take inputs of input_shape={tuple(input_shape)}: {error}") from error
    finally:
        for module in training:
            module.training = True

    shapes = {name: tuple(feature.shape) for name, feature in features.items()}
    if not shapes:
        raise ValueError("the encoder returns no features: name at least one of its layers in return_layers")
    finer, strides = (height, width), []
    for name, shape in shapes.items():
        if len(shape) != 4 or finer[0] % shape[2] or finer[1] % shape[3] or height * shape[3] != width * shape[2]:
            raise ValueError(
                "expected features of shape (N, C, H, W) from an encoder that pads, each of a resolution that divides "
                f"that of the one before: for an input of {height}×{width}, the layers return {shapes}, and {name!r} "
                "does not fit"
            )
        finer = (shape[2], shape[3])
        strides.append(height // shape[2])
    return [shape[1] for shape in shapes.values()], strides


_PRE_PROCESSING = PreProcessing(input_shape=(3, 256, 256))
_LAYOUT = [64, 128, 256, 512]
# The classes of PASCAL VOC, the background included.
_NUM_CLASSES = 21


def _dynamic_unet(
    arch: str,
    build_encoder: Callable[[], nn.Module],
    return_layers: list[str],
    pretrained: bool,
    progress: bool,
    kwargs: dict[str, Any],
) -> DynamicUNet:
    def build(**kwargs: Any) -> DynamicUNet:
        encoder = IntermediateLayerGetter(build_encoder(), {name: str(i) for i, name in enumerate(return_layers)})
        return DynamicUNet(encoder, **kwargs)

    kwargs = {"num_classes": _NUM_CLASSES, **kwargs}
    return build_with_checkpoint(
        build, arch, pretrained=pretrained, checkpoint=None, default=None, progress=progress, kwargs=kwargs
    )


def _fetch(build: Callable[[], ModelT], arch: str) -> ModelT:
    """Build an encoder with its published weights, or say what to do without them."""
    try:
        return build()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DownloadError(
            f"the weights of the encoder of {arch} cannot be fetched ({error}): connect this machine to the network, "
            "or build with pretrained_backbone=False"
        ) from error


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unet(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> UNet:
    """U-Net from `"U-Net: Convolutional Networks for Biomedical Image Segmentation" <https://arxiv.org/abs/1505.04597>`_.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`UNet`; the layout is the paper's by default.

    Returns:
        the model, in training mode
    """
    kwargs = {"layout": _LAYOUT, **kwargs}
    return build_with_checkpoint(
        UNet, "unet", pretrained=pretrained, checkpoint=None, default=None, progress=progress, kwargs=kwargs
    )


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unet2(pretrained: bool = False, progress: bool = True, in_channels: int = 3, **kwargs: Any) -> DynamicUNet:
    """U-Net with the contracting path of the paper and the expansive path of :class:`DynamicUNet`.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        in_channels: channels of the input.
        **kwargs: arguments of :class:`DynamicUNet`; ``num_classes`` is 21 by default.

    Returns:
        the model, in training mode
    """

    def build_encoder() -> nn.Module:
        check_widths(_LAYOUT, _NUM_CLASSES, in_channels)
        encoder = nn.Sequential(*contracting_path(in_channels, _LAYOUT, 1, Layers(nn.ReLU(inplace=True))))
        init_weights(encoder)
        return encoder

    kwargs = {"input_shape": (in_channels, 256, 256), **kwargs}
    return _dynamic_unet("unet2", build_encoder, ["0", "1", "2", "3"], pretrained, progress, kwargs)


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unet_tvvgg11(
    pretrained: bool = False, pretrained_backbone: bool = True, progress: bool = True, **kwargs: Any
) -> DynamicUNet:
    """U-Net with the features of torchvision's VGG-11 as its contracting path.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        pretrained_backbone: load torchvision's ImageNet weights into the encoder.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`DynamicUNet`; ``num_classes`` is 21 by default.

    Returns:
        the model, in training mode

    Raises:
        DownloadError: if the weights of the encoder cannot be fetched.
    """

    def build_encoder() -> nn.Module:
        if pretrained_backbone:
            return _fetch(
                lambda: torchvision.models.vgg11(weights="DEFAULT", progress=progress), "unet_tvvgg11"
            ).features
        # The head is nine tenths of the classifier, and not needed here: it never gets any memory.
        with torch.device("meta"):
            features: nn.Sequential = torchvision.models.vgg11().features
        features.to_empty(device=torch.get_default_device())
        init_weights(features)
        return features

    # The last activation before each pooling.
    return _dynamic_unet("unet_tvvgg11", build_encoder, ["1", "4", "9", "14", "19"], pretrained, progress, kwargs)


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unet_tvresnet34(
    pretrained: bool = False, pretrained_backbone: bool = True, progress: bool = True, **kwargs: Any
) -> DynamicUNet:
    """U-Net with the features of torchvision's ResNet-34 as its contracting path.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        pretrained_backbone: load torchvision's ImageNet weights into the encoder.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`DynamicUNet`; ``num_classes`` is 21 and ``final_upsampling`` True by default.

    Returns:
        the model, in training mode

    Raises:
        DownloadError: if the weights of the encoder cannot be fetched.
    """

    def build_encoder() -> nn.Module:
        if not pretrained_backbone:
            return torchvision.models.resnet34()
        return _fetch(lambda: torchvision.models.resnet34(weights="DEFAULT", progress=progress), "unet_tvresnet34")

    layers = ["relu", "layer1", "layer2", "layer3", "layer4"]
    kwargs = {"final_upsampling": True, **kwargs}
    return _dynamic_unet("unet_tvresnet34", build_encoder, layers, pretrained, progress, kwargs)


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unet_rexnet13(
    pretrained: bool = False,
    pretrained_backbone: bool = True,
    progress: bool = True,
    in_channels: int = 3,
    **kwargs: Any,
) -> DynamicUNet:
    """U-Net with the features of :func:`~holocron.models.classification.rexnet.rexnet1_3x` as its contracting path.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        pretrained_backbone: load the default weights of ``rexnet1_3x`` into the encoder, which takes 3 channels then.
        progress: draw a progress bar while weights are downloaded.
        in_channels: channels of the input.
        **kwargs: arguments of :class:`DynamicUNet`; by default ``num_classes`` is 21, ``final_upsampling`` True and
            ``act_layer`` SiLU.

    Returns:
        the model, in training mode

    Raises:
        ValueError: if ``in_channels`` is not 3 and the encoder is to be pretrained.
        DownloadError: if the weights of the encoder cannot be fetched.
    """

    def build_encoder() -> nn.Module:
        if not pretrained_backbone:
            return rexnet1_3x(in_channels=in_channels).features
        if in_channels != 3:
            raise ValueError(
                f"the weights of the encoder are for 3 channels, not for in_channels={in_channels}: build with "
                "pretrained_backbone=False"
            )
        return _fetch(lambda: rexnet1_3x(pretrained=True, progress=progress), "unet_rexnet13").features

    kwargs = {
        "final_upsampling": True,
        "act_layer": nn.SiLU(inplace=True),
        "input_shape": (in_channels, 256, 256),
        **kwargs,
    }
    # The last block of each resolution, from half to a thirty-second of the input's.
    return _dynamic_unet("unet_rexnet13", build_encoder, ["3", "5", "7", "13", "18"], pretrained, progress, kwargs)
