"""`manifest.json`: what a bundle contains and how to feed it. The contract for Python and C++ alike.

The format is written down in `docs/bundle.md`. Parsing is strict: an unknown schema version, an unknown key, a missing
key, a value of the wrong type, or a path that leaves the bundle is a :class:`~runtime.errors.BundleError`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BundleError
from .json_reader import JsonReader, kind_of, shortened
from .json_syntax import JsonError, parse_json
from .post_processing import PostProcessing, parse_post_processing

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
METADATA_KEY = "holocron.manifest"
"""Key of an ONNX file's `metadata_props` under which the manifest (without artefacts) is repeated."""
VARIANT_KEY = "holocron.variant"
"""Key of an ONNX file's `metadata_props` for its precision and scheme in one word, as :attr:`Artefact.variant`."""

PRECISIONS = ("fp32", "fp16", "int8")
SCHEMES = ("cpu", "trt")
TASKS = ("classification", "detection", "segmentation")
KINDS = ("onnx", "engine")
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
RESIZE_MODES = ("squish", "pad")
PAD_MODES = ("constant", "edge", "reflect", "symmetric")
CHANNEL_ORDERS = ("rgb", "bgr")
FRAME_INPUT, ROWS_INPUT, COLUMNS_INPUT = "frame", "rows", "columns"
"""Names of the inputs of a network that takes frames."""
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
DTYPES = ("float32", "float16", "uint8", "int32", "int64", "float64", "int8", "bool")

_MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_PIXELS_A_SIDE = 2**15
_MIN_STD = 1e-12
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the network: its name, element type and shape.

    Attributes:
        name: name in the ONNX graph.
        dtype: numpy name of the element type, e.g. `"float32"`.
        shape: one entry a dimension; a string is a dynamic dimension's name, e.g. `("batch", 3, 224, 224)`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    uint8 RGB is resized to `size` and divided by 255; then `mean` is subtracted and the rest divided by `std`, in
    float32.

    Attributes:
        size: height and width in pixels.
        resize: `"squish"` changes the aspect ratio, `"pad"` keeps it and pads, centred.
        pad_mode: what `"pad"` fills with; `"constant"` is black.
        interpolation: Pillow's filter by lower-case name; filters other than nearest are antialiased.
        mean: one value a channel, RGB, in units of 1 (not 255).
        std: one value a channel, RGB, in units of 1 (not 255).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "squish"
    pad_mode: str = "constant"
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class FrameSpec:
    """The frames that a network takes whose preprocessing is part of its graph: uint8 (N, h, w, 3).

    Attributes:
        channels: their order, `"rgb"` or `"bgr"`.
        size: largest height and width in pixels; the only ones if the size is fixed.
        fixed: whether every frame has that size. If not, the network takes the matrices that resize it as inputs too.
    """

    channels: str
    size: tuple[int, int]
    fixed: bool


def frame_inputs(frame: FrameSpec, preprocessing: Preprocessing) -> tuple[TensorSpec, ...]:
    """The inputs of a network that takes frames.

    Args:
        frame: which frames it takes
        preprocessing: gives the size that they are resized to

    Returns:
        the frame, and where its size is not fixed the matrices of :class:`runtime.resampling.ResizeMatrices`
    """
    if frame.fixed:
        return (TensorSpec(FRAME_INPUT, "uint8", ("batch", *frame.size, 3)),)
    H, W = preprocessing.size
    return (
        TensorSpec(FRAME_INPUT, "uint8", ("batch", "height", "width", 3)),
        TensorSpec(ROWS_INPUT, "float32", ("batch", H, "height")),
        TensorSpec(COLUMNS_INPUT, "float32", ("batch", "width", W)),
    )


@dataclass(frozen=True)
class EngineInfo:
    """What a serialized engine was built with: it opens nowhere else.

    Attributes:
        library: `"tensorrt"` or `"tensorrt_rtx"`.
        version: the library's version, e.g. `"10.3.0"`.
        compute_capability: of the GPU that it is for, e.g. `"8.7"`.
        max_batch: largest batch of its optimization profile.
        hardware_compatibility: other GPUs that it is for, one of :data:`HARDWARE_COMPATIBILITY`: none, Ampere and
            newer, those of its compute capability.
        version_compatible: whether later versions of the same major version open it too. It then holds code that the
            processor executes.
        stripped: whether it is without its weights, which it gets from the bundle's ONNX file when it is opened.
        dla_core: the deep learning accelerator that it is for; None for the GPU.
        optimization_level: the builder's, 0 to 5; None for the library's default.
        workspace_mib: memory that a layer might use when it was built, in MiB; None for all that there was.
    """

    library: str
    version: str
    compute_capability: str
    max_batch: int
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    stripped: bool = False
    dla_core: int | None = None
    optimization_level: int | None = None
    workspace_mib: int | None = None


@dataclass(frozen=True)
class Verification:
    """How one artefact answered, beside the PyTorch model, on the same real images.

    Attributes:
        reference: what it was compared with: `"pytorch"`, or the float32 graph, `"onnx-fp32"`: when made from a bundle,
            and for engines that give nothing of the network itself.
        images: number of images.
        relative_error: ‖ours − reference‖ / ‖reference‖ over all images, of the output where it is largest.
        cosine: smallest cosine similarity of one output of one image.
        top1_agreement: share of the images, in segmentation of the pixels, with the same first class, 0 to 1; None for
            outputs that are not scores of classes, such as a detector's raw heads.
        accuracy: share of the labelled images answered rightly, 0 to 1; None without labels.
        reference_accuracy: the same of the reference.
        labelled_images: number of labelled images; 0 without labels.
        backend: what ran the artefact.
    """

    reference: str
    images: int
    relative_error: float
    cosine: float
    top1_agreement: float | None
    accuracy: float | None = None
    reference_accuracy: float | None = None
    labelled_images: int = 0
    backend: str = "onnxruntime"


@dataclass(frozen=True)
class Artefact:
    """One file of the bundle that a backend opens.

    Attributes:
        file: path relative to the bundle, with `/`.
        kind: `"onnx"` or `"engine"`.
        precision: `"fp32"`, `"fp16"` or `"int8"`.
        scheme: quantization scheme of an int8 artefact, `"cpu"` or `"trt"`; None otherwise.
        size: bytes.
        sha256: of the file, 64 lower-case hexadecimal digits.
        engine: what an engine was built with; None for ONNX.
        verification: how it answered beside the reference; None if it could not be run where it was made.
    """

    file: str
    kind: str
    precision: str
    size: int
    sha256: str
    scheme: str | None = None
    engine: EngineInfo | None = None
    verification: Verification | None = None

    @property
    def variant(self) -> str:
        """Precision and scheme in one word: `"fp32"`, `"fp16"`, `"int8.cpu"`, `"int8.trt"`."""
        return f"{self.precision}.{self.scheme}" if self.scheme else self.precision


@dataclass(frozen=True)
class Manifest:
    """All that a program must know of a bundle.

    Attributes:
        name: the model's name, e.g. `"repvgg_a0"`.
        task: what the outputs mean, one of :data:`TASKS`.
        labels: one name a class, in the order of the classes in the outputs.
        inputs: the network's inputs.
        outputs: the network's outputs.
        preprocessing: how an image becomes the input.
        artefacts: the files that backends open; empty in an ONNX file's own metadata.
        provenance: what made it: versions, weights, seed, time. Information only; nothing is decided by it.
        frame: the frames that the network takes, if resizing and normalization are part of its graph; None if it takes
            what they give.
        post_processing: what the graph makes of the network's own outputs; None if it gives those.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    artefacts: tuple[Artefact, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    frame: FrameSpec | None = None
    post_processing: PostProcessing | None = None

    def to_json(self) -> str:
        """The manifest as it stands in `manifest.json`."""
        values = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        if self.frame is None:  # a key that older readers of this version do not know
            del values["frame"]
        if self.post_processing is None:
            del values["post_processing"]
        else:
            values["post_processing"] = self.post_processing.to_dict()
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check a manifest.

        Args:
            text: JSON.
            where: what to call it in an error.

        Returns:
            the manifest

        Raises:
            BundleError: if it is not a manifest of this version, with what is wrong
        """
        try:
            data = parse_json(text)
        except JsonError as e:
            raise BundleError(f"{where} is not JSON ({e}): export the model again") from e
        return _Parser(where).manifest(data)


def read_manifest(bundle: Path) -> Manifest:
    """Read and check the manifest of a bundle folder. The artefacts themselves are not read.

    Args:
        bundle: the folder

    Returns:
        its manifest

    Raises:
        BundleError: if there is none, or it is not valid
    """
    path = bundle / MANIFEST_NAME
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a file")
        if status.st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB: this is not a manifest")
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST_NAME}") from None
    except UnicodeDecodeError as e:
        raise BundleError(f"cannot read {path}: it is not UTF-8 text") from e
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e
    return Manifest.from_json(text, str(path))


def artefact_path(bundle: Path, artefact: Artefact, check_hash: bool = True) -> Path:
    """Where an artefact lies, after checking that it is the file that the manifest describes.

    Args:
        bundle: the bundle's folder
        artefact: one of its manifest's artefacts
        check_hash: compare the SHA-256 too, not the size alone

    Returns:
        the file's path

    Raises:
        BundleError: if the file is missing, leaves the bundle, or has another size or hash
    """
    path = bundle / artefact.file
    try:
        resolved = path.resolve(strict=True)
        if bundle.resolve() not in resolved.parents:
            raise BundleError(f"{artefact.file!r} leads out of the bundle {bundle}: refused")
        status = resolved.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}, which the manifest names, is not a file")
        size = status.st_size
        if size != artefact.size:
            raise BundleError(
                f"{path} has {size} bytes where the manifest says {artefact.size}: it was cut off or changed; "
                "copy the bundle again or export it again"
            )
        if check_hash and sha256_of(resolved) != artefact.sha256:
            raise BundleError(
                f"{path} does not have the SHA-256 that the manifest says: it was changed; copy the bundle again or "
                "export it again"
            )
    except OSError as e:
        raise BundleError(f"cannot read {path}, which the manifest names: {e.strerror or e}") from e
    except RuntimeError as e:  # before Python 3.13
        raise BundleError(f"cannot read {path}, which the manifest names: {os.strerror(errno.ELOOP)}") from e
    return resolved


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    import hashlib  # loads OpenSSL, which `import runtime` can do without

    digest = hashlib.sha256()
    with path.open("rb") as f:
        for chunk in iter(lambda: f.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


class _Parser(JsonReader):
    """Turns decoded JSON into a :class:`Manifest`, naming the place of whatever is wrong."""

    def manifest(self, data: Any) -> Manifest:
        if not isinstance(data, dict):
            raise self.fail("the top level", f"is {kind_of(data)}, expected an object")
        version = data.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version != SCHEMA_VERSION:
            raise BundleError(
                f"{self.where} has schema version {shortened(version)}, this release reads version {SCHEMA_VERSION}: "
                "update holocron-edge, or export the model again with this one"
            )
        data = {k: v for k, v in data.items() if k != "schema_version"}
        self.keys(data, Manifest, "the top level")
        result = Manifest(
            name=self.text(data["name"], "name"),
            task=self.choice(data["task"], "task", TASKS),
            labels=self.sequence(data["labels"], "labels", self.text),
            inputs=self.sequence(data["inputs"], "inputs", self.tensor),
            outputs=self.sequence(data["outputs"], "outputs", self.tensor),
            preprocessing=self.preprocessing(data["preprocessing"], "preprocessing"),
            artefacts=self.sequence(data.get("artefacts", []), "artefacts", self.artefact),
            provenance=self.mapping(data.get("provenance", {}), "provenance"),
            frame=None if data.get("frame") is None else self.frame(data["frame"], "frame"),
            post_processing=parse_post_processing(self, data.get("post_processing"), "post_processing"),
        )
        if not result.inputs or not result.outputs:
            raise self.fail("inputs and outputs", "need one entry at least")
        if result.frame is not None and result.inputs != frame_inputs(result.frame, result.preprocessing):
            raise self.fail("inputs", "are not those of a network that takes such frames")
        files = [a.file for a in result.artefacts]
        if len(set(files)) != len(files):
            raise self.fail("artefacts", "name the same file twice")
        return result

    def tensor(self, value: Any, place: str) -> TensorSpec:
        data = self.mapping(value, place)
        self.keys(data, TensorSpec, place)
        return TensorSpec(
            name=self.text(data["name"], f"{place}.name"),
            dtype=self.choice(data["dtype"], f"{place}.dtype", DTYPES),
            shape=self.sequence(data["shape"], f"{place}.shape", self.dimension),
        )

    def dimension(self, value: Any, place: str) -> int | str:
        return value if isinstance(value, str) else self.integer(value, place, 1, 2**31 - 1)

    def preprocessing(self, value: Any, place: str) -> Preprocessing:
        data = self.mapping(value, place)
        self.keys(data, Preprocessing, place)
        size = self.sequence(data["size"], f"{place}.size", lambda v, p: self.integer(v, p, 1, _MAX_PIXELS_A_SIDE))
        mean = self.sequence(data["mean"], f"{place}.mean", self.number)
        std = self.sequence(data["std"], f"{place}.std", self.number)
        if len(size) != 2 or len(mean) != 3 or len(std) != 3:
            raise self.fail(place, "needs 2 values in size and 3 each in mean and std")
        if any(s < _MIN_STD for s in std):
            raise self.fail(f"{place}.std", f"is {list(std)}, expected positive numbers, {_MIN_STD} at least")
        return Preprocessing(
            size=(size[0], size[1]),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            resize=self.choice(data.get("resize", "squish"), f"{place}.resize", RESIZE_MODES),
            pad_mode=self.choice(data.get("pad_mode", "constant"), f"{place}.pad_mode", PAD_MODES),
            interpolation=self.choice(data.get("interpolation", "bilinear"), f"{place}.interpolation", INTERPOLATIONS),
        )

    def frame(self, value: Any, place: str) -> FrameSpec:
        data = self.mapping(value, place)
        self.keys(data, FrameSpec, place)
        size = self.sequence(data["size"], f"{place}.size", lambda v, p: self.integer(v, p, 1, _MAX_PIXELS_A_SIDE))
        if len(size) != 2:
            raise self.fail(f"{place}.size", "needs 2 values")
        channels = self.choice(data["channels"], f"{place}.channels", CHANNEL_ORDERS)
        return FrameSpec(channels, (size[0], size[1]), self.boolean(data["fixed"], f"{place}.fixed"))

    def artefact(self, value: Any, place: str) -> Artefact:
        data = self.mapping(value, place)
        self.keys(data, Artefact, place)
        precision = self.choice(data["precision"], f"{place}.precision", PRECISIONS)
        scheme = data.get("scheme")
        if (scheme is not None) != (precision == "int8"):
            raise self.fail(
                f"{place}.scheme", f"is {shortened(scheme)} with precision {precision}: int8 has one, others none"
            )
        digest = self.text(data["sha256"], f"{place}.sha256")
        if not _HEX.fullmatch(digest):
            raise self.fail(f"{place}.sha256", f"is {shortened(digest)}, expected 64 lower-case hexadecimal digits")
        engine, verification = data.get("engine"), data.get("verification")
        kind = self.choice(data["kind"], f"{place}.kind", KINDS)
        if (engine is not None) != (kind == "engine"):
            raise self.fail(f"{place}.engine", f"must be given for kind engine and for no other, this is {kind}")
        return Artefact(
            file=self.file(data["file"], f"{place}.file"),
            kind=kind,
            precision=precision,
            size=self.integer(data["size"], f"{place}.size", 0, 2**53),
            sha256=digest,
            scheme=None if scheme is None else self.choice(scheme, f"{place}.scheme", SCHEMES),
            engine=None if engine is None else self.engine(engine, f"{place}.engine"),
            verification=None if verification is None else self.verification(verification, f"{place}.verification"),
        )

    def file(self, value: Any, place: str) -> str:
        text = self.text(value, place)
        path = PurePosixPath(text)
        inside = text and not path.is_absolute() and ".." not in path.parts and "\\" not in text and "\0" not in text
        if not inside or ":" in text or path == PurePosixPath("."):
            raise self.fail(place, f"is {shortened(text)}, expected a relative path inside the bundle")
        return text

    def engine(self, value: Any, place: str) -> EngineInfo:
        data = self.mapping(value, place)
        self.keys(data, EngineInfo, place)
        return EngineInfo(
            library=self.text(data["library"], f"{place}.library"),
            version=self.text(data["version"], f"{place}.version"),
            compute_capability=self.text(data["compute_capability"], f"{place}.compute_capability"),
            max_batch=self.integer(data["max_batch"], f"{place}.max_batch", 1, 2**16),
            hardware_compatibility=self.choice(
                data.get("hardware_compatibility", "none"), f"{place}.hardware_compatibility", HARDWARE_COMPATIBILITY
            ),
            version_compatible=self.boolean(data.get("version_compatible", False), f"{place}.version_compatible"),
            stripped=self.boolean(data.get("stripped", False), f"{place}.stripped"),
            dla_core=self.optional_integer(data, "dla_core", place, 0, 15),
            optimization_level=self.optional_integer(data, "optimization_level", place, 0, 5),
            workspace_mib=self.optional_integer(data, "workspace_mib", place, 1, 2**20),
        )

    def verification(self, value: Any, place: str) -> Verification:
        data = self.mapping(value, place)
        self.keys(data, Verification, place)
        optional = {
            k: None if data.get(k) is None else self.number(data[k], f"{place}.{k}")
            for k in ("top1_agreement", "accuracy", "reference_accuracy")
        }
        return Verification(
            reference=self.text(data["reference"], f"{place}.reference"),
            images=self.integer(data["images"], f"{place}.images", 0, 2**53),
            relative_error=self.number(data["relative_error"], f"{place}.relative_error"),
            cosine=self.number(data["cosine"], f"{place}.cosine"),
            labelled_images=self.integer(data.get("labelled_images", 0), f"{place}.labelled_images", 0, 2**53),
            backend=self.text(data.get("backend", "onnxruntime"), f"{place}.backend"),
            **optional,
        )
