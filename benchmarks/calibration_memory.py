"""Peak memory of calibrating RepVGG-A0 at 224×224 on many images, against few.

    python benchmarks/calibration_memory.py [--few 32] [--many 512] [--method mse]...

Each calibration runs in a process of its own, on crops of scikit-image's photographs. Two peaks are shown: that of the
whole process, which opening the network may set, and that of the time after the first batch, where memory that grows
with the images would show. Exits with 1 if either is more than the bound above its reference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = (224, 224)
BOUND_MB = 64.0


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


def calibrate_here(network: Path, folder: Path, count: int, method: str) -> None:
    """Calibrate, and print the seconds and the peaks of this process as JSON."""
    import onnx

    from calib import find_images
    from export.quantize import calibrate
    from runtime.manifest import Preprocessing

    preprocessing = Preprocessing(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = find_images(folder)[:count]
    model = onnx.load(network)
    before = 0.0

    def after_batch(done: int, total: int | None) -> None:
        nonlocal before
        if done == 1:
            before = peak_megabytes()
            reset_peak()

    start = time.perf_counter()
    cache = calibrate(model, images, preprocessing, method, after_batch)
    seconds = time.perf_counter() - start
    running = peak_megabytes()
    if cache.image_count != count:
        raise SystemExit(f"read {cache.image_count} images of {count}")
    print(json.dumps({"seconds": seconds, "process": max(before, running), "running": running}))


def reset_peak() -> None:
    """Let the peak start anew from what is resident now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Peak resident memory of this process since it began, or since the latest :func:`reset_peak`."""
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


def main() -> int:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=32, metavar="N", help="images of the reference")
    parser.add_argument("--many", type=int, default=512, metavar="N", help="images of the comparison")
    parser.add_argument("--method", action="append", choices=("minmax", "percentile", "entropy", "mse"))
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    methods = options.method or ["minmax", "percentile", "entropy", "mse"]
    if options.prepare:
        write_network(options.prepare / "model.onnx")
        (options.prepare / "images").mkdir()
        write_images(options.prepare / "images", options.many)
        return 0
    if options.measure:
        calibrate_here(options.measure / "model.onnx", options.measure / "images", options.many, methods[0])
        return 0

    print(f"RepVGG-A0 {SIZE[0]}×{SIZE[1]}, {platform.machine()}, Python {platform.python_version()}")
    print("peak memory, MB, of the process and (after the first batch)")
    print(f"{'method':12}{f'{options.few} images':>20}{f'{options.many} images':>20}{'more':>20}{'ms/image':>10}")
    worst = float("-inf")
    with tempfile.TemporaryDirectory() as folder:
        _subprocess("--prepare", folder, "--many", options.many)
        for method in methods:
            few, many = (
                json.loads(_subprocess("--measure", folder, "--method", method, "--many", count))
                for count in (options.few, options.many)
            )
            more = {key: many[key] - few[key] for key in ("process", "running")}
            worst = max(worst, *more.values())
            each = 1e3 * (many["seconds"] - few["seconds"]) / max(options.many - options.few, 1)
            columns = [f"{row['process']:.1f} ({row['running']:.1f})" for row in (few, many)]
            columns.append(f"{more['process']:+.1f} ({more['running']:+.1f})")
            print(f"{method:12}" + "".join(f"{column:>20}" for column in columns) + f"{each:>10.1f}", flush=True)
    print(f"bound: {BOUND_MB:.0f} MB more; {'kept' if worst <= BOUND_MB else 'exceeded'}")
    return int(worst > BOUND_MB)


if __name__ == "__main__":
    sys.exit(main())
