"""One step of every optimizer against `torch.optim.AdamW(foreach=True)`, on a CPU and in one process.

    python benchmarks/optimizer_step.py [--tensors 200] [--elements 10000] [--threads 1] [--rounds 60] [--json FILE]

The steps alternate, AdamW first, so that whatever else the machine does slows all of them; the times are medians, and
the ratios are medians over the rounds. "plain" is the same optimizer with `foreach=False`. `AdamP, projecting` has a
threshold that makes it project every tensor, its worst case. Bound: AdaBelief, AdamP, Adan and LAMB within 2.5 × AdamW.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, medians, ratio, side_by_side
from torch import nn
from torch.optim import Optimizer

from holocron import optim

BASELINE = "torch AdamW"
BOUND = 2.5
BOUNDED = ("AdaBelief", "AdamP", "Adan", "LAMB")
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "LARS": (optim.LARS, {"momentum": 0.9}),
    "LAMB": (optim.LAMB, {}),
    "RaLars": (optim.RaLars, {}),
    "TAdam": (optim.TAdam, {}),
    "AdaBelief": (optim.AdaBelief, {}),
    "AdamP": (optim.AdamP, {}),
    "AdamP, projecting": (optim.AdamP, {"delta": 1e9}),
    "Adan": (optim.Adan, {}),
    "AdEMAMix": (optim.AdEMAMix, {}),
    "Lookahead(AdaBelief)": (lambda groups: optim.wrapper.Lookahead(optim.AdaBelief(groups)), {}),
    "Scout(AdaBelief)": (lambda groups: optim.wrapper.Scout(optim.AdaBelief(groups)), {}),
}


def make_params(tensors: int, elements: int) -> list[nn.Parameter]:
    """Parameters and gradients of the usual sizes."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(elements) / elements**0.5) for _ in range(tensors)]
    for param in params:
        param.grad = torch.randn(elements) / elements
    return params


def measure(name: str, tensors: int, elements: int, rounds: int) -> dict[str, float]:
    """Time one optimizer, by lists and plain, next to AdamW."""
    optimizer_class, options = OPTIMIZERS[name]
    steps = {BASELINE: torch.optim.AdamW(make_params(tensors, elements), foreach=True).step}
    for key, foreach in (("foreach", None), ("plain", False)):
        group = {"params": make_params(tensors, elements), "foreach": foreach, "weight_decay": 1e-2}
        steps[key] = optimizer_class([group], **options).step
    seconds = side_by_side(steps, rounds)
    middle = medians(seconds)
    return {
        "adamw_ms": middle[BASELINE] * 1e3,
        "ms": middle["foreach"] * 1e3,
        "plain_ms": middle["plain"] * 1e3,
        "ratio": ratio(seconds, "foreach", BASELINE),
        "plain_ratio": ratio(seconds, "plain", BASELINE),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="One step of every optimizer against AdamW.")
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--elements", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", choices=list(OPTIMIZERS), action="append", help="measure this one; may be repeated")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print(f"{machine()}, torch {torch.__version__}, {arguments.threads} thread(s)")
    print(f"{arguments.tensors} tensors of {arguments.elements} float32, weight decay, {arguments.rounds} rounds\n")
    print(f"{'':20s} {'AdamW':>9s} {'foreach':>9s} {'plain':>9s} {'foreach':>10s} {'plain':>10s}")
    results = {}
    for name in arguments.only or OPTIMIZERS:
        result = measure(name, arguments.tensors, arguments.elements, arguments.rounds)
        results[name] = result
        verdict = "" if name not in BOUNDED else "  within" if result["ratio"] <= BOUND else "  ABOVE"
        print(
            f"{name:20s} {result['adamw_ms']:6.2f} ms {result['ms']:6.2f} ms {result['plain_ms']:6.2f} ms"
            f" {result['ratio']:8.2f} × {result['plain_ratio']:8.2f} ×{verdict + f' {BOUND} ×' if verdict else ''}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "steps": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
