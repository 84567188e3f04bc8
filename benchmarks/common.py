"""What the benchmarks share: naming the machine, and timing several things side by side."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")


def machine() -> str:
    """The processor, its cores, and the INT8 instructions that it has."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
    found = [flag for flag in INT8_FLAGS if flag in flags]
    vector = next((flag for flag in ("avx512f", "avx2", "asimd") if flag in flags), "no vector instructions")
    return f"{name}, {os.cpu_count()} cores, {vector}, INT8 dot products: {', '.join(found) or 'none'}"


def side_by_side(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 5, calls: int = 1
) -> dict[str, list[float]]:
    """Time functions in turn, A B C A B C …, so that a machine that drifts drifts for all of them.

    Args:
        functions: by name
        rounds: how often each is timed
        warmup: how often each runs before
        calls: how many of one follow each other each time

    Returns:
        seconds of a call, by name; of several that follow each other the mean
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(warmup + rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(calls):
                function()
            if i >= warmup:
                seconds[name].append((time.perf_counter() - started) / calls)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """How many times faster one is than the other: the median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True))
