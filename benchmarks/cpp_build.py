"""Building the C++ runtime for a benchmark: optimized, into a temporary folder that is gone afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "runtime" / "cpp"


@contextmanager
def built(*targets: str, backends: bool = True) -> Iterator[Path]:
    """Configure and build with CMake.

    Args:
        targets: of CMakeLists.txt
        backends: compile in the backends whose headers are found, or none

    Yields:
        the build folder

    Raises:
        SystemExit: if there is no CMake or compiler, or the build fails, with what it said
    """
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        sys.exit(f"this benchmark builds the C++ runtime: install {' and '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="holocron-cpp-") as temporary:
        folder = Path(temporary)
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DHOLOCRON_BUILD_TESTS=ON", "-DHOLOCRON_BUILD_EXAMPLES=ON"]
        options += [f"-DPython3_EXECUTABLE={sys.executable}"]  # where OpenVINO's wheel is
        if not backends:
            options += [f"-DHOLOCRON_WITH_{name}=OFF" for name in ("OPENVINO", "TENSORRT", "ONNXRUNTIME")]
        _run("cmake", "-S", str(SOURCE), "-B", str(folder), *options)
        _run("cmake", "--build", str(folder), "--target", *targets)
        yield folder


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
