"""Checking every artefact against the model it was made from, on real images, through the runtime that will run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib import ImageStream
from runtime.manifest import Artefact, Preprocessing, Verification

from .errors import VerificationError
from .spec import Tolerances

FloatArray = NDArray[np.float32]
Network = Callable[[FloatArray], FloatArray]
"""Maps a batch (N, C, H, W) to its scores (N, K)."""

_BATCH = 8


def answer(
    networks: Mapping[str, Network],
    images: Sequence[Path],
    preprocessing: Preprocessing,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, FloatArray], list[int]]:
    """Run several networks over the same images, each image read once.

    Args:
        networks: by name
        images: files; those that cannot be read are left out
        preprocessing: how they become the networks' input
        progress: called with the number of images done and the number in all

    Returns:
        each network's scores (N, K), and the positions in `images` of the N that were read
    """
    stream = ImageStream(images, preprocessing, batch_size=_BATCH)
    scores: dict[str, list[FloatArray]] = {name: [] for name in networks}
    done = 0
    for batch in stream:
        for name, network in networks.items():
            scores[name].append(network(batch))
        done += len(batch)
        if progress is not None:
            progress(done, len(images))
    skipped = {path for path, _ in stream.skipped}
    read = [i for i, path in enumerate(images) if path not in skipped]
    return {name: np.concatenate(parts) for name, parts in scores.items()}, read


def compare(
    ours: FloatArray,
    reference: FloatArray,
    reference_name: str,
    targets: Sequence[int] | None = None,
    backend: str = "onnxruntime",
) -> Verification:
    """Say how far one network's answers are from another's.

    Args:
        ours: scores (N, K)
        reference: scores (N, K) of the model it was made from
        reference_name: what that is
        targets: the right class of each image, or None
        backend: what ran ours

    Returns:
        the comparison
    """
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    ours_top, reference_top = a.argmax(1), b.argmax(1)
    labels = None if targets is None else np.asarray(targets)
    return Verification(
        reference=reference_name,
        images=len(a),
        relative_error=float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), np.finfo(np.float64).tiny)),
        cosine=float(_cosine(a, b).min()),
        top1_agreement=float((ours_top == reference_top).mean()),
        accuracy=None if labels is None else float((ours_top == labels).mean()),
        reference_accuracy=None if labels is None else float((reference_top == labels).mean()),
        labelled_images=0 if labels is None else len(labels),
        backend=backend,
    )


def check(artefact: Artefact, result: Verification, tolerances: Tolerances, trained: bool) -> None:
    """Refuse an artefact that is broken.

    Args:
        artefact: what was compared
        result: how it answered
        tolerances: how far it may be off
        trained: whether the weights are trained; with random ones the first class of an image means nothing

    Raises:
        VerificationError: with the figure and its bound
    """
    bound = {"fp32": tolerances.fp32, "fp16": tolerances.fp16, "int8": tolerances.int8}[artefact.precision]
    problems = []
    if not result.relative_error <= bound:  # NaN is a failure too
        problems.append(f"relative error {result.relative_error:.2g} (at most {bound:.2g})")
    if artefact.precision == "int8":
        if trained and result.top1_agreement < tolerances.int8_agreement:
            problems.append(
                f"top-1 agreement {result.top1_agreement:.1%} on {result.images} images "
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
        remedies = {
            "fp32": "the traced graph does not compute what the model does: report this with the model",
            "fp16": "the network needs more range than float16 has: export without --fp16",
            "int8": "calibrate on images like those it will see (--calib), or with another --calib-method",
        }
        raise VerificationError(
            f"{artefact.file} does not answer as {result.reference} does: {'; '.join(problems)}. "
            f"Nothing was written; {remedies[artefact.precision]}"
        )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # NaN and infinity are for check() to find
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        # Two answers of zeros are the same answer.
        return np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny), 1.0)
