"""What an export starts from: an architecture, a module, or an existing bundle; always a float32 graph in the end.

Torch is imported only where an architecture is built, onnx only where a graph is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import open_session
from runtime.backends.base import Session
from runtime.manifest import (
    Artefact,
    EngineInfo,
    FrameSpec,
    Manifest,
    TensorSpec,
    artefact_path,
    frame_inputs,
    read_manifest,
)

from . import engine as engines
from .errors import ExportError
from .progress import Progress, Silent
from .spec import ExportSpec
from .tasks import task_export
from .verify import FedNetwork, FloatArray, Network, Outputs

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from .graph.check import Expect


@dataclass(frozen=True)
class Base:
    """What the new artefacts are made from.

    Attributes:
        manifest: everything but the artefacts.
        kept: artefacts of an existing bundle that stay.
        folder: that bundle; None for a new one.
        load_graph: gives the float32 graph of the network alone, which takes images; of a new bundle once.
        load_reference: gives the network that artefacts are compared with.
        reference_name: what that is.
        trained: False for random weights.
        load_front: gives what stands in front of the network in every graph that is written; None if nothing does.
        load_tail: gives what stands behind it there; None if nothing does.
        expect: what that should make of the network's own outputs; None if nothing stands there.
    """

    manifest: Manifest
    kept: tuple[Artefact, ...]
    folder: Path | None
    load_graph: Callable[[], onnx.ModelProto]
    load_reference: Callable[[], Network]
    reference_name: str
    trained: bool
    load_front: Callable[[], onnx.ModelProto | None] = lambda: None
    load_tail: Callable[[], onnx.ModelProto | None] = lambda: None
    expect: Expect | None = None

    def has(self, variant: str) -> bool:
        """Whether a graph of that precision and scheme is there already."""
        return any(a.kind == "onnx" and a.variant == variant for a in self.kept)


def from_model(spec: ExportSpec, module: nn.Module | None, task: str, progress: Progress) -> Base:
    """Build, reparameterize and trace an architecture, or a module that is there already.

    Args:
        spec: what was asked
        module: exported in place of the architecture that `spec.model` names
        task: of that module
        progress: is told what happens

    Raises:
        ExportError: if it cannot be built or traced as asked
    """
    try:
        import torch

        from .graph.frame import trace_frame_input
        from .graph.outputs import make_tail
        from .onnx_graph import INPUT_NAME
        from .source import from_module, load_source, read_labels
        from .trace import trace
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
        source = from_module(module, Path(spec.model).name, spec.preprocessing, labels, task)
    _check_eval(spec, source.task)
    size = source.preprocessing.size
    image = TensorSpec(INPUT_NAME, "float32", ("batch", 3, *size))
    device = next((p.device for p in source.module.parameters()), torch.device("cpu"))

    tail = make_tail(spec, source, fixed_frame(spec.frame_spec))
    names = tuple(output.name for output in source.outputs)

    def reference(batch: FloatArray) -> Outputs:
        with torch.inference_mode():
            out = source.module(torch.from_numpy(batch).to(device))
        tensors = out if isinstance(out, (list, tuple)) else [out]
        return {name: tensor.float().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}

    manifest = Manifest(
        name=source.name,
        task=source.task,
        labels=source.labels,
        inputs=(image,) if spec.frame_spec is None else frame_inputs(spec.frame_spec, source.preprocessing),
        outputs=source.outputs if tail is None else tail.outputs,
        preprocessing=source.preprocessing,
        provenance={"torch": torch.__version__, **source.provenance},
        frame=spec.frame_spec,
        post_processing=None if tail is None else tail.post_processing,
    )
    _check_manifest(manifest)
    with progress.stage(f"tracing at {size[0]}×{size[1]}"):
        graphs = [trace(source.module, size, output_names=names)]
        front = None if spec.frame_spec is None else trace_frame_input(source.preprocessing, spec.frame_spec)
        behind = None if tail is None else tail.trace(source.outputs)
    # Given away, not kept: a graph may be gigabytes, and is on disk once it is written.
    return Base(
        manifest,
        (),
        None,
        graphs.pop,
        lambda: reference,
        "pytorch",
        source.trained,
        lambda: front,
        lambda: behind,
        None if tail is None else tail.expect(source.preprocessing, device),
    )


def _check_eval(spec: ExportSpec, task: str) -> None:
    if spec.eval_folder is not None and not task_export(task).labelled:
        raise ExportError(f"--eval takes a folder of images a class, which says nothing about {task}: leave it out")


def _check_manifest(manifest: Manifest) -> None:
    """Refuse before the work what a reader of the bundle would refuse after it: a standard deviation of 0, say."""
    try:
        text = manifest.to_json()
    except TypeError as e:
        raise ExportError(f"the preprocessing does not fit a manifest: {e}; give plain numbers") from e
    Manifest.from_json(text, "the bundle to be written")


def from_bundle(spec: ExportSpec, warn: Callable[[str], None]) -> Base:
    """Open a bundle; what it has stays, unless it is asked for again with `--force`.

    Args:
        spec: what was asked; `spec.model` is the bundle's path
        warn: is told what the user should know

    Raises:
        ExportError: if what was asked would change the model, or the bundle has no float32 graph
        BundleError: if the bundle is damaged
    """
    given = {
        "--weights": spec.weights != "default",
        "--num-classes": spec.num_classes is not None,
        "--labels": spec.labels is not None,
        "--input-size": spec.input_size is not None or spec.preprocessing is not None,
        "--input": spec.input != "image",
        "--raw" if spec.end_to_end is False else "--end-to-end": spec.end_to_end is not None,
        **{f"--{option.replace('_', '-')}": True for option in spec.post_processing_options},
    }
    for option, is_given in given.items():
        if is_given:
            raise ExportError(f"{option} cannot change an existing bundle: export the architecture again")
    folder = Path(spec.model).resolve()
    manifest = read_manifest(folder)
    _check_eval(spec, manifest.task)
    floats = [a for a in manifest.artefacts if a.kind == "onnx" and a.precision == "fp32"]
    if not floats:
        raise ExportError(f"{folder} has no float32 graph to make anything from: export the architecture again")
    for artefact in manifest.artefacts:
        artefact_path(folder, artefact)
    path = folder / floats[0].file
    kept = _kept(manifest, spec, warn)

    post = manifest.post_processing

    def graph() -> onnx.ModelProto:
        return load_network(path, manifest)

    def front() -> onnx.ModelProto | None:
        if manifest.frame is None:
            return None
        from .graph.join import in_front

        return in_front(load_onnx(path))

    def tail() -> onnx.ModelProto | None:
        if post is None:
            return None
        from .graph.attach import tail_behind

        return tail_behind(load_onnx(path))

    def reference() -> Network:
        alone = manifest.frame is None and post is None
        model: Path | bytes = path if alone else graph().SerializeToString()
        return session_network(open_session(model, "onnxruntime"))

    def expect(raw: Mapping[str, FloatArray]) -> Mapping[str, NDArray[Any]]:
        assert post is not None
        if post.kind == "detections":  # what decodes is known to the graph alone
            return tail_session().run(dict(raw))
        from .graph.check import expect_in_numpy

        return expect_in_numpy(post, fixed_frame(manifest.frame) or manifest.preprocessing.size)(raw)

    @functools.cache
    def tail_session() -> Session:
        behind = tail()
        assert behind is not None
        return open_session(behind.SerializeToString(), "onnxruntime")

    trained = manifest.provenance.get("weights") != "random"
    bare = replace(manifest, artefacts=())
    expected = None if post is None else expect
    return Base(bare, kept, folder, graph, reference, "onnx-fp32", trained, front, tail, expected)


def _kept(manifest: Manifest, spec: ExportSpec, warn: Callable[[str], None]) -> tuple[Artefact, ...]:
    """What stays of a bundle: all; with `--force` all but what is asked for again, and what was built from that."""
    remade = {precision for precision, asked in (("fp16", spec.fp16), ("int8", spec.int8)) if asked}
    rebuilt = {
        engines.engine_file(variant, info): info
        for info in engine_infos(spec)
        for variant in engine_variants(spec, {a.variant for a in manifest.artefacts if a.kind == "onnx"})
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
            if artefact.engine != rebuilt[artefact.file]:
                raise ExportError(f"{artefact.file} was built with other options: build it again with --force")
    return tuple(kept)


def load_onnx(path: Path) -> onnx.ModelProto:
    """A graph of a bundle, without the manifest in its metadata.

    Raises:
        ExportError: if there is no onnx here
    """
    try:
        import onnx
    except ImportError as e:
        raise ExportError(
            f"making another graph from {path.name} needs `onnx` (pip install onnx): do it on a workstation"
        ) from e
    model = onnx.load(path)
    del model.metadata_props[:]
    return model


def load_network(path: Path, manifest: Manifest) -> onnx.ModelProto:
    """A graph of a bundle, without the manifest in its metadata and without what stands around the network.

    Raises:
        ExportError: if there is no onnx here
    """
    model = load_onnx(path)
    if manifest.post_processing is not None:
        from .graph.attach import network_in_front

        model = network_in_front(model, task_export(manifest.task).output_names)
    if manifest.frame is not None:
        from .graph.join import behind

        model = behind(model)
    return model


def open_compared(path: Path, base: Base) -> Session:
    """Open a graph that was made, to be compared: one with something behind its network gives the network's own outputs
    too, since little can be told from the rest alone.
    """
    if base.manifest.post_processing is None:
        return open_session(path, "onnxruntime")
    from .graph.attach import seam
    from .onnx_graph import serialized_with_outputs

    model = load_onnx(path)
    return open_session(serialized_with_outputs(model, seam(model)), "onnxruntime")


def fixed_frame(frame: FrameSpec | None) -> tuple[int, int] | None:
    """Height and width of every frame that a graph takes; None if they differ, or it takes images."""
    return frame.size if frame is not None and frame.fixed else None


def session_network(session: Any) -> FedNetwork:
    """A session as something to compare: its outputs in float32, by name."""
    return lambda fed: {name: np.asarray(array, np.float32) for name, array in session.run(fed).items()}


def engine_libraries(spec: ExportSpec) -> list[tuple[str, tuple[str, ...]]]:
    """Which libraries engines are asked of, each with the compute capabilities; none stands for the GPU present."""
    wanted: list[tuple[str, tuple[str, ...]]] = []
    if spec.trt:
        wanted.append(("tensorrt", ()))
    if spec.rtx:
        wanted.append(("tensorrt_rtx", spec.capabilities))
    return wanted


def engine_infos(spec: ExportSpec) -> list[EngineInfo]:
    """What engines are asked for: one for each library and compute capability."""
    return [
        spec.engine.info(library, engines.library_version(library), capability, spec.max_batch)
        for library, capabilities in engine_libraries(spec)
        for capability in capabilities or (engines.device_capability(),)
    ]


def engine_variants(spec: ExportSpec, graphs: set[str]) -> list[str]:
    """Which graphs become engines: those asked for; of a bundle, where none is, the one that runs fastest."""
    asked = [variant for variant, wanted in (("fp16", spec.fp16), ("int8.trt", spec.int8)) if wanted]
    return asked or [next(v for v in ("int8.trt", "fp16", "fp32") if v in graphs)]
