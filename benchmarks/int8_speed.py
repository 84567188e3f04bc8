"""INT8 against float32, and OpenVINO against ONNX Runtime, one thread, batch 1, side by side in one process.

python benchmarks/int8_speed.py [--arch repvgg_a0] [--bundle DIR] [--rounds 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from common import machine, medians, ratio, side_by_side

from export import export_model
from runtime import load
from runtime.table import format_table

PAIRS = [
    ("onnxruntime fp32", "onnxruntime int8.cpu", "INT8 against float32, ONNX Runtime"),
    ("openvino fp32", "openvino int8.cpu", "INT8 against float32, OpenVINO"),
    ("onnxruntime int8.cpu", "openvino int8.cpu", "OpenVINO against ONNX Runtime, INT8"),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="repvgg_a0")
    parser.add_argument("--bundle", type=Path, help="an existing bundle with INT8; else one of random weights is made")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = (
            args.bundle
            or export_model(args.arch, Path(folder, args.arch), weights="none", int8=True, effort="fast").bundle
        )
        models = {
            f"{backend} {precision}": load(bundle, precision, backend, threads=1)
            for backend in ("onnxruntime", "openvino")
            for precision in ("fp32", "int8.cpu")
        }
        shape = (1, 3, *next(iter(models.values())).manifest.preprocessing.size)
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        seconds = side_by_side({name: lambda m=m: m.session.run(x) for name, m in models.items()}, args.rounds)
    median = medians(seconds)
    ratios = {title: ratio(seconds, slower, faster) for slower, faster, title in PAIRS}
    if args.json:
        milliseconds = {name: 1e3 * value for name, value in median.items()}
        print(json.dumps({"machine": machine(), "median_ms": milliseconds, "ratios": ratios}))
        return
    print(f"{machine()}; {args.arch} {shape}, 1 thread, medians of {args.rounds} rounds\n")
    print(format_table(["network", "median ms"], [[name, f"{1e3 * value:.2f}"] for name, value in median.items()]))
    print()
    print(format_table(["comparison", "times faster"], [[title, f"{value:.2f}"] for title, value in ratios.items()]))


if __name__ == "__main__":
    main()
