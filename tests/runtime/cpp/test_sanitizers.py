"""Everything that is written in C++ under sanitizers and valgrind: the tests, the examples, and bundles in use.

Bundles are used as programs do it: in every format of frames, alone and in batches, by several threads, while others
open them and while one closes them. OpenVINO itself is not instrumented; what is not told of it, and why, is in the
files of suppressions in runtime/cpp/tests.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from parity_bundles import TINY
from PIL import Image

pytestmark = pytest.mark.slow

SUPPRESSIONS = Path(__file__).resolve().parents[3] / "runtime" / "cpp" / "tests"
SANITIZERS = ("address,undefined", "thread")
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"suppressions={SUPPRESSIONS / 'tsan.supp'}:second_deadlock_stack=1",
    "TBB_ENABLE_SANITIZERS": "1",  # or it opens its libraries in a way that sanitizers do not allow
}
MEMCHECK = (
    "valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--num-callers=40",
    "--errors-for-leak-kinds=definite,indirect,possible", f"--suppressions={SUPPRESSIONS / 'valgrind.supp'}",
)  # fmt: skip
CANNOT_FOLLOW = {"int8.cpu": ["--undef-value-errors=no"]}
"""Valgrind takes all that OpenVINO's INT8 code computes for undefined, in float32 nothing. Other errors are told."""
MUTATIONS = 20_000
THREADS, ROUNDS = 3, 6


def run(*command, timeout=1200, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | environment,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-9000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitized(request, build_cpp, shared_folder, tmp_path_factory):
    """Everything, built with a sanitizer. With HOLOCRON_CPP_BUILD in a folder beside that one, which is kept."""
    probe = tmp_path_factory.mktemp("probe")
    (probe / "main.cpp").write_text("int main() {}")
    compiler = shutil.which("c++") or pytest.skip("there is no c++ here")
    flags = [f"-fsanitize={request.param}", str(probe / "main.cpp"), "-o", str(probe / "main")]
    for command in ([compiler, *flags], [str(probe / "main")]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"this compiler or machine has no sanitizers of {request.param}: {done.stderr[-200:]}")
    kept = os.environ.get("HOLOCRON_CPP_BUILD")
    name = request.param.partition(",")[0]
    folder = Path(f"{kept}_{name}") if kept else shared_folder / f"cpp_build_{name}"
    return build_cpp(folder, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DHOLOCRON_SANITIZE={request.param}")


@pytest.fixture(scope="module")
def photograph(photographs, tmp_path_factory):
    """Arguments of programs that take raw RGB: a file, and width and height in pixels."""
    path = tmp_path_factory.mktemp("raw") / "photograph.rgb"
    rgb = photographs[0]
    path.write_bytes(rgb.tobytes())
    return path, rgb.shape[1], rgb.shape[0]


@pytest.fixture(scope="module")
def every_bundle(exported):
    """Arguments: a folder and a precision, and another."""
    return [part for name, spec in TINY.items() for p in spec.precisions for part in (exported(name), p)]


def needs(build, backend):
    if backend not in build.backends:
        pytest.skip(f"the C++ runtime was built without {backend}")


@pytest.mark.parametrize("name", ["tests", "fake_tensorrt_tests", "fake_tensorrt_rtx_tests"])
def test_the_tests_in_cpp(sanitized, name):
    folder = "fake_tensorrt/" if "fake" in name else ""
    program = sanitized.program(f"{folder}holocron_{name}")
    if not program.is_file():
        pytest.skip("the C++ runtime was built with TensorRT itself, beside which its fake cannot be")
    told = run(program, **ENVIRONMENT)
    assert re.search(r"\| *0 failed", told) is not None


def test_damaged_bundles(sanitized):
    run(sanitized.program("holocron_mutate"), MUTATIONS, 5, **ENVIRONMENT)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_bundles_that_several_threads_use(sanitized, photograph, every_bundle, backend):
    needs(sanitized, backend)
    program = sanitized.program("holocron_concurrent_use")
    told = run(program, backend, *photograph, THREADS, ROUNDS, *every_bundle, **ENVIRONMENT)
    assert int(re.search(r"(\d+) answers are the same", told)[1]) > 500


def test_the_c_interface(sanitized, photograph, exported):
    needs(sanitized, "openvino")
    for name in ("logits", "boxes", "scores"):
        run(sanitized.program("holocron_c_program"), exported(name), "fp32", *photograph, **ENVIRONMENT)


def test_the_examples(sanitized, photographs, exported, tmp_path):
    needs(sanitized, "openvino")
    for i, rgb in enumerate(photographs[:3]):
        Image.fromarray(rgb).save(tmp_path / f"{i:03}.ppm")
    run(sanitized.example("classify"), exported("logits"), tmp_path / "000.ppm", **ENVIRONMENT)
    run(sanitized.example("detect_folder"), exported("boxes"), tmp_path, tmp_path / "out", **ENVIRONMENT)
    run(sanitized.example("benchmark"), exported("logits"), "--iterations", 5, **ENVIRONMENT)


@pytest.mark.parametrize(
    ("name", "precision"), [("logits", "fp32"), ("logits", "int8.cpu"), ("boxes", "fp32"), ("scores", "fp32")]
)
def test_valgrind_of_small_models(openvino_build, photograph, exported, name, precision):
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind here")
    program = openvino_build.program("holocron_c_program")
    told = run(*MEMCHECK, *CANNOT_FOLLOW.get(precision, []), program, exported(name), precision, *photograph)
    assert np.isfinite(float(told.splitlines()[0].split()[1]))


def test_valgrind_of_a_model_that_threads_use(cpp_build, backend, photograph, exported):
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind here")
    program = cpp_build.program("holocron_concurrent_use")
    run(*MEMCHECK, program, backend, *photograph, 2, 2, exported("logits"), "fp32")
