"""What INT8 costs in accuracy: ours against ONNX Runtime's quantizer and NNCF, on the same graphs, images and schemes.

A network is a file of weights with a folder that has `calib/` (unlabelled images) and `val/` (a folder a class); or an
architecture that is trained here on scikit-learn's digits by the demo's recipe. Every graph is answered by ONNX
Runtime; ours sees no label.

    python benchmarks/int8_accuracy.py --data DIR --weights DIR/repvgg_a0_fp16.pth [--harden] [--limit 500]
    python benchmarks/int8_accuracy.py --digits repvgg_a1 --digits mobileone_s2
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from common import machine
from torch import nn

from calib import ImageStream, find_images, find_labelled_images
from export import export_model
from export.quantize.optimize import quantize_calibrated
from holocron import models
from holocron.models.reparam import reparametrize
from runtime.backends import open_session
from runtime.manifest import Preprocessing
from runtime.table import format_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCHEMES = ("cpu", "trt")
ORT_METHODS = ("MinMax", "Entropy", "Percentile")
NNCF_BATCH = 100
BATCH = 50


@dataclass(frozen=True)
class Case:
    """A float network, what calibrates it and what judges it."""

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    calib: Path
    val: Path


@dataclass(frozen=True)
class Row:
    """One quantized graph."""

    network: str
    scheme: str
    tool: str
    top1: float
    lost: float
    agreement: float
    seconds: float


def from_weights(weights: Path, data: Path, size: int) -> Case:
    """A network from a file named after its architecture: `repvgg_a0_fp16.pth`."""
    arch = next(name for name in sorted(models.list_models(), key=len, reverse=True) if weights.name.startswith(name))
    state_dict = models.load_state_dict(weights)
    classes = len([folder for folder in (data / "val").iterdir() if folder.is_dir()])
    model = models.build_model(arch, num_classes=classes)
    models.load_weights(model, state_dict, str(weights))
    return Case(arch, model, Preprocessing((size, size), MEAN, STD), data / "calib", data / "val")


def from_digits(arch: str, folder: Path) -> Case:
    """A network trained on the demo's digits by the demo's recipe; kept in a folder for the next time."""
    path = Path(__file__).parents[1] / "examples" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    images, checkpoint = folder / "images", folder / f"{arch}.pth"
    if not images.is_dir():
        demo.write_images(images)
    if not checkpoint.is_file():
        demo.train(images, checkpoint, arch)
    model = models.build_model(arch, num_classes=10)
    models.load_weights(model, models.load_state_dict(checkpoint), str(checkpoint))
    judges = folder / "judges"  # held-out and unseen images together: 718 instead of 359
    if not judges.is_dir():
        for source in (*(images / "eval").glob("*/*.png"), *(images / "unseen").glob("*/*.png")):
            target = judges / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return Case(f"{arch} (digits)", model, Preprocessing((32, 32), MEAN, STD), images / "train", judges)


def harden(module: nn.Module, spread: float = 0.8) -> None:
    """Rescale a fused chain of convolutions, in place, without changing its function.

    Each output channel of a layer is multiplied by a random factor and the next layer's input channel divided by it, so
    that channels differ in range as they do in networks that collapse under plain quantization.
    """
    reparametrize(module.eval())
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    torch.manual_seed(0)
    with torch.no_grad():
        for layer, after in itertools.pairwise(layers):
            factor = torch.exp(spread * torch.randn(layer.weight.shape[0]))
            layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            assert layer.bias is not None
            layer.bias.mul_(factor)
            if isinstance(after, nn.Conv2d) and after.groups > 1:
                after.weight.div_(factor.reshape(-1, 1, 1, 1))
            else:
                after.weight.div_(factor.reshape(1, -1, *[1] * (after.weight.ndim - 2)))


def answers(model: bytes, images: Sequence[Path], preprocessing: Preprocessing) -> np.ndarray:
    """Index of the highest score for each image."""
    session = open_session(model, "onnxruntime")
    try:
        stream = ImageStream(images, preprocessing, batch_size=BATCH)
        return np.concatenate([next(iter(session.run(batch).values())).argmax(1) for batch in stream])
    finally:
        session.close()


class Reader:
    """The calibration images, as ONNX Runtime's quantizer asks for them."""

    def __init__(self, case: Case, name: str) -> None:
        self.name = name
        self.batches: Iterator[np.ndarray] = iter(ImageStream(find_images(case.calib), case.preprocessing, 1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def with_onnxruntime(case: Case, graph: Path, scheme: str, method: str, folder: Path, per_channel: bool) -> bytes:
    """ONNX Runtime's static quantizer."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    symmetric = scheme == "trt"
    options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, "AddQDQPairToWeight": symmetric}
    quantize_static(
        str(graph),
        str(folder / "ort.onnx"),
        Reader(case, "input"),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={**options, **({"QuantizeBias": False} if symmetric else {})},
    )
    return (folder / "ort.onnx").read_bytes()


def with_nncf(case: Case, graph: Path, scheme: str) -> bytes:
    """NNCF's post-training quantization with its defaults; under `trt` symmetric.

    It cannot be told that all activations are signed: behind a ReLU its codes are uint8, twice as many as TensorRT has.
    Its ranges are means over the batches of each batch's extremes: batches of single images clip half of the images.
    """
    import nncf

    nncf.set_log_level(40)
    images = find_images(case.calib)
    batches = list(ImageStream(images, case.preprocessing, NNCF_BATCH))
    dataset = nncf.Dataset(batches, lambda batch: {"input": batch})
    preset = nncf.QuantizationPreset.PERFORMANCE if scheme == "trt" else None
    quantized = nncf.quantize(onnx.load(graph), dataset, preset=preset, subset_size=len(batches))
    return quantized.SerializeToString()


def tools(
    case: Case, graph: Path, folder: Path, efforts: Sequence[str], per_tensor: bool
) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """What is compared: (scheme, name, what makes the graph)."""
    for effort in efforts:
        for scheme in SCHEMES:
            yield scheme, f"ours, {effort}", lambda e=effort, s=scheme: ours(case, graph, e, s, per_tensor)
    for scheme in SCHEMES:
        for method in ORT_METHODS:
            yield (
                scheme,
                f"ONNX Runtime {method}",
                lambda m=method, s=scheme: with_onnxruntime(case, graph, s, m, folder, not per_tensor),
            )
        if importlib.util.find_spec("nncf") is not None and not per_tensor:
            name = "NNCF" if scheme == "cpu" else "NNCF (uint8 behind ReLU)"
            yield scheme, name, lambda s=scheme: with_nncf(case, graph, s)


def ours(case: Case, graph: Path, effort: str, scheme: str, per_tensor: bool) -> bytes:
    """This project's: equalization, ranges by their effect, second-order rounding, bias correction."""
    images = find_images(case.calib)
    made = quantize_calibrated(
        onnx.load(graph), images, case.preprocessing, scheme, effort=effort, per_tensor=per_tensor
    )
    return made.model.SerializeToString()


def judges(case: Case, limit: int) -> tuple[list[Path], np.ndarray]:
    """The labelled images that a network is judged by, or so many of them; and their classes."""
    labelled = find_labelled_images(case.val, [folder.name for folder in sorted(case.val.iterdir())])
    images, labels = [path for path, _ in labelled], np.array([label for _, label in labelled])
    if limit:
        chosen = np.random.default_rng(0).permutation(len(images))[:limit]
        images, labels = [images[i] for i in chosen], labels[chosen]
    return images, labels


def compare(case: Case, args: argparse.Namespace) -> Iterator[Row]:
    """Quantize a network with every tool and judge each result."""
    images, labels = judges(case, args.limit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_model(case.module, folder / "float", preprocessing=case.preprocessing)
        graph = folder / "float" / "model.onnx"
        reference = answers(graph.read_bytes(), images, case.preprocessing)
        top1 = float((reference == labels).mean())
        yield Row(case.name, "", "float32", top1, 0.0, 1.0, 0.0)
        for scheme, tool, make in tools(case, graph, folder, args.efforts, args.per_tensor):
            if args.tool and not any(part in tool for part in args.tool):
                continue
            started = time.perf_counter()
            model = make()
            seconds = time.perf_counter() - started
            found = answers(model, images, case.preprocessing)
            accuracy = float((found == labels).mean())
            yield Row(case.name, scheme, tool, accuracy, top1 - accuracy, float((found == reference).mean()), seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with calib/ and val/")
    parser.add_argument("--weights", type=Path, action="append", default=[], help="named after its architecture")
    parser.add_argument("--size", type=int, default=64, help="of the images of --data, in pixels")
    parser.add_argument("--harden", action="store_true", help="also judge the rescaled networks")
    parser.add_argument("--digits", action="append", default=[], metavar="ARCH", help="train this one on digits")
    parser.add_argument("--work", type=Path, default=Path("int8_accuracy_work"), help="keeps what was trained")
    parser.add_argument("--efforts", nargs="+", default=["fast", "normal"])
    parser.add_argument("--per-tensor", action="store_true", help="one scale a tensor for the weights")
    parser.add_argument("--tool", action="append", metavar="PART", help="only tools whose name has this in it")
    parser.add_argument("--limit", type=int, default=0, help="judge on that many images only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.weights and args.data is None:
        parser.error("--weights needs --data")
    makers: list[Callable[[], Case]] = []
    for weights in args.weights:
        makers.append(lambda w=weights: from_weights(w, args.data, args.size))
        if args.harden:

            def hardened(w: Path = weights) -> Case:
                case = from_weights(w, args.data, args.size)
                harden(case.module)
                return Case(f"{case.name}, hardened", case.module, case.preprocessing, case.calib, case.val)

            makers.append(hardened)
    makers += [lambda a=arch: from_digits(a, args.work) for arch in args.digits]
    rows: list[Row] = []
    for make in makers:
        for row in compare(make(), args):
            rows.append(row)
            found = f"{row.top1:.2%}, agreement {row.agreement:.2%}"
            print(f"{row.network} {row.scheme} {row.tool}: {found}", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
        return
    headers = ["network", "scheme", "tool", "top-1", "points lost", "agreement", "seconds"]
    table = [
        [r.network, r.scheme, r.tool, f"{r.top1:.2%}", f"{100 * r.lost:.2f}", f"{r.agreement:.2%}", f"{r.seconds:.0f}"]
        for r in rows
    ]
    print(f"{machine()}\n\n{format_table(headers, table)}")


if __name__ == "__main__":
    main()
