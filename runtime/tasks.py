"""What each task means to a program: how its network's outputs must look, and what becomes of them.

The one place that knows one task from another. Everything else looks a task up here by the manifest's word for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .manifest import Manifest
from .results import Classification, Segmentation

Outputs = Mapping[str, NDArray[Any]]
Frames = Sequence[tuple[int, int]]
Result = Classification | Segmentation


@dataclass(frozen=True)
class TaskBehaviour:
    """How a task's outputs are checked and turned into answers.

    Attributes:
        check: raises :class:`~runtime.errors.BundleError` if a manifest's outputs are not such a network's.
        answers: turns the outputs for N images into N answers, given the height and width of each image.
        listing: key of an answer's `to_dict` that holds one entry a class.
        figure: key of such an entry that holds its number.
        default_top: how many classes of an answer to print unless told; None for all.
    """

    check: Callable[[Manifest], None]
    answers: Callable[[Manifest, Outputs, Frames], list[Result]]
    listing: str = "top"
    figure: str = "score"
    default_top: int | None = 1


def task_behaviour(manifest: Manifest) -> TaskBehaviour:
    """The behaviour of a manifest's task, whose outputs are checked.

    Args:
        manifest: of the model

    Returns:
        its task's entry

    Raises:
        BundleError: if the outputs are not those of such a network
    """
    behaviour = _TASKS[manifest.task]
    behaviour.check(manifest)
    return behaviour


def _check_scores(dimensions: int, form: str) -> Callable[[Manifest], None]:
    """A check for one output of scores with the classes in its second dimension."""

    def check(manifest: Manifest) -> None:
        if len(manifest.outputs) != 1:
            raise BundleError(
                f"{manifest.name}: {manifest.task} has one output {form}, this network has {len(manifest.outputs)}; "
                "export the model again"
            )
        shape = manifest.outputs[0].shape
        fits = len(shape) == dimensions and not (isinstance(shape[1], int) and shape[1] != len(manifest.labels))
        if not fits or not manifest.labels:
            raise BundleError(
                f"{manifest.name}: {len(manifest.labels)} labels do not fit a network that answers {shape} where "
                f"{manifest.task} has {form}; export the model again"
            )

    return check


def _scores(manifest: Manifest, outputs: Outputs, frames: Frames, dimensions: int) -> NDArray[np.float32]:
    scores = np.asarray(outputs[manifest.outputs[0].name], np.float32)
    if scores.ndim != dimensions or scores.shape[:2] != (len(frames), len(manifest.labels)) or 0 in scores.shape:
        raise BundleError(
            f"{manifest.name}: the network answered {len(frames)} images with the shape {scores.shape}: expected "
            f"scores for each of the {len(manifest.labels)} labels; export the model again"
        )
    return scores


def _classify(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    return [Classification(row, manifest.labels) for row in _scores(manifest, outputs, frames, 2)]


def _segment(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    scores = _scores(manifest, outputs, frames, 4)
    # One byte a pixel wherever the classes have room in it, as a label image has.
    kind: type[np.uint8] | type[np.int32] = np.uint8 if len(manifest.labels) <= 256 else np.int32
    return [
        Segmentation(image.argmax(0).astype(kind), manifest.labels, frame, manifest.preprocessing)
        for image, frame in zip(scores, frames, strict=True)
    ]


def _check_heads(manifest: Manifest) -> None:
    if not manifest.labels:
        raise BundleError(f"{manifest.name}: a detector has one label at least; export the model again")


def _detect(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    names = ", ".join(repr(spec.name) for spec in manifest.outputs)
    raise BundleError(
        f"{manifest.name} gives the raw output of its detection head ({names}), not boxes: take the arrays with "
        "Model.run and decode them as the architecture asks"
    )


_TASKS = {
    "classification": TaskBehaviour(_check_scores(2, "(batch, classes)"), _classify),
    "detection": TaskBehaviour(_check_heads, _detect),
    "segmentation": TaskBehaviour(_check_scores(4, "(batch, classes, H, W)"), _segment, "classes", "share", None),
}
