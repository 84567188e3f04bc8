"""YOLO, the first: one look at the whole image, and a grid of cells that say what is centered in them."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import PreProcessing
from holocron.models.classification.darknet import DarknetBodyV1
from holocron.models.detection.grid import GridDetector, GridPredictions, init_objectness
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model

__all__ = ["YOLOv1", "yolov1"]

_GRID = 7


class YOLOv1(GridDetector):
    """YOLO detector from `"You Only Look Once: Unified, Real-Time Object Detection"
    <https://arxiv.org/abs/1506.02640>`_.

    A chain of convolutions, then two fully connected layers that predict, for each cell of a 7 × 7 grid, boxes and the
    probabilities of the classes, which the boxes of a cell have in common. The head answers with 7 · 7 · (5A + K)
    numbers: for each cell, row by row, A times (x, y, w, h, objectness), then the K classes. A sigmoid makes the five
    numbers of a box the center within the cell, the size relative to the image, and the objectness; a softmax makes the
    others probabilities. In training the dictionary of losses is that of :class:`GridDetector`; if objects of several
    classes are centered in a cell, its probabilities are trained to be their shares.

    Args:
        layout: output channels of the convolutions of the backbone, stage by stage.
        num_classes: number of classes K.
        in_channels: channels of the images.
        stem_channels: channels of the first convolution.
        num_anchors: number of boxes A of each cell.
        lambda_obj: weight of the objectness of boxes that are responsible for an object.
        lambda_noobj: weight of the objectness of the other boxes.
        lambda_class: weight of the classification.
        lambda_coords: weight of the coordinates.
        rpn_nms_thresh: IoU in [0, 1] above which the less certain one of two boxes of a class is dropped.
        box_score_thresh: score in [0, 1] below which boxes are dropped.
        head_hidden_nodes: width of the first fully connected layer, 4096 in the paper.
        act_layer: activation, leaky ReLU of slope 0.1 by default.
        norm_layer: creates the normalization from the number of channels; by default there is none.
        drop_layer: creates the regularization after the convolutions behind the backbone; none by default.
        conv_layer: creates the convolutions behind the backbone, :class:`torch.nn.Conv2d` by default.
        backbone_norm_layer: creates the normalization of the backbone; ``norm_layer`` by default.

    Raises:
        ValueError: if a number is outside its range.

    Shape:
        - input: (N, in_channels, S, S), or a list of N tensors (in_channels, S, S), with S = 7 · 4 · 2 ** stages, which
          is 448 for the published layout
        - output in evaluation mode: for each image ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,)
    """

    def __init__(
        self,
        layout: list[list[int]],
        num_classes: int = 20,
        in_channels: int = 3,
        stem_channels: int = 64,
        num_anchors: int = 2,
        lambda_obj: float = 1,
        lambda_noobj: float = 0.5,
        lambda_class: float = 1,
        lambda_coords: float = 5.0,
        rpn_nms_thresh: float = 0.7,
        box_score_thresh: float = 0.05,
        head_hidden_nodes: int = 512,
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
        for name, count in (("num_anchors", num_anchors), ("head_hidden_nodes", head_hidden_nodes)):
            if count < 1:
                raise ValueError(f"expected {name} to be at least 1, got {count}")
        act_layer = act_layer or nn.LeakyReLU(0.1, inplace=True)
        self.num_anchors: int = num_anchors
        self.backbone = DarknetBodyV1(layout, in_channels, stem_channels, act_layer, backbone_norm_layer or norm_layer)
        width = layout[-1][-1]
        # The stem and each stage halve the resolution, and so does the second of these convolutions.
        self.input_size: int = _GRID * 2 ** (len(layout) + 2)
        convolutions: list[nn.Module] = []
        for stride in (1, 2, 1, 1):
            convolutions += conv_sequence(
                width,
                width,
                act_layer,
                norm_layer,
                drop_layer,
                conv_layer,
                kernel_size=3,
                padding=1,
                stride=stride,
                bias=norm_layer is None,
            )
        self.block4 = nn.Sequential(*convolutions)
        head = nn.Linear(head_hidden_nodes, _GRID**2 * (5 * num_anchors + num_classes))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(width * _GRID**2, head_hidden_nodes), act_layer, nn.Dropout(0.5), head
        )
        init_weights(self.block4)
        init_weights(self.classifier)
        init_objectness(head.bias.detach().view(_GRID**2, -1)[:, 4 : 5 * num_anchors : 5])

    def raw_outputs(self, x: Tensor) -> Tensor:
        """Run the network on images of shape (N, in_channels, S, S).

        Args:
            x: images, of the one size S that the fully connected layers allow.

        Returns:
            numbers of shape (N, 7 · 7 · (5A + K)), in the order that the class tells

        Raises:
            ValueError: if the images are of another size.
        """
        size = self.input_size
        if x.ndim != 4 or tuple(x.shape[2:]) != (size, size):
            raise ValueError(
                f"expected images of {size} x {size} pixels, got a tensor of shape {tuple(x.shape)}: resize them"
            )
        return self.classifier(self.block4(self.backbone(x)))

    def interpret(self, raw: Tensor) -> GridPredictions:
        """Tell the numbers of the head apart.

        Args:
            raw: what :meth:`raw_outputs` gives, (N, 7 · 7 · (5A + K)).

        Returns:
            predictions on the 7 × 7 grid
        """
        numbers = raw.unflatten(1, (_GRID, _GRID, 5 * self.num_anchors + self.num_classes))
        boxes = numbers[..., : 5 * self.num_anchors].unflatten(-1, (self.num_anchors, 5)).sigmoid()
        probabilities = numbers[..., 5 * self.num_anchors :].softmax(dim=-1)
        return GridPredictions(boxes[..., :2], boxes[..., 2:4], boxes[..., 4], probabilities[:, :, :, None])


@register_model(task="detection", pre_processing=PreProcessing(input_shape=(3, 448, 448)))
def yolov1(pretrained: bool = False, progress: bool = True, pretrained_backbone: bool = True, **kwargs: Any) -> YOLOv1:
    """YOLO from `"You Only Look Once: Unified, Real-Time Object Detection" <https://arxiv.org/abs/1506.02640>`_, with
    the layers of DarkNet-24 as its backbone.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        pretrained_backbone: start from the weights of DarkNet-24. None are published: the backbone is initialized
            afresh either way, and a warning says so.
        **kwargs: ``num_classes`` (20 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`YOLOv1`.

    Returns:
        the model, in training mode
    """
    checkpoint = kwargs.pop("checkpoint", None)
    layout = [[192], [128, 256, 256, 512], [*([256, 512] * 4), 512, 1024], [512, 1024] * 2]
    model = build_with_checkpoint(
        partial(YOLOv1, layout),
        "yolov1",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=None,
        progress=progress,
        kwargs=kwargs,
    )
    if pretrained_backbone and checkpoint is None:
        warnings.warn(
            "no weights are published for darknet24: the backbone of yolov1 is untrained. Pass "
            "pretrained_backbone=False to say that this is intended",
            stacklevel=2,
        )
    return model
