"""What a graph makes of the network's own outputs, as the manifest tells it: boxes, class maps, the best classes.

The kinds and their outputs are written down in `docs/bundle.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import BundleError
from .json_reader import JsonReader

if TYPE_CHECKING:
    from .manifest import TensorSpec

KINDS = {
    "detections": "detection",
    "class_map": "segmentation",
    "probabilities": "classification, segmentation",
    "top_classes": "classification",
}
"""What can be made, and the tasks that have it."""
COORDINATES = ("network", "frame")

_OUTPUTS = {
    "detections": {"boxes": "float32", "scores": "float32", "labels": "int32", "count": "int32", "status": "int32"},
    "class_map": {"class_map": "uint8", "status": "int32"},
    "probabilities": {"probabilities": "float32"},
    "top_classes": {"scores": "float32", "labels": "int32", "status": "int32"},
}
_LARGEST_BYTE_CLASSES = 256
_NUMBERS = {
    "detections": ("score_threshold", "iou_threshold", "max_detections", "candidates", "steps"),
    "top_classes": ("top_k",),
}
_LARGEST_COUNT = 2**31 - 1


@dataclass(frozen=True)
class PostProcessing:
    """What becomes of the network's own outputs inside its graph.

    Attributes:
        kind: one of :data:`KINDS`.
        coordinates: of boxes and class maps: `"network"`, pixels of the network's input, or `"frame"`, pixels of the
            frame that the graph takes.
        score_threshold: of detections: boxes of lower scores are left out.
        iou_threshold: of detections: a box that overlaps a better one of its class by more is left out.
        max_detections: of detections: rows of the outputs.
        candidates: of detections: boxes that take part, those with the highest scores.
        steps: of detections: how often suppression is applied.
        top_k: of top classes: how many.
        with_probabilities: of a class map: whether there are probabilities of the classes too.
    """

    kind: str
    coordinates: str = "network"
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    candidates: int | None = None
    steps: int | None = None
    top_k: int | None = None
    with_probabilities: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that the kind has, as they stand in a manifest."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def output_types(self, classes: int) -> dict[str, str]:
        """Names of the outputs in their order, and the element type of each.

        Args:
            classes: how many classes there are: a class map of more than 256 is int32
        """
        types = dict(_OUTPUTS[self.kind])
        if self.kind == "class_map":
            types["class_map"] = "uint8" if classes <= _LARGEST_BYTE_CLASSES else "int32"
            if self.with_probabilities:
                types["probabilities"] = "float32"
        return types

    def check(self, name: str, task: str, classes: int, outputs: tuple[TensorSpec, ...]) -> None:
        """Make sure that a network's outputs are what this says.

        Args:
            name: of the model, for errors
            task: what it does
            classes: how many classes it has
            outputs: what it gives

        Raises:
            BundleError: if they are not
        """
        if task not in KINDS[self.kind].split(", "):
            raise BundleError(f"{name}: {task} has no {self.kind}; export the model again")
        expected = self.output_types(classes)
        found = {spec.name: spec.dtype for spec in outputs}
        if found != expected:
            raise BundleError(
                f"{name}: {self.kind} are the outputs {_listed(expected)}, this network has {_listed(found)}; export "
                "the model again"
            )
        shapes = {spec.name: spec.shape[1:] for spec in outputs}
        if not self._fits(shapes, classes):
            raise BundleError(
                f"{name}: {self.kind} for {classes} classes are not of the shapes "
                f"{', '.join(f'{key} {shape}' for key, shape in shapes.items())}; export the model again"
            )

    def _fits(self, shapes: dict[str, tuple[int | str, ...]], classes: int) -> bool:
        if self.kind == "detections":
            rows = self.max_detections
            each = {"boxes": (rows, 4), "scores": (rows,), "labels": (rows,), "count": (), "status": ()}
            return shapes == each
        if self.kind == "top_classes":
            return shapes == {"scores": (self.top_k,), "labels": (self.top_k,), "status": ()}
        probabilities = shapes.get("probabilities", (classes,))
        return probabilities[:1] == (classes,) and len(shapes.get("class_map", (1, 1))) == 2


def parse_post_processing(parser: JsonReader, value: Any, place: str) -> PostProcessing | None:
    """Read the entry of a manifest.

    Args:
        parser: reads values of each type, and raises an error that names the place
        value: the entry; None if there is none
        place: what to call it

    Returns:
        what it says, or None

    Raises:
        BundleError: if it is not such an entry
    """
    if value is None:
        return None
    data = parser.mapping(value, place)
    parser.keys(data, PostProcessing, place)
    kind = parser.choice(data["kind"], f"{place}.kind", tuple(KINDS))
    needed = _NUMBERS.get(kind, ())
    numbers: dict[str, Any] = {}
    for key in (key for keys in _NUMBERS.values() for key in keys):
        at, given = f"{place}.{key}", data.get(key)
        if (given is not None) != (key in needed):
            raise parser.fail(at, "is missing" if given is None else f"is given, which {kind} does not have")
        if given is not None:
            is_number = key.endswith("threshold")
            numbers[key] = parser.number(given, at) if is_number else parser.integer(given, at, 1, _LARGEST_COUNT)
    with_probabilities = parser.boolean(data.get("with_probabilities", False), f"{place}.with_probabilities")
    coordinates = parser.choice(data.get("coordinates", "network"), f"{place}.coordinates", COORDINATES)
    return PostProcessing(kind, coordinates, with_probabilities=with_probabilities, **numbers)


def _listed(types: dict[str, str]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in types.items())
