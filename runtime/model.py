"""Opening a bundle: :func:`load` picks a network and a backend, :class:`Model` turns images into answers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .backends import (
    BACKENDS,
    EngineOptions,
    available_backends,
    check_threads,
    open_session,
    preferred_backends,
    unavailable,
)
from .backends.base import Array, Session, closed_error
from .errors import BackendError, BundleError, ImageError
from .images import ImageSource
from .manifest import METADATA_KEY, VARIANT_KEY, Artefact, Manifest, TensorSpec, artefact_path, read_manifest
from .onnx_metadata import read_metadata
from .preprocess import Preprocessor
from .tasks import Result, task_behaviour

_ALIASES = {"float32": "fp32", "float16": "fp16"}
_PRECISIONS = ("fp32", "fp16", "int8", "int8.cpu", "int8.trt")
_CHUNK = 32  # images fed at once from a long list: more gain nothing on the processor and cost memory
_CHUNK_VALUES = 2**24  # outputs of a chunk: feature maps of 32 images would be gigabytes
_UNKNOWN = "unknown"


class Model:
    """A network, opened from a bundle by :func:`load`. Several threads may call it at once.

    Attributes:
        manifest: all that the bundle says of the model.
        task: what it does, one of :data:`runtime.manifest.TASKS`.
        labels: one name a class.
        artefact: the file that was opened; None for a lone ONNX file.
        precision: `"fp32"`, `"fp16"`, `"int8.cpu"` or `"int8.trt"`; `"unknown"` for an ONNX file that does not say.
        backend: what runs it, one of :data:`runtime.backends.BACKENDS`.
        device: where, e.g. `"cpu"` or `"cuda:0"`.
        threads: processor threads of one call.
        session: the network itself, which takes and gives arrays.
    """

    def __init__(
        self, manifest: Manifest, session: Session, precision: str, threads: int, artefact: Artefact | None = None
    ) -> None:
        self.manifest = manifest
        self.task = manifest.task
        self.labels = manifest.labels
        self.artefact = artefact
        self.precision = precision
        self.backend = session.backend
        self.device = session.device
        self.threads = threads
        self.session = session
        self._preprocessor = Preprocessor(manifest.preprocessing)
        self._behaviour = task_behaviour(manifest)
        self._fixed_batch = _check_network(manifest, session)
        # What an engine takes at once ends somewhere, what an ONNX file takes does not.
        self._largest_batch = artefact.engine.max_batch if artefact is not None and artefact.engine else None
        self._chunk = _chunk(manifest)
        self._closed = False

    @overload
    def __call__(self, image: ImageSource) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: Sequence[ImageSource]) -> list[Result]: ...

    def __call__(self, image: Any) -> Any:
        """Classify or segment one image or several.

        Args:
            image: a path, a Pillow image or a uint8 array `(H, W, 3)`; or a list of those; or a uint8 array
                `(N, H, W, 3)`

        Returns:
            a :class:`~runtime.results.Classification` or a :class:`~runtime.results.Segmentation`, as the task is; for
            several images a list of them in their order

        Raises:
            ImageError: if one is not an image that can be taken
            BackendError: if the network fails, answers with NaN, or the model is closed
            BundleError: if the network gives what is no answer yet: the raw heads of a detector
        """
        images = _several(image)
        if images is None:
            return self._answers([image])[0]
        results: list[Result] = []
        for start in range(0, len(images), self._chunk):
            results += self._answers(images[start : start + self._chunk], start)
        return results

    def run(self, image: ImageSource | Sequence[ImageSource]) -> dict[str, Array]:
        """What the network itself gives for one image or several, before anything is made of it.

        Args:
            image: one image, or N images, as a call takes them; all N are fed at once

        Returns:
            the outputs by name, each of N entries in its first dimension (1 for one image)

        Raises:
            ImageError: if one is not an image that can be taken
            BackendError: if the network fails, answers with NaN, or the model is closed
        """
        images = _several(image)
        return self._run(self._preprocessor.batch([image] if images is None else images))  # type: ignore[list-item]

    def preprocess(self, image: ImageSource | Sequence[ImageSource]) -> NDArray[np.float32]:
        """The array that the network takes for one image or several: `session.run` accepts it.

        Args:
            image: one image, or a list of N images

        Returns:
            array of shape `(1, 3, H, W)` or `(N, 3, H, W)`

        Raises:
            ImageError: if one is not an image that can be taken
        """
        if isinstance(image, (list, tuple)):
            return self._preprocessor.batch(image)
        return self._preprocessor(image)[None]  # type: ignore[arg-type]

    def close(self) -> None:
        """Release the network; calling it twice is allowed, classifying afterwards is a BackendError."""
        self._closed = True
        self.session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Model({self.manifest.name!r}, {len(self.labels)} classes, {self.precision}, {self.backend} on "
            f"{self.device}{', closed' if self._closed else ''})"
        )

    def _answers(self, images: Sequence[ImageSource], first: int = 0) -> list[Result]:
        batch, sizes = self._preprocessor.batch_with_sizes(images, first)
        return self._behaviour.answers(self.manifest, self._run(batch), sizes)

    def _run(self, batch: NDArray[np.float32]) -> dict[str, Array]:
        if self._closed:
            raise closed_error(self.backend)
        spec = self.manifest.inputs[0]
        batch = batch.astype(spec.dtype, copy=False)
        step = self._fixed_batch or min(len(batch), self._largest_batch or len(batch))
        parts = []
        for start in range(0, len(batch), step or 1):
            part = batch[start : start + step]
            missing = step - len(part)
            fed = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part
            outputs = self.session.run({spec.name: fed})
            parts.append({name: array[: len(part)] for name, array in outputs.items()})
        for outputs in parts:
            self._check_finite(outputs)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([outputs[name] for outputs in parts]) for name in parts[0]} if parts else {}

    def _check_finite(self, outputs: Mapping[str, Array]) -> None:
        for array in outputs.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise BackendError(
                    f"the network answered with NaN or infinite values in {self.precision} on {self.backend}: choose "
                    "another precision"
                )


@dataclass(frozen=True)
class _Source:
    """What lies at a path: a manifest, an ONNX file of the bundle (or a lone one) for each precision, and engines."""

    path: Path
    manifest: Manifest
    artefacts: Mapping[str, Artefact | None]
    engines: tuple[Artefact, ...] = ()

    def file(self, variant: str) -> Path:
        artefact = self.artefacts[variant]
        return self.path if artefact is None else artefact_path(self.path, artefact)


def load(
    path: str | os.PathLike[str],
    precision: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    device: str | int | None = None,
    *,
    engine: EngineOptions | None = None,
    rebuild: bool = False,
) -> Model:
    """Open a bundle with the best backend and precision that there are here, or with those asked for.

    Args:
        path: a bundle's folder, an ONNX file out of one, or an engine in one
        precision: `"fp32"`, `"fp16"`, `"int8"` (of the scheme that suits the backend), `"int8.cpu"` or `"int8.trt"`; by
            default INT8 of the scheme that suits the backend, then what it runs fastest
        backend: `"tensorrt"` or `"tensorrt_rtx"`, which run the bundle's engines; `"onnxruntime"`, `"openvino"`,
            `"onnxruntime-cuda"` or `"onnxruntime-tensorrt"`, which run its ONNX files; by default the first of
            :func:`runtime.backends.available_backends` that opens the network
        threads: processor threads of one call, 1 to 1024; by default the physical cores that this process may use
        device: a GPU's number or `"cuda:1"`, `"cpu"`, or one of OpenVINO's devices, e.g. `"gpu"`; by default the first
        engine: how an engine is run
        rebuild: where the bundle has no engine for this machine's GPU and TensorRT, build one from its ONNX file, which
            takes minutes, and add it to the bundle

    Returns:
        the model, ready to be called

    Raises:
        BundleError: if there is no bundle, or a file of it is missing, cut off, changed, or of an unknown version
        BackendError: if the precision, backend or device does not exist here, with those that do
        TypeError: if threads is not an integer
        ValueError: if threads is out of range
    """
    threads = check_threads(threads)
    source = _open(Path(path))
    wanted = _precision(precision)
    libraries = {a.engine.library for a in source.engines if a.engine is not None}
    if backend is None and not source.artefacts and len(libraries) == 1:
        (backend,) = libraries  # nothing else opens it, so what is said is why that does not
    first_error: BackendError | None = None
    artefact: Artefact | None
    for name in _candidates(backend, device):
        try:
            if BACKENDS[name].opens == "engine":
                built, session = _open_engine(source, wanted, name, device, engine, rebuild)
                artefact, variant = built, built.variant
            else:
                variant = _variant(source, wanted, name)
                file = source.file(variant)  # a changed file is an error, not a reason to take another
                session, artefact = open_session(file, name, threads, device, variant), source.artefacts[variant]
        except BackendError as e:
            first_error = first_error or e
            continue
        try:
            return Model(source.manifest, session, variant, threads, artefact)
        except BaseException:
            session.close()
            raise
    assert first_error is not None
    raise first_error


def _open(path: Path) -> _Source:
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e
    if is_folder:
        manifest = read_manifest(path)
        artefacts: dict[str, Artefact | None] = {}
        for artefact in manifest.artefacts:
            if artefact.kind == "onnx":
                artefacts.setdefault(artefact.variant, artefact)
        engines = tuple(a for a in manifest.artefacts if a.kind == "engine")
        if not artefacts and not engines:
            raise BundleError(f"{path} has no ONNX file: export the model again")
        return _Source(path, manifest, artefacts, engines)
    if not is_file:
        raise BundleError(f"{path} is not there: expected a bundle's folder or an ONNX file")
    if path.suffix == ".engine":
        return _engine_of_a_bundle(path)
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise BundleError(
            f"{path} is an ONNX file without Holocron Edge's metadata, so its labels and preprocessing are not known: "
            "open the bundle's folder, or export the model with holocron-export"
        )
    manifest = Manifest.from_json(metadata[METADATA_KEY], f"the metadata of {path}")
    return _Source(path, manifest, {metadata.get(VARIANT_KEY, _UNKNOWN): None})


def _engine_of_a_bundle(path: Path) -> _Source:
    """An engine is opened with what the manifest beside it says, or not at all: it executes what is in it."""
    try:
        manifest = read_manifest(path.parent)
    except BundleError as e:
        raise BundleError(
            f"{path} is an engine without a manifest beside it, so nothing vouches for it and its labels are not "
            "known: open its bundle, or the bare engine with runtime.backends.open_session(..., trust=True)"
        ) from e
    engines = tuple(a for a in manifest.artefacts if a.kind == "engine" and a.file == path.name)
    if not engines:
        raise BundleError(
            f"{path} is not in the manifest beside it, so nothing vouches for it: export the bundle again"
        )
    return _Source(path.parent, manifest, {}, engines)


def _open_engine(
    source: _Source,
    wanted: str | None,
    library: str,
    device: str | int | None,
    options: EngineOptions | None,
    rebuild: bool,
) -> tuple[Artefact, Session]:
    if not source.path.is_dir():
        raise BackendError(f"{source.path} is an ONNX file, and {library} opens engines: open the bundle's folder")
    from .engines import open_engine

    variants: Sequence[str] = BACKENDS[library].variants
    if wanted is not None:
        variants = ("int8.trt" if wanted == "int8" else wanted,)
    return open_engine(source.path, source.manifest, source.engines, library, variants, device, options, rebuild)


def _precision(precision: str | None) -> str | None:
    if precision is None:
        return None
    wanted = _ALIASES.get(precision, precision)
    if wanted not in _PRECISIONS:
        raise BackendError(f"there is no precision {precision!r}: expected one of {', '.join(_PRECISIONS)}")
    return wanted


def _candidates(backend: str | None, device: str | int | None) -> Sequence[str]:
    if backend is not None:
        reason = unavailable(backend)
        if reason is not None:
            raise BackendError(f"{reason}; available here: {', '.join(available_backends()) or 'none'}")
        return (backend,)
    names = available_backends()
    if not names:
        reasons = "; ".join(str(unavailable(name)) for name in preferred_backends() if not BACKENDS[name].gpu)
        raise BackendError(f"there is no backend to run the network: {reasons}")
    if device is None:
        return names
    text = str(device).lower()
    on_gpu = text.isdecimal() or text.startswith("cuda")
    fitting = [n for n in names if BACKENDS[n].gpu == on_gpu and (n != "onnxruntime" or text == "cpu")]
    if not fitting:
        raise BackendError(f"no backend here runs on the device {device!r}; available here: {', '.join(names)}")
    return fitting


def _variant(source: _Source, wanted: str | None, backend: str) -> str:
    has = list(source.artefacts)
    if not has:
        raise BackendError(f"{source.path} has no ONNX file, which {backend} opens: export the model again")
    if wanted is None:
        order = [v for v in BACKENDS[backend].variants if v in has] or has
        return order[0]
    variant = f"int8.{BACKENDS[backend].int8_scheme}" if wanted == "int8" else wanted
    if variant not in has:
        suits = f", which {wanted} means on {backend}" if variant != wanted else ""
        raise BackendError(f"{source.path} has no {variant}{suits}: it has {', '.join(has)}")
    return variant


def _several(image: Any) -> Sequence[ImageSource] | None:
    """The images of a list or of an array of images; None for what is one image."""
    if isinstance(image, np.ndarray) and image.ndim == 4:
        if image.dtype != np.uint8:
            raise ImageError(f"the batch of images is {image.dtype}: expected uint8 from 0 to 255")
        return list(image)
    return image if isinstance(image, (list, tuple)) else None


def _chunk(manifest: Manifest) -> int:
    """How many images to feed at once, so that their outputs stay small; what is not known counts as one."""
    values = sum(math.prod(d for d in spec.shape[1:] if isinstance(d, int)) for spec in manifest.outputs)
    return max(1, min(_CHUNK, _CHUNK_VALUES // values))


def _check_network(manifest: Manifest, session: Session) -> int | None:
    """Check that the network is the one that the manifest describes; return its batch if that is fixed."""
    if len(manifest.inputs) != 1 or len(session.inputs) != 1:
        raise BundleError(f"{manifest.name}: a network of images has one input; export the model again")
    _check_tensor(manifest, manifest.inputs[0], session.inputs[0])
    found = {spec.name: spec for spec in session.outputs}
    if len(found) != len(manifest.outputs) or not all(spec.name in found for spec in manifest.outputs):
        raise BundleError(
            f"{manifest.name}: the manifest says the outputs {', '.join(repr(s.name) for s in manifest.outputs)}, the "
            f"network has {', '.join(map(repr, found))}; export the model again"
        )
    for spec in manifest.outputs:
        _check_tensor(manifest, spec, found[spec.name])
        if not _fits(spec.shape[1:], found[spec.name].shape[1:]):
            raise BundleError(
                f"{manifest.name}: the manifest says {spec.name!r} of {spec.shape}, the network has "
                f"{found[spec.name].shape}; export the model again"
            )
    shape = session.inputs[0].shape
    fed = (3, *manifest.preprocessing.size)
    if len(shape) != 4 or not _fits(fed, shape[1:]):
        raise BundleError(
            f"{manifest.name}: the network takes {shape}, preprocessing gives {fed}; export the model again"
        )
    return shape[0] if isinstance(shape[0], int) else None


def _check_tensor(manifest: Manifest, said: TensorSpec, found: TensorSpec) -> None:
    if (said.name, said.dtype) != (found.name, found.dtype):
        raise BundleError(
            f"{manifest.name}: the manifest says {said.name!r} of {said.dtype}, the network has {found.name!r} of "
            f"{found.dtype}; export the model again"
        )


def _fits(said: Sequence[int | str], found: Sequence[int | str]) -> bool:
    """Whether two shapes can be of one tensor: of equal length, and equal wherever both are numbers."""
    return len(said) == len(found) and all(
        not isinstance(a, int) or not isinstance(b, int) or a == b for a, b in zip(said, found, strict=True)
    )
