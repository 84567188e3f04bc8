"""A line of the table of models, and the table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

OK = "ok"


@dataclass(frozen=True)
class Row:
    """What is known about one architecture.

    Attributes:
        arch: name of its builder.
        task: what its outputs mean.
        height: of its input, in pixels.
        width: of its input, in pixels.
        parameters: of the network as it is trained.
        gmacs: multiply-accumulates of the exported float32 graph for one image, in 10⁹.
        onnx_mb: size of the float32 graph in 10⁶ bytes.
        relative_error: of the float32 graph against PyTorch, ‖ours − reference‖ / ‖reference‖.
        int8_relative_error: the same of the INT8 graph for processors; its weights are random.
        fp32_ms: median latency of the float32 graph, one image, in milliseconds.
        int8_ms: the same of the INT8 graph for processors.
        rtx_fp32: whether TensorRT-RTX builds the float32 graph: `"ok"`, or its reason.
        rtx_int8: the same of the INT8 graph for TensorRT.
        error: why something is missing, None if nothing is.
    """

    arch: str
    task: str
    height: int
    width: int
    parameters: int | None = None
    gmacs: float | None = None
    onnx_mb: float | None = None
    relative_error: float | None = None
    int8_relative_error: float | None = None
    fp32_ms: float | None = None
    int8_ms: float | None = None
    rtx_fp32: str | None = None
    rtx_int8: str | None = None
    error: str | None = None


HEADERS = (
    "arch",
    "input",
    "parameters, M",
    "GMACs",
    "ONNX, MB",
    "rel. error",
    "fp32, ms",
    "INT8, ms",
    "RTX fp32",
    "RTX INT8",
)


def to_csv(rows: Sequence[Row]) -> str:
    """The table with every figure in full, a column a field of :class:`Row`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()


def to_markdown(rows: Sequence[Row], title: str, notes: Sequence[str]) -> str:
    """The table for people: a table a task, and below what is not `ok` in words.

    Args:
        rows: in the order in which they are shown
        title: of the page
        notes: paragraphs above the tables

    Returns:
        the page
    """
    parts = [f"# {title}", *notes]
    for task in dict.fromkeys(row.task for row in rows):
        lines = [_line(HEADERS), _line(["---"] * 2 + ["---:"] * 6 + ["---"] * 2)]
        lines += [_line(_cells(row)) for row in rows if row.task == task]
        parts += [f"## {task.capitalize()}", "\n".join(lines)]
    remarks = [f"- `{row.arch}`: {_escape(remark)}" for row in rows for remark in _remarks(row)]
    if remarks:
        parts += ["## What is missing, and why", "\n".join(remarks)]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    return [
        f"`{row.arch}`",
        f"{row.height}×{row.width}",
        "" if row.parameters is None else f"{row.parameters / 1e6:.1f}",
        _number(row.gmacs, "{:.2f}"),
        _number(row.onnx_mb, "{:.1f}"),
        _number(row.relative_error, "{:.1e}"),
        _number(row.fp32_ms, "{:.1f}"),
        _number(row.int8_ms, "{:.1f}"),
        _verdict(row.rtx_fp32),
        _verdict(row.rtx_int8),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _verdict(said: str | None) -> str:
    return {None: "", OK: OK}.get(said, "no")


def _remarks(row: Row) -> list[str]:
    said = [(row.rtx_fp32, "TensorRT-RTX, float32: "), (row.rtx_int8, "TensorRT-RTX, INT8: "), (row.error, "")]
    return [f"{what}{reason}" for reason, what in said if reason not in (None, OK)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
