"""Models in folders: weights beside the facts that they cannot be used without, as the Hugging Face Hub keeps them.

A folder, which is also what a repository of the Hub holds, has two files that matter here; whatever else there is
stays as it is:

- ``config.json``: an object with ``arch`` (name of the builder), ``task``, ``num_classes``, ``classes`` (one name a
  class, in the order of the outputs), ``input_shape`` (C, H, W), ``mean`` and ``std`` (one number a channel, of images
  in [0, 1]) and ``interpolation``. Of these, ``arch`` and one of ``num_classes`` and ``classes`` are needed, the
  others default to what the builder expects; keys of other tools are ignored.
- ``model.safetensors``: the weights. A folder from before has ``pytorch_model.bin`` in its place, which is read without
  running what it may contain.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from holocron.models.checkpoints import PreProcessing
from holocron.models.errors import CheckpointError, CheckpointMismatchError, DownloadError
from holocron.models.loading import is_reparametrized_form, load_state_dict, load_weights, strip_wrappers
from holocron.models.registry import ModelInfo, build_model, get_model_info
from holocron.models.reparam import reparametrize

__all__ = ["HubConfig", "hub_config", "model_from_hf_hub", "save_hub_folder"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
OLD_WEIGHTS_FILE = "pytorch_model.bin"

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_CLASSES = 1_000_000
_MAX_SIDE = 32768


@dataclass(frozen=True)
class HubConfig:
    """What ``config.json`` says about the weights beside it.

    Attributes:
        arch: name of the builder, one of :func:`holocron.models.list_models`.
        task: what the outputs mean: ``classification``, ``detection`` or ``segmentation``.
        classes: name of each class, in the order of the outputs. Names may repeat, as they do in ImageNet.
        pre_processing: what an image goes through before the model sees it.
    """

    arch: str
    task: str
    classes: tuple[str, ...]
    pre_processing: PreProcessing

    def to_json(self) -> str:
        """The content of ``config.json``."""
        expected = self.pre_processing
        content = {
            "arch": self.arch,
            "task": self.task,
            "num_classes": len(self.classes),
            "classes": list(self.classes),
            "input_shape": list(expected.input_shape),
            "mean": list(expected.mean),
            "std": list(expected.std),
            "interpolation": expected.interpolation.value,
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, source: str = CONFIG_FILE) -> HubConfig:
        """Read what :meth:`to_json`, or a compatible tool, has written.

        Args:
            text: content of the file.
            source: what to call it in errors.

        Returns:
            the configuration

        Raises:
            CheckpointError: if it is not such a configuration; the message names the key and its value.
        """
        return _parse_config(text, source)


def hub_config(repo_id: str | os.PathLike[str], **kwargs: Any) -> HubConfig:
    """Read what is known about a model on the Hub, or in a folder: its classes and how its images are prepared.

    Args:
        repo_id: as for :func:`model_from_hf_hub`.
        **kwargs: likewise.

    Returns:
        the configuration

    Raises:
        ValueError: if ``repo_id`` is neither a repository id nor a folder.
        CheckpointError: if ``config.json`` is missing or is not a configuration.
        DownloadError: if it cannot be fetched.
    """
    folder, _ = _locate(repo_id, kwargs)
    return _read_config(folder)


def model_from_hf_hub(repo_id: str | os.PathLike[str], **kwargs: Any) -> nn.Module:
    """Load a model from a repository of the Hugging Face Hub, or from a local folder of the same layout.

    Weights in the reparameterized form give a reparameterized model.

    Args:
        repo_id: ``owner/name`` on the Hub, or the path of a folder. A text that names an existing folder is one.
        **kwargs: for a repository, options of ``huggingface_hub.hf_hub_download``: ``revision``, ``token``,
            ``cache_dir``, ``local_files_only`` and so on.

    Returns:
        the model with its weights, in evaluation mode

    Raises:
        ValueError: if ``repo_id`` is neither a repository id nor a folder.
        TypeError: if there are options beside a folder.
        CheckpointError: if a file is missing, damaged, would run code, or its weights are NaN or infinite.
        CheckpointMismatchError: if the weights are not those of the architecture and classes that the configuration
            names.
        DownloadError: if the files cannot be fetched, or ``huggingface_hub`` is not installed.
    """
    folder, fetch = _locate(repo_id, kwargs)
    config = _read_config(folder)
    path = fetch(WEIGHTS_FILE) or fetch(OLD_WEIGHTS_FILE)
    if path is None:
        raise CheckpointError(
            f"{repo_id} has no weights: expected {WEIGHTS_FILE}, or {OLD_WEIGHTS_FILE}, beside {CONFIG_FILE}"
        )
    state_dict = load_state_dict(path)
    return _build(config, state_dict, str(path))


def save_hub_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    arch: str,
    classes: Sequence[str],
    *,
    pre_processing: PreProcessing | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model into a folder that :func:`model_from_hf_hub` loads, ready to be uploaded as it is.

    What is written has been loaded once: a folder that could not be read back is not made. Each file appears whole or
    not at all, ``config.json`` last, and other files of the folder stay.

    Args:
        model: a model of that architecture, in training form or reparameterized, also inside
            ``DistributedDataParallel`` or ``torch.compile``.
        folder: where to; made if it does not exist.
        arch: name of the builder.
        classes: name of each class, in the order of the outputs.
        pre_processing: what the images went through; by default what the builder expects.
        overwrite: replace a model that is there already.

    Returns:
        the folder

    Raises:
        ValueError: if there is no such architecture, or the classes or the preprocessing are not usable.
        CheckpointMismatchError: if the model is not of that architecture or has another number of classes.
        CheckpointError: if a weight is NaN or infinite.
        FileExistsError: if the folder has a model and ``overwrite`` is False, or is not a folder.
        OSError: if it cannot be written; what was there is then as it was.
    """
    info = get_model_info(arch)
    if isinstance(classes, str):
        raise ValueError(f"expected a sequence of class names, got the single text {classes!r}")
    if len(classes) == 0:
        raise ValueError("expected the names of the classes, got none")
    config = HubConfig(info.name, info.task, tuple(classes), pre_processing or _defaults(info))
    # Whatever a reader would refuse is refused before anything is written.
    try:
        text = config.to_json()
        HubConfig.from_json(text, "the configuration to be written")
    except (TypeError, UnicodeError) as error:
        raise ValueError(f"these classes or this preprocessing cannot be written: {error}") from error
    target = Path(folder)
    _check_target(target, overwrite)
    state_dict = strip_wrappers(
        {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    )
    _build(config, state_dict, "the model")
    _write(target, state_dict, text)
    return target


def _locate(repo_id: str | os.PathLike[str], options: dict[str, Any]) -> tuple[Path, Callable[[str], Path | None]]:
    """The folder that holds the configuration, and what finds another file of it, None if it has no such file."""
    if not isinstance(repo_id, (str, os.PathLike)):
        raise TypeError(f"expected a repository id or the path of a folder, got a {type(repo_id).__name__}")
    name = os.fspath(repo_id)
    path = Path(name).expanduser()
    if isinstance(repo_id, os.PathLike) or (name and path.is_dir()):
        if options:
            raise TypeError(f"{name} is a folder: {', '.join(sorted(options))} can only be given with a repository id")
        if not path.is_dir():
            raise ValueError(f"{name} is not a folder")
        return path, lambda file: path / file if (path / file).is_file() else None
    if not _REPO_ID.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is neither a folder nor the id of a repository, which is like owner/name")
    config = _download(name, CONFIG_FILE, options)
    if config is None:
        raise CheckpointError(f"the repository {name} has no {CONFIG_FILE}: it does not hold a model of this library")
    # The cache keeps a folder a commit: asking for the weights of that very commit keeps the two files together, even
    # if somebody pushes between the two requests.
    if config.parent.parent.name == "snapshots":
        options = {**options, "revision": config.parent.name}
    return config.parent, lambda file: _download(name, file, options)


def _download(repo_id: str, file: str, options: dict[str, Any]) -> Path | None:
    """The local copy of a file of a repository, None if the repository has no such file."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise DownloadError(
            f"{repo_id} is not a local folder, and fetching it from the Hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(hub.hf_hub_download(repo_id, file, **options))
    except TypeError:
        raise  # an option that there is not
    except Exception as error:  # its errors moved between releases and stem from several libraries: go by their names
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
            raise DownloadError(
                f"cannot fetch {file} of {repo_id}: the Hub cannot be reached, and the file is not in the cache. "
                "Download the repository where there is a network, and give the path of its folder"
            ) from error
        if "EntryNotFoundError" in kinds:
            return None
        if "RevisionNotFoundError" in kinds:
            raise DownloadError(f"{repo_id} has no revision {options.get('revision')!r}") from error
        if "RepositoryNotFoundError" in kinds:
            raise DownloadError(
                f"there is no repository {repo_id} on the Hub, or it is not public and needs a token with access to it"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(f"cannot fetch {file} of {repo_id}: {reason}") from error


def _read_config(folder: Path) -> HubConfig:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}: it is not a folder that a model was saved in")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_CONFIG_BYTES >> 20} MiB: it is not a configuration")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return HubConfig.from_json(text, str(path))


def _parse_config(text: str, source: str) -> HubConfig:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{source} holds a {type(content).__name__}, expected an object with 'arch' and 'classes'"
        )

    def bad(key: str, expected: str) -> CheckpointError:
        shown = repr(content.get(key))
        return CheckpointError(
            f"{source} has {shown if len(shown) <= 80 else shown[:77] + '...'} as {key!r}, expected {expected}"
        )

    arch = content.get("arch")
    if not isinstance(arch, str):
        raise bad("arch", "the name of a model")
    try:
        info = get_model_info(arch)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    # A file may leave out what its architecture says; null says as little.
    given = {key: value for key, value in content.items() if value is not None}
    if given.get("task", info.task) != info.task:
        raise bad("task", f"{info.task!r}, which is what {arch} does")
    default = _defaults(info)
    shape = given.get("input_shape", list(default.input_shape))
    if not _is_list(shape, 3, lambda v: _is_integer(v) and 1 <= v <= _MAX_SIDE):
        raise bad("input_shape", "channels, height and width")
    numbers = {}
    for key, test, what in (("mean", _is_finite, "numbers"), ("std", _is_positive, "numbers above 0")):
        values = given.get(key, list(getattr(default, key)))
        if not _is_list(values, shape[0], test):
            raise bad(key, f"{shape[0]} {what}, one a channel")
        numbers[key] = tuple(float(v) for v in values)
    try:
        interpolation = InterpolationMode(given.get("interpolation", default.interpolation.value))
    except ValueError:
        raise bad("interpolation", f"one of {', '.join(mode.value for mode in InterpolationMode)}") from None
    return HubConfig(
        arch=info.name,
        task=info.task,
        classes=_parse_classes(given, bad),
        pre_processing=PreProcessing(tuple(shape), numbers["mean"], numbers["std"], interpolation),  # type: ignore[arg-type]
    )


def _parse_classes(given: dict[str, Any], bad: Callable[[str, str], CheckpointError]) -> tuple[str, ...]:
    key = "classes" if "classes" in given else "labels"
    number = given.get("num_classes")
    if number is not None and not (_is_integer(number) and 1 <= number <= _MAX_CLASSES):
        raise bad("num_classes", f"an integer from 1 to {_MAX_CLASSES}")
    if key not in given:
        if number is None:
            raise bad("classes", "a list of class names, or at least their number as 'num_classes'")
        return tuple(str(i) for i in range(number))
    names = given[key]
    if not isinstance(names, list) or not 1 <= len(names) <= _MAX_CLASSES:
        raise bad(key, "a list of class names")
    if not all(isinstance(name, str) and name.strip() and _is_text(name) for name in names):
        raise bad(key, "a list of class names, none of them empty")
    if number is not None and number != len(names):
        raise bad("num_classes", f"{len(names)}, the number of names in {key!r}")
    return tuple(names)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    # An integer of hundreds of digits has no float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _is_list(values: Any, length: int, test: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and len(values) == length and all(test(value) for value in values)


def _is_text(name: str) -> bool:
    # Half of a surrogate pair is JSON, but no text that could be printed or written.
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _defaults(info: ModelInfo) -> PreProcessing:
    return PreProcessing((3, *info.input_size), info.mean, info.std, info.interpolation)


def _build(config: HubConfig, state_dict: dict[str, Tensor], source: str) -> nn.Module:
    """Build the model that a configuration names, in the form that the weights are in, and load them."""
    classes, channels = len(config.classes), config.pre_processing.input_shape[0]
    # A number that the weights cannot bear out must not decide how much memory is asked for.
    largest = max((size for value in state_dict.values() for size in value.shape), default=0)
    for what, number in (("classes", classes), ("input channels", channels)):
        if number > largest:
            raise CheckpointMismatchError(
                f"{source} cannot be a {config.arch} of {number} {what}: its largest tensor has {largest} rows"
            )
    kwargs: dict[str, Any] = {"num_classes": classes}
    parameters = inspect.signature(get_model_info(config.arch).builder).parameters
    if "pretrained_backbone" in parameters:
        kwargs["pretrained_backbone"] = False
    if channels != 3:
        kwargs["in_channels"] = channels
    try:
        model = build_model(config.arch, **kwargs).eval()
    except TypeError as error:
        raise CheckpointError(
            f"{source} has {channels} input channels, which {config.arch} cannot be built with"
        ) from error
    if is_reparametrized_form(model, state_dict):
        reparametrize(model)
    load_weights(model, state_dict, source)
    return model


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} exists and is not a folder")
    there = [name for name in (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE) if (target / name).exists()]
    if there and not overwrite:
        raise FileExistsError(f"{target} has {' and '.join(there)} already: pass overwrite=True to replace the model")


def _write(target: Path, state_dict: dict[str, Tensor], config: str) -> None:
    """Write both files under other names, and give them their own once both are whole on the disk."""
    from safetensors.torch import save_file

    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _temporary(target) as weights_path, _temporary(target) as config_path:
            try:
                save_file(state_dict, weights_path, metadata={"format": "pt"})
            except OSError:
                raise
            except Exception as error:  # the writer is compiled and has an error type of its own
                raise OSError(f"cannot write {target / WEIGHTS_FILE}: {error}") from error
            config_path.write_text(config, encoding="utf-8")
            for path in (weights_path, config_path):
                _settle(path)
            weights_path.replace(target / WEIGHTS_FILE)
            config_path.replace(target / CONFIG_FILE)
            # Readers prefer the new file, but two sets of weights in one folder are a trap.
            (target / OLD_WEIGHTS_FILE).unlink(missing_ok=True)
    except BaseException:
        with contextlib.suppress(OSError):  # only what is still empty goes
            for folder in made:
                folder.rmdir()
        raise


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Put a file on the disk, as readable as any file of its owner: temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
