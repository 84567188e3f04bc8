"""Going through the architectures: what is known already, what runs side by side, and what runs alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from benchmarks.common import machine
from holocron import models
from runtime.errors import HolocronError

from .cache import Cache, Entry
from .measure import ROOT, calls_for, sources_digest, time_alone
from .row import Row

WORKERS = 2
TASKS = ("classification", "segmentation", "detection")
# What the bundles of one round may take on the disk, and a network from which on it is exported alone, in parameters.
ROUND_PARAMETERS, LARGE_PARAMETERS = 400_000_000, 120_000_000
EXPORT_TIMEOUT_S = 3600


class Zoo:
    """Measures architectures, and remembers what it measured.

    Args:
        cache: what is known already
        backend: what the latencies are of
        sizes: parameters of each architecture
    """

    def __init__(self, cache: Cache, backend: str, sizes: Mapping[str, int]) -> None:
        self.cache = cache
        self.backend = backend
        self.sizes = sizes
        self.key = sources_digest()

    def measure(self, archs: Sequence[str]) -> list[Row]:
        """Measure what is not known yet.

        Args:
            archs: names of the builders

        Returns:
            a row each, by task and size
        """
        entries = {arch: self.cache.read(arch) for arch in archs}
        todo = [arch for arch in archs if not self._is_done(entries[arch])]
        say(f"{len(archs) - len(todo)} of {len(archs)} models are known, {len(todo)} are to be measured")
        done = 0
        for group in rounds(todo, self.sizes, ROUND_PARAMETERS):
            for arch, entry in self._export(group):
                done += 1
                entries[arch] = entry
                say(f"[{done}/{len(todo)}] {summary(entry.row)}")
            for arch in group:
                entries[arch] = self._time(entries[arch])
                shutil.rmtree(self.cache.bundle(arch), ignore_errors=True)
        rows = [entry.row for entry in entries.values() if entry is not None]
        return sorted(rows, key=lambda row: (TASKS.index(row.task), row.arch))

    def _is_done(self, entry: Entry | None) -> bool:
        # What failed is tried again: it may have been the machine's fault.
        if entry is None or not entry.graphs:
            return False
        return entry.key == self.key and entry.timed == self._timing_of(entry)

    def _timing_of(self, entry: Entry) -> str:
        """What latencies depend on."""
        graphs = [entry.graphs.get(variant, "") for variant in ("fp32", "int8.cpu")]
        return "; ".join([machine(), self.backend, str(calls_for(entry.row.gmacs)), *graphs])

    def _export(self, archs: Sequence[str]) -> Iterator[tuple[str, Entry]]:
        """Export side by side; a network that takes much memory alone."""
        small = [arch for arch in archs if self.sizes[arch] < LARGE_PARAMETERS]
        with ThreadPoolExecutor(WORKERS) as pool:
            futures = {pool.submit(self._export_one, arch): arch for arch in small}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for arch in archs:
            if arch not in small:
                yield arch, self._export_one(arch)

    def _export_one(self, arch: str) -> Entry:
        """One architecture in a process of its own; whatever that dies of becomes the row's reason."""
        known, bundle = self.cache.read(arch), self.cache.bundle(arch)
        if known is not None and known.key == self.key and (bundle / "manifest.json").is_file():
            return known
        started = time.perf_counter()
        bundle.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tools.zoo.measure", arch, str(bundle)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=EXPORT_TIMEOUT_S,
                check=False,
            )
            answer = json.loads(done.stdout.strip().splitlines()[-1])
            entry = Entry(self.key, Row(**answer["row"]), answer["graphs"])
        except subprocess.TimeoutExpired:
            entry = self._failed(arch, f"the export took more than {EXPORT_TIMEOUT_S / 60:.0f} minutes")
        except (IndexError, ValueError, KeyError, TypeError):
            said = done.stderr.strip().splitlines()
            entry = self._failed(
                arch, f"the export ended with exit code {done.returncode}{': ' + said[-1] if said else ''}"
            )
        # The latencies of graphs that came out the same still hold.
        if known is not None and known.graphs and known.timed == self._timing_of(entry):
            row = replace(entry.row, fp32_ms=known.row.fp32_ms, int8_ms=known.row.int8_ms)
            entry = replace(entry, row=row, timed=known.timed)
        self.cache.write(entry)
        say(f"    {arch}: exported in {time.perf_counter() - started:.0f} s")
        return entry

    def _failed(self, arch: str, reason: str) -> Entry:
        info = models.get_model_info(arch)
        return Entry(self.key, Row(arch, info.task, *info.input_size, parameters=self.sizes[arch], error=reason))

    def _time(self, entry: Entry | None) -> Entry:
        assert entry is not None
        if self._is_done(entry):
            return entry
        row = entry.row
        if entry.graphs:
            try:
                row = time_alone(row, self.cache.bundle(row.arch), self.backend)
            except HolocronError as e:
                row = replace(row, error=f"latency: {e}")
            say(f"    {row.arch}: {milliseconds(row)}")
        entry = replace(entry, row=row, timed=self._timing_of(entry))
        self.cache.write(entry)
        return entry


def rounds(archs: Sequence[str], sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Split into groups of at most `limit` parameters together, or of one network that is larger than that."""
    group: list[str] = []
    for arch in archs:
        if group and sum(sizes[a] for a in group) + sizes[arch] > limit:
            yield group
            group = []
        group.append(arch)
    if group:
        yield group


def summary(row: Row) -> str:
    """A row in one line, for the terminal."""
    if row.relative_error is None:
        return f"{row.arch}: {row.error}"
    engines = f"RTX float32 {row.rtx_fp32}, INT8 {row.rtx_int8}"
    return f"{row.arch}: {row.gmacs or 0:.2f} GMACs, relative error {row.relative_error:.1e}, {engines}"


def milliseconds(row: Row) -> str:
    """The latencies of a row, for the terminal."""
    figures = [f"{name} {ms:.1f} ms" for name, ms in (("float32", row.fp32_ms), ("INT8", row.int8_ms)) if ms]
    return ", ".join(figures) or str(row.error)


def say(message: str) -> None:
    """Tell the person at the terminal."""
    print(message, file=sys.stderr, flush=True)
