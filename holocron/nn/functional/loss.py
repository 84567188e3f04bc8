"""Classification and segmentation losses.

Conventions shared by all of them, chosen so that each reduces to `torch.nn.functional.cross_entropy` where its own term
vanishes:

- ``x`` holds logits of shape (N, K, ...), unless stated otherwise; class indices are of shape (N, ...).
- ``weight`` scales the whole loss of the samples of a class.
- ``reduction="mean"`` divides by the sum of the weights of the samples that count; positions whose target is
  ``ignore_index`` do not, and have a loss of 0 with ``reduction="none"``.
- Where nothing counts (an empty batch, or every target ignored) the sum and the mean are 0 with zero gradients, where
  PyTorch's mean is NaN: a crop without a labelled pixel does not end a training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "check_reduction",
    "complement_cross_entropy",
    "dice_loss",
    "focal_loss",
    "multilabel_cross_entropy",
    "mutual_channel_loss",
    "poly_loss",
]


def focal_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    gamma: float = 2.0,
) -> Tensor:
    r"""Cross-entropy that spends little on what is already well classified, from `"Focal Loss for Dense Object
    Detection" <https://arxiv.org/abs/1708.02002>`_.

    .. math:: FL(p_t) = -\alpha_t (1 - p_t)^\gamma \log(p_t)

    With ``gamma=0`` it is the cross-entropy.

    Args:
        x: logits of shape (N, K, ...).
        target: class indices of shape (N, ...), or class probabilities of shape (N, K, ...), over which the loss is
            then averaged.
        weight: :math:`\alpha`, of shape (K,).
        ignore_index: target value that does not contribute; for class indices only.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        gamma: focusing parameter, not negative.

    Returns:
        scalar, or shape (N, ...) if ``reduction="none"``

    Raises:
        NotImplementedError: if ``reduction`` is unknown.
        ValueError: if ``gamma`` is negative or the shapes do not fit together.
    """
    check_reduction(reduction)
    if gamma < 0:
        raise ValueError(f"gamma has to be 0 or more, got {gamma}")
    log_p = _log_probs(x)
    if _is_dense(x, target):
        loss = -target * _focus(log_p, gamma) * log_p
        return _reduce_dense(loss, weight, reduction)
    log_pt = _log_prob_of_target(log_p, target, ignore_index)
    return _reduce(-_focus(log_pt, gamma) * log_pt, target, _class_weight(weight, log_p), ignore_index, reduction)


def poly_loss(
    x: Tensor,
    target: Tensor,
    eps: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy with its first polynomial coefficient raised, from `"PolyLoss: A Polynomial Expansion Perspective
    of Classification Loss Functions" <https://arxiv.org/abs/2204.12511>`_.

    .. math:: L_{Poly1} = -\log(p_t) + \epsilon_1 (1 - p_t)

    With ``eps=0`` it is the cross-entropy.

    Args:
        x: logits of shape (N, K, ...).
        target: class indices of shape (N, ...), or class probabilities of shape (N, K, ...), over which the loss is
            then averaged.
        eps: :math:`\epsilon_1`.
        weight: class weights of shape (K,).
        ignore_index: target value that does not contribute; for class indices only.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        scalar, or shape (N, ...) if ``reduction="none"``

    Raises:
        NotImplementedError: if ``reduction`` is unknown.
        ValueError: if the shapes do not fit together.
    """
    check_reduction(reduction)
    log_p = _log_probs(x)
    if _is_dense(x, target):
        return _reduce_dense(-target * (log_p + eps * torch.expm1(log_p)), weight, reduction)
    log_pt = _log_prob_of_target(log_p, target, ignore_index)
    # 1 - p as -expm1(log p) keeps its digits when p is close to 1.
    loss = -log_pt - eps * torch.expm1(log_pt)
    return _reduce(loss, target, _class_weight(weight, log_p), ignore_index, reduction)


def complement_cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    gamma: float = -1,
) -> Tensor:
    r"""Cross-entropy plus the entropy among the wrong classes, from `"Imbalanced Image Classification with Complement
    Cross Entropy" <https://arxiv.org/abs/2009.02189>`_.

    .. math::
        L = -\log(p_t) - \frac{\gamma}{K - 1} \sum_{k \neq t} \frac{p_k}{1 - p_t} \log \frac{p_k}{1 - p_t}

    A negative :math:`\gamma` rewards spreading the remaining probability evenly over the wrong classes. With
    ``gamma=0`` it is the cross-entropy.

    Args:
        x: logits of shape (N, K, ...), with K at least 2.
        target: class indices of shape (N, ...).
        weight: class weights of shape (K,).
        ignore_index: target value that does not contribute.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        gamma: modulating factor of the complement entropy.

    Returns:
        scalar, or shape (N, ...) if ``reduction="none"``

    Raises:
        NotImplementedError: if ``reduction`` is unknown.
        ValueError: if there are fewer than two classes or the shapes do not fit together.
    """
    check_reduction(reduction)
    log_p = _log_probs(x)
    log_pt = _log_prob_of_target(log_p, target, ignore_index)
    num_classes = x.shape[1]
    if num_classes < 2:
        raise ValueError(f"x has to hold at least two classes to have wrong ones, got shape {tuple(x.shape)}")
    # p_k / (1 - p_t) is the softmax over the wrong classes alone: no division, however close p_t is to 1.
    safe_target = target.long().masked_fill(target == ignore_index, 0).unsqueeze(1)
    is_target = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, safe_target, True)
    log_q = F.log_softmax(x.masked_fill(is_target, float("-inf")), dim=1).masked_fill(is_target, 0.0)
    entropy = -(log_q.exp() * log_q).sum(dim=1)
    loss = -log_pt + gamma / (num_classes - 1) * entropy
    return _reduce(loss, target, _class_weight(weight, log_p), ignore_index, reduction)


def multilabel_cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy for samples of several labels.

    .. math:: L = -\sum_k w_k \, y_k \log(p_k)

    where :math:`p` is the softmax of the logits. With a one-hot target it is the cross-entropy.

    Args:
        x: logits of shape (N, K, ...).
        target: the share of each class, of shape (N, K, ...): multi-hot, or probabilities.
        weight: class weights of shape (K,).
        ignore_index: what does not contribute: the class of that index if it is one of the K, otherwise the entries of
            ``target`` of that value.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. The mean is over the positions that have an entry left.

    Returns:
        scalar, or shape (N, ...) if ``reduction="none"``

    Raises:
        NotImplementedError: if ``reduction`` is unknown.
        ValueError: if the shapes do not fit together.
    """
    check_reduction(reduction)
    log_p = _log_probs(x)
    if target.shape != x.shape:
        raise ValueError(
            f"target has to be of the shape of x, (N, K, ...), got {tuple(target.shape)} for {tuple(x.shape)}"
        )
    kept = target != ignore_index
    if 0 <= ignore_index < x.shape[1]:
        classes = torch.arange(x.shape[1], device=x.device).view(-1, *[1] * (x.ndim - 2))
        kept = (classes != ignore_index).expand_as(x)
    loss = (-target.to(log_p.dtype) * log_p).masked_fill(~kept, 0.0)
    return _reduce_dense(loss, weight, reduction, count=kept.any(dim=1).sum())


def mutual_channel_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    xi: int = 2,
    alpha: float = 1,
    training: bool = True,
) -> Tensor:
    r"""Make the channels of each class discriminative and unlike each other, from `"The Devil is in the Channels:
    Mutual-Channel Loss for Fine-Grained Image Classification" <https://arxiv.org/abs/2002.04264>`_.

    .. math::
        L = -\log \text{softmax}(g)_t - \frac{\alpha}{K} \sum_k h_k
        \quad g_k = \frac{1}{HW} \sum_{pixels} \max_{j \le \xi} m_{kj} F_{kj}
        \quad h_k = \sum_{pixels} \max_{j \le \xi} \text{softmax}_{pixels}(F_{kj})

    where :math:`F_{kj}` is the j-th of the :math:`\xi` channels of class k, and the mask :math:`m` drops
    :math:`\lfloor \xi / 2 \rfloor` random channels of each class, drawn anew at each call and the same for the batch.

    Args:
        x: feature map of shape (N, K * xi, ...), class by class, with at least one spatial dimension.
        target: class indices of shape (N,).
        weight: class weights of shape (K,).
        ignore_index: target value that does not contribute.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        xi: channels per class.
        alpha: weight of the diversity term.
        training: if False, no channel is dropped and the loss is deterministic.

    Returns:
        scalar, or shape (N,) if ``reduction="none"``

    Raises:
        NotImplementedError: if ``reduction`` is unknown.
        ValueError: if ``xi`` does not divide the channels or the shapes do not fit together.
    """
    check_reduction(reduction)
    if x.ndim < 3:
        raise ValueError(f"x has to be of shape (N, K * xi, ...) with a spatial dimension, got {tuple(x.shape)}")
    if xi < 1 or x.shape[1] % xi:
        raise ValueError(f"xi has to divide the {x.shape[1]} channels of x, got {xi}")
    features = x.flatten(2).unflatten(1, (-1, xi))  # (N, K, xi, pixels)
    attended = features
    if training:
        num_classes = features.shape[1]
        ranks = torch.rand(num_classes, xi, device=x.device).argsort(dim=1)
        attended = features * (ranks >= xi // 2).to(x.dtype).unsqueeze(-1)
    log_p = F.log_softmax(attended.amax(dim=2).mean(dim=-1), dim=1)
    diversity = features.softmax(dim=-1).amax(dim=2).sum(dim=-1).mean(dim=1)
    loss = -_log_prob_of_target(log_p, target, ignore_index) - alpha * diversity
    return _reduce(loss, target, _class_weight(weight, log_p), ignore_index, reduction)


def dice_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    gamma: float = 1.0,
    eps: float = 1e-8,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""One minus the overlap of prediction and target, from `"V-Net: Fully Convolutional Neural Networks for Volumetric
    Medical Image Segmentation" <https://arxiv.org/abs/1606.04797>`_.

    .. math::
        L_k = 1 - \frac{(1 + \gamma) \sum p_k g_k + \epsilon}{\sum p_k^2 + \gamma \sum g_k^2 + \epsilon}

    summed over the batch and the positions. With ``gamma=1`` it is the paper's; for predictions of 0 and 1 it is one
    minus the F-measure with :math:`\beta^2 = \gamma`. A class that is neither predicted nor present has a loss of 0.

    Args:
        x: probabilities of shape (N, K, ...): apply softmax or sigmoid to logits first.
        target: probabilities of shape (N, K, ...), or class indices of shape (N, ...).
        weight: class weights of shape (K,).
        gamma: above 1 recall counts more, below 1 precision.
        eps: keeps the ratio defined where a class is neither predicted nor present.
        ignore_index: positions with this class index are left out; for class indices only.
        reduction: over the classes: ``"mean"`` (weighted), ``"sum"``, or ``"none"``.

    Returns:
        scalar, or shape (K,) if ``reduction="none"``

    Raises:
        NotImplementedError: if ``reduction`` is unknown.
        ValueError: if ``gamma`` or ``eps`` is negative or the shapes do not fit together.
    """
    check_reduction(reduction)
    if gamma < 0 or eps < 0:
        raise ValueError(f"gamma and eps have to be 0 or more, got {gamma} and {eps}")
    if x.dtype in {torch.float16, torch.bfloat16}:
        x = x.float()  # sums over all pixels, and eps, are beyond half precision
    if target.shape == x.shape:
        probs, truth = x, target.to(x.dtype)
    else:
        _check_indices(x, target)
        kept = (target != ignore_index).unsqueeze(1)
        index = target.long().unsqueeze(1).masked_fill(~kept, 0)
        truth = torch.zeros_like(x).scatter(1, index, 1.0).masked_fill(~kept, 0.0)
        probs = x.masked_fill(~kept, 0.0)
    dims = [0, *range(2, x.ndim)]
    overlap = (1 + gamma) * (probs * truth).sum(dim=dims)
    total = probs.square().sum(dim=dims) + gamma * truth.square().sum(dim=dims)
    loss = 1 - (overlap + eps) / (total + eps)
    class_weight = _class_weight(weight, x)
    scale = torch.ones_like(loss) if class_weight is None else class_weight
    return _scale_and_reduce(loss, scale, reduction)


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction.

    Raises:
        NotImplementedError: if ``reduction`` is not one of ``"none"``, ``"mean"`` and ``"sum"``.
    """
    if reduction not in {"none", "mean", "sum"}:
        raise NotImplementedError(f"reduction has to be 'none', 'mean' or 'sum', got {reduction!r}")


def _log_probs(x: Tensor) -> Tensor:
    """Log-probabilities of the classes from logits of shape (N, K, ...)."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x has to hold floating point logits of shape (N, K, ...), got {x.dtype} {tuple(x.shape)}")
    return F.log_softmax(x, dim=1)


def _is_dense(x: Tensor, target: Tensor) -> bool:
    """Whether the target holds class probabilities rather than class indices."""
    return target.is_floating_point() and target.shape == x.shape


def _check_indices(x: Tensor, target: Tensor) -> None:
    """Refuse class indices that are none, or that do not match the predictions."""
    if x.ndim < 2 or target.shape != x.shape[:1] + x.shape[2:]:
        raise ValueError(
            f"target has to hold one class index for each prediction: x of shape (N, K, ...) is {tuple(x.shape)}, "
            f"target of shape (N, ...) is {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex():
        raise ValueError(f"target has to hold integer class indices, got {target.dtype}")


def _class_weight(weight: Tensor | None, log_p: Tensor) -> Tensor | None:
    """Class weights in the type and on the device of the predictions of shape (N, K, ...)."""
    if weight is None:
        return None
    if weight.shape != log_p.shape[1:2]:
        raise ValueError(f"weight has to be of shape ({log_p.shape[1]},), one value a class, got {tuple(weight.shape)}")
    return weight.to(dtype=log_p.dtype, device=log_p.device)


def _log_prob_of_target(log_p: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Log-probability of the target class, 0 where it is ignored; shape (N, ...)."""
    _check_indices(log_p, target)
    return -F.nll_loss(log_p, target.long(), ignore_index=ignore_index, reduction="none")


def _focus(log_p: Tensor, gamma: float) -> Tensor:
    """The modulating factor ``(1 - p) ** gamma``, from log-probabilities.

    The slope of a power below one is infinite at 0; the smallest positive number in its place has a finite slope, which
    the clamp then multiplies by 0.
    """
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny).pow(gamma)


def _reduce(loss: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    """Weight, mask and reduce a loss per position whose target is a class index."""
    ignored = target == ignore_index
    scale = torch.ones_like(loss) if weight is None else weight[target.long().masked_fill(ignored, 0)]
    return _scale_and_reduce(loss.masked_fill(ignored, 0.0), scale.masked_fill(ignored, 0.0), reduction)


def _reduce_dense(loss: Tensor, weight: Tensor | None, reduction: str, count: Tensor | None = None) -> Tensor:
    """Weight a loss per class of shape (N, K, ...), sum it over the classes and reduce it over the positions.

    The mean is over ``count`` positions, by default all of them.
    """
    class_weight = _class_weight(weight, loss)
    if class_weight is not None:
        loss = loss * class_weight.view(-1, *[1] * (loss.ndim - 2))
    loss = loss.sum(dim=1)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (max(loss.numel(), 1) if count is None else count.clamp(min=1))


def _scale_and_reduce(loss: Tensor, scale: Tensor, reduction: str) -> Tensor:
    """Multiply by the scale and reduce; the mean divides by the sum of the scale, and is 0 where that is 0."""
    loss = loss * scale
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    total = scale.sum()
    return loss.sum() / total.masked_fill(total == 0, 1.0)
