"""YOLOv2: fully convolutional, with bounding box priors and class probabilities for each box."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import PreProcessing
from holocron.models.classification.darknetv2 import Darknet19_Checkpoint, DarknetBodyV2
from holocron.models.detection.backbone import load_backbone
from holocron.models.detection.grid import GridDetector, GridPredictions, init_objectness
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import ConcatDownsample2d

__all__ = ["YOLOv2", "yolov2"]

# Width and height in cells of a 13 × 13 grid, clustered by k-means from the boxes of Pascal VOC: the priors of the
# authors' configuration.
_VOC_PRIORS = ((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071))
_VOC_GRID = 13

# exp(10) times any prior is beyond the image, and within what float16 can hold.
_LARGEST_LOG_SCALE = 10.0


class YOLOv2(GridDetector):
    """YOLOv2 detector from `"YOLO9000: Better, Faster, Stronger" <https://arxiv.org/abs/1612.08242>`_.

    Finer features of the backbone pass by its last stage, each 2 × 2 pixels of them stacked into one of the coarser
    grid. For each of A priors the head predicts 5 + K numbers a cell, as its channels: (x, y, w, h, objectness), then
    the classes. A sigmoid of x and y gives the center within the cell, the exponential of w and h scales the prior, a
    sigmoid gives the objectness, and a softmax over the classes their probabilities. In training the dictionary of
    losses is that of :class:`GridDetector`; several objects centered in a cell are served by different priors.

    Args:
        layout: (width, number of pairs of convolutions) of each stage of the backbone, two stages or more.
        num_classes: number of classes K.
        in_channels: channels of the images.
        stem_chanels: channels of the first convolution; spelled as the published model spells it.
        anchors: the priors, width and height relative to the image, of shape (A, 2); those of Pascal VOC by default.
        passthrough_ratio: the finer features pass by with 1 / ``passthrough_ratio`` of their channels.
        lambda_obj: weight of the objectness of boxes that are responsible for an object.
        lambda_noobj: weight of the objectness of the other boxes.
        lambda_class: weight of the classification.
        lambda_coords: weight of the coordinates.
        rpn_nms_thresh: IoU in [0, 1] above which the less certain one of two boxes of a class is dropped.
        box_score_thresh: score in [0, 1] below which boxes are dropped.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
        norm_layer: creates the normalization from the number of channels, :class:`torch.nn.BatchNorm2d` by default.
        drop_layer: creates the regularization after each convolution; none by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.
        backbone_norm_layer: creates the normalization of the backbone; ``norm_layer`` by default.

    Raises:
        ValueError: if a number is outside its range, or the priors are not positive and of shape (A, 2).

    Shape:
        - input: (N, in_channels, H, W), or a list of N tensors (in_channels, H, W), with H and W multiples of
          2 ** stages, which is 32 for the published layout
        - output in evaluation mode: for each image ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,)
    """

    anchors: Tensor

    def __init__(
        self,
        layout: list[tuple[int, int]],
        num_classes: int = 20,
        in_channels: int = 3,
        stem_chanels: int = 32,
        anchors: Tensor | None = None,
        passthrough_ratio: int = 8,
        lambda_obj: float = 1,
        lambda_noobj: float = 0.5,
        lambda_class: float = 1,
        lambda_coords: float = 5,
        rpn_nms_thresh: float = 0.7,
        box_score_thresh: float = 0.05,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
        backbone_norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            rpn_nms_thresh,
            box_score_thresh,
            lambda_obj,
            lambda_noobj,
            lambda_class,
            lambda_coords,
        )
        act_layer = act_layer or nn.LeakyReLU(0.1, inplace=True)
        norm_layer = norm_layer or nn.BatchNorm2d
        self.register_buffer("anchors", _default_anchors() if anchors is None else _checked_anchors(anchors))
        self.backbone = DarknetBodyV2(
            layout,
            in_channels,
            stem_chanels,
            True,
            act_layer,
            backbone_norm_layer or norm_layer,
            drop_layer,
            conv_layer,
        )
        self.stride: int = 2 ** len(layout)
        width, finer_width = layout[-1][0], layout[-2][0]
        if not 1 <= passthrough_ratio <= finer_width:
            raise ValueError(f"expected passthrough_ratio to be in [1, {finer_width}], got {passthrough_ratio}")
        passed_width = finer_width // passthrough_ratio
        conv = partial(
            conv_sequence,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_layer=drop_layer,
            conv_layer=conv_layer,
            bias=False,
        )
        self.block5 = nn.Sequential(
            *conv(width, width, kernel_size=3, padding=1), *conv(width, width, kernel_size=3, padding=1)
        )
        self.passthrough_layer = nn.Sequential(
            *conv(finer_width, passed_width, kernel_size=1), ConcatDownsample2d(scale_factor=2)
        )
        self.block6 = nn.Sequential(*conv(width + 4 * passed_width, width, kernel_size=3, padding=1))
        self.head = nn.Conv2d(width, len(self.anchors) * (5 + num_classes), 1)
        for block in (self.block5, self.passthrough_layer, self.block6):
            init_weights(block)
        # Small, so that the boxes start as the priors.
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        init_objectness(self.head.bias.detach().view(len(self.anchors), -1)[:, 4])

    def raw_outputs(self, x: Tensor) -> Tensor:
        """Run the network on images of shape (N, in_channels, H, W).

        Args:
            x: images, of a height and width that the stride of 2 ** stages divides.

        Returns:
            numbers of shape (N, A · (5 + K), H / stride, W / stride)

        Raises:
            ValueError: if the images are of another size.
        """
        if x.ndim != 4 or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(
                f"expected images whose sides are multiples of {self.stride} pixels, got a tensor of shape "
                f"{tuple(x.shape)}: resize or pad them"
            )
        features, finer = self.backbone(x)
        return self.head(self.block6(torch.cat([self.passthrough_layer(finer), self.block5(features)], dim=1)))

    def interpret(self, raw: Tensor) -> GridPredictions:
        """Tell the numbers of the head apart.

        Args:
            raw: what :meth:`raw_outputs` gives, (N, A · (5 + K), H, W).

        Returns:
            predictions on the H × W grid
        """
        numbers = raw.unflatten(1, (len(self.anchors), 5 + self.num_classes)).permute(0, 3, 4, 1, 2)
        size = self.anchors.to(raw.dtype) * numbers[..., 2:4].clamp(max=_LARGEST_LOG_SCALE).exp()
        return GridPredictions(
            numbers[..., :2].sigmoid(), size, numbers[..., 4].sigmoid(), numbers[..., 5:].softmax(dim=-1)
        )


def _default_anchors() -> Tensor:
    return torch.tensor(_VOC_PRIORS) / _VOC_GRID


def _checked_anchors(anchors: Tensor) -> Tensor:
    """A copy of priors of shape (A, 2), in float32 at least."""
    if anchors.ndim != 2 or anchors.shape[1] != 2 or len(anchors) == 0:
        raise ValueError(f"expected anchors of shape (A, 2), width and height, got {tuple(anchors.shape)}")
    if not (torch.isfinite(anchors) & (anchors > 0)).all():
        raise ValueError(f"expected anchors to be positive, relative to the image, got {anchors.tolist()}")
    return anchors.detach().clone().to(torch.promote_types(anchors.dtype, torch.float32))


@register_model(task="detection", pre_processing=PreProcessing(input_shape=(3, 416, 416)))
def yolov2(pretrained: bool = False, progress: bool = True, pretrained_backbone: bool = True, **kwargs: Any) -> YOLOv2:
    """YOLOv2 from `"YOLO9000: Better, Faster, Stronger" <https://arxiv.org/abs/1612.08242>`_, with the layers of
    DarkNet-19 as its backbone.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        pretrained_backbone: start from the weights of DarkNet-19, with the batch normalization of the backbone frozen
            unless ``backbone_norm_layer`` says otherwise.
        **kwargs: ``num_classes`` (20 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`YOLOv2`.

    Returns:
        the model, in training mode
    """
    checkpoint = kwargs.pop("checkpoint", None)
    load = pretrained_backbone and checkpoint is None and not pretrained
    if load:
        kwargs.setdefault("backbone_norm_layer", FrozenBatchNorm2d)
    model = build_with_checkpoint(
        partial(YOLOv2, [(64, 0), (128, 1), (256, 1), (512, 2), (1024, 2)]),
        "yolov2",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=None,
        progress=progress,
        kwargs=kwargs,
    )
    if load:
        load_backbone(model.backbone, Darknet19_Checkpoint.DEFAULT.value, progress)
    return model
