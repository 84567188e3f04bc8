"""What all detectors share: how images and ground truth come in, and how detections go out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

__all__ = ["Detector", "GroundTruth", "batch_images", "select_detections", "validate_targets"]

RawT = TypeVar("RawT")


class GroundTruth(NamedTuple):
    """The M objects of a batch, those of one image after those of another.

    Attributes:
        boxes: (M, 4), as (xmin, ymin, xmax, ymax) relative to the size of the image.
        labels: (M,) int64, the class of each.
        image: (M,) int64, which image of the batch each of them is in.
        num_images: number of images, among them those without objects.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    num_images: int


class Detector(nn.Module, ABC, Generic[RawT]):
    """An object detector: losses in training, boxes in evaluation.

    A subclass says what its head answers (:meth:`raw_outputs`), what that means (:meth:`decode`), and how far it is
    from the ground truth (:meth:`compute_losses`). The first two have no data-dependent shapes, so that both can be
    traced; the suppression of overlapping boxes comes after them.

    Args:
        num_classes: number of classes K.
        in_channels: channels of the images.
        rpn_nms_thresh: IoU in [0, 1] above which the less certain one of two boxes of a class is dropped.
        box_score_thresh: score in [0, 1] below which boxes are dropped.

    Raises:
        ValueError: if a number is outside its range.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, rpn_nms_thresh: float = 0.7, box_score_thresh: float = 0.05
    ) -> None:
        super().__init__()
        for name, count in (("num_classes", num_classes), ("in_channels", in_channels)):
            if count < 1:
                raise ValueError(f"expected {name} to be at least 1, got {count}")
        for name, threshold in (("rpn_nms_thresh", rpn_nms_thresh), ("box_score_thresh", box_score_thresh)):
            if not 0 <= threshold <= 1:
                raise ValueError(f"expected {name} to be in [0, 1], got {threshold}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.rpn_nms_thresh = rpn_nms_thresh
        self.box_score_thresh = box_score_thresh

    @abstractmethod
    def raw_outputs(self, x: Tensor) -> RawT:
        """Run the network on images of shape (N, in_channels, H, W), up to the output of its head."""

    @abstractmethod
    def decode(self, raw: RawT) -> tuple[Tensor, Tensor]:
        """Turn the output of the head into P candidate boxes an image, where P depends on the input size alone.

        Args:
            raw: what :meth:`raw_outputs` gives.

        Returns:
            boxes of shape (N, P, 4), as (xmin, ymin, xmax, ymax) in [0, 1] relative to the size of the image, and
            scores of shape (N, P, K), the probability of each class times that of there being an object
        """

    @abstractmethod
    def compute_losses(self, raw: RawT, ground_truth: GroundTruth) -> dict[str, Tensor]:
        """Measure how far the output of the head is from the ground truth.

        Args:
            raw: what :meth:`raw_outputs` gives.
            ground_truth: the objects in the images.

        Returns:
            scalars to be added up, weighted already
        """

    def forward(
        self, x: Tensor | Sequence[Tensor], target: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Detect objects, or in training mode compute the losses.

        Args:
            x: images of shape (N, in_channels, H, W), or a list of N images of shape (in_channels, H, W).
            target: for training, the objects of each image, see :func:`validate_targets`. Not used in evaluation.

        Returns:
            in training mode, the losses by name, scalars to be added up; in evaluation mode the detections of each
            image, see :func:`select_detections`

        Raises:
            TypeError: if the images are not tensors.
            ValueError: if the images do not fit the model, or there are no targets in training, or they are not valid.
        """
        images = batch_images(x, self.in_channels)
        if not self.training:
            boxes, scores = self.decode(self.raw_outputs(images))
            return select_detections(boxes, scores, self.box_score_thresh, self.rpn_nms_thresh)
        if target is None:
            raise ValueError(
                "a detector in training mode needs target, the boxes and labels of each image: call eval() on the "
                "model to detect objects"
            )
        ground_truth = validate_targets(target, len(images), self.num_classes, images.device)
        return self.compute_losses(self.raw_outputs(images), ground_truth)


def batch_images(x: Tensor | Sequence[Tensor], in_channels: int) -> Tensor:
    """Put images into one tensor.

    Args:
        x: images of shape (N, in_channels, H, W), or a sequence of N images of one shape (in_channels, H, W).
        in_channels: channels that the images have to have.

    Returns:
        tensor of shape (N, in_channels, H, W)

    Raises:
        TypeError: if the images are not tensors.
        ValueError: if there are none, their shapes are wrong or differ, or they are not of a floating-point type.
    """
    if isinstance(x, Tensor):
        if x.ndim != 4:
            raise ValueError(f"expected images of shape (N, {in_channels}, H, W), got {tuple(x.shape)}")
        images = x
    else:
        if not isinstance(x, Sequence):
            raise TypeError(f"expected a tensor or a list of tensors, got {type(x).__name__}")
        if len(x) == 0:
            raise ValueError("expected at least one image, got an empty list")
        for index, image in enumerate(x):
            if not isinstance(image, Tensor):
                raise TypeError(f"image {index} is a {type(image).__name__}, not a tensor")
            if image.ndim != 3 or image.shape != x[0].shape:
                raise ValueError(
                    f"image {index} is of shape {tuple(image.shape)}, the first one of {tuple(x[0].shape)}: all have "
                    f"to be of one shape ({in_channels}, H, W); resize or pad them first"
                )
        images = torch.stack(list(x))
    if len(images) == 0:
        raise ValueError(f"expected at least one image, got a batch of shape {tuple(images.shape)}")
    if images.shape[1] != in_channels:
        raise ValueError(f"expected images of {in_channels} channels, got {images.shape[1]}")
    if not images.is_floating_point():
        raise ValueError(f"expected images of a floating-point type, got {images.dtype}: scale and normalize them")
    return images


def validate_targets(
    target: Sequence[Mapping[str, Tensor]], num_images: int, num_classes: int, device: torch.device | str = "cpu"
) -> GroundTruth:
    """Check the ground truth of a batch, and put the objects of all its images into one table.

    Args:
        target: for each image a dictionary with ``boxes``, of shape (n, 4) as (xmin, ymin, xmax, ymax) relative to the
            size of the image, and ``labels``, of shape (n,) and type int64. n may be 0.
        num_images: number of images N in the batch.
        num_classes: number of classes K.
        device: where the table is wanted.

    Returns:
        the table, its boxes in float32

    Raises:
        ValueError: if there is not one entry an image, or boxes are not in [0, 1], without extent or not finite, or
            labels are not int64 in [0, K); the message names the image and the value.
    """
    if len(target) != num_images:
        raise ValueError(f"expected one target an image, got {len(target)} targets for {num_images} images")
    for index, entry in enumerate(target):
        _check_types(entry, index)
    counts = [len(entry["boxes"]) for entry in target]
    boxes = torch.cat([entry["boxes"].detach().to(device, torch.float32) for entry in target])
    labels = torch.cat([entry["labels"].to(device) for entry in target])
    image = torch.arange(num_images, device=device).repeat_interleave(torch.tensor(counts, device=device))

    # One test for the whole batch: a look at each object on its own would make a GPU wait as often.
    in_range = ((boxes >= 0) & (boxes <= 1)).all(dim=1)
    has_extent = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)
    known = (labels >= 0) & (labels < num_classes)
    valid = in_range & has_extent & known
    if not valid.all():
        first = int(valid.logical_not().nonzero()[0, 0])
        where = f"of image {int(image[first])}"
        box = [round(value, 6) for value in boxes[first].tolist()]
        if not in_range[first]:
            remedy = (
                "give finite" if not all(map(math.isfinite, box)) else "divide pixels by the size of the image, clip"
            )
            raise ValueError(f"box {box} {where} is not within [0, 1]: {remedy} (xmin, ymin, xmax, ymax)")
        if not has_extent[first]:
            raise ValueError(
                f"box {box} {where} has no extent: (xmin, ymin, xmax, ymax) needs xmin < xmax and ymin < ymax; leave "
                "such objects out"
            )
        raise ValueError(f"label {int(labels[first])} {where} is not in [0, {num_classes}): the model's classes")
    return GroundTruth(boxes, labels, image, num_images)


def _check_types(entry: Mapping[str, Tensor], index: int) -> None:
    """Raise a ValueError unless the target of an image consists of tensors of the right shapes and types."""
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), Tensor) for key in ("boxes", "labels")):
        got = f"the keys {list(entry)}" if isinstance(entry, Mapping) else f"a {type(entry).__name__}"
        raise ValueError(f"target of image {index} has to be a dictionary of tensors 'boxes' and 'labels', got {got}")
    boxes, labels = entry["boxes"], entry["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"boxes of image {index} have to be floats of shape (n, 4), got {boxes.dtype} of shape "
            f"{tuple(boxes.shape)}: without objects, give torch.zeros(0, 4)"
        )
    if labels.dtype != torch.int64 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"labels of image {index} have to be int64 of shape {tuple(boxes.shape[:1])}, one a box, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )


def select_detections(boxes: Tensor, scores: Tensor, score_thresh: float, nms_thresh: float) -> list[dict[str, Tensor]]:
    """Keep the boxes that are certain enough, each with its best class, and of those that overlap the most certain.

    Args:
        boxes: candidates of shape (N, P, 4), as (xmin, ymin, xmax, ymax) in [0, 1].
        scores: score of each candidate for each class, of shape (N, P, K).
        score_thresh: a candidate is kept if its best score is at least this, and it has an extent.
        nms_thresh: greedy non-maximum suppression drops a box that overlaps a better one of its class by an IoU above
            this.

    Returns:
        for each image, with the n kept boxes in descending order of their score:

        - ``boxes``: (n, 4), as (xmin, ymin, xmax, ymax) in [0, 1] relative to the size of the image
        - ``scores``: (n,)
        - ``labels``: (n,) int64
    """
    best, labels = scores.max(dim=-1)
    has_extent = (boxes[..., :2] < boxes[..., 2:]).all(dim=-1)
    kept = (best >= score_thresh) & has_extent
    detections = []
    for image_boxes, image_scores, image_labels, image_kept in zip(boxes, best, labels, kept, strict=True):
        candidate = {
            "boxes": image_boxes[image_kept],
            "scores": image_scores[image_kept],
            "labels": image_labels[image_kept],
        }
        survivors = batched_nms(candidate["boxes"], candidate["scores"], candidate["labels"], nms_thresh)
        detections.append({key: value[survivors] for key, value in candidate.items()})
    return detections
