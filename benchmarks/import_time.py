"""What `import runtime` takes over `import numpy, PIL.Image`, in fresh interpreters, alternating; medians.

Processor time, not wall time: importing is arithmetic once the files are cached, and another program that takes the
processor for a while does not count. With compiled bytecode, as an installed package has it, whatever the environment
says.

python benchmarks/import_time.py [--runs N]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

BASE = "import numpy, PIL.Image"
CODE = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
BOUND_MS = 50


def seconds(statement: str, environment: dict[str, str]) -> float:
    """Processor seconds that the statement takes in an interpreter of its own, whose start is not in it."""
    command = [sys.executable, "-c", CODE.format(statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What importing the runtime takes.")
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    statements = {BASE: [], f"{BASE}, runtime": []}
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(runs + 1):  # the first compiles
            for statement, values in statements.items():
                values.append(seconds(statement, environment))
    medians = {statement: statistics.median(values[1:]) * 1e3 for statement, values in statements.items()}
    for statement, value in medians.items():
        print(f"{statement:36s} {value:8.1f} ms")
    base, ours = medians.values()
    print(f"{'difference':36s} {ours - base:8.1f} ms   (bound: {BOUND_MS} ms)")


if __name__ == "__main__":
    main()
