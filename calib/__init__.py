"""What a model sees when it is calibrated: image readers, range observers, the calibration cache, sample images."""

from .cache import CACHE_NAME, CalibrationCache, cached_ranges, read_cache
from .collect import collect_ranges
from .errors import CalibrationError
from .images import ImageStream, find_images, find_labelled_images, images_digest
from .observers import METHODS, Observer, TensorRange, make_observer
from .samples import sample_folder

__all__ = [
    "CACHE_NAME",
    "METHODS",
    "CalibrationCache",
    "CalibrationError",
    "ImageStream",
    "Observer",
    "TensorRange",
    "cached_ranges",
    "collect_ranges",
    "find_images",
    "find_labelled_images",
    "images_digest",
    "make_observer",
    "read_cache",
    "sample_folder",
]
