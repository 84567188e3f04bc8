"""Sessions: what they are fed, what they give back, and which of them can be used here."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime import backends, cpu
from runtime.backends import BACKENDS, available_backends, cuda, open_session, preferred_backends, unavailable
from runtime.backends.base import check_feeds, one_line
from runtime.errors import BackendError, InputError
from runtime.manifest import TensorSpec

IMAGE = TensorSpec("input", "float32", ("batch", 3, 4, 4))


@pytest.fixture
def feed():
    return np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def file(tmp_path, network):
    path = tmp_path / "model.onnx"
    path.write_bytes(network())
    return path


def reference(data, feed):
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": feed})[0]


class TestCheckFeeds:
    def test_an_array_alone_is_the_one_input(self):
        x = np.zeros((1, 3, 4, 4), np.float32)
        assert check_feeds((IMAGE,), x)["input"] is x
        assert check_feeds((IMAGE,), {"input": x})["input"] is x

    def test_what_is_not_contiguous_is_copied(self):
        x = np.arange(96, dtype=np.float32).reshape(2, 4, 4, 3).transpose(0, 3, 1, 2)
        found = check_feeds((IMAGE,), x)["input"]
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, x)

    @pytest.mark.parametrize(
        ("feeds", "message"),
        [
            ({}, "'input' is missing"),
            ({"image": np.zeros((1, 3, 4, 4), np.float32)}, "no input 'image': it takes 'input'"),
            ({"input": [[1.0]]}, "is a list: expected a numpy array"),
            (None, "is a NoneType: expected a numpy array"),
            (np.zeros((1, 3, 4, 4)), r"is float64: expected float32, as \.astype\('float32'\) gives"),
            (np.zeros((1, 3, 4, 4), ">f4"), "is >f4: expected float32"),
            (np.zeros((1, 3, 4, 4), np.uint8), "is uint8"),
            (np.zeros((3, 4, 4), np.float32), r"has the shape \(3, 4, 4\): expected \(batch, 3, 4, 4\)"),
            (np.zeros((1, 3, 4, 5), np.float32), "has the shape"),
            (np.zeros((0, 3, 4, 4), np.float32), "each 1 at least"),
            (np.full((1, 3, 4, 4), np.nan, np.float32), "has 48 NaN: every value must be finite"),
            (np.full((1, 3, 4, 4), -np.inf, np.float32), "has 48 infinite"),
        ],
    )
    def test_wrong_feeds_are_refused(self, feeds, message):
        with pytest.raises(InputError, match=message):
            check_feeds((IMAGE,), feeds)

    def test_large_finite_values_are_taken_without_a_warning(self):
        check_feeds((IMAGE,), np.full((1, 3, 4, 4), np.finfo(np.float32).max))

    def test_several_inputs_go_by_name(self):
        two = (IMAGE, TensorSpec("ids", "int64", (2,)))
        with pytest.raises(InputError, match="takes 2 inputs, 'input', 'ids': pass them by name"):
            check_feeds(two, np.zeros((1, 3, 4, 4), np.float32))
        feeds = {"ids": np.zeros(2, np.int64), "input": np.zeros((1, 3, 4, 4), np.float32)}
        assert list(check_feeds(two, feeds)) == ["input", "ids"]


class TestSession:
    def test_it_runs_and_says_what_it_takes(self, cpu_backend, file, network, feed):
        session = open_session(file, cpu_backend, threads=1)
        assert (session.backend, session.device) == (cpu_backend, "cpu")
        assert session.inputs == (TensorSpec("input", "float32", ("batch", 3, 16, 16)),)
        assert session.outputs == (TensorSpec("logits", "float32", ("batch", 4)),)
        result = session.run(feed)
        assert list(result) == ["logits"]
        np.testing.assert_allclose(result["logits"], reference(network(), feed), rtol=1e-5, atol=1e-6)
        session.close()

    def test_it_opens_bytes(self, cpu_backend, network, feed):
        session = open_session(network(), cpu_backend, threads=1)
        np.testing.assert_allclose(session.run(feed)["logits"], reference(network(), feed), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("variant", ["int8.cpu", "int8.trt"])
    def test_quantized_networks_run(self, cpu_backend, network, feed, variant):
        found = open_session(network(variant), cpu_backend, threads=1).run(feed)["logits"]
        exact = reference(network(), feed)
        assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.1

    def test_results_belong_to_the_caller(self, cpu_backend, network, feed):
        session = open_session(network(), cpu_backend, threads=1)
        first = session.run(feed)["logits"]
        kept = first.copy()
        session.run(feed * 2)
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(session.run(feed)["logits"], kept)

    def test_read_only_and_strided_arrays_are_taken_and_left_alone(self, cpu_backend, network, feed):
        session = open_session(network(), cpu_backend, threads=1)
        expected = session.run(feed)["logits"]
        strided = np.ascontiguousarray(feed.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        strided.setflags(write=False)
        before = strided.copy()
        np.testing.assert_array_equal(session.run(strided)["logits"], expected)
        np.testing.assert_array_equal(strided, before)

    def test_wrong_feeds_leave_it_usable(self, cpu_backend, network, feed):
        session = open_session(network(), cpu_backend, threads=1)
        with pytest.raises(InputError):
            session.run(feed.astype(np.float64))
        assert session.run(feed)["logits"].shape == (2, 4)

    def test_a_closed_session_is_an_error(self, cpu_backend, network, feed):
        session = open_session(network(), cpu_backend, threads=1)
        session.close()
        session.close()
        with pytest.raises(BackendError, match="session is closed"):
            session.run(feed)

    def test_several_threads_share_it(self, cpu_backend, network):
        session = open_session(network(), cpu_backend, threads=1)
        feeds = [np.full((1, 3, 16, 16), i, np.float32) for i in range(16)]
        expected = [session.run(x)["logits"] for x in feeds]
        barrier = threading.Barrier(8)

        def work(_):
            barrier.wait()
            for _ in range(20):
                for x, y in zip(feeds, expected, strict=True):
                    np.testing.assert_array_equal(session.run(x)["logits"], y)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

    @pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x08"])
    def test_what_is_not_onnx_is_refused_in_one_line(self, cpu_backend, data):
        with pytest.raises(BackendError, match=f"{cpu_backend} cannot open") as e:
            open_session(data, cpu_backend, threads=1)
        assert "\n" not in str(e.value)

    def test_a_missing_file_is_refused(self, cpu_backend, tmp_path):
        with pytest.raises(BackendError, match="cannot open"):
            open_session(tmp_path / "none.onnx", cpu_backend, threads=1)

    def test_an_unknown_device_is_refused_with_those_there_are(self, cpu_backend, network):
        with pytest.raises(BackendError, match="cpu"):
            open_session(network(), cpu_backend, device="abacus")

    def test_batch_that_is_fixed_is_checked(self, cpu_backend, network, feed):
        session = open_session(network(batch=1), cpu_backend, threads=1)
        assert session.inputs[0].shape == (1, 3, 16, 16)
        with pytest.raises(InputError, match="has the shape"):
            session.run(feed)


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (-1, ValueError), (1025, ValueError)])
def test_threads_out_of_range(network, threads, error):
    with pytest.raises(error, match="expected 1 to 1024"):
        open_session(network(), "onnxruntime", threads=threads)


@pytest.mark.parametrize("threads", [1.0, "1", True])
def test_threads_of_another_type(network, threads):
    with pytest.raises(TypeError, match="expected an integer"):
        open_session(network(), "onnxruntime", threads=threads)


def saturating_network():
    """A 1×1 convolution in the `cpu` scheme whose sums of two products exceed 16 bits."""
    generator = np.random.default_rng(0)
    channels = 64
    kernel = generator.integers(64, 128, (8, channels, 1, 1)).astype(np.int8)
    constants = {
        "s": np.float32(1 / 255),
        "z": np.uint8(0),
        "k": kernel,
        "ks": np.full(8, 1 / 127, np.float32),
        "kz": np.zeros(8, np.int8),
        "os": np.float32(channels / 255),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["k", "ks", "kz"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["y", "os", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "os", "z"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    image = (generator.integers(200, 256, (1, channels, 8, 8)) / 255).astype(np.float32)
    exact = np.einsum("oc,nchw->nohw", kernel[:, :, 0, 0] / 127.0, image.astype(np.float64))
    return model.SerializeToString(), image, exact, channels / 255


def test_int8_sums_do_not_saturate_on_onnxruntime():
    data, image, exact, step = saturating_network()
    found = open_session(data, "onnxruntime", threads=1).run(image)["out"]
    assert np.abs(found - exact).max() <= 0.51 * step


class TestCPU:
    def test_flags_of_this_machine_are_read(self):
        assert cpu.flags() or not Path("/proc/cpuinfo").exists()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n", True),
            ("flags : fpu avx2 avx_vnni\n", True),
            ("flags : fpu amx_int8\n", True),
            ("flags : fpu avx2\n", False),
            ("Features : fp asimd\n", False),
            ("", False),
        ],
    )
    def test_dot_products_are_found(self, tmp_path, monkeypatch, text, expected):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
        cpu.flags.cache_clear()
        try:
            assert cpu.has_int8_dot_product() is expected
        finally:
            cpu.flags.cache_clear()

    @pytest.mark.parametrize(("quota", "expected"), [("max 100000", 4), ("250000 100000", 2), ("1000 100000", 1)])
    def test_threads_are_the_cores_within_the_containers_share(self, tmp_path, monkeypatch, quota, expected):
        for i in range(8):  # 4 cores of 2 threads
            (tmp_path / f"cpu{i}/topology").mkdir(parents=True)
            (tmp_path / f"cpu{i}/topology/thread_siblings_list").write_text(f"{i % 4},{i % 4 + 4}\n")
        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(cpu, "_TOPOLOGY", tmp_path)
        monkeypatch.setattr(cpu, "_QUOTA", tmp_path / "cpu.max")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
        assert cpu.default_threads() == expected

    def test_without_topology_every_cpu_counts(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cpu, "_TOPOLOGY", tmp_path)
        monkeypatch.setattr(cpu, "_QUOTA", tmp_path / "none")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3})
        assert cpu.default_threads() == 2


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are GPUs, that this ONNX Runtime has these providers, and that TensorRT is there."""

    def pretend(count, providers=("CUDAExecutionProvider", "TensorrtExecutionProvider"), tensorrt=True):
        monkeypatch.setattr(cuda, "device_count", lambda: count)
        monkeypatch.setattr(cuda, "has_tensorrt_library", lambda: tensorrt)
        monkeypatch.setattr(backends, "_providers", lambda: [*providers, "CPUExecutionProvider"])

    return pretend


class TestAvailability:
    def test_without_a_gpu_only_the_processor_is_left(self, gpus):
        gpus(0)
        assert set(available_backends()) == {"onnxruntime", "openvino"}
        with pytest.raises(BackendError, match=r"needs an NVIDIA GPU .*; available here: .*onnxruntime"):
            open_session(b"", "onnxruntime-cuda")

    def test_a_gpu_comes_first(self, gpus):
        gpus(1)
        names = [name for name in available_backends() if BACKENDS[name].opens == "onnx"]
        assert names[:2] == ["onnxruntime-tensorrt", "onnxruntime-cuda"]
        assert preferred_backends()[:3] == ("tensorrt", "tensorrt_rtx", "onnxruntime-tensorrt")
        gpus(1, tensorrt=False)
        assert "onnxruntime-tensorrt" not in available_backends()
        assert "libnvinfer" in unavailable("onnxruntime-tensorrt")

    def test_a_wheel_without_the_provider_is_named_with_the_extra(self, gpus):
        gpus(1, providers=())
        assert set(available_backends()) - {"tensorrt", "tensorrt_rtx"} == {"onnxruntime", "openvino"}
        assert 'pip install "holocron-edge[gpu]"' in unavailable("onnxruntime-cuda")

    @pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
    def test_a_missing_package_is_named_with_the_extra(self, monkeypatch, name):
        monkeypatch.setitem(sys.modules, name, None)
        assert name not in available_backends()
        extra = {"onnxruntime": "cpu", "openvino": "openvino"}[name]
        assert f'pip install "holocron-edge[{extra}]"' in unavailable(name)

    def test_an_unknown_backend_is_refused_with_those_there_are(self):
        with pytest.raises(BackendError, match="there is no backend 'tflite': expected one of onnxruntime, openvino"):
            open_session(b"", "tflite")

    @pytest.mark.parametrize(("dot", "first"), [(True, "openvino"), (False, "onnxruntime")])
    def test_openvino_comes_first_where_it_is_fast_and_exact(self, monkeypatch, dot, first):
        monkeypatch.setattr(cpu, "has_int8_dot_product", lambda: dot)
        assert preferred_backends()[4] == first

    @pytest.mark.parametrize("device", ["cuda:2", 2, -1, "gpu", True, "cuda:x"])
    def test_a_gpu_that_is_not_there_is_refused_with_those_there_are(self, gpus, device):
        gpus(2)
        with pytest.raises(BackendError, match="expected one of cuda:0, cuda:1"):
            open_session(b"", "onnxruntime-cuda", device=device)

    def test_asking_for_cuda_without_the_provider_prints_nothing_and_fails_in_one_line(self, tmp_path, network):
        # The whole stack, as on a machine whose driver is there and whose CUDA libraries are not.
        path = tmp_path / "model.onnx"
        path.write_bytes(network())
        code = (
            "import sys; from runtime import backends; from runtime.backends import cuda;"
            "cuda.device_count = lambda: 1; backends._providers = lambda: ['CUDAExecutionProvider'];"
            "from runtime.errors import BackendError\n"
            "try: backends.open_session(sys.argv[1], 'onnxruntime-cuda', 1)\n"
            "except BackendError as e: print('E', e)"
        )
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(path)], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.startswith("E onnxruntime-cuda cannot open")
        assert done.stdout.count("\n") == 1


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    cuda.device_count.cache_clear()
    try:
        assert cuda.device_count() == 0
    finally:
        cuda.device_count.cache_clear()


def test_a_long_error_becomes_one_short_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 1000))) == 300


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_gpu_answers_as_the_processor_does(network, feed, backend):
    reason = unavailable(backend)
    if reason:
        pytest.skip(reason)
    session = open_session(network(), backend)
    assert session.device == "cuda:0"
    np.testing.assert_allclose(session.run(feed)["logits"], reference(network(), feed), rtol=1e-4, atol=1e-5)
