"""The whole export, readable from top to bottom.

architecture or bundle → float32 graph → float16 and INT8 graphs → verification → engines → bundle. Torch is imported
only where an architecture is built, onnx only where a graph is made or changed: on a device, a bundle gets its engine
without either.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calib import (
    CACHE_NAME,
    CalibrationCache,
    cached_ranges,
    find_images,
    find_labelled_images,
    images_digest,
    sample_folder,
)
from runtime.backends import open_session
from runtime.manifest import (
    MANIFEST_NAME,
    METADATA_KEY,
    SCHEMES,
    VARIANT_KEY,
    Artefact,
    EngineInfo,
    Manifest,
    TensorSpec,
    artefact_path,
    read_manifest,
)

from . import engine as engines
from .bundle import BundleWriter, check_destination
from .errors import ExportError
from .progress import Progress, Silent
from .report import ExportResult
from .spec import ExportSpec
from .verify import Network, answer, check, compare

if TYPE_CHECKING:
    import onnx
    from torch import nn

VERIFICATION_IMAGES = 32
"""Images that artefacts are compared on where no labelled ones are given."""
_FEW_IMAGES = 64
_REFERENCE = ""  # no file has this name
_WORTH_SAYING_POINTS = 0.01


@dataclass(frozen=True)
class _Base:
    """What the new artefacts are made from.

    Attributes:
        manifest: everything but the artefacts.
        kept: artefacts of an existing bundle that stay.
        folder: that bundle; None for a new one.
        load_graph: gives the float32 graph.
        load_reference: gives the network that artefacts are compared with.
        reference_name: what that is.
        trained: False for random weights.
    """

    manifest: Manifest
    kept: tuple[Artefact, ...]
    folder: Path | None
    load_graph: Callable[[], onnx.ModelProto]
    load_reference: Callable[[], Network]
    reference_name: str
    trained: bool

    def has(self, variant: str) -> bool:
        return any(a.kind == "onnx" and a.variant == variant for a in self.kept)


def run_export(spec: ExportSpec, progress: Progress | None = None, module: nn.Module | None = None) -> ExportResult:
    """Export what a specification asks for.

    Args:
        spec: what was asked
        progress: is told what happens
        module: exported in place of the architecture that `spec.model` names

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
    for library, capabilities in _libraries(spec):
        engines.check_builder(library, capabilities)
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        progress.warn(message)

    base = _from_bundle(spec, warn) if is_bundle else _from_model(spec, module, progress)
    with BundleWriter(destination, replace_existing) as writer:
        graphs = _make_graphs(spec, base, destination, writer, progress, warn)
        made = _write_graphs(graphs, base, writer)
        made = _verify(made, writer, spec, base, progress, warn)
        for artefact in base.kept:
            assert base.folder is not None
            writer.keep(base.folder, artefact.file)
        built = _build_engines(spec, base, made, writer, progress)
        artefacts = tuple(sorted((*base.kept, *made, *built), key=lambda a: (a.kind != "onnx", a.file)))
        manifest = replace(base.manifest, artefacts=artefacts, provenance=_provenance(base, spec))
        bundle = writer.commit(manifest)
    return ExportResult(bundle, manifest, tuple(a.file for a in (*made, *built)), tuple(warnings))


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


def _libraries(spec: ExportSpec) -> list[tuple[str, tuple[str, ...]]]:
    wanted: list[tuple[str, tuple[str, ...]]] = []
    if spec.trt:
        wanted.append(("tensorrt", ()))
    if spec.rtx:
        wanted.append(("tensorrt_rtx", spec.capabilities))
    return wanted


def _from_model(spec: ExportSpec, module: nn.Module | None, progress: Progress) -> _Base:
    """Build, reparameterize and trace an architecture."""
    try:
        import torch

        from .source import from_module, load_source, read_labels
        from .trace import INPUT_NAME, OUTPUT_NAME, trace
    except ImportError as e:
        raise ExportError(
            f"exporting a PyTorch model needs the export extra (pip install 'holocron-edge[export]'): {e}"
        ) from e
    if module is None:
        with progress.stage(f"building {spec.model}"):
            source = load_source(spec, progress=not isinstance(progress, Silent))
    else:
        assert spec.preprocessing is not None
        labels = None if spec.labels is None else read_labels(spec.labels)
        source = from_module(module, Path(spec.model).name, spec.preprocessing, labels)
    size = source.preprocessing.size
    device = next((p.device for p in source.module.parameters()), torch.device("cpu"))

    def reference(batch: Any) -> Any:
        with torch.inference_mode():
            return source.module(torch.from_numpy(batch).to(device)).float().cpu().numpy()

    manifest = Manifest(
        name=source.name,
        task=source.task,
        labels=source.labels,
        inputs=(TensorSpec(INPUT_NAME, "float32", ("batch", 3, *size)),),
        outputs=(TensorSpec(OUTPUT_NAME, "float32", ("batch", len(source.labels))),),
        preprocessing=source.preprocessing,
        provenance={"torch": torch.__version__, **source.provenance},
    )
    _check_manifest(manifest)
    with progress.stage(f"tracing at {size[0]}×{size[1]}"):
        graph = trace(source.module, size)
    return _Base(manifest, (), None, lambda: graph, lambda: reference, "pytorch", source.trained)


def _check_manifest(manifest: Manifest) -> None:
    """Refuse before the work what a reader of the bundle would refuse after it: a standard deviation of 0, say."""
    try:
        text = manifest.to_json()
    except TypeError as e:
        raise ExportError(f"the preprocessing does not fit a manifest: {e}; give plain numbers") from e
    Manifest.from_json(text, "the bundle to be written")


def _from_bundle(spec: ExportSpec, warn: Callable[[str], None]) -> _Base:
    """Open a bundle; what it has stays, unless it is asked for again with `--force`."""
    given = {
        "--weights": spec.weights != "default",
        "--num-classes": spec.num_classes is not None,
        "--labels": spec.labels is not None,
        "--input-size": spec.input_size is not None or spec.preprocessing is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise ExportError(f"{option} cannot change an existing bundle: export the architecture again")
    folder = Path(spec.model).resolve()
    manifest = read_manifest(folder)
    floats = [a for a in manifest.artefacts if a.kind == "onnx" and a.precision == "fp32"]
    if not floats:
        raise ExportError(f"{folder} has no float32 graph to make anything from: export the architecture again")
    for artefact in manifest.artefacts:
        artefact_path(folder, artefact)
    path = folder / floats[0].file
    kept = _kept(manifest, spec, warn)

    def reference() -> Network:
        return _network(open_session(path, "onnxruntime"), manifest.outputs[0].name)

    trained = manifest.provenance.get("weights") != "random"
    bare = replace(manifest, artefacts=())
    return _Base(bare, kept, folder, lambda: _load_onnx(path), reference, "onnx-fp32", trained)


def _kept(manifest: Manifest, spec: ExportSpec, warn: Callable[[str], None]) -> tuple[Artefact, ...]:
    """What stays of a bundle: all; with `--force` all but what is asked for again, and what was built from that."""
    remade = {precision for precision, asked in (("fp16", spec.fp16), ("int8", spec.int8)) if asked}
    rebuilt = {
        engines.engine_file(variant, info): info
        for info in _engine_infos(spec)
        for variant in _engine_variants(spec, {a.variant for a in manifest.artefacts if a.kind == "onnx"})
    }
    kept = []
    for artefact in manifest.artefacts:
        again = artefact.precision in remade or artefact.file in rebuilt
        if not (spec.force and again):
            kept.append(artefact)
        elif artefact.engine is not None and artefact.file not in rebuilt:
            warn(f"{artefact.file} is gone: it was built from the graph that this export replaces")
        if artefact.engine is not None and artefact.file in rebuilt and not spec.force:
            largest = artefact.engine.max_batch
            if largest != spec.max_batch:
                raise ExportError(
                    f"{artefact.file} takes batches of up to {largest}, not {spec.max_batch}: "
                    f"build it again with --force, or ask for --max-batch {largest}"
                )
    return tuple(kept)


def _load_onnx(path: Path) -> onnx.ModelProto:
    try:
        import onnx
    except ImportError as e:
        raise ExportError(
            f"making another graph from {path.name} needs `onnx` (pip install onnx): do it on a workstation"
        ) from e
    model = onnx.load(path)
    del model.metadata_props[:]
    return model


def _make_graphs(
    spec: ExportSpec,
    base: _Base,
    destination: Path,
    writer: BundleWriter,
    progress: Progress,
    warn: Callable[[str], None],
) -> dict[str, onnx.ModelProto]:
    """The ONNX graphs that are asked for and not there yet, by variant."""
    schemes = [s for s in SCHEMES if spec.int8 and not base.has(f"int8.{s}")]
    fp16, fp32 = spec.fp16 and not base.has("fp16"), not base.has("fp32")
    if not schemes and base.folder is not None and (base.folder / CACHE_NAME).is_file():
        writer.keep(base.folder, CACHE_NAME)
    if not (fp32 or fp16 or schemes):
        return {}
    graph = base.load_graph()  # from here on there is onnx
    graphs = {"fp32": graph} if fp32 else {}
    if fp16 or "trt" in schemes:
        from .float16 import check_activations

        images = _unlabelled_images(spec, VERIFICATION_IMAGES)
        with progress.stage("checking that activations fit float16"):
            check_activations(graph, images, base.manifest.preprocessing)
    if fp16:
        from .float16 import to_float16

        with progress.stage("converting to float16"):
            graphs["fp16"] = to_float16(graph)
    if schemes:
        from .quantize import quantize

        cache = _calibration(graph, spec, base, destination, progress, warn)
        with progress.stage("quantizing"):
            graphs.update({f"int8.{scheme}": quantize(graph, cache.ranges, scheme) for scheme in schemes})
        writer.write(CACHE_NAME, cache.to_json().encode())
    return graphs


def _calibration(
    graph: onnx.ModelProto,
    spec: ExportSpec,
    base: _Base,
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
    images = _unlabelled_images(spec, spec.calib_samples)
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


def _unlabelled_images(spec: ExportSpec, samples: int) -> tuple[Path, ...]:
    """A sample of the calibration images, or of those that come with the package."""
    return find_images(spec.calib or sample_folder(), samples, spec.seed)


def _write_graphs(graphs: dict[str, onnx.ModelProto], base: _Base, writer: BundleWriter) -> list[Artefact]:
    """Write the graphs, each with the manifest in its metadata, those for TensorRT through its operator gate."""
    made = []
    for variant, graph in graphs.items():
        from .gate import check_tensorrt10
        from .onnx_graph import set_metadata

        file = "model.onnx" if variant == "fp32" else f"model.{variant}.onnx"
        precision, _, scheme = variant.partition(".")
        if scheme != "cpu":
            check_tensorrt10(graph, file)
        metadata = {METADATA_KEY: base.manifest.to_json(), VARIANT_KEY: variant}
        data = set_metadata(graph, metadata).SerializeToString(deterministic=True)
        made.append(writer.add(file, data, precision=precision, scheme=scheme or None))
    return made


def _verify(
    made: list[Artefact],
    writer: BundleWriter,
    spec: ExportSpec,
    base: _Base,
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
        images = _unlabelled_images(spec, VERIFICATION_IMAGES)
    output = base.manifest.outputs[0].name
    sessions = {a.file: open_session(writer.folder / a.file, "onnxruntime") for a in made}
    try:
        networks: dict[str, Network] = {file: _network(session, output) for file, session in sessions.items()}
        with progress.stage(f"verifying {len(made)} artefacts on {len(images)} images"):
            networks[_REFERENCE] = base.load_reference()
            answers, read = answer(networks, images, base.manifest.preprocessing, progress.update)
    finally:
        for session in sessions.values():
            session.close()
    if len(read) < len(images):
        warn(f"{len(images) - len(read)} of {len(images)} verification images could not be read")
    truths = None if targets is None else [targets[i] for i in read]
    verified = []
    for artefact in made:
        result = compare(answers[artefact.file], answers[_REFERENCE], base.reference_name, truths)
        check(artefact, result, spec.tolerances, base.trained)
        if result.accuracy is not None and result.reference_accuracy is not None:
            lost = result.reference_accuracy - result.accuracy
            if lost > _WORTH_SAYING_POINTS:
                warn(f"{artefact.file} loses {100 * lost:.1f} points: try more images or another --calib-method")
        verified.append(replace(artefact, verification=result))
    return verified


def _network(session: Any, output: str) -> Network:
    return lambda batch: np.asarray(session.run(batch)[output], np.float32)


def _build_engines(
    spec: ExportSpec, base: _Base, made: list[Artefact], writer: BundleWriter, progress: Progress
) -> list[Artefact]:
    """Build the engines that are asked for and not there yet."""
    graphs = {a.variant: a for a in (*base.kept, *made) if a.kind == "onnx"}
    existing = {a.file for a in base.kept}
    built = []
    for info in _engine_infos(spec):
        for variant in _engine_variants(spec, set(graphs)):
            file = engines.engine_file(variant, info)
            if file in existing:
                continue
            graph = graphs[variant]
            with progress.stage(f"building {file}"):
                plan = engines.build_engine((writer.folder / graph.file).read_bytes(), info)
            built.append(writer.add(file, plan, "engine", graph.precision, graph.scheme, info))
    return built


def _engine_infos(spec: ExportSpec) -> list[EngineInfo]:
    """What engines are asked for: one for each library and compute capability."""
    return [
        EngineInfo(library, engines.library_version(library), capability, spec.max_batch)
        for library, capabilities in _libraries(spec)
        for capability in capabilities or (engines.device_capability(),)
    ]


def _engine_variants(spec: ExportSpec, graphs: set[str]) -> list[str]:
    """Which graphs become engines: those asked for; of a bundle, where none is, the one that runs fastest."""
    asked = [variant for variant, wanted in (("fp16", spec.fp16), ("int8.trt", spec.int8)) if wanted]
    return asked or [next(v for v in ("int8.trt", "fp16", "fp32") if v in graphs)]


def _provenance(base: _Base, spec: ExportSpec) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("holocron-edge")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "unknown"
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {**base.manifest.provenance, "holocron_edge": own, "created": now}
