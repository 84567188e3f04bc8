"""A deserialized engine: what it takes and gives, and the execution contexts that are made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BackendError
from ..manifest import EngineInfo, TensorSpec
from .engine_cache import PairedFile
from .tensorrt_library import TITLES, load_library, make_logger

if TYPE_CHECKING:
    import tensorrt

Shape = tuple[int, ...]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class InputRange:
    """An input and the shapes that the engine's optimization profile has for it.

    Attributes:
        spec: name, element type and shape.
        smallest: one entry a dimension.
        largest: one entry a dimension.
    """

    spec: TensorSpec
    smallest: Shape
    largest: Shape

    def takes(self, shape: Shape) -> bool:
        """Whether a shape lies in the profile."""
        return all(low <= n <= high for low, n, high in zip(self.smallest, shape, self.largest, strict=True))


class OpenEngine:
    """An engine on a GPU. Deserializing it and all that is asked of it must happen with that GPU current.

    Args:
        library: `"tensorrt"` or `"tensorrt_rtx"`
        plan: the serialized engine; it is trusted, since it is executed
        info: what the manifest says of it; None for a lone engine
        weights: the ONNX graph that it was built from, for one without its weights
        cuda_graphs: whether inference is to be recorded and replayed
        cache: where TensorRT-RTX keeps the kernels that it compiled for this GPU; None keeps none

    Attributes:
        title: library and version, for errors.
        inputs: in the engine's order.
        outputs: in the engine's order.
        records_itself: whether the library records CUDA graphs by itself.
        workspace_size: bytes of device memory that a context must be given; 0 if contexts have their own.

    Raises:
        BackendError: if the library refuses it, or it is of a kind that this backend does not run
    """

    def __init__(
        self,
        library: str,
        plan: bytes,
        *,
        info: EngineInfo | None = None,
        weights: bytes | None = None,
        cuda_graphs: bool = True,
        cache: PairedFile | None = None,
    ) -> None:
        trt = load_library(library)
        self._trt = trt
        self.title = f"{TITLES[library]} {trt.__version__}"
        self._logger = make_logger(trt)
        self._cache_file = cache
        self._cache: Any = None
        self._config: Any = None
        self.records_itself = hasattr(trt, "CudaGraphStrategy")
        with self._saying("does not start"):
            self._runtime: tensorrt.Runtime = trt.Runtime(self._logger)
        self._engine: tensorrt.ICudaEngine = self._deserialize(plan, info)
        if info is not None and info.stripped:
            self._refit(weights)
        self.inputs, self.outputs = self._tensors()
        if self.records_itself:
            self._configure(cuda_graphs)
        # Contexts that run one after the other share their activations; each of TensorRT-RTX has its own.
        self.workspace_size = 0 if self.records_itself else int(self._engine.device_memory_size_v2)

    def create_context(self) -> tensorrt.IExecutionContext:
        """A new execution context.

        Raises:
            BackendError: if there is none to be had, for want of memory say
        """
        with self._saying("gives no execution context"):
            if self._config is not None:
                context = self._engine.create_execution_context(self._config)
            else:
                strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
                context = self._engine.create_execution_context(strategy)
            if context is None:
                raise RuntimeError
        # An engine that was built to tell of its layers would otherwise mark each one for a profiler, in every run.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        return context

    def layer_information(self) -> str:
        """What the engine says of its layers, as JSON: much if it was built with detailed verbosity, else names."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def failed(self, what: str) -> BackendError:
        """The error of a call that returned false, with the library's reason."""
        return BackendError(f"{self.title} {what}: {self._logger.reason()}")

    def forget_errors(self) -> None:
        """Forget what was logged before, so that :meth:`failed` tells of what comes next."""
        self._logger.clear()

    def close(self) -> None:
        """Save the runtime cache and let go of the engine; its contexts must be gone."""
        if self._cache is not None and self._cache_file is not None:
            with contextlib.suppress(Exception):  # a cache is only a cache
                blob = self._cache.serialize()
                if blob is not None:
                    self._cache_file.write(bytes(blob))
        self._config = self._cache = None
        del self._engine, self._runtime  # in this order

    def _deserialize(self, plan: bytes, info: EngineInfo | None) -> tensorrt.ICudaEngine:
        if info is not None and info.dla_core is not None:
            self._runtime.DLA_core = info.dla_core
        if info is not None and info.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such an engine brings the code that runs it
        with self._saying("does not open the engine"):
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise RuntimeError
        return engine

    def _refit(self, weights: bytes | None) -> None:
        if weights is None:
            raise BackendError(
                "the engine is without its weights, which are in its bundle's ONNX file: open the bundle"
            )
        with self._saying("does not take the weights of the ONNX file, which is not the one it was built from"):
            refitter: tensorrt.Refitter = self._trt.Refitter(self._engine, self._logger)
            parser: tensorrt.OnnxParserRefitter = self._trt.OnnxParserRefitter(refitter, self._logger)
            if not parser.refit_from_bytes(weights) or refitter.get_missing_weights():
                raise RuntimeError
            if not refitter.refit_cuda_engine():
                raise RuntimeError

    def _tensors(self) -> tuple[tuple[InputRange, ...], tuple[TensorSpec, ...]]:
        trt, engine = self._trt, self._engine
        inputs, outputs = [], []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BackendError(
                    f"the engine's {name!r} is a shape, not data: this backend does not run such engines"
                )
            if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
                raise BackendError(f"the engine's {name!r} is not laid out as rows and columns: build it again")
            kind = engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise BackendError(f"the engine's {name!r} has the type {kind}, which is not supported")
            shape = tuple(
                int(n) if n >= 0 else ("batch" if axis == 0 else f"dim{axis}")
                for axis, n in enumerate(engine.get_tensor_shape(name))
            )
            spec = TensorSpec(name, _DTYPES[kind], shape)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                smallest, _, largest = (tuple(map(int, dims)) for dims in engine.get_tensor_profile_shape(name, 0))
                inputs.append(InputRange(spec, smallest, largest))
            else:
                outputs.append(spec)
        return tuple(inputs), tuple(outputs)

    def _configure(self, cuda_graphs: bool) -> None:
        trt = self._trt
        self._config = self._engine.create_runtime_config()
        if cuda_graphs:
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache_file is not None:
            self._cache = self._config.create_runtime_cache()
            known = self._cache_file.read()
            if known is not None:
                self._cache.deserialize(known)  # False where it is of another driver or GPU: then it starts empty
            self._config.set_runtime_cache(self._cache)

    @contextlib.contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """Turn an exception of the bindings into ours, with what the library logged."""
        self._logger.clear()
        try:
            yield
        except (TypeError, RuntimeError) as e:  # TypeError is what the bindings make of a null pointer
            raise self.failed(what) from e
