"""Sessions on a device: answers, buffers, streams, CUDA graphs, threads, and that everything is released."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from runtime.backends.engine_options import EngineOptions
from runtime.backends.tensorrt import TensorRTSession
from runtime.errors import BackendError, InputError
from runtime.manifest import EngineInfo, TensorSpec

TWO_IN_TWO_OUT = {
    "network": "sums",
    "inputs": (("frame", "UINT8", (1, 2, 3, 3), (4, 9, 7, 3)), ("weights", "FLOAT", (5,), (5,))),
    "outputs": (("total", "INT32", (-1,)), ("scaled", "FLOAT", (-1, -1, -1, 3))),
}


def info(**changes):
    return EngineInfo("tensorrt", "10.3.0", "8.7", 4, **changes)


@pytest.fixture(autouse=True)
def sums(fakes):
    def sums(feeds):
        frame, weights = feeds["frame"], feeds["weights"]
        return {"total": frame.sum((1, 2, 3)), "scaled": frame * weights.sum()}

    fakes[1].network(sums)


class TestAnswers:
    def test_what_it_takes_and_gives(self, opened, schedule, library, feed):
        session, *_ = opened(schedule=schedule, library=library)
        assert (session.backend, session.device) == (library, "cuda:0")
        assert session.inputs == (TensorSpec("input", "float32", ("batch", 3, 4, 4)),)
        assert session.outputs == (TensorSpec("output", "float32", ("batch", 3, 4, 4)),)
        for n in (1, 4, 2, 4, 1, 1, 3):  # each as it is, recorded, and replayed, in between others
            x = feed(n, seed=n)
            found = session.run(x)
            assert list(found) == ["output"]
            np.testing.assert_array_equal(found["output"], x / 2)
            assert found["output"].dtype == np.float32

    def test_several_inputs_and_outputs_of_several_types(self, opened, schedule, library, make_plan):
        session, *_ = opened(make_plan(**TWO_IN_TWO_OUT, library=library), schedule, library)
        generator = np.random.default_rng(0)
        for shape in ((1, 2, 3, 3), (4, 9, 7, 3), (2, 5, 4, 3), (4, 9, 7, 3), (2, 5, 4, 3), (2, 5, 4, 3)):
            frame = generator.integers(0, 256, shape, np.uint8)
            weights = generator.standard_normal(5).astype(np.float32)
            found = session.run({"weights": weights, "frame": frame})
            np.testing.assert_array_equal(found["total"], frame.sum((1, 2, 3)))
            np.testing.assert_array_equal(found["scaled"], (frame * weights.sum()).astype(np.float32))
            assert found["total"].dtype == np.int32

    def test_results_belong_to_the_caller(self, opened, schedule, feed):
        session, *_ = opened(schedule=schedule)
        first = session.run(feed())["output"]
        kept = first.copy()
        session.run(feed(seed=1))
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(session.run(feed())["output"], kept)
        session.close()
        first[:] = 1

    def test_strided_and_read_only_arrays_are_taken_and_left_alone(self, opened, schedule, feed):
        session, *_ = opened(schedule=schedule)
        x = np.ascontiguousarray(feed(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        x.setflags(write=False)
        before = x.copy()
        np.testing.assert_array_equal(session.run(x)["output"], x / 2)
        np.testing.assert_array_equal(x, before)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x.astype(np.float64), "is float64: expected float32"),
            (lambda x: x[:0], "each 1 at least"),
            (lambda x: x[0], r"has the shape \(3, 4, 4\)"),
            (
                lambda x: np.repeat(x, 5, 0),
                r"\(5, 3, 4, 4\): the engine takes \(1, .* to \(4, .*max-batch",
            ),
            (lambda x: x * np.nan, "has 48 NaN"),
            (lambda x: x.tolist(), "is a list: expected a numpy array"),
            (lambda x: {"image": x}, "no input 'image'"),
            (lambda x: {}, "'input' is missing"),
            (lambda x: None, "is a NoneType"),
        ],
    )
    def test_bad_feeds_touch_no_device_and_leave_it_usable(self, opened, feed, change, message):
        session, cuda, _ = opened()
        session.run(feed())
        del cuda.log[:]
        with pytest.raises(InputError, match=message):
            session.run(change(feed()))
        assert set(cuda.log) <= {"cudaGetDevice"}
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)


class TestBuffers:
    def test_nothing_is_allocated_after_a_shape_has_settled(self, opened, library, schedule, feed):
        session, cuda, trt = opened(schedule=schedule, library=library)
        for n in (1, 4, 1, 4):
            session.run(feed(n))
        del cuda.log[:]
        contexts, executions = len(trt.controls.contexts), trt.controls.executions
        for n in (1, 4, 1, 4):
            session.run(feed(n))
        replay = ["cudaGraphLaunch"] if library == "tensorrt" else []
        assert cuda.log == ["cudaGetDevice", "cudaMemcpyAsync", *replay, "cudaMemcpyAsync", "cudaStreamSynchronize"] * 4
        assert len(trt.controls.contexts) == contexts
        assert trt.controls.executions == executions + (0 if replay else 4)

    def test_only_what_a_batch_takes_is_copied(self, opened, make_plan, feed, monkeypatch):
        session, cuda, _ = opened()
        sizes, copy = [], cuda.cudaMemcpyAsync
        monkeypatch.setattr(cuda, "cudaMemcpyAsync", lambda *a: (sizes.append(a[2]), copy(*a))[1])
        session.run(feed(1))
        assert sizes == [256, 256]  # 3 × 4 × 4 float32 in blocks of 256 bytes
        session.run(feed(4))
        assert sizes[2:] == [768, 768]

    def test_contexts_share_the_memory_for_activations(self, opened, make_plan, feed):
        session, cuda, trt = opened(make_plan(workspace=2**20))
        for n in (1, 2, 3, 4):
            session.run(feed(n))
        assert sum(m.size >= 2**20 for m in cuda.memories) == 1
        assert len(trt.controls.contexts) == 4

    def test_shapes_that_were_not_used_for_long_make_room(self, opened, make_plan, schedule, feed):
        plan = make_plan(inputs=(("input", "FLOAT", (1, 3, 4, 4), (20, 3, 4, 4)),))
        session, _, trt = opened(plan, schedule)
        for _ in range(2):
            for n in (*range(1, 21), 1, 1, 1):
                np.testing.assert_array_equal(session.run(feed(n, n))["output"], feed(n, n) / 2)
        assert trt.controls.alive().count("context") == 8

    def test_mapped_memory_is_not_copied(self, opened, schedule, library, feed):
        session, cuda, _ = opened(
            schedule=schedule, library=library, cuda_options={"integrated": True}, options=EngineOptions(zero_copy=True)
        )
        for n in (1, 4, 1, 1, 4):
            np.testing.assert_array_equal(session.run(feed(n, n))["output"], feed(n, n) / 2)
        assert "cudaMemcpyAsync" not in cuda.log
        assert cuda.log.count("cudaMalloc") == (library == "tensorrt")  # activations stay where they are fast

    def test_mapped_memory_needs_a_gpu_that_shares_it(self, opened):
        with pytest.raises(BackendError, match="zero_copy is for a GPU that shares the processor's memory"):
            opened(options=EngineOptions(zero_copy=True))

    def test_another_device_is_used_and_the_threads_own_is_left(self, opened, schedule, feed):
        session, cuda, _ = opened(schedule=schedule, device="cuda:1", cuda_options={"devices": 2})
        assert session.device == "cuda:1"
        for n in (1, 1, 1, 2):
            np.testing.assert_array_equal(session.run(feed(n))["output"], feed(n) / 2)
            assert cuda.device == 0
        assert {m.device for m in cuda.memories} == {1}
        session.close()
        assert cuda.device == 0

    @pytest.mark.parametrize("device", [2, -1, "cuda:7", "gpu", True, "cpu"])
    def test_no_such_device(self, opened, device):
        with pytest.raises(BackendError, match=r"there is no device .*: expected one of cuda:0, cuda:1"):
            opened(device=device, cuda_options={"devices": 2})


class TestGraphs:
    def test_the_second_run_of_a_shape_is_recorded_and_later_ones_replay_it(self, opened, schedule, feed):
        session, cuda, trt = opened(schedule=schedule)
        for i in range(5):
            np.testing.assert_array_equal(session.run(feed(2, i))["output"], feed(2, i) / 2)
        assert (trt.controls.executions, trt.controls.recordings) == (2, 1)
        assert cuda.log.count("cudaGraphLaunch") == 4

    def test_without_them_every_run_is_executed(self, opened, library, feed):
        session, cuda, trt = opened(library=library, options=EngineOptions(cuda_graphs=False))
        for _ in range(4):
            session.run(feed())
        assert trt.controls.executions == 4
        assert "cudaStreamBeginCapture" not in cuda.log
        if library == "tensorrt_rtx":
            assert set(trt.controls.strategies) == {"DISABLED"}

    def test_tensorrt_rtx_records_by_itself(self, opened, feed):
        session, cuda, trt = opened(library="tensorrt_rtx")
        for _ in range(4):
            session.run(feed())
        assert set(trt.controls.strategies) == {"WHOLE_GRAPH_CAPTURE"}
        assert "cudaStreamBeginCapture" not in cuda.log

    def test_an_engine_that_cannot_be_recorded_runs_without(self, opened, schedule, feed):
        session, cuda, trt = opened(schedule=schedule)
        trt.controls.capturable = False
        for i in range(5):
            np.testing.assert_array_equal(session.run(feed(1, i))["output"], feed(1, i) / 2)
        assert cuda.log.count("cudaStreamBeginCapture") == 1  # tried once, not every time
        assert "cudaGraphLaunch" not in cuda.log

    @pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
    def test_a_recording_that_fails_is_given_up(self, opened, schedule, feed, call):
        session, cuda, _ = opened(schedule=schedule)
        cuda.fail(call)
        for i in range(4):
            np.testing.assert_array_equal(session.run(feed(1, i))["output"], feed(1, i) / 2)
        assert "cudaGraphLaunch" not in cuda.log

    def test_an_interrupt_while_recording_leaves_it_usable(self, opened, schedule, feed):
        session, _, trt = opened(schedule=schedule)
        session.run(feed())
        trt.controls.fail("execute_async_v3", error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            session.run(feed())
        for i in range(4):
            np.testing.assert_array_equal(session.run(feed(1, i))["output"], feed(1, i) / 2)

    def test_other_threads_allocate_while_one_records(self, opened, schedule, feed):
        """Thread-local capture: in the global mode this would break the recording."""
        session, _, trt = opened(schedule=schedule, options=EngineOptions(contexts=2))
        session.run(feed())
        answers = []

        def meanwhile():
            trt.controls.before_execute = None
            thread = threading.Thread(target=lambda: answers.append(session.run(feed(4, 1))["output"]))
            thread.start()
            thread.join()

        trt.controls.before_execute = meanwhile
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)
        np.testing.assert_array_equal(answers[0], feed(4, 1) / 2)


class TestThreads:
    @pytest.mark.parametrize("contexts", [1, 3, 8])
    def test_several_threads_share_it(self, opened, schedule, library, feed, contexts):
        session, cuda, _ = opened(schedule=schedule, library=library, options=EngineOptions(contexts=contexts))
        barrier = threading.Barrier(8)

        def work(seed):
            barrier.wait()
            for i in range(15):
                x = feed(1 + (seed + i) % 4, seed)
                np.testing.assert_array_equal(session.run(x)["output"], x / 2)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert cuda.log.count("cudaStreamCreateWithFlags") <= contexts

    def test_one_thread_alone_takes_one_context(self, opened, feed):
        session, cuda, _ = opened(options=EngineOptions(contexts=8))
        for _ in range(10):
            session.run(feed())
        assert cuda.log.count("cudaStreamCreateWithFlags") == 1

    @pytest.mark.parametrize(("contexts", "error"), [(0, ValueError), (65, ValueError), ("2", TypeError)])
    def test_contexts_out_of_range(self, contexts, error):
        with pytest.raises(error, match="contexts is"):
            EngineOptions(contexts=contexts)

    def test_what_runs_when_it_is_closed_finishes(self, opened, schedule, feed):
        session, cuda, trt = opened(schedule=schedule, options=EngineOptions(contexts=2))
        session.run(feed())

        def close():
            trt.controls.before_execute = None
            session.close()
            assert cuda.alive()  # of the one that runs
            with pytest.raises(BackendError, match="session is closed"):
                session.run(feed())

        trt.controls.before_execute = close
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)
        assert cuda.alive() == []

    def test_threads_that_wait_are_told_of_the_close(self, opened, feed):
        session, _, trt = opened(options=EngineOptions(contexts=1))
        errors = []

        def wait():
            with pytest.raises(BackendError, match="session is closed") as caught:
                session.run(feed())
            errors.append(caught)

        thread = threading.Thread(target=wait)

        def close():
            trt.controls.before_execute = None
            thread.start()
            while not session._pool._changed._waiters:  # until it waits for the only slot
                pass
            session.close()

        trt.controls.before_execute = close
        session.run(feed())
        thread.join(10)
        assert errors


class TestClose:
    def test_everything_is_released(self, opened, library, schedule, feed):
        session, cuda, trt = opened(schedule=schedule, library=library)
        for n in (1, 2, 2, 4):
            session.run(feed(n))
        session.close()
        assert cuda.alive() == []
        assert trt.controls.alive() == []
        session.close()
        with pytest.raises(BackendError, match=f"the {library} session is closed: load the model again"):
            session.run(feed())

    def test_a_session_that_is_dropped_is_released_too(self, install, make_plan, feed):
        cuda, trt = install()
        session = TensorRTSession("tensorrt", make_plan())
        session.run(feed())
        del session
        assert cuda.alive() == []
        assert trt.controls.alive() == []


class TestEngines:
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda p: p[:-7], "the plan is not whole"),
            (lambda p: p[:40] + b"x" + p[41:], "the plan is not whole"),
            (lambda p: b"", "the plan is not whole"),
        ],
    )
    def test_a_damaged_engine(self, opened, library, make_plan, damage, reason):
        title = "TensorRT-RTX" if library == "tensorrt_rtx" else "TensorRT"
        with pytest.raises(BackendError, match=rf"^{title} 10\.3\.0 does not open the engine: .*{reason}$"):
            opened(damage(make_plan(library=library)), library=library)

    @pytest.mark.parametrize(("key", "value"), [("version", "10.9.0"), ("capability", "8.9")])
    def test_an_engine_for_something_else(self, opened, make_plan, key, value):
        with pytest.raises(BackendError, match=rf"does not open the engine: the \w+ of the engine, {value}, is not"):
            opened(make_plan(**{key: value}))

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ({"location": "HOST"}, "is a shape, not data"),
            ({"format": "CHW32"}, "is not laid out as rows"),
            ({"outputs": (("output", "BF16", (-1,)),)}, "has the type BF16, which is not supported"),
            ({"outputs": (("output", "FLOAT", ("?",)),)}, "depend on the data"),
        ],
    )
    def test_an_engine_of_a_kind_that_is_not_run(self, opened, make_plan, extra, message):
        with pytest.raises(BackendError, match=message):
            opened(make_plan(**extra))

    def test_weights_come_from_the_graph(self, opened, make_plan, feed):
        session, _, trt = opened(make_plan(stripped=True), info=info(stripped=True), weights=b"graph")
        assert trt.controls.refitted == b"graph"
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)

    def test_an_engine_without_weights_needs_the_graph(self, opened, make_plan):
        with pytest.raises(BackendError, match="without its weights, which are in its bundle's ONNX file"):
            opened(make_plan(stripped=True), info=info(stripped=True))

    @pytest.mark.parametrize("call", ["refit_from_bytes", "refit_cuda_engine"])
    def test_weights_of_another_graph(self, install, make_plan, call):
        _, trt = install()
        trt.controls.fail(call, "no such weights")
        with pytest.raises(
            BackendError, match=rf"does not take the weights of the ONNX file, .*{call}: no such weights"
        ):
            TensorRTSession("tensorrt", make_plan(stripped=True), info=info(stripped=True), weights=b"other")

    def test_host_code_is_allowed_to_those_that_are_said_to_have_it(self, opened, make_plan):
        with pytest.raises(BackendError, match="has host code, which is not allowed"):
            opened(make_plan(host_code=True), info=info())
        _, _, trt = opened(make_plan(host_code=True), info=info(version_compatible=True))
        assert trt.controls.host_code is True

    def test_the_accelerator_that_it_was_built_for(self, opened, make_plan):
        _, _, trt = opened(info=info(dla_core=1))
        assert trt.controls.dla == 1


class TestRuntimeCache:
    """The kernels that TensorRT-RTX compiles for the GPU at hand."""

    def test_it_is_kept_and_read(self, opened, tmp_path, feed):
        cache = tmp_path / "model.engine.cache"
        session, *_ = opened(library="tensorrt_rtx", cache=cache)
        session.run(feed())
        session.close()
        assert cache.is_file()
        assert [p.name for p in tmp_path.iterdir()] == [cache.name]
        _, _, again = opened(library="tensorrt_rtx", cache=cache)
        assert again.controls.caches_read == [b'["kernel", "kernel"]']

    @pytest.mark.parametrize(
        "damage", [lambda d: d[:-1], lambda d: d[:60] + b"?" + d[61:], lambda d: b"", lambda d: b"x" * 500]
    )
    def test_a_damaged_one_is_made_anew(self, opened, tmp_path, feed, damage):
        cache = tmp_path / "c"
        opened(library="tensorrt_rtx", cache=cache)[0].close()
        whole = cache.read_bytes()
        cache.write_bytes(damage(whole))
        session, _, trt = opened(library="tensorrt_rtx", cache=cache)
        assert trt.controls.caches_read == []
        session.close()
        assert cache.read_bytes() == whole

    def test_that_of_another_engine_is_not_read(self, opened, make_plan, tmp_path):
        cache = tmp_path / "c"
        opened(library="tensorrt_rtx", cache=cache)[0].close()
        _, _, trt = opened(make_plan(library="tensorrt_rtx", workspace=4096), library="tensorrt_rtx", cache=cache)
        assert trt.controls.caches_read == []

    def test_nowhere_to_keep_it_is_no_error(self, opened, tmp_path, feed):
        session, *_ = opened(library="tensorrt_rtx", cache=tmp_path / "missing" / "c")
        session.run(feed())
        session.close()
        assert list(tmp_path.iterdir()) == []

    def test_tensorrt_has_none(self, opened, tmp_path):
        opened(cache=tmp_path / "c")[0].close()
        assert list(tmp_path.iterdir()) == []
