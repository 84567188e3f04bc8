"""What each task means to the exporter: what of a module is traced, what its outputs are called, how two are compared.

The one place that knows one task from another; `runtime.tasks` is its counterpart on the device. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ExportError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TaskExport:
    """How networks of one task are exported.

    Attributes:
        method: of the module, which is traced.
        form: what its outputs look like, for errors.
        output_names: names of that many outputs.
        classes: number of classes of a module, given its outputs' shapes for one image; raises ValueError if the
            outputs are not such a network's.
        class_axis: dimension of the outputs in which the classes lie, whose largest is compared; None if the outputs
            are not scores of classes.
        agreement: what the share of equal largest classes is called.
        labelled: whether folders of labelled images can measure its accuracy.
    """

    method: str
    form: str
    output_names: Callable[[int], tuple[str, ...]]
    classes: Callable[[Any, Sequence[Shape]], int]
    class_axis: int | None
    agreement: str
    labelled: bool = False


def task_export(task: str) -> TaskExport:
    """The entry of a task.

    Args:
        task: one of :data:`runtime.manifest.TASKS`

    Raises:
        ExportError: if there is no such task
    """
    if task not in _TASKS:
        raise ExportError(f"there is no task {task!r}: expected one of {', '.join(_TASKS)}")
    return _TASKS[task]


def _scores(dimensions: int) -> Callable[[Any, Sequence[Shape]], int]:
    def classes(module: Any, shapes: Sequence[Shape]) -> int:
        if len(shapes) != 1 or len(shapes[0]) != dimensions:
            raise ValueError(f"outputs of shape {', '.join(map(str, shapes))}")
        return shapes[0][1]

    return classes


def _classes_of_detector(module: Any, shapes: Sequence[Shape]) -> int:
    classes = getattr(module, "num_classes", None)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ValueError("no attribute `num_classes`, which says how many classes its outputs are for")
    return classes


def _heads(count: int) -> tuple[str, ...]:
    return ("head",) if count == 1 else tuple(f"head_{i}" for i in range(count))


_TASKS = {
    "classification": TaskExport(
        method="forward",
        form="scores (N, K)",
        output_names=lambda count: ("logits",),
        classes=_scores(2),
        class_axis=1,
        agreement="top-1 agreement",
        labelled=True,
    ),
    # The raw heads, whose number, shapes and meaning are the architecture's own.
    "detection": TaskExport(
        method="raw_outputs",
        form="raw heads, by a method `raw_outputs`",
        output_names=_heads,
        classes=_classes_of_detector,
        class_axis=None,
        agreement="matched boxes",
    ),
    "segmentation": TaskExport(
        method="forward",
        form="scores (N, K, H, W)",
        output_names=lambda count: ("logits",),
        classes=_scores(4),
        class_axis=1,
        agreement="pixel agreement",
    ),
}
