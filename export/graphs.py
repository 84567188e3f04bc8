"""Making the graphs that are asked for from the float32 one: float16 and INT8, each written into the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calib import (
    CACHE_NAME,
    CalibrationCache,
    SchemeCalibration,
    find_images,
    find_labelled_images,
    images_digest,
    read_calibration,
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

    from .quantize.optimize import Quantized
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
        _check_float16(graph, spec, base, progress)
    if fp16:
        from .float16 import to_float16

        with progress.stage("converting to float16"):
            artefacts.append(_write_graph("fp16", to_float16(graph), base, writer))
    if not schemes:
        return MadeGraphs(tuple(artefacts))
    return _quantize(graph, schemes, spec, base, destination, writer, progress, warn, artefacts)


def _quantize(
    graph: onnx.ModelProto,
    schemes: list[str],
    spec: ExportSpec,
    base: Base,
    destination: Path,
    writer: BundleWriter,
    progress: Progress,
    warn: Callable[[str], None],
    artefacts: list[Artefact],
) -> MadeGraphs:
    """Make the INT8 graphs, one scheme after the other."""
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise ExportError(
            "--int8 needs PyTorch, to round weights by what that does to the output "
            f"(pip install 'holocron-edge[train]'): {e}"
        ) from e
    from .quantize.layers import operators_left_float
    from .quantize.optimize import quantize_scheme
    from .quantize.state import rounding_state

    images = _calibration_images(spec, warn)
    preprocessing, settings = base.manifest.preprocessing, spec.calibration
    started = time.perf_counter()
    cache = _calibration(graph, images, schemes, spec, base, destination, progress, warn)
    writer.write(CACHE_NAME, cache.to_json().encode())
    calibrated = time.perf_counter() - started
    float_operators: dict[str, tuple[FloatOperator, ...]] = {}
    summaries: dict[str, QuantizationSummary] = {}
    states = []
    for scheme in schemes:
        started = time.perf_counter()
        mixer = _Mixer(scheme, spec, base, progress, warn) if spec.mixes_precision else None
        known = cache.schemes[scheme]
        state = rounding_state(cache.model, cache.images, scheme, settings, known)
        states.append(state)
        with progress.stage(f"rounding weights for {scheme} ({settings.effort})"):
            made = quantize_scheme(
                *(graph, known, images, preprocessing, scheme, settings),
                state=state,
                mix=mixer,
                progress=progress.update,
            )
        if scheme == "trt":
            _check_float16(made.floating, spec, base, progress)  # with rescaled channels
        seconds = calibrated + time.perf_counter() - started
        artefacts.append(_write_graph(f"int8.{scheme}", made.model, base, writer))
        float_operators[f"int8.{scheme}"] = operators_left_float(graph, scheme, known.kept_float)
        if mixer is not None and mixer.mixture is not None:
            known = replace(known, kept_float={**known.kept_float, **mixer.mixture.reasons()})
            cache = replace(cache, schemes={**cache.schemes, scheme: known})
            writer.write(CACHE_NAME, cache.to_json().encode())
        if spec.reports_int8:
            with progress.stage(f"measuring the noise of each layer for {scheme}"):
                summary = _summary(graph, made, cache.image_count, seconds, spec, base)
            summaries[scheme] = summary if mixer is None or mixer.mixture is None else mixer.mixture.add_to(summary)
    for state in states:  # not before all is made: an export that is interrupted goes on from there
        state.remove()
    return MadeGraphs(tuple(artefacts), float_operators, summaries)


def _check_float16(graph: onnx.ModelProto, spec: ExportSpec, base: Base, progress: Progress) -> None:
    from .float16 import check_activations

    with progress.stage("checking that activations fit float16"):
        check_activations(graph, unlabelled_images(spec, spec.verify_samples), base.manifest.preprocessing)


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
    graph: onnx.ModelProto, made: Quantized, image_count: int, seconds: float, spec: ExportSpec, base: Base
) -> QuantizationSummary:
    """What is known about a quantized graph, for the report."""
    from .quantize.summarize import observe_images, summarize_report

    images = unlabelled_images(spec, _REPORT_IMAGES)
    ranges = {tensor.name: tensor.chosen for tensor in made.report.tensors}
    seen = observe_images(made.model, images, base.manifest.preprocessing, ranges)
    return summarize_report(graph, made.model, made.report, images=image_count, seconds=seconds, observations=seen)


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


def _calibration_images(spec: ExportSpec, warn: Callable[[str], None]) -> tuple[Path, ...]:
    if spec.calib is None:
        warn("calibrating on the few sample images of the package: pass images like those it will see with --calib DIR")
    images = unlabelled_images(spec, spec.calib_samples)
    if spec.calib is not None and len(images) < _FEW_IMAGES:
        warn(f"calibrating on {len(images)} images only: a few hundred give steadier ranges")
    return images


def _calibration(
    graph: onnx.ModelProto,
    images: tuple[Path, ...],
    schemes: list[str],
    spec: ExportSpec,
    base: Base,
    destination: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> CalibrationCache:
    """The calibration, from the bundle's cache as far as that is of the same model, images and settings."""
    from .onnx_graph import graph_digest
    from .quantize.exempt import RULES
    from .quantize.optimize import calibrate_scheme, observe_network

    preprocessing, settings = base.manifest.preprocessing, spec.calibration
    path = (base.folder or destination) / CACHE_NAME
    model, digest = graph_digest(graph), images_digest(images)
    found, _ = read_calibration(path, settings, model, digest, preprocessing)
    if found is not None and all(scheme in found.schemes for scheme in schemes):
        with progress.stage(f"reading the calibration on {found.image_count} images from {path}"):
            # What the last export kept float besides, it was asked to.
            by_rule = {
                scheme: replace(c, kept_float={n: why for n, why in c.kept_float.items() if why in RULES})
                for scheme, c in found.schemes.items()
            }
            return replace(found, schemes=by_rule)
    known: dict[str, SchemeCalibration] = {}
    with progress.stage(f"running {len(images)} images through the float network"):
        observed = observe_network(graph, images, preprocessing, settings, progress.update)
    if observed.image_count < len(images):
        warn(f"{len(images) - observed.image_count} of {len(images)} calibration images could not be read")
    for scheme in schemes:
        with progress.stage(f"choosing ranges for {scheme} ({settings.method})"):
            known[scheme] = calibrate_scheme(observed, images, preprocessing, scheme, settings)
    return CalibrationCache(settings, model, digest, observed.image_count, preprocessing, known)


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
