"""Functional forms of the layers and losses of `holocron.nn`."""

from .activation import hard_mish, nl_relu
from .conv import add2d, norm_conv2d
from .downsample import concat_downsample2d, z_pool
from .dropblock import dropblock2d
from .loss import (
    complement_cross_entropy,
    dice_loss,
    focal_loss,
    multilabel_cross_entropy,
    mutual_channel_loss,
    poly_loss,
)

__all__ = [
    "add2d",
    "complement_cross_entropy",
    "concat_downsample2d",
    "dice_loss",
    "dropblock2d",
    "focal_loss",
    "hard_mish",
    "multilabel_cross_entropy",
    "mutual_channel_loss",
    "nl_relu",
    "norm_conv2d",
    "poly_loss",
    "z_pool",
]
