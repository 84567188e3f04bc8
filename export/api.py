"""The exporter as one Python call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.manifest import Preprocessing

from .engine_options import EngineBuild
from .errors import ExportError
from .pipeline import run_export
from .progress import Progress
from .report import ExportResult
from .spec import ExportSpec, Tolerances

if TYPE_CHECKING:
    from torch import nn

StrPath = str | os.PathLike[str]


def export_model(
    model: str | os.PathLike[str] | nn.Module,
    output: StrPath | None = None,
    *,
    task: str = "classification",
    weights: StrPath = "default",
    num_classes: int | None = None,
    labels: StrPath | None = None,
    input_size: tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    input: str = "image",
    channels: str = "rgb",
    frame: tuple[int, int] | None = None,
    max_frame: tuple[int, int] | None = None,
    end_to_end: bool | None = None,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
    candidates: int | None = None,
    nms_steps: int | None = None,
    probabilities: bool = False,
    top_k: int | None = None,
    class_map: bool = False,
    fp16: bool = False,
    int8: bool = False,
    int8_report: bool = False,
    max_drop: float | None = None,
    tune: str | None = None,
    calib: StrPath | None = None,
    calib_samples: int = 256,
    calib_method: str = "auto",
    effort: str = "normal",
    per_tensor: bool = False,
    verify_samples: int = 32,
    eval_folder: StrPath | None = None,
    max_batch: int = 1,
    trt: bool = False,
    rtx: bool = False,
    rtx_capabilities: tuple[str, ...] = (),
    engine: EngineBuild | None = None,
    cpp: bool = False,
    force: bool = False,
    seed: int = 0,
    tolerances: Tolerances | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a model to a bundle, or add what is missing to a bundle. The same as `holocron-export`.

    Args:
        model: an architecture's name, the path of an existing bundle (`"./repvgg_a0"` where an architecture has the
            same name), or a module, which is put in evaluation mode and reparameterized in place
        output: the folder to write; None for the model's name in the current folder, or the bundle itself
        task: of a module: `"classification"`, (N, 3, H, W) to scores (N, K); `"segmentation"`, to scores (N, K, H', W')
            that cover the whole image; `"detection"`, with a method `raw_outputs` that gives one tensor or several, an
            attribute `num_classes`, and for detections a method `decode`, which makes of those boxes (N, P, 4), from 0
            to 1, and scores (N, P, K)
        weights: `"default"` (the published checkpoint), `"none"` (random), a checkpoint entry, or a file
        num_classes: number of classes; None takes it from the labels or the weights
        labels: a text file with one class name a line
        input_size: height and width in pixels; None takes them from the weights or the architecture
        preprocessing: replaces everything known about the preprocessing; a module needs it
        input: `"image"`: the graphs take float images, resized and normalized; `"frame"`: they take uint8 frames
            (N, h, w, 3), as a camera gives them, and do that themselves
        channels: order of a frame's channels, `"rgb"` or `"bgr"`
        frame: height and width of every frame in pixels, where they are known: less work than for sizes that differ
        max_frame: height and width of the largest frame in pixels, `(1080, 1920)` unless told
        end_to_end: whether the graphs give what a program wants (detections, the class map, probabilities) or, if
            False, the network's own outputs; None gives detections of a detector that has a method `decode`, and
            otherwise what the options below ask for
        score_threshold: of detections: the least score of a box, 0 to 1; None for the detector's own
        iou_threshold: of detections: a box that overlaps a better one of its class by a larger IoU is dropped; None for
            the detector's own
        max_detections: of detections: at most that many an image, 100 unless told
        candidates: of detections: boxes that suppression looks at, those with the highest scores, 300 unless told
        nms_steps: of detections: steps of suppression, 16 unless told; a scene that needs more is reported
        probabilities: probabilities of the classes instead of logits; beside a class map, both
        top_k: of a classifier: that many classes, likeliest first, and their probabilities
        class_map: of a segmenter: the class of each pixel
        fp16: also write the float16 graph
        int8: also write the INT8 graphs of both schemes
        int8_report: also write `report.html`, what is known about them, and the same as data; the result's
            `quantization` holds it too
        max_drop: points of accuracy (without `eval_folder`, of agreement with the float network) that an INT8 graph may
            lose; as few layers as that takes stay in higher precision
        tune: backend, one of :data:`runtime.backends.BACKENDS`, on which a layer must make the whole faster to be INT8
        calib: folder of images to calibrate on; None takes the few that come with the package
        calib_samples: at most that many images of it
        calib_method: `"auto"`, which takes for each tensor the range that costs the output least, or `"minmax"`,
            `"percentile"`, `"entropy"` or `"mse"` for all of them
        effort: how much work goes into keeping INT8 accurate: `"fast"`, `"normal"` or `"high"`
        per_tensor: one scale for all weights of a layer, for targets without one per channel
        verify_samples: images that artefacts are compared with the reference on, where there is no `eval_folder`
        eval_folder: labelled images, a folder a class, on which the accuracy of every artefact is measured
        max_batch: largest batch that an engine takes
        trt: build a TensorRT engine for this machine's GPU
        rtx: build TensorRT-RTX engines; needs no GPU
        rtx_capabilities: compute capabilities of those, `("8.6",)` unless told
        engine: what else is asked of engines
        cpp: also write an example in C++ that opens the bundle, to a folder beside it
        force: replace what exists
        seed: of random weights and of the choice of images
        tolerances: when an artefact counts as broken
        progress: is told what happens, e.g. :class:`export.progress.Terminal`

    Returns:
        the bundle's folder, its manifest and warnings

    Raises:
        HolocronError: if something cannot be done as asked; nothing is left on disk then, and what was there is whole
    """
    if isinstance(model, os.PathLike):
        model = str(Path(model).absolute())  # a path is never an architecture
    is_name = isinstance(model, str)
    if not is_name and preprocessing is None:
        raise ExportError("exporting a module needs `preprocessing`: the module does not know how its images are made")
    if not is_name and (weights != "default" or num_classes is not None):
        raise ExportError("a module has its weights and classes already: leave out `weights` and `num_classes`")
    if is_name and task != "classification":
        raise ExportError("`task` is of a module: architectures and bundles have theirs")
    options: dict[str, Any] = {
        "input": input,
        "channels": channels,
        "frame": frame,
        "max_frame": max_frame,
        "end_to_end": end_to_end,
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "max_detections": max_detections,
        "candidates": candidates,
        "nms_steps": nms_steps,
        "probabilities": probabilities,
        "top_k": top_k,
        "class_map": class_map,
        "fp16": fp16,
        "int8": int8,
        "int8_report": int8_report,
        "max_drop": max_drop,
        "tune": tune,
        "calib_samples": calib_samples,
        "calib_method": calib_method,
        "effort": effort,
        "per_tensor": per_tensor,
        "verify_samples": verify_samples,
        "max_batch": max_batch,
        "trt": trt,
        "rtx": rtx,
        "rtx_capabilities": tuple(rtx_capabilities),
        "engine": engine or EngineBuild(),
        "cpp": cpp,
        "force": force,
        "seed": seed,
    }
    spec = ExportSpec(
        model=model if isinstance(model, str) else type(model).__name__.lower(),
        output=_path(output),
        weights=os.fspath(weights),
        num_classes=num_classes,
        labels=_path(labels),
        input_size=input_size,
        preprocessing=preprocessing,
        calib=_path(calib),
        eval_folder=_path(eval_folder),
        tolerances=tolerances or Tolerances(),
        **options,
    )
    return run_export(spec, progress, None if isinstance(model, str) else model, task)


def _path(value: StrPath | None) -> Path | None:
    return None if value is None else Path(value)
