"""Whether other runtimes run the quantized graphs too: OpenVINO's answers beside ONNX Runtime's, TensorRT-RTX's builds.

python benchmarks/int8_backends.py --data DIR --weights DIR/repvgg_a0_fp16.pth [--weights ...] [--limit 500] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from common import machine
from int8_accuracy import BATCH, SCHEMES, Case, from_digits, from_weights, judges

from calib import EFFORTS, ImageStream, find_images
from export import export_model
from export.engine import build_engine, library_version
from export.quantize.optimize import quantize_calibrated
from runtime.backends import open_session
from runtime.manifest import EngineInfo
from runtime.table import format_table

CAPABILITY = "8.6"


@dataclass(frozen=True)
class Row:
    """One quantized graph.

    Attributes:
        agreement: share of the images of which OpenVINO and ONNX Runtime have the same first class.
        difference: largest difference of their outputs, relative to the largest output.
        engine_mb: size of TensorRT-RTX's engine; None where none was asked for.
    """

    network: str
    scheme: str
    images: int
    agreement: float
    difference: float
    engine_mb: float | None


def outputs(model: bytes, backend: str, case: Case, images: list[Path]) -> np.ndarray:
    """The logits of all images."""
    session = open_session(model, backend)
    try:
        stream = ImageStream(images, case.preprocessing, batch_size=BATCH)
        return np.concatenate([next(iter(session.run(batch).values())) for batch in stream])
    finally:
        session.close()


def compare(case: Case, effort: str, limit: int) -> Iterator[Row]:
    """Quantize under both schemes, and run what comes out."""
    images, _ = judges(case, limit)
    with tempfile.TemporaryDirectory() as name:
        export_model(case.module, Path(name) / "float", preprocessing=case.preprocessing)
        graph = onnx.load(Path(name) / "float" / "model.onnx")
    for scheme in SCHEMES:
        made = quantize_calibrated(graph, find_images(case.calib), case.preprocessing, scheme, effort=effort).model
        theirs, ours = (outputs(made.SerializeToString(), b, case, images) for b in ("onnxruntime", "openvino"))
        engine = None
        if scheme == "trt" and importlib.util.find_spec("tensorrt_rtx") is not None:
            info = EngineInfo("tensorrt_rtx", library_version("tensorrt_rtx"), CAPABILITY, 1)
            engine = len(build_engine(made.SerializeToString(), info)) / 1e6
        yield Row(
            case.name,
            scheme,
            len(images),
            float((theirs.argmax(1) == ours.argmax(1)).mean()),
            float(np.abs(theirs - ours).max() / np.abs(theirs).max()),
            engine,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with calib/ and val/")
    parser.add_argument("--weights", type=Path, action="append", default=[], help="named after its architecture")
    parser.add_argument("--size", type=int, default=64, help="of the images of --data, in pixels")
    parser.add_argument("--digits", action="append", default=[], metavar="ARCH", help="train this one on digits")
    parser.add_argument("--work", type=Path, default=Path("int8_accuracy_work"), help="keeps what was trained")
    parser.add_argument("--effort", choices=EFFORTS, default="fast")
    parser.add_argument("--limit", type=int, default=0, help="compare on that many images only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.weights and args.data is None:
        parser.error("--weights needs --data, the folder of the images")
    cases = [from_weights(path, args.data, args.size) for path in args.weights]
    cases += [from_digits(arch, args.work) for arch in args.digits]
    if not cases:
        parser.error("nothing to compare: pass --weights with --data, or --digits")
    rows = []
    for case in cases:
        for row in compare(case, args.effort, args.limit):
            rows.append(row)
            print(f"{row.network} {row.scheme}: {row.agreement:.2%}", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
        return
    headers = ["network", "scheme", "images", "OpenVINO = ONNX Runtime", "largest difference", "TensorRT-RTX engine"]
    cells = [
        [
            *(row.network, row.scheme, str(row.images), f"{row.agreement:.2%}", f"{row.difference:.1e}"),
            "" if row.engine_mb is None else f"{row.engine_mb:.1f} MB",
        ]
        for row in rows
    ]
    print(f"{machine()}\n\n{format_table(headers, cells)}")


if __name__ == "__main__":
    main()
