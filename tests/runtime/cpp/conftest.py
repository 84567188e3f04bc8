"""The C++ runtime, built once for all tests of a session."""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "runtime" / "cpp"
BUILD_VARIABLE = "HOLOCRON_CPP_BUILD"
"""Environment variable with a folder to build in and to keep: what did not change is not built again."""
REQUIRED_VARIABLE = "HOLOCRON_CPP_REQUIRED"
"""Environment variable under which a compiler or library that is not here is a failure: in continuous integration."""


@dataclass(frozen=True)
class CppBuild:
    """A folder in which everything was built, examples and tests included."""

    folder: Path
    has_openvino: bool

    @property
    def pixels_shim(self):
        """The pixels alone, for ctypes."""
        return self._only("tests/*holocron_pixels_shim.*")

    @property
    def tests(self):
        """The C++ tests."""
        return self.folder / "tests" / "holocron_tests"

    @property
    def library(self):
        """The shared library."""
        return self._only("libholocron_runtime.so")

    def example(self, name):
        """An example application; None where what it needs is not here."""
        path = self.folder / "examples" / f"holocron_example_{name}"
        return path if path.is_file() else None

    def _only(self, pattern):
        (found,) = self.folder.glob(pattern)
        return found


@pytest.fixture(scope="session")
def cpp_build(tmp_path_factory, worker_id_or_master):
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            _leave_out(f"the C++ runtime is not built: there is no {tool} here")
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id_or_master == "master" else root.parent  # which the workers share
    folder = Path(os.environ.get(BUILD_VARIABLE) or root / "cpp_build")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return CppBuild(folder, _build(folder))


@pytest.fixture(scope="session")
def openvino_build(cpp_build):
    """The same where networks can be run."""
    if not cpp_build.has_openvino:
        _leave_out("the C++ runtime was built without OpenVINO: its Python wheel, which has the headers, is not here")
    return cpp_build


@pytest.fixture(scope="session")
def worker_id_or_master(request):
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


def _build(folder):
    openvino = importlib.util.find_spec("openvino")
    cmake = Path(openvino.origin).parent / "cmake" if openvino is not None and openvino.origin else None
    has_openvino = cmake is not None and (cmake / "OpenVINOConfig.cmake").is_file()
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DHOLOCRON_BUILD_TESTS=ON", "-DHOLOCRON_BUILD_EXAMPLES=ON"]
    options += ["-DHOLOCRON_WERROR=ON"]
    options += [f"-DOpenVINO_DIR={cmake}"] if has_openvino else ["-DHOLOCRON_WITH_OPENVINO=OFF"]
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
    return has_openvino


def _leave_out(reason):
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)


def _run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


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
