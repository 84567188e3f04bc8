"""What a trainer shows: lines, bars and plots. Matplotlib is imported when something is plotted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from holocron.trainer import distributed


def write_line(line: str) -> None:
    """Print a line above the progress bar, from rank 0 alone.

    Args:
        line: the line
    """
    if distributed.rank() == 0:
        tqdm.write(line)


def bars_are_shown() -> bool:
    """Tell whether to draw progress bars: they are for people, not for log files, and once for all processes.

    Returns:
        whether this process draws them
    """
    return distributed.rank() == 0 and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def describe_metrics(metrics: Mapping[str, float | None]) -> str:
    """Put metrics in words.

    Args:
        metrics: names and values

    Returns:
        a line
    """
    return ", ".join(f"{name}: {'n/a' if value is None else format(value, '.4')}" for name, value in metrics.items())


def plot_lr_search(lrs: Sequence[float], losses: Sequence[float], beta: float, **kwargs: Any) -> None:
    """Plot the smoothed loss against the learning rate.

    The first tenth (at most 10 points), where the average is young, and the last twentieth (at most 5), where the loss
    explodes, are left out; the vertical axis shows the way down to the minimum.

    Args:
        lrs: the learning rates
        losses: the loss at each
        beta: weight of the past in the exponential moving average, corrected for its start at zero
        **kwargs: arguments of :func:`matplotlib.pyplot.show`
    """
    from matplotlib import pyplot as plt

    average = 0.0
    smoothed = []
    for count, loss in enumerate(losses, start=1):
        average = beta * average + (1 - beta) * loss
        smoothed.append(average / (1 - beta**count))

    first, last = min(len(losses) // 10, 10), len(losses) - min(len(losses) // 20, 5)
    shown = np.array(smoothed[first:last])
    lowest = int(shown.argmin())
    bottom, top = shown[lowest], shown[: lowest + 1].max()
    margin = (top - bottom) or abs(bottom) or 1.0

    _, axes = plt.subplots()
    axes.plot(lrs[first:last], shown)
    axes.set_xscale("log")
    axes.set_xlabel("Learning rate")
    axes.set_ylabel("Training loss")
    axes.set_ylim(bottom - 0.1 * margin, top + 0.2 * margin)
    axes.grid(True, linestyle="--", axis="x")
    plt.show(**kwargs)


def plot_losses(losses: Sequence[float], **kwargs: Any) -> None:
    """Plot the loss after each update.

    Args:
        losses: the losses
        **kwargs: arguments of :func:`matplotlib.pyplot.show`
    """
    from matplotlib import pyplot as plt

    _, axes = plt.subplots()
    axes.plot(range(len(losses)), losses)
    axes.set_xlabel("Optimization steps")
    axes.set_ylabel("Training loss")
    axes.grid(True, linestyle="--", axis="x")
    plt.show(**kwargs)
