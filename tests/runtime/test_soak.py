"""Very many inferences from several threads: no error, no other answer than one thread gets, and no growing memory."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import open_session

THREADS = 4
WARM_UP = 2_000
"""Calls of each thread before memory is looked at: by then every thread has its buffers."""
MOST_GROWTH = 8_000_000
"""Bytes; a megabyte or two come and go."""


def resident() -> int:
    """Bytes of this process in memory, its mapped files aside."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("there is no /proc here to read the memory of this process from")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


@pytest.mark.parametrize("calls", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_answers_stay_equal_and_memory_stays_flat(cpu_backend, network, calls):
    inputs = [np.random.default_rng(i).standard_normal((1, 3, 16, 16)).astype(np.float32) for i in range(16)]
    with contextlib.closing(open_session(network(), cpu_backend, threads=1)) as session:
        expected = [session.run(x)["logits"] for x in inputs]
        wrong = threading.Event()

        def work(start: int, count: int) -> None:
            for i in range(start, start + count):
                found = session.run(inputs[i % 16])["logits"]
                if not np.array_equal(found, expected[i % 16]):
                    wrong.set()

        def run(count: int) -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(work, range(THREADS), [count // THREADS] * THREADS))

        run(THREADS * WARM_UP)
        before = resident()
        run(calls)
        after = resident()
    assert not wrong.is_set()
    assert after - before < MOST_GROWTH
