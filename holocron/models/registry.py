"""The one table of models: what can be built by name, and what each of them expects."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, get_args

from torch import nn
from torchvision.transforms import InterpolationMode

from holocron.models.checkpoints import Checkpoint, PreProcessing

__all__ = ["ModelInfo", "Task", "build_model", "get_model_info", "list_models", "register_model"]

Task = Literal["classification", "detection", "segmentation"]

BuilderT = TypeVar("BuilderT", bound=Callable[..., nn.Module])

_IMAGENET = PreProcessing(input_shape=(3, 224, 224))


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model before it is built.

    Attributes:
        name: name of the builder function.
        builder: the function, called as ``builder(pretrained=False, checkpoint=None, progress=True, **kwargs)``.
        task: what the outputs mean.
        input_size: (height, width) in pixels that the model is usually run at.
        mean: per-channel mean of the inputs, after scaling to [0, 1].
        std: per-channel standard deviation of the inputs.
        interpolation: filter that images are resized with.
        checkpoints: enumeration of the published weights with a member ``DEFAULT``; None if there are none.
    """

    name: str
    builder: Callable[..., nn.Module]
    task: Task = "classification"
    input_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = _IMAGENET.mean
    std: tuple[float, float, float] = _IMAGENET.std
    interpolation: InterpolationMode = _IMAGENET.interpolation
    checkpoints: type[Enum] | None = None

    @property
    def default_checkpoint(self) -> Checkpoint | None:
        """The weights that ``pretrained=True`` loads, None if nothing is published."""
        if self.checkpoints is None:
            return None
        checkpoint: Checkpoint = self.checkpoints["DEFAULT"].value
        return checkpoint


_MODELS: dict[str, ModelInfo] = {}


def register_model(
    *,
    checkpoints: type[Enum] | None = None,
    task: Task = "classification",
    pre_processing: PreProcessing | None = None,
) -> Callable[[BuilderT], BuilderT]:
    """Enter a builder function into the table, under its own name.

    Args:
        checkpoints: enumeration of its published weights, with a member ``DEFAULT``.
        task: what the model does.
        pre_processing: what its inputs go through; by default as for the default checkpoint, or ImageNet's at
            224 × 224.

    Returns:
        a decorator that returns the function as it is

    Raises:
        ValueError: if the name is taken.
    """

    def register(builder: BuilderT) -> BuilderT:
        name = builder.__name__
        if name in _MODELS:
            raise ValueError(f"a model named {name!r} is already registered, by {_MODELS[name].builder.__module__}")
        if pre_processing is not None:
            expected = pre_processing
        else:
            expected = _IMAGENET if checkpoints is None else checkpoints["DEFAULT"].value.pre_processing
        _MODELS[name] = ModelInfo(
            name=name,
            builder=builder,
            task=task,
            input_size=(expected.input_shape[1], expected.input_shape[2]),
            mean=expected.mean,
            std=expected.std,
            interpolation=expected.interpolation,
            checkpoints=checkpoints,
        )
        return builder

    return register


def list_models(task: Task | None = None) -> list[str]:
    """Names of the models that can be built, in alphabetical order.

    Args:
        task: list only the models for this task.

    Returns:
        names that :func:`build_model` takes

    Raises:
        ValueError: if there is no such task.
    """
    if task is not None and task not in get_args(Task):
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(get_args(Task))}")
    return sorted(name for name, info in _MODELS.items() if task is None or info.task == task)


def get_model_info(name: str) -> ModelInfo:
    """Look a model up.

    Args:
        name: name of its builder.

    Returns:
        its entry in the table

    Raises:
        ValueError: if there is no such model; the message names the nearest ones.
    """
    try:
        return _MODELS[name]
    except (KeyError, TypeError):
        near = difflib.get_close_matches(str(name).lower().replace("-", "_"), _MODELS, n=3)
        examples = ", ".join(names[0] for task in get_args(Task) if (names := list_models(task)))
        known = f"expected one of the {len(_MODELS)} names of holocron.models.list_models(), for example {examples}"
        hint = f"did you mean {' or '.join(near)}?" if near else known
        raise ValueError(f"unknown model {name!r}: {hint}") from None


def build_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        kwargs: arguments of its builder, among them ``pretrained``, ``checkpoint``, ``progress`` and ``num_classes``.

    Returns:
        the model, in training mode

    Raises:
        ValueError: if there is no such model, or the builder refuses the arguments.
    """
    return get_model_info(name).builder(**kwargs)
