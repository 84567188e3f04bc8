"""What was asked of the exporter, checked and frozen before any work starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from calib import AUTO, EFFORTS, METHODS, CalibrationSettings
from runtime.backends import BACKENDS, unavailable
from runtime.manifest import CHANNEL_ORDERS, Artefact, FrameSpec, Preprocessing

from .engine_options import EngineBuild
from .errors import ExportError

DEFAULT_RTX_CAPABILITIES = ("8.6",)
"""What `--rtx` builds for unless told: Ampere consumer GPUs (RTX 30), the oldest in wide use."""

INPUTS = ("image", "frame")
DEFAULT_MAX_FRAME = (1080, 1920)
"""Largest frame unless told, height and width: what most cameras give."""
DEFAULT_MAX_DETECTIONS = 100
"""Rows of the outputs of a detector, as the COCO evaluation counts them."""

_LARGEST_RANKED = 3839  # TensorRT 10 sorts fewer than 3840 values
_CAPABILITY = re.compile(r"\d{1,2}\.\d")
_MAX_SIDE = 8192


@dataclass(frozen=True)
class Tolerances:
    """How far an artefact may answer from the model it was made from before the export fails.

    They catch a broken artefact, not a mediocre one: what each lost is in the manifest and in the printed table.

    Attributes:
        fp32: largest relative error ‖ours − reference‖ / ‖reference‖ of the float32 graph.
        fp16: the same of the float16 graph.
        int8: the same of a quantized graph.
        fp32_engine: the same of an engine of the float32 graph. It is built without TF32, so that it differs by the
            order of its sums and by transforms of its convolutions: float32's own rounding, which is 3e-7 to 2e-5 at
            the output of eight architectures, leaves room for those. TF32 there costs 5e-4 and more.
        engine_agreement: by how much the share of pixels or detections that an engine has in common with the float32
            graph may be less than its own graph's.
        int8_agreement: smallest share of images (in segmentation of pixels) on which a quantized graph of trained
            weights keeps the first class.
        int8_accuracy_drop: largest loss of accuracy of a quantized graph on labelled images; 0.1 is 10 points.
    """

    fp32: float = 1e-4
    fp16: float = 3e-2
    int8: float = 0.5
    fp32_engine: float = 1e-3
    engine_agreement: float = 0.1
    int8_agreement: float = 0.6
    int8_accuracy_drop: float = 0.1

    def relative_error(self, artefact: Artefact) -> float:
        """The largest relative error of an artefact, which of an engine is that of its graph but for float32."""
        if artefact.precision == "fp32" and artefact.kind == "engine":
            return self.fp32_engine
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[artefact.precision]


@dataclass(frozen=True)
class ExportSpec:
    """One export, as asked for on the command line or in :func:`export.export_model`.

    Attributes:
        model: an architecture's name, or the path of an existing bundle, `./repvgg_a0` where the two are alike.
        output: the folder to write; None is the model's name in the current folder, or the bundle itself.
        weights: `"default"` (the published checkpoint), `"none"` (random), a checkpoint entry, or a file.
        num_classes: number of classes; None takes it from the labels or the weights.
        labels: a text file with one class name a line.
        input_size: height and width in pixels; None takes them from the weights or the architecture.
        preprocessing: replaces everything known about the preprocessing, the input size included.
        input: what the graphs take: `"image"`, resized and normalized, or `"frame"`, as a camera gives it.
        channels: order of a frame's channels, `"rgb"` or `"bgr"`.
        frame: height and width of every frame in pixels, where they are known.
        max_frame: height and width of the largest frame in pixels; None is :data:`DEFAULT_MAX_FRAME`.
        end_to_end: whether the graphs give what a program wants: detections, the class map, probabilities. False is
            the network's own outputs. None is detections of a detector, and otherwise what the options below ask for.
        score_threshold: of detections: the least score of a box; None takes the detector's own.
        iou_threshold: of detections: a box that overlaps a better one of its class by more is dropped; None takes the
            detector's own.
        max_detections: of detections: rows of the outputs; None is 100.
        candidates: of detections: boxes that take part, those with the highest scores; None is 300, or
            `max_detections` if that is more.
        nms_steps: of detections: how often suppression is applied; None is 16.
        probabilities: probabilities of the classes instead of logits.
        top_k: of a classifier: that many classes and their probabilities instead of the logits of all.
        class_map: of a segmenter: the class of each pixel instead of the logits of all.
        fp16: also write the float16 graph.
        int8: also write the two INT8 graphs.
        int8_report: also write what is known about them, as a page and as data.
        max_drop: points of accuracy (without `eval_folder`, of agreement with the float network) that an INT8 graph may
            lose; as few layers as that takes stay in higher precision. None keeps none.
        tune: backend on which a layer must make the whole faster to be in INT8; None times nothing.
        calib: folder of images to calibrate on; None takes the small set that comes with the package.
        calib_samples: at most that many images of it.
        calib_method: how ranges are chosen: :data:`calib.AUTO`, for each tensor what costs the output least, or one of
            :data:`calib.METHODS` for all.
        effort: how much work goes into keeping accuracy, one of :data:`calib.EFFORTS`.
        per_tensor: one scale for all weights of a layer, for targets that have no more.
        verify_samples: images on which artefacts are compared with the reference where `eval_folder` is not given.
        eval_folder: a folder a class of labelled images, on which every artefact's accuracy is measured.
        max_batch: largest batch that an engine takes.
        trt: build a TensorRT engine for this machine's GPU.
        rtx: build a TensorRT-RTX engine; needs no GPU.
        rtx_capabilities: compute capabilities to build TensorRT-RTX engines for.
        engine: what else is asked of engines.
        cpp: also write an example in C++ that opens the bundle, in a folder beside it.
        force: replace what exists.
        seed: of random weights and of the choice of images.
        tolerances: when an artefact counts as broken.
    """

    model: str
    output: Path | None = None
    weights: str = "default"
    num_classes: int | None = None
    labels: Path | None = None
    input_size: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None
    input: str = "image"
    channels: str = "rgb"
    frame: tuple[int, int] | None = None
    max_frame: tuple[int, int] | None = None
    end_to_end: bool | None = None
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    candidates: int | None = None
    nms_steps: int | None = None
    probabilities: bool = False
    top_k: int | None = None
    class_map: bool = False
    fp16: bool = False
    int8: bool = False
    int8_report: bool = False
    max_drop: float | None = None
    tune: str | None = None
    calib: Path | None = None
    calib_samples: int = 256
    calib_method: str = AUTO
    effort: str = "normal"
    per_tensor: bool = False
    verify_samples: int = 32
    eval_folder: Path | None = None
    max_batch: int = 1
    trt: bool = False
    rtx: bool = False
    rtx_capabilities: tuple[str, ...] = ()
    engine: EngineBuild = field(default_factory=EngineBuild)
    cpp: bool = False
    force: bool = False
    seed: int = 0
    tolerances: Tolerances = Tolerances()

    def __post_init__(self) -> None:
        """Refuse what no export can mean.

        Raises:
            ExportError: naming the option and the value
        """
        self._check_range("--num-classes", self.num_classes, 1, 1_000_000)
        self._check_range("--calib-samples", self.calib_samples, 1, 1_000_000)
        self._check_range("--verify-samples", self.verify_samples, 1, 1_000_000)
        self._check_range("--max-batch", self.max_batch, 1, 4096)
        self._check_range("--seed", self.seed, 0, 2**32 - 1)
        if self.input_size is not None and len(self.input_size) != 2:
            raise ExportError(f"--input-size takes height and width, not {self.input_size}")
        for side in self.input_size or ():
            self._check_range("--input-size", side, 1, _MAX_SIDE)
        for option, value, known in (
            ("--calib-method", self.calib_method, (AUTO, *METHODS)),
            ("--effort", self.effort, EFFORTS),
        ):
            if value not in known:
                raise ExportError(f"{option} {value!r} is unknown, expected one of {', '.join(known)}")
        if self.per_tensor and not self.int8:
            raise ExportError("--per-tensor is of INT8 graphs: add --int8")
        for folder, option in ((self.calib, "--calib"), (self.eval_folder, "--eval")):
            if folder is not None and not folder.is_dir():
                raise ExportError(f"{option} {folder} is not a folder")
        if self.preprocessing is not None and self.input_size is not None:
            raise ExportError("give the input size in `preprocessing` or as `input_size`, not in both")
        self._check_post_processing()
        self._check_mixed_precision()
        self._check_frame()
        if self.int8_report and not self.int8:
            raise ExportError("--int8-report tells of what --int8 makes: add --int8")
        if self.rtx_capabilities and not self.rtx:
            raise ExportError("--rtx-capability says what --rtx builds for: add --rtx")
        if self.max_batch != 1 and not (self.trt or self.rtx):
            raise ExportError(f"--max-batch {self.max_batch} is of an engine, ONNX files take any: add --trt or --rtx")
        given = self.engine.given()
        if given and not (self.trt or self.rtx):
            raise ExportError(f"{given[0]} is of an engine: add --trt or --rtx")
        for capability in self.rtx_capabilities:
            if not _CAPABILITY.fullmatch(capability):
                raise ExportError(f"--rtx-capability {capability!r} is not a compute capability such as 8.6")

    def _check_frame(self) -> None:
        for option, value, choices in (
            ("--input", self.input, INPUTS),
            ("--channels", self.channels, CHANNEL_ORDERS),
        ):
            if value not in choices:
                raise ExportError(f"{option} {value} is unknown, expected one of {', '.join(choices)}")
        for option, size in (("--frame", self.frame), ("--max-frame", self.max_frame)):
            if size is not None and len(size) != 2:
                raise ExportError(f"{option} takes height and width, not {size}")
            if size is not None and self.input != "frame":
                raise ExportError(f"{option} {size[0]} {size[1]} is of frames: add --input frame")
            for side in size or ():
                self._check_range(option, side, 1, _MAX_SIDE)
        if self.channels != "rgb" and self.input != "frame":
            raise ExportError(f"--channels {self.channels} is of frames: add --input frame")
        if self.frame is not None and self.max_frame is not None:
            raise ExportError("--frame says that all frames have one size, --max-frame that they differ: give one")

    @property
    def frame_spec(self) -> FrameSpec | None:
        """The frames that the graphs take; None if they take images."""
        if self.input != "frame":
            return None
        size = self.frame or self.max_frame or DEFAULT_MAX_FRAME
        return FrameSpec(self.channels, (size[0], size[1]), self.frame is not None)

    def _check_post_processing(self) -> None:
        given = self.post_processing_options
        if self.end_to_end is False and given:
            raise ExportError(f"--{given[0].replace('_', '-')} is of what --raw leaves out: give one of the two")
        for option, value in (("--score-threshold", self.score_threshold), ("--iou-threshold", self.iou_threshold)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ExportError(f"{option} {value} is out of range, expected a number from 0 to 1")
        self._check_range("--max-detections", self.max_detections, 1, _LARGEST_RANKED)
        self._check_range("--candidates", self.candidates, 1, _LARGEST_RANKED)
        self._check_range("--nms-steps", self.nms_steps, 2, 1000)
        self._check_range("--top-k", self.top_k, 1, _LARGEST_RANKED)
        if self.candidates is not None and self.candidates < (self.max_detections or DEFAULT_MAX_DETECTIONS):
            raise ExportError(
                f"--candidates {self.candidates} are fewer than the {self.max_detections or DEFAULT_MAX_DETECTIONS} of "
                "--max-detections, which are chosen from them"
            )

    @property
    def post_processing_options(self) -> tuple[str, ...]:
        """Names of the options given that are about what the graphs make of the network's outputs."""
        names = ("score_threshold", "iou_threshold", "max_detections", "candidates", "nms_steps", "top_k")
        given = tuple(name for name in names if getattr(self, name) is not None)
        return given + tuple(name for name in ("probabilities", "class_map") if getattr(self, name))

    def _check_mixed_precision(self) -> None:
        for option, value in (("--max-drop", self.max_drop), ("--tune", self.tune)):
            if value is not None and not self.int8:
                raise ExportError(f"{option} {value} is of INT8 graphs: add --int8")
        drop = self.max_drop
        if drop is not None and (isinstance(drop, bool) or not isinstance(drop, (int, float)) or not 0 <= drop <= 100):
            raise ExportError(f"--max-drop {drop} is no number of points from 0 to 100: 0.5 allows half a point")
        if self.tune is not None:
            names = [name for name, backend in BACKENDS.items() if backend.opens == "onnx"]  # which it times graphs on
            if self.tune not in names:
                raise ExportError(f"--tune {self.tune} is no backend: expected one of {', '.join(names)}")
            reason = unavailable(self.tune)
            if reason is not None:
                raise ExportError(f"--tune {self.tune} cannot time anything here: {reason}")

    @property
    def mixes_precision(self) -> bool:
        """Whether some layers of INT8 graphs may stay in higher precision."""
        return self.max_drop is not None or self.tune is not None

    @property
    def calibration(self) -> CalibrationSettings:
        """What is asked of the calibration."""
        return CalibrationSettings(self.calib_method, self.effort, self.per_tensor, self.seed)

    @property
    def reports_int8(self) -> bool:
        """Whether what is known about INT8 graphs is written: also wherever there was a choice to give reasons for."""
        return self.int8_report or self.mixes_precision

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities to build TensorRT-RTX engines for, each once."""
        return tuple(dict.fromkeys(self.rtx_capabilities)) or DEFAULT_RTX_CAPABILITIES

    @staticmethod
    def _check_range(option: str, value: int | None, lowest: int, highest: int) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise ExportError(f"{option} {value} is out of range, expected an integer from {lowest} to {highest}")
