"""Measure every model of the registry, and write the table: `docs/zoo.md`, `docs/zoo.csv` and `docs/zoo.svg`.

    python -m tools.zoo [--only NAME ...] [--limit N] [--backend onnxruntime|openvino] [--json]

Two processes export and build engines side by side; latencies are taken afterwards, one network at a time on one core.
Whatever is interrupted goes on where it stopped, and what has not changed is not done again. With `--only` or `--limit`
the table is printed, and the files in `docs/` stay as they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import machine
from holocron import models
from runtime.backends import available_backends

from .cache import Cache
from .chart import to_svg
from .measure import ROOT, calls_for, count_parameters
from .row import Row, to_csv, to_markdown
from .run import Zoo, say


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=models.list_models(), metavar="NAME", help="these models alone")
    parser.add_argument("--limit", type=int, metavar="N", help="the N smallest")
    parser.add_argument("--backend", choices=available_backends(), default=None, help="what the latencies are of")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "zoo", help="what is known already")
    parser.add_argument("--output", type=Path, help="folder of the table; docs/ for all models, nowhere for some")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit {args.limit}: expected 1 at least")
    sizes = {arch: count_parameters(arch) for arch in args.only or models.list_models()}
    archs = sorted(sizes, key=lambda arch: (sizes[arch], arch))[: args.limit]
    backend = args.backend or available_backends()[0]
    rows = Zoo(Cache(args.cache), backend, sizes).measure(archs)
    everything = args.only is None and args.limit is None
    output = args.output or (ROOT / "docs" if everything else None)
    if output is not None:
        write(rows, output, backend)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif output is None:
        print(to_markdown(rows, "Models", []))


def write(rows: Sequence[Row], folder: Path, backend: str) -> None:
    """Write the table in its three forms."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    notes = [
        f"{machine()}; {backend}, one thread on one core, one image, medians of {calls_for(None)} calls, of large "
        f"networks fewer; {today}. Written by `make zoo`; every figure in full is in [`zoo.csv`](zoo.csv).",
        "Weights are random, so latency, size and agreement mean something here, and accuracy does not. Parameters are "
        "those of the network as it is trained; multiply-accumulates, size and latency are those of the exported "
        "graph, in which branches and normalization are folded. The relative error is ‖ONNX − PyTorch‖ / ‖PyTorch‖ "
        "on photographs. RTX says whether TensorRT-RTX builds an engine from the graph.",
        "![Latency against parameters](zoo.svg)",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zoo.md").write_text(to_markdown(rows, "Models", notes), encoding="utf-8")
    (folder / "zoo.csv").write_text(to_csv(rows), encoding="utf-8")
    (folder / "zoo.svg").write_text(to_svg(rows, f"Latency of one image, {backend}, one thread"), encoding="utf-8")
    incomplete = sum(row.error is not None for row in rows)
    say(f"wrote {folder / 'zoo.md'}, zoo.csv and zoo.svg: {len(rows)} models, {incomplete} with something missing")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted: run the same command again to go on from here")
        sys.exit(130)
