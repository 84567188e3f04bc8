"""What importing the runtime brings with it: nothing that a device does not need."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "click", "holocron", "export", "calib")


def modules_after(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_runtime_imports_no_framework_and_no_backend():
    loaded = modules_after("import runtime; runtime.load, runtime.Model, runtime.Classification, runtime.ImageError")
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_running_a_model_imports_its_backend_only(bundle, backend):
    pytest.importorskip(backend)
    code = (
        "import sys, runtime, numpy as np\n"
        "with runtime.load(sys.argv[1], backend=sys.argv[2]) as m: m(np.zeros((9, 9, 3), np.uint8)).top(2)"
    )
    loaded = modules_after(code, str(bundle), backend)
    assert backend in loaded
    others = {"onnxruntime", "openvino"} - {backend}
    assert loaded.isdisjoint({"torch", "torchvision", "click", "holocron", "export", "calib", *others})


def test_a_lone_file_opens_without_the_onnx_package(lone_onnx):
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "import runtime; runtime.load(sys.argv[1], backend='onnxruntime').close()"
    )
    modules_after(code, str(lone_onnx))
