"""YOLOv4: three grids of cells, and features that go up and down between them before they are read."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.ops.misc import FrozenBatchNorm2d

from holocron.models.blocks import conv_sequence, init_weights
from holocron.models.checkpoints import PreProcessing
from holocron.models.classification.darknet import conv_chain
from holocron.models.classification.darknetv4 import CSPDarknet53_Mish_Checkpoint, DarknetBodyV4
from holocron.models.detection.backbone import load_backbone
from holocron.models.detection.detector import Detector, GroundTruth
from holocron.models.loading import build_with_checkpoint
from holocron.models.registry import register_model
from holocron.nn.modules.downsample import SPP
from holocron.nn.modules.dropblock import DropBlock2d
from holocron.ops.boxes import ciou_loss

__all__ = ["YOLOv4", "yolov4"]

RawMaps = tuple[Tensor, Tensor, Tensor]
ConvFactory = Callable[..., list[nn.Module]]

_NUM_SCALES = 3
# Width and height in pixels of images of 608 x 608, for the finest grid, the middle one and the coarsest: the priors of
# the authors' configuration for COCO.
_COCO_PRIORS = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
_COCO_SIZE = 608
# How far a center may be from its cell: the sigmoid is stretched about its middle by these factors, so that centers on
# the border of a cell need no infinite number ("grid sensitivity" in the paper). Those of the authors' configuration.
_STRETCH = (1.2, 1.1, 1.05)
# exp(10) times any prior is beyond the image; without a limit an early step could make a box of infinite size.
_LARGEST_LOG_SCALE = 10.0
# A prediction that overlaps an object by more than this is not taught that there is none, be it another's to answer.
_IGNORE_IOU = 0.7
# Most cells are empty. Objectness that starts here keeps their sum from drowning everything else in the first steps.
_INITIAL_OBJECTNESS = 0.01


class Predictions(NamedTuple):
    """What the head says about P boxes an image, for N images.

    Attributes:
        boxes: (N, P, 4), as (xmin, ymin, xmax, ymax) relative to the image, which they may exceed.
        objectness: (N, P), logit of there being an object.
        classes: (N, P, K), logit of each class, independently of the others.
    """

    boxes: Tensor
    objectness: Tensor
    classes: Tensor


class PAN(nn.Module):
    """Merge upsampled coarse features with finer ones, as in `"Path Aggregation Network for Instance Segmentation"
    <https://arxiv.org/abs/1803.01534>`_ with concatenation in place of the sum.

    Args:
        coarse_channels: channels of the coarse features.
        fine_channels: channels of the fine features.
        conv: creates a convolution and what follows it, as :func:`holocron.models.blocks.conv_sequence` does.

    Shape:
        - coarse: (N, coarse_channels, H, W)
        - fine: (N, fine_channels, 2H, 2W)
        - output: (N, fine_channels // 2, 2H, 2W)
    """

    def __init__(self, coarse_channels: int, fine_channels: int, conv: ConvFactory) -> None:
        super().__init__()
        half = fine_channels // 2
        self.conv1 = nn.Sequential(*conv(coarse_channels, half, kernel_size=1))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv2 = nn.Sequential(*conv(fine_channels, half, kernel_size=1))
        self.convs = nn.Sequential(*conv_chain(conv, [2 * half, half, 2 * half, half, 2 * half, half]))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Merge ``coarse`` into ``fine``."""
        return self.convs(torch.cat([self.conv2(fine), self.up(self.conv1(coarse))], dim=1))


class Neck(nn.Module):
    """Pool the coarsest features over several windows, and bring what they tell to the finer ones.

    Args:
        widths: channels of the three feature maps, the finest first.
        conv: creates a convolution and what follows it, as :func:`holocron.models.blocks.conv_sequence` does.

    Shape:
        - input: three maps (N, widths[i], H / 2 ** i, W / 2 ** i)
        - output: three maps (N, widths[i] // 2, H / 2 ** i, W / 2 ** i)
    """

    def __init__(self, widths: Sequence[int], conv: ConvFactory) -> None:
        super().__init__()
        fine, middle, coarse = widths
        half = coarse // 2
        self.fpn = nn.Sequential(
            *conv_chain(conv, [coarse, half, 2 * half, half]),
            SPP([5, 9, 13]),
            *conv_chain(conv, [4 * half, half, 2 * half, half]),
        )
        self.pan1 = PAN(half, middle, conv)
        self.pan2 = PAN(middle // 2, fine, conv)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Enrich ``features``, given and returned with the finest first."""
        fine, middle, coarse = features
        coarse = self.fpn(coarse)
        middle = self.pan1(coarse, middle)
        return self.pan2(middle, fine), middle, coarse


class AnchorGrid(nn.Module):
    """Tell the numbers of one map of the head apart.

    For each of A priors the map has 5 + K channels: (x, y, w, h, objectness), then the classes. A stretched sigmoid of
    x and y gives the center within the cell, the exponential of w and h scales the prior.

    Args:
        anchors: the priors, width and height relative to the image, of shape (A, 2).
        num_classes: number of classes K.
        stretch: factor that the sigmoid is stretched by, about its middle.
    """

    anchors: Tensor

    def __init__(self, anchors: Tensor, num_classes: int, stretch: float) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors)
        self.num_classes = num_classes
        self.stretch = stretch

    def forward(self, raw: Tensor) -> Predictions:
        """Make predictions of ``raw``, of shape (N, A · (5 + K), H, W): prior by prior, and row by row in each."""
        # Half precision would move boxes by pixels.
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        height, width = raw.shape[2:]
        numbers = raw.unflatten(1, (len(self.anchors), 5 + self.num_classes)).permute(0, 1, 3, 4, 2)
        column = torch.arange(width, dtype=raw.dtype, device=raw.device)
        row = torch.arange(height, dtype=raw.dtype, device=raw.device)
        within = numbers[..., :2].sigmoid() * self.stretch - (self.stretch - 1) / 2
        x = (within[..., 0] + column) / width
        y = (within[..., 1] + row[:, None]) / height
        priors = self.anchors.to(raw.dtype)[:, None, None]
        half_size = priors * numbers[..., 2:4].clamp(max=_LARGEST_LOG_SCALE).exp() / 2
        center = torch.stack([x, y], dim=-1)
        boxes = torch.cat([center - half_size, center + half_size], dim=-1)
        return Predictions(boxes.flatten(1, 3), numbers[..., 4].flatten(1, 3), numbers[..., 5:].flatten(1, 3))


class YOLOv4Head(nn.Module):
    """Read the maps from the finest to the coarsest, each with what the one before it tells.

    Args:
        widths: twice the channels of the three maps, the finest first.
        num_classes: number of classes K.
        anchors: the priors of each map, width and height relative to the image, of shape (3, A, 2).
        conv: creates a convolution and what follows it, as :func:`holocron.models.blocks.conv_sequence` does.

    Shape:
        - input: three maps (N, widths[i] // 2, H / 2 ** i, W / 2 ** i)
        - output: three maps (N, A · (5 + K), H / 2 ** i, W / 2 ** i)
    """

    def __init__(self, widths: Sequence[int], num_classes: int, anchors: Tensor, conv: ConvFactory) -> None:
        super().__init__()
        fine, middle, coarse = (width // 2 for width in widths)
        out_channels = anchors.shape[1] * (5 + num_classes)
        last = partial(conv, drop_layer=None, kernel_size=3, padding=1)
        self.head1 = nn.Sequential(*last(fine, 2 * fine), nn.Conv2d(2 * fine, out_channels, 1))
        self.yolo1 = AnchorGrid(anchors[0], num_classes, _STRETCH[0])
        self.pre_head2 = nn.Sequential(*conv(fine, middle, kernel_size=3, padding=1, stride=2))
        self.head2_1 = nn.Sequential(*conv_chain(conv, [2 * middle, middle, 2 * middle, middle, 2 * middle, middle]))
        self.head2_2 = nn.Sequential(*last(middle, 2 * middle), nn.Conv2d(2 * middle, out_channels, 1))
        self.yolo2 = AnchorGrid(anchors[1], num_classes, _STRETCH[1])
        self.pre_head3 = nn.Sequential(*conv(middle, coarse, kernel_size=3, padding=1, stride=2))
        self.head3 = nn.Sequential(
            *conv_chain(conv, [2 * coarse, coarse, 2 * coarse, coarse, 2 * coarse, coarse, 2 * coarse]),
            nn.Conv2d(2 * coarse, out_channels, 1),
        )
        self.yolo3 = AnchorGrid(anchors[2], num_classes, _STRETCH[2])
        init_weights(self)
        for head in (self.head1, self.head2_2, self.head3):
            _init_output(head[-1], anchors.shape[1])

    def forward(self, features: Sequence[Tensor]) -> RawMaps:
        """Read ``features``, the finest first."""
        fine, middle, coarse = features
        middle = self.head2_1(torch.cat([self.pre_head2(fine), middle], dim=1))
        coarse = torch.cat([self.pre_head3(middle), coarse], dim=1)
        return self.head1(fine), self.head2_2(middle), self.head3(coarse)

    def interpret(self, raw: RawMaps) -> Predictions:
        """Put the predictions of all maps in a row, those of the finest first."""
        fine, middle, coarse = raw
        predictions = (self.yolo1(fine), self.yolo2(middle), self.yolo3(coarse))
        return Predictions(*(torch.cat(parts, dim=1) for parts in zip(*predictions, strict=True)))


class YOLOv4(Detector[RawMaps]):
    r"""YOLOv4 detector from `"YOLOv4: Optimal Speed and Accuracy of Object Detection"
    <https://arxiv.org/abs/2004.10934>`_.

    CSPDarkNet gives features at three scales. Spatial pyramid pooling and a path aggregation network exchange what they
    tell, and for each of A priors a cell the head predicts (x, y, w, h, objectness), then K classes. A sigmoid makes
    probabilities of the objectness and of each class: the classes do not exclude each other.

    In training, one prior of one cell is responsible for each object: of all scales the prior whose shape has the
    highest IoU with the object's, in the cell that the object is centered in. Where several objects want the same, it
    goes to the one that fits best, and the others take the best that is left (:func:`assign_anchors`). The losses
    follow `"YOLOv3" <https://arxiv.org/abs/1804.02767>`_ but for the coordinates. They are sums over the predictions of
    an image, averaged over the images of the batch:

    - ``bbox_loss``: complete-IoU loss of the responsible predictions with their objects
    - ``obj_loss``: binary cross-entropy of their objectness with 1
    - ``noobj_loss``: binary cross-entropy of the objectness of the others with 0, without those that overlap any
      object by an IoU above 0.7
    - ``clf_loss``: binary cross-entropy of all classes of the responsible predictions

    Detections are kept from a score of 0.05 on, and suppressed above an IoU of 0.7; the attributes
    ``box_score_thresh`` and ``rpn_nms_thresh`` change that.

    Args:
        layout: (width, number of blocks) of each stage of the backbone, three stages or more.
        num_classes: number of classes K.
        in_channels: channels of the images.
        stem_channels: channels of the first convolution.
        anchors: the priors of each scale, the finest first: width and height relative to the image, of shape (3, A, 2);
            those of COCO by default.
        act_layer: activation, Mish by default.
        norm_layer: creates the normalization from the number of channels, :class:`torch.nn.BatchNorm2d` by default.
        drop_layer: creates the regularization after each convolution, :class:`~holocron.nn.DropBlock2d` by default.
        conv_layer: creates the convolutions, :class:`torch.nn.Conv2d` by default.
        backbone_norm_layer: creates the normalization of the backbone; ``norm_layer`` by default.

    Raises:
        ValueError: if a number is outside its range, or the priors are not positive and of shape (3, A, 2).

    Shape:
        - input: (N, in_channels, H, W), or a list of N tensors (in_channels, H, W), with H and W multiples of
          2 ** stages, which is 32 for the published layout
        - output in evaluation mode: for each image ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,)
    """

    def __init__(
        self,
        layout: list[tuple[int, int]],
        num_classes: int = 80,
        in_channels: int = 3,
        stem_channels: int = 32,
        anchors: Tensor | None = None,
        act_layer: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
        drop_layer: Callable[..., nn.Module] | None = None,
        conv_layer: Callable[..., nn.Module] | None = None,
        backbone_norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels)
        anchors = torch.tensor(_COCO_PRIORS) / _COCO_SIZE if anchors is None else _checked_anchors(anchors)
        act_layer = act_layer or nn.Mish(inplace=True)
        norm_layer = norm_layer or nn.BatchNorm2d
        drop_layer = drop_layer or DropBlock2d
        self.stride: int = 2 ** len(layout)
        self.backbone = DarknetBodyV4(
            layout,
            in_channels,
            stem_channels,
            _NUM_SCALES,
            act_layer,
            backbone_norm_layer or norm_layer,
            drop_layer,
            conv_layer,
        )
        conv = partial(
            conv_sequence,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_layer=drop_layer,
            conv_layer=conv_layer,
            bias=False,
        )
        widths = [width for width, _ in layout[-_NUM_SCALES:]]
        self.neck = Neck(widths, conv)
        init_weights(self.neck)
        self.head = YOLOv4Head(widths, num_classes, anchors, conv)

    def raw_outputs(self, x: Tensor) -> RawMaps:
        """Run the network on images of shape (N, in_channels, H, W).

        Args:
            x: images, of a height and width that the stride of 2 ** stages divides.

        Returns:
            three maps of shape (N, A · (5 + K), H / s, W / s), the finest first: for the published layout the strides s
            are 8, 16 and 32

        Raises:
            ValueError: if the images are of another size.
        """
        if x.ndim != 4 or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(
                f"expected images whose sides are multiples of {self.stride} pixels, got a tensor of shape "
                f"{tuple(x.shape)}: resize or pad them"
            )
        return self.head(self.neck(self.backbone(x)))

    def decode(self, raw: RawMaps) -> tuple[Tensor, Tensor]:
        """Turn the maps of the head into P candidate boxes an image, where P is A times the cells of the three grids.

        Args:
            raw: what :meth:`raw_outputs` gives.

        Returns:
            boxes of shape (N, P, 4), as (xmin, ymin, xmax, ymax) relative to the image and clipped to it, and scores of
            shape (N, P, K), objectness times class probability; the finest grid first, in each of them prior by prior,
            and then row by row
        """
        predictions = self.head.interpret(raw)
        scores = predictions.objectness.sigmoid()[..., None] * predictions.classes.sigmoid()
        return predictions.boxes.clamp(0, 1), scores

    def compute_losses(self, raw: RawMaps, ground_truth: GroundTruth) -> dict[str, Tensor]:
        """Measure how far the output of the head is from the ground truth, as the class says.

        Args:
            raw: what :meth:`raw_outputs` gives.
            ground_truth: the objects in the images.

        Returns:
            the scalars ``bbox_loss``, ``obj_loss``, ``noobj_loss`` and ``clf_loss``
        """
        predictions = self.head.interpret(raw)
        boxes, labels, image, num_images = ground_truth
        anchors = torch.stack([self.head.yolo1.anchors, self.head.yolo2.anchors, self.head.yolo3.anchors])
        grids = [(raw_map.shape[2], raw_map.shape[3]) for raw_map in raw]
        slot = assign_anchors(boxes, image, num_images, anchors.to(boxes.dtype), grids)
        served = slot >= 0
        slot, labels = slot[served], labels[served]

        objectness = predictions.objectness.flatten()
        is_other = torch.ones_like(objectness).index_fill_(0, slot, 0) * ~self._near_objects(predictions, ground_truth)
        classes = predictions.classes.flatten(0, 1)[slot]
        expected = F.one_hot(labels, self.num_classes).to(classes.dtype)
        return {
            "bbox_loss": _paired_ciou_loss(predictions.boxes.flatten(0, 1)[slot], boxes[served]).sum() / num_images,
            "obj_loss": F.softplus(-objectness[slot]).sum() / num_images,
            "noobj_loss": (is_other * F.softplus(objectness)).sum() / num_images,
            "clf_loss": F.binary_cross_entropy_with_logits(classes, expected, reduction="sum") / num_images,
        }

    @torch.no_grad()
    def _near_objects(self, predictions: Predictions, ground_truth: GroundTruth) -> Tensor:
        """Which predictions overlap an object of their image enough not to be called wrong, of shape (N * P,)."""
        near = torch.zeros_like(predictions.objectness, dtype=torch.bool)
        for index in ground_truth.image.unique().tolist():
            objects = ground_truth.boxes[ground_truth.image == index]
            near[index] = (box_iou(predictions.boxes[index], objects) > _IGNORE_IOU).any(dim=1)
        return near.flatten()


@torch.no_grad()
def assign_anchors(
    boxes: Tensor, image: Tensor, num_images: int, anchors: Tensor, grids: Sequence[tuple[int, int]]
) -> Tensor:
    """Choose the prediction that answers for each object, at most one object a prediction.

    An object can be given any prior of any scale, in the cell that its center is in. It wants the prior whose shape,
    apart from its position, has the highest IoU with its own, and gets it unless an object wants the same that fits
    better; then it goes on to the best of those that are left. Equal IoU counts for the earlier prior and the earlier
    object.

    Args:
        boxes: the M objects, as (xmin, ymin, xmax, ymax) relative to their image, of shape (M, 4).
        image: which of the images each is in, int64 of shape (M,).
        num_images: number of images N.
        anchors: width and height of A priors of each of S scales, relative to the image, of shape (S, A, 2).
        grids: (height, width) of the grid of each scale, in cells.

    Returns:
        int64 of shape (M,), the number of the prediction among the N * P of all images, numbered by image, scale,
        prior, row and column in this order; -1 for an object for which no prior is left in its cells
    """
    num_scales, num_anchors, _ = anchors.shape
    sides = boxes[:, 2:] - boxes[:, :2]
    priors = anchors.flatten(0, 1)
    overlap = torch.minimum(sides[:, None], priors).prod(dim=-1)
    fit = overlap / (sides.prod(dim=-1)[:, None] + priors.prod(dim=-1) - overlap)

    cells = torch.tensor([height * width for height, width in grids], device=boxes.device)
    num_predictions = int(num_anchors * cells.sum())
    size = torch.tensor(grids, device=boxes.device)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    # A center that rounds to the far border of the image is in the last cell.
    column_row = torch.minimum((center[:, None] * size.flip(1)).long(), size.flip(1) - 1)
    cell = column_row[..., 1] * size[:, 1] + column_row[..., 0]
    first = num_anchors * (cells.cumsum(0) - cells)
    prior = torch.arange(num_anchors, device=boxes.device)
    wanted = (first + cell)[..., None] + prior * cells[:, None] + num_predictions * image[:, None, None]
    wanted = wanted.reshape(len(boxes), num_scales * num_anchors)

    assigned = torch.full_like(image, -1)
    taken = torch.zeros(num_images * num_predictions, dtype=torch.bool, device=boxes.device)
    order = torch.arange(len(boxes), device=boxes.device)
    # At least one object is served each round. Most are in the first, and few compete in any other.
    while len(order) > 0:
        value = torch.where(taken[wanted[order]], -1, fit[order])
        choice = value.argmax(dim=1)
        best = value.gather(1, choice[:, None])[:, 0]
        order, choice, best = order[best >= 0], choice[best >= 0], best[best >= 0]
        slot = wanted[order, choice]
        competed, group = slot.unique(return_inverse=True)
        highest = best.new_zeros(len(competed)).scatter_reduce(0, group, best, "amax")
        contender = torch.where(best == highest[group], order, len(boxes))
        winner = order.new_full((len(competed),), len(boxes)).scatter_reduce(0, group, contender, "amin")
        assigned[winner] = competed
        taken[competed] = True
        order = order[assigned[order] < 0]
    return assigned


def _paired_ciou_loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Complete-IoU loss of each box with the one in the same row, of shape (M,)."""
    return torch.vmap(lambda box1, box2: ciou_loss(box1[None], box2[None])[0, 0])(boxes1, boxes2)


def _init_output(layer: nn.Module, num_anchors: int) -> None:
    """Start as the priors, with little objectness, and no class more likely than another."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.bias.view(num_anchors, -1)[:, 4] = math.log(_INITIAL_OBJECTNESS / (1 - _INITIAL_OBJECTNESS))


def _checked_anchors(anchors: Tensor) -> Tensor:
    """A copy of priors of shape (3, A, 2), in float32 at least."""
    if anchors.ndim != 3 or anchors.shape[::2] != (_NUM_SCALES, 2) or anchors.shape[1] == 0:
        raise ValueError(
            f"expected anchors of shape (3, A, 2), width and height for three scales, got {tuple(anchors.shape)}"
        )
    if not (torch.isfinite(anchors) & (anchors > 0)).all():
        raise ValueError(f"expected anchors to be positive, relative to the image, got {anchors.tolist()}")
    return anchors.detach().clone().to(torch.promote_types(anchors.dtype, torch.float32))


@register_model(task="detection", pre_processing=PreProcessing(input_shape=(3, 608, 608)))
def yolov4(pretrained: bool = False, progress: bool = True, pretrained_backbone: bool = True, **kwargs: Any) -> YOLOv4:
    """YOLOv4 from `"YOLOv4: Optimal Speed and Accuracy of Object Detection" <https://arxiv.org/abs/2004.10934>`_, with
    the layers of CSPDarkNet-53 as its backbone.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        pretrained_backbone: start from the weights of CSPDarkNet-53 with Mish, with the batch normalization of the
            backbone frozen unless ``backbone_norm_layer`` says otherwise.
        **kwargs: ``num_classes`` (80 by default), ``in_channels`` (3 by default) and the other arguments of
            :class:`YOLOv4`.

    Returns:
        the model, in training mode
    """
    checkpoint = kwargs.pop("checkpoint", None)
    load = pretrained_backbone and checkpoint is None and not pretrained
    if load:
        kwargs.setdefault("backbone_norm_layer", FrozenBatchNorm2d)
    model = build_with_checkpoint(
        partial(YOLOv4, [(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]),
        "yolov4",
        pretrained=pretrained,
        checkpoint=checkpoint,
        default=None,
        progress=progress,
        kwargs=kwargs,
    )
    if load:
        load_backbone(model.backbone, CSPDarknet53_Mish_Checkpoint.DEFAULT.value, progress)
    return model
