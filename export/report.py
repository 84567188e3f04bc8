"""What an export made, as a table for people and as plain values for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.manifest import Artefact, Manifest
from runtime.table import format_table

from .engine_layers import EngineLayers
from .tasks import task_export

if TYPE_CHECKING:
    from .quantize.summary import LayerSummary, QuantizationSummary

_MOST_ROWS = 16
_LONGEST_NAME = 48


@dataclass(frozen=True)
class FloatOperator:
    """Operators of a quantized graph that are not computed in integers.

    Attributes:
        operator: ONNX operator type.
        count: how many of them.
        reason: why.
    """

    operator: str
    count: int
    reason: str


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        bundle: the folder.
        manifest: its manifest.
        made: files that this export made, the others were there.
        warnings: what the user should know.
        float_operators: what stayed float in each quantized graph that this export made, by variant.
        quantization: everything about each quantized graph of the bundle, where a report was asked for.
        engine_layers: what the library made of the layers of each engine that this export built, where that was asked
            for, by file.
        cpp_project: folder of the example in C++, where that was asked for.
        notes: which engines were not run here, and why.
    """

    bundle: Path
    manifest: Manifest
    made: tuple[str, ...]
    warnings: tuple[str, ...]
    float_operators: Mapping[str, tuple[FloatOperator, ...]] = field(default_factory=dict)
    quantization: tuple[QuantizationSummary, ...] = ()
    engine_layers: Mapping[str, EngineLayers] = field(default_factory=dict)
    cpp_project: Path | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {
            "bundle": str(self.bundle),
            "cpp_project": None if self.cpp_project is None else str(self.cpp_project),
            "made": list(self.made),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "float_operators": {v: [asdict(o) for o in found] for v, found in self.float_operators.items()},
            "quantization": [summary.to_dict() for summary in self.quantization],
            "engine_layers": {file: asdict(layers) for file, layers in self.engine_layers.items()},
            "artefacts": [asdict(a) for a in self.manifest.artefacts],
        }

    def table(self) -> str:
        """A line an artefact."""
        agreement = task_export(self.manifest.task).agreement
        headers = ("artefact", "size", "rel. error", "cosine", agreement, "accuracy", "images", "run by")
        return format_table(headers, [artefact_row(a) for a in self.manifest.artefacts])

    def layer_tables(self) -> list[str]:
        """A table a quantized graph that a report was asked for: its layers, of many those with the most noise."""
        return [layer_table(summary) for summary in self.quantization]

    def float_lines(self) -> list[str]:
        """A line a quantized graph: which operators stayed float, and why."""
        lines = [""] if self.quantization and any(self.float_operators.values()) else []
        for variant, found in self.float_operators.items():
            reasons: dict[str, list[str]] = {}
            for each in found:
                reasons.setdefault(each.reason, []).append(f"{each.count} {each.operator}")
            if reasons:
                parts = [f"{', '.join(counted)} ({reason})" for reason, counted in reasons.items()]
                lines.append(f"{variant} keeps in float: {'; '.join(parts)}")
        return lines

    def engine_lines(self) -> list[str]:
        """A line an engine whose layers were asked for: how many there are of each kind."""
        return [f"{file}: {layers}" for file, layers in self.engine_layers.items()]

    def cpp_lines(self) -> list[str]:
        """A line for the example in C++, where there is one."""
        return [] if self.cpp_project is None else [f"example in C++: {self.cpp_project}"]


def layer_table(summary: QuantizationSummary) -> str:
    """The layers of a quantized graph, a line each.

    Args:
        summary: of the graph

    Returns:
        the table below an empty line; of many layers it has those with the least signal-to-noise ratio
    """

    def snr(layer: LayerSummary) -> float | None:
        return layer.snr_db if layer.output_snr_db is None else layer.output_snr_db

    def first(place: int) -> tuple[bool, float]:
        value = snr(summary.layers[place])
        return (True, 0.0) if value is None or math.isnan(value) else (False, value)

    places = sorted(sorted(range(len(summary.layers)), key=first)[:_MOST_ROWS])
    rows = []
    for place in places:
        layer, value = summary.layers[place], snr(summary.layers[place])
        name = layer.name if len(layer.name) <= _LONGEST_NAME else f"…{layer.name[1 - _LONGEST_NAME :]}"
        noise = "" if value is None or math.isnan(value) else f"{value:.1f} dB"
        rows.append([place + 1, name, layer.operator, layer.precision, f"{layer.macs / 1e6:.2f}", noise, layer.reason])
    title = f"int8.{summary.scheme}: {summary.int8_share:.1%} of the multiply-accumulates in INT8"
    if len(places) < len(summary.layers):
        title += f"; {len(places)} of {len(summary.layers)} layers, those with the least signal to noise"
    headers = ("#", "layer", "operator", "precision", "MMACs", "SNR", "reason")
    return f"\n{title}\n{format_table(headers, rows)}"


def artefact_row(artefact: Artefact) -> list[str]:
    """One artefact as the cells of a table."""
    size = f"{artefact.size / 1e6:.1f} MB"
    result = artefact.verification
    if result is None:
        return [artefact.file, size, "not run here", "", "", "", "", ""]
    accuracy = ""
    if result.accuracy is not None and result.reference_accuracy is not None:
        accuracy = f"{result.accuracy:.2%} (reference {result.reference_accuracy:.2%})"
    return [
        artefact.file,
        size,
        f"{result.relative_error:.1e}",
        f"{result.cosine:.5f}",
        "" if result.top1_agreement is None else f"{result.top1_agreement:.1%}",
        accuracy,
        str(result.images),
        result.backend,
    ]
