"""HTML and SVG from values. Plain text is escaped wherever it is put; only what was made here counts as markup.

Every element is written as XML too, so that a page can be checked by any XML parser.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

_EMPTY = frozenset(("meta", "circle", "line", "path", "rect"))
"""Elements without content."""


class Markup(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


Content = str | Iterable["Content"] | None
"""Plain text, markup, several of them, or nothing."""


def clean(text: str) -> str:
    """Text without what no page can hold: control characters, lone surrogates, and marks that turn the direction."""
    return "".join(c if c.isprintable() or c == "\u00a0" else "\ufffd" for c in text)


def shortened(text: str, length: int) -> str:
    """Text of at most that many characters; of a longer one the middle is left out."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def markup(content: Content) -> Markup:
    """Content as markup, plain text escaped."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(clean(content), quote=True))
    return Markup("".join(markup(part) for part in content))


def element(tag: str, *content: Content, **attributes: str | float | None) -> Markup:
    """An element of HTML or SVG.

    Args:
        tag: its name
        content: what it holds, in order
        attributes: by name, `_` standing for `-`, one at the end dropped (`class_`); those that are None are left out

    Returns:
        the element
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{markup(number(value) if isinstance(value, (int, float)) else value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY and not content:
        return Markup(f"<{tag}{given}/>")
    return Markup(f"<{tag}{given}>{markup(content)}</{tag}>")


def number(value: float) -> str:
    """A coordinate: at most two decimals, which is less than a pixel of any screen."""
    text = f"{value:.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
