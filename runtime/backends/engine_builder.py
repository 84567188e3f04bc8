"""Building TensorRT and TensorRT-RTX engines from an ONNX graph: on the device that runs them, no torch and no onnx.

The network is strongly typed: precision is what the graph says (FP16 by a converted graph, INT8 by Q/DQ), never a
builder flag, which TensorRT 11 no longer has. TensorRT builds for the GPU that is present; TensorRT-RTX builds for any
compute capability, with no GPU at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackendError
from ..manifest import COLUMNS_INPUT, FRAME_INPUT, ROWS_INPUT, EngineInfo, FrameSpec
from .engine_cache import PairedFile, cache_folder
from .tensorrt_library import TITLES, load_library, make_logger

if TYPE_CHECKING:
    import tensorrt

ReportProgress = Callable[[int, int | None], None]

_MIB = 2**20
_PERCENT = 100


def build_engine(
    onnx: bytes,
    info: EngineInfo,
    frame: FrameSpec | None = None,
    *,
    detailed: bool = False,
    timing_cache: Path | None = None,
    progress: ReportProgress | None = None,
) -> bytes:
    """Parse a graph and build an engine from it.

    Args:
        onnx: the graph, a serialized ONNX model with a dynamic first dimension of its inputs
        info: the library to build with, the compute capability to build for (TensorRT builds for the GPU that is
            present), the largest batch, which is what the engine is tuned for, and all else that is to be true of it
        frame: the frames that the graph takes, of whose largest the engine is tuned for; None if it takes images
        detailed: whether the engine is to tell everything of its layers
        timing_cache: file with the kernels' timings of earlier builds, which are not measured again, and to which those
            of this one are added; TensorRT-RTX measures nothing
        progress: is told how far the build is, in percent, between 0 and 100

    Returns:
        the serialized engine

    Raises:
        BackendError: if the library has not what is asked for, or refuses the graph, with its own words
    """
    refused = unsupported(info)
    if refused is not None:
        raise BackendError(refused)
    trt = load_library(info.library)
    title = f"{TITLES[info.library]} {trt.__version__}"
    logger = make_logger(trt)
    try:
        builder: tensorrt.Builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as e:  # TypeError is what the bindings make of a null pointer
        raise BackendError(f"{title} does not start: {logger.reason()}") from e
    network = builder.create_network(_network_flags(trt))
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendError(f"{title} refuses the graph: {' '.join(errors.split())}")
    config = builder.create_builder_config()
    _set_device(trt, builder, config, info)
    _set_flags(trt, config, info, detailed)
    _set_profile(builder, network, config, info, frame)
    timings = _load_timings(config, info, timing_cache)
    monitor = None if progress is None else _monitor(trt, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    logger.clear()
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    if plan is None:
        raise BackendError(f"{title} could not build the engine: {logger.reason()}")
    _save_timings(config, timings)
    return bytes(plan)


def unsupported(info: EngineInfo) -> str | None:
    """What of an engine its library has not; None if it has it all.

    Args:
        info: the engine, whether or not its library is installed
    """
    if info.library != "tensorrt_rtx":
        return None
    for asked, what in (
        (info.hardware_compatibility != "none", "are compiled for the GPU where they are opened, and know no"
            " --hardware-compatible: build one for each --rtx-capability"),
        (info.version_compatible, "open with the version that built them alone: leave out --version-compatible"),
        (info.dla_core is not None, "run on GPUs alone: leave out --dla"),
    ):  # fmt: skip
        if asked:
            return f"TensorRT-RTX engines {what}"
    return None


def timing_cache_path(info: EngineInfo) -> Path:
    """Where timings are kept from one build to the next, unless told otherwise: they are of one library and one GPU."""
    name = f"{info.library}-{info.version}-sm{info.compute_capability.replace('.', '')}.timing"
    return cache_folder() / name


def engine_file(variant: str, info: EngineInfo) -> str:
    """Name of an engine in a bundle, e.g. `model.int8.trt.tensorrt_rtx-1.7.1-sm86.engine`."""
    version = ".".join(info.version.split(".")[:3])
    dla = "" if info.dla_core is None else f"-dla{info.dla_core}"
    return f"model.{variant}.{info.library}-{version}-sm{info.compute_capability.replace('.', '')}{dla}.engine"


def compute_capability(trt: Any, capability: str) -> Any:
    """TensorRT-RTX's own name of a compute capability.

    Args:
        trt: the library
        capability: e.g. `"8.6"`

    Raises:
        BackendError: if it does not build for it, with those it does
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise BackendError(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability {capability}; "
            f"it knows {', '.join(sorted(known, key=float))}"
        )
    return known[capability]


def _network_flags(trt: Any) -> int:
    """Strongly typed: a flag in TensorRT 10, the only way in TensorRT 11, where the flag may be gone."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_device(trt: Any, builder: tensorrt.Builder, config: tensorrt.IBuilderConfig, info: EngineInfo) -> None:
    if info.library == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability(trt, info.compute_capability), 0)
    if info.dla_core is not None:
        cores = int(builder.num_DLA_cores)
        if info.dla_core >= cores:
            have = f"cores 0 to {cores - 1}" if cores else "none, or this TensorRT does not run it"
            raise BackendError(f"there is no deep learning accelerator {info.dla_core} here ({have}): leave out --dla")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = info.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # it has not every layer


def _set_flags(trt: Any, config: tensorrt.IBuilderConfig, info: EngineInfo, detailed: bool) -> None:
    if info.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, info.workspace_mib * _MIB)
    if info.optimization_level is not None:
        config.builder_optimization_level = info.optimization_level
    if info.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, info.hardware_compatibility.upper(), None)
        if level is None:
            raise BackendError(
                f"TensorRT {trt.__version__} does not know --hardware-compatible {info.hardware_compatibility}"
            )
        config.hardware_compatibility_level = level
    if info.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if info.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # with the same weights: no speed is lost for that
    # As on the other backends a float32 network is computed in float32: TF32 keeps 10 bits of the significand.
    config.clear_flag(trt.BuilderFlag.TF32)
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _set_profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    info: EngineInfo,
    frame: FrameSpec | None,
) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        largest = _largest(tensor.name, shape, info.max_batch, frame)
        # The accelerator knows no dynamic dimensions.
        smallest = largest if info.dla_core is not None else tuple(1 if side < 0 else side for side in shape)
        profile.set_shape(tensor.name, smallest, largest, largest)
    config.add_optimization_profile(profile)


def _largest(name: str, shape: tuple[int, ...], max_batch: int, frame: FrameSpec | None) -> tuple[int, ...]:
    """The largest shape of an input: its dynamic sides behind the batch are those of a frame."""
    first, *rest = shape
    sides: tuple[int, ...] = ()
    if frame is not None:
        h, w = frame.size
        sides = {FRAME_INPUT: (h, w), ROWS_INPUT: (h,), COLUMNS_INPUT: (w,)}[name]
    given = iter(sides)
    return (max_batch if first < 0 else first, *(next(given) if side < 0 else side for side in rest))


@dataclass
class _Timings:
    """Kernel timings while a build adds to them."""

    file: PairedFile
    cache: tensorrt.ITimingCache


def _load_timings(config: tensorrt.IBuilderConfig, info: EngineInfo, path: Path | None) -> _Timings | None:
    if path is None or info.library != "tensorrt":
        return None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    file = PairedFile(path, f"{info.library} {info.version} {info.compute_capability}".encode())
    cache = config.create_timing_cache(file.read() or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")  # of another build of this version
        config.set_timing_cache(cache, False)
    return _Timings(file, cache)


def _save_timings(config: tensorrt.IBuilderConfig, timings: _Timings | None) -> None:
    if timings is None:
        return
    added_meanwhile = timings.file.read()
    if added_meanwhile:
        other = config.create_timing_cache(added_meanwhile)
        if other is not None:
            timings.cache.combine(other, False)
    blob = timings.cache.serialize()
    if blob is not None:
        timings.file.write(bytes(blob))


@dataclass
class _Phase:
    """A phase of the build: how many of its steps are done, and the phase that the next one is made of."""

    parent: str | None
    steps: int
    done: int = 0
    inner: dict[str, _Phase] = field(default_factory=dict)

    def fraction(self) -> float:
        """Share of it that is done, what its inner phases have done counted in."""
        within = max((phase.fraction() for phase in self.inner.values()), default=0.0)
        return min(1.0, (self.done + within) / max(self.steps, 1))


def _monitor(trt: Any, report: ReportProgress) -> Any:
    """TensorRT's progress monitor that tells ours, in percent that never fall.

    An exception must not leave through TensorRT: it is kept in `error`, the build is stopped, and whoever started it
    raises it. So is an interrupt, which Python can only deliver here while a build runs.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._phases: dict[str, _Phase] = {}
            self._told = -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phase = self._phases[phase_name] = _Phase(parent_phase, int(num_steps))
            if parent_phase in self._phases:
                self._phases[parent_phase].inner[phase_name] = phase

        def phase_finish(self, phase_name: str) -> None:
            if phase_name not in self._phases:
                return
            self._phases[phase_name].done = self._phases[phase_name].steps
            self._tell()
            phase = self._phases.pop(phase_name)
            if phase.parent in self._phases:
                self._phases[phase.parent].inner.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name].done = int(step) + 1
                self._tell()
            return self.error is None

        def _tell(self) -> None:
            outer = [phase for phase in self._phases.values() if phase.parent not in self._phases]
            percent = int(_PERCENT * max((phase.fraction() for phase in outer), default=0.0))
            if percent <= self._told or self.error is not None:
                return
            self._told = percent
            try:
                report(percent, _PERCENT)
            except BaseException as e:
                self.error = e

    return Monitor()
