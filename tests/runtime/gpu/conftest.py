"""The device side without a device: the backend on a small CUDA and TensorRT that enforce the real ones' rules."""

import fake_cuda
import fake_tensorrt
import numpy as np
import pytest
from gpu_stand_ins import stand_ins

from runtime.backends.tensorrt import TensorRTSession


@pytest.fixture
def fakes():
    """The two modules of stand-ins."""
    return fake_cuda, fake_tensorrt


@pytest.fixture
def make_plan():
    return fake_tensorrt.make_plan


@pytest.fixture
def install(monkeypatch):
    """Puts a small CUDA and TensorRT where the backend finds the real ones; at the end no rule may have been broken."""
    with stand_ins(monkeypatch) as install:
        yield install


@pytest.fixture(params=["lazy", "eager"])
def schedule(request):
    """When the GPU gets to its work: as late as it may, or at once."""
    return request.param


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def library(request):
    return request.param


@pytest.fixture
def opened(install):
    """Opens sessions on a device, and closes what the test leaves open."""
    sessions = []

    def opened(plan=None, schedule="lazy", library="tensorrt", device=None, cuda_options=None, **options):
        cuda, trt = install(schedule, library, **(cuda_options or {}))
        plan = fake_tensorrt.make_plan(library=library) if plan is None else plan
        session = TensorRTSession(library, plan, device, **options)
        sessions.append(session)
        return session, cuda, trt

    yield opened
    for session in sessions:
        session.close()


@pytest.fixture
def feed():
    """An input of some images, different for each seed."""
    return lambda n=1, seed=0: np.random.default_rng(seed).standard_normal((n, 3, 4, 4)).astype(np.float32)


class OthersArray:
    """An array that another library has on the GPU, with `__cuda_array_interface__`."""

    def __init__(self, cuda, array, *, stream=None, late=None, device=0, pinned=False, **changes):
        self.memory = cuda.others_memory(array.tobytes(), device, pinned)
        self.interface = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None if stream is None else int(stream),
        } | changes
        if late is not None:
            cuda.write_later(stream, self.memory, late.tobytes())

    @property
    def __cuda_array_interface__(self):
        if isinstance(self.interface, Exception):
            raise self.interface
        return self.interface


@pytest.fixture
def others_array():
    return OthersArray
