"""DarkNet-19: batch-normalized and fully convolutional, the backbone of YOLOv2."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import Checkpoint, imagenette_checkpoint
from holocron.models.classification.darknet import check_image, check_sizes
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import GlobalAvgPool2d

__all__ = ["Darknet19_Checkpoint", "DarknetV2", "darknet19"]


class Darknet19_Checkpoint(Enum):  # noqa: N801 - the published name
    """Weights of :func:`darknet19`."""

    IMAGENETTE = imagenette_checkpoint(
        "darknet19",
        release="v0.2.1",
        sha256="32fd3f979586556554652d650c44a59747c7762d81140cadbcd795179a3877ec",
        size=79_387_724,
        num_params=19_827_626,
        top1=0.9386,
        top5=0.9936,
    )
    DEFAULT = IMAGENETTE


class DarknetBodyV2(nn.Module):
    """The layers of DarkNet-19 before its classifier, which YOLOv2 starts with.

    Each stage starts with a max pooling and a 3 × 3 convolution to its width. Pairs of convolutions follow: a 1 × 1
    one to half of the width, and a 3 × 3 one back.

    Args:
        layout: (width, number of pairs) of each stage.
        in_channels: channels of the input.
        stem_channels: channels of the first convolution, which keeps the resolution.
        passthrough: whether to give the features of the last but one stage as well.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
        norm_layer: creates the normalization from the number of channels, :class:`torch.nn.BatchNorm2d` by default.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.

    Raises:
        ValueError: if there are no stages, or fewer than two with ``passthrough``, or a number is out of range.

    Shape:
        - input: (N, in_channels, H, W), H and W at least 2 ** stages
        - output: (N, layout[-1][0], H // 2 ** stages, W // 2 ** stages); with ``passthrough`` a pair of this and
          (N, layout[-2][0], H // 2 ** (stages - 1), W // 2 ** (stages - 1))
    """

    def __init__(
        self,
        layout: Sequence[tuple[int, int]],
        in_channels: int = 3,
        stem_channels: int = 32,
        passthrough: bool = False,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            in_channels=in_channels,
            stem_channels=stem_channels,
            # Half of each is the width of some convolution.
            half_widths=[width // 2 for width, _ in layout],
        )
        if passthrough and len(layout) < 2:
            raise ValueError(f"expected at least 2 stages for passthrough=True, got layout={list(layout)}")
        if min(num_pairs for _, num_pairs in layout) < 0:
            raise ValueError(f"expected no negative number of pairs of convolutions, got layout={list(layout)}")
        conv = partial(
            conv_sequence,
            act_layer=act_layer or nn.LeakyReLU(0.1, inplace=True),
            norm_layer=norm_layer or nn.BatchNorm2d,
            drop_layer=drop_layer,
            conv_layer=conv_layer,
            bias=False,
        )
        self.stem = nn.Sequential(*conv(in_channels, stem_channels, kernel_size=3, padding=1))
        stages: list[nn.Module] = []
        previous = stem_channels
        for width, num_pairs in layout:
            stage = [nn.MaxPool2d(2), *conv(previous, width, kernel_size=3, padding=1)]
            for _ in range(num_pairs):
                stage += conv(width, width // 2, kernel_size=1)
                stage += conv(width // 2, width, kernel_size=3, padding=1)
            stages.append(nn.Sequential(*stage))
            previous = width
        self.layers = nn.Sequential(*stages)
        self.passthrough: bool = passthrough
        self.smallest_input: int = 2 ** len(layout)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the features of images ``x``, those of the last stage before those of the one that it follows."""
        check_image(x, self.smallest_input)
        finer = self.layers[:-1](self.stem(x))
        features = self.layers[-1](finer)
        return (features, finer) if self.passthrough else features


class DarknetV2(nn.Sequential):
    """DarkNet-19 classifier from `"YOLO9000: Better, Faster, Stronger" <https://arxiv.org/abs/1612.08242>`_.

    Args:
        layout: (width, number of pairs) of each stage.
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
        - input: (N, in_channels, H, W), H and W at least 2 ** stages
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
        body = DarknetBodyV2(layout, in_channels, stem_channels, False, act_layer, norm_layer, drop_layer, conv_layer)
        classifier = nn.Conv2d(layout[-1][0], num_classes, 1)
        nn.init.normal_(classifier.weight, std=0.01)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
        # The paper classifies each position and averages, which gives the same for more work.
        pool = GlobalAvgPool2d()
        super().__init__(OrderedDict(features=body, pool=pool, classifier=classifier, flatten=nn.Flatten()))


@register_model(checkpoints=Darknet19_Checkpoint)
def darknet19(
    pretrained: bool = False, checkpoint: Checkpoint | None = None, progress: bool = True, **kwargs: Any
) -> DarknetV2:
    """DarkNet-19 from `"YOLO9000: Better, Faster, Stronger" <https://arxiv.org/abs/1612.08242>`_.

    Args:
        pretrained: load the default weights.
        checkpoint: load these weights instead, for example ``Darknet19_Checkpoint.IMAGENETTE.value``.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: ``num_classes`` (10 by default), ``in_channels`` (3 by default) and the layers of :class:`DarknetV2`.

    Returns:
        the model, in training mode
    """
    return build_with_checkpoint(
        partial(DarknetV2, [(64, 0), (128, 1), (256, 1), (512, 2), (1024, 2)]),
        "darknet19",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=Darknet19_Checkpoint.DEFAULT,
        progress=progress,
        kwargs=kwargs,
    )
