"""Putting the small CUDA and TensorRT of this folder where the device side finds the real ones."""

import contextlib
import gc
import sys

import fake_cuda
import fake_tensorrt

from runtime.backends import cuda as driver


@contextlib.contextmanager
def stand_ins(monkeypatch):
    """Gives a function that installs them; at the end no rule may have been broken, and nothing may be left."""
    installed = []

    def install(schedule="lazy", library="tensorrt", version="10.3.0", capability="8.7", **cuda_options):
        cuda = fake_cuda.FakeCuda(schedule, **cuda_options)
        trt = fake_tensorrt.make_tensorrt(cuda, library, version, capability)
        monkeypatch.setitem(sys.modules, "cuda", type(sys)("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", type(sys)("cuda.bindings"))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setitem(sys.modules, library, trt)
        monkeypatch.setattr(driver, "device_count", lambda: cuda.devices)
        monkeypatch.setattr(driver, "device_capability", lambda index=0: capability)
        installed.append((cuda, trt))
        return cuda, trt

    yield install
    if any(cuda.alive() or trt.controls.alive() for cuda, trt in installed):
        gc.collect()
    for cuda, trt in installed:
        assert cuda.violations == []
        assert cuda.alive() == []
        assert trt.controls.alive() == []
