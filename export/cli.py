"""`holocron-export`: the command line of :func:`export.export_model`. It parses and prints, nothing else."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from calib import AUTO, EFFORTS, METHODS
from runtime.cli.errors import OneLineCommand
from runtime.manifest import CHANNEL_ORDERS, HARDWARE_COMPATIBILITY

from .engine_options import EngineBuild
from .pipeline import run_export
from .progress import Silent, Terminal
from .spec import INPUTS, ExportSpec

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("model")
@click.option("-o", "--output", type=_FOLDER, help="Folder to write.  [default: the model's name; a bundle itself]")
@click.option(
    "--weights",
    default="default",
    metavar="default|none|ENTRY|FILE",
    show_default=True,
    help="Published checkpoint, random weights, a checkpoint entry (RepVGG_A0_Checkpoint.IMAGENETTE), or a file.",
)
@click.option("--num-classes", type=int, metavar="N", help="Number of classes.  [default: from labels or weights]")
@click.option("--labels", type=_FILE, help="Text file with a class name a line.")
@click.option("--input-size", type=int, nargs=2, metavar="H W", help="Pixels.  [default: from weights or architecture]")
@click.option(
    "--input",
    type=click.Choice(INPUTS),
    default="image",
    show_default=True,
    help="What the graphs take: float images, resized and normalized; or uint8 frames, which they resize themselves.",
)
@click.option(
    "--channels", type=click.Choice(CHANNEL_ORDERS), default="rgb", show_default=True, help="Order of those of a frame."
)
@click.option("--frame", type=int, nargs=2, metavar="H W", help="Size of every frame, where it is known: faster.")
@click.option("--max-frame", type=int, nargs=2, metavar="H W", help="Largest frame.  [default: 1080 1920]")
@click.option(
    "--end-to-end/--raw",
    "end_to_end",
    default=None,
    help="Whether graphs give what a program wants (detections, class map, probabilities) or the network's own outputs."
    "  [default: detections of detectors, logits of others]",
)
@click.option("--score-threshold", type=float, metavar="P", help="Least score of a box.  [default: the detector's own]")
@click.option(
    "--iou-threshold",
    type=float,
    metavar="P",
    help="Most that boxes of a class overlap.  [default: the detector's own]",
)
@click.option("--max-detections", type=int, metavar="N", help="Boxes an image, at most.  [default: 100]")
@click.option("--candidates", type=int, metavar="N", help="Boxes that suppression looks at.  [default: 300]")
@click.option("--nms-steps", type=int, metavar="N", help="Steps of suppression; too few are reported.  [default: 16]")
@click.option("--probabilities", is_flag=True, help="Give probabilities of the classes, not logits.")
@click.option("--top-k", type=int, metavar="K", help="Give the K likeliest classes and their probabilities.")
@click.option("--class-map", is_flag=True, help="Give the class of each pixel.")
@click.option("--fp16", is_flag=True, help="Also write the float16 graph.")
@click.option("--int8", is_flag=True, help="Also write INT8 graphs, for CPUs and for TensorRT.")
@click.option(
    "--int8-report", is_flag=True, help="Also write report.html: ranges, sensitivity and noise of each layer."
)
@click.option(
    "--max-drop",
    type=float,
    metavar="P",
    help="Keep as few layers in higher precision as it takes to lose no more than P points of accuracy (--eval), or of "
    "agreement with the float model.",
)
@click.option(
    "--tune", metavar="BACKEND", help="Use INT8 only where that makes the whole faster on this machine's BACKEND."
)
@click.option("--calib", type=_FOLDER, help="Images to calibrate on.  [default: a few that come with the package]")
@click.option("--calib-samples", type=int, default=256, metavar="N", show_default=True, help="At most so many of them.")
@click.option(
    "--calib-method",
    type=click.Choice((AUTO, *METHODS)),
    default=AUTO,
    show_default=True,
    help="How ranges are chosen; auto takes for each tensor what costs the output least.",
)
@click.option(
    "--effort",
    type=click.Choice(EFFORTS),
    default="normal",
    show_default=True,
    help="How much work goes into keeping INT8 accurate: seconds, minutes, or as long as it takes.",
)
@click.option(
    "--per-tensor", is_flag=True, help="One scale for all weights of a layer, for targets without one per channel."
)
@click.option(
    "--verify-samples", type=int, default=32, metavar="N", show_default=True, help="Images to compare artefacts on."
)
@click.option("--eval", "eval_folder", type=_FOLDER, help="Labelled images, a folder a class, to measure accuracy on.")
@click.option("--max-batch", type=int, default=1, metavar="N", show_default=True, help="Largest batch of an engine.")
@click.option("--trt", is_flag=True, help="Build a TensorRT engine for this machine's GPU.")
@click.option("--rtx", is_flag=True, help="Build a TensorRT-RTX engine; needs no GPU.")
@click.option(
    "--rtx-capability",
    "rtx_capabilities",
    multiple=True,
    metavar="X.Y",
    help="Compute capability to build for; may be repeated.  [default: 8.6]",
)
@click.option("--engine-level", "optimization_level", type=int, metavar="0..5", help="Effort of the engine's build.")
@click.option(
    "--workspace", "workspace_mib", type=int, metavar="MIB", help="Memory that one layer of an engine may use."
)
@click.option("--dla", "dla_core", type=int, metavar="CORE", help="Build for a Jetson's deep learning accelerator.")
@click.option(
    "--hardware-compatible",
    "hardware_compatibility",
    type=click.Choice(HARDWARE_COMPATIBILITY),
    default="none",
    show_default=True,
    help="Other GPUs that the TensorRT engine also runs on.",
)
@click.option(
    "--version-compatible", is_flag=True, help="Let later TensorRTs of the same major version run the engine."
)
@click.option("--strip-weights", is_flag=True, help="Leave the weights out of the engine; they are in the ONNX file.")
@click.option("--engine-layers", "layer_information", is_flag=True, help="Also write what became of each layer.")
@click.option("--timing-cache", type=_FILE, help="File of kernel timings.  [default: one for each GPU in ~/.cache]")
@click.option("--cpp", is_flag=True, help="Also write an example in C++, ready to be built, to a folder beside it.")
@click.option("--force", is_flag=True, help="Replace what exists.")
@click.option("--seed", type=int, default=0, metavar="N", show_default=True, help="Of random weights and image choice.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def main(as_json: bool, quiet: bool, **options: Any) -> None:
    """Export MODEL, an architecture's name, to a bundle; or add what is missing to MODEL, the path of a bundle.

    \b
      holocron-export repvgg_a0 --int8 --calib photos/
      holocron-export ./repvgg_a0 --trt               on the device: no torch needed
    """  # noqa: D301 (click reads the \b itself: keep these lines as they are)
    engine = EngineBuild(**{field.name: options.pop(field.name) for field in fields(EngineBuild)})
    for name in ("input_size", "frame", "max_frame"):
        # A command line without the option gives an empty tuple in some releases of click, None in others.
        options[name] = options[name] or None
    spec = ExportSpec(engine=engine, **options)
    result = run_export(spec, Silent() if quiet else Terminal())
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        lines = (*result.layer_tables(), *result.float_lines(), *result.engine_lines(), *result.cpp_lines())
        click.echo("\n".join((result.table(), *lines, *result.notes, str(result.bundle))))
