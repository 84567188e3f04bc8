"""Loss modules; `holocron.nn.functional` has their formulas and conventions."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from holocron.nn import functional as F
from holocron.nn.functional.loss import check_reduction

__all__ = [
    "ClassBalancedWrapper",
    "ComplementCrossEntropy",
    "DiceLoss",
    "FocalLoss",
    "Loss",
    "MultiLabelCrossEntropy",
    "MutualChannelLoss",
    "PolyLoss",
]


class Loss(nn.Module):
    """Base class of the losses: holds what they share.

    Args:
        weight: class weights of shape (K,), as a tensor or a list; a single number is the weight ``w`` of class 0 of
            two and gives ``[w, 1 - w]``. Part of the ``state_dict``, and moved with the module.
        ignore_index: target value that does not contribute to the loss and its gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. With all targets ignored the last two give 0.

    Raises:
        NotImplementedError: if ``reduction`` is another one.
        TypeError: if ``weight`` is of another type.
        ValueError: if ``weight`` has more than one dimension.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: float | list[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if isinstance(weight, (float, int)):
            weight = torch.tensor([weight, 1 - weight], dtype=torch.get_default_dtype())
        elif isinstance(weight, (list, tuple)):
            weight = torch.tensor(weight, dtype=torch.get_default_dtype())
        elif weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight has to be a number, a list or a tensor, got {type(weight).__name__}")
        if weight is not None and weight.ndim != 1:
            raise ValueError(f"weight has to hold one value for each class, got shape {tuple(weight.shape)}")
        self.register_buffer("weight", weight)
        check_reduction(reduction)
        self.ignore_index: int = ignore_index
        self.reduction: str = reduction

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class FocalLoss(Loss):
    r"""Focal loss, from `"Focal Loss for Dense Object Detection" <https://arxiv.org/abs/1708.02002>`_.

    .. math:: FL(p_t) = -\alpha_t (1 - p_t)^\gamma \log(p_t)

    Args:
        gamma: focusing parameter, not negative.
        **kwargs: arguments of :class:`Loss`.

    Shape:
        - input: logits, (N, K, ...)
        - target: class indices, (N, ...), or class probabilities, (N, K, ...)
        - output: scalar, or (N, ...) if ``reduction="none"``

    Raises:
        ValueError: if ``gamma`` is negative.
    """

    def __init__(self, gamma: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if gamma < 0:
            raise ValueError(f"gamma has to be 0 or more, got {gamma}")
        self.gamma: float = gamma

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the predictions ``x``."""
        return F.focal_loss(x, target, self.weight, self.ignore_index, self.reduction, self.gamma)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"gamma={self.gamma}, {super().extra_repr()}"


class MultiLabelCrossEntropy(Loss):
    """Cross-entropy for samples of several labels.

    Args:
        *args: arguments of :class:`Loss`.
        **kwargs: arguments of :class:`Loss`.

    Shape:
        - input: logits, (N, K, ...)
        - target: share of each class, (N, K, ...)
        - output: scalar, or (N, ...) if ``reduction="none"``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the predictions ``x``."""
        return F.multilabel_cross_entropy(x, target, self.weight, self.ignore_index, self.reduction)


class ComplementCrossEntropy(Loss):
    """Complement cross-entropy, from `"Imbalanced Image Classification with Complement Cross Entropy"
    <https://arxiv.org/abs/2009.02189>`_: the cross-entropy plus the entropy among the wrong classes.

    Args:
        gamma: factor of the complement entropy; negative to spread what is left over the wrong classes.
        **kwargs: arguments of :class:`Loss`.

    Shape:
        - input: logits, (N, K, ...), with K at least 2
        - target: class indices, (N, ...)
        - output: scalar, or (N, ...) if ``reduction="none"``
    """

    def __init__(self, gamma: float = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma: float = gamma

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the predictions ``x``."""
        return F.complement_cross_entropy(x, target, self.weight, self.ignore_index, self.reduction, self.gamma)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"gamma={self.gamma}, {super().extra_repr()}"


class MutualChannelLoss(Loss):
    """Mutual-channel loss, from `"The Devil is in the Channels: Mutual-Channel Loss for Fine-Grained Image
    Classification" <https://arxiv.org/abs/2002.04264>`_, on the feature map itself. In training mode half of the
    channels of each class, drawn at each call, are left out of the discriminative term.

    Args:
        weight: class weights, see :class:`Loss`.
        ignore_index: target value that does not contribute.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        xi: channels per class.
        alpha: weight of the diversity term.

    Shape:
        - input: feature map, (N, K * xi, ...)
        - target: class indices, (N,)
        - output: scalar, or (N,) if ``reduction="none"``

    Raises:
        ValueError: if ``xi`` is below 1.
    """

    def __init__(
        self,
        weight: float | list[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        xi: int = 2,
        alpha: float = 1,
    ) -> None:
        super().__init__(weight, ignore_index, reduction)
        if xi < 1:
            raise ValueError(f"xi has to be 1 or more, got {xi}")
        self.xi: int = xi
        self.alpha: float = alpha

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the predictions ``x``."""
        return F.mutual_channel_loss(
            x, target, self.weight, self.ignore_index, self.reduction, self.xi, self.alpha, self.training
        )

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"xi={self.xi}, alpha={self.alpha}, {super().extra_repr()}"


class DiceLoss(Loss):
    """Dice loss, from `"V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation"
    <https://arxiv.org/abs/1606.04797>`_. It takes probabilities: put a softmax or a sigmoid before it.

    Args:
        weight: class weights, see :class:`Loss`.
        gamma: above 1 recall counts more, below 1 precision.
        eps: keeps the ratio defined where a class is neither predicted nor present.

    Shape:
        - input: probabilities, (N, K, ...)
        - target: probabilities, (N, K, ...), or class indices, (N, ...)
        - output: scalar

    Raises:
        ValueError: if ``gamma`` or ``eps`` is negative.
    """

    def __init__(
        self,
        weight: float | list[float] | Tensor | None = None,
        gamma: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(weight)
        if gamma < 0 or eps < 0:
            raise ValueError(f"gamma and eps have to be 0 or more, got {gamma} and {eps}")
        self.gamma: float = gamma
        self.eps: float = eps

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the predictions ``x``."""
        return F.dice_loss(x, target, self.weight, self.gamma, self.eps, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"gamma={self.gamma}, eps={self.eps}, {super().extra_repr()}"


class PolyLoss(Loss):
    r"""Poly-1 loss, from `"PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions"
    <https://arxiv.org/abs/2204.12511>`_.

    .. math:: L_{Poly1} = -\log(p_t) + \epsilon_1 (1 - p_t)

    Args:
        *args: arguments of :class:`Loss`.
        eps: :math:`\epsilon_1`.
        **kwargs: arguments of :class:`Loss`.

    Shape:
        - input: logits, (N, K, ...)
        - target: class indices, (N, ...), or class probabilities, (N, K, ...)
        - output: scalar, or (N, ...) if ``reduction="none"``
    """

    def __init__(self, *args: Any, eps: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eps: float = eps

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of the predictions ``x``."""
        return F.poly_loss(x, target, self.eps, self.weight, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"eps={self.eps}, {super().extra_repr()}"


class ClassBalancedWrapper(nn.Module):
    r"""Weigh the classes of a loss by their effective number of samples, from `"Class-Balanced Loss Based on Effective
    Number of Samples" <https://arxiv.org/abs/1901.05555>`_.

    .. math:: CB(p, y) = \frac{1 - \beta}{1 - \beta^{n_y}} \mathcal{L}(p, y)

    The weights become, or multiply, the ``weight`` of the criterion.

    Args:
        criterion: loss module with a ``weight`` attribute, None or of shape (K,).
        num_samples: training samples of each class, of shape (K,), all at least 1.
        beta: from 0 (no rebalancing) to, exclusively, 1 (towards inverse frequency).

    Shape:
        - input, target and output: those of the criterion

    Raises:
        ValueError: if the criterion takes no class weights, ``beta`` is not in [0, 1), a class has no sample, or
            ``num_samples`` is not of the shape of the criterion's weights.
    """

    def __init__(self, criterion: nn.Module, num_samples: Tensor, beta: float = 0.99) -> None:
        super().__init__()
        if not hasattr(criterion, "weight"):
            raise ValueError(f"criterion has to take class weights, {type(criterion).__name__} has no `weight`")
        if not 0 <= beta < 1:
            raise ValueError(f"beta has to be in [0, 1), got {beta}")
        if num_samples.ndim != 1 or (num_samples < 1).any():
            raise ValueError(f"num_samples has to be 1 or more for each class, got {num_samples.tolist()}")
        weight = criterion.weight
        if isinstance(weight, Tensor) and weight.shape != num_samples.shape:
            raise ValueError(f"num_samples has to hold {weight.numel()} values like the criterion's weight")
        self.criterion = criterion
        self.beta: float = beta
        # In float64: for a beta close to 1, 1 - beta ** n would lose its digits.
        cb_weight = (1 - beta) / (1 - beta ** num_samples.double())
        if isinstance(weight, Tensor):
            criterion.weight = weight * cb_weight.to(dtype=weight.dtype, device=weight.device)
        else:
            criterion.weight = cb_weight.to(torch.get_default_dtype())

    @property
    def reduction(self) -> str:
        """The reduction of the criterion."""
        return cast(str, self.criterion.reduction)

    @reduction.setter
    def reduction(self, reduction: str) -> None:
        self.criterion.reduction = reduction  # type: ignore[assignment]

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the criterion with the balanced weights."""
        return self.criterion(x, target)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"beta={self.beta}"
