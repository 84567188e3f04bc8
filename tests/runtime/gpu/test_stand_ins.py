"""The stand-ins do fail where a rule is broken: a rule that is not enforced would let a fault through unseen."""

import contextlib
import threading

import numpy as np
import pytest


@pytest.fixture
def cuda(fakes):
    return fakes[0].FakeCuda()


@pytest.fixture
def violation(fakes):
    return lambda match: pytest.raises(fakes[0].RuleViolation, match=match)


def swallow(function, *arguments):
    """For threads, whose exceptions nobody catches: what was broken is in `violations`."""
    with contextlib.suppress(BaseException):
        function(*arguments)


HOST_TO_DEVICE, DEVICE_TO_HOST = "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"


def copy(cuda, target, source, size, kind, stream):
    cuda.cudaMemcpyAsync(target, source, size, cuda.cudaMemcpyKind[kind], stream)


@pytest.fixture
def memory(cuda):
    """A stream, 256 bytes for the processor, and 256 on the device."""
    return cuda.cudaStreamCreateWithFlags(1)[1], cuda.cudaHostAlloc(256, 0)[1], cuda.cudaMalloc(256)[1]


class TestCuda:
    def test_use_after_free(self, cuda, memory, violation):
        stream, host, device = memory
        cuda.cudaFree(device)
        with violation("use after free"):
            copy(cuda, device, host, 16, HOST_TO_DEVICE, stream)

    def test_freeing_what_is_in_use(self, cuda, memory, violation):
        stream, host, device = memory
        copy(cuda, device, host, 16, HOST_TO_DEVICE, stream)
        with violation("that work in a stream uses"):
            cuda.cudaFreeHost(host)
        cuda.cudaStreamSynchronize(stream)
        cuda.cudaFreeHost(host)

    def test_freeing_twice_and_what_is_not_there(self, cuda, memory, violation):
        _, host, device = memory
        cuda.cudaFree(device)
        with violation("freed twice"):
            cuda.cudaFree(device)
        with violation("not allocated like this"):
            cuda.cudaFree(host)

    def test_leaving_an_allocation(self, cuda, memory, violation):
        stream, host, device = memory
        with violation("leave 256 bytes"):
            copy(cuda, device + 250, host, 16, HOST_TO_DEVICE, stream)

    def test_the_wrong_direction(self, cuda, memory, violation):
        stream, host, device = memory
        with violation("between the wrong kinds"):
            copy(cuda, device, host, 16, DEVICE_TO_HOST, stream)

    def test_memory_that_is_not_page_locked(self, cuda, memory, violation):
        stream, _, device = memory
        array = np.zeros(4)
        with violation("no memory of CUDA's"):
            copy(cuda, device, array.ctypes.data, 16, HOST_TO_DEVICE, stream)

    def test_work_is_done_when_it_is_waited_for(self, cuda, memory, fakes):
        stream, host, device = memory
        copy(cuda, device, host, 16, HOST_TO_DEVICE, stream)
        fakes[1].poke(host, 16, np.full(16, 7, np.uint8))
        copy(cuda, host + 32, device, 16, DEVICE_TO_HOST, stream)
        assert set(fakes[1].peek(host + 32, 16, np.uint8, (16,))) == {0xCD}
        cuda.cudaStreamSynchronize(stream)
        assert set(fakes[1].peek(host + 32, 16, np.uint8, (16,))) == {7}

    def test_two_streams_at_once(self, cuda, memory, violation):
        stream, host, device = memory
        other = cuda.cudaStreamCreateWithFlags(1)[1]
        copy(cuda, device, host, 16, HOST_TO_DEVICE, stream)
        with violation("races with"):
            copy(cuda, host + 128, device, 16, DEVICE_TO_HOST, other)
        event = cuda.cudaEventCreateWithFlags(2)[1]
        cuda.cudaEventRecord(event, stream)
        cuda.cudaStreamWaitEvent(other, event, 0)
        copy(cuda, host + 128, device, 16, DEVICE_TO_HOST, other)

    @pytest.mark.parametrize("name", ["cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaStreamSynchronize"])
    def test_calls_while_recording(self, cuda, memory, violation, name):
        stream, _, device = memory
        cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        arguments = {"cudaMalloc": (16,), "cudaHostAlloc": (16, 0), "cudaFree": (device,)}.get(name, (stream,))
        with violation("record"):
            getattr(cuda, name)(*arguments)

    @pytest.mark.parametrize(("mode", "breaks"), [("Global", True), ("ThreadLocal", False)])
    def test_calls_of_other_threads_while_recording(self, cuda, memory, mode, breaks):
        cuda.cudaStreamBeginCapture(memory[0], cuda.cudaStreamCaptureMode[f"cudaStreamCaptureMode{mode}"])

        thread = threading.Thread(target=swallow, args=(cuda.cudaMalloc, 16))
        thread.start()
        thread.join()
        assert bool(cuda.violations) == breaks

    def test_a_recording_ends_in_its_thread(self, cuda, memory):
        cuda.cudaStreamBeginCapture(memory[0], cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        thread = threading.Thread(target=swallow, args=(cuda.cudaStreamEndCapture, memory[0]))
        thread.start()
        thread.join()
        assert cuda.violations == ["ending a recording in another thread"]

    def test_a_graph_replays_where_it_was_recorded(self, cuda, memory, violation):
        stream, host, device = memory
        cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        copy(cuda, device, host, 16, HOST_TO_DEVICE, stream)
        graph = cuda.cudaStreamEndCapture(stream)[1]
        instance = cuda.cudaGraphInstantiate(graph, 0)[1]
        cuda.cudaGraphLaunch(instance, stream)
        with violation("is running"):
            cuda.cudaGraphExecDestroy(instance)
        cuda.cudaStreamSynchronize(stream)
        cuda.cudaFree(device)
        with violation("use after free"):
            cuda.cudaGraphLaunch(instance, stream)

    def test_what_was_not_released_is_found(self, cuda, memory):
        assert sorted(cuda.alive()) == ["256 bytes on the device", "256 bytes pinned", "stream"]

    def test_destroying_a_stream_with_work(self, cuda, memory, violation):
        stream, host, device = memory
        copy(cuda, device, host, 16, HOST_TO_DEVICE, stream)
        with violation("has work left"):
            cuda.cudaStreamDestroy(stream)

    def test_there_is_an_end_to_memory(self, cuda):
        assert cuda.cudaMalloc(2**40) == (cuda.cudaError_t.cudaErrorMemoryAllocation, None)


class TestTensorRT:
    @pytest.fixture
    def context(self, fakes, cuda, memory):
        """A context that has all that it needs, its stream, and its library."""
        trt = fakes[1].make_tensorrt(cuda)
        engine = trt.Runtime(trt.ILogger()).deserialize_cuda_engine(fakes[1].make_plan())
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context._logger.log = lambda *_: None
        context.set_input_shape("input", (1, 3, 4, 4))
        context.set_device_memory(cuda.cudaMalloc(1024)[1], 1024)
        context.set_tensor_address("input", memory[2])
        context.set_tensor_address("output", cuda.cudaMalloc(256)[1])
        return context, memory[0], trt

    def test_it_runs(self, cuda, context):
        assert context[0].execute_async_v3(int(context[1]))
        cuda.cudaStreamSynchronize(context[1])

    def test_addresses_that_are_not_aligned(self, context, memory, violation):
        with violation("not a multiple of 256"):
            context[0].set_tensor_address("input", memory[2] + 64)

    def test_buffers_that_are_too_small(self, cuda, context, violation):
        context[0].set_input_shape("input", (4, 3, 4, 4))
        with violation("leave 256 bytes"):
            context[0].execute_async_v3(int(context[1]))

    def test_shapes_outside_of_the_profile(self, context):
        assert not context[0].set_input_shape("input", (5, 3, 4, 4))
        assert not context[0].set_input_shape("input", (1, 3, 4, 5))

    def test_without_addresses_or_workspace(self, fakes, context, violation):
        _, stream, trt = context
        other = context[0]._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        other.set_input_shape("input", (1, 3, 4, 4))
        with violation("without a workspace"):
            other.execute_async_v3(int(stream))

    def test_the_default_stream(self, context, violation):
        with violation("default stream"):
            context[0].execute_async_v3(1)

    def test_recording_before_it_has_run(self, cuda, context):
        context_, stream, _ = context
        cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        assert not context_.execute_async_v3(int(stream))
        assert cuda.cudaStreamEndCapture(stream)[0] == cuda.cudaError_t.cudaErrorStreamCaptureInvalidated

    def test_changing_what_was_recorded(self, cuda, context, violation):
        context_, stream, _ = context
        context_.execute_async_v3(int(stream))
        cuda.cudaStreamSynchronize(stream)
        cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        assert context_.execute_async_v3(int(stream))
        instance = cuda.cudaGraphInstantiate(cuda.cudaStreamEndCapture(stream)[1], 0)[1]
        with violation("changing a context while a graph"):
            context_.set_input_shape("input", (2, 3, 4, 4))
        cuda.cudaGraphExecDestroy(instance)
        assert context_.set_input_shape("input", (2, 3, 4, 4))

    def test_one_context_in_two_streams(self, cuda, context, violation):
        context_, stream, _ = context
        context_.execute_async_v3(int(stream))
        with violation("two streams at once"):
            context_.execute_async_v3(int(cuda.cudaStreamCreateWithFlags(1)[1]))
        cuda.cudaStreamSynchronize(stream)

    def test_changing_a_context_that_runs(self, cuda, context, violation):
        context_, stream, _ = context
        context_.execute_async_v3(int(stream))
        with violation("while it runs"):
            context_.set_input_shape("input", (2, 3, 4, 4))
        cuda.cudaStreamSynchronize(stream)
