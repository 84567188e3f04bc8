"""What is known about a quantized graph once it is made: plain values, for the report, the cache and other programs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True)
class RangeSummary:
    """How the range of an activation was chosen.

    Attributes:
        tensor: its name in the float graph.
        method: what chose it: `"minmax"`, `"percentile"`, `"entropy"`, `"mse"`, or `"learned"`.
        low: smallest real value that is represented.
        high: largest real value that is represented.
        observed: smallest and largest value that the calibration images caused.
        histogram: number of values in bins of equal width between those two; empty where none was kept.
    """

    tensor: str
    method: str
    low: float
    high: float
    observed: tuple[float, float]
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerSummary:
    """One weighted layer.

    Attributes:
        name: of its output in the float graph.
        operator: `"Conv"`, `"Gemm"`, ….
        macs: multiply-accumulates for one image.
        precision: `"int8"`, or what it was left in: `"float16"` or `"float32"`.
        reason: why it has that precision.
        snr_db: signal-to-noise ratio at the layer's own output, in decibels; None where it was not measured.
        output_snr_db: the same at the network's output with this layer alone in INT8.
        output_agreement: share of images whose first class stays with this layer alone in INT8.
        rounding_gain: squared error at its output with weights rounded to nearest, over that with the weights chosen.
        bias_shift: largest change of a bias, in units of the output's standard deviation.
        equalized: whether its channels were rescaled.
        int8_ms: time in INT8 on the backend that `--tune` was asked for, in milliseconds.
        float_ms: time in higher precision on the same.
    """

    name: str
    operator: str
    macs: int
    precision: str
    reason: str = ""
    snr_db: float | None = None
    output_snr_db: float | None = None
    output_agreement: float | None = None
    rounding_gain: float | None = None
    bias_shift: float | None = None
    equalized: bool = False
    int8_ms: float | None = None
    float_ms: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One choice of layers that stay in higher precision, and what it reaches.

    Attributes:
        kept_float: names of those layers.
        int8_share: share of the multiply-accumulates that is INT8.
        drop: points lost, of accuracy or of agreement with the float model, as `drop_of` of the summary says.
        snr_db: signal-to-noise ratio at the network's output, in decibels.
        latency_ms: of one image on the backend that was timed; None where it was not.
    """

    kept_float: tuple[str, ...]
    int8_share: float
    drop: float
    snr_db: float
    latency_ms: float | None = None


@dataclass(frozen=True)
class QuantizationSummary:
    """Everything about one quantized graph.

    Attributes:
        scheme: `"cpu"` or `"trt"`.
        effort: `"fast"`, `"normal"` or `"high"`; `"learned"` for a fine-tuned network.
        seconds: that it took.
        images: number of images that it was calibrated on.
        layers: in graph order.
        ranges: in graph order.
        candidates: every choice that was measured, in the order of the search; empty where nothing was searched.
        chosen: index of the candidate that was taken, None where nothing was searched.
        drop_of: what `Candidate.drop` counts, `"accuracy"` or `"agreement"`.
        stays_float: operators without an integer form, and how many of each the graph has.
    """

    scheme: str
    effort: str
    seconds: float
    images: int
    layers: tuple[LayerSummary, ...]
    ranges: tuple[RangeSummary, ...]
    candidates: tuple[Candidate, ...] = ()
    chosen: int | None = None
    drop_of: str = "agreement"
    stays_float: tuple[tuple[str, int], ...] = ()

    @property
    def int8_share(self) -> float:
        """Share of the multiply-accumulates of weighted layers that is INT8."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.precision == "int8") / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists, for JSON, which has no NaN and no infinity: those are None."""
        return {**_finite(asdict(self)), "int8_share": self.int8_share}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantizationSummary:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if the dictionary is not one that :meth:`to_dict` makes
        """
        try:
            given = {key: value for key, value in values.items() if key != "int8_share"}
            given["layers"] = tuple(_record(LayerSummary, entry) for entry in given["layers"])
            given["ranges"] = tuple(_record(RangeSummary, entry) for entry in given["ranges"])
            given["candidates"] = tuple(_record(Candidate, entry) for entry in given["candidates"])
            given["stays_float"] = tuple((str(name), int(count)) for name, count in given["stays_float"])
            summary = _record(cls, given)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise ValueError(f"this is not a quantization summary: {e}") from e
        if summary.chosen is not None and not 0 <= summary.chosen < len(summary.candidates):
            raise ValueError(f"this is not a quantization summary: there is no candidate {summary.chosen}")
        return summary


_T = TypeVar("_T")


def _record(cls: type[_T], values: dict[str, Any]) -> _T:
    """A dataclass of this module from what JSON holds of it."""
    types = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: _value(types[name], value, name) for name, value in values.items()})


def _value(kind: str, value: Any, name: str) -> Any:
    """A field's value, checked; `kind` is its annotation. A number that JSON could not hold is NaN again."""
    if value is None:
        if "None" in kind:
            return None
        if kind == "float":
            return math.nan
    elif kind.startswith("float") and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind.partition(" ")[0] in ("str", "int", "bool") and type(value).__name__ == kind.partition(" ")[0]:
        return value
    elif kind.startswith("tuple") and isinstance(value, (list, tuple)):
        return _tuple(kind, value, name)
    raise ValueError(f"{name} is {value!r:.80}, expected {kind}")


def _tuple(kind: str, value: list[Any] | tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if kind == "tuple[float, float]" and len(value) != 2:
        raise ValueError(f"{name} has {len(value)} numbers, expected 2")
    inner = kind.removeprefix("tuple[").partition(",")[0]
    return tuple(_value(inner, each, name) if inner in ("str", "int", "float") else each for each in value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value
