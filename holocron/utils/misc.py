"""Threads, and a look at the sizes of a dataset."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

__all__ = ["find_image_size", "parallel"]

Inp = TypeVar("Inp")
Out = TypeVar("Out")


def parallel(
    func: Callable[[Inp], Out],
    arr: Sequence[Inp],
    num_threads: int | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Iterable[Out]:
    """Apply a function to each element of a sequence, in several threads.

    Args:
        func: the function; threads help where it waits for files or releases the interpreter lock, as decoders do
        arr: its arguments
        num_threads: number of threads, by default one per CPU up to 16; below 2 the calling thread does the work
        progress: whether to show a progress bar
        **kwargs: arguments of :class:`tqdm.auto.tqdm`

    Returns:
        the list of results, in the order of the arguments

    Example:
        >>> from holocron.utils.misc import parallel
        >>> parallel(lambda x: x**2, [1, 2, 3])
        [1, 4, 9]
    """
    if num_threads is None:
        num_threads = min(16, os.cpu_count() or 1)
    if num_threads < 2:
        return [func(item) for item in (tqdm(arr, total=len(arr), **kwargs) if progress else arr)]
    with ThreadPool(num_threads) as pool:
        if progress:
            return list(tqdm(pool.imap(func, arr), total=len(arr), **kwargs))
        return pool.map(func, arr)


def find_image_size(dataset: Sequence[tuple[Image.Image, Any]], **kwargs: Any) -> None:
    """Plot the aspect ratios and sizes of a dataset, and the image size that suits it best in the title.

    That size has the median aspect ratio (height / width) and the median side (square root of the area).

    Args:
        dataset: a sequence of couples of an image and whatever else
        **kwargs: arguments of :func:`matplotlib.pyplot.show`

    Raises:
        ValueError: if the dataset is empty
    """
    from matplotlib import pyplot as plt

    if len(dataset) == 0:
        raise ValueError("dataset is empty: there is no image to measure")
    # By index, so that the threads read the images, rather than the one that hands out the work.
    sizes = parallel(lambda index: dataset[index][0].size, range(len(dataset)), progress=True)
    widths, heights = np.array(list(sizes), dtype=np.float64).T
    ratios = heights / widths
    sides = np.sqrt(heights * widths)
    ratio, side = float(np.median(ratios)), float(np.median(sides))
    best = round(side * math.sqrt(ratio)), round(side / math.sqrt(ratio))

    fig, axes = plt.subplots(1, 2)
    for axis, values, median, name in (
        (axes[0], ratios, ratio, f"Aspect ratio (median: {ratio:.2f})"),
        (axes[1], sides, side, f"Side (median: {round(side)})"),
    ):
        axis.hist(values, bins=30, alpha=0.7)
        axis.set_title(name)
        axis.grid(True, linestyle="--", axis="x")
        axis.axvline(median, color="r")
    fig.suptitle(f"Median image size: {best}")
    plt.show(**kwargs)
