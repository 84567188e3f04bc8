"""The whole way on real images: train, reparameterize, export to INT8, verify, run, time.

Trains RepVGG-A0 on scikit-learn's handwritten digits, exports it with the command line that a user would type, runs the
bundle on images that nothing has seen, in a process without torch, and ends in one table.

    python examples/demo.py [--output demo_output]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from holocron.models import build_model
from holocron.trainer import ClassificationTrainer
from holocron.transforms import Resize
from runtime.manifest import read_manifest
from runtime.table import format_table

SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPLITS = {"train": 0.6, "eval": 0.2, "unseen": 0.2}
ENOUGH, EPOCHS, ROUNDS = 0.95, 4, 3
BIN = Path(sys.executable).parent


def write_images(folder: Path) -> None:
    """Write the digits as PNG files, a folder a class, in three splits that share no image."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    ends = np.cumsum([round(share * len(order)) for share in SPLITS.values()])[:-1]
    for split, part in zip(SPLITS, np.split(order, ends), strict=True):
        for i in part:
            path = folder / split / str(digits.target[i]) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * (255 / 16)).round().astype(np.uint8)).save(path)
    (folder / "labels.txt").write_text("\n".join(map(str, digits.target_names)) + "\n")


def train(folder: Path, checkpoint: Path, arch: str = "repvgg_a0") -> float:
    """Train a network on the digits until it is good enough; returns the held-out accuracy of the weights kept."""
    torch.manual_seed(0)
    transform = v2.Compose(
        [v2.PILToTensor(), Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    train_set, val_set = (datasets.ImageFolder(folder / split, transform) for split in ("train", "eval"))
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, drop_last=True)
    val_loader = DataLoader(val_set, batch_size=128)
    model = build_model(arch, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    trainer = ClassificationTrainer(
        model, train_loader, val_loader, nn.CrossEntropyLoss(), optimizer, output_file=str(checkpoint)
    )
    for _ in range(ROUNDS):
        trainer.fit_n_epochs(EPOCHS, lr=4e-3, norm_weight_decay=0.0)
        trainer.load(torch.load(checkpoint, weights_only=True))
        accuracy = trainer.evaluate()["acc1"]
        if accuracy > ENOUGH:
            break
    return accuracy


def command(*words: object) -> str:
    """Run one of our commands as a user would, showing it; returns what it printed."""
    line = [str(w) for w in words]
    print(f"\n$ {' '.join([Path(line[0]).name, *line[1:]])}", flush=True)
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="images, weights and bundle")
    args = parser.parse_args()
    started = time.perf_counter()

    images, checkpoint, bundle = args.output / "images", args.output / "repvgg_a0.pth", args.output / "repvgg_a0"
    shutil.rmtree(images, ignore_errors=True)
    write_images(images)
    print(f"Training RepVGG-A0 at {SIZE}×{SIZE} on handwritten digits", flush=True)
    accuracy = train(images, checkpoint)
    print(f"PyTorch, held-out images: {accuracy:.2%} after {time.perf_counter() - started:.0f} s", flush=True)
    if accuracy <= ENOUGH:
        sys.exit(f"training reached {accuracy:.2%} only, {ENOUGH:.0%} was expected")

    rtx = ["--rtx"] if importlib.util.find_spec("tensorrt_rtx") else []
    words = ["repvgg_a0", "-o", bundle, "--weights", checkpoint, "--labels", images / "labels.txt"]
    words += [
        "--input-size",
        SIZE,
        SIZE,
        "--int8",
        "--effort",
        "fast",
        "--calib",
        images / "train",
        "--eval",
        images / "eval",
        *rtx,
    ]
    print(command(BIN / "holocron-export", *words, "--force"))

    unseen = sorted((images / "unseen").glob("*/*.png"))
    print(command(BIN / "holocron-run", bundle, *unseen[:: len(unseen) // 5], "--top", "2"))
    print("Images that nothing has seen, in a process that has no torch:")
    evaluate = Path(__file__).with_name("evaluate_bundle.py")
    answers = json.loads(command(sys.executable, evaluate, bundle, images / "unseen"))
    rows = json.loads(command(BIN / "holocron-bench", bundle, "--iterations", "200", "--threads", "1", "--json"))

    latency: dict[str, list[str]] = {}
    for row in rows:
        latency.setdefault(row["precision"], []).append(f"{row['backend']} {row['p50_ms']:.2f} ms")
    table = []
    for artefact in read_manifest(bundle).artefacts:
        result = artefact.verification
        table.append(
            [
                artefact.file,
                f"{artefact.size / 1e6:.1f} MB",
                f"{result.accuracy:.2%}" if result and result.accuracy is not None else "runs on its GPU",
                f"{result.top1_agreement:.2%}" if result else "",
                f"{answers[artefact.file]:.2%}" if artefact.file in answers else "",
                ", ".join(latency.get(artefact.variant, [])) if artefact.kind == "onnx" else "",
            ]
        )
    headers = ["artefact", "size", "accuracy", "agrees with PyTorch", "accuracy, unseen", "latency p50, 1 thread"]
    print(f"\nPyTorch float32: {accuracy:.2%} on the held-out images\n\n{format_table(headers, table)}")
    print(f"\n{time.perf_counter() - started:.0f} s in all; the bundle is in {bundle}")


if __name__ == "__main__":
    main()
