"""`calibration.json`: how a bundle's INT8 graphs were calibrated.

A rerun with the same model, images, preprocessing and settings reads it and skips what was measured. The file is a JSON
object with the keys `schema_version` (2), `method`, `effort`, `per_tensor` and `seed` (the settings), `model` and
`images` (SHA-256 of the float network and of the images), `image_count`, `preprocessing` (as in the manifest) and
`schemes`: by scheme `ranges` (by tensor, `minimum`, `maximum`, `symmetric` and `asymmetric`, two numbers), `chosen` (by
tensor, what chose its range), `factors` (by tensor, what its channels were multiplied with) and `kept_float` (by layer
that stays in higher precision, why). Unknown keys, missing keys and numbers that are not finite are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.manifest import INTERPOLATIONS, PAD_MODES, RESIZE_MODES, SCHEMES, Preprocessing

from .errors import CalibrationError
from .observers import METHODS, TensorRange

CACHE_NAME = "calibration.json"
CACHE_VERSION = 2
AUTO = "auto"
"""The method that takes for each tensor the range with the least error at the network's output."""
EFFORTS = ("fast", "normal", "high")

_MAX_BYTES = 64 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CalibrationSettings:
    """What is asked of a calibration.

    Attributes:
        method: :data:`AUTO`, or one of :data:`~calib.observers.METHODS` for all tensors.
        effort: one of :data:`EFFORTS`.
        per_tensor: one scale for all weights of a layer, in place of one an output channel.
        seed: of all that is drawn.
    """

    method: str = AUTO
    effort: str = "normal"
    per_tensor: bool = False
    seed: int = 0


@dataclass(frozen=True)
class SchemeCalibration:
    """What was measured for one quantization scheme.

    Attributes:
        ranges: by tensor of the rescaled network.
        chosen: what chose each of them.
        factors: what the channels of tensors were multiplied with, by the name of the first of those scaled alike.
        kept_float: layers that stay in higher precision, and why.
    """

    ranges: Mapping[str, TensorRange]
    chosen: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    kept_float: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationCache:
    """The calibration of a bundle and what it depends on.

    Attributes:
        settings: what was asked.
        model: SHA-256 of the float network that ran.
        images: :func:`~calib.images.images_digest` of the images.
        image_count: number of images that were read.
        preprocessing: how they became the network's input.
        schemes: what was measured, by scheme.
    """

    settings: CalibrationSettings
    model: str
    images: str
    image_count: int
    preprocessing: Preprocessing
    schemes: Mapping[str, SchemeCalibration]

    def mismatch(
        self, settings: CalibrationSettings, model: str, images: str, preprocessing: Preprocessing
    ) -> str | None:
        """Why what was measured does not serve a calibration; None if it does.

        Args:
            settings: asked for
            model: SHA-256 of the float network
            images: digest of the images
            preprocessing: of the images

        Returns:
            the reason in a few words, or None
        """
        if self.model != model:
            return "the model is another"
        if self.images != images:
            return "the images are others"
        if self.preprocessing != preprocessing:
            return "the preprocessing is another"
        for entry in fields(CalibrationSettings):
            ours = getattr(self.settings, entry.name)
            if ours != getattr(settings, entry.name):
                return f"it was made with {entry.name.replace('_', ' ')} {str(ours).lower()}"
        return None

    def to_json(self) -> str:
        """The cache as it stands in `calibration.json`; the same for the same cache."""
        data = {"schema_version": CACHE_VERSION, **asdict(self.settings), **asdict(self)}
        del data["settings"]
        data["schemes"] = {
            scheme: {part: dict(sorted(entries.items())) for part, entries in parts.items()}
            for scheme, parts in sorted(data["schemes"].items())
        }
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

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


def read_calibration(
    path: Path, settings: CalibrationSettings, model: str, images: str, preprocessing: Preprocessing
) -> tuple[CalibrationCache | None, str]:
    """The cache at `path` if it serves this calibration. Whatever is wrong with it only means to calibrate again.

    Args:
        path: a `calibration.json`, which need not exist
        settings: asked for
        model: SHA-256 of the float network
        images: digest of the images
        preprocessing: of the images

    Returns:
        the cache and an empty string, or None and the reason
    """
    try:
        cache = read_cache(path)
    except CalibrationError as e:
        return None, "there is none" if isinstance(e.__cause__, FileNotFoundError) else str(e)
    reason = cache.mismatch(settings, model, images, preprocessing)
    return (cache, "") if reason is None else (None, reason)


def _parse(data: Any) -> CalibrationCache:
    """Turn decoded JSON into a cache; a ValueError says what is wrong."""
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    version = data.pop("schema_version", None)
    if version != CACHE_VERSION or isinstance(version, bool):
        raise ValueError(f"its schema_version is {version!r}, this release reads {CACHE_VERSION}")
    settings = {entry.name: data.pop(entry.name) for entry in fields(CalibrationSettings) if entry.name in data}
    _check_keys(settings, CalibrationSettings, "the top level")
    _check_keys({**data, "settings": settings}, CalibrationCache, "the top level")
    for key in ("model", "images"):
        if not isinstance(data[key], str) or not _SHA256.fullmatch(data[key]):
            raise ValueError(f"{key} is {data[key]!r}, no SHA-256")
    count = data["image_count"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"image_count is {count!r}")
    schemes = _object(data["schemes"], "schemes")
    unknown = sorted(set(schemes) - set(SCHEMES))
    if unknown:
        raise ValueError(f"schemes has the unknown key {unknown[0]!r}")
    parsed = {scheme: _scheme(value, f"schemes[{scheme!r}]") for scheme, value in schemes.items()}
    preprocessing = _preprocessing(data["preprocessing"])
    return CalibrationCache(_settings(settings), data["model"], data["images"], count, preprocessing, parsed)


def _settings(data: dict[str, Any]) -> CalibrationSettings:
    for key, known in (("method", (AUTO, *METHODS)), ("effort", EFFORTS)):
        if not isinstance(data[key], str) or data[key] not in known:
            raise ValueError(f"{key} is {data[key]!r}")
    if not isinstance(data["per_tensor"], bool):
        raise ValueError(f"per_tensor is {data['per_tensor']!r}")
    if not isinstance(data["seed"], int) or isinstance(data["seed"], bool):
        raise ValueError(f"seed is {data['seed']!r}")
    return CalibrationSettings(**data)


def _scheme(data: Any, place: str) -> SchemeCalibration:
    _check_keys(data, SchemeCalibration, place)
    parts = {key: _object(value, f"{place}.{key}") for key, value in data.items()}
    for key in ("chosen", "kept_float"):
        for name, value in parts[key].items():
            if not isinstance(value, str):
                raise ValueError(f"{place}.{key}[{name!r}] is {value!r}")
    return SchemeCalibration(
        ranges={name: _range(value, f"{place}.ranges[{name!r}]") for name, value in parts["ranges"].items()},
        chosen=parts["chosen"],
        factors={name: _factors(value, f"{place}.factors[{name!r}]") for name, value in parts["factors"].items()},
        kept_float=parts["kept_float"],
    )


def _factors(value: Any, place: str) -> tuple[float, ...]:
    factors = _numbers(value, len(value) if isinstance(value, list) else 1, place)
    if not factors or min(factors) <= 0:
        raise ValueError(f"{place} is not a list of positive numbers")
    return factors


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no object")
    return value


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
