"""Eager forward passes of ResNet-50 and ConvNeXt-Tiny against torchvision's own: batch 8, 224 px, in one process.

    python benchmarks/eager_forward.py [--rounds 30] [--batch 8] [--size 224] [--threads N] [--json]

Both have 1000 classes and are in evaluation mode; the calls alternate, and the ratio is the median of the ratios of
neighbouring calls, so that whatever else the machine does slows both. Bound: within 3 % of torchvision's.
"""

from __future__ import annotations

import argparse
import json

import torch
import torchvision
from common import machine, medians, ratio, side_by_side

from holocron import models
from runtime.table import format_table

ARCHS = ("resnet50", "convnext_tiny")
BOUND = 1.03
CLASSES = 1000


def measure(arch: str, images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Time one architecture beside torchvision's.

    Args:
        arch: name of the builder, here and there
        images: batch (N, 3, H, W)
        rounds: how often each is timed

    Returns:
        median milliseconds of both, and how many times longer ours takes
    """
    ours = models.build_model(arch, num_classes=CLASSES).eval()
    theirs = torchvision.models.get_model(arch, num_classes=CLASSES).eval()
    with torch.inference_mode():
        calls = {"ours": lambda: ours(images), "torchvision": lambda: theirs(images)}
        seconds = side_by_side(calls, rounds, warmup=3)
    milliseconds = {f"{name}_ms": 1e3 * value for name, value in medians(seconds).items()}
    return {**milliseconds, "ratio": ratio(seconds, "ours", "torchvision")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=ARCHS, help="this one alone")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size)
    archs = [args.only] if args.only else ARCHS
    results = {arch: measure(arch, images, args.rounds) for arch in archs}
    if args.json:
        print(json.dumps({"machine": machine(), "threads": args.threads, "forward": results}))
        return
    print(
        f"{machine()}; torch {torch.__version__}, torchvision {torchvision.__version__}, {args.threads} thread(s), "
        f"{tuple(images.shape)}, medians of {args.rounds} rounds\n"
    )
    rows = [
        [
            arch,
            f"{result['ours_ms']:.1f}",
            f"{result['torchvision_ms']:.1f}",
            f"{100 * (result['ratio'] - 1):+.1f} %",
            f"{'within' if result['ratio'] <= BOUND else 'ABOVE'} {100 * (BOUND - 1):.0f} %",
        ]
        for arch, result in results.items()
    ]
    print(format_table(["arch", "ours, ms", "torchvision, ms", "ours takes longer by", "bound"], rows))


if __name__ == "__main__":
    main()
