"""The whole export, readable from top to bottom.

architecture or bundle → float32 graph → float16 and INT8 graphs → verification → engines → theirs → bundle. Torch is
imported only where an architecture is built, onnx only where a graph is made or changed: on a device, a bundle gets its
engine without either.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
)
from .bundle import BundleWriter, check_destination
from .cpp_project import check_project, write_project
from .engine_layers import EngineLayers, companions, layers_file
from .graphs import make_graphs, summarize_kept
from .int8_report.files import keep_report, read_summary, write_report
from .progress import Progress, Silent
from .report import ExportResult
from .spec import ExportSpec
from .verifier import Verifier

if TYPE_CHECKING:
    from torch import nn

    from .quantize.summary import QuantizationSummary


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
        verifier = Verifier(spec, base, writer.folder, progress, warn)
        made = verifier.graphs(graphs.artefacts)
        for artefact in base.kept:
            assert base.folder is not None
            writer.keep(base.folder, artefact.file)
            for companion in companions(artefact) if artefact.engine is not None else ():
                if (base.folder / companion).is_file() and not (base.folder / companion).is_symlink():
                    writer.keep(base.folder, companion)
        onnx_graphs = {a.variant: a for a in (*base.kept, *made) if a.kind == "onnx"}
        built, layers = _build_engines(spec, base, onnx_graphs, writer, progress, warn)
        kept, waiting = _not_verified(spec, base)
        verified, notes = verifier.engines((*waiting, *built), onnx_graphs)
        artefacts = tuple(sorted((*kept, *made, *verified), key=lambda a: (a.kind != "onnx", a.file)))
        manifest = replace(base.manifest, artefacts=artefacts, provenance=_provenance(base, spec))
        reported = _report(spec, base, manifest, graphs.summaries, writer, warn)
        bundle = writer.commit(manifest)
    project = write_project(bundle, manifest, spec.force) if spec.cpp else None
    files = tuple(a.file for a in (*made, *built))
    return ExportResult(
        bundle, manifest, files, tuple(warnings), graphs.float_operators, reported, layers, project, notes
    )


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


def _build_engines(
    spec: ExportSpec,
    base: Base,
    graphs: Mapping[str, Artefact],
    writer: BundleWriter,
    progress: Progress,
    warn: Callable[[str], None],
) -> tuple[list[Artefact], dict[str, EngineLayers]]:
    """Build the engines that are asked for and not there yet, and read what the library made of their layers."""
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


def _not_verified(spec: ExportSpec, base: Base) -> tuple[list[Artefact], list[Artefact]]:
    """What stays of a bundle, and of that the engines of the libraries asked for that nobody has run yet."""
    libraries = {library for library, _ in engine_libraries(spec)}
    waiting = [a for a in base.kept if a.engine and a.engine.library in libraries and a.verification is None]
    return [a for a in base.kept if a not in waiting], waiting


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
