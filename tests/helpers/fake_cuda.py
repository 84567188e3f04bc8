"""A small CUDA runtime in host memory that enforces the real one's rules and fails loudly where one is broken.

It stands where `cuda.bindings.runtime` is. Work put into a stream is done late, when somebody waits for the stream
(`schedule="lazy"`), or at once (`"eager"`): what is right under both does not depend on when the GPU gets to it. Freed
memory is poisoned and its addresses are never given out again. Every method marked :func:`call` exists in the real
bindings with the same parameters, which `test_conformance.py` checks, and code under test can reach no other.
"""
# ruff: noqa: N801, N815

import ctypes
import enum
import threading

from faults import due_fault


class RuleViolation(BaseException):
    """Not an Exception: no handler of the code under test may take it for an error of the device."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorDevicesUnavailable = 46
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorUnknown = 999


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19


class cudaMemoryType(enum.IntEnum):
    cudaMemoryTypeUnregistered = 0
    cudaMemoryTypeHost = 1
    cudaMemoryTypeDevice = 2
    cudaMemoryTypeManaged = 3


CONSTANTS = {
    "cudaStreamNonBlocking": 1,
    "cudaHostAllocDefault": 0,
    "cudaHostAllocMapped": 2,
    "cudaEventDisableTiming": 2,
}
ENUMS = (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr, cudaMemoryType)
CALLS = []
_OK = cudaError_t.cudaSuccess
_RELEASES = ("cudaFree", "cudaStreamDestroy", "cudaGraphDestroy", "cudaGraphExecDestroy", "cudaEventDestroy")
_ALWAYS = {"cudaGetLastError", "cudaGetErrorName", "cudaGetErrorString"}


def call(results):
    """A function of the API that returns so many values after its status."""

    def decorate(function):
        name = function.__name__
        CALLS.append(name)

        def checked(self, *args):
            with self.lock:
                self.log.append(name)
                status = self._status(name)
                if status is not _OK:
                    if name.startswith(_RELEASES):
                        self._tried_to_release(args[0])
                    if name == "cudaStreamEndCapture":
                        args[0].recording = None
                    self.last_error = status
                    return (status, *([None] * results))
                found = function(self, *args)
                if isinstance(found, cudaError_t):
                    self.last_error = found if name != "cudaGetLastError" else _OK
                    return (found, *([None] * results))
                return (_OK,) if results == 0 else (_OK, *found) if results > 1 else (_OK, found)

        checked.__name__, checked.__wrapped__ = name, function
        return checked

    return decorate


class Memory:
    """One allocation; `pinned` is host memory."""

    def __init__(self, size, pinned, mapped, device):
        self._buffer = (ctypes.c_uint8 * (size + 512))()
        start = ctypes.addressof(self._buffer)
        self.address, self.size = start + -start % 256, size
        self.pinned, self.mapped, self.device, self.alive, self.foreign = pinned, mapped, device, True, False
        ctypes.memset(self.address, 0xCD, size)

    def free(self):
        self.alive = False
        ctypes.memset(self.address, 0xDD, self.size)


class Operation:
    """Work in a stream: what it reads and writes, and what it does to that."""

    def __init__(self, name, action, reads=(), writes=(), owner=None):
        self.name, self.action, self.reads, self.writes, self.owner = name, action, tuple(reads), tuple(writes), owner
        self.done = False


class Handle:
    """What the bindings give for streams, events and graphs: something that is an integer too."""

    _next = 0x1000

    def __init__(self, cuda, kind, device):
        Handle._next += 0x10
        self.number, self.cuda, self.kind, self.device = Handle._next, cuda, kind, device
        self.alive, self.foreign = True, False
        cuda.handles[self.number] = self

    def __int__(self):
        return self.number


class Stream(Handle):
    def __init__(self, cuda, device):
        super().__init__(cuda, "stream", device)
        self.pending, self.recording, self.recorder, self.mode, self.broken = [], None, None, None, False


class FakeCuda:
    """See the module. `devices` GPUs of `memory` bytes each; `integrated` ones share the host's."""

    def __init__(self, schedule="lazy", devices=1, memory=2**26, integrated=False):
        self.schedule, self.devices, self.memory_size, self.integrated = schedule, devices, memory, integrated
        self.lock = threading.RLock()
        self.memories, self.handles = [], {}
        self.log, self.violations, self.faults = [], [], []
        self.last_error, self.lost = _OK, None
        self._current = threading.local()
        self.default_stream = self.others_stream()
        self.handles[1] = self.default_stream
        for kind in ENUMS:
            setattr(self, kind.__name__, kind)
        for name, value in CONSTANTS.items():
            setattr(self, name, value)

    # What tests do.

    def fail(self, name, code="cudaErrorMemoryAllocation", after=0, times=1):
        """Make a call fail: the one after `after` others."""
        self.faults.append([name, cudaError_t[code], after, times])

    def lose(self, code="cudaErrorIllegalAddress"):
        """From now on every call fails."""
        self.lost = cudaError_t[code]

    def alive(self):
        """Everything that was made and not released."""
        kept = [m for m in self.memories if m.alive and not m.foreign]
        return [f"{m.size} bytes {'pinned' if m.pinned else 'on the device'}" for m in kept] + [
            h.kind for h in set(self.handles.values()) if h.alive and not h.foreign
        ]

    def others_stream(self):
        """A stream that somebody else works in."""
        stream = Stream(self, 0)
        stream.foreign = True
        return stream

    def others_memory(self, data, device=0, pinned=False):
        """Memory with content that somebody else has on the device."""
        memory = Memory(max(len(data), 1), pinned, False, device)
        memory.foreign = True
        self.memories.append(memory)
        ctypes.memmove(memory.address, data, len(data))
        return memory

    def write_later(self, stream, memory, data):
        """Have somebody else's work in their stream fill their memory."""
        source = ctypes.create_string_buffer(data, len(data))
        action = lambda: ctypes.memmove(memory.address, source, len(data))  # noqa: E731
        self.submit(stream, Operation("somebody else's work", action, [], [(memory.address, len(data))]))

    def violation(self, text):
        self.violations.append(text)
        raise RuleViolation(text)

    @property
    def device(self):
        return getattr(self._current, "device", 0)

    operation = Operation

    # The rules.

    def _status(self, name):
        if name in _ALWAYS:
            return _OK
        fault = due_fault(self.faults, name)
        if fault is None:
            return self.lost or _OK
        if fault[1] in (cudaError_t.cudaErrorIllegalAddress, cudaError_t.cudaErrorLaunchFailure):
            self.lost = fault[1]
        return fault[1]

    def _tried_to_release(self, what):
        # Of a lost device nothing can be freed: what counts is that somebody tried.
        for memory in self.memories:
            if memory.address == what:
                memory.free()
        if isinstance(what, Handle):
            what.alive = False
            if isinstance(what, Stream):
                what.pending.clear()

    def find(self, address, size, why):
        """The live allocation that a range lies in."""
        for memory in self.memories:
            if memory.address <= address < memory.address + max(memory.size, 1):
                if not memory.alive:
                    self.violation(f"{why}: use after free of {memory.size} bytes")
                if address + size > memory.address + memory.size:
                    self.violation(f"{why}: {size} bytes at {address - memory.address} leave {memory.size} bytes")
                return memory
        return self.violation(f"{why}: {address:#x} is no memory of CUDA's")

    def stream(self, handle, why):
        found = self.handles.get(int(handle))
        if not isinstance(found, Stream) or not found.alive:
            self.violation(f"{why}: no such stream")
        return found

    def _unsafe(self, name):
        """A call that may not happen while this thread, or in global mode any thread, records."""
        for stream in set(self.handles.values()):
            if isinstance(stream, Stream) and stream.recording is not None:
                local = stream.mode is cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
                if not local or stream.recorder == threading.get_ident():
                    stream.broken = True
                    self.violation(f"{name} while a stream is being recorded")

    def submit(self, stream, operation):
        """Put work into a stream."""
        for address, size in (*operation.reads, *operation.writes):
            self.find(address, size, operation.name)
        if stream.recording is not None:
            stream.recording.append(operation)
            return
        self._check_race(stream, operation)
        stream.pending.append(operation)
        if self.schedule == "eager":
            self.flush(stream)

    def _check_race(self, stream, operation):
        def overlap(a, b):
            return any(x < v + w and v < x + y for x, y in a for v, w in b)

        waited = {id(p) for o in stream.pending for p in getattr(o, "after", ())}
        for other in set(self.handles.values()):
            if not isinstance(other, Stream) or other is stream:
                continue
            for pending in other.pending:
                if id(pending) in waited:
                    continue
                if overlap(operation.writes, pending.reads + pending.writes) or overlap(
                    pending.writes, operation.reads
                ):
                    self.violation(f"{operation.name} races with {pending.name} in another stream")

    def flush(self, stream, until=None):
        """Do the work of a stream."""
        while stream.pending:
            operation = stream.pending.pop(0)
            for before in getattr(operation, "after", ()):
                if not before.done:
                    self.flush(before.stream, before)
            for address, size in (*operation.reads, *operation.writes):
                self.find(address, size, operation.name)
            operation.action()
            operation.done = True
            if operation is until:
                return

    def busy(self, address, size):
        """Whether work that is not done uses a range."""
        return any(
            x < address + size and address < x + y
            for stream in set(self.handles.values())
            if isinstance(stream, Stream)
            for operation in stream.pending
            for x, y in operation.reads + operation.writes
        )

    def _allocate(self, size, pinned, mapped=False):
        if not isinstance(size, int) or size <= 0:
            self.violation(f"allocating {size!r} bytes")
        used = sum(m.size for m in self.memories if m.alive and not m.pinned and m.device == self.device)
        if not pinned and used + size > self.memory_size:
            return cudaError_t.cudaErrorMemoryAllocation
        memory = Memory(size, pinned, mapped, self.device)
        self.memories.append(memory)
        return memory.address

    def _release(self, address, pinned):
        for memory in self.memories:
            if memory.address == address and memory.pinned == pinned:
                if not memory.alive:
                    self.violation("freed twice")
                if self.busy(memory.address, memory.size):
                    self.violation(f"freeing {memory.size} bytes that work in a stream uses")
                memory.free()
                return None
        return self.violation(f"freeing {address:#x}, which was not allocated like this")

    # The API.

    @call(0)
    def cudaSetDevice(self, device):
        if not 0 <= device < self.devices:
            return cudaError_t.cudaErrorInvalidDevice
        self._current.device = device
        return None

    @call(1)
    def cudaGetDevice(self):
        return self.device

    @call(1)
    def cudaDeviceGetAttribute(self, attr, device):
        assert isinstance(attr, cudaDeviceAttr)
        return int(self.integrated or attr is cudaDeviceAttr.cudaDevAttrCanMapHostMemory)

    @call(2)
    def cudaMemGetInfo(self):
        used = sum(m.size for m in self.memories if m.alive and not m.pinned and m.device == self.device)
        return self.memory_size - used, self.memory_size

    @call(1)
    def cudaMalloc(self, size):
        self._unsafe("cudaMalloc")
        return self._allocate(size, pinned=False)

    @call(0)
    def cudaFree(self, devPtr):
        self._unsafe("cudaFree")
        return self._release(devPtr, pinned=False)

    @call(1)
    def cudaHostAlloc(self, size, flags):
        self._unsafe("cudaHostAlloc")
        if flags not in (0, 2):
            self.violation(f"cudaHostAlloc with the flags {flags}")
        return self._allocate(size, pinned=True, mapped=flags == 2)

    @call(0)
    def cudaFreeHost(self, ptr):
        self._unsafe("cudaFreeHost")
        return self._release(ptr, pinned=True)

    @call(1)
    def cudaHostGetDevicePointer(self, pHost, flags):
        memory = self.find(pHost, 1, "cudaHostGetDevicePointer")
        if not memory.mapped or flags != 0:
            self.violation("a device pointer of memory that is not mapped")
        return memory.address

    @call(1)
    def cudaPointerGetAttributes(self, ptr):
        for memory in self.memories:
            if memory.alive and memory.address <= ptr < memory.address + memory.size:
                kind = cudaMemoryType.cudaMemoryTypeHost if memory.pinned else cudaMemoryType.cudaMemoryTypeDevice
                return _Attributes(kind, memory.device)
        return _Attributes(cudaMemoryType.cudaMemoryTypeUnregistered, -1)

    @call(1)
    def cudaStreamCreateWithFlags(self, flags):
        if flags != 1:
            self.violation("a stream that waits for the default stream")
        return Stream(self, self.device)

    @call(0)
    def cudaStreamDestroy(self, stream):
        found = self.stream(stream, "cudaStreamDestroy")
        if found.recording is not None or found.pending:
            self.violation("destroying a stream that is recording or has work left")
        found.alive = False

    @call(0)
    def cudaStreamSynchronize(self, stream):
        found = self.stream(stream, "cudaStreamSynchronize")
        if found.recording is not None:
            self.violation("waiting for a stream that is being recorded")
        self.flush(found)

    @call(1)
    def cudaEventCreateWithFlags(self, flags):
        assert flags == 2
        return Handle(self, "event", self.device)

    @call(0)
    def cudaEventRecord(self, event, stream):
        found = self.stream(stream, "cudaEventRecord")
        event.after = tuple(found.pending)
        for operation in event.after:
            operation.stream = found

    @call(0)
    def cudaStreamWaitEvent(self, stream, event, flags):
        assert flags == 0
        if not event.alive:
            self.violation("waiting for a destroyed event")
        wait = Operation("waiting", lambda: None)
        wait.after = event.after
        found = self.stream(stream, "cudaStreamWaitEvent")
        found.pending.append(wait)

    @call(0)
    def cudaEventDestroy(self, event):
        event.alive = False

    @call(0)
    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        found = self.stream(stream, "cudaMemcpyAsync")
        target, source = self.find(dst, count, "writing a copy"), self.find(src, count, "reading a copy")
        directions = {
            cudaMemcpyKind.cudaMemcpyHostToDevice: (True, False),
            cudaMemcpyKind.cudaMemcpyDeviceToHost: (False, True),
        }
        if (source.pinned, target.pinned) != directions.get(kind, (source.pinned, target.pinned)):
            self.violation(f"{kind.name} between the wrong kinds of memory")
        self.submit(
            found, Operation(kind.name, lambda: ctypes.memmove(dst, src, count), [(src, count)], [(dst, count)])
        )

    @call(0)
    def cudaStreamBeginCapture(self, stream, mode):
        found = self.stream(stream, "cudaStreamBeginCapture")
        if found is self.default_stream or found.recording is not None:
            self.violation("recording the default stream, or one that is recorded already")
        found.recording, found.recorder, found.mode, found.broken = [], threading.get_ident(), mode, False

    @call(1)
    def cudaStreamEndCapture(self, stream):
        found = self.stream(stream, "cudaStreamEndCapture")
        if found.recording is None:
            return cudaError_t.cudaErrorInvalidValue
        if found.recorder != threading.get_ident():
            self.violation("ending a recording in another thread")
        recorded, found.recording = found.recording, None
        if found.broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated
        graph = Handle(self, "graph", found.device)
        graph.operations = recorded
        return graph

    @call(1)
    def cudaGraphInstantiate(self, graph, flags):
        if not graph.alive or flags != 0:
            self.violation("instantiating a graph that was destroyed")
        instance = Handle(self, "graph instance", graph.device)
        instance.operations, instance.running = list(graph.operations), []
        for operation in instance.operations:
            if operation.owner is not None:
                operation.owner()._recorded_in(instance)
        return instance

    @call(0)
    def cudaGraphLaunch(self, graphExec, stream):
        if not graphExec.alive:
            self.violation("launching a graph that was destroyed")
        found = self.stream(stream, "cudaGraphLaunch")
        if found.recording is not None:
            self.violation("launching a graph into a stream that is being recorded")
        for operation in graphExec.operations:
            copy = Operation(operation.name, operation.action, operation.reads, operation.writes, operation.owner)
            graphExec.running = [o for o in graphExec.running if not o.done] + [copy]
            if copy.owner is not None:
                if copy.owner() is None:
                    self.violation("launching a graph whose context was destroyed")
                copy.owner()._launched(copy, found)
            self.submit(found, copy)

    @call(0)
    def cudaGraphDestroy(self, graph):
        graph.alive = False

    @call(0)
    def cudaGraphExecDestroy(self, graphExec):
        if not graphExec.alive:
            self.violation("destroying a graph twice")
        if not all(operation.done for operation in graphExec.running):
            self.violation("destroying a graph that is running")
        graphExec.alive = False

    @call(0)
    def cudaGetLastError(self):
        found, self.last_error = self.last_error, _OK
        return None if found is _OK else found

    @call(1)
    def cudaGetErrorName(self, error):
        return error.name.encode()

    @call(1)
    def cudaGetErrorString(self, error):
        return {2: b"out of memory", 700: b"an illegal memory access was encountered"}.get(int(error), b"an error")


class _Attributes:
    def __init__(self, kind, device):
        self.type, self.device = kind, device
