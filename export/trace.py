"""From a PyTorch module to an ONNX model, through torch.export."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from .errors import ExportError
from .fold import fold_layers
from .onnx_graph import INPUT_NAME
from .simplify import simplify

OPSET = 20
"""The newest opset that TensorRT 10 takes, and the first-but-one whose QuantizeLinear takes float16 (19)."""
IR_VERSION = 9
"""The file format that came with opset 20, so that older readers take the file."""
MAX_TRACED_BATCH = 4096
_LARGEST_FILE = 2**31 - 2**20
"""Protocol buffers end at 2 GiB; a little is left for metadata."""


def trace(
    module: nn.Module,
    input_size: tuple[int, int],
    in_channels: int = 3,
    output_names: Sequence[str] = ("logits",),
) -> onnx.ModelProto:
    """Trace a module to ONNX with a dynamic batch.

    Args:
        module: in evaluation mode; it maps (N, C, H, W) to a tensor, or to several, N first
        input_size: H and W in pixels
        in_channels: C
        output_names: what to call its outputs, in their order

    Returns:
        a checked and simplified model of opset 20, weights inside, with the input `input` and those outputs

    Raises:
        ExportError: if the module cannot be traced, with the tracer's reason
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # A batch of two: torch.export takes a dimension of one for a constant.
    example = torch.zeros(2, in_channels, *input_size, device=device)
    batch = torch.export.Dim("batch", min=1, max=MAX_TRACED_BATCH)
    return trace_examples(module, {INPUT_NAME: example}, ({0: batch},), output_names)


def trace_examples(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    dynamic_shapes: Sequence[Mapping[int, Any]],
    output_names: Sequence[str],
) -> onnx.ModelProto:
    """Trace a module to ONNX with whichever inputs it has.

    Args:
        module: in evaluation mode
        examples: by the name that each input gets, in the order of the arguments of `forward`
        dynamic_shapes: for each of them, which dimensions are dynamic: a `torch.export.Dim` by their number
        output_names: what to call its outputs, in their order

    Returns:
        a checked and simplified model of opset 20, weights inside

    Raises:
        ExportError: if the module cannot be traced, with the tracer's reason
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=list(output_names),
                dynamic_shapes=_by_argument(module, dynamic_shapes),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                # The optimizer folds normalization in float32, and in some of its releases wrongly where convolutions
                # share their weights: it runs below, when that is done.
                optimize=False,
            )
            if program is None:
                raise ExportError("the tracer gave no model")
            model = program.model_proto
            del program
            if model.ByteSize() > _LARGEST_FILE:
                raise ExportError(
                    f"the network has {model.ByteSize() / 2**30:.1f} GiB of weights, and an ONNX file ends at 2 GiB"
                )
            model = onnxscript.optimizer.optimize(fold_layers(model))
    except ExportError:
        raise
    except Exception as e:  # the tracer raises errors of many kinds, some of them private to it
        reason = str(e).strip().splitlines()
        sizes = " and ".join("×".join(map(str, example.shape[2:])) for example in examples.values())
        raise ExportError(
            f"{type(module).__name__} cannot be traced at {sizes}: {reason[0] if reason else type(e).__name__}"
        ) from e
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "holocron-edge", ""
    return simplify(model)


def _by_argument(module: nn.Module, dynamic_shapes: Sequence[Mapping[int, Any]]) -> tuple[Any, ...]:
    """One entry an argument of `forward`; those that it takes as `*args` are together one."""
    shapes = tuple(dict(dynamic) for dynamic in dynamic_shapes)
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    return (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes


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
