"""Frames per second of `holocron-run` on a folder of photographs, beside the same work written as a plain loop.

    python benchmarks/stream.py [BUNDLE] [--photos N] [--size H W] [--threads N] [--precision P ...] [--backend B ...]

The plain loop opens each file with Pillow, applies torchvision's v2 transforms, runs ONNX Runtime with its default
options on as many threads, and takes the five likeliest classes: what its documentation shows. Ours is what
`holocron-run` does, on the same graph of the same bundle, once it is open. Both take the photographs in pieces, in
turn, so that whatever else the machine does slows both; the ratio is the median of the pieces' ratios. Without a BUNDLE
one is made of RepVGG-A0 with random weights at 224×224, float32 and INT8.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from common import machine
from PIL import Image
from preprocessing import make_photos
from torchvision.transforms import v2

import runtime
from calib import find_images, sample_folder
from export import export_model
from runtime.stream import split_threads

PIECE = 20


def plain_loop(file: Path, preprocessing: runtime.manifest.Preprocessing, threads: int) -> Callable[[list[Path]], None]:
    """The work written with torchvision and ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    transform = v2.Compose(
        [
            v2.Resize(preprocessing.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=list(preprocessing.mean), std=list(preprocessing.std)),
        ]
    )

    def loop(paths: list[Path]) -> None:
        for path in paths:
            with Image.open(path) as image:
                x = transform(image.convert("RGB"))[None].numpy()
            (logits,) = session.run(None, {"input": x})
            torch.from_numpy(logits).softmax(1).topk(5)

    return loop


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Frames per second on a folder of photographs.")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), help="height and width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["int8.cpu", "fp32"])
    parser.add_argument("--backend", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--fast-decode", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        bundle = arguments.bundle
        if bundle is None:
            bundle = export_model(
                "repvgg_a0", Path(temporary, "a0"), weights="none", int8=True, verify_samples=2
            ).bundle
        folder = Path(temporary, "photos")
        folder.mkdir()
        samples = find_images(sample_folder())
        sources = [samples[i % len(samples)] for i in range(arguments.photos)]
        photos = make_photos(folder, sources, tuple(arguments.size))
        print(f"{len(photos)} photographs of {arguments.size[0]}×{arguments.size[1]}, {arguments.threads} threads")
        for precision in arguments.precision:
            for backend in arguments.backend:
                compare(bundle, precision, backend, photos, arguments.threads, arguments.fast_decode)


def compare(bundle: Path, precision: str, backend: str, photos: list[Path], threads: int, fast_decode: bool) -> None:
    """Time both, piece by piece, and print a line."""
    workers, of_each = split_threads(threads, len(photos))
    with runtime.load(bundle, precision, backend, of_each, fast_decode=fast_decode, concurrency=workers) as model:
        loop = plain_loop(bundle / model.artefact.file, model.manifest.preprocessing, threads)

        def ours(paths: list[Path]) -> None:
            for answer in model.stream(paths, workers):
                answer.get().to_dict(5)

        ways = {"plain loop": loop, "holocron-run": ours}
        for way in ways.values():
            way(photos[:4])
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for start in range(0, len(photos), PIECE):
            piece = photos[start : start + PIECE]
            for name in list(ways) if (start // PIECE) % 2 else list(reversed(ways)):
                began = time.perf_counter()
                ways[name](piece)
                seconds[name].append((time.perf_counter() - began) / len(piece))
        rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
        gain = np.median(np.divide(seconds["plain loop"], seconds["holocron-run"]))
        print(
            f"{precision:9s} plain loop {rates['plain loop']:6.1f} frames/s, holocron-run on {backend:11s} "
            f"{rates['holocron-run']:6.1f} frames/s: {gain:.2f} times as many (bound: 1.6)"
        )


if __name__ == "__main__":
    main()
