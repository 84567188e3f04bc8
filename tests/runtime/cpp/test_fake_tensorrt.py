"""The backend for TensorRT beside fakes of TensorRT, TensorRT-RTX and CUDA: its own tests, in C++."""

import re
import subprocess

import pytest


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_the_fakes_find_nothing(cpp_build, library):
    program = cpp_build.folder / "tests" / "fake_tensorrt" / f"holocron_fake_{library}_tests"
    if not program.is_file():
        pytest.skip("the C++ runtime was built with TensorRT itself, beside which its fake cannot be")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert int(re.search(r"test cases:\s*(\d+)", done.stdout).group(1)) > 20
