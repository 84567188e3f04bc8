"""INT8 that earns its speed: the graph of `--tune` against float32 and against INT8 everywhere, side by side.

Every network is exported with random weights, whose speed is that of trained ones, and its INT8 graph tuned for each
backend. Then the three graphs run in turn, one thread, batch 1, in one process; `never slower` compares the tuned one
with the faster of the other two. The times that are printed are of this last run, which chose nothing.

python benchmarks/int8_tune.py [--arch mobileone_s1] [--backend onnxruntime] [--rounds 60] [--seconds 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from common import machine

from export import export_model
from export.quantize.mixed import keep_float, layer_names
from export.quantize.timing import GraphTimer, tune_graph
from export.quantize.tune import latency
from runtime.backends import unavailable
from runtime.table import format_table

ARCHITECTURES = ("mobileone_s0", "mobileone_s1", "mobileone_s2", "mobileone_s3")
BACKENDS = ("onnxruntime", "openvino")
HEADERS = (
    "network",
    "backend",
    "float layers",
    "float32 ms",
    "INT8 ms",
    "tuned ms",
    "× float32",
    "× faster of both",
    "never slower",
    "search s",
)
TOLERANCE = 0.01
"""Medians of one graph that is timed twice differ by as much."""


@dataclass(frozen=True)
class Row:
    """One network on one backend; milliseconds."""

    arch: str
    backend: str
    kept_float: int
    layers: int
    float_ms: float
    int8_ms: float
    tuned_ms: float
    against_float: float
    against_faster: float
    never_slower: bool
    search_seconds: float


def measure(arch: str, backend: str, graphs: tuple[onnx.ModelProto, onnx.ModelProto], args: argparse.Namespace) -> Row:
    """Tune one network for one backend, then time the three graphs."""
    model, quantized = graphs
    started = time.perf_counter()
    found = tune_graph(quantized, model, "cpu", backend, threads=1, seconds=args.seconds)
    searched = time.perf_counter() - started
    names = layer_names(model)
    choices = [frozenset(names), frozenset(), frozenset(found.kept_float)]
    clock = time.perf_counter if args.wall else None

    def make(kept: frozenset[str]) -> bytes:
        return keep_float(quantized, model, "cpu", kept).SerializeToString()

    timer = GraphTimer(make, backend, 1, clock=clock)
    try:
        # A choice that is one of the others is timed again all the same: it shows the noise.
        rounds = timer(choices, args.rounds)
    finally:
        timer.close()
    floating, int8, tuned = rounds
    faster = floating if latency(floating) <= latency(int8) else int8
    return Row(
        arch=arch,
        backend=backend,
        kept_float=len(found.kept_float),
        layers=len(names),
        float_ms=1e3 * latency(floating),
        int8_ms=1e3 * latency(int8),
        tuned_ms=1e3 * latency(tuned),
        against_float=statistics.median(a / b for a, b in zip(floating, tuned, strict=True)),
        against_faster=statistics.median(a / b for a, b in zip(faster, tuned, strict=True)),
        never_slower=latency(tuned) <= latency(faster) * (1 + TOLERANCE),
        search_seconds=searched,
    )


def load(bundle: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float and the INT8 graph of a bundle."""
    return onnx.load(bundle / "model.onnx"), onnx.load(bundle / "model.int8.cpu.onnx")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="may be repeated; by default MobileOne-S0 to S3")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be repeated; by default those here")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60.0, help="of searching, for each network and backend")
    parser.add_argument("--wall", action="store_true", help="time by the wall instead of the processor's time")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    backends = args.backend or [name for name in BACKENDS if unavailable(name) is None]
    rows = []
    for arch in args.arch or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            graphs = load(export_model(arch, Path(folder, arch), weights="none", int8=True, effort="fast").bundle)
        rows += [measure(arch, backend, graphs, args) for backend in backends]
    if args.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
        return
    print(f"{machine()}; 1 thread, {args.rounds} rounds, {'wall' if args.wall else 'processor'} time\n")
    print(format_table(HEADERS, [cells(row) for row in rows]))


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        row.arch,
        row.backend,
        f"{row.kept_float} of {row.layers}",
        f"{row.float_ms:.2f}",
        f"{row.int8_ms:.2f}",
        f"{row.tuned_ms:.2f}",
        f"{row.against_float:.2f}",
        f"{row.against_faster:.2f}",
        "yes" if row.never_slower else "NO",
        f"{row.search_seconds:.0f}",
    ]


if __name__ == "__main__":
    main()
