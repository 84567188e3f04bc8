"""The engines of a bundle: which of them is for this machine, opening it, building it anew from the ONNX file.

Opening an engine executes it. So its hash is compared with the manifest's first, on the very bytes that are opened.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .backends import cuda as driver
from .backends.base import Session
from .backends.engine_builder import build_engine, engine_file, timing_cache_path
from .backends.engine_cache import write_atomically
from .backends.engine_options import EngineOptions
from .backends.tensorrt_library import TITLES, library_version, version_numbers
from .errors import BackendError, BundleError
from .manifest import MANIFEST_NAME, Artefact, EngineInfo, Manifest, artefact_path, read_manifest

_AMPERE = (8, 0)


def engine_problem(info: EngineInfo, version: str, capability: str | None) -> str | None:
    """Why an engine is not for a machine, with what it was built for and what is there; None if it is.

    Args:
        info: what the engine was built with
        version: of the same library on the machine
        capability: compute capability of the machine's GPU; None if the driver does not tell
    """
    built, here = version_numbers(info.version)[:3], version_numbers(version)[:3]
    same_version = built == here or (info.version_compatible and built[:1] == here[:1] and built <= here)
    same_gpu = info.compute_capability == capability
    if not same_gpu and capability is not None and info.hardware_compatibility == "ampere_plus":
        same_gpu = version_numbers(capability) >= _AMPERE
    if same_version and same_gpu:
        return None
    title = TITLES.get(info.library, info.library)
    return (
        f"was built with {title} {info.version} for compute capability {info.compute_capability}, here are {title} "
        f"{version} and {capability or 'an unknown GPU'}"
    )


def open_engine(
    bundle: Path,
    manifest: Manifest,
    engines: Sequence[Artefact],
    library: str,
    variants: Sequence[str],
    device: str | int | None = None,
    options: EngineOptions | None = None,
    rebuild: bool = False,
) -> tuple[Artefact, Session]:
    """Open the first engine that is for this machine.

    Args:
        bundle: the folder
        manifest: of the bundle
        engines: those to choose from
        library: `"tensorrt"` or `"tensorrt_rtx"`
        variants: precisions, the best first
        device: a GPU's number or `"cuda:1"`; None is the first
        options: how it is run
        rebuild: build it from the bundle's ONNX file where there is none for this machine, and add it to the bundle if
            that can be written

    Returns:
        the artefact and the session

    Raises:
        BundleError: if a file is missing, cut off or changed
        BackendError: if there is none for this machine, with what they are for; or it does not open
    """
    version = library_version(library)
    capability = driver.device_capability(driver.device_index(device))
    problems = []
    for variant in variants:
        for artefact in engines:
            if artefact.engine is None or artefact.engine.library != library or artefact.variant != variant:
                continue
            problem = engine_problem(artefact.engine, version, capability)
            if problem is None:
                try:
                    return artefact, _open(bundle, manifest, artefact, device, options)
                except BackendError as e:
                    if not rebuild:
                        raise BackendError(f"{artefact.file}: {e}; build it again with rebuild=True") from e
                    problem = str(e)
            problems.append(f"{artefact.file} {problem}")
    if rebuild:
        return _rebuild(bundle, manifest, engines, library, variants, device, options)
    remedy = "export the bundle here with --trt or --rtx, or open it with rebuild=True"
    if problems:
        raise BackendError(f"{'; '.join(problems)}: {remedy}")
    raise BackendError(f"{bundle} has no engine of {TITLES[library]} in {', '.join(variants)}: {remedy}")


def cache_file(engine: str) -> str:
    """Name of the file with what TensorRT-RTX compiled for the GPU at hand, beside the engine."""
    return f"{engine}.cache"


def read_artefact(bundle: Path, artefact: Artefact) -> bytes:
    """An artefact's bytes, after checking that they are those that the manifest describes.

    The bytes that are checked are the bytes that are returned: nobody can change the file in between.

    Args:
        bundle: the bundle's folder
        artefact: one of its manifest's artefacts

    Raises:
        BundleError: if the file is missing, leaves the bundle, or has another size or hash
    """
    path = artefact_path(bundle, artefact, check_hash=False)
    try:
        with path.open("rb") as f:
            data = f.read(artefact.size + 1)
    except OSError as e:
        raise BundleError(f"cannot read {path}, which the manifest names: {e.strerror or e}") from e
    if len(data) != artefact.size or hashlib.sha256(data).hexdigest() != artefact.sha256:
        raise BundleError(
            f"{path} does not have the SHA-256 that the manifest says: it was changed; copy the bundle again or export "
            "it again"
        )
    return data


def _open(
    bundle: Path, manifest: Manifest, artefact: Artefact, device: str | int | None, options: EngineOptions | None
) -> Session:
    from .backends.tensorrt import TensorRTSession

    info = artefact.engine
    assert info is not None
    weights = read_artefact(bundle, _graph(bundle, manifest, [artefact.variant])) if info.stripped else None
    return TensorRTSession(
        info.library,
        read_artefact(bundle, artefact),
        device,
        info=info,
        weights=weights,
        options=options,
        cache=bundle / cache_file(artefact.file),
    )


def _graph(bundle: Path, manifest: Manifest, variants: Sequence[str]) -> Artefact:
    for variant in variants:
        for artefact in manifest.artefacts:
            if artefact.kind == "onnx" and artefact.variant == variant:
                return artefact
    raise BackendError(f"{bundle} has no ONNX file in {', '.join(variants)}: export the model again")


def _rebuild(
    bundle: Path,
    manifest: Manifest,
    engines: Sequence[Artefact],
    library: str,
    variants: Sequence[str],
    device: str | int | None,
    options: EngineOptions | None,
) -> tuple[Artefact, Session]:
    """Build for this machine what was built for another, or the first variant that there is a graph of."""
    index = driver.device_index(device)
    if index != 0:
        raise BackendError(f"engines are built on cuda:0, not on {device!r}: set CUDA_VISIBLE_DEVICES to build for it")
    capability = driver.device_capability(index)
    if capability is None:
        raise BackendError("the CUDA driver does not tell the GPU's compute capability, which an engine is built for")
    models = [a for v in variants for a in engines if a.engine and a.engine.library == library and a.variant == v]
    graph = _graph(bundle, manifest, [models[0].variant] if models else variants)
    info = replace(
        models[0].engine if models and models[0].engine else EngineInfo(library, "", "", 1),
        version=library_version(library),
        compute_capability=capability,
    )
    data = read_artefact(bundle, graph)
    plan = build_engine(data, info, manifest.frame, timing_cache=timing_cache_path(info))
    artefact = Artefact(
        engine_file(graph.variant, info),
        "engine",
        graph.precision,
        len(plan),
        hashlib.sha256(plan).hexdigest(),
        scheme=graph.scheme,
        engine=info,
    )
    from .backends.tensorrt import TensorRTSession

    session = TensorRTSession(
        library,
        plan,
        device,
        info=info,
        weights=data if info.stripped else None,
        options=options,
        cache=bundle / cache_file(artefact.file),
    )
    if not _add(bundle, artefact, plan):
        warnings.warn(
            f"{bundle} cannot be written: the engine that was built is used now, and built again at the next start",
            RuntimeWarning,
            stacklevel=4,
        )
    return artefact, session


def _add(bundle: Path, artefact: Artefact, plan: bytes) -> bool:
    """Put an engine into a bundle: the file first, then the manifest that names it. Whether it worked."""
    if not write_atomically(bundle / artefact.file, plan):
        return False
    manifest = read_manifest(bundle)  # as it is now: another process may have added its own
    others = tuple(a for a in manifest.artefacts if a.file != artefact.file)
    added = replace(manifest, artefacts=(*others, artefact))
    return write_atomically(bundle / MANIFEST_NAME, added.to_json().encode())
