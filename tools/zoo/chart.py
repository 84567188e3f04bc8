"""The picture: latency against parameters, both logarithmic, an arrow from float32 to INT8 for each architecture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .row import Row

_WIDTH, _HEIGHT = 1040, 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 50, 60
_FONT_SIZE, _CHARACTER_WIDTH = 10, 5.6
_RADIUS = 4.0
# Paul Tol's "muted" and "bright" qualitative schemes, which stay apart for colour-blind readers.
_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677",
    "#882255", "#aa4499", "#4477aa", "#ee6677", "#228833", "#66ccee", "#bbbbbb",
)  # fmt: skip

_Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis between two positions in the picture.

    Attributes:
        low: smallest value, at `start`.
        high: largest value, at `end`.
        start: position in pixels.
        end: position in pixels.
    """

    low: float
    high: float
    start: float
    end: float

    @staticmethod
    def around(values: Sequence[float], start: float, end: float) -> Axis:
        """An axis that leaves a little room on both sides of the values."""
        return Axis(min(values) / 1.25, max(values) * 1.25, start, end)

    def position(self, value: float) -> float:
        """Where a value is, in pixels."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """The values 1, 2 and 5 times a power of ten that are on the axis."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [v for d in decades for m in (1, 2, 5) if self.low <= (v := m * 10.0**d) <= self.high]


_RELATIVES = {
    "cspdarknet": "darknet",
    "pyconvhg": "pyconv",
    "res": "res2net",
    "unetp": "unet",
    "unetpp": "unet",
    "yolov": "yolo",
}


def family(arch: str) -> str:
    """The family that shares a colour: the name up to the first digit or underscore, `resnet` of `resnet50d`."""
    match = re.match(r"[a-z]+", arch)
    stem = match[0] if match else arch
    return _RELATIVES.get(stem, stem)


def to_svg(rows: Sequence[Row], title: str) -> str:
    """Draw the rows that have a latency.

    Args:
        rows: the table
        title: written above the picture

    Returns:
        a stand-alone SVG picture, the same for the same rows
    """
    drawn = [row for row in rows if row.parameters and row.fp32_ms]
    families = sorted({family(row.arch) for row in drawn})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(families)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="{_FONT_SIZE}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 24, title, size=15),
    ]
    if drawn:
        x = Axis.around([row.parameters / 1e6 for row in drawn if row.parameters], _LEFT, _WIDTH - _RIGHT)
        latencies = [ms for row in drawn for ms in (row.fp32_ms, row.int8_ms) if ms]
        y = Axis.around(latencies, _HEIGHT - _BOTTOM, _TOP)
        parts += _grid(x, y)
        parts += [_point(row, x, y, colours[family(row.arch)]) for row in drawn]
        parts += _labels(drawn, x, y)
        parts += _legend(colours)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in x.ticks():
        at = x.position(value)
        parts.append(_line(at, y.start, at, y.end, "#e4e4e4"))
        parts.append(_text(at, y.start + 16, f"{value:g}", anchor="middle"))
    for value in y.ticks():
        at = y.position(value)
        parts.append(_line(x.start, at, x.end, at, "#e4e4e4"))
        parts.append(_text(x.start - 6, at + 3.5, f"{value:g}", anchor="end"))
    parts.append(_text((x.start + x.end) / 2, y.start + 40, "parameters, millions", size=12, anchor="middle"))
    middle = (y.start + y.end) / 2
    turn = f' transform="rotate(-90 22 {middle:.1f})"'
    parts.append(_text(22, middle, "latency, milliseconds", size=12, anchor="middle", more=turn))
    return parts


def _point(row: Row, x: Axis, y: Axis, colour: str) -> str:
    assert row.parameters
    assert row.fp32_ms
    at, upper = x.position(row.parameters / 1e6), y.position(row.fp32_ms)
    says = f"{row.arch}: {row.parameters / 1e6:.1f} M parameters, float32 {row.fp32_ms:.1f} ms"
    shapes = [_circle(at, upper, colour, "white")]
    if row.int8_ms:
        lower = y.position(row.int8_ms)
        says += f", INT8 {row.int8_ms:.1f} ms"
        shapes = [_line(at, upper, at, lower, colour), *shapes, _circle(at, lower, colour, colour)]
    return f"<g><title>{escape(says)}</title>{''.join(shapes)}</g>"


def _labels(rows: Sequence[Row], x: Axis, y: Axis) -> list[str]:
    """Names beside the points, each on the first side where it covers nothing; a name that fits nowhere is left out."""
    stems = {row.arch: _stem(row, x, y) for row in rows}
    taken = list(stems.values())
    parts = []
    for arch, (left, top, right, bottom) in stems.items():
        width, middle = len(arch) * _CHARACTER_WIDTH, (left + right) / 2
        beside = top + _RADIUS + 3.5
        places = ((right + 3, beside), (left - 3 - width, beside), (middle - width / 2, top - 3))
        for start, base in (*places, (middle - width / 2, bottom + _FONT_SIZE)):
            box = (start, base - _FONT_SIZE + 1, start + width, base + 2)
            inside = box[0] >= x.start and box[2] <= x.end and box[1] >= y.end and box[3] <= y.start
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(_text(start, base, arch, colour="#444444"))
                break
    return parts


def _stem(row: Row, x: Axis, y: Axis) -> _Box:
    """What the points of a row and the line between them cover."""
    assert row.parameters
    assert row.fp32_ms
    at, heights = x.position(row.parameters / 1e6), [y.position(ms) for ms in (row.fp32_ms, row.int8_ms) if ms]
    return at - _RADIUS, min(heights) - _RADIUS, at + _RADIUS, max(heights) + _RADIUS


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(colours: dict[str, str]) -> list[str]:
    left, top = _WIDTH - _RIGHT + 24, _TOP + 6
    parts = [_circle(left, top, "#444444", "white"), _text(left + 10, top + 3.5, "float32")]
    parts += [_circle(left, top + 18, "#444444", "#444444"), _text(left + 10, top + 21.5, "INT8")]
    for i, (name, colour) in enumerate(colours.items()):
        at = top + 48 + 17 * i
        parts += [_circle(left, at, colour, colour), _text(left + 10, at + 3.5, name)]
    return parts


def _circle(x: float, y: float, stroke: str, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS:g}" stroke="{stroke}" stroke-width="1.5" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    size: float = _FONT_SIZE,
    anchor: str = "start",
    colour: str = "#222222",
    more: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{more}>'
        f"{escape(text)}</text>"
    )
