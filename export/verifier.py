"""Comparing what an export makes with what it was made from: the graphs, and the engines where there is their GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calib import find_labelled_images
from runtime.backends import Session, open_session, unavailable
from runtime.engines import read_artefact
from runtime.errors import BackendError, BundleError
from runtime.feeds import run_in_parts
from runtime.manifest import Artefact, Verification
from runtime.network_check import check_network

from . import engine as engines
from .base import Base, open_compared, session_network
from .errors import EngineError
from .graphs import unlabelled_images
from .progress import Progress
from .spec import ExportSpec
from .tasks import task_export
from .verify import (
    Comparison,
    FedNetwork,
    FedReference,
    FrameStream,
    Network,
    Outputs,
    Remembered,
    VerificationImages,
    check,
    compare_networks,
    remedy,
)

_FLOAT_GRAPH = "onnx-fp32"
_WORTH_SAYING_POINTS = 0.01


class Verifier:
    """Compares the artefacts of one export with the reference, all on the same images.

    Images and the reference's answers stay in memory, where they fit, from the first graph to the last engine.

    Args:
        spec: what was asked
        base: what the artefacts are made from
        folder: where they lie
        progress: is told what happens
        warn: is told what the user should know
    """

    def __init__(
        self, spec: ExportSpec, base: Base, folder: Path, progress: Progress, warn: Callable[[str], None]
    ) -> None:
        self._spec, self._base, self._folder = spec, base, folder
        self._progress, self._warn = progress, warn
        self._task = task_export(base.manifest.task)
        self._images: VerificationImages | None = None
        self._targets: list[int] | None = None
        self._said_unreadable = False
        self._reference: Network | None = None

    def graphs(self, made: Sequence[Artefact]) -> list[Artefact]:
        """Compare graphs with the reference.

        Args:
            made: the graphs

        Returns:
            the same with their verification

        Raises:
            VerificationError: if one is broken
        """
        if not made:
            return []
        images, reference = self._all_images(), self._remembered()
        comparisons: dict[str, Comparison] = {}
        with self._progress.stage(f"verifying {len(made)} artefacts on {len(images.paths)} images"):
            for artefact in made:  # one after the other: a large network is in memory once, not once an artefact
                session = open_compared(self._folder / artefact.file, self._base)
                comparison = comparisons[artefact.file] = self._graph_comparison()
                try:
                    self._compare(session_network(session), lambda _, batch: reference(batch), comparison)
                finally:
                    session.close()
        return [self._checked_graph(artefact, comparisons[artefact.file]) for artefact in made]

    def engines(
        self, waiting: Sequence[Artefact], graphs: Mapping[str, Artefact]
    ) -> tuple[list[Artefact], tuple[str, ...]]:
        """Run the engines that are for the GPU here, and compare them with the reference.

        Args:
            waiting: engines that are not verified yet
            graphs: of the bundle, by variant, the float32 one among them

        Returns:
            the same engines, those that ran here with their verification; and for people, why others did not run

        Raises:
            EngineError: if one does not run on the GPU that it is for
            VerificationError: if one is broken
        """
        reasons = {artefact.file: self._reason(artefact) for artefact in waiting}
        here = [artefact for artefact in waiting if reasons[artefact.file] is None]
        verified: dict[str, Artefact] = {}
        if here:
            expected, name, close = self._expected(graphs["fp32"])
            count = len(self._all_images().paths)
            try:
                with self._progress.stage(f"verifying {len(here)} engines on {count} images"):
                    for artefact in here:
                        verified[artefact.file] = self._verified_engine(artefact, graphs, expected, name)
            finally:
                close()
        notes = _notes([(artefact, reason) for artefact in waiting if (reason := reasons[artefact.file]) is not None])
        return [verified.get(artefact.file, artefact) for artefact in waiting], notes

    def _all_images(self) -> VerificationImages:
        if self._images is None:
            manifest = self._base.manifest
            if self._spec.eval_folder is not None:
                labelled = find_labelled_images(self._spec.eval_folder, manifest.labels)
                paths, self._targets = tuple(path for path, _ in labelled), [target for _, target in labelled]
            else:
                paths = tuple(unlabelled_images(self._spec, self._spec.verify_samples))
            frames = None if manifest.frame is None else FrameStream(paths, manifest)
            self._images = VerificationImages(paths, manifest.preprocessing, frames)
        return self._images

    def _remembered(self) -> Network:
        if self._reference is None:
            self._reference = Remembered(self._base.load_reference())
        return self._reference

    def _compare(self, network: FedNetwork, reference: FedReference, comparison: Comparison) -> None:
        images = self._all_images()
        compare_networks(network, reference, images, comparison, self._progress.update)
        unread = len(images.paths) - len(images.read)
        if unread and not self._said_unreadable:
            self._warn(f"{unread} of {len(images.paths)} verification images could not be read")
            self._said_unreadable = True

    def _result(self, comparison: Comparison, reference: str, backend: str) -> Verification:
        read = self._all_images().read
        targets = None if self._targets is None else [self._targets[i] for i in read]
        return comparison.result(reference, targets, backend)

    def _graph_comparison(self) -> Comparison:
        """What compares graphs: with something behind their networks, that too."""
        post, expect = self._base.manifest.post_processing, self._base.expect
        if post is None or expect is None:
            return Comparison(self._task.class_axis)
        from .graph.check import PostComparison

        return PostComparison(post, expect, self._task.class_axis)

    def _checked_graph(self, artefact: Artefact, comparison: Comparison) -> Artefact:
        from .graph.check import PostComparison

        result = self._result(comparison, self._base.reference_name, "onnxruntime")
        check(artefact, result, self._spec.tolerances, self._base.trained, comparison.errors(), self._task.agreement)
        if isinstance(comparison, PostComparison):
            comparison.check(artefact.file)
            self._warn_of_nothing_found(artefact, comparison.detections, "the reference")
        if result.accuracy is not None and result.reference_accuracy is not None:
            lost = result.reference_accuracy - result.accuracy
            if lost > _WORTH_SAYING_POINTS:
                self._warn(f"{artefact.file} loses {100 * lost:.1f} points: try more images or another --calib-method")
        return replace(artefact, verification=result)

    @property
    def _has_raw_reference(self) -> bool:
        """Whether engines are compared with the reference itself.

        Those with something behind their networks give nothing of the networks themselves, and are compared with the
        float32 graph, of which the export makes sure that it answers as the network does. So are those of a bundle that
        take frames: to take the network out of its graph needs `onnx`, which is not on a device.
        """
        manifest = self._base.manifest
        return manifest.post_processing is None and (manifest.frame is None or self._base.folder is None)

    def _reason(self, artefact: Artefact) -> str | None:
        """Why an engine is not run here; None if it is."""
        assert artefact.engine is not None
        reason = engines.not_for_here(artefact.engine)
        if reason is None and (self._base.folder is not None or not self._has_raw_reference):
            reason = unavailable("onnxruntime")
        return reason

    def _expected(self, float_graph: Artefact) -> tuple[FedReference, str, Callable[[], None]]:
        """What engines are compared with, what it is called, and what releases it."""
        if self._has_raw_reference:
            reference = self._remembered()
            return lambda _, batch: reference(batch), self._base.reference_name, lambda: None
        session = open_session(self._folder / float_graph.file, "onnxruntime")
        answers = Remembered(session_network(session))
        return lambda fed, _: answers(fed), _FLOAT_GRAPH, session.close

    def _engine_comparison(self) -> Comparison:
        post = self._base.manifest.post_processing
        if post is None:
            return Comparison(self._task.class_axis)
        from .graph.answers import AnswerComparison

        return AnswerComparison(post)

    def _verified_engine(
        self, artefact: Artefact, graphs: Mapping[str, Artefact], expected: FedReference, reference: str
    ) -> Artefact:
        assert artefact.engine is not None
        graph = graphs.get(artefact.variant)  # of an engine that was there already, it may be gone
        comparison = self._engine_comparison()
        try:
            weights = read_artefact(self._folder, graph) if artefact.engine.stripped and graph else None
            session = engines.open_engine(read_artefact(self._folder, artefact), artefact.engine, weights)
            try:
                fixed = check_network(self._base.manifest, session) is not None
                self._compare(_in_parts(session, artefact.engine.max_batch, fixed), expected, comparison)
            finally:
                session.close()
        except (BackendError, BundleError) as e:
            raise EngineError(
                f"{artefact.file} does not run on the GPU that it is for: {e}. Nothing was written"
            ) from e
        result = self._result(comparison, reference, session.backend)
        self._check_engine(artefact, graph, comparison, result)
        return replace(artefact, verification=result)

    def _check_engine(
        self, artefact: Artefact, graph: Artefact | None, comparison: Comparison, result: Verification
    ) -> None:
        from .graph.answers import AnswerComparison

        tolerances = self._spec.tolerances
        counts = isinstance(comparison, AnswerComparison) and comparison.counts
        check(
            artefact,
            result,
            tolerances,
            self._base.trained,
            comparison.errors(),
            self._task.agreement,
            math.inf if counts else None,
        )
        if isinstance(comparison, AnswerComparison):
            # Of a network whose graph in this precision has as little in common, the engine has no more.
            of_graph = graph.verification.top1_agreement if graph and graph.verification else None
            least = (1.0 if of_graph is None else of_graph) - tolerances.engine_agreement
            comparison.check_counts(artefact.file, least, remedy(artefact))
            self._warn_of_nothing_found(artefact, comparison.detections, "the float32 graph")

    def _warn_of_nothing_found(self, artefact: Artefact, detections: int | None, other: str) -> None:
        if detections == 0:
            self._warn(f"{artefact.file} and {other} found nothing on these images: its boxes were not compared")


def _in_parts(session: Session, largest: int, fixed: bool) -> FedNetwork:
    """An engine as something to compare: it takes as many images at once as it was built for."""

    def network(fed: Any) -> Outputs:
        feeds = fed if isinstance(fed, Mapping) else {session.inputs[0].name: fed}
        outputs = run_in_parts(session.run, feeds, largest, fixed)
        return {name: np.asarray(array, np.float32) for name, array in outputs.items()}

    return network


def _notes(left: Sequence[tuple[Artefact, str]]) -> tuple[str, ...]:
    """A line for each reason why engines did not run, with the command that makes up for it."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for artefact, reason in left:
        assert artefact.engine is not None
        command = f"holocron-export BUNDLE {engines.build_options(artefact.engine)}"
        reasons.setdefault((reason, command), []).append(artefact.file)
    return tuple(
        f"not verified, since not run here: {', '.join(files)} ({reason}); `{command}` makes up for it where they run"
        for (reason, command), files in reasons.items()
    )
