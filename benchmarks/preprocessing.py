"""From a JPEG file of 1080p to a network's input at 224×224, on one thread: `runtime` beside torchvision on Pillow.

    python benchmarks/preprocessing.py [--photos DIR] [--size H W] [--bundle BUNDLE]

torchvision opens the file with Pillow and applies `v2.Resize`, `v2.ToImage`, `v2.ToDtype` and `v2.Normalize`, as its
documentation shows. `fast_decode` lets libjpeg decode each block to fewer pixels. All are timed in turn on the same
files, round by round, after a check that the exact path gives what torchvision's `ToTensor` and `Normalize` give, bit
by bit (`v2.ToDtype` multiplies by 1/255 where they divide by 255: the last bit of some values differs). With a BUNDLE
of a trained classifier the share of photographs with the same first class is measured too.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import machine, medians, ratio, side_by_side
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

import runtime
from calib import find_images, sample_folder
from runtime.manifest import Preprocessing
from runtime.preprocess import Preprocessor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOISE = 3.0
"""Standard deviation of the noise, of 255."""


def make_photos(folder: Path, sources: list[Path], size: tuple[int, int]) -> list[Path]:
    """Photographs as JPEG files of one size; with a camera's noise where they are enlarged, so that files are as large
    as a camera's.
    """
    height, width = size
    generator = np.random.default_rng(0)
    paths = []
    for i, path in enumerate(sources):
        with Image.open(path) as image:
            enlarged = image.height < height or image.width < width
            pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), np.float32)
        if enlarged:
            pixels = np.clip(pixels + generator.normal(0, NOISE, pixels.shape), 0, 255)
        paths.append(folder / f"{i:04}.jpg")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def agreement(bundle: Path, photos: list[Path]) -> tuple[float, float]:
    """Share of photographs whose first class is the same with and without `fast_decode`; and the same where instead as
    many values are off by one of 255 levels at random, which is what any other decoder or filter would do.
    """
    with runtime.load(bundle, "fp32", threads=1) as model:

        def first_classes(batch: np.ndarray) -> np.ndarray:
            pieces = (batch[i : i + 32] for i in range(0, len(batch), 32))
            return np.concatenate([model.session.run(piece)["logits"].argmax(1) for piece in pieces])

        spec = model.manifest.preprocessing
        exact, fast = (Preprocessor(spec, fast_decode).batch(photos) for fast_decode in (False, True))
        level = 1 / (255 * np.array(spec.std, np.float32)[:, None, None])
        share = float((np.abs(fast - exact) > level / 2).mean())
        signs = np.random.default_rng(0).choice([-1, 0, 1], exact.shape, p=[share / 2, 1 - share, share / 2])
        noisy = (exact + signs * level).astype(np.float32)
        expected = first_classes(exact)
        return tuple(float((first_classes(batch) == expected).mean()) for batch in (fast, noisy))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="From a JPEG file to a network's input.")
    parser.add_argument("--photos", type=Path, default=sample_folder(), help="folder of images, made JPEG of --size")
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), help="height and width")
    parser.add_argument("--count", type=int, default=16, help="photographs that are timed")
    parser.add_argument("--judged", type=int, default=200, help="photographs that the bundle judges")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=Path, help="of a trained classifier, to count equal first classes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = Preprocessing((224, 224), MEAN, STD)
    exact, fast = Preprocessor(spec), Preprocessor(spec, fast_decode=True)
    resize = v2.Resize((224, 224))
    theirs = v2.Compose(
        [resize, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(MEAN), std=list(STD))]
    )
    to_the_bit = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def torchvision(path: Path, transform: object = theirs) -> torch.Tensor:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    with tempfile.TemporaryDirectory() as temporary:
        sources = list(find_images(arguments.photos, max(arguments.count, arguments.judged)))
        used = sources if arguments.bundle is not None else sources[: arguments.count]
        everything = make_photos(Path(temporary), used, tuple(arguments.size))
        photos = everything[: arguments.count]
        for path in photos:
            np.testing.assert_array_equal(exact(path), torchvision(path, to_the_bit).numpy())
            np.testing.assert_allclose(exact(path), torchvision(path).numpy(), atol=1e-6)
        functions = {"torchvision": torchvision, "runtime": exact, "fast_decode": fast}
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for path in photos:
            calls = {name: (lambda f=function, p=path: f(p)) for name, function in functions.items()}
            for name, values in side_by_side(calls, arguments.rounds, warmup=1).items():
                seconds[name] += values
        print(machine())
        size = np.mean([path.stat().st_size for path in photos]) / 1000
        print(f"{len(photos)} photographs of {size:.0f} kB, {arguments.rounds} rounds, one thread; identical results")
        for name, value in medians(seconds).items():
            print(f"{name:12s} {value * 1e3:8.2f} ms")
        print(f"runtime is {ratio(seconds, 'torchvision', 'runtime'):.3f} times as fast as torchvision (bound: 1)")
        print(f"fast_decode is {ratio(seconds, 'torchvision', 'fast_decode'):.2f} times as fast (bound: 2)")
        if arguments.bundle is not None:
            found, floor = agreement(arguments.bundle, everything)
            print(f"same first class with fast_decode: {found:.1%} of {len(everything)} photographs (bound: 99 %)")
            print(f"with as many values off by one level at random: {floor:.1%}")


if __name__ == "__main__":
    main()
