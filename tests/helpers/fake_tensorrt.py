"""A small TensorRT on the small CUDA of `fake_cuda.py`: as much of its Python interface as running an engine takes.

It enforces what TensorRT's headers ask for: shapes inside the profile, addresses aligned and large enough, a context in
one stream at a time and unchanged once it was recorded, one run as it is before a run is recorded. Networks are
functions of numpy arrays. `test_conformance.py` checks that everything here exists in the real bindings.
"""

import ctypes
import enum
import hashlib
import json
import types
import weakref
from importlib.machinery import ModuleSpec

import numpy as np
from faults import due_fault

DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}
NETWORKS = {}
"""What an engine computes, by the name in its plan: from inputs by name to outputs by name."""


def make_plan(
    network="halves",
    inputs=(("input", "FLOAT", (1, 3, 4, 4), (4, 3, 4, 4)),),
    outputs=(("output", "FLOAT", (-1, 3, 4, 4)),),
    library="tensorrt",
    version="10.3.0",
    capability="8.7",
    workspace=1024,
    **extra,
):
    """A serialized engine: `inputs` are name, type, smallest and largest shape, `outputs` name, type and shape."""
    body = json.dumps(
        {
            "network": network,
            "inputs": inputs,
            "outputs": outputs,
            "library": library,
            "version": version,
            "capability": capability,
            "workspace": workspace,
            **extra,
        }
    ).encode()
    return b"PLAN" + hashlib.sha256(body).digest() + body


def network(function):
    NETWORKS[function.__name__] = function
    return function


@network
def halves(feeds):
    return {"output": feeds["input"] / 2}


class Plan:
    """A decoded plan."""

    def __init__(self, data):
        data = bytes(data)
        if data[:4] != b"PLAN" or hashlib.sha256(data[36:]).digest() != data[4:36]:
            raise ValueError("Serialization assertion failed: the plan is not whole")
        for key, value in json.loads(data[36:]).items():
            setattr(self, key, value)


ATTRIBUTES = {
    "Runtime": ("DLA_core", "engine_host_code_allowed"),
    "IExecutionContext": ("nvtx_verbosity",),
}
"""What the stand-ins have as plain attributes of their instances."""


class Controls:
    """What a test sets: which calls fail. And what it reads: what happened."""

    def __init__(self):
        self.faults, self.engines, self.contexts, self.executions, self.recordings = [], [], [], 0, 0
        self.capturable, self.host_code, self.dla, self.refitted, self.before_execute = True, False, None, None, None
        self.caches_read, self.strategies = [], []

    def fail(self, name, message="out of memory", after=0, times=1, error=None):
        """Make a method answer with what means failure; or raise an error of a class."""
        self.faults.append([name, message, after, times, error])

    def fails(self, name, logger):
        fault = due_fault(self.faults, name)
        if fault is None:
            return False
        if fault[4] is not None:
            raise fault[4]()
        logger.log(logger.ERROR, f"{name}: {fault[1]}")
        logger.log(logger.ERROR, "caught somewhere else")
        return True

    def alive(self):
        """Engines and contexts that are still there."""
        return [kind for kind, refs in (("engine", self.engines), ("context", self.contexts)) for r in refs if r()]


def make_tensorrt(cuda, library="tensorrt", version="10.3.0", capability="8.7"):
    """The module. Its `controls` are the tests'."""
    trt = types.ModuleType(library)
    trt.__version__ = version
    trt.__spec__ = ModuleSpec(library, None)
    trt.controls = controls = Controls()

    trt.TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    trt.TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
    trt.TensorFormat = enum.Enum("TensorFormat", "LINEAR CHW32")
    trt.DataType = enum.Enum("DataType", "FLOAT HALF INT8 UINT8 INT32 INT64 BOOL BF16")
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
    trt.ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3
            VERBOSE = 4

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

        def __init__(self):
            pass

    class Runtime:
        def __init__(self, logger):
            if controls.fails("Runtime", logger):
                raise TypeError("factory function returned nullptr")
            self._logger = logger
            self.DLA_core = -1
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine):
            if controls.fails("deserialize_cuda_engine", self._logger):
                return None
            try:
                plan = Plan(serialized_engine)
            except ValueError as e:
                self._logger.log(ILogger.ERROR, str(e))
                return None
            for what, here, there in (("version", version, plan.version), ("device", capability, plan.capability)):
                if here != there:
                    self._logger.log(ILogger.ERROR, f"the {what} of the engine, {there}, is not {here}")
                    return None
            if getattr(plan, "host_code", False) and not self.engine_host_code_allowed:
                self._logger.log(ILogger.ERROR, "the engine has host code, which is not allowed")
                return None
            controls.host_code, controls.dla = self.engine_host_code_allowed, self.DLA_core
            engine = ICudaEngine(plan, self._logger, self)
            controls.engines.append(weakref.ref(engine))
            return engine

    class ICudaEngine:
        def __init__(self, plan, logger, runtime):
            self._plan, self._logger, self._runtime, self._device = plan, logger, runtime, cuda.device
            self._has_weights = not getattr(plan, "stripped", False)
            self._io = {name: (trt.TensorIOMode.INPUT, kind, low, high) for name, kind, low, high in plan.inputs}
            self._io |= {name: (trt.TensorIOMode.OUTPUT, kind, shape, shape) for name, kind, shape in plan.outputs}

        @property
        def num_io_tensors(self):
            return len(self._io)

        @property
        def device_memory_size_v2(self):
            return self._plan.workspace

        def get_tensor_name(self, index):
            return list(self._io)[index]

        def get_tensor_mode(self, name):
            return self._io[name][0]

        def get_tensor_dtype(self, name):
            return trt.DataType[self._io[name][1]]

        def get_tensor_location(self, name):
            return trt.TensorLocation[getattr(self._plan, "location", "DEVICE")]

        def get_tensor_format(self, name):
            return trt.TensorFormat[getattr(self._plan, "format", "LINEAR")]

        def get_tensor_shape(self, name):
            _, _, low, high = self._io[name]
            return tuple(a if a == b and a != "?" else -1 for a, b in zip(low, high, strict=True))

        def get_tensor_profile_shape(self, name, profile_index):
            mode, _, low, high = self._io[name]
            assert mode is trt.TensorIOMode.INPUT
            assert profile_index == 0
            return [tuple(low), tuple(high), tuple(high)]

        def create_execution_context(self, strategy):
            if controls.fails("create_execution_context", self._logger):
                return None
            if cuda.device != self._device:
                cuda.violation("a context on another device than the engine's")
            context = IExecutionContext(self, strategy)
            controls.contexts.append(weakref.ref(context))
            return context

        def create_engine_inspector(self):
            return EngineInspector(self)

    class EngineInspector:
        def __init__(self, engine):
            self._engine = engine

        def get_engine_information(self, format):
            assert format is trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": getattr(self._engine._plan, "layers", ["conv", "relu"])})

    class IExecutionContext:
        def __init__(self, engine, strategy):
            self._engine, self._logger = engine, engine._logger
            self._managed = strategy is trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._workspace = None
            self._shapes, self._addresses, self._settled = {}, {}, False
            self._instances = weakref.WeakSet()
            self._working = []
            self.nvtx_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY

        def _changing(self):
            if any(instance.alive for instance in self._instances):
                cuda.violation("changing a context while a graph that was recorded from it exists")
            if any(not operation.done for operation in self._working):
                cuda.violation("changing a context while it runs")

        def set_input_shape(self, name, shape):
            self._changing()
            _, _, low, high = self._engine._io[name]
            if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                self._logger.log(ILogger.ERROR, f"{name}: {shape} is not in the profile")
                return False
            self._shapes[name], self._settled = tuple(shape), False
            return True

        def infer_shapes(self):
            if controls.fails("infer_shapes", self._logger):
                raise RuntimeError
            return [name for name, *_ in self._engine._plan.inputs if name not in self._shapes]

        def get_tensor_shape(self, name):
            if name in self._shapes:
                return self._shapes[name]
            shape = self._engine._io[name][2]
            first = next(iter(self._shapes.values()), (-1,))
            return tuple(first[i] if n == -1 else -1 if n == "?" else n for i, n in enumerate(shape))

        def set_tensor_address(self, name, memory):
            self._changing()
            if controls.fails("set_tensor_address", self._logger):
                return False
            if memory % 256:
                cuda.violation(f"{name}: the address is not a multiple of 256")
            self._addresses[name] = memory
            return True

        def set_device_memory(self, memory, size):
            self._changing()
            if not self._managed:
                cuda.violation("a workspace for a context that has its own")
            if memory % 256 or size < self._engine._plan.workspace:
                cuda.violation("a workspace that is too small or not aligned")
            self._workspace = (memory, size)

        def _recorded_in(self, instance):
            self._instances.add(instance)

        def _launched(self, operation, stream):
            operation.stream = stream
            self._working = [o for o in self._working if not o.done] + [operation]

        def execute_async_v3(self, stream_handle):
            engine = self._engine
            if controls.before_execute is not None:
                controls.before_execute()
            stream = cuda.stream(stream_handle, "execute_async_v3")
            if cuda.device != engine._device or stream.device != engine._device:
                cuda.violation("executing on another device than the engine's")
            if stream is cuda.default_stream:
                cuda.violation("executing in the default stream")
            if not engine._has_weights:
                cuda.violation("executing an engine without its weights")
            if self._managed and engine._plan.workspace and self._workspace is None:
                cuda.violation("executing without a workspace")
            if set(self._shapes) | set(self._addresses) != set(engine._io):
                cuda.violation("executing before every shape and address is known")
            if any(not o.done and o.stream is not stream for o in self._working):
                cuda.violation("one context in two streams at once")
            if controls.fails("execute_async_v3", self._logger):
                if stream.recording is not None:
                    stream.broken = True
                return False
            if stream.recording is not None:
                if not self._settled or not controls.capturable:
                    stream.broken = True
                    self._logger.log(ILogger.ERROR, "the context cannot be recorded now")
                    return False
                if hasattr(trt, "CudaGraphStrategy"):
                    cuda.violation("recording what records itself")
                controls.recordings += 1
            self._settled = True
            controls.executions += 1
            operation = self._operation(stream)
            self._working = [o for o in self._working if not o.done] + [operation]
            cuda.submit(stream, operation)
            if stream.recording is not None:
                self._working.remove(operation)
            return True

        def _operation(self, stream):
            engine, me = self._engine, weakref.ref(self)
            arrays, ranges = {}, {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
            for name, (mode, kind, *_) in engine._io.items():
                dtype, shape = np.dtype(DTYPES[kind]), self.get_tensor_shape(name)
                size = int(np.prod(shape)) * dtype.itemsize
                arrays[name] = (mode, dtype, shape, self._addresses[name], size)
                ranges[mode].append((self._addresses[name], size))
            compute = NETWORKS[engine._plan.network]

            def run():
                if me() is None:
                    cuda.violation("running a context that was destroyed")
                feeds = {n: peek(a, s, d, shape) for n, (m, d, shape, a, s) in arrays.items() if m.name == "INPUT"}
                found = compute(feeds)
                for name, (mode, dtype, shape, address, size) in arrays.items():
                    if mode.name == "OUTPUT":
                        poke(address, size, np.broadcast_to(found[name], shape).astype(dtype))

            workspace = [self._workspace] if self._workspace else []
            written = [*ranges[trt.TensorIOMode.OUTPUT], *workspace]
            operation = cuda.operation("inference", run, ranges[trt.TensorIOMode.INPUT], written)
            operation.owner, operation.stream = me, stream
            return operation

        def __del__(self):
            if cuda.lost is None and any(not operation.done for operation in self._working):
                cuda.violations.append("destroying a context that runs")

    class Refitter:
        def __init__(self, engine, logger):
            self._engine, self._logger, self._missing = engine, logger, ["conv.weight"]

        def get_missing_weights(self):
            return self._missing

        def refit_cuda_engine(self):
            if self._missing or controls.fails("refit_cuda_engine", self._logger):
                return False
            self._engine._has_weights = True
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter, logger):
            self._refitter, self._logger = refitter, logger

        def refit_from_bytes(self, model):
            if controls.fails("refit_from_bytes", self._logger):
                return False
            controls.refitted = bytes(model)
            self._refitter._missing = []
            return True

    for kind in (ILogger, Runtime, ICudaEngine, IExecutionContext, EngineInspector, Refitter, OnnxParserRefitter):
        setattr(trt, kind.__name__, kind)
    if library == "tensorrt_rtx":
        _add_rtx(trt, cuda, ICudaEngine)
    return trt


def _add_rtx(trt, cuda, engine_class):
    """What only TensorRT-RTX has."""
    controls = trt.controls
    trt.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")

    class IRuntimeCache:
        def __init__(self):
            self._entries = []

        def serialize(self):
            return json.dumps(self._entries).encode() if self._entries is not None else None

        def deserialize(self, blob):
            controls.caches_read.append(bytes(blob))
            self._entries = json.loads(bytes(blob))
            return True

    class IRuntimeConfig:
        def __init__(self):
            self._strategy, self._cache = trt.CudaGraphStrategy.DISABLED, None

        @property
        def cuda_graph_strategy(self):
            return self._strategy

        @cuda_graph_strategy.setter
        def cuda_graph_strategy(self, value):
            assert isinstance(value, trt.CudaGraphStrategy)
            self._strategy = value

        def create_runtime_cache(self):
            return IRuntimeCache()

        def set_runtime_cache(self, cache):
            self._cache = cache
            return True

    trt.IRuntimeConfig, trt.IRuntimeCache = IRuntimeConfig, IRuntimeCache
    engine_class.create_runtime_config = lambda self: IRuntimeConfig()
    plain = engine_class.create_execution_context

    def create_execution_context(self, runtime_config):
        if not isinstance(runtime_config, IRuntimeConfig):
            cuda.violation("TensorRT-RTX contexts are made with a runtime configuration here")
        controls.strategies.append(runtime_config.cuda_graph_strategy.name)
        if runtime_config._cache is not None:
            runtime_config._cache._entries.append("kernel")
        return plain(self, runtime_config)

    engine_class.create_execution_context = create_execution_context


def peek(address, size, dtype, shape):
    """Memory as an array."""
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)


def poke(address, size, array):
    """Fill memory from an array."""
    data = np.ascontiguousarray(array).tobytes()
    assert len(data) == size
    ctypes.memmove(address, data, size)
