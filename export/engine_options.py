"""What is asked of engines beyond the library and the GPU, checked and frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.manifest import HARDWARE_COMPATIBILITY, EngineInfo

from .errors import ExportError

_HIGHEST_LEVEL = 5
_MOST_WORKSPACE_MIB = 2**20
_MOST_CORES = 16


@dataclass(frozen=True)
class EngineBuild:
    """How engines are built.

    Attributes:
        optimization_level: 0 (fast to build) to 5 (fast to run); None is the library's default, 3.
        workspace_mib: memory that one layer may use, in MiB; None is all that the GPU has.
        dla_core: deep learning accelerator to build for, where a Jetson and its TensorRT have one; None is the GPU.
        hardware_compatibility: other GPUs that the engine also runs on, one of
            :data:`runtime.manifest.HARDWARE_COMPATIBILITY`; costs speed.
        version_compatible: later TensorRTs of the same major version run it too; costs speed.
        strip_weights: leave the weights out, which are then read from the bundle's ONNX file when it is opened.
        layer_information: write what the library made of each layer beside the engine.
        timing_cache: file with timings of earlier builds; None is one in the user's cache folder for each library and
            GPU.
    """

    optimization_level: int | None = None
    workspace_mib: int | None = None
    dla_core: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    layer_information: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what no engine can be.

        Raises:
            ExportError: naming the option and the value
        """
        for option, value, lowest, highest in (
            ("--engine-level", self.optimization_level, 0, _HIGHEST_LEVEL),
            ("--workspace", self.workspace_mib, 1, _MOST_WORKSPACE_MIB),
            ("--dla", self.dla_core, 0, _MOST_CORES - 1),
        ):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise ExportError(f"{option} {value} is out of range, expected an integer from {lowest} to {highest}")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise ExportError(
                f"--hardware-compatible {self.hardware_compatibility!r} is unknown, expected one of "
                f"{', '.join(HARDWARE_COMPATIBILITY)}"
            )
        if self.timing_cache is not None and self.timing_cache.is_dir():
            raise ExportError(f"--timing-cache {self.timing_cache} is a folder, expected a file")

    def given(self) -> list[str]:
        """The options that were given, as on the command line."""
        return [
            option
            for option, value, default in (
                ("--engine-level", self.optimization_level, None),
                ("--workspace", self.workspace_mib, None),
                ("--dla", self.dla_core, None),
                ("--hardware-compatible", self.hardware_compatibility, "none"),
                ("--version-compatible", self.version_compatible, False),
                ("--strip-weights", self.strip_weights, False),
                ("--engine-layers", self.layer_information, False),
                ("--timing-cache", self.timing_cache, None),
            )
            if value != default
        ]

    def info(self, library: str, version: str, capability: str, max_batch: int) -> EngineInfo:
        """What the manifest is to say of an engine built so."""
        return EngineInfo(
            library,
            version,
            capability,
            max_batch,
            hardware_compatibility=self.hardware_compatibility,
            version_compatible=self.version_compatible,
            stripped=self.strip_weights,
            dla_core=self.dla_core,
            optimization_level=self.optimization_level,
            workspace_mib=self.workspace_mib,
        )
