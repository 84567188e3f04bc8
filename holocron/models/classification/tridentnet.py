"""TridentNet: three branches that share their weights and differ in dilation, thus in the size of what they see."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holocron.models.classification.residual import Bottleneck
from holocron.models.classification.resnet import ResNet, build_resnet
from holocron.models.registry import register_model

__all__ = ["tridentnet50"]

_NUM_BRANCHES = 3


class TridentConv2d(nn.Conv2d):
    """One convolution applied to each branch, whose channels lie one after the other, with dilations 1, 2, 3, ...

    Its weight, ``in_channels`` and ``out_channels`` are those of one branch; padding grows with the dilation, so that
    the branches keep the same size. A 1 × 1 kernel has nothing to dilate.

    Args:
        in_channels: channels of the input, of all branches together.
        out_channels: channels of the output, likewise.
        kernel_size: side of the square kernel.
        stride: stride in pixels.
        padding: zero padding on each side of the branch without dilation.
        num_branches: number of branches.
        **options: further arguments of :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: if the branches do not share the channels evenly.

    Shape:
        - input: (N, in_channels, H, W)
        - output: (N, out_channels, H', W')
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        num_branches: int = _NUM_BRANCHES,
        **options: Any,
    ) -> None:
        if num_branches < 1 or in_channels % num_branches or out_channels % num_branches:
            raise ValueError(f"{num_branches} branches cannot share {in_channels} and {out_channels} channels evenly")
        super().__init__(
            in_channels // num_branches, out_channels // num_branches, kernel_size, stride, padding, **options
        )
        self.num_branches: int = num_branches

    def forward(self, x: Tensor) -> Tensor:
        """Convolve each branch of ``x``."""
        outputs = []
        for index, branch in enumerate(x.chunk(self.num_branches, dim=1)):
            rate = index + 1 if self.kernel_size != (1, 1) else 1
            padding = [rate * int(side) for side in self.padding]
            outputs.append(F.conv2d(branch, self.weight, self.bias, self.stride, padding, rate, self.groups))
        return torch.cat(outputs, dim=1)

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"{super().extra_repr()}, num_branches={self.num_branches}"


@register_model()
def tridentnet50(pretrained: bool = False, progress: bool = True, **kwargs: Any) -> ResNet:
    """TridentNet-50 from `"Scale-Aware Trident Networks for Object Detection" <https://arxiv.org/abs/1901.01892>`_.

    In every block three branches share their weights, with normalizations of their own; only where a stage begins does
    the projection beside it mix them. All of them take part in training and in evaluation.

    Args:
        pretrained: load the default weights; none are published, so this raises an error.
        progress: draw a progress bar while weights are downloaded.
        **kwargs: arguments of :class:`ResNet`, such as ``num_classes`` (10 by default) and ``in_channels`` (3).

    Returns:
        the model, in training mode
    """
    return build_resnet(
        "tridentnet50",
        partial(Bottleneck, conv_layer=TridentConv2d),
        (3, 4, 6, 3),
        None,
        pretrained,
        None,
        progress,
        kwargs,
        widths=[_NUM_BRANCHES * width for width in (64, 128, 256, 512)],
        num_branches=_NUM_BRANCHES,
    )
