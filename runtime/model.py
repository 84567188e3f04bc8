"""Opening a bundle: :func:`load` picks a network and a backend, :class:`Model` turns images into answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .backends import BACKENDS, available_backends, check_threads, open_session, preferred_backends, unavailable
from .backends.base import Session, closed_error
from .errors import BackendError, BundleError, ImageError
from .images import ImageSource
from .manifest import METADATA_KEY, VARIANT_KEY, Artefact, Manifest, artefact_path, read_manifest
from .onnx_metadata import read_metadata
from .preprocess import Preprocessor
from .results import Classification

_ALIASES = {"float32": "fp32", "float16": "fp16"}
_PRECISIONS = ("fp32", "fp16", "int8", "int8.cpu", "int8.trt")
_CHUNK = 32  # images fed at once from a long list: more gain nothing on the processor and cost memory
_UNKNOWN = "unknown"


class Model:
    """A classifier, opened from a bundle by :func:`load`. Several threads may call it at once.

    Attributes:
        manifest: all that the bundle says of the model.
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
        self.labels = manifest.labels
        self.artefact = artefact
        self.precision = precision
        self.backend = session.backend
        self.device = session.device
        self.threads = threads
        self.session = session
        self._preprocessor = Preprocessor(manifest.preprocessing)
        self._fixed_batch = _check_network(manifest, session)
        self._closed = False

    @overload
    def __call__(self, image: ImageSource) -> Classification: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: Sequence[ImageSource]) -> list[Classification]: ...

    def __call__(self, image: Any) -> Any:
        """Classify one image or several.

        Args:
            image: a path, a Pillow image or a uint8 array `(H, W, 3)`; or a list of those; or a uint8 array
                `(N, H, W, 3)`

        Returns:
            an answer; for several images a list of answers in their order

        Raises:
            ImageError: if one is not an image that can be taken
            BackendError: if the network fails, answers with NaN, or the model is closed
        """
        if isinstance(image, np.ndarray) and image.ndim == 4:
            if image.dtype != np.uint8:
                raise ImageError(f"the batch of images is {image.dtype}: expected uint8 from 0 to 255")
            return self._classify(list(image))
        if isinstance(image, (list, tuple)):
            return self._classify(image)
        return self._answers(self.preprocess(image))[0]

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

    def _classify(self, images: Sequence[ImageSource]) -> list[Classification]:
        results: list[Classification] = []
        for start in range(0, len(images), _CHUNK):
            batch = self._preprocessor.batch(images[start : start + _CHUNK], first=start)
            results += self._answers(batch)
        return results

    def _answers(self, batch: NDArray[np.float32]) -> list[Classification]:
        if self._closed:
            raise closed_error(self.backend)
        return [Classification(row, self.labels) for row in self._logits(batch)]

    def _logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        step = self._fixed_batch
        if step is None:
            return self._run(batch)
        parts = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            missing = step - len(part)
            fed = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part
            parts.append(self._run(fed)[: len(part)])
        return np.concatenate(parts)

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        spec = self.manifest.inputs[0]
        outputs = self.session.run({spec.name: batch.astype(spec.dtype, copy=False)})
        logits = np.asarray(outputs[self.manifest.outputs[0].name], np.float32)
        if logits.shape != (len(batch), len(self.labels)):
            raise BundleError(
                f"the network answered {len(batch)} images with the shape {logits.shape}: expected one value for each "
                f"of the {len(self.labels)} labels; export the model again"
            )
        if not np.isfinite(logits).all():
            raise BackendError(
                f"the network answered with NaN or infinite values in {self.precision} on {self.backend}: choose "
                "another precision"
            )
        return logits


@dataclass(frozen=True)
class _Source:
    """What lies at a path: a manifest, and an artefact of the bundle (or a lone ONNX file) for each precision."""

    path: Path
    manifest: Manifest
    artefacts: Mapping[str, Artefact | None]

    def file(self, variant: str) -> Path:
        artefact = self.artefacts[variant]
        return self.path if artefact is None else artefact_path(self.path, artefact)


def load(
    path: str | os.PathLike[str],
    precision: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    device: str | int | None = None,
) -> Model:
    """Open a bundle with the best backend and precision that there are here, or with those asked for.

    Args:
        path: a bundle's folder, or an ONNX file out of one
        precision: `"fp32"`, `"fp16"`, `"int8"` (of the scheme that suits the backend), `"int8.cpu"` or `"int8.trt"`; by
            default INT8 of the scheme that suits the backend, then what it runs fastest
        backend: `"onnxruntime"`, `"openvino"`, `"onnxruntime-cuda"` or `"onnxruntime-tensorrt"`; by default the first
            of :func:`runtime.backends.available_backends` that opens the network
        threads: processor threads of one call, 1 to 1024; by default the physical cores that this process may use
        device: a GPU's number or `"cuda:1"`, `"cpu"`, or one of OpenVINO's devices, e.g. `"gpu"`; by default the first

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
    first_error: BackendError | None = None
    for name in _candidates(backend, device):
        try:
            variant = _variant(source, wanted, name)
        except BackendError as e:
            first_error = first_error or e
            continue
        file = source.file(variant)  # a changed file is an error, not a reason to take another
        try:
            session = open_session(file, name, threads, device, variant)
        except BackendError as e:
            first_error = first_error or e
            continue
        try:
            return Model(source.manifest, session, variant, threads, source.artefacts[variant])
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
        if not artefacts:
            raise BundleError(f"{path} has no ONNX file: export the model again")
        return _Source(path, manifest, artefacts)
    if not is_file:
        raise BundleError(f"{path} is not there: expected a bundle's folder or an ONNX file")
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise BundleError(
            f"{path} is an ONNX file without Holocron Edge's metadata, so its labels and preprocessing are not known: "
            "open the bundle's folder, or export the model with holocron-export"
        )
    manifest = Manifest.from_json(metadata[METADATA_KEY], f"the metadata of {path}")
    return _Source(path, manifest, {metadata.get(VARIANT_KEY, _UNKNOWN): None})


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
    if wanted is None:
        order = [v for v in BACKENDS[backend].variants if v in has] or has
        return order[0]
    variant = f"int8.{BACKENDS[backend].int8_scheme}" if wanted == "int8" else wanted
    if variant not in has:
        suits = f", which {wanted} means on {backend}" if variant != wanted else ""
        raise BackendError(f"{source.path} has no {variant}{suits}: it has {', '.join(has)}")
    return variant


def _check_network(manifest: Manifest, session: Session) -> int | None:
    """Check that the network is the one that the manifest describes; return its batch if that is fixed."""
    if {len(manifest.inputs), len(manifest.outputs), len(session.inputs), len(session.outputs)} != {1}:
        raise BundleError(f"{manifest.name}: a classifier has one input and one output; export the model again")
    for said, found in ((manifest.inputs[0], session.inputs[0]), (manifest.outputs[0], session.outputs[0])):
        if (said.name, said.dtype) != (found.name, found.dtype):
            raise BundleError(
                f"{manifest.name}: the manifest says {said.name!r} of {said.dtype}, the network has {found.name!r} of "
                f"{found.dtype}; export the model again"
            )
    shape, classes = session.inputs[0].shape, session.outputs[0].shape[-1:]
    fed = (3, *manifest.preprocessing.size)
    if len(shape) != 4 or any(isinstance(s, int) and s != f for s, f in zip(shape[1:], fed, strict=True)):
        raise BundleError(
            f"{manifest.name}: the network takes {shape}, preprocessing gives {fed}; export the model again"
        )
    if len(session.outputs[0].shape) != 2 or (isinstance(classes[0], int) and classes[0] != len(manifest.labels)):
        raise BundleError(
            f"{manifest.name}: {len(manifest.labels)} labels do not fit a network that answers "
            f"{session.outputs[0].shape}; export the model again"
        )
    return shape[0] if isinstance(shape[0], int) else None
