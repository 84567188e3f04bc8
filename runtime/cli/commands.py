"""`holocron-run` answers images and videos with a bundle, `holocron-bench` times it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..backends import BACKENDS
from ..bench import BenchRow, benchmark
from ..errors import BackendError, HolocronError
from ..model import Model, load
from ..stream import split_threads
from ..table import TableLines, format_table
from ..tasks import TaskBehaviour, task_behaviour
from ..video.readers import VideoSource
from .answers import Answering, Entry
from .errors import USAGE, OneLineCommand, print_error
from .save import SaveFolder
from .sources import Source, camera_source, list_sources

_FOLDER = click.Path(path_type=Path, file_okay=False)
_PRECISIONS = ("fp32", "fp16", "int8", "int8.cpu", "int8.trt")
_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # it prints errors on top of ours
_WIDEST = 40  # column that is kept free for names and labels not seen yet
_BOX = 23  # of four numbers with three digits before the point


@click.command(cls=OneLineCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, metavar="IMAGE...", type=click.Path())
@click.option(
    "--camera",
    callback=camera_source,
    metavar="CAMERA",
    help="Answer a camera's frames, too: its number or /dev/videoN.",
)
@click.option("--frames", type=click.IntRange(1), metavar="N", help="Frames of each video to answer; by default all.")
@click.option(
    "--every",
    type=click.IntRange(1),
    metavar="N",
    help="Answer each N-th frame of a video, from the first; by default each.",
)
@click.option(
    "--top", type=click.IntRange(1), help="Classes to print for each image; by default the likeliest, or all."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one object an image; of videos JSON Lines.")
@click.option("--save", type=_FOLDER, help="Folder for class maps, images with their boxes, and annotated videos.")
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
    images: tuple[str, ...],
    camera: VideoSource | None,
    frames: int | None,
    every: int | None,
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
    """Classify, segment or find objects in each IMAGE with BUNDLE. A folder stands for the images in it, sorted. An
    IMAGE may also be a video: a file such as ride.mp4, or an address such as rtsp://host/stream.

    Of a classifier the likeliest class is printed, of a segmenter the share of the pixels that each class has, of a
    detector every object. An image that cannot be taken is reported on stderr, the others are still answered, and the
    exit code is 2.

    Where there is a video, each answer is printed once it is there: a row with the frame's number and its time in
    seconds, or with --json an object a line. Of a live source slower answers than frames leave frames out, and it is
    an error that it ends; Ctrl-C or SIGTERM ends it with the exit code 130.

    --save writes a video as FOLDER/ride.mp4, which appears when it is finished. An interrupt or an error finishes it,
    too, with the frames until then.

    Several images are worked on at once, as many as there are threads.
    """
    sources = list_sources(images, camera)
    has_video = any(isinstance(source, VideoSource) for source in sources)
    _check_usage(sources, has_video, frames, every)
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    workers, threads_of_each = split_threads(threads, None if has_video else len(sources))
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
        saver = None if save is None else SaveFolder(save, model, sources)
        answering = Answering(model, workers, top or behaviour.default_top, saver, frames, every or 1)
        failed = False
        with closing(answering.entries(sources)) as entries:
            if has_video:
                echo = _line_printer(model, behaviour, sources, as_json)
                for entry in entries:
                    echo(entry)
                    failed = failed or "error" in entry
            else:
                answers = list(entries)
                _print_list(answers, behaviour, as_json)
                failed = any("error" in answer for answer in answers)
    return USAGE if failed else 0


def _check_usage(sources: Sequence[Source], has_video: bool, frames: int | None, every: int | None) -> None:
    if not sources:
        raise click.UsageError("Missing argument 'IMAGE...': give an image, a folder or a video, or --camera")
    for option, value in (("--frames", frames), ("--every", every)):
        if value is not None and not has_video:
            raise click.UsageError(f"{option} is for videos and cameras, and there is none: leave it out")


def _print_list(answers: Sequence[Entry], behaviour: TaskBehaviour, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answers, indent=2, ensure_ascii=False))
        return
    rows = [
        (answer["image"] if rank == 0 else "", *_cells_of(entry, behaviour))
        for answer in answers
        for rank, entry in enumerate(answer.get(behaviour.listing, ()))
    ]
    if rows:
        place = () if behaviour.place is None else (behaviour.place,)
        click.echo(format_table(("image", "label", behaviour.figure, *place), rows))


def _cells_of(entry: Mapping[str, Any], behaviour: TaskBehaviour) -> tuple[str, ...]:
    """What a table says of a class or an object that an answer lists."""
    found = (entry["label"], f"{entry[behaviour.figure]:.4f}")
    if behaviour.place is None:
        return found
    return (*found, " ".join(f"{value:.1f}" for value in entry[behaviour.place]))


def _line_printer(
    model: Model, behaviour: TaskBehaviour, sources: Sequence[Source], as_json: bool
) -> Callable[[Entry], None]:
    """What prints an answer once it is there, and keeps nothing of it."""
    if as_json:
        return lambda entry: click.echo(json.dumps(entry, ensure_ascii=False))
    table = TableLines(
        (
            ("source", min(_WIDEST, max(len(source.name) for source in sources)), False),
            ("frame", 6, True),
            ("time", 8, True),
            ("label", min(_WIDEST, max(map(len, model.labels))), False),
            (behaviour.figure, 6, True),
            *([] if behaviour.place is None else [(behaviour.place, _BOX, False)]),
        )
    )
    click.echo(table.head())

    def echo_rows(entry: Entry) -> None:
        time = f"{entry['time']:.3f}" if "time" in entry else None
        where: tuple[object, ...] = (entry.get("source", entry.get("image")), entry.get("frame"), time)
        for found in entry.get(behaviour.listing, ()):
            click.echo(table.row((*where, *_cells_of(found, behaviour))))
            where = (None, None, None)

    return echo_rows


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
