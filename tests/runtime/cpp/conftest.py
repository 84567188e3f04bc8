"""The C++ runtime, built once for all tests of a session, and bundles that are exported once."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import parity_bundles
import pytest

SOURCE = Path(__file__).resolve().parents[3] / "runtime" / "cpp"
BUILD_VARIABLE = "HOLOCRON_CPP_BUILD"
"""Environment variable with a folder to build in and to keep: what did not change is not built again."""
REQUIRED_VARIABLE = "HOLOCRON_CPP_REQUIRED"
"""Environment variable under which a compiler or library that is not here is a failure: in continuous integration."""
ONNXRUNTIME_VARIABLE = "HOLOCRON_ORT_ROOT"
"""Environment variable with a folder that has include/ and lib/ of ONNX Runtime, whose Python wheel has no headers."""
BACKENDS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class CppBuild:
    """A folder in which everything was built, examples and tests included."""

    folder: Path
    backends: frozenset
    """Names of those that are compiled in."""

    @property
    def pixels_shim(self):
        """The pixels alone, for ctypes."""
        return self._only("tests/*holocron_pixels_shim.*")

    @property
    def tests(self):
        """The C++ tests."""
        return self.program("holocron_tests")

    @property
    def library(self):
        """The shared library."""
        return self._only("libholocron_runtime.so")

    def program(self, name):
        """A program of the tests."""
        return self.folder / "tests" / name

    def example(self, name):
        """An example application; None where what it needs is not here."""
        path = self.folder / "examples" / f"holocron_example_{name}"
        return path if path.is_file() else None

    def _only(self, pattern):
        (found,) = self.folder.glob(pattern)
        return found


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, request):
    """A folder of the session that its workers share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if hasattr(request.config, "workerinput") else root


@pytest.fixture(scope="session")
def build_cpp(shared_folder):
    """Build everything in a folder, with options of CMake."""

    def build(folder, *options):
        for tool in ("cmake", "c++"):
            if shutil.which(tool) is None:
                _leave_out(f"the C++ runtime is not built: there is no {tool} here")
        folder.mkdir(parents=True, exist_ok=True)
        with parity_bundles.locked(folder / "lock"):
            return CppBuild(folder, _build(folder, options))

    return build


@pytest.fixture(scope="session")
def cpp_build(build_cpp, shared_folder):
    folder = Path(os.environ.get(BUILD_VARIABLE) or shared_folder / "cpp_build")
    return build_cpp(folder, "-DCMAKE_BUILD_TYPE=Release", "-DHOLOCRON_WERROR=ON")


@pytest.fixture(scope="session")
def openvino_build(cpp_build):
    """The same where networks can be run."""
    if "openvino" not in cpp_build.backends:
        _leave_out("the C++ runtime was built without OpenVINO: its Python wheel, which has the headers, is not here")
    return cpp_build


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request, cpp_build):
    """A backend that both runtimes have."""
    if request.param == "openvino":
        request.getfixturevalue("openvino_build")
    elif request.param not in cpp_build.backends:
        pytest.skip(f"there are no headers of ONNX Runtime here: {ONNXRUNTIME_VARIABLE} is a folder of .ci/onnxruntime")
    pytest.importorskip(request.param)
    return request.param


def _build(folder, options):
    options = ["-DHOLOCRON_BUILD_TESTS=ON", "-DHOLOCRON_BUILD_EXAMPLES=ON", *options]
    options += [f"-DPython3_EXECUTABLE={sys.executable}"]  # where OpenVINO's wheel is
    if os.environ.get(ONNXRUNTIME_VARIABLE):
        options += [f"-DONNXRuntime_ROOT={os.environ[ONNXRUNTIME_VARIABLE]}", "-DHOLOCRON_WITH_ONNXRUNTIME=ON"]
    configured = _run("cmake", "-S", SOURCE, "-B", folder, *options)
    if configured.returncode != 0:
        missing = re.search(
            r"Could NOT find \w+|Could not find a package configuration file provided by \"\w+\"", configured.stderr
        )
        if missing is not None:
            _leave_out(f"the C++ runtime is not built: {missing[0]}")
        pytest.fail(f"CMake failed:\n{configured.stdout}{configured.stderr}")
    built = _run("cmake", "--build", folder, "--parallel", len(os.sched_getaffinity(0)))
    if built.returncode != 0:
        pytest.fail(f"the build failed:\n{built.stdout[-5000:]}{built.stderr[-5000:]}")
    return frozenset(name for name, title in BACKENDS.items() if f"Holocron: {title} ON" in configured.stdout)


def _leave_out(reason):
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)


def _run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def exported(shared_folder):
    """Folder of a bundle of `parity_bundles`, which the first worker that asks for it exports."""
    root = shared_folder / "parity_bundles"
    root.mkdir(exist_ok=True)
    return lambda name: parity_bundles.exported(root, name)


@pytest.fixture(scope="session")
def photographs():
    """RGB arrays of unequal sizes."""
    return parity_bundles.photographs()


@pytest.fixture(scope="session")
def c_interface():
    """The module of that name, which tests do not find by themselves in pytest's importlib mode."""
    spec = importlib.util.spec_from_file_location("holocron_c_interface", Path(__file__).with_name("c_interface.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library(openvino_build, c_interface):
    """The C interface of the library that was built."""
    return c_interface.CInterface(openvino_build.library)
