"""How far an artefact's answers are from those of the model it was made from, on real images, and when it is broken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calib import ImageStream
from calib.errors import CalibrationError
from runtime.backends.tensorrt_library import TITLES
from runtime.errors import ImageError
from runtime.feeds import FrameFeeder
from runtime.images import open_image
from runtime.manifest import Artefact, Manifest, Preprocessing, Verification
from runtime.preprocess import Preprocessor, padded_size

from .errors import VerificationError
from .spec import Tolerances

FloatArray = NDArray[np.float32]
Outputs = Mapping[str, FloatArray]
Network = Callable[[FloatArray], Outputs]
"""Maps a batch (N, C, H, W) to its outputs by name, N first."""
FedNetwork = Callable[[Any], Outputs]
"""The same, fed with a batch or, where it takes frames, with those and what belongs to them by name."""

FedReference = Callable[[Any, FloatArray], Outputs]
"""What to compare with, given what a network is fed and the batch that this is to the network behind its resizing."""

_BATCH = 8
_BATCH_PIXELS = _BATCH * 256 * 256
_REMEMBERED_BYTES = 2**28
_TINY = float(np.finfo(np.float64).tiny)


@dataclass
class Sums:
    """What is known of one output: squared differences and squares of the reference, added up, and the least cosine."""

    difference: float = 0.0
    reference: float = 0.0
    cosine: float = 1.0


class Comparison:
    """Says how far one network's answers are from another's, batch after batch, in memory that does not grow with them.

    Args:
        class_axis: dimension of the outputs in which the classes lie, whose largest is compared; None for none
    """

    def __init__(self, class_axis: int | None = 1) -> None:
        self._class_axis = class_axis
        self._sums: dict[str, Sums] = {}
        self._images = 0
        self._equal = self._compared = 0
        self._tops: list[tuple[int, int]] = []

    def add(self, ours: Outputs, reference: Outputs) -> None:
        """Compare the answers to some images.

        Args:
            ours: outputs by name, N first
            reference: the same of the network to compare with
        """
        for name, expected in reference.items():
            sums = self._sums.setdefault(name, Sums())
            for x, y in zip(ours[name], expected, strict=True):
                self._add_image(sums, x.astype(np.float64), y.astype(np.float64))
        self._images += len(next(iter(reference.values())))

    def _add_image(self, sums: Sums, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are for check() to find
            sums.difference += float(np.square(x - y).sum())
            sums.reference += float(np.square(y).sum())
            norms = float(np.linalg.norm(x) * np.linalg.norm(y))
            # Two answers of zeros are the same answer. The comparison keeps NaN, which min() would not.
            cosine = float((x * y).sum()) / norms if norms != 0 else 1.0
            if not cosine >= sums.cosine:
                sums.cosine = cosine
        if self._class_axis is not None:
            a, b = x.argmax(self._class_axis - 1), y.argmax(self._class_axis - 1)
            self._equal += int((a == b).sum())
            self._compared += a.size
            if a.size == 1:
                self._tops.append((int(a), int(b)))

    def errors(self) -> dict[str, float]:
        """Relative error ‖ours − reference‖ / ‖reference‖ of each output over all images."""
        return {n: float(np.sqrt(s.difference / max(s.reference, _TINY))) for n, s in self._sums.items()}

    def result(
        self, reference: str, targets: Sequence[int] | None = None, backend: str = "onnxruntime"
    ) -> Verification:
        """The comparison in the manifest's terms.

        Args:
            reference: what it was compared with
            targets: the right class of each image, or None
            backend: what ran ours

        Returns:
            the figures, of several outputs those of the worst
        """
        tops = np.array(self._tops, np.int64).reshape(-1, 2)
        labels = None if targets is None else np.asarray(targets)
        return Verification(
            reference=reference,
            images=self._images,
            relative_error=float(np.max(list(self.errors().values()))),  # NaN stays
            cosine=float(np.min([s.cosine for s in self._sums.values()])),
            top1_agreement=self._equal / self._compared if self._compared else None,
            accuracy=None if labels is None else float((tops[:, 0] == labels).mean()),
            reference_accuracy=None if labels is None else float((tops[:, 1] == labels).mean()),
            labelled_images=0 if labels is None else len(labels),
            backend=backend,
        )


class Remembered:
    """A network that is asked about the same batches again and again, and answers from memory where there is room.

    Args:
        network: the network
    """

    def __init__(self, network: FedNetwork) -> None:
        self._network = network
        self._answers: dict[bytes, Outputs] = {}
        self._bytes = 0

    def __call__(self, fed: Any) -> Outputs:
        """The network's outputs for a batch, or for arrays by name."""
        digest = hashlib.sha256()
        for array in _arrays(fed):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        key = digest.digest()
        if key in self._answers:
            return self._answers[key]
        outputs = self._network(fed)
        size = sum(array.nbytes for array in outputs.values())
        if self._bytes + size <= _REMEMBERED_BYTES:
            self._answers[key] = outputs
            self._bytes += size
        return outputs


def _arrays(fed: Any) -> list[NDArray[Any]]:
    return [fed[name] for name in sorted(fed)] if isinstance(fed, Mapping) else [fed]


class FrameStream:
    """Images as frames, one after the other, each beside what preprocessing on the host makes of it.

    Args:
        images: files
        manifest: of a network that takes frames: an image of another size than those is resized to it, a larger one
            reduced
    """

    def __init__(self, images: Sequence[Path], manifest: Manifest) -> None:
        assert manifest.frame is not None
        self._images, self._frame = tuple(images), manifest.frame
        self._feed, self._preprocess = FrameFeeder(manifest), Preprocessor(manifest.preprocessing)
        self.skipped: tuple[tuple[Path, str], ...] = ()

    def __iter__(self) -> Iterator[tuple[Mapping[str, Any], FloatArray]]:
        """Read the images.

        Yields:
            what the network is fed with, and the batch (1, 3, H, W) that it makes of it

        Raises:
            CalibrationError: if none of the files is readable
        """
        skipped = []
        for path in self._images:
            try:
                image = self._fitted(open_image(path))
            except ImageError as e:
                skipped.append((path, str(e)))
                continue
            yield self._feed([image])[0], self._preprocess(image)[None]
        self.skipped = tuple(skipped)
        if len(skipped) == len(self._images):
            raise CalibrationError(f"none of the {len(skipped)} images is readable; of the first: {skipped[0][1]}")

    def _fitted(self, image: Image.Image) -> Image.Image:
        h, w = self._frame.size
        if self._frame.fixed:
            return image.resize((w, h))
        if image.height > h or image.width > w:
            height, width = padded_size(image.height, image.width, (h, w))
            return image.resize((width, height))
        return image


class VerificationImages:
    """The images that artefacts are compared on, one artefact after the other: where they fit into memory each file is
    read once.

    Args:
        paths: files; those that cannot be read are left out
        preprocessing: how they become the networks' input
        frames: the same images as frames, for networks that take those

    Attributes:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing, frames: FrameStream | None = None) -> None:
        height, width = preprocessing.size
        batch_size = min(_BATCH, max(1, _BATCH_PIXELS // (height * width)))  # feature maps grow with the pixels
        self.paths = tuple(paths)
        self._images, self._frames = ImageStream(paths, preprocessing, batch_size), frames
        self._kept: list[tuple[Any, FloatArray]] | None = None

    def __iter__(self) -> Iterator[tuple[Any, FloatArray]]:
        """Give the images.

        Yields:
            what a network is fed with, and the batch (N, 3, H, W) that it makes of it: the same where it takes images

        Raises:
            CalibrationError: if none of the files is readable
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Any, FloatArray]] = []
        size = 0
        for fed, batch in self._frames or ((batch, batch) for batch in self._images):
            size += batch.nbytes + (0 if fed is batch else sum(array.nbytes for array in _arrays(fed)))
            if size <= _REMEMBERED_BYTES:
                kept.append((fed, batch))
            else:
                kept.clear()
            yield fed, batch
        if size <= _REMEMBERED_BYTES:
            self._kept = kept

    @property
    def read(self) -> list[int]:
        """Positions in `paths` of the images that could be read when they were last gone through."""
        skipped = {path for path, _ in (self._frames or self._images).skipped}
        return [i for i, path in enumerate(self.paths) if path not in skipped]


def compare_networks(
    network: FedNetwork,
    reference: FedReference,
    images: VerificationImages,
    comparison: Comparison,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run two networks over the same images and compare them.

    Args:
        network: ours
        reference: what to compare it with
        images: to run them on
        comparison: what their answers are added to
        progress: called with the number of images done and the number in all
    """
    done = 0
    for fed, batch in images:
        comparison.add(network(fed), reference(fed, batch))
        done += len(batch)
        if progress is not None:
            progress(done, len(images.paths))


def check(
    artefact: Artefact,
    result: Verification,
    tolerances: Tolerances,
    trained: bool,
    errors: Mapping[str, float] | None = None,
    agreement: str = "top-1 agreement",
    bound: float | None = None,
) -> None:
    """Refuse an artefact that is broken.

    Args:
        artefact: what was compared
        result: how it answered
        tolerances: how far it may be off
        trained: whether the weights are trained; with random ones the first class of an image means nothing
        errors: relative error of each output, where there are several, to name the worst
        agreement: what the share of equal first classes is called
        bound: largest relative error, in place of that of the artefact's precision

    Raises:
        VerificationError: with the figure and its bound
    """
    bound = tolerances.relative_error(artefact) if bound is None else bound
    problems = []
    if not result.relative_error <= bound:  # NaN is a failure too
        worst = [name for name, error in (errors or {}).items() if not error <= bound]
        where = f" of {', '.join(map(repr, worst))}" if errors is not None and len(errors) > 1 else ""
        problems.append(f"relative error {result.relative_error:.2g}{where} (at most {bound:.2g})")
    if artefact.precision == "int8":
        if trained and result.top1_agreement is not None and result.top1_agreement < tolerances.int8_agreement:
            problems.append(
                f"{agreement} {result.top1_agreement:.1%} on {result.images} images "
                f"(at least {tolerances.int8_agreement:.0%})"
            )
        if result.accuracy is not None and result.reference_accuracy is not None:
            drop = result.reference_accuracy - result.accuracy
            if drop > tolerances.int8_accuracy_drop:
                problems.append(
                    f"accuracy {result.accuracy:.2%} where the reference has {result.reference_accuracy:.2%} "
                    f"(at most {100 * tolerances.int8_accuracy_drop:g} points lost)"
                )
    if problems:
        raise VerificationError(
            f"{artefact.file} does not answer as {result.reference} does: {'; '.join(problems)}. "
            f"Nothing was written; {remedy(artefact)}"
        )


def remedy(artefact: Artefact) -> str:
    """What to do about an artefact that is broken."""
    if artefact.engine is not None:
        info = artefact.engine
        return (
            f"{TITLES.get(info.library, info.library)} {info.version} makes something else of the {artefact.variant} "
            "graph than it says: build the engine with another --engine-level, or with another version of the library"
        )
    return {
        "fp32": "the traced graph does not compute what the model does: report this with the model",
        "fp16": "the network needs more range than float16 has: export without --fp16",
        "int8": "calibrate on images like those it will see (--calib), or with another --calib-method",
    }[artefact.precision]
