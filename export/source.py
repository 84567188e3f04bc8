"""What to export: from an architecture's name, weights and labels to a module that is ready to be traced."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holocron import models
from holocron.models.errors import CheckpointError, DownloadError
from holocron.models.reparam import reparametrize
from runtime.manifest import Preprocessing, TensorSpec, sha256_of

from .errors import SourceError
from .spec import ExportSpec
from .tasks import TaskExport, task_export

_MAX_LABELS_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Source:
    """A model that can be traced.

    Attributes:
        name: of the bundle.
        task: what its outputs mean.
        module: in evaluation mode, reparameterized; it maps images to the outputs below.
        outputs: what it gives: one tensor, or a tuple of several.
        labels: one a class.
        preprocessing: how an image becomes its input.
        trained: False for random weights.
        provenance: where the weights are from.
    """

    name: str
    task: str
    module: nn.Module
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    trained: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)


def load_source(spec: ExportSpec, progress: bool = True) -> Source:
    """Build the architecture that was asked for, with its weights, labels and preprocessing.

    Args:
        spec: what was asked for; `spec.model` is an architecture's name
        progress: whether a download draws a progress bar

    Returns:
        the model, reparameterized

    Raises:
        SourceError: if the architecture, weights or labels do not exist, cannot be read or do not fit each other
    """
    info = _find(spec.model)
    labels = read_labels(spec.labels) if spec.labels is not None else None
    num_classes = _agree(spec.num_classes, labels)
    torch.manual_seed(spec.seed)
    checkpoint = _checkpoint(info, spec.weights)
    try:
        if checkpoint is not None:
            module = _build(info, num_classes, checkpoint=checkpoint, progress=progress)
            provenance = {"weights": checkpoint.meta.url, "weights_sha256": checkpoint.meta.sha256}
            labels = labels or tuple(checkpoint.meta.categories)
        elif spec.weights == "none":
            module = _build(info, num_classes)
            provenance = {"weights": "random", "seed": str(spec.seed)}
        else:
            path = Path(spec.weights)
            module = _with_weights(info, models.load_state_dict(path), num_classes, path)
            provenance = {"weights": path.name, "weights_sha256": sha256_of(path)}
    except DownloadError as e:
        raise SourceError(f"{e}; or export other weights with --weights FILE or --weights none") from e
    except (CheckpointError, ValueError) as e:
        raise SourceError(str(e)) from e
    except OSError as e:
        raise SourceError(f"cannot read the weights {spec.weights}: {e}") from e
    return from_module(
        module,
        name=info.name,
        task=info.task,
        labels=labels,
        preprocessing=spec.preprocessing or _preprocessing(info, checkpoint, spec.input_size),
        trained=spec.weights != "none",
        provenance={"architecture": info.name, **provenance},
    )


def from_module(
    module: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    labels: tuple[str, ...] | None = None,
    task: str = "classification",
    trained: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> Source:
    """Take a module as it is: put it in evaluation mode, reparameterize it, and find out how many classes it has.

    Args:
        module: takes (N, 3, H, W) and gives what its task's modules give; it is changed in place
        name: of the bundle
        preprocessing: how an image becomes its input
        labels: one a class; None numbers them
        task: what its outputs mean
        trained: False for random weights
        provenance: where the weights are from

    Returns:
        the source

    Raises:
        SourceError: if the module does not run on such an input, or the labels do not match its classes
    """
    module = module.eval()
    try:
        reparametrize(module)
    except ValueError as e:
        raise SourceError(f"{name} cannot be reparameterized: {e}") from e
    kind = task_export(task)
    if not callable(getattr(module, kind.method, None)):
        raise SourceError(f"{name} has no method `{kind.method}`: {task} is exported by the {kind.form}")
    entry = module if kind.method == "forward" else _Method(module, kind.method)
    shapes = _output_shapes(entry, name, kind, preprocessing.size)
    try:
        classes = kind.classes(module, shapes)
    except ValueError as e:
        raise SourceError(f"{name} gives something other than {kind.form} for {task}: it has {e}") from e
    if labels is not None and len(labels) != classes:
        raise SourceError(f"there are {len(labels)} labels and {name} has {classes} classes: give one label a class")
    return Source(
        name=name,
        task=task,
        module=entry,
        outputs=tuple(
            TensorSpec(output, "float32", ("batch", *shape[1:]))
            for output, shape in zip(kind.output_names(len(shapes)), shapes, strict=True)
        ),
        labels=labels or tuple(str(i) for i in range(classes)),
        preprocessing=preprocessing,
        trained=trained,
        provenance=provenance or {},
    )


class _Method(nn.Module):
    """One method of a module as a module of its own: what a detector computes before its boxes are decoded."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self._method = method

    def forward(self, x: Tensor) -> Any:
        out = getattr(self.module, self._method)(x)
        return tuple(out) if isinstance(out, (list, tuple)) else out


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the model's outputs.

    Raises:
        SourceError: if the file cannot be read, is empty, or has an empty or repeated line
    """
    try:
        if path.stat().st_size > _MAX_LABELS_BYTES:
            raise SourceError(f"{path} is larger than {_MAX_LABELS_BYTES >> 20} MiB: a labels file has a name a line")
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise SourceError(f"cannot read the labels {path}: {e}") from e
    labels = tuple(line.strip() for line in lines)
    for number, label in enumerate(labels, 1):
        if not label:
            raise SourceError(f"{path} has no label in line {number}: give one class name a line")
    label, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise SourceError(f"{path} has the label {label!r} {times} times: one class name a line, each once")
    return labels


def _find(name: str) -> models.registry.ModelInfo:
    try:
        return models.get_model_info(name)
    except ValueError as e:
        path = Path(name)
        if path.exists():
            raise SourceError(f"{name} is neither a bundle (it has no manifest.json) nor an architecture") from None
        raise SourceError(str(e)) from None


def _agree(num_classes: int | None, labels: tuple[str, ...] | None) -> int | None:
    if num_classes is not None and labels is not None and num_classes != len(labels):
        raise SourceError(f"--labels has {len(labels)} names, --num-classes is {num_classes}: give one label a class")
    return num_classes if labels is None else len(labels)


def _checkpoint(info: models.registry.ModelInfo, weights: str) -> Any:
    """The published checkpoint that `weights` names; None if it names a file or random weights."""
    if weights == "none":
        return None
    if weights == "default":
        if info.default_checkpoint is None:
            raise SourceError(f"no weights are published for {info.name}: give --weights FILE, or --weights none")
        return info.default_checkpoint
    entries: dict[str, Enum] = {} if info.checkpoints is None else dict(info.checkpoints.__members__)
    prefix = "" if info.checkpoints is None else f"{info.checkpoints.__name__}."
    known = [f"{prefix}{name}" for name in entries]
    entry = entries.get(weights.removeprefix(prefix))
    if entry is not None:
        return entry.value
    if not Path(weights).is_file():
        raise SourceError(
            f"--weights {weights}: no such file, and no published checkpoint of {info.name} "
            f"(those are {', '.join(known) or 'none'})"
        )
    return None


def _build(info: models.registry.ModelInfo, num_classes: int | None, **kwargs: Any) -> nn.Module:
    """Build an architecture; weights come from where the user said, so none are fetched for its backbone."""
    if "pretrained_backbone" in inspect.signature(info.builder).parameters:
        kwargs["pretrained_backbone"] = False
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    return models.build_model(info.name, **kwargs)


def _with_weights(
    info: models.registry.ModelInfo, state_dict: dict[str, Tensor], num_classes: int | None, path: Path
) -> nn.Module:
    """Build an architecture for the weights in a file, in training form or reparameterized."""
    fused = not any(key.endswith("running_mean") for key in state_dict)
    if num_classes is None:
        num_classes = _classes_of(info, state_dict, fused)
    module = _build(info, num_classes)
    if fused:
        reparametrize(module.eval())
    models.load_weights(module, state_dict, str(path))
    return module


def _classes_of(info: models.registry.ModelInfo, state_dict: Mapping[str, Tensor], fused: bool) -> int | None:
    """The number of classes that weights are for, from a tensor whose size depends on it; None if there is none.

    Which tensor that is, and how, shows in two models of different numbers of classes: so no family need be known.
    """
    few, more = (_shapes(info, classes, fused) for classes in (2, 3))
    for key, shape in few.items():
        if shape != more[key] and key in state_dict and len(state_dict[key].shape) == len(shape):
            given = state_dict[key].shape
            steps = {(g - s) / (m - s) for g, s, m in zip(given, shape, more[key], strict=True) if m != s}
            classes = 2 + steps.pop()
            if not steps and classes == int(classes) >= 1:
                return int(classes)
    return None


def _shapes(info: models.registry.ModelInfo, num_classes: int, fused: bool) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):  # shapes alone: no weights are allocated or drawn
            module = _build(info, num_classes)
            if fused:
                reparametrize(module.eval())
    except (NotImplementedError, RuntimeError):  # a builder that looks at the values it draws
        module = _build(info, num_classes)
        if fused:
            reparametrize(module.eval())
    return {key: value.shape for key, value in module.state_dict().items()}


def _preprocessing(info: models.registry.ModelInfo, checkpoint: Any, size: tuple[int, int] | None) -> Preprocessing:
    expected = info if checkpoint is None else checkpoint.pre_processing
    own_size = info.input_size if checkpoint is None else tuple(checkpoint.pre_processing.input_shape[1:])
    return Preprocessing(
        size=size or own_size,
        mean=expected.mean,
        std=expected.std,
        interpolation=str(expected.interpolation.value),
    )


def _output_shapes(module: nn.Module, name: str, kind: TaskExport, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Run the module once, on one image, for the shapes of its outputs."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    other = next((p.dtype for p in module.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if other is not None:
        raise SourceError(f"{name} has parameters of {other}: export it in float32, as module.float() makes it")
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 3, *size, device=device))
    except Exception as e:  # whatever the user's own code raises
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise SourceError(f"{name} does not run on images of {size[0]}×{size[1]}: {reason}") from e
    outputs: Sequence[Any] = out if isinstance(out, (list, tuple)) else [out]
    if not outputs or not all(isinstance(o, Tensor) and o.ndim >= 2 and o.shape[0] == 1 for o in outputs):
        raise SourceError(f"{name} gives something other than {kind.form}")
    return [tuple(o.shape) for o in outputs]
