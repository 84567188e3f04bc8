"""The whole export, readable from top to bottom.

architecture or bundle → float32 graph → float16 and INT8 graphs → verification → engines → bundle. Torch is imported
only where an architecture is built, onnx only where a graph is made or changed: on a device, a bundle gets its engine
without either.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib import find_labelled_images
from runtime.backends.engine_builder import timing_cache_path
from runtime.manifest import MANIFEST_NAME, SCHEMES, Artefact, Manifest

from . import engine as engines
from .base import (
    Base,
    engine_infos,
    engine_libraries,
    engine_variants,
    from_bundle,
    from_model,
    open_compared,
    session_network,
)
from .bundle import BundleWriter, check_destination
from .cpp_project import check_project, write_project
from .engine_layers import EngineLayers, companions, layers_file
from .graphs import make_graphs, summarize_kept, unlabelled_images
from .int8_report.files import keep_report, read_summary, write_report
from .progress import Progress, Silent
from .report import ExportResult
from .spec import ExportSpec
from .tasks import task_export
from .verify import Comparison, FrameStream, Remembered, check, compare_networks

if TYPE_CHECKING:
    from torch import nn

    from .quantize.summary import QuantizationSummary

_WORTH_SAYING_POINTS = 0.01


def run_export(
    spec: ExportSpec,
    progress: Progress | None = None,
    module: nn.Module | None = None,
    task: str = "classification",
) -> ExportResult:
    """Export what a specification asks for.

    Args:
        spec: what was asked
        progress: is told what happens
        module: exported in place of the architecture that `spec.model` names
        task: of that module, one of :data:`runtime.manifest.TASKS`

    Returns:
        the bundle that was written

    Raises:
        HolocronError: if something cannot be done as asked; the destination is then as it was before
    """
    progress = progress or Silent()
    is_bundle = module is None and _is_bundle(spec.model)
    destination = _destination(spec, is_bundle)
    replace_existing = spec.force or (is_bundle and spec.output is None)
    check_destination(destination, replace_existing)
    if spec.cpp:
        check_project(destination, spec.force)
    for library, capabilities in engine_libraries(spec):
        engines.check_builder(library, capabilities, spec.engine)
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        progress.warn(message)

    base = from_bundle(spec, warn) if is_bundle else from_model(spec, module, task, progress)
    with BundleWriter(destination, replace_existing) as writer:
        graphs = make_graphs(spec, base, destination, writer, progress, warn)
        made = _verify(graphs.artefacts, writer, spec, base, progress, warn)
        for artefact in base.kept:
            assert base.folder is not None
            writer.keep(base.folder, artefact.file)
            for companion in companions(artefact) if artefact.engine is not None else ():
                if (base.folder / companion).is_file() and not (base.folder / companion).is_symlink():
                    writer.keep(base.folder, companion)
        built, layers = _build_engines(spec, base, made, writer, progress, warn)
        artefacts = tuple(sorted((*base.kept, *made, *built), key=lambda a: (a.kind != "onnx", a.file)))
        manifest = replace(base.manifest, artefacts=artefacts, provenance=_provenance(base, spec))
        reported = _report(spec, base, manifest, graphs.summaries, writer, warn)
        bundle = writer.commit(manifest)
    project = write_project(bundle, manifest, spec.force) if spec.cpp else None
    files = tuple(a.file for a in (*made, *built))
    return ExportResult(bundle, manifest, files, tuple(warnings), graphs.float_operators, reported, layers, project)


def _is_bundle(model: str) -> bool:
    """Whether a model is an existing bundle. `repvgg_a0` is the architecture, `./repvgg_a0` the bundle made of it."""
    if not (Path(model) / MANIFEST_NAME).is_file():
        return False
    if Path(model).name != model:
        return True
    try:
        from holocron import models
    except ImportError:  # on a device there are no architectures, only bundles
        return True
    return model not in models.list_models()


def _destination(spec: ExportSpec, is_bundle: bool) -> Path:
    if spec.output is not None:
        return spec.output
    return Path(spec.model).resolve() if is_bundle else Path(spec.model.rstrip("/"))


def _verify(
    made: Sequence[Artefact],
    writer: BundleWriter,
    spec: ExportSpec,
    base: Base,
    progress: Progress,
    warn: Callable[[str], None],
) -> list[Artefact]:
    """Compare what was made with the reference; a broken artefact ends the export."""
    if not made:
        return []
    targets: list[int] | None = None
    if spec.eval_folder is not None:
        labelled = find_labelled_images(spec.eval_folder, base.manifest.labels)
        images, targets = tuple(path for path, _ in labelled), [target for _, target in labelled]
    else:
        images = unlabelled_images(spec, spec.verify_samples)
    task = task_export(base.manifest.task)
    reference = Remembered(base.load_reference())
    frames = None if base.manifest.frame is None else FrameStream(images, base.manifest)
    comparisons: dict[str, Comparison] = {}
    with progress.stage(f"verifying {len(made)} artefacts on {len(images)} images"):
        for artefact in made:  # one after the other: a large network is in memory once, not once an artefact
            session = open_compared(writer.folder / artefact.file, base)
            try:
                comparisons[artefact.file], read = compare_networks(
                    session_network(session),
                    reference,
                    images,
                    base.manifest.preprocessing,
                    task.class_axis,
                    progress.update,
                    frames,
                    _comparison(base),
                )
            finally:
                session.close()
    if len(read) < len(images):
        warn(f"{len(images) - len(read)} of {len(images)} verification images could not be read")
    truths = None if targets is None else [targets[i] for i in read]
    verified = []
    for artefact in made:
        comparison = comparisons[artefact.file]
        result = comparison.result(base.reference_name, truths)
        check(artefact, result, spec.tolerances, base.trained, comparison.errors(), task.agreement)
        _check_post_processing(artefact, comparison, warn)
        if result.accuracy is not None and result.reference_accuracy is not None:
            lost = result.reference_accuracy - result.accuracy
            if lost > _WORTH_SAYING_POINTS:
                warn(f"{artefact.file} loses {100 * lost:.1f} points: try more images or another --calib-method")
        verified.append(replace(artefact, verification=result))
    return verified


def _comparison(base: Base) -> Comparison | None:
    """What compares networks with something behind them; None for those without."""
    post = base.manifest.post_processing
    if post is None or base.expect is None:
        return None
    from .graph.check import PostComparison

    return PostComparison(post, base.expect, task_export(base.manifest.task).class_axis)


def _check_post_processing(artefact: Artefact, comparison: Comparison, warn: Callable[[str], None]) -> None:
    from .graph.check import PostComparison

    if isinstance(comparison, PostComparison):
        comparison.check(artefact.file)
        if comparison.detections == 0:
            warn(f"{artefact.file} and the reference found nothing on these images: its boxes were not compared")


def _build_engines(
    spec: ExportSpec,
    base: Base,
    made: list[Artefact],
    writer: BundleWriter,
    progress: Progress,
    warn: Callable[[str], None],
) -> tuple[list[Artefact], dict[str, EngineLayers]]:
    """Build the engines that are asked for and not there yet, and read what the library made of their layers."""
    graphs = {a.variant: a for a in (*base.kept, *made) if a.kind == "onnx"}
    existing = {a.file for a in base.kept}
    built: list[Artefact] = []
    layers: dict[str, EngineLayers] = {}
    for info in engine_infos(spec):
        timings = spec.engine.timing_cache or timing_cache_path(info)
        for variant in engine_variants(spec, set(graphs)):
            file = engines.engine_file(variant, info)
            if file in existing:
                continue
            graph = graphs[variant]
            data = (writer.folder / graph.file).read_bytes()
            detailed = spec.engine.layer_information
            with progress.stage(f"building {file}"):
                plan = engines.build_engine(
                    data,
                    info,
                    base.manifest.frame,
                    detailed=detailed,
                    timing_cache=timings,
                    progress=progress.update,
                )
            built.append(writer.add(file, plan, "engine", graph.precision, graph.scheme, info))
            if detailed:
                text = engines.layer_information(plan, info, data)
                if text is None:
                    warn(f"the layers of {file} can be read where there is a GPU alone")
                else:
                    writer.write(layers_file(file), text.encode())
                    layers[file] = EngineLayers.from_json(text)
    return built, layers


def _report(
    spec: ExportSpec,
    base: Base,
    manifest: Manifest,
    made: Mapping[str, QuantizationSummary],
    writer: BundleWriter,
    warn: Callable[[str], None],
) -> tuple[QuantizationSummary, ...]:
    """Write what is known about the INT8 graphs where that is asked for; where it is not, keep what is still true."""
    schemes = [s for s in SCHEMES if any(a.variant == f"int8.{s}" and a.kind == "onnx" for a in manifest.artefacts)]
    kept = [s for s in schemes if base.has(f"int8.{s}")]
    if not spec.reports_int8:
        if base.folder is not None:
            keep_report(base.folder, kept, kept != schemes, writer, warn)
        return ()
    known = dict(made)
    for scheme in kept:
        assert base.folder is not None
        known[scheme] = summarize_kept(base, scheme, read_summary(base.folder, scheme), warn)
    summaries = tuple(known[scheme] for scheme in schemes)
    write_report(summaries, manifest, writer)
    return summaries


def _provenance(base: Base, spec: ExportSpec) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("holocron-edge")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "unknown"
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {**base.manifest.provenance, "holocron_edge": own, "created": now}
