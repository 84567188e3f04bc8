"""Image transforms that :mod:`torchvision.transforms.v2` does not have."""

from holocron.transforms.interpolation import RandomZoomOut, Resize, ResizeMethod

__all__ = ["RandomZoomOut", "Resize", "ResizeMethod"]
