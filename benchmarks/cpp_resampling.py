"""Resizing in the C++ runtime beside Pillow, whose pixels it gives to the byte.

    python benchmarks/cpp_resampling.py [--from H W] [--to H W] [--rounds N] [--calls N] [--library FILE]

The library is built first, optimized. Each filter is timed on noise, in turn with Pillow, on one thread and on two,
some calls after each other each time: a core that has gone to sleep since the last frame takes as long to wake as the
frame does on some machines, which is no matter of the resizing. The weights are computed anew in every call, as Pillow
does.
"""

import argparse
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import machine, medians, ratio, side_by_side
from cpp_build import built
from PIL import Image

from runtime.manifest import INTERPOLATIONS

SLOWEST, SLOWEST_ON_TWO = 1.0, 1.7
"""What is to be reached with the default filter: as fast as Pillow, and this many times faster on two threads."""


@contextmanager
def shim(library: Path | None) -> Iterator[ctypes.CDLL]:
    """The library's functions."""
    if library is not None:
        loaded = ctypes.CDLL(str(library))
        loaded.shim_resize.restype = ctypes.c_char_p
        yield loaded
        return
    with built("holocron_pixels_shim", backends=False) as folder:
        (found,) = folder.glob("tests/*holocron_pixels_shim.*")
        with shim(found) as loaded:
            yield loaded


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Resizing in C++ beside Pillow.")
    parser.add_argument("--from", dest="source", type=int, nargs=2, default=(1080, 1920), help="height and width")
    parser.add_argument("--to", dest="target", type=int, nargs=2, default=(224, 224), help="height and width")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--calls", type=int, default=10, help="of each in a round")
    parser.add_argument("--library", type=Path, help="of the build target holocron_pixels_shim, not to build it here")
    arguments = parser.parse_args()
    (h, w), (H, W) = arguments.source, arguments.target
    pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    out = np.empty((H, W, 3), np.uint8)
    print(machine())
    rounds = f"{arguments.rounds} rounds of {arguments.calls} calls"
    print(f"{h} x {w} to {H} x {W}, {rounds}, {len(os.sched_getaffinity(0))} cores to run on")
    with shim(arguments.library) as library:

        def resize(interpolation: str, threads: int) -> None:
            error = library.shim_resize(
                ctypes.c_void_p(pixels.ctypes.data),
                *(h, w, H, W, INTERPOLATIONS.index(interpolation), threads),
                ctypes.c_void_p(out.ctypes.data),
            )
            if error is not None:
                raise SystemExit(error.decode())

        for interpolation in INTERPOLATIONS:
            theirs = getattr(Image.Resampling, interpolation.upper())
            for threads in (1, 2):
                out[:] = 0
                resize(interpolation, threads)
                np.testing.assert_array_equal(out, np.asarray(image.resize((W, H), theirs)))
            seconds = side_by_side(
                {
                    "Pillow": lambda theirs=theirs: image.resize((W, H), theirs),
                    "one thread": lambda name=interpolation: resize(name, 1),
                    "two threads": lambda name=interpolation: resize(name, 2),
                },
                arguments.rounds,
                calls=arguments.calls,
            )
            times = ", ".join(f"{name} {value * 1e3:6.3f} ms" for name, value in medians(seconds).items())
            once, twice = ratio(seconds, "Pillow", "one thread"), ratio(seconds, "one thread", "two threads")
            bounds = f" (bounds: {SLOWEST} and {SLOWEST_ON_TWO})" if interpolation == "bilinear" else ""
            print(f"{interpolation:9s} {times}; {once:.2f} times as fast, two threads {twice:.2f}{bounds}")


if __name__ == "__main__":
    main()
