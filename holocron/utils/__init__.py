"""Small helpers around data."""

from holocron.utils import data
from holocron.utils.misc import find_image_size, parallel

__all__ = ["data", "find_image_size", "parallel"]
