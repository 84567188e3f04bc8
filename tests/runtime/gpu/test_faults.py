"""What goes wrong on a device, at every call where it can: one clear error, all released, usable again or closed."""

import threading

import numpy as np
import pytest

from runtime.backends.engine_options import EngineOptions
from runtime.backends.tensorrt import TensorRTSession
from runtime.errors import BackendError

ALLOCATIONS = ["cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc"]
SHARED = {"cudaHostGetDevicePointer", *ALLOCATIONS}


def one_line(caught):
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


class TestOpening:
    @pytest.mark.parametrize("code", ["cudaErrorMemoryAllocation", "cudaErrorIllegalAddress", "cudaErrorNotSupported"])
    @pytest.mark.parametrize("call", ALLOCATIONS)
    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_no_allocation_that_fails_leaves_anything(self, install, make_plan, library, call, after, code):
        cuda, trt = install(library=library)
        cuda.fail(call, code, after)
        error = session = None
        try:
            session = TensorRTSession(library, make_plan(library=library))
        except BackendError as e:
            error = str(e)
        if session is None:
            assert call in error or "not enough memory for the engine" in error
        else:
            assert cuda.log.count(call) <= after  # it was not called so often
            session.close()
        assert (cuda.alive(), trt.controls.alive()) == ([], [])

    @pytest.mark.parametrize("call", sorted(SHARED))
    def test_the_same_with_mapped_memory(self, install, make_plan, call):
        cuda, trt = install(integrated=True)
        cuda.fail(call, "cudaErrorNotSupported")
        with pytest.raises(BackendError, match=call) as caught:
            TensorRTSession("tensorrt", make_plan(), options=EngineOptions(zero_copy=True))
        one_line(caught)
        assert (cuda.alive(), trt.controls.alive()) == ([], [])

    @pytest.mark.parametrize("call", ["Runtime", "deserialize_cuda_engine", "create_execution_context", "infer_shapes"])
    def test_no_refusal_of_tensorrt_leaves_anything(self, install, make_plan, library, call):
        cuda, trt = install(library=library)
        trt.controls.fail(call, "no\nwith a reason")
        with pytest.raises(BackendError, match=rf"TensorRT.* 10\.3\.0 .*: {call}: no with a reason$") as caught:
            TensorRTSession(library, make_plan(library=library))
        one_line(caught)
        del caught
        assert (cuda.alive(), trt.controls.alive()) == ([], [])

    def test_too_little_memory_says_how_much(self, install, make_plan):
        cuda, _ = install(memory=2**23)
        with pytest.raises(
            BackendError, match=r"needs 64 MiB for activations .*, and 8 MiB are free on cuda:0; .*batch"
        ):
            TensorRTSession("tensorrt", make_plan(workspace=2**26))
        assert cuda.alive() == []

    def test_a_device_that_is_gone(self, install, make_plan):
        cuda, _ = install()
        cuda.lose("cudaErrorDevicesUnavailable")
        with pytest.raises(BackendError, match="cudaErrorDevicesUnavailable"):
            TensorRTSession("tensorrt", make_plan())


# What a run calls: the first of a shape, the second, which is recorded, and the third, which is replayed.
RUN_CALLS = ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch", "cudaStreamBeginCapture",
             "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy", "cudaGetDevice"]  # fmt: skip


class TestRunning:
    @pytest.mark.parametrize("call", RUN_CALLS)
    @pytest.mark.parametrize("after", [0, 1, 2, 3])
    @pytest.mark.parametrize("settled", [0, 1, 2, 3])
    def test_a_call_that_fails_once(self, opened, schedule, feed, call, after, settled):
        """Whichever it is, the run answers rightly or raises, and the ones after it answer rightly."""
        session, cuda, _ = opened(schedule=schedule)
        for _ in range(settled):
            session.run(feed(2))
        cuda.fail(call, "cudaErrorNotSupported", after)
        errors = []
        for i in range(6):
            try:
                found = session.run(feed(2, i))
            except BackendError as e:
                errors.append(str(e))
            else:
                np.testing.assert_array_equal(found["output"], feed(2, i) / 2)
        assert len(errors) <= 1
        assert all(e.startswith(f"tensorrt failed to run the network: {call}: ") for e in errors)

    @pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"])
    def test_what_replaces_a_failed_slot_may_fail_too(self, opened, feed, call):
        session, cuda, _ = opened()
        cuda.fail("cudaStreamSynchronize", "cudaErrorNotSupported")
        cuda.fail(call, after=1 if call != "cudaStreamCreateWithFlags" else 0)
        with pytest.raises(BackendError, match="cudaStreamSynchronize"):
            session.run(feed())
        with pytest.raises(BackendError, match="memory"):
            session.run(feed())
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)

    @pytest.mark.parametrize("settled", [0, 1, 2])
    def test_a_refusal_of_tensorrt(self, opened, library, schedule, feed, settled):
        session, _, trt = opened(schedule=schedule, library=library)
        for _ in range(settled):
            session.run(feed())
        trt.controls.fail("execute_async_v3", "an internal error", times=2)  # recording, and without it
        errors = []
        for i in range(4):
            try:
                found = session.run(feed(1, i))
            except BackendError as e:
                errors.append(str(e))
            else:
                np.testing.assert_array_equal(found["output"], feed(1, i) / 2)
        assert errors or (library, settled) == ("tensorrt", 2)  # replaying, it is not asked
        assert all(e.endswith("failed to run the network: execute_async_v3: an internal error") for e in errors)

    @pytest.mark.parametrize("call", ["create_execution_context", "set_tensor_address", "infer_shapes"])
    def test_a_new_shape_that_is_refused(self, opened, library, feed, call):
        session, _, trt = opened(library=library)
        session.run(feed(4))
        trt.controls.fail(call, "no room")
        with pytest.raises(BackendError, match=f"{call}: no room"):
            session.run(feed(1))
        np.testing.assert_array_equal(session.run(feed(1))["output"], feed(1) / 2)

    @pytest.mark.parametrize("call", ["create_execution_context", "infer_shapes", "execute_async_v3"])
    def test_the_reason_is_of_this_failure_not_of_one_before(self, opened, library, feed, call):
        session, _, trt = opened(library=library)
        for reason in ("the first", "the second"):
            trt.controls.fail(call, reason)
            with pytest.raises(BackendError, match=f"{call}: {reason}$"):
                session.run(feed(1))

    def test_what_recording_logged_is_not_the_reason_of_a_later_failure(self, opened, feed):
        session, _, trt = opened()
        trt.controls.capturable = False
        for _ in range(3):
            session.run(feed(1))
        trt.controls.fail("execute_async_v3", "the reason")
        with pytest.raises(BackendError, match=r"execute_async_v3: the reason$"):
            session.run(feed(1))

    def test_out_of_memory_names_the_remedy(self, opened, feed):
        session, cuda, _ = opened()
        cuda.fail("cudaMemcpyAsync")
        with pytest.raises(BackendError, match=r"out of memory \(cudaErrorMemoryAllocation\); end other programs"):
            session.run(feed())

    def test_an_error_is_not_left_for_tensorrt_to_find(self, opened, feed):
        session, cuda, _ = opened()
        cuda.fail("cudaMemcpyAsync")
        with pytest.raises(BackendError):
            session.run(feed())
        assert cuda.last_error == 0


class TestLostDevice:
    @pytest.mark.parametrize("call", RUN_CALLS)
    @pytest.mark.parametrize("settled", [0, 1, 2])
    def test_the_session_is_closed_and_says_so(self, opened, schedule, feed, call, settled):
        session, cuda, trt = opened(schedule=schedule)
        for _ in range(settled):
            session.run(feed(2))
        cuda.fail(call, "cudaErrorIllegalAddress")
        message = None
        for n in (2, 3, 3, 3):  # a shape that it knows, and one that it has to record
            try:
                session.run(feed(n))
            except BackendError as e:
                message = str(e)
                break
        assert "cudaErrorIllegalAddress" in message
        assert message.endswith("; the device is lost to this process: restart the program")
        assert "\n" not in message
        assert cuda.alive() == []
        assert trt.controls.alive() == []
        with pytest.raises(BackendError, match=r"session is closed, since its device was lost .*IllegalAddress"):
            session.run(feed(2))
        session.close()

    def test_every_thread_is_told(self, opened, feed):
        session, cuda, _ = opened(options=EngineOptions(contexts=2))
        errors, barrier = [], threading.Barrier(6)

        def work():
            barrier.wait()
            for i in range(100):
                try:
                    session.run(feed(1, i % 3))
                except BackendError as e:
                    errors.append(e)
                    return

        threads = [threading.Thread(target=work) for _ in range(6)]
        cuda.fail("cudaStreamSynchronize", "cudaErrorIllegalAddress", after=20)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(errors) == 6
        errors.clear()
        assert cuda.alive() == []

    def test_it_is_lost_when_it_is_closed(self, opened, feed):
        session, cuda, _ = opened()
        session.run(feed())
        cuda.lose()
        session.close()
        assert cuda.alive() == []


class TestSeveralContexts:
    @pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "create_execution_context"])
    def test_without_memory_for_another_the_first_is_waited_for(self, opened, make_plan, schedule, feed, call):
        session, cuda, trt = opened(schedule=schedule, options=EngineOptions(contexts=4))
        session.run(feed())
        answers = []

        def meanwhile():
            trt.controls.before_execute = None
            if call.startswith("cuda"):
                cuda.fail(call)
            else:
                trt.controls.fail(call)
            thread.start()
            while not session._pool._changed._waiters:
                pass

        thread = threading.Thread(target=lambda: answers.append(session.run(feed(1, 1))["output"]))
        trt.controls.before_execute = meanwhile
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)
        thread.join(10)
        np.testing.assert_array_equal(answers[0], feed(1, 1) / 2)
        assert cuda.log.count("cudaStreamCreateWithFlags") == 2  # the second was tried
