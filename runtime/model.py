"""Opening a bundle: :func:`load` picks a network and a backend, :class:`Model` turns images into answers."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

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
from .feeds import make_feeder, run_in_parts
from .images import ImageSource
from .manifest import METADATA_KEY, VARIANT_KEY, Artefact, Manifest, artefact_path, read_manifest
from .network_check import check_network
from .onnx_metadata import read_metadata
from .preprocess import Preprocessor
from .tasks import Result, task_behaviour

if TYPE_CHECKING:
    from .stream import StreamAnswer

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
        self,
        manifest: Manifest,
        session: Session,
        precision: str,
        threads: int,
        artefact: Artefact | None = None,
        fast_decode: bool = False,
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
        self._preprocessor = Preprocessor(manifest.preprocessing, fast_decode)
        self._feeder = make_feeder(manifest, self._preprocessor)
        self._behaviour = task_behaviour(manifest)
        self._fixed_batch = check_network(manifest, session)
        # What an engine takes at once ends somewhere, what an ONNX file takes does not.
        self._largest_batch = artefact.engine.max_batch if artefact is not None and artefact.engine else None
        self._chunk = _chunk(manifest)
        self._closed = False

    @overload
    def __call__(self, image: ImageSource) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: Sequence[ImageSource]) -> list[Result]: ...

    def __call__(self, image: Any) -> Any:
        """Classify, segment or find objects in one image or several.

        Args:
            image: a path, a Pillow image or a uint8 array `(H, W, 3)`; or a list of those; or a uint8 array
                `(N, H, W, 3)`

        Returns:
            as the task is, a :class:`~runtime.results.Classification`, or :class:`~runtime.results.TopClasses` where
            the network gives those alone; a :class:`~runtime.results.Segmentation`; or
            :class:`~runtime.detections.Detections`; for several images a list of them in their order

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
        return {} if images is not None and not len(images) else self._run(self.feeds(image))

    def feeds(self, image: ImageSource | Sequence[ImageSource]) -> dict[str, Array]:
        """What the network is fed for one image or several: `session.run` accepts it.

        Args:
            image: one image, or N images, 1 at least, as a call takes them

        Returns:
            the inputs by name, each of N entries in its first dimension (1 for one image)

        Raises:
            ImageError: if one is not an image that can be taken, or a frame is larger than the network takes
        """
        images = _several(image)
        if images is not None and not len(images):
            raise ImageError("there are no images to feed to the network: give one at least")
        return self._feeder([image] if images is None else images)[0]  # type: ignore[list-item]

    def preprocess(self, image: ImageSource | Sequence[ImageSource]) -> NDArray[np.float32]:
        """One image or several, resized and normalized: what a network takes that is not fed with frames.

        Args:
            image: one image, or a list of N images

        Returns:
            array of shape `(1, 3, H, W)` or `(N, 3, H, W)`

        Raises:
            ImageError: if one is not an image that can be taken
        """
        images = _several(image)
        return self._preprocessor.batch([image] if images is None else images)  # type: ignore[list-item]

    def stream(self, images: Iterable[ImageSource], workers: int | None = None) -> Generator[StreamAnswer, None, None]:
        """Answer one image after the other, several of them in the making: reading and decoding overlap with the
        network and with what is made of its outputs.

        Args:
            images: paths, Pillow images or uint8 arrays, which need not be all there yet: a generator may wait for a
                camera, see :func:`runtime.open_video`. It is read in a thread of its own, a few images ahead. An array
                is not to be changed before its answer has come. A generator and a video are closed at the end
            workers: images at once; by default as many as the model's threads leave room for, two at least.
                `concurrency` of :func:`load` lets their networks run at the same time

        Returns:
            an iterator of answers in the order of the images; an image that cannot be taken is an answer with an error.
            Closing it, or an error, ends all that is under way

        Raises:
            TypeError: if workers is not an integer
            ValueError: if workers is below 1
            BackendError: while iterating, if the network fails; whatever the source raises comes through, too
        """
        from .stream import stream  # the threads' machinery, which `import runtime` can do without

        return stream(self, images, workers)

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
        feeds, sizes = self._feeder(images, first)
        return self._behaviour.answers(self.manifest, self._run(feeds), sizes)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._closed:
            raise closed_error(self.backend)
        fixed = self._fixed_batch is not None
        outputs = run_in_parts(self.session.run, feeds, self._fixed_batch or self._largest_batch, fixed)
        self._check_finite(outputs)
        return outputs

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
    fast_decode: bool = False,
    concurrency: int = 1,
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
        fast_decode: decode JPEG files at a fraction of their size where the network needs no more: several times
            faster, and the pixels differ a little. For networks that take images, not frames.
        concurrency: calls that are to run at the same time without waiting for each other, 1 to 1024, each on so many
            threads; any number of threads may call the model nonetheless
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
    check_threads(concurrency, "concurrency")
    source = _open(Path(path))
    if fast_decode and source.manifest.frame is not None:
        raise BundleError(f"{source.manifest.name} takes frames as they are: leave fast_decode out")
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
                session = open_session(file, name, threads, device, variant, concurrency=concurrency)
                artefact = source.artefacts[variant]
        except BackendError as e:
            first_error = first_error or e
            continue
        try:
            return Model(source.manifest, session, variant, threads, artefact, fast_decode)
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
    if manifest.frame is not None:
        values += 3 * math.prod(manifest.frame.size)
    return max(1, min(_CHUNK, _CHUNK_VALUES // values))
