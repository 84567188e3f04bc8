"""DarkNet-24: the chain of convolutions and poolings that the first YOLO sees with."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = ["DarknetV1", "darknet24"]


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Raise a ValueError unless all of these numbers, of channels, blocks or classes, are positive.

    Args:
        **sizes: a number or a list of them, by the name that the message gives it.
    """
    for name, values in sizes.items():
        values = [values] if isinstance(values, int) else values
        if not values or min(values) < 1:
            raise ValueError(f"expected {name} to be at least 1, got {min(values) if values else 'none'}")


def check_image(x: Tensor, smallest: int) -> None:
    """Raise a ValueError unless images are large enough to be pooled as often as a network does.

    Args:
        x: batch of images.
        smallest: what the height and the width have to be, in pixels.
    """
    if x.ndim != 4:
        raise ValueError(f"expected images of shape (N, C, H, W), got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if height < smallest or width < smallest:
        raise ValueError(f"expected images of {smallest} x {smallest} pixels or more, got {height} x {width}")


def conv_chain(conv: Callable[..., list[nn.Module]], channels: Sequence[int]) -> list[nn.Module]:
    """Convolutions that lead from one number of channels to the next: 3 × 3 where they widen, 1 × 1 elsewhere.

    Args:
        conv: creates a convolution and what follows it, as :func:`holocron.models.blocks.conv_sequence` does.
        channels: channels of the input, then of the output of each convolution.

    Returns:
        modules to be put in a row
    """
    return [
        layer
        for given, made in pairwise(channels)
        for layer in conv(given, made, **({"kernel_size": 3, "padding": 1} if made > given else {"kernel_size": 1}))
    ]


class DarknetBodyV1(nn.Module):
    """The layers of DarkNet-24 before its classifier, which YOLOv1 starts with.

    A 7 × 7 convolution halves the resolution, and so does the max pooling at the start of each stage. Convolutions that
    widen are 3 × 3, the others 1 × 1.

    Args:
        layout: output channels of the convolutions, stage by stage.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
        norm_layer: creates the normalization from the number of channels; by default there is none, and convolutions
            have a bias.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.

    Raises:
        ValueError: if there are no stages, one of them is empty, or a number is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W at least 2 ** (stages + 1) - 1
        - output: (N, layout[-1][-1], H / 2 ** (stages + 1), W / 2 ** (stages + 1)), rounded down but at the first step
    """

    def __init__(
        self,
        layout: Sequence[Sequence[int]],
        in_channels: int = 3,
        stem_channels: int = 64,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, stem_channels=stem_channels, stages=len(layout))
        for widths in layout:
            check_sizes(layout=widths)
        act_layer = act_layer or nn.LeakyReLU(0.1, inplace=True)
        conv = partial(
            conv_sequence,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_layer=drop_layer,
            conv_layer=conv_layer,
            bias=norm_layer is None,
        )
        self.stem = nn.Sequential(*conv(in_channels, stem_channels, kernel_size=7, padding=3, stride=2))
        stages: list[nn.Module] = []
        previous = stem_channels
        for widths in layout:
            stages.append(nn.Sequential(nn.MaxPool2d(2), *conv_chain(conv, [previous, *widths])))
            previous = widths[-1]
        self.layers = nn.Sequential(*stages)
        self.smallest_input: int = 2 ** (len(layout) + 1) - 1
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features of images ``x``."""
        check_image(x, self.smallest_input)
        return self.layers(self.stem(x))


class DarknetV1(nn.Sequential):
    """DarkNet-24 classifier from `"You Only Look Once: Unified, Real-Time Object Detection"
    <https://arxiv.org/abs/1506.02640>`_.

    Args:
        layout: output channels of the convolutions, stage by stage.
        num_classes: number of classes K.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
        norm_layer: creates the normalization from the number of channels; by default there is none, and convolutions
            have a bias.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.

    Raises:
        ValueError: if there are no stages, one of them is empty, or a number is not positive.

    Shape:
        - input: (N, in_channels, H, W), H and W at least 2 ** (stages + 1) - 1
        - output: (N, K), the logits
    """

    def __init__(
        self,
        layout: Sequence[Sequence[int]],
        num_classes: int = 10,
        in_channels: int = 3,
        stem_channels: int = 64,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        check_sizes(num_classes=num_classes)
        body = DarknetBodyV1(layout, in_channels, stem_channels, act_layer, norm_layer, drop_layer, conv_layer)
        classifier = nn.Linear(layout[-1][-1], num_classes)
        init_weights(classifier)
        super().__init__(OrderedDict(features=body, pool=GlobalAvgPool2d(flatten=True), classifier=classifier))


@register_model()
def darknet24(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> DarknetV1:
    """DarkNet-24 from `"You Only Look Once: Unified, Real-Time Object Detection" <https://arxiv.org/abs/1506.02640>`_.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the layers of :class:`DarknetV1`.

    Returns:
        the model, in training mode
    """
    layout = [[192], [128, 256, 256, 512], [*([256, 512] * 4), 512, 1024], [512, 1024] * 2]
    return build_with_checkpoint(
        partial(DarknetV1, layout),
        "darknet24",
        pretrained=pretrained,
        checkpoint=None,
        default=None,
        progress=progress,
        kwargs=kwargs,
    )
