"""What is known about a quantized graph once it is made: plain values, for the report, the cache and other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
        """The same as plain dictionaries and lists, for JSON."""
        return {**asdict(self), "int8_share": self.int8_share}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantizationSummary:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if the dictionary is not one that :meth:`to_dict` makes
        """
        try:
            fields = {key: value for key, value in values.items() if key != "int8_share"}
            fields["layers"] = tuple(LayerSummary(**layer) for layer in fields["layers"])
            fields["ranges"] = tuple(
                RangeSummary(**{**entry, "observed": tuple(entry["observed"]), "histogram": tuple(entry["histogram"])})
                for entry in fields["ranges"]
            )
            fields["candidates"] = tuple(
                Candidate(**{**entry, "kept_float": tuple(entry["kept_float"])}) for entry in fields["candidates"]
            )
            fields["stays_float"] = tuple((str(name), int(count)) for name, count in fields["stays_float"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"this is not a quantization summary: {e}") from e
