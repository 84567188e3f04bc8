"""What a library made of the layers of an engine, as its inspector tells."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.engines import cache_file
from runtime.manifest import Artefact

_PRECISIONS = (("int8", "int8"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"), ("float", "float32"))
_MOST_KINDS = 6


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine, counted.

    Attributes:
        count: how many.
        kinds: how many of each kind, in the library's own words, the most frequent first.
        precisions: how many whose first output is of each type; empty if the library does not tell.
    """

    count: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    precisions: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> EngineLayers:
        """Count what an inspector's JSON says.

        Args:
            text: an object with a list `Layers`: of names, or of objects where the engine was built to tell more

        Returns:
            the counts; none of what cannot be read, since the form is the library's and changes
        """
        try:
            layers = json.loads(text).get("Layers", [])
        except (ValueError, AttributeError):
            layers = []
        layers = layers if isinstance(layers, list) else []
        told = [layer for layer in layers if isinstance(layer, dict)]
        kinds = Counter(str(layer.get("LayerType", "unknown")) for layer in told)
        precisions = Counter(precision for layer in told if (precision := _precision(layer)) is not None)
        return cls(len(layers), dict(kinds.most_common()), dict(precisions.most_common()))

    def __str__(self) -> str:
        kinds = list(self.kinds.items())
        parts = [f"{count} {kind}" for kind, count in kinds[:_MOST_KINDS]]
        if len(kinds) > _MOST_KINDS:
            parts.append(f"{sum(count for _, count in kinds[_MOST_KINDS:])} others")
        types = ", ".join(f"{count} in {precision}" for precision, count in self.precisions.items())
        return "; ".join(filter(None, (f"{self.count} layers", ", ".join(parts), types)))


def layers_file(engine: str) -> str:
    """Name of the file with an engine's layers, beside the engine."""
    return f"{engine.removesuffix('.engine')}.layers.json"


def companions(artefact: Artefact) -> tuple[str, str]:
    """Files that may be beside an engine and go where it goes: its layers, and what TensorRT-RTX compiled of it."""
    return layers_file(artefact.file), cache_file(artefact.file)


def _precision(layer: Mapping[str, Any]) -> str | None:
    outputs = layer.get("Outputs")
    if not isinstance(outputs, list) or not outputs or not isinstance(outputs[0], dict):
        return None
    said = str(outputs[0].get("Format/Datatype", "")).lower()
    return next((name for word, name in _PRECISIONS if word in said), None)
