"""UNet+ and UNet++: U-Nets of every depth nested in one another, whose skip connections are nodes of their own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import init_weights
from holocron.models.checkpoints import PreProcessing
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.models.segmentation.blocks import (
    Layers,
    Segmenter,
    UpPath,
    bridge,
    check_widths,
    contracting_path,
    smallest_input,
)

__all__ = ["UNetp", "UNetpp", "unetp", "unetpp"]


class _NestedUNet(Segmenter):
    """A triangle of nodes: each joins those to its left with the one below, which sees twice as coarsely.

    Args:
        layout: channels of each level.
        in_channels: channels of the input.
        num_classes: number of classes.
        layers: kinds of layers.
        dense: join all nodes to the left, the encoder's included, and not only the next one.
    """

    def __init__(self, layout: list[int], in_channels: int, num_classes: int, layers: Layers, dense: bool) -> None:
        check_widths(layout, num_classes, in_channels)
        super().__init__(2 ** len(layout), smallest_input(len(layout), same_padding=True))
        if layers.act_layer is None:
            layers = layers._replace(act_layer=nn.ReLU(inplace=True))
        self.dense = dense
        self.encoder = nn.ModuleList(contracting_path(in_channels, layout, 1, layers))
        self.bridge = nn.Sequential(nn.MaxPool2d(2), *bridge(layout[-1], layers))

        self.decoder = nn.ModuleList([])
        below = layout[-1]
        for num_nodes, width in enumerate(reversed(layout), start=1):
            self.decoder.append(
                nn.ModuleList(
                    UpPath(below, width * (index if dense else 1), width, layers) for index in range(1, num_nodes + 1)
                )
            )
            below = width
        self.classifier = nn.Conv2d(layout[0], num_classes, 1)
        init_weights(self)

    def score(self, x: Tensor) -> Tensor:
        """Compute logits from images whose sides are multiples of the stride."""
        features = []
        for level in self.encoder:
            x = level(x)
            features.append(x)
        below = [self.bridge(x)]
        # From the deepest level up; a node needs the one below that is as far from the encoder as its left neighbour.
        for nodes, feature in zip(self.decoder, reversed(features), strict=True):
            assert isinstance(nodes, nn.ModuleList)
            row = [feature]
            for node, coarse in zip(nodes, below, strict=True):
                row.append(node(row if self.dense else row[-1:], coarse))
            below = row
        return self.classifier(below[-1])


class UNetp(_NestedUNet):
    """UNet+ from `"UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation" <https://arxiv.org/abs/1912.05074>`_.

    Each node joins its left neighbour, upsampled bilinearly, with the node below.

    Args:
        layout: channels of each level of the contracting path.
        in_channels: channels of the input.
        num_classes: number of classes K.
        act_layer: activation; ReLU by default.
        norm_layer: creates the normalization from the number of channels; none by default.
        drop_layer: creates the regularization from its probability ``p``; none by default.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`, which is the default.

    Raises:
        ValueError: if there are no levels, or a number of channels or classes is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W of at least ``2 ** len(layout)`` pixels
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
        layers = Layers(act_layer, norm_layer, drop_layer, conv_layer)
        super().__init__(layout, in_channels, num_classes, layers, dense=False)


class UNetpp(_NestedUNet):
    """UNet++ from `"UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation" <https://arxiv.org/abs/1912.05074>`_.

    Each node joins all nodes to its left with the node below, upsampled bilinearly. The last node of the finest level
    is classified; there is no deep supervision.

    Args:
        layout: channels of each level of the contracting path.
        in_channels: channels of the input.
        num_classes: number of classes K.
        act_layer: activation; ReLU by default.
        norm_layer: creates the normalization from the number of channels; none by default.
        drop_layer: creates the regularization from its probability ``p``; none by default.
        conv_layer: creates the convolutions, with the arguments of :class:`torch.nn.Conv2d`, which is the default.

    Raises:
        ValueError: if there are no levels, or a number of channels or classes is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W of at least ``2 ** len(layout)`` pixels
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
        layers = Layers(act_layer, norm_layer, drop_layer, conv_layer)
        super().__init__(layout, in_channels, num_classes, layers, dense=True)


_PRE_PROCESSING = PreProcessing(input_shape=(3, 256, 256))
_LAYOUT = [64, 128, 256, 512]


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unetp(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> UNetp:
    """UNet+ from `"UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation" <https://arxiv.org/abs/1912.05074>`_.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`UNetp`; the layout is the paper's by default.

    Returns:
        the model, in training mode
    """
    kwargs = {"layout": _LAYOUT, **kwargs}
    return build_with_checkpoint(
        UNetp, "unetp", pretrained=pretrained, checkpoint=None, default=None, progress=progress, kwargs=kwargs
    )


@register_model(task="segmentation", pre_processing=_PRE_PROCESSING)
def unetpp(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> UNetpp:
    """UNet++ from `"UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation" <https://arxiv.org/abs/1912.05074>`_.

    Args:
        pretrained: load published weights; there are none, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`UNetpp`; the layout is the paper's by default.

    Returns:
        the model, in training mode
    """
    kwargs = {"layout": _LAYOUT, **kwargs}
    return build_with_checkpoint(
        UNetpp, "unetpp", pretrained=pretrained, checkpoint=None, default=None, progress=progress, kwargs=kwargs
    )
