"""Arrays that are on the GPU already, and outputs that stay there: `__cuda_array_interface__` and DLPack."""

import ctypes

import numpy as np
import pytest
import torch

from runtime.backends import dlpack
from runtime.backends.device_array import DeviceArray
from runtime.errors import BackendError, InputError


class OthersTensor:
    """An array that another library has on the GPU and gives away by DLPack alone."""

    def __init__(self, cuda, array, device_type=dlpack.CUDA, device=0, address=None, strides=None):
        self.array, self.device = array, (device_type, device)
        self.memory = cuda.others_memory(array.tobytes(), device)
        self.owner = self.Owner()
        self.streams = []

    class Owner:
        pass

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        dtype = self.array.dtype
        return dlpack.export_capsule(
            self.memory.address, *self.device, dtype.kind, 8 * dtype.itemsize, self.array.shape, self.owner
        )


def exported():
    return len(dlpack._exported)


class TestInputs:
    def test_they_are_read_where_they_are(self, opened, schedule, library, feed, others_array):
        session, cuda, _ = opened(schedule=schedule, library=library)
        for i in range(4):
            x = feed(2, i)
            np.testing.assert_array_equal(session.run(others_array(cuda, x))["output"], x / 2)
            np.testing.assert_array_equal(session.run(x + 1)["output"], (x + 1) / 2)

    def test_only_the_output_crosses(self, opened, feed, others_array, monkeypatch):
        session, cuda, _ = opened()
        kinds, copy = [], cuda.cudaMemcpyAsync
        monkeypatch.setattr(cuda, "cudaMemcpyAsync", lambda *a: (kinds.append(a[3].name), copy(*a))[1])
        session.run(others_array(cuda, feed()))
        assert kinds == ["cudaMemcpyDefault", "cudaMemcpyDeviceToHost"]

    def test_the_stream_that_writes_them_is_waited_for(self, opened, schedule, feed, others_array):
        session, cuda, _ = opened(schedule=schedule)
        for i in range(4):
            stream = cuda.others_stream()
            value = others_array(cuda, np.zeros_like(feed()), stream=stream, late=feed(1, i))
            np.testing.assert_array_equal(session.run(value)["output"], feed(1, i) / 2)

    def test_mapped_memory(self, opened, schedule, feed, others_array):
        from runtime.backends.engine_options import EngineOptions

        session, cuda, _ = opened(
            schedule=schedule, cuda_options={"integrated": True}, options=EngineOptions(zero_copy=True)
        )
        for i in range(3):
            np.testing.assert_array_equal(session.run(others_array(cuda, feed(1, i)))["output"], feed(1, i) / 2)

    def test_some_on_the_host_and_some_not(self, opened, schedule, make_plan, fakes, others_array):
        fakes[1].network(weighted)
        inputs = (("a", "FLOAT", (1, 5), (4, 5)), ("b", "UINT8", (1, 3), (4, 3)), ("c", "FLOAT", (2,), (2,)))
        plan = make_plan("weighted", inputs, (("sum", "FLOAT", (-1,)),))
        session, cuda, _ = opened(plan, schedule)
        generator = np.random.default_rng(0)
        for n in (4, 1, 2, 4, 4):
            a = generator.standard_normal((n, 5)).astype(np.float32)
            b = generator.integers(0, 9, (n, 3), np.uint8)
            c = generator.standard_normal(2).astype(np.float32)
            expected = weighted({"a": a, "b": b, "c": c})["sum"].astype(np.float32)
            for on_device in ("", "a", "b", "c", "ac", "bc", "abc"):
                feeds = {k: others_array(cuda, v) if k in on_device else v for k, v in {"a": a, "b": b, "c": c}.items()}
                np.testing.assert_array_equal(session.run(feeds)["sum"], expected)

    def test_dlpack(self, opened, schedule, feed):
        session, cuda, _ = opened(schedule=schedule)
        before = exported()
        for i in range(3):
            value = OthersTensor(cuda, feed(2, i))
            np.testing.assert_array_equal(session.run(value)["output"], feed(2, i) / 2)
            assert value.streams == [1]  # the legacy default stream, which ours then waits for
            assert exported() == before  # it was given back

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"typestr": "<f8"}, "is float64: expected float32"),
            ({"typestr": ">f4"}, "is >f4: expected float32"),
            ({"shape": (3, 4, 4)}, r"has the shape \(3, 4, 4\)"),
            ({"shape": (0, 3, 4, 4)}, "each 1 at least"),
            ({"shape": (5, 3, 4, 4)}, r"the engine takes \(1, 3, 4, 4\) to \(4, 3, 4, 4\)"),
            ({"strides": (4, 4, 16, 64)}, r"has the strides \(1, 1, 4, 16\) .*expected C order, as \.contiguous"),
            ({"mask": object()}, "is masked"),
            ({"data": (12345, False)}, "is not in a GPU's memory, the network on cuda:0"),
            ({"data": None}, "has no readable __cuda_array_interface__"),
            ({"typestr": "?!"}, "has no readable __cuda_array_interface__"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, opened, feed, others_array, change, message):
        session, cuda, _ = opened()
        with pytest.raises(InputError, match=message):
            session.run(others_array(cuda, feed(), **change))
        np.testing.assert_array_equal(session.run(feed())["output"], feed() / 2)

    def test_strides_of_c_order_are_fine(self, opened, feed, others_array):
        session, cuda, _ = opened()
        for strides in ((192, 64, 16, 4), (0, 64, 16, 4)):  # that of a dimension of 1 means nothing
            np.testing.assert_array_equal(
                session.run(others_array(cuda, feed(), strides=strides))["output"], feed() / 2
            )

    @pytest.mark.parametrize(("where", "message"), [({"device": 1}, "on cuda:1"), ({"pinned": True}, "not in a GPU")])
    def test_memory_elsewhere(self, opened, feed, others_array, where, message):
        session, cuda, _ = opened(cuda_options={"devices": 2})
        with pytest.raises(InputError, match=rf"{message}.*, the network on cuda:0: move it there"):
            session.run(others_array(cuda, feed(), **where))

    def test_dlpack_that_does_not_fit_is_given_back(self, opened, feed):
        session, cuda, _ = opened(cuda_options={"devices": 2})
        before = exported()
        for value, message in (
            (OthersTensor(cuda, feed().astype(np.float64)), "is float64: expected float32"),
            (OthersTensor(cuda, feed()[0]), "has the shape"),
            (OthersTensor(cuda, feed(5)), "the engine takes"),
            (OthersTensor(cuda, feed(), device=1), "is on cuda:1, the network on cuda:0"),
            (OthersTensor(cuda, feed(), dlpack.CPU), "is a OthersTensor in host memory: expected a numpy array"),
        ):
            with pytest.raises(InputError, match=message):
                session.run(value)
            assert exported() == before

    @pytest.mark.parametrize("method", ["__dlpack__", "__dlpack_device__"])
    def test_dlpack_that_raises(self, opened, feed, monkeypatch, method):
        def refuse(self, **_):
            raise RuntimeError("it requires grad")

        session, cuda, _ = opened()
        monkeypatch.setattr(OthersTensor, method, refuse)
        with pytest.raises(InputError, match=r"by DLPack.*: it requires grad"):
            session.run(OthersTensor(cuda, feed()))

    def test_a_torch_tensor_on_the_processor(self, opened, feed):
        session, *_ = opened()
        with pytest.raises(InputError, match=r"is a Tensor in host memory: expected a numpy array"):
            session.run(torch.from_numpy(feed()))

    def test_what_is_given_back_was_read(self, opened, feed, others_array):
        """Also where the run fails: memory that its owner takes back must not be in use."""
        session, cuda, _ = opened()
        cuda.fail("cudaStreamSynchronize", "cudaErrorNotSupported")
        value = others_array(cuda, feed())
        with pytest.raises(BackendError):
            session.run(value)
        assert not cuda.busy(value.memory.address, value.memory.size)


def weighted(feeds):
    return {"sum": feeds["a"].sum(1) * feeds["c"].sum() + feeds["b"].sum(1)}


class TestOutputs:
    def test_they_stay_on_the_device(self, opened, schedule, library, feed):
        session, _cuda, _ = opened(schedule=schedule, library=library)
        kept = []
        for i in range(5):
            found = session.run(feed(3, i), on_device=True)["output"]
            assert isinstance(found, DeviceArray)
            assert (found.shape, found.dtype, found.device) == ((3, 3, 4, 4), np.float32, 0)
            assert repr(found) == "DeviceArray(shape=(3, 3, 4, 4), dtype=float32, device=cuda:0)"
            kept.append(found)
        for i, found in enumerate(kept):  # each has memory of its own
            np.testing.assert_array_equal(found.numpy(), feed(3, i) / 2)

    def test_nothing_crosses(self, opened, feed, others_array, monkeypatch):
        session, cuda, _ = opened()
        kinds, copy = [], cuda.cudaMemcpyAsync
        monkeypatch.setattr(cuda, "cudaMemcpyAsync", lambda *a: (kinds.append(a[3].name), copy(*a))[1])
        session.run(others_array(cuda, feed()), on_device=True)
        assert set(kinds) == {"cudaMemcpyDefault"}

    def test_they_are_fed_again(self, opened, schedule, feed):
        session, *_ = opened(schedule=schedule)
        found = feed(2)
        for _ in range(5):
            found = session.run(found, on_device=True)["output"]
        np.testing.assert_array_equal(found.numpy(), feed(2) / 32)

    def test_their_memory_is_used_again(self, opened, feed):
        session, cuda, _ = opened()
        for i in range(10):
            session.run(feed(2, i), on_device=True)
        assert len([m for m in cuda.memories if m.size == 384]) == 1
        first, second = (session.run(feed(2, i), on_device=True)["output"] for i in range(2))
        assert first.pointer != second.pointer

    def test_they_outlive_the_session(self, opened, schedule, feed):
        session, cuda, _ = opened(schedule=schedule)
        found = session.run(feed(), on_device=True)["output"]
        session.close()
        np.testing.assert_array_equal(found.numpy(), feed() / 2)
        del found
        assert cuda.alive() == []

    def test_the_interface_says_where_they_are(self, opened, feed):
        session, _cuda, _ = opened()
        found = session.run(feed(2), on_device=True)["output"]
        interface = found.__cuda_array_interface__
        assert interface == {
            "shape": (2, 3, 4, 4),
            "typestr": "<f4",
            "data": (found.pointer, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }
        content = np.frombuffer(ctypes.string_at(found.pointer, found.nbytes), np.float32)
        np.testing.assert_array_equal(content, feed(2).ravel() / 2)
        assert found.__dlpack_device__() == (2, 0)

    def test_who_takes_one_by_dlpack_keeps_its_memory(self, opened, feed):
        session, _cuda, _ = opened()
        found = session.run(feed(2), on_device=True)["output"]
        pointer = found.pointer
        taken = dlpack.import_capsule(found.__dlpack__(stream=1))
        assert (taken.pointer, taken.device_type, taken.device_id) == (pointer, dlpack.CUDA, 0)
        assert (taken.dtype, taken.shape, taken.strides) == ("float32", (2, 3, 4, 4), (48, 16, 4, 1))
        del found
        other = session.run(feed(2, 1), on_device=True)["output"]
        assert other.pointer != pointer
        np.testing.assert_array_equal(np.frombuffer(ctypes.string_at(pointer, 384), np.float32), feed(2).ravel() / 2)
        taken.release()
        assert session.run(feed(2), on_device=True)["output"].pointer == pointer

    def test_an_offer_that_nobody_takes_keeps_nothing(self, opened, feed):
        session, *_ = opened()
        before = exported()
        found = session.run(feed(), on_device=True)["output"]
        capsule = found.__dlpack__()
        assert exported() == before + 1
        del capsule
        assert exported() == before

    def test_a_copy_that_fails(self, opened, feed):
        session, cuda, _ = opened()
        found = session.run(feed(), on_device=True)["output"]
        for call in ("cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaMemcpyAsync", "cudaStreamSynchronize"):
            cuda.fail(call, "cudaErrorNotSupported")
            before = len(cuda.alive())
            with pytest.raises(BackendError, match=call):
                found.numpy()
            assert len(cuda.alive()) == before
        np.testing.assert_array_equal(found.numpy(), feed() / 2)

    def test_no_memory_for_them(self, opened, feed):
        session, cuda, _ = opened()
        session.run(feed())
        cuda.fail("cudaMalloc")
        with pytest.raises(BackendError, match="out of memory"):
            session.run(feed(), on_device=True)
        np.testing.assert_array_equal(session.run(feed(), on_device=True)["output"].numpy(), feed() / 2)


class Described:
    """Host memory, described by our exporter, for numpy and torch to read."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return (dlpack.CPU, 0)

    def __dlpack__(self, **_):
        a = self.array
        return dlpack.export_capsule(a.ctypes.data, dlpack.CPU, 0, a.dtype.kind, 8 * a.dtype.itemsize, a.shape, a)


class TestDLPack:
    """Against the two libraries that are here, in host memory."""

    @pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int32", "int64", "bool", "float64"])
    @pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (), (1, 1, 7)])
    def test_others_read_what_is_exported(self, dtype, shape):
        array = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
        before = exported()
        by_torch, by_numpy = torch.from_dlpack(Described(array)), np.from_dlpack(Described(array))
        np.testing.assert_array_equal(by_torch.numpy(), array)
        np.testing.assert_array_equal(by_numpy, array)
        assert by_torch.numpy().dtype == by_numpy.dtype == array.dtype
        assert by_torch.data_ptr() == array.ctypes.data  # shared, not copied
        assert exported() == before + 2
        del by_torch, by_numpy
        assert exported() == before

    @pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool"])
    def test_what_others_export_is_read(self, dtype):
        array = (np.arange(24) % 2).reshape(2, 3, 4).astype(dtype)
        for source in (torch.from_numpy(array), array):
            found = dlpack.import_capsule(source.__dlpack__())
            assert (found.pointer, found.device_type) == (array.ctypes.data, dlpack.CPU)
            assert (found.dtype, found.shape) == (dtype, (2, 3, 4))
            found.release()

    def test_strides_are_told(self):
        found = dlpack.import_capsule(torch.arange(12.0).reshape(3, 4).T.__dlpack__())
        assert (found.shape, found.strides) == ((4, 3), (1, 4))
        found.release()

    def test_a_type_that_numpy_has_not(self):
        found = dlpack.import_capsule(torch.zeros(3, dtype=torch.bfloat16).__dlpack__())
        assert found.dtype is None
        found.release()

    def test_a_capsule_is_taken_once(self):
        capsule = np.zeros(3).__dlpack__()
        dlpack.import_capsule(capsule).release()
        with pytest.raises(ValueError, match="taken already"):
            dlpack.import_capsule(capsule)
