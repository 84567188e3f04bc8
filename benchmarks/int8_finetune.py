"""What a quantization-aware fine-tune wins back: the graph that it exports, against post-training quantization.

The network is fine-tuned on the unlabelled images of `calib/` alone, to answer as the float network does; `val/` only
judges. An epoch reads each image in `--variants` random variants (flipped, shifted, mixed with another). Every graph is
answered by ONNX Runtime.

    python benchmarks/int8_finetune.py --data DIR --weights DIR/repvgg_a0_fp16.pth [--seed 0 --seed 1]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from common import machine
from int8_accuracy import BATCH, SCHEMES, Case, Row, answers, from_weights, judges
from torch import Tensor, fx
from torch.utils.data import DataLoader, Dataset

from calib import EFFORTS, ImageStream, find_images
from export import export_model
from export.quantize.learned import quantize_learned, read_ranges
from export.quantize.optimize import quantize_calibrated
from export.quantize.warm_start import start_from_calibration
from export.trace import trace
from holocron.nn.quantization import compensate, convert, learned_ranges, prepare_qat
from holocron.trainer import DistillationLoss, QuantizationTrainer, UnlabelledDataset, VariedDataset
from runtime.table import format_table

TRAINING_BATCH = 32
LEARNING_RATE = 1e-4


class Images(Dataset[Tensor]):
    """Images in memory, without labels."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def calibration_images(case: Case) -> Tensor:
    """The unlabelled images, prepared, of shape (N, 3, H, W)."""
    stream = ImageStream(find_images(case.calib), case.preprocessing, batch_size=BATCH)
    return torch.from_numpy(np.concatenate(list(stream)))


def exported(model: fx.GraphModule, case: Case) -> bytes:
    """The quantized graph of a network with fake quantization."""
    graph = trace(convert(model), case.preprocessing.size)
    return quantize_learned(graph, read_ranges(learned_ranges(model))).SerializeToString()


def started(case: Case, args: argparse.Namespace, seed: int = 0) -> fx.GraphModule:
    """Where a fine-tune starts: where calibration ends."""
    images = calibration_images(case)
    normalization = (case.preprocessing.mean, case.preprocessing.std)
    model = prepare_qat(
        case.module, images.split(BATCH), args.scheme, args.per_channel, equalize=False, normalization=normalization
    )
    start_from_calibration(model, images, args.effort, seed)
    return model


def fine_tuned(case: Case, args: argparse.Namespace, seed: int, folder: Path) -> bytes:
    """Prepare, train and export."""
    torch.manual_seed(seed)
    images = calibration_images(case)
    model = started(case, args, seed)
    trainer = QuantizationTrainer(
        model,
        DataLoader(UnlabelledDataset(VariedDataset(Images(images), args.variants)), TRAINING_BATCH, shuffle=True),
        DataLoader(UnlabelledDataset(Images(images)), BATCH),
        DistillationLoss(),
        torch.optim.Adam(model.parameters(), betas=(0.9, 0.99)),
        teacher=case.module,
        output_file=str(folder / "checkpoint.pth"),
    )
    trainer.fit_n_epochs(args.epochs, args.lr, sched_type="cosine")
    return exported(model.eval(), case)


def methods(
    case: Case, graph: Path, args: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """What is compared: a name, and what makes the graph."""
    per_tensor = not args.per_channel
    unlabelled = calibration_images(case)

    def prepared(equalize: bool | None, compensated: bool = False) -> bytes:
        model = prepare_qat(case.module, unlabelled.split(BATCH), args.scheme, args.per_channel, equalize).eval()
        if compensated:
            compensate(model, unlabelled)
        return exported(model, case)

    def start() -> bytes:
        return exported(started(case, args).eval(), case)

    def calibrated() -> bytes:
        images = find_images(case.calib)
        made = quantize_calibrated(
            onnx.load(graph), images, case.preprocessing, args.scheme, effort=args.effort, per_tensor=per_tensor
        )
        return made.model.SerializeToString()

    yield "rounded to the nearest", lambda: prepared(False)
    if per_tensor:
        yield "equalized, rounded to the nearest", lambda: prepared(True)
    if not args.only_fine_tune:
        yield "equalized, compensated", lambda: prepared(None, compensated=True)
        yield f"post-training, {args.effort}", calibrated
    yield "what the fine-tune starts from", start
    for seed in args.seed or [0]:
        yield f"fine-tuned, seed {seed}", lambda seed=seed: fine_tuned(case, args, seed, folder)


def compare(case: Case, args: argparse.Namespace) -> Iterator[Row]:
    """Make every graph and judge it."""
    images, labels = judges(case, args.limit)
    case.module.eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_model(case.module, folder / "float", preprocessing=case.preprocessing)
        graph = folder / "float" / "model.onnx"
        reference = answers(graph.read_bytes(), images, case.preprocessing)
        top1 = float((reference == labels).mean())
        yield Row(case.name, "", "float32", top1, 0.0, 1.0, 0.0)
        for tool, make in methods(case, graph, args, folder):
            started = time.perf_counter()
            model = make()
            seconds = time.perf_counter() - started
            found = answers(model, images, case.preprocessing)
            accuracy = float((found == labels).mean())
            agreement = float((found == reference).mean())
            yield Row(case.name, args.scheme, tool, accuracy, top1 - accuracy, agreement, seconds)


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    headers = ["network", "scheme", "method", "top-1", "points lost", "agreement", "seconds"]
    cells = [
        [r.network, r.scheme, r.tool, f"{r.top1:.2%}", f"{100 * r.lost:.2f}", f"{r.agreement:.2%}", f"{r.seconds:.0f}"]
        for r in rows
    ]
    return format_table(headers, cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with calib/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="named after its architecture")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--variants", type=int, default=8, help="of each image in an epoch")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=int, action="append", help="of the fine-tune; may be given several times")
    parser.add_argument("--scheme", choices=SCHEMES, default="trt")
    parser.add_argument("--per-channel", action="store_true", help="a scale for each output channel of the weights")
    parser.add_argument("--effort", choices=EFFORTS, default="fast", help="of the calibration that it starts from")
    parser.add_argument("--only-fine-tune", action="store_true", help="leave out the post-training method")
    parser.add_argument("--limit", type=int, default=0, help="judge on that many images only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[Row] = []
    for row in compare(from_weights(args.weights, args.data, args.size), args):
        rows.append(row)
        print(f"{row.tool}: {row.top1:.2%} in {row.seconds:.0f} s", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
        return
    print(f"{machine()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
