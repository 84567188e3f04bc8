"""What is put behind a network, as asked for: which post-processing, and the graph that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.manifest import Preprocessing, TensorSpec
from runtime.post_processing import PostProcessing

from ..errors import ExportError
from ..spec import DEFAULT_MAX_DETECTIONS, ExportSpec

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from ..source import Source
    from .check import Expect

DEFAULT_SCORE_THRESHOLD, DEFAULT_IOU_THRESHOLD = 0.25, 0.45
"""For detectors that do not say their own."""
DEFAULT_CANDIDATES, DEFAULT_NMS_STEPS = 300, 16
"""Steps: the most that any of 1,500 scenes of up to 300 boxes needed in `benchmarks/nms.py` was 8; crowds of 1,000
took up to 12."""

_OPTIONS = {
    "detections": ("score_threshold", "iou_threshold", "max_detections", "candidates", "nms_steps"),
    "class_map": ("class_map", "probabilities"),
    "probabilities": ("probabilities",),
    "top_classes": ("top_k", "probabilities"),
}


@dataclass(frozen=True)
class Tail:
    """What stands behind a network.

    Attributes:
        post_processing: as the manifest tells it.
        outputs: what the whole graph gives.
        module: computes them from the network's outputs.
        frame_size: height and width of every frame that the graph takes, if those are known.
        decode: of a detector, turns its raw heads into boxes and scores.
    """

    post_processing: PostProcessing
    outputs: tuple[TensorSpec, ...]
    module: nn.Module
    frame_size: tuple[int, int] | None = None
    decode: Callable[[Any], Any] | None = None

    def expect(self, preprocessing: Preprocessing, device: Any) -> Expect:
        """What the graph should make of the network's own outputs, computed another way.

        Args:
            preprocessing: how an image becomes the network's input
            device: where the network's outputs are decoded
        """
        from .check import expect_in_numpy

        if self.decode is None:
            return expect_in_numpy(self.post_processing, self.frame_size or preprocessing.size)
        from .reference import eager_detections

        return eager_detections(self.decode, self.post_processing, preprocessing, self.frame_size, device)

    def trace(self, raw: tuple[TensorSpec, ...]) -> onnx.ModelProto:
        """The graph of it.

        Args:
            raw: the network's own outputs

        Raises:
            ExportError: if it cannot be traced
        """
        from .attach import trace_tail

        shapes = {spec.name: _shape(spec) for spec in raw}
        return trace_tail(self.module, shapes, [spec.name for spec in self.outputs])


def make_tail(spec: ExportSpec, source: Source, frame_size: tuple[int, int] | None = None) -> Tail | None:
    """What to put behind a network.

    Args:
        spec: what was asked
        source: the network
        frame_size: height and width of every frame that the graph takes, if it takes frames of one size

    Returns:
        that, or None if the network's own outputs are wanted

    Raises:
        ExportError: if what was asked is of another task, or the network does not have what it takes
    """
    decode = getattr(getattr(source.module, "module", None), "decode", None)
    kind = _kind(spec, source.task, callable(decode))
    given = spec.post_processing_options
    for option in given:
        if kind is None or option not in _OPTIONS[kind]:
            raise ExportError(f"--{option.replace('_', '-')} says nothing about {source.task}: leave it out")
    if kind is None:
        return None
    if kind == "detections":
        assert decode is not None
        return _detections(spec, source, decode, frame_size)
    (scores,) = source.outputs
    if kind == "class_map":
        return _class_map(spec, source, frame_size)
    if kind == "top_classes":
        return _top_classes(spec, source)
    from .segmentation import Probabilities

    return Tail(PostProcessing(kind), (replace(scores, name="probabilities"),), Probabilities())


def _kind(spec: ExportSpec, task: str, decodes: bool) -> str | None:
    """One of :data:`runtime.post_processing.KINDS`; None for the network's own outputs.

    Detectors give boxes unless told otherwise: raw heads mean nothing without the architecture's code. The scores of
    classifiers and segmenters do, and programs that read them exist.
    """
    if spec.end_to_end is False:
        return None
    if task == "detection":
        if not decodes and (spec.end_to_end or spec.post_processing_options):
            raise ExportError(
                "the detector has no method `decode`, which turns its raw heads into boxes (N, P, 4) and scores "
                "(N, P, K): add one, or export it with --raw"
            )
        return "detections" if decodes else None
    if task == "segmentation":
        if spec.class_map or spec.end_to_end:
            return "class_map"
    elif spec.top_k is not None:
        return "top_classes"
    return "probabilities" if spec.probabilities or spec.end_to_end else None


def _detections(
    spec: ExportSpec, source: Source, decode: Callable[[Any], Any], frame_size: tuple[int, int] | None
) -> Tail:
    from .detection import DetectionPostProcessing
    from .nms import NonMaxSuppression

    detector = source.module.module
    score_threshold = _number(spec.score_threshold, detector, "box_score_thresh", DEFAULT_SCORE_THRESHOLD)
    iou_threshold = _number(spec.iou_threshold, detector, "rpn_nms_thresh", DEFAULT_IOU_THRESHOLD)
    rows = spec.max_detections or DEFAULT_MAX_DETECTIONS
    candidates = spec.candidates or max(DEFAULT_CANDIDATES, rows)
    steps = spec.nms_steps or DEFAULT_NMS_STEPS
    nms = NonMaxSuppression(score_threshold, iou_threshold, rows, candidates, steps)
    module = DetectionPostProcessing(decode, nms, source.preprocessing, frame_size)
    coordinates = "network" if frame_size is None else "frame"
    post = PostProcessing("detections", coordinates, score_threshold, iou_threshold, rows, candidates, steps)
    shapes: dict[str, tuple[int, ...]] = {"boxes": (rows, 4), "scores": (rows,), "labels": (rows,)}
    return Tail(post, _specs(post, source, shapes), module, frame_size, decode)


def _number(given: float | None, detector: Any, attribute: str, default: float) -> float:
    """A threshold as given, or the detector's own: then the graph answers as the detector does in PyTorch."""
    own = getattr(detector, attribute, default)
    fits = isinstance(own, (int, float)) and not isinstance(own, bool) and 0 <= own <= 1
    return float(given if given is not None else own if fits else default)


def _class_map(spec: ExportSpec, source: Source, frame_size: tuple[int, int] | None) -> Tail:
    from .segmentation import ClassMap

    _, classes, *cells = _shape(source.outputs[0], batch=1)
    post = PostProcessing(
        "class_map", "network" if frame_size is None else "frame", with_probabilities=spec.probabilities
    )
    module = ClassMap((cells[0], cells[1]), source.preprocessing, frame_size, spec.probabilities)
    size = frame_size or source.preprocessing.size
    return Tail(post, _specs(post, source, {"class_map": size, "probabilities": (classes, *cells)}), module, frame_size)


def _top_classes(spec: ExportSpec, source: Source) -> Tail:
    from .classification import TopClasses
    from .ranking import LARGEST_RANKED

    k, classes = spec.top_k, len(source.labels)
    assert k is not None
    if k > min(classes, LARGEST_RANKED):
        raise ExportError(f"--top-k {k} is more than the {min(classes, LARGEST_RANKED)} classes that can be ranked")
    post = PostProcessing("top_classes", top_k=k)
    return Tail(post, _specs(post, source, {"scores": (k,), "labels": (k,)}), TopClasses(k))


def _specs(post: PostProcessing, source: Source, shapes: dict[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    types = post.output_types(len(source.labels))
    return tuple(TensorSpec(name, dtype, ("batch", *shapes.get(name, ()))) for name, dtype in types.items())


def _shape(spec: TensorSpec, batch: int | None = None) -> tuple[int, ...]:
    """The shape of an output for one image, without the batch unless that is given."""
    inner = tuple(int(side) for side in spec.shape[1:])
    return inner if batch is None else (batch, *inner)
