"""Open a bundle and run it: numpy and Pillow, and whichever backend is installed.

    import runtime

    model = runtime.load("repvgg_a0")
    model("cat.jpg").top(3)

Importing this imports no backend.
"""

from .backends.engine_options import EngineOptions
from .detections import Detection, Detections
from .errors import BackendError, BundleError, HolocronError, ImageError, InputError
from .model import Model, load
from .results import Classification, Prediction, Region, Segmentation, TopClasses
from .video import Video, open_video

__all__ = [
    "BackendError",
    "BundleError",
    "Classification",
    "Detection",
    "Detections",
    "EngineOptions",
    "HolocronError",
    "ImageError",
    "InputError",
    "Model",
    "Prediction",
    "Region",
    "Segmentation",
    "TopClasses",
    "Video",
    "load",
    "open_video",
]
