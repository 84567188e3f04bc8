"""What each task means to a program: how its network's outputs must look, and what becomes of them.

The one place that knows one task from another. Everything else looks a task up here by the manifest's word for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .detections import Detections, boxes_in_frame
from .errors import BackendError, BundleError
from .manifest import Manifest
from .nms import NOT_FINITE
from .results import Classification, Prediction, Segmentation, TopClasses

Outputs = Mapping[str, NDArray[Any]]
Frames = Sequence[tuple[int, int]]
Result = Classification | TopClasses | Segmentation | Detections


@dataclass(frozen=True)
class TaskBehaviour:
    """How a task's outputs are checked and turned into answers.

    Attributes:
        check: raises :class:`~runtime.errors.BundleError` if a manifest's outputs are not such a network's.
        answers: turns the outputs for N images into N answers, given the height and width of each image.
        listing: key of an answer's `to_dict` that holds one entry a class.
        figure: key of such an entry that holds its number.
        place: key of such an entry that holds where in the image it is; None where an entry has no place.
        default_top: how many classes of an answer to print unless told; None for all.
    """

    check: Callable[[Manifest], None]
    answers: Callable[[Manifest, Outputs, Frames], list[Result]]
    listing: str = "top"
    figure: str = "score"
    place: str | None = None
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
    post = manifest.post_processing
    behaviour = _TASKS[manifest.task] if post is None else _POST_PROCESSED[post.kind]
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
        "Model.run and decode them as the architecture asks, or export it without --raw"
    )


def _check_post_processed(manifest: Manifest) -> None:
    assert manifest.post_processing is not None
    manifest.post_processing.check(manifest.name, manifest.task, len(manifest.labels), manifest.outputs)


def _checked(manifest: Manifest, outputs: Outputs, frames: Frames) -> dict[str, NDArray[Any]]:
    """The outputs, if they are of the shapes that the manifest says and the network was able to answer."""
    for spec in manifest.outputs:
        shape = outputs[spec.name].shape
        expected = (len(frames), *spec.shape[1:])
        fits = len(shape) == len(expected) and all(
            isinstance(said, str) or said == found for said, found in zip(expected, shape, strict=True)
        )
        if not fits:
            raise BundleError(
                f"{manifest.name}: the network answered {len(frames)} images with {spec.name!r} of the shape {shape}, "
                f"the manifest says {spec.shape}; export the model again"
            )
    if "status" in outputs and (np.asarray(outputs["status"]) & NOT_FINITE).any():
        raise BackendError(
            "the network answered with NaN or infinite values, of which nothing was made: choose another precision"
        )
    return dict(outputs)


def _check_labelled(manifest: Manifest, classes: NDArray[Any]) -> None:
    if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < len(manifest.labels):
        raise BundleError(
            f"{manifest.name}: the network answered the class {classes.max()} of {len(manifest.labels)}; export the "
            "model again"
        )


def _detections(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    found, results = _checked(manifest, outputs, frames), list[Result]()
    assert manifest.post_processing is not None
    for i, frame in enumerate(frames):
        count = int(found["count"][i])
        if not 0 <= count <= len(found["scores"][i]):
            raise BundleError(f"{manifest.name}: the network says {count} boxes of {len(found['scores'][i])}")
        boxes = np.asarray(found["boxes"][i, :count], np.float32)
        if manifest.post_processing.coordinates == "network":
            boxes = boxes_in_frame(boxes, frame, manifest.preprocessing)
        # A box in the padding alone is none of the image.
        inside = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        labels = found["labels"][i, :count][inside]
        _check_labelled(manifest, labels)
        scores, status = found["scores"][i, :count][inside], int(found["status"][i])
        results.append(Detections(boxes[inside], scores, labels, manifest.labels, frame, status))
    return results


def _class_maps(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    found = _checked(manifest, outputs, frames)
    assert manifest.post_processing is not None
    of_frame = manifest.post_processing.coordinates == "frame"
    probabilities = found.get("probabilities")
    _check_labelled(manifest, found["class_map"])
    return [
        Segmentation(
            class_map,
            manifest.labels,
            frame,
            manifest.preprocessing,
            of_frame,
            None if probabilities is None else probabilities[i],
        )
        for i, (class_map, frame) in enumerate(zip(found["class_map"], frames, strict=True))
    ]


def _probabilities(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    found = _checked(manifest, outputs, frames)
    if manifest.task == "classification":
        return [Classification.from_probabilities(row, manifest.labels) for row in found["probabilities"]]
    # Of probabilities the largest is that of the same class as of logits.
    return [
        replace(segmentation, probabilities=image)
        for segmentation, image in zip(_segment(manifest, outputs, frames), found["probabilities"], strict=True)
        if isinstance(segmentation, Segmentation)
    ]


def _top_classes(manifest: Manifest, outputs: Outputs, frames: Frames) -> list[Result]:
    found, labels = _checked(manifest, outputs, frames), manifest.labels
    _check_labelled(manifest, found["labels"])
    return [
        TopClasses(tuple(Prediction(labels[i], i, s) for i, s in zip(row.tolist(), scores.tolist(), strict=True)))
        for row, scores in zip(found["labels"], found["scores"], strict=True)
    ]


_POST_PROCESSED = {
    "detections": TaskBehaviour(_check_post_processed, _detections, "detections", default_top=None, place="box"),
    "class_map": TaskBehaviour(_check_post_processed, _class_maps, "classes", "share", default_top=None),
    "probabilities": TaskBehaviour(_check_post_processed, _probabilities),
    "top_classes": TaskBehaviour(_check_post_processed, _top_classes),
}
_TASKS = {
    "classification": TaskBehaviour(_check_scores(2, "(batch, classes)"), _classify),
    "detection": TaskBehaviour(_check_heads, _detect),
    "segmentation": TaskBehaviour(
        _check_scores(4, "(batch, classes, H, W)"), _segment, "classes", "share", default_top=None
    ),
}
