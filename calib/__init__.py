"""What a model sees when it is calibrated: image readers, range observers, the calibration cache, sample images."""

from .cache import (
    AUTO,
    CACHE_NAME,
    EFFORTS,
    CalibrationCache,
    CalibrationSettings,
    SchemeCalibration,
    read_cache,
    read_calibration,
)
from .collect import collect_ranges
from .errors import CalibrationError
from .images import ImageStream, find_images, find_labelled_images, images_digest
from .observers import METHODS, Observer, TensorRange, make_observer
from .samples import sample_folder

__all__ = [
    "AUTO",
    "CACHE_NAME",
    "EFFORTS",
    "METHODS",
    "CalibrationCache",
    "CalibrationError",
    "CalibrationSettings",
    "ImageStream",
    "Observer",
    "SchemeCalibration",
    "TensorRange",
    "collect_ranges",
    "find_images",
    "find_labelled_images",
    "images_digest",
    "make_observer",
    "read_cache",
    "read_calibration",
    "sample_folder",
]
