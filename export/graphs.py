"""Making the graphs that are asked for from the float32 one: float16 and INT8, each written into the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from calib import (
    CACHE_NAME,
    CalibrationCache,
    cached_ranges,
    find_images,
    find_labelled_images,
    images_digest,
    sample_folder,
)
from runtime.manifest import METADATA_KEY, SCHEMES, VARIANT_KEY, Artefact

from .base import Base, load_network
from .bundle import BundleWriter
from .errors import ExportError
from .progress import Progress
from .report import FloatOperator
from .spec import ExportSpec
from .tasks import task_export

if TYPE_CHECKING:
    import onnx

    from .quantize.summary import QuantizationSummary

_FEW_IMAGES = 64
_REPORT_IMAGES = 16


@dataclass(frozen=True)
class MadeGraphs:
    """The graphs that one export made.

    Attributes:
        artefacts: the files, not yet verified.
        float_operators: what stayed float in each of the quantized ones, by variant.
        summaries: where a report is asked for, what is known about the quantized ones, by scheme.
    """

    artefacts: tuple[Artefact, ...] = ()
    float_operators: Mapping[str, tuple[FloatOperator, ...]] = field(default_factory=dict)
    summaries: Mapping[str, QuantizationSummary] = field(default_factory=dict)


def make_graphs(
    spec: ExportSpec,
    base: Base,
    destination: Path,
    writer: BundleWriter,
    progress: Progress,
    warn: Callable[[str], None],
) -> MadeGraphs:
    """Make the ONNX graphs that are asked for and not there yet, and write each before the next is made.

    Args:
        spec: what was asked
        base: what they are made from
        destination: of the bundle, whose calibration is read where there is one
        writer: of the bundle, which the graphs and the calibration are written to
        progress: is told what happens
        warn: is told what the user should know

    Returns:
        what was written, and what is known about it

    Raises:
        ExportError: if something cannot be made as asked
    """
    schemes = [s for s in SCHEMES if spec.int8 and not base.has(f"int8.{s}")]
    fp16, fp32 = spec.fp16 and not base.has("fp16"), not base.has("fp32")
    if not schemes and base.folder is not None and (base.folder / CACHE_NAME).is_file():
        writer.keep(base.folder, CACHE_NAME)
    if spec.max_drop is not None and task_export(base.manifest.task).class_axis is None:
        raise ExportError(f"--max-drop counts first classes, which {base.manifest.task} has none of: leave it out")
    if spec.mixes_precision and not schemes:
        warn("the INT8 graphs are there already: to make them again with --max-drop or --tune add --force")
    if not (fp32 or fp16 or schemes):
        return MadeGraphs()
    graph = base.load_graph()  # from here on there is onnx
    artefacts = [_write_graph("fp32", graph, base, writer)] if fp32 else []
    if fp16 or "trt" in schemes:
        from .float16 import check_activations

        images = unlabelled_images(spec, spec.verify_samples)
        with progress.stage("checking that activations fit float16"):
            check_activations(graph, images, base.manifest.preprocessing)
    if fp16:
        from .float16 import to_float16

        with progress.stage("converting to float16"):
            artefacts.append(_write_graph("fp16", to_float16(graph), base, writer))
    float_operators: dict[str, tuple[FloatOperator, ...]] = {}
    summaries: dict[str, QuantizationSummary] = {}
    if schemes:
        from .quantize import quantize
        from .quantize.layers import operators_left_float

        started = time.perf_counter()
        cache = _calibration(graph, spec, base, destination, progress, warn)
        writer.write(CACHE_NAME, cache.to_json().encode())
        calibrated = time.perf_counter() - started
        for scheme in schemes:
            started = time.perf_counter()
            mixer = _Mixer(scheme, spec, base, progress, warn) if spec.mixes_precision else None
            with progress.stage(f"quantizing for {scheme}"):
                quantized = quantize(graph, cache.ranges, scheme, mixer)
            seconds = calibrated + time.perf_counter() - started
            artefacts.append(_write_graph(f"int8.{scheme}", quantized, base, writer))
            float_operators[f"int8.{scheme}"] = operators_left_float(graph, scheme)
            if spec.reports_int8:
                with progress.stage(f"measuring the noise of each layer for {scheme}"):
                    summary = _summary(graph, quantized, scheme, cache, seconds, spec, base)
                summaries[scheme] = summary if mixer is None or mixer.mixture is None else mixer.mixture.add_to(summary)
    return MadeGraphs(tuple(artefacts), float_operators, summaries)


class _Mixer:
    """Puts layers of a quantized graph back to float as `--tune` and `--max-drop` ask, and remembers why."""

    def __init__(
        self, scheme: str, spec: ExportSpec, base: Base, progress: Progress, warn: Callable[[str], None]
    ) -> None:
        from .quantize.mixture import Mixture, MixtureRequest

        labels = None
        if spec.eval_folder is None:
            images = unlabelled_images(spec, spec.calib_samples)
        else:
            labelled = find_labelled_images(spec.eval_folder, base.manifest.labels)
            images, labels = tuple(path for path, _ in labelled), tuple(label for _, label in labelled)
        self.mixture: Mixture | None = None
        self._scheme = scheme
        self._request = MixtureRequest(
            max_drop=spec.max_drop,
            tune=spec.tune,
            images=images,
            preprocessing=base.manifest.preprocessing,
            labels=labels,
            class_axis=task_export(base.manifest.task).class_axis,
        )
        self._progress = progress
        self._warn = warn

    def __call__(self, quantized: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
        from .quantize.mixture import mix_precision

        if not self._request.concerns(self._scheme):
            return quantized
        self.mixture = mix_precision(quantized, model, self._scheme, self._request, self._progress.update)
        for remark in self.mixture.remarks:
            self._warn(f"int8.{self._scheme}: {remark}")
        return self.mixture.model


def _summary(
    graph: onnx.ModelProto,
    quantized: onnx.ModelProto,
    scheme: str,
    cache: CalibrationCache,
    seconds: float,
    spec: ExportSpec,
    base: Base,
) -> QuantizationSummary:
    """What is known about a quantized graph, for the report."""
    from .quantize.summarize import observe_images, summarize

    images = unlabelled_images(spec, _REPORT_IMAGES)
    seen = observe_images(quantized, images, base.manifest.preprocessing, cache.ranges, graph)
    return summarize(
        graph,
        quantized,
        scheme,
        cache.ranges,
        method=cache.method,
        images=cache.image_count,
        seconds=seconds,
        observations=seen,
    )


def summarize_kept(
    base: Base, scheme: str, earlier: QuantizationSummary | None, warn: Callable[[str], None]
) -> QuantizationSummary:
    """What is known about a quantized graph that a bundle had already.

    Args:
        base: the bundle
        scheme: of the graph
        earlier: what the export that made it left, or None
        warn: is told where little is known

    Returns:
        that, or what can be read off the graph alone
    """
    if earlier is not None:
        return earlier
    from .quantize.summarize import summarize

    (kept,) = [a for a in base.kept if a.kind == "onnx" and a.variant == f"int8.{scheme}"][:1]
    assert base.folder is not None
    warn(f"{kept.file} was made without --int8-report: for its ranges and noise make it again with --force")
    quantized = load_network(base.folder / kept.file, base.manifest)
    return summarize(base.load_graph(), quantized, scheme, {}, method="", images=0)


def _calibration(
    graph: onnx.ModelProto,
    spec: ExportSpec,
    base: Base,
    destination: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> CalibrationCache:
    """Measured ranges, from the bundle's cache where it is of the same model, images and method."""
    from .onnx_graph import graph_digest
    from .quantize import calibrate, tensors_to_observe

    preprocessing = base.manifest.preprocessing
    if spec.calib is None:
        warn("calibrating on the few sample images of the package: pass images like those it will see with --calib DIR")
    images = unlabelled_images(spec, spec.calib_samples)
    if spec.calib is not None and len(images) < _FEW_IMAGES:
        warn(f"calibrating on {len(images)} images only: a few hundred give steadier ranges")
    path = (base.folder or destination) / CACHE_NAME
    wanted = (spec.calib_method, graph_digest(graph), images_digest(images), preprocessing)
    found, _ = cached_ranges(path, *wanted, tensors=tuple(tensors_to_observe(graph)))
    if found is not None:
        with progress.stage(f"reading the calibration on {found.image_count} images from {path}"):
            return found
    with progress.stage(f"calibrating on {len(images)} images ({spec.calib_method})"):
        cache = calibrate(graph, images, preprocessing, spec.calib_method, progress.update)
    if cache.image_count < len(images):
        warn(f"{len(images) - cache.image_count} of {len(images)} calibration images could not be read")
    return cache


def unlabelled_images(spec: ExportSpec, samples: int) -> tuple[Path, ...]:
    """A sample of the calibration images, or of those that come with the package."""
    return find_images(spec.calib or sample_folder(), samples, spec.seed)


def _write_graph(variant: str, graph: onnx.ModelProto, base: Base, writer: BundleWriter) -> Artefact:
    """Write a graph with what stands behind it and the manifest in its metadata, one for TensorRT through its gate."""
    from .gate import check_tensorrt10
    from .onnx_graph import set_metadata

    tail = base.load_tail()
    if tail is not None:
        from .graph.attach import attach

        graph = attach(graph, tail)
    file = "model.onnx" if variant == "fp32" else f"model.{variant}.onnx"
    precision, _, scheme = variant.partition(".")
    front = base.load_front()
    if front is not None:
        from .graph.join import join

        graph = join(front, graph)
    if scheme != "cpu":
        check_tensorrt10(graph, file)
    set_metadata(graph, {METADATA_KEY: base.manifest.to_json(), VARIANT_KEY: variant})
    return writer.add(file, graph.SerializeToString(deterministic=True), precision=precision, scheme=scheme or None)
