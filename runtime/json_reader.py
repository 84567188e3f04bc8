"""Reading values out of decoded JSON: each is of the type that is expected, or the error names its place."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from .errors import BundleError

_MAX_NUMBER = 1e30  # far inside float32, which numbers of the preprocessing become
_T = TypeVar("_T")


class JsonReader:
    """Checks values of decoded JSON. Its methods raise a :class:`~runtime.errors.BundleError` for any other value.

    Args:
        where: what to call the whole in an error
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, place: str, message: str) -> BundleError:
        """An error, to be raised, that names the place of what is wrong."""
        return BundleError(f"{self.where}: {place} {message}")

    def keys(self, data: Mapping[str, Any], of: Any, place: str) -> None:
        """Make sure that an object has the keys of a dataclass: those without a default, and no unknown ones."""
        known = {f.name for f in fields(of)}
        needed = {f.name for f in fields(of) if not _has_default(f)}
        unknown, missing = sorted(set(data) - known), sorted(needed - set(data))
        if unknown:
            raise self.fail(place, f"has the unknown key {shortened(unknown[0])}")
        if missing:
            raise self.fail(place, f"lacks the key {missing[0]!r}")

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        """An object."""
        if not isinstance(value, dict):
            raise self.fail(place, f"is {kind_of(value)}, expected an object")
        return value

    def sequence(self, value: Any, place: str, item: Callable[[Any, str], _T]) -> tuple[_T, ...]:
        """A list whose entries `item` reads."""
        if not isinstance(value, list):
            raise self.fail(place, f"is {kind_of(value)}, expected a list")
        return tuple(item(v, f"{place}[{i}]") for i, v in enumerate(value))

    def text(self, value: Any, place: str) -> str:
        """A string."""
        if not isinstance(value, str):
            raise self.fail(place, f"is {kind_of(value)}, expected a string")
        return value

    def choice(self, value: Any, place: str, choices: tuple[str, ...]) -> str:
        """One of several strings."""
        if value not in choices or not isinstance(value, str):
            raise self.fail(place, f"is {shortened(value)}, expected one of {', '.join(choices)}")
        return value

    def integer(self, value: Any, place: str, lowest: int, highest: int) -> int:
        """An integer between two bounds, both included."""
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise self.fail(place, f"is {shortened(value)}, expected an integer from {lowest} to {highest}")
        return value

    def optional_integer(self, data: Mapping[str, Any], key: str, place: str, lowest: int, highest: int) -> int | None:
        """As :meth:`integer`; None where the object has no such key or null."""
        value = data.get(key)
        return None if value is None else self.integer(value, f"{place}.{key}", lowest, highest)

    def boolean(self, value: Any, place: str) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            raise self.fail(place, f"is {shortened(value)}, expected true or false")
        return value

    def number(self, value: Any, place: str) -> float:
        """A finite number."""
        # Compared, not converted: math.isfinite overflows on an integer of 400 digits.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= _MAX_NUMBER:
            raise self.fail(place, f"is {shortened(value)}, expected a finite number")
        return float(value)


def _has_default(f: Any) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def shortened(value: Any) -> str:
    """A value for an error message."""
    return reprlib.repr(value)  # an error stays one line, whatever a hostile manifest holds


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
