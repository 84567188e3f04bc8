"""What quantizing RepVGG-A0 at 224×224 costs: seconds and peak memory, ours beside ONNX Runtime's calibrators.

    python benchmarks/quantization_cost.py [--few 64] [--many 256] [--tool "ours fast"]... [--json]

Each runs in a process of its own, on crops of scikit-image's photographs, and makes one graph of the scheme `cpu` from
the same float32 graph. Peaks are those of the whole process, the libraries in it. ONNX Runtime's histogram calibrators
keep every activation of every image: their peak grows with the images.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

from runtime.table import format_table

SIZE = (224, 224)
TOOLS = ("ours fast", "ours normal", "onnxruntime MinMax", "onnxruntime Entropy", "onnxruntime Percentile")


def write_network(path: Path) -> None:
    """Export RepVGG-A0 with random weights to float32 ONNX."""
    import onnx
    import torch
    from torch import nn

    from export.trace import trace
    from holocron.models import repvgg_a0

    torch.manual_seed(0)
    model = repvgg_a0(pretrained=False).eval()
    with torch.no_grad():  # statistics such that activations keep their scale through the layers
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()
        model(torch.rand(8, 3, *SIZE))
        model.eval()
    model.reparametrize()
    onnx.save(trace(model, SIZE), path)


def write_images(folder: Path, count: int) -> None:
    """Write different crops of scikit-image's photographs."""
    import numpy as np
    import skimage.data
    from PIL import Image

    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "cat", "coffee", "rocket")]
    rng = np.random.default_rng(0)
    for i in range(count):
        photograph = photographs[i % len(photographs)].convert("RGB")
        side = int(rng.integers(120, 300))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
        photograph.crop((left, top, left + side, top + side)).save(folder / f"{i:04}.jpg", quality=90)


def quantize_here(tool: str, network: Path, folder: Path, count: int, threads: int) -> None:
    """Quantize with one tool, and print the seconds and the peak of this process as JSON."""
    import onnx

    from calib import ImageStream, find_images
    from runtime.manifest import Preprocessing

    preprocessing = Preprocessing(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = find_images(folder)[:count]
    name, _, setting = tool.partition(" ")
    if name == "ours":
        import torch

        from export.quantize.optimize import quantize_calibrated

        torch.set_num_threads(threads)
        model = onnx.load(network)
        before = peak_megabytes()
        start = time.perf_counter()
        quantize_calibrated(model, images, preprocessing, "cpu", effort=setting)
    else:
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static

        class Reader(CalibrationDataReader):
            """The images one by one, as ONNX Runtime's quantizer asks for them."""

            def __init__(self) -> None:
                self.batches = iter(ImageStream(images, preprocessing, 1))

            def get_next(self) -> dict | None:
                """The next image, None after the last."""
                batch = next(self.batches, None)
                return None if batch is None else {"input": batch}

        before = peak_megabytes()
        start = time.perf_counter()
        quantize_static(
            str(network),
            str(folder.parent / "ort.onnx"),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=getattr(CalibrationMethod, setting),
        )
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak_megabytes(), "before": before}))


def peak_megabytes() -> float:
    """Peak resident memory of this process since it began, in 10⁶ bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, it does not count what the parent had when it started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _subprocess(*arguments: object) -> str:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=64, metavar="N", help="images of the reference")
    parser.add_argument("--many", type=int, default=256, metavar="N", help="images of the comparison")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="processor threads of ours")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="may be repeated; by default all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        write_network(options.prepare / "model.onnx")
        (options.prepare / "images").mkdir()
        write_images(options.prepare / "images", options.many)
        return
    if options.measure:
        (tool,), folder = options.tool, options.measure
        quantize_here(tool, folder / "model.onnx", folder / "images", options.many, options.threads)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _subprocess("--prepare", folder, "--many", options.many)
        for tool in options.tool or TOOLS:
            few, many = (
                json.loads(
                    _subprocess(
                        *("--measure", folder, "--tool", tool, "--many", count, "--threads", options.threads)
                    ).splitlines()[-1]
                )
                for count in (options.few, options.many)
            )
            rows.append({"tool": tool, "few": few, "many": many})
            print(f"{tool}: {many['seconds']:.0f} s, {many['peak']:.0f} MB", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"machine": machine(), "few": options.few, "many": options.many, "rows": rows}))
        return
    print(f"{machine()}; RepVGG-A0 {SIZE[0]}×{SIZE[1]}, scheme cpu, {options.threads} threads\n")
    headers = (
        "tool",
        f"seconds, {options.many} images",
        *(f"peak MB, {n} images" for n in (options.few, options.many)),
    )
    table = [
        [r["tool"], f"{r['many']['seconds']:.0f}", f"{r['few']['peak']:.0f}", f"{r['many']['peak']:.0f}"] for r in rows
    ]
    print(format_table(headers, table))


if __name__ == "__main__":
    main()
