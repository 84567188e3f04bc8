"""Similarities and losses between all pairs of two sets of boxes.

Boxes are (x_min, y_min, x_max, y_max), in any unit. All functions take sets of M and N boxes, either of which may be
empty, and give a tensor of shape [M, N]. Integer boxes are computed in the default floating point type, half precision
ones in float32, whose range areas need.

Values and gradients are finite for boxes without area, too: a ratio of zeros is 0, so that the IoU with an empty box is
0, even that of the box with itself, and two coinciding points are at no distance. Except in :func:`box_giou`, which
refuses them, sides of negative length count as zero.
"""

import math

import torch
from torch import Tensor

__all__ = ["aspect_ratio_consistency", "box_ciou", "box_giou", "ciou_loss", "diou_loss", "iou_penalty"]


def box_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    r"""Generalized IoU, from `"Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression"
    <https://arxiv.org/abs/1902.09630>`_.

    .. math:: GIoU = IoU - \frac{|C| - |A \cup B|}{|C|}

    where :math:`C` is the smallest box around :math:`A` and :math:`B`.

    Args:
        boxes1: boxes of shape [M, 4].
        boxes2: boxes of shape [N, 4].

    Returns:
        GIoU of shape [M, N], between -1 and 1

    Raises:
        AssertionError: if the maximum of a box is below its minimum.
        ValueError: if the boxes are not of shape [M, 4] and [N, 4].
    """
    boxes1, boxes2 = _as_float(boxes1, boxes2)
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        inverted = (boxes[:, 2:] < boxes[:, :2]).any(dim=1)
        if inverted.any():
            box = boxes[inverted.nonzero()[0, 0]].tolist()
            raise AssertionError(f"{name} has to be in (x_min, y_min, x_max, y_max) format, got {box}")
    iou, union = _iou_and_union(boxes1, boxes2)
    hull = _area(_enclosing_sides(boxes1, boxes2))
    return iou - _safe_divide(hull - union, hull)


def diou_loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    r"""Distance-IoU loss, from `"Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression"
    <https://arxiv.org/abs/1911.08287>`_.

    .. math:: \mathcal{L}_{DIoU} = 1 - IoU + \frac{\rho^2(b, b^{GT})}{c^2}

    where :math:`\rho` is the distance between the centers of the boxes and :math:`c` is the diagonal of the smallest
    box around both.

    Args:
        boxes1: boxes of shape [M, 4].
        boxes2: boxes of shape [N, 4].

    Returns:
        loss of shape [M, N], between 0 and 2

    Raises:
        ValueError: if the boxes are not of shape [M, 4] and [N, 4].
    """
    boxes1, boxes2 = _as_float(boxes1, boxes2)
    iou, _ = _iou_and_union(boxes1, boxes2)
    return 1 - iou + iou_penalty(boxes1, boxes2)


def ciou_loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    r"""Complete-IoU loss, from `"Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression"
    <https://arxiv.org/abs/1911.08287>`_.

    .. math::
        \mathcal{L}_{CIoU} = 1 - IoU + \frac{\rho^2(b, b^{GT})}{c^2} + \alpha v
        \quad \alpha = \frac{v}{(1 - IoU) + v}

    with the penalty of :func:`iou_penalty` and the :math:`v` of :func:`aspect_ratio_consistency`.

    The code that the reference documentation prints for this function leaves the last term out: it adds to a copy, and
    :math:`\alpha` in place of :math:`\alpha v`. This one computes the formula, for boxes that do not overlap as well.
    The gradient is that of the formula; :math:`\alpha` is not held constant.

    Args:
        boxes1: boxes of shape [M, 4].
        boxes2: boxes of shape [N, 4].

    Returns:
        loss of shape [M, N], between 0 and 3

    Raises:
        ValueError: if the boxes are not of shape [M, 4] and [N, 4].
    """
    boxes1, boxes2 = _as_float(boxes1, boxes2)
    iou, _ = _iou_and_union(boxes1, boxes2)
    v = aspect_ratio_consistency(boxes1, boxes2)
    alpha = _safe_divide(v, 1 - iou + v)
    return 1 - iou + iou_penalty(boxes1, boxes2) + alpha * v


def box_ciou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    r"""Complete IoU: the similarity :math:`1 - \mathcal{L}_{CIoU}`, see :func:`ciou_loss`.

    Args:
        boxes1: boxes of shape [M, 4].
        boxes2: boxes of shape [N, 4].

    Returns:
        CIoU of shape [M, N], between -2 and 1

    Raises:
        ValueError: if the boxes are not of shape [M, 4] and [N, 4].

    Example::

        >>> boxes1 = torch.tensor([[0, 0, 100, 100], [100, 100, 200, 200]])
        >>> boxes2 = torch.tensor([[50, 50, 150, 150]])
        >>> box_ciou(boxes1, boxes2)
        tensor([[0.0317],
                [0.0317]])
    """
    return 1 - ciou_loss(boxes1, boxes2)


def iou_penalty(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    r"""Squared distance of the centers over the squared diagonal of the smallest box around both,
    :math:`\rho^2(b, b^{GT}) / c^2`.

    Args:
        boxes1: boxes of shape [M, 4].
        boxes2: boxes of shape [N, 4].

    Returns:
        penalty of shape [M, N], between 0 and 1

    Raises:
        ValueError: if the boxes are not of shape [M, 4] and [N, 4].
    """
    boxes1, boxes2 = _as_float(boxes1, boxes2)
    # The mean of the corners' offsets, rather than the offset of their means, rounds nothing for close boxes.
    offset = ((boxes1[:, None, :2] - boxes2[:, :2]) + (boxes1[:, None, 2:] - boxes2[:, 2:])) / 2
    diagonal = _enclosing_sides(boxes1, boxes2).square().sum(dim=-1)
    return _safe_divide(offset.square().sum(dim=-1), diagonal)


def aspect_ratio_consistency(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    r"""Difference of the aspect ratios, as angles,
    :math:`v = \frac{4}{\pi^2} (\arctan \frac{w^{GT}}{h^{GT}} - \arctan \frac{w}{h})^2`.

    The angle of a box without height is :math:`\pi / 2`, that of a point is 0.

    Args:
        boxes1: boxes of shape [M, 4].
        boxes2: boxes of shape [N, 4].

    Returns:
        difference of shape [M, N], between 0 and 1

    Raises:
        ValueError: if the boxes are not of shape [M, 4] and [N, 4].
    """
    boxes1, boxes2 = _as_float(boxes1, boxes2)
    return (4 / math.pi**2) * (_diagonal_angle(boxes1)[:, None] - _diagonal_angle(boxes2)).square()


def _as_float(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in one floating point type that can hold areas."""
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} has to be of shape [N, 4], got {tuple(boxes.shape)}")
    dtype = torch.result_type(boxes1, boxes2)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    if dtype in {torch.float16, torch.bfloat16}:
        dtype = torch.float32
    return boxes1.to(dtype), boxes2.to(dtype)


def _safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The ratio where the denominator is positive, 0 elsewhere; the gradient is finite in both."""
    # Below this limit the derivative of the ratio, which divides by the denominator twice, could overflow.
    positive = denominator > torch.finfo(denominator.dtype).tiny ** 0.5
    return torch.where(positive, numerator, 0) / torch.where(positive, denominator, 1)


def _sides(boxes: Tensor) -> Tensor:
    """Width and height of boxes of shape [N, 4]."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)


def _area(sides: Tensor) -> Tensor:
    """Area of rectangles with sides of shape [..., 2]."""
    return sides[..., 0] * sides[..., 1]


def _iou_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and area of the union of each pair, both of shape [M, N]."""
    overlap = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:]) - torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    intersection = _area(overlap.clamp(min=0))
    union = _area(_sides(boxes1))[:, None] + _area(_sides(boxes2)) - intersection
    return _safe_divide(intersection, union), union


def _enclosing_sides(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Width and height of the smallest box around each pair, of shape [M, N, 2]."""
    sides = torch.maximum(boxes1[:, None, 2:], boxes2[:, 2:]) - torch.minimum(boxes1[:, None, :2], boxes2[:, :2])
    return sides.clamp(min=0)


def _diagonal_angle(boxes: Tensor) -> Tensor:
    """The angle whose tangent is width over height, of shape [N]."""
    w, h = _sides(boxes).unbind(dim=-1)
    # Relative to the larger side: squares of very small sides vanish in the derivative of the arctangent.
    scale = torch.maximum(w, h).detach()
    is_point = scale <= torch.finfo(scale.dtype).tiny
    scale = scale.masked_fill(is_point, 1)
    return torch.atan2(w / scale, torch.where(is_point, 1, h / scale))
