"""Other projects find the C++ runtime: by CMake's packages, as a part of themselves, and by pkg-config."""

import re
import shutil
import subprocess

import pytest

MAIN = """
#include <holocron/runtime.hpp>
#include <holocron/runtime.h>
#include <iostream>

int main() {
    std::cout << holocron::version() << ' ' << holocron_version() << '\\n';
    try {
        holocron::load("/nowhere");
    } catch (const holocron::BundleError& e) {
        std::cout << e.what() << '\\n';
    }
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES CXX)
{find}
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE Holocron::Runtime)
"""
SAID = "0.1.0 0.1.0\n/nowhere is not there: expected a bundle's folder or an ONNX file\n"


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(cpp_build, tmp_path_factory):
    """A folder that the library was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    run("cmake", "--install", cpp_build.folder, "--prefix", folder)
    return folder


@pytest.fixture
def project(tmp_path):
    """A project with a program, whose `find` is what is given."""

    def write(find):
        (tmp_path / "main.cpp").write_text(MAIN, encoding="utf-8")
        (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(find=find), encoding="utf-8")
        return tmp_path

    return write


def test_find_package(installed, project):
    folder = project("find_package(HolocronRuntime 0.1 REQUIRED)")
    run("cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", folder / "build")
    assert run(folder / "build" / "consumer") == SAID


def test_another_version_is_not_found(installed, project):
    folder = project("find_package(HolocronRuntime 0.2 REQUIRED)")
    command = ["cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={installed}"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "0.2" in done.stderr


@pytest.fixture
def source(cpp_build):
    """The folder of the library's sources."""
    return next(
        line.partition("=")[2]
        for line in (cpp_build.folder / "CMakeCache.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("HolocronRuntime_SOURCE_DIR:")
    )


def test_add_subdirectory(source, project):
    """Configured, not built, which the session's own build was."""
    folder = project(f"add_subdirectory({source} runtime)")
    run("cmake", "-S", folder, "-B", folder / "build", "-DHOLOCRON_WITH_OPENVINO=OFF", "-DHOLOCRON_WITH_TENSORRT=OFF")
    targets = run("cmake", "--build", folder / "build", "--target", "help")
    assert "holocron_runtime" in targets
    assert "holocron_tests" not in targets


def test_pkg_config(installed, project):
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config here")
    folder = project("")
    (found,) = installed.glob("lib*/**/pkgconfig")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PKG_CONFIG_PATH": str(found)}
    prefix = f"--define-variable=prefix={installed}"
    flags = run("pkg-config", prefix, "--cflags", "--libs", "holocron-runtime", env=environment).split()
    library = next(flag[2:] for flag in flags if flag.startswith("-L"))
    run("c++", "-std=c++17", folder / "main.cpp", "-o", folder / "main", *flags, f"-Wl,-rpath,{library}")
    assert run(folder / "main") == SAID


def test_symbols_are_those_of_the_interface(cpp_build):
    if shutil.which("nm") is None:
        pytest.skip("there is no nm here")
    symbols = run("nm", "--dynamic", "--defined-only", "--demangle", cpp_build.library).splitlines()
    names = [line.split(maxsplit=2)[2] for line in symbols]
    ours = [name for name in names if "holocron" in name]
    assert any(name == "holocron_load" for name in ours)
    hidden = ("holocron::detail::parse_manifest", "holocron::detail::ContextPool", "nlohmann")
    assert [name for name in names if name.startswith(hidden)] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf to read the library with")
def test_without_backends_it_is_small_and_needs_nothing_else(source, tmp_path):
    off = [f"-DHOLOCRON_WITH_{name}=OFF" for name in ("OPENVINO", "TENSORRT", "ONNXRUNTIME")]
    off += ["-DHOLOCRON_BUILD_TESTS=OFF", "-DHOLOCRON_BUILD_EXAMPLES=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    run("cmake", "-S", source, "-B", tmp_path, *off)
    run("cmake", "--build", tmp_path, "--parallel", "2")
    library = tmp_path / "libholocron_runtime.so"
    assert library.stat().st_size < 1_000_000
    needed = re.findall(r"\(NEEDED\).*\[([\w+-]+)\.so", run("readelf", "-d", library))
    assert set(needed) <= {
        "libcrypto",
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libpthread",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }
    assert "libcrypto" in needed
