"""The tests that are written in C++, and a million bundles that are damaged at random."""

import json
import re
import subprocess

import pytest


def run(*command):
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout[-4000:]}{found.stderr[-4000:]}"
    return found.stdout


def test_every_case_passes(cpp_build):
    summary = re.search(r"test cases: *(\d+) \| *(\d+) passed", run(cpp_build.tests))
    assert summary is not None
    assert int(summary[1]) == int(summary[2]) >= 80


@pytest.mark.slow
def test_a_million_damaged_bundles_are_refused_or_read(cpp_build):
    told = json.loads(run(cpp_build.tests.parent / "holocron_mutate", 1_000_000, 11))
    assert sum(told[kind][outcome] for kind in ("manifests", "bundles") for outcome in ("read", "refused")) == 1_000_000
