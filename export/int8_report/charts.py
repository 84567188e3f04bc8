"""The pictures of the report, as SVG: what is drawn, and how it is scaled. Colours come from the page's style sheet.

INT8 and float are told apart by fill and outline too, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .figures import decibels, finite, fixed, percent, significant, with_unit
from .markup import Markup, element, number, shortened

if TYPE_CHECKING:
    from ..quantize.summary import Candidate, LayerSummary, RangeSummary

MOST_BINS = 56
MOST_BARS = 24
_WIDEST_NAME = 38
_DECIBELS = (-60.0, 200.0)
"""Ratios are drawn as if they were between these: beyond, there is no signal, or no noise."""
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Scale:
    """Maps values to coordinates, linearly.

    Attributes:
        low: value at `start`.
        high: value at `end`, other than `low`.
        start: coordinate.
        end: coordinate.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value; values beyond the ends lie on them."""
        # Halves, since the difference of two numbers of a float may not be one.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values between two ends, about so many, in steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low] if math.isfinite(low) else []
    rough = high / count - low / count
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 1e-300 else rough
    step = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other beats: none is at most as large in both coordinates and smaller in one.

    Args:
        points: two costs each, the smaller the better; those with a NaN or an infinity are never on the front

    Returns:
        their indices, by the first cost; of equal points the first one's
    """
    usable = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    front: list[int] = []
    for i in sorted(usable, key=lambda i: (points[i], i)):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def rebinned(counts: Sequence[int], most: int = MOST_BINS) -> NDArray[np.float64]:
    """A histogram of at most so many bins over the same range; what a new bin cuts is spread evenly."""
    values = np.array([max(float(c), 0.0) if finite(c) else 0.0 for c in counts])
    if values.size <= most:
        return values
    cumulative = np.concatenate([[0.0], np.cumsum(values)])
    edges = np.linspace(0, values.size, most + 1)
    return np.diff(np.interp(edges, np.arange(values.size + 1), cumulative))


def clipped_share(entry: RangeSummary) -> float | None:
    """Share of the observed values that lie outside a range, as far as its histogram tells; None without one."""
    low, high = entry.observed
    counts = rebinned(entry.histogram, len(entry.histogram))
    if not counts.size or counts.sum() <= 0 or not all(map(finite, (low, high, entry.low, entry.high))):
        return None
    if high <= low:
        return 0.0 if entry.low <= low <= entry.high else 1.0
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    edges = low + (np.arange(counts.size + 1) / counts.size) * (high - low)
    inside = np.interp(entry.high, edges, cumulative) - np.interp(entry.low, edges, cumulative)
    return float(min(max(1.0 - inside / cumulative[-1], 0.0), 1.0))


def range_histogram(entry: RangeSummary) -> Markup:
    """One activation: how its values are spread, and the range that was chosen, beyond which they are clipped."""
    width, top, base, margin = 220, 6, 66, 8
    numbers = (*entry.observed, entry.low, entry.high)
    label = (
        f"{shortened(entry.tensor, 60)}: values from {significant(entry.observed[0])} to "
        f"{significant(entry.observed[1])}, represented from {significant(entry.low)} to {significant(entry.high)}"
    )
    if not all(map(finite, numbers)):
        note = element("text", "not finite: nothing to draw", x=width / 2, y=40, class_="mid mute")
        return element("svg", note, viewBox=f"0 0 {width} 84", role="img", aria_label=label)
    low, high = min(numbers), max(numbers)
    if high <= low:
        low, high = low - 1, high + 1
    x = Scale(low, high, margin, width - margin)
    parts = [
        element(
            "rect", x=x(entry.low), y=top, width=max(x(entry.high) - x(entry.low), 0), height=base - top, class_="kept"
        ),
        _histogram(entry, x, top, base),
        *(_clip_line(x(end), top, base, sign) for end, sign in ((entry.low, 1), (entry.high, -1))),
        element("line", x1=margin, y1=base, x2=width - margin, y2=base, class_="axis"),
    ]
    # The ends, and zero where there is room for it.
    for value, anchor in ((low, "start"), (high, "end")):
        parts.append(element("text", significant(value), x=x(value), y=base + 13, class_=anchor))
    if low < 0 < high:
        parts.append(element("line", x1=x(0), y1=base, x2=x(0), y2=base + 4, class_="axis"))
        if 60 < x(0) < width - 60:
            parts.append(element("text", "0", x=x(0), y=base + 13, class_="mid"))
    return element("svg", parts, viewBox=f"0 0 {width} 84", role="img", aria_label=label)


def _histogram(entry: RangeSummary, x: Scale, top: float, base: float) -> Markup | None:
    counts = rebinned(entry.histogram)
    low, high = entry.observed
    if not counts.size or counts.max() <= 0:
        return None
    # Logarithmic: behind a ReLU most values are zero, and the tails are what is clipped.
    heights = np.log1p(counts) / np.log1p(counts.max()) * (base - top)
    edges = [x(low + (high - low) * i / counts.size) for i in range(counts.size + 1)]
    if edges[-1] - edges[0] < 2:  # a constant, or hardly more
        middle = (edges[0] + edges[-1]) / 2
        edges = list(np.linspace(middle - 1, middle + 1, counts.size + 1))
    path = [f"M{number(edges[0])} {number(base)}"]
    path += [f"V{base - h:.0f}H{number(edge)}" for h, edge in zip(heights, edges[1:], strict=True)]
    return element("path", d=f"{''.join(path)}V{number(base)}Z", class_="bins")


def _clip_line(at: float, top: float, base: float, sign: int) -> Markup:
    """A bracket that opens to the side that is kept."""
    foot = at + 4 * sign
    return element("path", d=f"M{number(foot)} {top}H{number(at)}V{number(base)}H{number(foot)}", class_="clip")


def noise(snr_db: float | None) -> float | None:
    """A signal-to-noise ratio as the noise's share of the signal, both as root mean squares."""
    if snr_db is None or math.isnan(snr_db):
        return None
    return float(10.0 ** (-min(max(snr_db, _DECIBELS[0]), _DECIBELS[1]) / 20))


def sensitivity_source(layers: Sequence[LayerSummary]) -> tuple[str, list[float | None]]:
    """The ratios that say best how sensitive each layer is, and where they were measured; an empty text without any."""
    alone = [layer.output_snr_db for layer in layers]
    if any(noise(ratio) is not None for ratio in alone):
        return "the network's output with this layer alone in INT8", alone
    own = [layer.snr_db for layer in layers]
    return (
        "the layer's own output with all before it in INT8 too"
        if any(noise(ratio) is not None for ratio in own)
        else ""
    ), own


def sensitivity_bars(layers: Sequence[LayerSummary]) -> Markup | None:
    """The layers with the most noise, the worst first; None where it was not measured."""
    where, ratios = sensitivity_source(layers)
    measured = [(value, layer, r) for layer, r in zip(layers, ratios, strict=True) if (value := noise(r)) is not None]
    if not where or not measured:
        return None
    worst = sorted(measured, key=lambda entry: -entry[0])[:MOST_BARS]
    place = {id(layer): i for i, layer in enumerate(layers, 1)}
    longest = max(min(len(layer.name), _WIDEST_NAME) for _, layer, _ in worst)
    left, right, row, foot = max(48 + 6.6 * longest, 120), 130, 22, 44
    width, height = 780, row * len(worst) + foot
    largest = max(value for value, _, _ in worst) or 1.0
    x = Scale(0.0, largest, left, width - right)
    bottom = row * len(worst) + 4
    parts = _vertical_grid(x, 4, bottom, "%", 100)
    for i, (value, layer, ratio) in enumerate(worst):
        y = 4 + row * i
        text = f"{with_unit(significant(100 * value, zeros=True), '%')} ({decibels(ratio)})"
        parts += [
            element("text", str(place[id(layer)]), x=24, y=y + 15, class_="end mute"),
            element("text", shortened(layer.name, _WIDEST_NAME), x=32, y=y + 15),
            element(
                "rect",
                element("title", f"{shortened(layer.name, 120)}: {text}, {layer.precision}"),
                x=left,
                y=y + 4,
                width=max(x(value) - left, 1),
                height=row - 8,
                class_=_kind(layer),
            ),
            element("text", text, x=x(value) + 6, y=y + 15, class_="value"),
        ]
    caption = f"noise at {where}, % of the signal"
    parts.append(element("text", caption, x=(left + width - right) / 2, y=height - 6, class_="mid label"))
    label = f"Bars: noise at {where}, for the {len(worst)} layers with the most of it"
    return element("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_="wide")


def sensitivity_profile(layers: Sequence[LayerSummary]) -> Markup | None:
    """The same noise of all layers in graph order; None where it was not measured, or of one layer only."""
    where, ratios = sensitivity_source(layers)
    values = [noise(ratio) for ratio in ratios]
    known = [value for value in values if value is not None]
    if not where or len(layers) < 2 or not known:
        return None
    width, height, left, right, top, base = 780, 168, 60, 12, 10, 124
    y = Scale(0.0, max(known) or 1.0, base, top)
    step = (width - left - right) / len(layers)
    parts: list[Markup] = []
    for tick in ticks(0.0, y.high, 4):
        parts.append(element("line", x1=left, y1=y(tick), x2=width - right, y2=y(tick), class_="grid"))
        parts.append(element("text", with_unit(significant(100 * tick), "%"), x=left - 6, y=y(tick) + 4, class_="end"))
    gap = min(step * 0.2, 2)
    for i, (layer, value) in enumerate(zip(layers, values, strict=True)):
        if value is not None:
            title = element(
                "title", f"{i + 1}. {shortened(layer.name, 60)}: {with_unit(significant(100 * value), '%')}"
            )
            at, bar = left + step * i + gap / 2, max(base - y(value), 0.5)
            parts.append(element("rect", title, x=at, y=base - bar, width=step - gap, height=bar, class_=_kind(layer)))
    parts.append(element("line", x1=left, y1=base, x2=width - right, y2=base, class_="axis"))
    counted = sorted({1, *(int(tick) for tick in ticks(1, len(layers), 8))})
    parts += [element("text", str(i), x=left + step * (i - 0.5), y=base + 15, class_="mid") for i in counted]
    parts.append(
        element("text", "layer, in graph order", x=(left + width - right) / 2, y=height - 8, class_="mid label")
    )
    label = f"Bars: noise at {where}, for each of {len(layers)} layers in graph order"
    return element("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_="wide")


def trade_off(candidates: Sequence[Candidate], chosen: int | None, drop_of: str, latency: bool) -> Markup | None:
    """What each choice of layers costs and loses, with the Pareto front; None with nothing to draw.

    Args:
        candidates: what was measured
        chosen: index of the one that was taken
        drop_of: what their drop counts
        latency: draw against the latency, otherwise against the share of INT8
    """
    costs = [(c.latency_ms if c.latency_ms is not None else math.nan) if latency else -c.int8_share for c in candidates]
    points = [(cost, c.drop) for cost, c in zip(costs, candidates, strict=True)]
    drawn = [i for i, point in enumerate(points) if all(map(finite, point))]
    if not drawn:
        return None
    front = pareto_front(points)
    sign = 1 if latency else -100
    width, height, left, right, top, base = 460, 320, 62, 20, 18, 262
    x = _padded([sign * points[i][0] for i in drawn], left, width - right)
    y = _padded([points[i][1] for i in drawn], base, top)
    parts = [
        *_vertical_grid(x, top, base, *(("", 1, _LARGEST) if latency else ("%", 1, 100))),
        *_horizontal_grid(y, left, width - right),
    ]
    at = {i: (x(sign * points[i][0]), y(points[i][1])) for i in drawn}
    if len(front) > 1:
        path = f"M{number(at[front[0]][0])} {number(at[front[0]][1])}"
        path += "".join(f"H{number(at[i][0])}V{number(at[i][1])}" for i in front[1:])
        parts.append(element("path", d=path, class_="front"))
    parts += [_mark(at[i], _candidate_text(candidates[i], drop_of), i in front, i == chosen) for i in drawn]
    if chosen in at:
        cx, cy = at[chosen]
        near_edge = cx > width - 90
        parts.append(
            element(
                "text",
                "chosen",
                x=cx + (-12 if near_edge else 12),
                y=cy - 9,
                class_="end strong" if near_edge else "strong",
            )
        )
    x_label = "latency of one image, ms" if latency else "multiply-accumulates in INT8, %"
    y_label = f"{drop_of} lost, points"
    parts += [
        element("text", x_label, x=(left + width - right) / 2, y=height - 12, class_="mid label"),
        element(
            "text",
            y_label,
            x=0,
            y=0,
            transform=f"translate(15 {number((top + base) / 2)}) rotate(-90)",
            class_="mid label",
        ),
    ]
    label = f"Scatter: {y_label}, against {x_label}; {len(drawn)} choices, {len(front)} of them on the Pareto front"
    return element("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_="plot")


def share_bar(share: float) -> Markup:
    """The part of the multiply-accumulates that is INT8, as a bar."""
    parts = [
        element("rect", x=0.5, y=0.5, width=199, height=9, class_="float"),
        element("rect", x=0, y=0, width=200 * min(max(share, 0.0), 1.0), height=10, class_="int8"),
    ]
    label = f"{percent(share)} of the multiply-accumulates are INT8"
    return element(
        "svg", parts, viewBox="0 0 200 10", preserveAspectRatio="none", role="img", aria_label=label, class_="share"
    )


def _kind(layer: LayerSummary) -> str:
    return "int8" if layer.precision == "int8" else "float"


def _mark(at: tuple[float, float], text: str, on_front: bool, chosen: bool) -> Markup:
    title, (cx, cy) = element("title", text), at
    if chosen:
        d = f"M{number(cx)} {number(cy - 7)}l7 7l-7 7l-7 -7Z"
        return element("path", title, d=d, class_="chosen")
    return element("circle", title, cx=cx, cy=cy, r=4.5, class_="best" if on_front else "beaten")


def _candidate_text(candidate: Candidate, drop_of: str) -> str:
    time = "" if candidate.latency_ms is None else f", {significant(candidate.latency_ms)} ms"
    kept = len(candidate.kept_float)
    return (
        f"{fixed(candidate.drop, 2)} points of {drop_of} lost, {percent(candidate.int8_share)} INT8, "
        f"{kept} layer{'' if kept == 1 else 's'} in float{time}"
    )


def _padded(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    margin = (high / 2 - low / 2) * 0.16 or abs(high) * 0.1 or 1.0
    return Scale(max(low - margin, -_LARGEST), min(high + margin, _LARGEST), start, end)


def _vertical_grid(x: Scale, top: float, base: float, unit: str, factor: float, most: float = math.inf) -> list[Markup]:
    parts = []
    for tick in ticks(max(x.low, 0.0), min(x.high, most)):  # no share and no time lies beyond
        text = significant(factor * tick, 4)
        parts.append(element("line", x1=x(tick), y1=top, x2=x(tick), y2=base, class_="grid"))
        parts.append(element("text", with_unit(text, unit) if unit else text, x=x(tick), y=base + 15, class_="mid"))
    parts.append(element("line", x1=x.start, y1=base, x2=x.end, y2=base, class_="axis"))
    return parts


def _horizontal_grid(y: Scale, left: float, right: float) -> list[Markup]:
    parts = []
    for tick in ticks(y.low, y.high, 6):
        parts.append(element("line", x1=left, y1=y(tick), x2=right, y2=y(tick), class_="grid"))
        parts.append(element("text", significant(tick), x=left - 6, y=y(tick) + 4, class_="end"))
    return parts
