"""From a file to weights in a model, trusting neither."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from holocron.models.checkpoints import Checkpoint
from holocron.models.download import download
from holocron.models.errors import CheckpointError, CheckpointMismatchError
from holocron.models.reparam import reparametrize

__all__ = ["build_with_checkpoint", "load_checkpoint", "load_state_dict", "load_weights"]

ModelT = TypeVar("ModelT", bound=nn.Module)

# What data-parallel training and compilation put in front of every key.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# What the classifier of a family may be called: all that depends on the number of classes.
_HEAD_PREFIXES = ("head.", "classifier.")
_SHOWN_KEYS = 3


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file, without running anything that the file may contain.

    Args:
        path: a file written by :func:`torch.save` that holds a state dict, or a trainer's checkpoint with the state
            dict under ``"model"``; or a ``.safetensors`` file.

    Returns:
        the tensors by name, on the CPU, without the prefixes that ``DistributedDataParallel`` and ``torch.compile`` add

    Raises:
        CheckpointError: if there is no such file, or it is corrupt, would run code, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not a file: expected a checkpoint written by torch.save, or a .safetensors file"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or len(content) == 0:
        what = "an empty dictionary" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(
            f"{path} holds {what}, not a state dict: save model.state_dict(), or a dictionary that has it under 'model'"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is not a state dict: its entry {key!r} is a {type(value).__name__}. Save model.state_dict(), "
                "or a dictionary that has it under 'model'"
            )
    return strip_wrappers(dict(content))


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # What the restricted reader finds odd about a file ends in an error anyway, if it matters.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in any of its layers, each with errors of its own
        refused = re.search(r"GLOBAL (\S+)|reduce for unrecognized function (.+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise CheckpointError(
                f"{path} was refused: besides tensors it holds {refused[1] or refused[2]}, which may run code when it "
                "is read. Where you trust the file, read it there and save only model.state_dict()"
            ) from error
        raise CheckpointError(_corrupt(path, error)) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs the safetensors package: pip install safetensors") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # the reader is compiled and has an error type of its own
        raise CheckpointError(_corrupt(path, error)) from error


def _corrupt(path: Path, error: Exception) -> str:
    # The first sentence says what is wrong; the advice after it is for those who write readers.
    message = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    reason = re.split(r"\. |\n", message.strip())[0] or type(error).__name__
    return f"{path} cannot be read as a checkpoint: it is damaged, cut off or of another format ({reason})"


def strip_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove from every key what ``DistributedDataParallel`` and ``torch.compile`` put in front of all of them."""
    for prefix in _WRAPPER_PREFIXES * 2:
        if all(key.startswith(prefix) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "the state dict", *, backbone_only: bool = False
) -> None:
    """Copy weights into a model, in place, after checking that every one of them fits.

    Values are cast to the type of the model's own parameters, so that float16 weights load into a float32 model.
    Weights of the reparameterized form load into a model on which ``eval()`` and ``reparametrize()`` were called
    before. An error leaves the model as it was.

    Args:
        model: model that receives the weights.
        state_dict: tensors by name.
        source: where the weights are from, for the messages.
        backbone_only: leave the classifier as it is, and load everything before it.

    Raises:
        CheckpointMismatchError: if the weights are of another architecture or of another number of classes.
        CheckpointError: if a weight is NaN, infinite or not of a floating-point type where the model's is.
    """
    wanted = model.state_dict()
    given = dict(state_dict)
    if backbone_only:
        wanted = {key: value for key, value in wanted.items() if not key.startswith(_HEAD_PREFIXES)}
        given = {key: value for key, value in given.items() if not key.startswith(_HEAD_PREFIXES)}
    # How many batches the running statistics have seen only matters to training, and old files do not have it.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    reshaped = [key for key, value in given.items() if key in wanted and wanted[key].shape != value.shape]
    if missing or unexpected or reshaped:
        raise CheckpointMismatchError(_describe_mismatch(model, wanted, given, source, missing, unexpected, reshaped))
    for key, value in given.items():
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise CheckpointError(f"{source} has {key!r} as {value.dtype}, where the model has {wanted[key].dtype}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{source} has NaN or infinity in {key!r}: the training that wrote it diverged")
    model.load_state_dict(given, strict=False)


def _describe_mismatch(
    model: nn.Module,
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    source: str,
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
) -> str:
    name = type(model).__name__
    if reshaped and not missing and not unexpected and all(key.startswith(_HEAD_PREFIXES) for key in reshaped):
        key = reshaped[-1]
        theirs, ours = given[key].shape[0], wanted[key].shape[0]
        if theirs != ours:
            said, number = f"is for {theirs} classes, the model has {ours}", f"num_classes={theirs}"
            # A detector has several rows a class, and others beside them.
            classes = getattr(model, "num_classes", ours)
            if classes != ours:
                said = f"is for another number of classes than the model's {classes} ({key!r} has {theirs} rows)"
                number = "the num_classes that it was trained with"
            return (
                f"{source} {said}: build it with {number}, or load the backbone alone with "
                "load_weights(model, state_dict, backbone_only=True)"
            )
    if is_reparametrized_form(model, given):
        return (
            f"{source} holds the reparameterized form of {name}: call model.eval() and model.reparametrize() before "
            "loading it"
        )
    parts = []
    if missing:
        parts.append(f"it lacks {_list_keys(missing)}")
    if unexpected:
        parts.append(f"has unknown {_list_keys(unexpected)}")
    if reshaped:
        key = reshaped[0]
        more = f", and {len(reshaped) - 1} more" if len(reshaped) > 1 else ""
        parts.append(f"has {key!r} of shape {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}{more}")
    return f"{source} does not fit this {name}: {'; '.join(parts)}. Build the architecture that it was trained in"


def is_reparametrized_form(model: nn.Module, given: Mapping[str, Tensor]) -> bool:
    """Whether weights are of a model's reparameterized form, and the model is not in it."""
    if given.keys() == model.state_dict().keys():
        return False
    fused = copy.deepcopy(model).eval()
    reparametrize(fused)
    return fused.state_dict().keys() == given.keys()


def _list_keys(keys: Iterable[str]) -> str:
    names = list(keys)
    shown = ", ".join(repr(name) for name in names[:_SHOWN_KEYS])
    return shown if len(names) <= _SHOWN_KEYS else f"{shown} and {len(names) - _SHOWN_KEYS} more"


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint, progress: bool = True) -> None:
    """Download the weights of a checkpoint, unless they are in the cache, and load them into a model.

    Args:
        model: model of the checkpoint's architecture and number of classes.
        checkpoint: the published weights.
        progress: whether to draw a progress bar on the standard error stream.

    Raises:
        DownloadError: if the weights cannot be fetched, or are not those that were published.
        CheckpointError: if they cannot be read.
        CheckpointMismatchError: if they do not fit the model.
    """
    meta = checkpoint.meta
    path = download(meta.url, sha256=meta.sha256, size=meta.size, progress=progress)
    load_weights(model, load_state_dict(path), source=str(path))


def build_with_checkpoint(
    factory: Callable[..., ModelT],
    arch: str,
    *,
    pretrained: bool,
    checkpoint: Checkpoint | Enum | None,
    default: Enum | None,
    progress: bool,
    kwargs: dict[str, Any],
) -> ModelT:
    """Build a model, with published weights where they are asked for. Every builder function ends here.

    Args:
        factory: what creates the model, from ``kwargs``.
        arch: name of the builder.
        pretrained: whether to load the default checkpoint when none is given.
        checkpoint: a checkpoint, or the member of an enumeration whose value is one; it counts whatever ``pretrained``
            says.
        default: the checkpoint that ``pretrained`` stands for, None where nothing is published.
        progress: whether to draw a progress bar on the standard error stream.
        kwargs: arguments of the model. With a checkpoint, ``num_classes`` is by default the checkpoint's.

    Returns:
        the model, in training mode

    Raises:
        ValueError: if there is no checkpoint for this architecture, or it is for another one, or ``num_classes`` or
            ``in_channels`` are not those of the checkpoint.
        TypeError: if ``checkpoint`` is not a checkpoint.
        DownloadError: if the weights cannot be fetched.
    """
    chosen: Any = checkpoint
    if chosen is None and pretrained:
        if default is None:
            raise ValueError(f"no weights are published for {arch}: build it with pretrained=False, and load your own")
        chosen = default
    if isinstance(chosen, Enum):
        chosen = chosen.value
    if chosen is None:
        return factory(**kwargs)
    if not isinstance(chosen, Checkpoint):
        raise TypeError(f"expected a Checkpoint, got {chosen!r} of type {type(chosen).__name__}")
    if chosen.meta.arch != arch:
        raise ValueError(
            f"the checkpoint is for {chosen.meta.arch}, not for {arch}: build it with {chosen.meta.arch}()"
        )
    num_classes, in_channels = len(chosen.meta.categories), chosen.pre_processing.input_shape[0]
    for name, fixed in (("num_classes", num_classes), ("in_channels", in_channels)):
        if kwargs.get(name, fixed) != fixed:
            raise ValueError(
                f"the checkpoint of {arch} has {name}={fixed}, not {kwargs[name]}: leave {name} out, or build the "
                "model with pretrained=False and load the backbone alone with "
                "holocron.models.load_weights(model, state_dict, backbone_only=True)"
            )
    model = factory(**{**kwargs, "num_classes": num_classes})
    load_checkpoint(model, chosen, progress)
    return model
