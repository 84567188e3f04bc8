"""The report's files in a bundle: `report.html` for people, `int8.<scheme>.json` for programs.

Nothing here imports onnx before a report is asked for: a bundle's report is taken over on a device as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.manifest import SCHEMES, Manifest

from ..bundle import BundleWriter
from ..errors import ExportError
from .page import render_report

if TYPE_CHECKING:
    from ..quantize.summary import QuantizationSummary

REPORT_NAME = "report.html"
_MAX_BYTES = 64 * 2**20


def summary_name(scheme: str) -> str:
    """Name of the file that holds the summary of one scheme's graph."""
    return f"int8.{scheme}.json"


def write_report(summaries: Sequence[QuantizationSummary], manifest: Manifest, writer: BundleWriter) -> None:
    """Write the page and the summaries.

    Args:
        summaries: of every INT8 graph of the bundle
        manifest: of the bundle, with what was verified
        writer: of the bundle

    Raises:
        ExportError: if the disk does not take them
    """
    for summary in summaries:
        data = json.dumps(summary.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        # A name may hold a lone surrogate, which is no text: it is escaped, as JSON allows.
        writer.write(summary_name(summary.scheme), f"{data}\n".encode("utf-8", "backslashreplace"))
    writer.write(REPORT_NAME, render_report(summaries, manifest).encode())


def keep_report(
    folder: Path, kept: Iterable[str], remade: bool, writer: BundleWriter, warn: Callable[[str], None]
) -> None:
    """Take over an existing bundle's report where no new one is asked for.

    Args:
        folder: that bundle
        kept: schemes whose graphs stay
        remade: whether another INT8 graph is made, which the page says nothing of
        writer: of the new bundle
        warn: is told what the user should know
    """
    for scheme in kept:
        if (folder / summary_name(scheme)).is_file():
            writer.keep(folder, summary_name(scheme))
    if (folder / REPORT_NAME).is_file():
        if remade:
            warn(f"{REPORT_NAME} is gone: it told of graphs that this export replaces; add --int8-report for a new one")
        else:
            writer.keep(folder, REPORT_NAME)


def read_summary(folder: Path, scheme: str) -> QuantizationSummary | None:
    """The summary of a graph that an earlier export left in a bundle; None if there is none that can be read.

    Args:
        folder: the bundle
        scheme: of the graph, one of :data:`runtime.manifest.SCHEMES`

    Raises:
        ExportError: if onnx is missing, which the whole of quantization needs
    """
    assert scheme in SCHEMES
    try:
        from ..quantize.summary import QuantizationSummary
    except ImportError as e:
        raise ExportError(
            f"--int8-report needs the export extra (pip install 'holocron-edge[export]'): {e}; do it on a workstation"
        ) from e
    path = folder / summary_name(scheme)
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        summary = QuantizationSummary.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):  # text that is no UTF-8 is a ValueError too
        return None
    return summary if summary.scheme == scheme else None
