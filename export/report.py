"""What an export made, as a table for people and as plain values for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.manifest import Artefact, Manifest
from runtime.table import format_table

HEADERS = ("artefact", "size", "rel. error", "cosine", "top-1 agreement", "accuracy", "images")


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        bundle: the folder.
        manifest: its manifest.
        made: files that this export made, the others were there.
        warnings: what the user should know.
    """

    bundle: Path
    manifest: Manifest
    made: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {
            "bundle": str(self.bundle),
            "made": list(self.made),
            "warnings": list(self.warnings),
            "artefacts": [asdict(a) for a in self.manifest.artefacts],
        }

    def table(self) -> str:
        """A line an artefact."""
        return format_table(HEADERS, [artefact_row(a) for a in self.manifest.artefacts])


def artefact_row(artefact: Artefact) -> list[str]:
    """One artefact as the cells of a table."""
    size = f"{artefact.size / 1e6:.1f} MB"
    result = artefact.verification
    if result is None:
        return [artefact.file, size, "not run here", "", "", "", ""]
    accuracy = ""
    if result.accuracy is not None and result.reference_accuracy is not None:
        accuracy = f"{result.accuracy:.2%} (reference {result.reference_accuracy:.2%})"
    return [
        artefact.file,
        size,
        f"{result.relative_error:.1e}",
        f"{result.cosine:.5f}",
        f"{result.top1_agreement:.1%}",
        accuracy,
        str(result.images),
    ]
