"""What is known already: a JSON file an architecture, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .row import Row


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        key: what the export depended on, :func:`tools.zoo.measure.sources_digest`.
        row: its line of the table.
        graphs: SHA-256 of each exported graph, by variant.
        timed: what the latencies are of: machine, backend and graphs; None if there are none yet.
    """

    key: str
    row: Row
    graphs: dict[str, str] = field(default_factory=dict)
    timed: str | None = None


class Cache:
    """A folder of entries.

    Args:
        folder: made if it does not exist
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, arch: str) -> Entry | None:
        """The entry of an architecture; None if there is none that can be read."""
        try:
            content = json.loads(self._path(arch).read_text(encoding="utf-8"))
            return Entry(content["key"], Row(**content["row"]), dict(content["graphs"]), content["timed"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, entry: Entry) -> None:
        """Replace the entry of an architecture, at once or not at all."""
        path = self._path(entry.row.arch)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(asdict(entry), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    def bundle(self, arch: str) -> Path:
        """Where the bundle of an architecture is while it is needed."""
        return self.folder / "bundles" / arch

    def _path(self, arch: str) -> Path:
        return self.folder / f"{arch}.json"
