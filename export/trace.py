"""From a PyTorch module to an ONNX model, through torch.export."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from .errors import ExportError
from .simplify import simplify

OPSET = 20
"""The newest opset that TensorRT 10 takes, and the first-but-one whose QuantizeLinear takes float16 (19)."""
IR_VERSION = 9
"""The file format that came with opset 20, so that older readers take the file."""
MAX_TRACED_BATCH = 4096
INPUT_NAME = "input"
OUTPUT_NAME = "logits"


def trace(module: nn.Module, input_size: tuple[int, int], in_channels: int = 3) -> onnx.ModelProto:
    """Trace a module to ONNX with a dynamic batch.

    Args:
        module: in evaluation mode, (N, C, H, W) to (N, K)
        input_size: H and W in pixels
        in_channels: C

    Returns:
        a checked and simplified model of opset 20, weights inside, with the input `input` and the output `logits`

    Raises:
        ExportError: if the module cannot be traced, with the tracer's reason
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # A batch of two: torch.export takes a dimension of one for a constant.
    example = torch.zeros(2, in_channels, *input_size, device=device)
    batch = torch.export.Dim("batch", min=1, max=MAX_TRACED_BATCH)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise ExportError("the tracer gave no model")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            program.save(str(path))
            model = onnx.load(path)
    except ExportError:
        raise
    except Exception as e:  # the tracer raises errors of many kinds, some of them private to it
        reason = str(e).strip().splitlines()
        raise ExportError(
            f"{type(module).__name__} cannot be traced at {input_size[0]}×{input_size[1]}: "
            f"{reason[0] if reason else type(e).__name__}"
        ) from e
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "holocron-edge", ""
    return simplify(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's notes, which concern its own developers, from the terminal."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
