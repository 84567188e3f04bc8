"""How numbers are written for people: few digits, a real minus sign, a dash for what is not known."""

from __future__ import annotations

import math

UNKNOWN = "–"


def fixed(value: float | None, decimals: int) -> str:
    """A number with so many decimals, so that a column of them is aligned."""
    return _written(value, f"{{:.{decimals}f}}")


def significant(value: float | None, digits: int = 3, zeros: bool = False) -> str:
    """A number of any magnitude with so many digits, zeros at their end included or not."""
    return _written(value, f"{{:{'#' if zeros else ''}.{digits}g}}")


def percent(share: float | None, decimals: int = 1) -> str:
    """A share of 1 in percent."""
    text = fixed(None if share is None else 100 * share, decimals)
    return text if text == UNKNOWN else f"{text} %"


def decibels(value: float | None) -> str:
    """A ratio in decibels."""
    text = fixed(value, 1)
    return text if text == UNKNOWN else f"{text} dB"


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 119.5:
        return f"{fixed(value, 1 if value < 9.95 else 0)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s"


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
