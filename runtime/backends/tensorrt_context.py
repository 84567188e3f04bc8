"""One stream with its buffers, and an execution context for each shape that it has seen.

A CUDA graph holds the addresses, the shapes and the state of the context that it was recorded from, and changing that
context afterwards makes replaying it undefined. So every shape has a context of its own, which is never changed; they
share the stream, the buffers and the memory for activations, since they run one after the other.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackendError
from ..manifest import TensorSpec
from .base import Array
from .cuda_runtime import CudaError, CudaRuntime, Graph, Stream
from .device_array import BlockPool, DeviceArray, DeviceView, host_view
from .tensorrt_engine import OpenEngine, Shape

if TYPE_CHECKING:
    import tensorrt

_ALIGNMENT = 256  # what TensorRT asks of the address of a tensor
_MOST_SHAPES = 8

Shapes = tuple[Shape, ...]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a buffer.

    Attributes:
        spec: the tensor.
        shape: its shape now.
        offset: in bytes.
        size: in bytes.
    """

    spec: TensorSpec
    shape: Shape
    offset: int
    size: int


def lay_out(tensors: Iterable[tuple[TensorSpec, Shape]]) -> tuple[tuple[Place, ...], int]:
    """Put tensors one after the other, each where TensorRT can use it.

    Returns:
        their places, and the bytes that all take
    """
    places, end = [], 0
    for spec, shape in tensors:
        size = math.prod(shape) * np.dtype(spec.dtype).itemsize
        places.append(Place(spec, shape, end, size))
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return tuple(places), max(end, _ALIGNMENT)


@dataclass(frozen=True)
class Buffer:
    """Page-locked host memory with device memory of the same size, or one memory that both see.

    Attributes:
        host: address for the processor.
        device: address for the GPU.
        size: bytes.
        shared: whether both are the same memory, so that nothing is copied.
    """

    host: int
    device: int
    size: int
    shared: bool

    def view(self, place: Place) -> Array:
        """A tensor in the host's memory; not to be kept beyond the buffer."""
        whole = host_view(self.host + place.offset, place.size)
        return whole.view(place.spec.dtype).reshape(place.shape)


class ShapeContext:
    """An execution context for one set of input shapes, and what was recorded of it.

    Args:
        cuda: the runtime
        engine: what it executes
        stream: that it runs in
        shapes: of each input
        records: whether to record the second run and replay it from then on

    Attributes:
        inputs: places in the input buffer.
        outputs: places in the output buffer.
        input_size: bytes of all inputs.
        output_size: bytes of all outputs.

    Raises:
        BackendError: if the engine does not take the shapes
    """

    def __init__(self, cuda: CudaRuntime, engine: OpenEngine, stream: Stream, shapes: Shapes, records: bool) -> None:
        self._cuda, self._engine, self._stream = cuda, engine, stream
        self._handle = int(stream)
        self._records = records
        self._has_run = False
        self._graph: Graph | None = None
        self._context: tensorrt.IExecutionContext = engine.create_context()
        engine.forget_errors()
        for given, shape in zip(engine.inputs, shapes, strict=True):
            if not self._context.set_input_shape(given.spec.name, shape):
                raise engine.failed(f"does not take {given.spec.name!r} of {shape}")
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as e:
            raise engine.failed(f"finds no output shapes for {shapes}") from e
        outputs = [(spec, tuple(map(int, self._context.get_tensor_shape(spec.name)))) for spec in engine.outputs]
        if unknown or any(n < 0 for _, shape in outputs for n in shape):
            raise BackendError("the shapes of the engine's outputs depend on the data: this backend does not run it")
        self.inputs, self.input_size = lay_out((i.spec, s) for i, s in zip(engine.inputs, shapes, strict=True))
        self.outputs, self.output_size = lay_out(outputs)

    def bind(self, inputs: Buffer, outputs: Buffer, workspace: tuple[int, int] | None) -> None:
        """Say where everything is, once.

        Args:
            inputs: the buffer of all inputs
            outputs: the buffer of all outputs
            workspace: address and bytes of the memory for activations; None if the context has its own
        """
        if workspace is not None:
            self._context.set_device_memory(*workspace)
        for buffer, places in ((inputs, self.inputs), (outputs, self.outputs)):
            for place in places:
                if not self._context.set_tensor_address(place.spec.name, buffer.device + place.offset):
                    raise self._engine.failed(f"does not take an address for {place.spec.name!r}")
        self.input_views = tuple(inputs.view(place) for place in self.inputs)
        self.output_views = tuple(outputs.view(place) for place in self.outputs)

    def launch(self) -> None:
        """Run it in the stream: the first time as it is, so that the context has settled, then as recorded.

        Raises:
            BackendError: if the library or the device refuses
        """
        if self._graph is None and self._records and self._has_run:
            self._graph = self._record()
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
            return
        self._engine.forget_errors()
        if not self._context.execute_async_v3(self._handle):
            raise self._engine.failed("failed to run the network")
        self._has_run = True

    def close(self) -> None:
        """Let go of what was recorded and of the context; its work must be done."""
        if self._graph is not None:
            graph, self._graph = self._graph, None
            with contextlib.suppress(CudaError):
                self._cuda.destroy_graph(graph)
        del self._context

    def _record(self) -> Graph | None:
        """The run as a CUDA graph; None, and no further attempt, if this engine cannot be recorded."""
        self._records = False
        try:
            self._cuda.begin_capture(self._stream)
            try:
                recorded = self._context.execute_async_v3(self._handle)
            except BaseException:
                self._cuda.abandon_capture(self._stream)
                raise
            if not recorded:
                self._cuda.abandon_capture(self._stream)
                return None
            return self._cuda.end_capture(self._stream)
        except CudaError as e:
            if e.lost:
                raise
            return None  # it runs without


class ExecutionSlot:
    """All that one inference at a time takes: a stream, buffers, contexts. For one thread at a time.

    Args:
        cuda: the runtime
        engine: what is executed; its GPU must be current here and in every method
        records: whether to record CUDA graphs
        shared: whether to work on host memory instead of copying it to the device

    Raises:
        BackendError: if there is not enough memory; nothing is kept then
    """

    def __init__(self, cuda: CudaRuntime, engine: OpenEngine, *, records: bool, shared: bool) -> None:
        self._cuda, self._engine, self._records = cuda, engine, records
        self._contexts: OrderedDict[Shapes, ShapeContext] = OrderedDict()
        self._resources = contextlib.ExitStack()
        try:
            self._stream = cuda.create_stream()
            self._resources.callback(self._quietly, cuda.destroy_stream, self._stream)
            largest = tuple(given.largest for given in engine.inputs)
            context = self._contexts[largest] = self._new_context(largest)
            self._inputs = self._buffer(context.input_size, shared)
            self._outputs = self._buffer(context.output_size, shared)
            self._workspace: tuple[int, int] | None = None
            if engine.workspace_size:
                pointer = cuda.malloc(engine.workspace_size)
                self._resources.callback(self._quietly, cuda.free, pointer)
                self._workspace = (pointer, engine.workspace_size)
            context.bind(self._inputs, self._outputs, self._workspace)
        except BaseException:
            self.close()
            raise

    def run(
        self, feeds: Mapping[str, Array | DeviceView], blocks: BlockPool | None = None
    ) -> dict[str, Array | DeviceArray]:
        """Run the network once and wait for it.

        Args:
            feeds: every input by name, checked
            blocks: where the memory of outputs that stay on the GPU comes from; None copies them to the host

        Returns:
            the outputs by name, which belong to the caller

        Raises:
            BackendError: if the device or the library fails; the slot is then of no more use than to be closed
        """
        cuda, stream = self._cuda, self._stream
        context = self._context(tuple(feeds[given.spec.name].shape for given in self._engine.inputs))
        self._send(context, feeds)
        context.launch()
        if blocks is not None:
            kept: dict[str, Array | DeviceArray] = {}
            for place in context.outputs:
                block = blocks.take(place.size)
                cuda.copy(block.pointer, self._outputs.device + place.offset, place.size, stream)
                kept[place.spec.name] = DeviceArray(block, place.shape, np.dtype(place.spec.dtype))
            cuda.synchronize(stream)
            return kept
        if not self._outputs.shared:
            cuda.copy_to_host(self._outputs.host, self._outputs.device, context.output_size, stream)
        cuda.synchronize(stream)
        return {place.spec.name: view.copy() for place, view in zip(context.outputs, context.output_views, strict=True)}

    def close(self) -> CudaError | None:
        """Wait for what is still running and release everything, whatever state the device is in.

        Returns:
            what the device said when it was waited for, if it failed
        """
        failure = None
        if hasattr(self, "_stream"):
            try:
                self._cuda.synchronize(self._stream)
            except CudaError as e:
                failure = e.with_traceback(
                    None
                )  # which would hold this frame, which holds it: nothing would go in time
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()
        self._resources.close()
        return failure

    def _send(self, context: ShapeContext, feeds: Mapping[str, Array | DeviceView]) -> None:
        cuda, stream, buffer = self._cuda, self._stream, self._inputs
        on_device = False
        for place, view in zip(context.inputs, context.input_views, strict=True):
            given = feeds[place.spec.name]
            if isinstance(given, DeviceView):
                on_device = True
            else:
                np.copyto(view, given)
        if not buffer.shared:
            if not on_device:
                cuda.copy_to_device(buffer.device, buffer.host, context.input_size, stream)
                return
            for place in context.inputs:
                if not isinstance(feeds[place.spec.name], DeviceView):
                    cuda.copy_to_device(buffer.device + place.offset, buffer.host + place.offset, place.size, stream)
        for place in context.inputs:
            given = feeds[place.spec.name]
            if isinstance(given, DeviceView):
                if given.stream is not None:
                    cuda.wait_for(stream, given.stream)
                cuda.copy(buffer.device + place.offset, given.pointer, place.size, stream)

    def _context(self, shapes: Shapes) -> ShapeContext:
        context = self._contexts.get(shapes)
        if context is not None:
            self._contexts.move_to_end(shapes)
            return context
        while len(self._contexts) >= _MOST_SHAPES:
            self._contexts.popitem(last=False)[1].close()
        context = self._new_context(shapes)
        for what, size, buffer in (
            ("inputs", context.input_size, self._inputs),
            ("outputs", context.output_size, self._outputs),
        ):
            if size > buffer.size:
                raise BackendError(
                    f"the {what} for {shapes} take {size} bytes, those of the largest input {buffer.size}"
                )
        context.bind(self._inputs, self._outputs, self._workspace)
        self._contexts[shapes] = context
        return context

    def _new_context(self, shapes: Shapes) -> ShapeContext:
        return ShapeContext(self._cuda, self._engine, self._stream, shapes, self._records)

    def _buffer(self, size: int, shared: bool) -> Buffer:
        host = self._cuda.host_alloc(size, mapped=shared)
        self._resources.callback(self._quietly, self._cuda.host_free, host)
        if shared:
            return Buffer(host, self._cuda.device_pointer(host), size, shared=True)
        device = self._cuda.malloc(size)
        self._resources.callback(self._quietly, self._cuda.free, device)
        return Buffer(host, device, size, shared=False)

    @staticmethod
    def _quietly(release: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(CudaError):  # of a lost device nothing is left to be released
            release(argument)
