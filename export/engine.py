"""TensorRT and TensorRT-RTX engines from an ONNX graph. One builder for both, no torch.

The network is strongly typed: precision is what the graph says (FP16 by a converted graph, INT8 by Q/DQ), never a
builder flag, which TensorRT 11 no longer has. TensorRT builds for the GPU that is present; TensorRT-RTX builds for any
compute capability, with no GPU at all.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from runtime.backends.cuda import device_count
from runtime.manifest import COLUMNS_INPUT, FRAME_INPUT, ROWS_INPUT, EngineInfo, FrameSpec

from .errors import EngineError

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_OLDEST_TENSORRT = (10, 3)
_HOST_WAYS = (
    "build a TensorRT-RTX engine here with --rtx, or export the bundle without --trt and run "
    "`holocron-export BUNDLE --trt` on the device"
)


def check_builder(library: str, capabilities: tuple[str, ...] = ()) -> None:
    """Make sure that engines can be built here, before any other work is done for them.

    Args:
        library: `"tensorrt"` or `"tensorrt_rtx"`
        capabilities: compute capabilities asked of TensorRT-RTX

    Raises:
        EngineError: if the library is not installed, is too old, has no GPU where it needs one, or does not know a
            compute capability
    """
    trt = _import(library)
    if library == "tensorrt":
        if device_count() == 0:
            raise EngineError(f"--trt builds for the GPU of this machine, which has none: {_HOST_WAYS}")
        return
    for capability in capabilities:
        _sm(trt, capability)


def build_engine(onnx: bytes, info: EngineInfo, frame: FrameSpec | None = None) -> bytes:
    """Parse a graph and build an engine from it.

    Args:
        onnx: the graph, a serialized ONNX model with a dynamic first dimension of its inputs
        info: the library to build with, the compute capability to build for (TensorRT builds for the GPU that is
            present), and the largest batch, which is what the engine is tuned for
        frame: the frames that the graph takes, of whose largest the engine is tuned for; None if it takes images

    Returns:
        the serialized engine

    Raises:
        EngineError: if the library refuses the graph, with its own words
    """
    trt, library = _import(info.library), info.library
    logger = _logger(trt)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as e:  # TypeError is what the bindings make of a null pointer
        raise EngineError(f"{_name(library)} {trt.__version__} does not start: {logger.last_error}") from e
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineError(f"{_name(library)} {trt.__version__} refuses the graph: {errors}")
    config = builder.create_builder_config()
    if library == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(_sm(trt, info.compute_capability), 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        rest = tuple(tensor.shape)[1:]
        smallest = tuple(1 if side < 0 else side for side in rest)
        largest = _largest(tensor.name, rest, frame)
        profile.set_shape(tensor.name, (1, *smallest), (info.max_batch, *largest), (info.max_batch, *largest))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{_name(library)} {trt.__version__} could not build the engine: {logger.last_error}")
    return bytes(plan)


def _largest(name: str, shape: tuple[int, ...], frame: FrameSpec | None) -> tuple[int, ...]:
    """The largest shape of an input without its batch: its dynamic sides are those of a frame."""
    if frame is None:
        return shape
    dynamic = {FRAME_INPUT: frame.size, ROWS_INPUT: frame.size[:1], COLUMNS_INPUT: frame.size[1:]}
    given = iter(dynamic[name])
    return tuple(next(given) if side < 0 else side for side in shape)


def engine_file(variant: str, info: EngineInfo) -> str:
    """Name of an engine in a bundle, e.g. `model.int8.trt.tensorrt_rtx-1.7.1-sm86.engine`."""
    version = ".".join(info.version.split(".")[:3])
    return f"model.{variant}.{info.library}-{version}-sm{info.compute_capability.replace('.', '')}.engine"


def library_version(library: str) -> str:
    """Version of an installed TensorRT library.

    Raises:
        EngineError: if it is not installed
    """
    return str(_import(library).__version__)


def _import(library: str) -> Any:
    if library not in LIBRARIES:
        raise EngineError(f"{library!r} builds no engines, expected one of {', '.join(LIBRARIES)}")
    try:
        trt = importlib.import_module(library)
    except (ImportError, OSError) as e:  # OSError: the package is there, a shared library that it opens is not
        extra = "trt" if library == "tensorrt" else "rtx"
        ways = f": {_HOST_WAYS}" if library == "tensorrt" else ""
        if isinstance(e, ModuleNotFoundError):
            problem = f"`{library}`, which is not installed (pip install 'holocron-edge[{extra}]')"
        else:
            problem = f"`{library}`, which does not load ({e})"
        raise EngineError(f"--{extra} needs {problem}{ways}") from e
    version = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if library == "tensorrt" and version < _OLDEST_TENSORRT:
        raise EngineError(f"TensorRT {trt.__version__} is too old: 10.3 or later is needed (JetPack 6 and 7 have it)")
    return trt


def _network_flags(trt: Any) -> int:
    """Strongly typed: a flag in TensorRT 10, the only way in TensorRT 11, where the flag may be gone."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error, so that an exception can say it, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message.strip().replace("\n", " ")

    return Logger()


def _sm(trt: Any, capability: str) -> Any:
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability {capability}; "
            f"it knows {', '.join(sorted(known, key=float))}"
        )
    return known[capability]


def _name(library: str) -> str:
    return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[library]


def device_capability() -> str:
    """Compute capability of the first GPU, as in "8.7", asked of the driver: TensorRT does not say what it built for.

    Raises:
        EngineError: if the driver does not tell
    """
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int(0)
        if device_count() == 0 or ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(value), attribute, 0):
            raise EngineError("the CUDA driver does not tell the GPU's compute capability")
        numbers.append(value.value)
    return ".".join(map(str, numbers))
