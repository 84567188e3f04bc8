from holocron.models.segmentation.unet import (
    DynamicUNet,
    UNet,
    unet,
    unet2,
    unet_rexnet13,
    unet_tvresnet34,
    unet_tvvgg11,
)
from holocron.models.segmentation.unet3p import UNet3p, unet3p
from holocron.models.segmentation.unetpp import UNetp, UNetpp, unetp, unetpp

__all__ = [
    "DynamicUNet",
    "UNet",
    "UNet3p",
    "UNetp",
    "UNetpp",
    "unet",
    "unet2",
    "unet3p",
    "unet_rexnet13",
    "unet_tvresnet34",
    "unet_tvvgg11",
    "unetp",
    "unetpp",
]
