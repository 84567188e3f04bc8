"""The same on a real GPU, against ONNX Runtime; skipped where there is none."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

import runtime
from runtime.backends import cuda as driver
from runtime.backends import unavailable
from runtime.backends.cuda_runtime import CudaRuntime
from runtime.backends.engine_builder import build_engine
from runtime.backends.engine_options import EngineOptions
from runtime.backends.tensorrt import TensorRTSession
from runtime.backends.tensorrt_engine import OpenEngine
from runtime.backends.tensorrt_library import library_version
from runtime.errors import BackendError, InputError
from runtime.manifest import EngineInfo

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def built(request, network):
    """A library with an engine of the little classifier for the GPU here, and what ONNX Runtime answers."""
    library = request.param
    reason = unavailable(library)
    if reason is not None:
        pytest.skip(reason)
    info = EngineInfo(library, library_version(library), driver.device_capability(0), 4)
    try:
        plan = build_engine(network(), info)
    except BackendError as e:
        if "does not build for compute capability" in str(e):
            pytest.skip(str(e))
        raise
    reference = onnxruntime.InferenceSession(network(), providers=["CPUExecutionProvider"])
    return library, info, plan, lambda x: reference.run(None, {"input": x})[0]


@pytest.fixture
def images():
    return lambda n, seed=0: np.random.default_rng(seed).standard_normal((n, 3, 16, 16)).astype(np.float32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_answers_of_every_batch(built, images, cuda_graphs):
    library, info, plan, reference = built
    session = TensorRTSession(library, plan, info=info, options=EngineOptions(cuda_graphs=cuda_graphs))
    for n in (1, 4, 2, 4, 1, 1, 3, 4, 4, 1):
        close(session.run(images(n, n))["logits"], reference(images(n, n)))
    session.close()


def test_several_threads(built, images):
    library, info, plan, reference = built
    session = TensorRTSession(library, plan, info=info, options=EngineOptions(contexts=3))
    barrier = threading.Barrier(6)

    def work(seed):
        barrier.wait()
        for i in range(50):
            n = 1 + (seed + i) % 4
            close(session.run(images(n, seed))["logits"], reference(images(n, seed)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    session.close()


def test_all_memory_comes_back(built, images):
    library, info, plan, _ = built
    cuda = CudaRuntime()

    def use():
        session = TensorRTSession(library, plan, info=info)
        for n in (1, 2, 3, 4, 4, 1):
            session.run(images(n))
            session.run(images(n), on_device=True)
        session.close()
        gc.collect()
        with cuda.on(0):
            return cuda.free_memory()

    use()
    before = use()
    for _ in range(20):
        after = use()
    assert before - after < 2**24


def test_outputs_stay_on_the_device_and_are_fed_again(built, images):
    library, info, plan, reference = built
    session = TensorRTSession(library, plan, info=info)
    kept = [session.run(images(2, i), on_device=True)["logits"] for i in range(4)]
    for i, found in enumerate(kept):
        close(found.numpy(), reference(images(2, i)))
    session.close()


def test_arrays_of_torch(built, images):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    library, info, plan, reference = built
    session = TensorRTSession(library, plan, info=info)
    for i in range(4):
        x = torch.from_numpy(images(2, i)).cuda()
        found = session.run(x * 1.0, on_device=True)["logits"]
        close(torch.from_dlpack(found).cpu().numpy(), reference(images(2, i)))
        close(torch.as_tensor(found, device="cuda").cpu().numpy(), reference(images(2, i)))
    with pytest.raises(InputError, match="expected C order"):
        session.run(x.transpose(2, 3))
    session.close()


def test_a_damaged_engine(built):
    library, info, plan, _ = built
    for damaged in (b"", plan[:100], plan[: len(plan) // 2], b"\0" * len(plan)):
        with pytest.raises(BackendError, match="does not open the engine") as caught:
            TensorRTSession(library, damaged, info=info)
        assert "\n" not in str(caught.value)


def test_layers_are_told(built, network):
    library, info, *_ = built
    engine = OpenEngine(library, build_engine(network(), info, detailed=True), info=info)
    assert "Layers" in engine.layer_information()
    engine.close()


def test_zero_copy_where_the_memory_is_one(built, images):
    library, info, plan, reference = built
    if not CudaRuntime().shares_memory(0):
        with pytest.raises(BackendError, match="zero_copy is for a GPU that shares"):
            TensorRTSession(library, plan, info=info, options=EngineOptions(zero_copy=True))
        pytest.skip("this GPU has a memory of its own")
    session = TensorRTSession(library, plan, info=info, options=EngineOptions(zero_copy=True))
    for n in (1, 4, 1, 4, 4):
        close(session.run(images(n, n))["logits"], reference(images(n, n)))
    session.close()


def test_a_bundle_is_rebuilt_for_this_machine(built, make_bundle, network, tmp_path, picture):
    library, *_ = built
    folder = make_bundle(tmp_path / "bundle", {"fp32": network()})
    with (
        runtime.load(folder, backend=library, rebuild=True) as model,
        runtime.load(folder, "fp32", "onnxruntime") as reference,
    ):
        close(model.run(picture)["logits"], reference.run(picture)["logits"])
    with runtime.load(folder) as model:
        assert model.backend == library


def test_memory_that_is_not_there(built, images):
    """Out of memory for real: all but a little is taken, another context is asked for, and it still answers."""
    library, info, plan, reference = built
    cuda = CudaRuntime()
    session = TensorRTSession(library, plan, info=info)
    with cuda.on(0):
        taken, size = [], cuda.free_memory()
        while size > 2**16:
            try:
                taken.append(cuda.malloc(size))
            except BackendError:
                size //= 2
        try:
            with pytest.raises(BackendError, match="memory"):
                TensorRTSession(library, plan, info=info)
        finally:
            for pointer in taken:
                cuda.free(pointer)
    close(session.run(images(2))["logits"], reference(images(2)))
    session.close()
