"""How numbers are written for people: few digits, a real minus sign, a dash for what is not known."""

from __future__ import annotations

import math

UNKNOWN = "–"
_SPACE = "\u00a0"
"""Between a number and its unit, where no line breaks."""


def fixed(value: float | None, decimals: int) -> str:
    """A number with so many decimals, so that a column of them is aligned."""
    return _written(value, f"{{:.{decimals}f}}")


def significant(value: float | None, digits: int = 3, zeros: bool = False) -> str:
    """A number of any magnitude with so many digits, zeros at their end included or not."""
    return _written(value, f"{{:{'#' if zeros else ''}.{digits}g}}")


def percent(share: float | None, decimals: int = 1) -> str:
    """A share of 1 in percent."""
    return with_unit(fixed(None if share is None else 100 * share, decimals), "%")


def decibels(value: float | None) -> str:
    """A ratio in decibels."""
    return with_unit(fixed(value, 1), "dB")


def with_unit(text: str, unit: str) -> str:
    """A number that is written already, and its unit."""
    return text if text == UNKNOWN else f"{text}{_SPACE}{unit}"


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 119.5:
        return with_unit(fixed(value, 1 if value < 9.95 else 0), "s")
    minutes, rest = divmod(round(value), 60)
    return f"{with_unit(str(minutes), 'min')} {with_unit(f'{rest:02}', 's')}"


def finite(value: float | None) -> bool:
    """Whether there is a number, and it is one that can be drawn."""
    return value is not None and math.isfinite(value)


def _written(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = form.format(value)
    mantissa, _, exponent = text.partition("e")
    text = f"{mantissa.rstrip('.')}e{int(exponent)}" if exponent else text.rstrip(".")
    if not any(c in "123456789" for c in text.partition("e")[0]):
        text = text.lstrip("-")  # no negative zero
    return text.replace("-", "−")
