"""The INT8 report: one page of HTML that says what was quantized, how, and what it cost. It loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.manifest import Artefact, Manifest

from ..tasks import task_export
from . import charts
from .figures import UNKNOWN, fixed, percent, seconds, significant, with_unit
from .markup import Content, Markup, clean, element, markup, shortened
from .style import SCRIPT, STYLE

if TYPE_CHECKING:
    from ..quantize.summary import LayerSummary, QuantizationSummary, RangeSummary

_FOR = {"cpu": "ONNX Runtime and OpenVINO on processors", "trt": "TensorRT and TensorRT-RTX"}
_MOST_PICTURES = 48
_FIRST_PICTURES = 24
_LONGEST_NAME = 80
_LONGEST_TEXT = 300


def render_report(summaries: Sequence[QuantizationSummary], manifest: Manifest) -> str:
    """Write the report of a bundle's INT8 graphs.

    Args:
        summaries: one a graph
        manifest: of the bundle, with the verification of its graphs and engines

    Returns:
        HTML that is XML too, the same for the same input; no address in it leads anywhere but into itself
    """
    artefacts = {a.variant: a for a in manifest.artefacts if a.kind == "onnx"}
    sections = [_section(summary) for summary in summaries]
    cards = [_card(summary, artefacts.get(f"int8.{summary.scheme}"), manifest) for summary in summaries]
    links = [element("a", f"Scheme {s.scheme}", href=f"#{_anchor(s)}") for s in summaries]
    size = "×".join(str(side) for side in manifest.preprocessing.size)
    lead = f"{manifest.task} at {size} pixels; the reference is the float32 graph or the model that it was traced from."
    body = [
        element(
            "header",
            element("h1", f"{_text(manifest.name)} in INT8"),
            element("p", lead, class_="mute"),
            element("nav", links),
        ),
        element(
            "main",
            element("div", cards, class_="cards")
            if cards
            else element("p", "No INT8 graph was described: there is nothing to report."),
            sections,
        ),
        element("footer", "Written by holocron-export. The same figures as data: ", _files(summaries)),
        element("script", Markup(SCRIPT)),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{_text(manifest.name)}: INT8 report"),
        element("style", Markup(STYLE)),
    ]
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _policy() -> str:
    """Nothing may be loaded, and of scripts only the page's own runs, whatever a layer is called."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _anchor(summary: QuantizationSummary) -> str:
    return "scheme-" + "".join(c if c.isalnum() else "-" for c in clean(summary.scheme))


def _files(summaries: Sequence[QuantizationSummary]) -> list[Content]:
    parts: list[Content] = []
    for summary in summaries:
        parts += [", " if parts else "", element("code", f"int8.{summary.scheme}.json")]
    return parts or [UNKNOWN]


# ---- the two cards at the top


def _card(summary: QuantizationSummary, artefact: Artefact | None, manifest: Manifest) -> Markup:
    in_int8 = sum(layer.precision == "int8" for layer in summary.layers)
    share = _share(summary)
    result = None if artefact is None else artefact.verification
    large = [("multiply-accumulates in INT8", percent(share))]
    small = [("layers in INT8", f"{in_int8} of {len(summary.layers)}")]
    if result is not None:
        if result.accuracy is not None and result.reference_accuracy is not None:
            lost = 100 * (result.reference_accuracy - result.accuracy)
            large.append(("points of accuracy lost", fixed(lost, 2)))
            of = f"accuracy on {result.labelled_images} images (reference)"
            small.append((of, f"{percent(result.accuracy, 2)} ({percent(result.reference_accuracy, 2)})"))
        if result.top1_agreement is not None:
            agreement = task_export(manifest.task).agreement or "agreement"
            large.append((f"{agreement} with the float model", percent(result.top1_agreement)))
        large.append(("relative error of the output", percent(result.relative_error)))
        small.append((f"images compared, {result.backend}", str(result.images)))
    if artefact is not None:
        small.append((artefact.file, f"{artefact.size / 1e6:.1f} MB"))
        engines = [a for a in manifest.artefacts if a.kind == "engine" and a.variant == artefact.variant]
        small += [(engine.file, _engine_fact(engine, manifest)) for engine in engines]
    small += [
        ("calibration images", str(summary.images) if summary.images else UNKNOWN),
        *([("effort", summary.effort)] if summary.effort else []),
        ("time to quantize", seconds(summary.seconds)),
    ]
    heading = element("h2", f"Scheme {summary.scheme}")
    target = _FOR.get(summary.scheme)
    bar = None if share is None else charts.share_bar(share)
    note = element("p", f"For {target}.", class_="mute") if target else None
    return element("section", heading, note, _facts(large, "facts"), bar, _facts(small, "facts small"), class_="card")


def _engine_fact(engine: Artefact, manifest: Manifest) -> str:
    """How an engine answered where it ran."""
    result = engine.verification
    if result is None:
        return "not run here"
    if result.top1_agreement is None:
        return f"relative error {percent(result.relative_error)}"
    return f"{percent(result.top1_agreement)} {task_export(manifest.task).agreement or 'agreement'}"


def _share(summary: QuantizationSummary) -> float | None:
    return summary.int8_share if any(layer.macs for layer in summary.layers) else None


def _facts(facts: Iterable[tuple[str, str]], kind: str) -> Markup:
    pairs = [element("div", element("dt", what), element("dd", value)) for what, value in facts]
    return element("dl", pairs, class_=kind)


# ---- one scheme


def _section(summary: QuantizationSummary) -> Markup:
    target = _FOR.get(summary.scheme)
    parts = [
        element("h2", f"Scheme {summary.scheme}", id=_anchor(summary)),
        element("p", f"For {target}.", class_="mute") if target else None,
        *_choice(summary),
        *_sensitivity(summary),
        *_stays_float(summary),
        *_layers(summary),
        *_ranges(summary),
    ]
    return element("section", parts)


def _choice(summary: QuantizationSummary) -> list[Markup]:
    if not summary.candidates:
        return []
    timed = charts.trade_off(summary.candidates, summary.chosen, summary.drop_of, latency=True)
    shared = charts.trade_off(summary.candidates, summary.chosen, summary.drop_of, latency=False)
    figures = []
    for picture, against in ((timed, "latency"), (shared, "share of INT8")):
        if picture is not None:
            caption = element("figcaption", f"Points of {summary.drop_of} lost against the {against}.")
            figures.append(element("figure", picture, caption))
    front_of_one = "Each mark is one choice of layers that stay in higher precision."
    key = _key(
        [
            (element("path", d="M7 0l6 6l-6 6l-6 -6Z", class_="chosen"), "chosen"),
            (
                element("circle", cx=7, cy=6, r=4.5, class_="best"),
                "on the Pareto front: none is better in one and as good in the other",
            ),
            (element("circle", cx=7, cy=6, r=4.5, class_="beaten"), "beaten by another"),
        ]
    )
    if not figures:
        return [element("h3", "The choice"), element("p", "None of what was measured is finite: there is no picture.")]
    return [element("h3", "The choice"), element("p", front_of_one), key, element("div", figures, class_="pair")]


def _sensitivity(summary: QuantizationSummary) -> list[Markup]:
    bars = charts.sensitivity_bars(summary.layers)
    heading = element("h3", "Sensitivity")
    if not summary.layers:
        return []
    if bars is None:
        return [heading, element("p", "The layers' noise was not measured.", class_="mute")]
    where, _ = charts.sensitivity_source(summary.layers)
    key = _key(
        [
            (element("rect", x=1, y=1, width=12, height=10, class_="int8"), "INT8"),
            (element("rect", x=1, y=1, width=12, height=10, class_="float"), "left in higher precision"),
        ]
    )
    profile = charts.sensitivity_profile(summary.layers)
    count = min(len(summary.layers), charts.MOST_BARS)
    worst = f"The {count} layers with the most noise." if count > 1 else "The layer."
    figures = [element("figure", bars, element("figcaption", worst))]
    if profile is not None and len(summary.layers) > charts.MOST_BARS // 2:
        figures.append(element("figure", profile, element("figcaption", "All layers, in graph order.")))
    text = f"How much rounding changes {where}: the root mean square of the error over that of the signal."
    return [heading, element("p", text), key, *figures]


def _stays_float(summary: QuantizationSummary) -> list[Markup]:
    kept = [layer for layer in summary.layers if layer.precision != "int8"]
    if not kept and not summary.stays_float:
        return [element("h3", "What stays float"), element("p", "Nothing: every operator has an integer form.")]
    parts = [element("h3", "What stays float")]
    if kept:
        total = sum(layer.macs for layer in summary.layers)
        rows = [
            element(
                "tr",
                _name(layer.name),
                element("td", _text(layer.operator), class_="t"),
                element("td", _text(layer.precision), class_="t"),
                element("td", percent(layer.macs / total if total else None)),
                element("td", _text(layer.reason or "not said"), class_="w"),
            )
            for layer in kept
        ]
        heads = [
            ("Layer", "t", ""),
            ("Operator", "t", ""),
            ("Precision", "t", ""),
            ("Share", "", "of MACs"),
            ("Why", "t", ""),
        ]
        parts.append(_table(heads, rows, f"Layers of scheme {summary.scheme} that stay float"))
    if summary.stays_float:
        # There is a summary, so there is onnx, which this module does without.
        from ..quantize.layers import why_float

        items = [f"{count} {_text(operator)} ({why_float(operator)})" for operator, count in summary.stays_float]
        parts.append(element("p", "Other operators: ", "; ".join(items), "."))
    return parts


@dataclass(frozen=True)
class _Column:
    """A column of the layers' table, left out where no layer has anything to say."""

    head: str
    unit: str
    cell: Callable[[LayerSummary], str]
    kind: str = ""
    needed: Callable[[LayerSummary], bool] = lambda layer: True


_COLUMNS = (
    _Column("Operator", "", lambda x: _text(x.operator), "t"),
    _Column("Precision", "", lambda x: _text(x.precision), "t p"),
    _Column("MACs", "millions", lambda x: fixed(x.macs / 1e6, 2)),
    _Column("SNR", "own output, dB", lambda x: fixed(x.snr_db, 1), "", lambda x: x.snr_db is not None),
    _Column(
        "Alone", "network’s output, dB", lambda x: fixed(x.output_snr_db, 1), "", lambda x: x.output_snr_db is not None
    ),
    _Column(
        "Agreement",
        "alone, %",
        lambda x: fixed(None if x.output_agreement is None else 100 * x.output_agreement, 1),
        "",
        lambda x: x.output_agreement is not None,
    ),
    _Column("Rounding gain", "×", lambda x: fixed(x.rounding_gain, 2), "", lambda x: x.rounding_gain is not None),
    _Column("Bias shift", "σ of output", lambda x: fixed(x.bias_shift, 3), "", lambda x: x.bias_shift is not None),
    _Column("Equalized", "", lambda x: "yes" if x.equalized else "no", "t", lambda x: x.equalized),
    _Column("INT8", "ms", lambda x: fixed(x.int8_ms, 3), "", lambda x: x.int8_ms is not None),
    _Column("Float", "ms", lambda x: fixed(x.float_ms, 3), "", lambda x: x.float_ms is not None),
    _Column("Reason", "", lambda x: _text(x.reason), "t w", lambda x: bool(x.reason)),
)


def _layers(summary: QuantizationSummary) -> list[Markup]:
    if not summary.layers:
        return [element("h3", "Layers"), element("p", "The graph has no weighted layer.")]
    columns = [c for c in _COLUMNS if any(c.needed(layer) for layer in summary.layers)]
    heads = [("#", "", ""), ("Layer", "t", ""), *((c.head, c.kind, c.unit) for c in columns)]
    rows = [
        element(
            "tr",
            element("td", str(i)),
            _name(layer.name),
            [element("td", c.cell(layer), class_=c.kind or None) for c in columns],
            class_=None if layer.precision == "int8" else "f",
        )
        for i, layer in enumerate(summary.layers, 1)
    ]
    text = (
        "In graph order. SNR: signal-to-noise ratio; 20 dB is an error of a tenth of the signal, 40 dB of a hundredth."
    )
    absent = [c.head for c in _COLUMNS if c not in columns and c.head not in ("Reason", "Equalized")]
    note = f" Not measured here: {', '.join(absent)}." if absent else ""
    return [
        element("h3", "Layers"),
        element("p", text + note),
        _table(heads, rows, f"Layers of scheme {summary.scheme}"),
    ]


def _table(heads: Iterable[tuple[str, str, str]], rows: Iterable[Markup], label: str) -> Markup:
    cells = [
        element(
            "th",
            element("span", head),
            [" ", element("small", unit)] if unit else None,
            scope="col",
            class_=kind or None,
        )
        for head, kind, unit in heads
    ]
    table = element(
        "table", element("thead", element("tr", cells)), element("tbody", rows), class_="sortable", aria_label=label
    )
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _ranges(summary: QuantizationSummary) -> list[Markup]:
    if not summary.ranges:
        return []
    key = _key(
        [
            (element("rect", x=1, y=1, width=12, height=10, class_="bins"), "number of values, logarithmic"),
            (element("rect", x=1, y=1, width=12, height=10, class_="kept"), "represented in 8 bits"),
            (
                element("path", d="M4 1H1V11H4M10 1H13V11H10", class_="clip"),
                "chosen range: what lies beyond is clipped",
            ),
        ]
    )
    text = (
        "One picture an activation, in graph order. What was seen is of all calibration images, the histogram of some "
        "of them; the axis is in the activation's own unit."
    )
    head = [element("h3", "Ranges of the activations"), element("p", text), key]
    if len(summary.ranges) <= _MOST_PICTURES:
        return [*head, _pictures(summary.ranges)]
    # Of many, first those that lose the most to their range.
    order = sorted(range(len(summary.ranges)), key=lambda i: -_clipped(summary.ranges[i]))
    first = set(order[:_FIRST_PICTURES])
    shown = [entry for i, entry in enumerate(summary.ranges) if i in first]
    others = [entry for i, entry in enumerate(summary.ranges) if i not in first]
    more = element("details", element("summary", f"The other {len(others)}"), _pictures(others))
    note = element("p", f"Shown are the {len(shown)} of {len(summary.ranges)} that are clipped the most.")
    return [*head, note, _pictures(shown), more]


def _clipped(entry: RangeSummary) -> float:
    return charts.clipped_share(entry) or 0.0


def _pictures(ranges: Iterable[RangeSummary]) -> Markup:
    return element("div", [_picture(entry) for entry in ranges], class_="grid-of")


def _picture(entry: RangeSummary) -> Markup:
    low, high = significant(entry.low), significant(entry.high)
    seen = f"seen {significant(entry.observed[0])} to {significant(entry.observed[1])}"
    share = charts.clipped_share(entry)
    clipped = "" if share is None else f"; {_small_percent(share)} clipped"
    caption = element(
        "figcaption",
        element("b", _text(entry.tensor, 64)),
        f"{_text(entry.method)}: {low} to {high}; {seen}{clipped}",
    )
    return element("figure", charts.range_histogram(entry), caption)


def _small_percent(share: float) -> str:
    return with_unit(significant(100 * share, 2), "%")


def _name(name: str) -> Markup:
    short = _text(name, _LONGEST_NAME)
    title = None if short == name else _text(name, _LONGEST_TEXT)
    return element("th", element("code", short), scope="row", title=title)


def _text(text: str, length: int = _LONGEST_TEXT) -> str:
    return shortened(str(text), length)


def _key(entries: Iterable[tuple[Markup, str]]) -> Markup:
    items = [
        element("li", element("svg", mark, viewBox="0 0 14 12", aria_hidden="true"), markup(text))
        for mark, text in entries
    ]
    return element("ul", items, class_="key")
