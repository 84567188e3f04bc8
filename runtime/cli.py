"""`holocron-run` classifies or segments images with a bundle, `holocron-bench` times it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from .backends import BACKENDS
from .bench import BenchRow, benchmark
from .cli_errors import USAGE, OneLineCommand, print_error
from .detections import Detections
from .errors import BackendError, BundleError, HolocronError, ImageError
from .images import list_images, open_image
from .model import Model, load
from .results import Segmentation
from .stream import StreamAnswer, split_threads
from .table import format_table
from .tasks import Result, TaskBehaviour, task_behaviour

_FOLDER = click.Path(path_type=Path, file_okay=False)
_PRECISIONS = ("fp32", "fp16", "int8", "int8.cpu", "int8.trt")


@click.command(cls=OneLineCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option(
    "--top", type=click.IntRange(1), help="Classes to print for each image; by default the likeliest, or all."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object an image.")
@click.option("--save", type=_FOLDER, help="Folder for each image's class map, or its boxes drawn on it.")
@click.option("--precision", type=click.Choice(_PRECISIONS), help="By default the best that suits the backend.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="By default the best that is installed.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Processor threads in all; by default the physical cores."
)
@click.option("--device", help="cpu, cuda:1, or a device of OpenVINO.")
@click.option(
    "--rebuild", is_flag=True, help="Build an engine where the bundle has none for this machine; takes minutes."
)
@click.option("--fast-decode", is_flag=True, help="Decode JPEG files at a fraction of their size, less exactly.")
def run(
    bundle: Path,
    images: tuple[Path, ...],
    top: int | None,
    as_json: bool,
    save: Path | None,
    precision: str | None,
    backend: str | None,
    threads: int | None,
    device: str | None,
    rebuild: bool,
    fast_decode: bool,
) -> int:
    """Classify, segment or find objects in each IMAGE with BUNDLE. A folder stands for the images in it, sorted.

    Of a classifier the likeliest class is printed, of a segmenter the share of the pixels that each class has, of a
    detector every object. An image that cannot be taken is reported on stderr, the others are still answered, and the
    exit code is 2.

    Several images are worked on at once, as many as there are threads.
    """
    files = _listed(images)
    workers, threads_of_each = split_threads(threads, len(files))
    with load(
        bundle,
        precision,
        backend,
        threads_of_each,
        device,
        fast_decode=fast_decode,
        concurrency=workers,
        rebuild=rebuild,
    ) as model:
        behaviour = task_behaviour(model.manifest)
        saver = None if save is None else _Saver(save, model)
        top = top or behaviour.default_top
        answers = list(_answers(model, files, workers, top, saver))
    if as_json:
        click.echo(json.dumps(answers, indent=2, ensure_ascii=False))
    else:
        _print_answers(answers, behaviour)
    return USAGE if any("error" in answer for answer in answers) else 0


class _Saver:
    """Writes class maps, or images with boxes drawn on them, into a folder, each under the name of its image, with a
    number where two have the same.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        if model.task == "classification":
            raise BundleError(
                f"--save writes class maps and boxes, which a bundle for {model.task} does not give: leave it out"
            )
        self._folder, self._taken = folder, set[str]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ImageError(f"cannot make the folder {folder}: {e.strerror or e}") from e

    def __call__(self, image: Path, result: Result) -> str:
        assert isinstance(result, (Segmentation, Detections))
        name, number = image.stem, 1
        while name in self._taken:
            name, number = f"{image.stem}-{number}", number + 1
        self._taken.add(name)
        path = self._folder / f"{name}.png"
        try:
            (result.image() if isinstance(result, Segmentation) else result.draw(open_image(image))).save(path)
        except OSError as e:
            raise ImageError(f"cannot write {path}: {e.strerror or e}") from e
        return str(path)


@dataclass(frozen=True)
class _Listed:
    """One image of the command line, or what is wrong with a folder that stands for several."""

    path: Path
    error: ImageError | None = None


def _listed(images: tuple[Path, ...]) -> list[_Listed]:
    """The images of the command line, those of its folders included."""
    return [file for image in images for file in (_files_of(image) if image.is_dir() else [_Listed(image)])]


def _files_of(folder: Path) -> list[_Listed]:
    try:
        return [_Listed(path) for path in list_images(folder)]
    except ImageError as e:
        return [_Listed(folder, e)]


def _answers(
    model: Model, files: list[_Listed], workers: int, top: int | None, saver: _Saver | None
) -> Iterator[dict[str, Any]]:
    """What the model says of each image, in order; an error takes the answer's place."""
    answers = model.stream((file.path for file in files if file.error is None), workers)
    for file in files:
        yield _entry(file, answers, top, saver)


def _entry(file: _Listed, answers: Iterator[StreamAnswer], top: int | None, saver: _Saver | None) -> dict[str, Any]:
    try:
        if file.error is not None:
            raise file.error
        result = next(answers).get()
        saved = {} if saver is None else {"saved": saver(file.path, result)}
        for remark in result.remarks if isinstance(result, Detections) else ():
            click.echo(f"warning: {file.path}: {remark}", err=True)
        return {"image": str(file.path), **result.to_dict(top), **saved}
    except ImageError as e:
        print_error(str(e))
        return {"image": str(file.path), "error": str(e)}


def _print_answers(answers: list[dict[str, Any]], behaviour: TaskBehaviour) -> None:
    rows = [
        (answer["image"] if rank == 0 else "", entry["label"], f"{entry[behaviour.figure]:.4f}")
        for answer in answers
        for rank, entry in enumerate(answer.get(behaviour.listing, ()))
    ]
    if rows:
        click.echo(format_table(("image", "label", behaviour.figure), rows))


@click.command(cls=OneLineCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", "precisions", multiple=True, type=click.Choice(_PRECISIONS), help="Repeatable.")
@click.option("--backend", "backends", multiple=True, type=click.Choice(list(BACKENDS)), help="Repeatable.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Images a call.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Processor threads; by default the physical cores.")
@click.option("--iterations", default=100, show_default=True, type=click.IntRange(1), help="Calls to time.")
@click.option("--warmup", default=10, show_default=True, type=click.IntRange(0), help="Calls before that.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object a row.")
def bench(
    bundle: Path,
    precisions: tuple[str, ...],
    backends: tuple[str, ...],
    batch: int,
    threads: int | None,
    iterations: int,
    warmup: int,
    as_json: bool,
) -> int:
    """Time BUNDLE: by default each precision that it has, on each backend that is installed and that it suits.

    What is timed is the network alone, without reading and preprocessing images. Memory is the peak of the process.
    A combination that fails is reported on stderr, the others are still timed, and the exit code is 2.
    """
    failed: list[str] = []

    def report(precision: str, backend: str, error: HolocronError) -> None:
        failed.append(backend)
        print_error(f"{precision} on {backend}: {error}".lstrip())

    rows = benchmark(bundle, precisions or None, backends or None, batch, threads, iterations, warmup, on_error=report)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif rows:
        click.echo(format_table(_HEADERS, map(_cells, rows)))
    elif not failed:
        raise BackendError(f"{bundle} has no precision that suits a backend installed here: choose with --precision")
    return USAGE if failed else 0


_HEADERS = ("precision", "backend", "device", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak MiB")


def _cells(row: BenchRow) -> tuple[object, ...]:
    return (
        row.precision,
        row.backend,
        row.device,
        row.threads,
        row.batch,
        f"{row.p50_ms:.2f}",
        f"{row.p90_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.images_per_second:.1f}",
        f"{row.peak_memory_mb:.0f}",
    )
