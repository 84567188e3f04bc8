"""`calibration.json`: the ranges of a bundle's tensors, and what they were measured with.

A rerun with the same model, images, preprocessing and method reads it and skips the calibration. The file is a JSON
object with the keys `schema_version` (1), `method`, `model` and `images` (SHA-256 of the float network and of the
images), `image_count`, `preprocessing` (as in the manifest) and `ranges`: by tensor, `minimum`, `maximum`, `symmetric`
and `asymmetric` (two numbers). Unknown keys, missing keys and numbers that are not finite are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runtime.manifest import INTERPOLATIONS, PAD_MODES, RESIZE_MODES, Preprocessing

from .errors import CalibrationError
from .observers import METHODS, TensorRange

CACHE_NAME = "calibration.json"
CACHE_VERSION = 1

_MAX_BYTES = 64 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CalibrationCache:
    """The ranges of one calibration and what they depend on.

    Attributes:
        method: of the observers.
        model: SHA-256 of the float network that ran.
        images: :func:`~calib.images.images_digest` of the images.
        image_count: number of images that were read.
        preprocessing: how they became the network's input.
        ranges: by tensor.
    """

    method: str
    model: str
    images: str
    image_count: int
    preprocessing: Preprocessing
    ranges: Mapping[str, TensorRange]

    def mismatch(
        self,
        method: str,
        model: str,
        images: str,
        preprocessing: Preprocessing,
        tensors: tuple[str, ...] = (),
    ) -> str | None:
        """Why the ranges do not serve a calibration; None if they do.

        Args:
            method: asked for
            model: SHA-256 of the float network
            images: digest of the images
            preprocessing: of the images
            tensors: whose ranges are needed

        Returns:
            the reason in a few words, or None
        """
        if self.model != model:
            return "the model is another"
        if self.images != images:
            return "the images are others"
        if self.preprocessing != preprocessing:
            return "the preprocessing is another"
        if self.method != method:
            return f"it was made with the method {self.method}"
        missing = [name for name in tensors if name not in self.ranges]
        return f"it lacks the tensor {missing[0]!r}" if missing else None

    def to_json(self) -> str:
        """The cache as it stands in `calibration.json`; the same for the same cache."""
        data = {"schema_version": CACHE_VERSION, **asdict(self)}
        data["ranges"] = dict(sorted(data["ranges"].items()))
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = CACHE_NAME) -> CalibrationCache:
        """Parse and check a cache.

        Args:
            text: JSON
            where: what to call it in an error

        Returns:
            the cache

        Raises:
            CalibrationError: if it is not a cache of this version, with what is wrong
        """
        try:
            return _parse(json.loads(text))
        except (ValueError, RecursionError) as e:
            raise CalibrationError(f"{where} is not a calibration cache ({e}): delete it to calibrate again") from e


def read_cache(path: Path) -> CalibrationCache:
    """Read and check a `calibration.json`.

    Args:
        path: the file

    Returns:
        the cache

    Raises:
        CalibrationError: if it cannot be read, or is not a cache of this version
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CalibrationError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: this is not a calibration cache")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CalibrationError(f"cannot read {path}: {e}") from e
    return CalibrationCache.from_json(text, str(path))


def cached_ranges(
    path: Path,
    method: str,
    model: str,
    images: str,
    preprocessing: Preprocessing,
    tensors: tuple[str, ...] = (),
) -> tuple[CalibrationCache | None, str]:
    """The cache at `path` if it serves this calibration. Whatever is wrong with it only means to calibrate again.

    Args:
        path: a `calibration.json`, which need not exist
        method: asked for
        model: SHA-256 of the float network
        images: digest of the images
        preprocessing: of the images
        tensors: whose ranges are needed

    Returns:
        the cache and an empty string, or None and the reason
    """
    try:
        cache = read_cache(path)
    except CalibrationError as e:
        return None, "there is none" if isinstance(e.__cause__, FileNotFoundError) else str(e)
    reason = cache.mismatch(method, model, images, preprocessing, tensors)
    return (cache, "") if reason is None else (None, reason)


def _parse(data: Any) -> CalibrationCache:
    """Turn decoded JSON into a cache; a ValueError says what is wrong."""
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    version = data.pop("schema_version", None)
    if version != CACHE_VERSION or isinstance(version, bool):
        raise ValueError(f"its schema_version is {version!r}, this release reads {CACHE_VERSION}")
    _check_keys(data, CalibrationCache, "the top level")
    if data["method"] not in METHODS:
        raise ValueError(f"method is {data['method']!r}")
    for key in ("model", "images"):
        if not isinstance(data[key], str) or not _SHA256.fullmatch(data[key]):
            raise ValueError(f"{key} is {data[key]!r}, no SHA-256")
    count = data["image_count"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"image_count is {count!r}")
    if not isinstance(data["ranges"], dict):
        raise ValueError("ranges is no object")
    ranges = {name: _range(value, f"ranges[{name!r}]") for name, value in data["ranges"].items()}
    preprocessing = _preprocessing(data["preprocessing"])
    return CalibrationCache(data["method"], data["model"], data["images"], count, preprocessing, ranges)


def _preprocessing(data: Any) -> Preprocessing:
    _check_keys(data, Preprocessing, "preprocessing")
    height, width = _numbers(data["size"], 2, "preprocessing.size")
    mean, std = (_numbers(data[key], 3, f"preprocessing.{key}") for key in ("mean", "std"))
    for key, choices in (("resize", RESIZE_MODES), ("pad_mode", PAD_MODES), ("interpolation", INTERPOLATIONS)):
        if data[key] not in choices:
            raise ValueError(f"preprocessing.{key} is {data[key]!r}")
    if height != int(height) or width != int(width) or min(height, width) < 1 or min(std) <= 0:
        raise ValueError(f"preprocessing has size {data['size']!r} and std {data['std']!r}")
    return Preprocessing(
        size=(int(height), int(width)),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        resize=data["resize"],
        pad_mode=data["pad_mode"],
        interpolation=data["interpolation"],
    )


def _range(data: Any, place: str) -> TensorRange:
    _check_keys(data, TensorRange, place)
    minimum, maximum, symmetric = _numbers([data[k] for k in ("minimum", "maximum", "symmetric")], 3, place)
    low, high = _numbers(data["asymmetric"], 2, place)
    if not (minimum <= maximum and symmetric > 0 and low <= 0 <= high and low < high):
        raise ValueError(f"{place} is no range: {data!r}")
    return TensorRange(minimum, maximum, symmetric, (low, high))


def _numbers(value: Any, count: int, place: str) -> tuple[float, ...]:
    def finite(v: Any) -> bool:
        return isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e300 and math.isfinite(v)

    if not isinstance(value, list) or len(value) != count or not all(map(finite, value)):
        raise ValueError(f"{place} holds {value!r}, expected {count} finite numbers")
    return tuple(float(v) for v in value)


def _check_keys(data: Any, of: Any, place: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{place} is no object")
    expected = {f.name for f in fields(of)}
    wrong = sorted(set(data) ^ expected)
    if wrong:
        raise ValueError(f"{place} {'lacks' if wrong[0] in expected else 'has the unknown'} key {wrong[0]!r}")
