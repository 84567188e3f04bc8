"""The table of models: its forms, its picture, and going on after an interrupt; nothing is exported here."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the tools are not part of the distribution

from holocron import models  # noqa: E402
from runtime.bench import BenchRow  # noqa: E402
from tools.zoo import measure as measure_module  # noqa: E402
from tools.zoo import run as run_module  # noqa: E402
from tools.zoo.cache import Cache, Entry  # noqa: E402
from tools.zoo.chart import Axis, family, to_svg  # noqa: E402
from tools.zoo.measure import calls_for, count_parameters, one_core, sources_digest, time_alone  # noqa: E402
from tools.zoo.row import Row, to_csv, to_markdown  # noqa: E402
from tools.zoo.run import Zoo, rounds  # noqa: E402

WHOLE = Row(
    "resnet18", "classification", 224, 224, 11_181_642, 1.81, 44.7, 2.5e-7, 0.05, 40.0, 20.0, "ok", "ok"
)  # fmt: skip
PARTIAL = Row("unet", "segmentation", 256, 256, 18_107_082, rtx_fp32="refuses a | b <c>\nd", error="INT8: no")
SVG = "{http://www.w3.org/2000/svg}"


def test_csv_has_every_figure_in_full():
    rows = list(csv.DictReader(io.StringIO(to_csv([WHOLE, PARTIAL]))))
    assert rows[0]["parameters"] == "11181642"
    assert float(rows[0]["relative_error"]) == 2.5e-7
    assert rows[1]["rtx_fp32"] == PARTIAL.rtx_fp32
    assert rows[1]["fp32_ms"] == ""
    assert list(rows[0]) == list(Row.__dataclass_fields__)


def test_markdown():
    page = to_markdown([WHOLE, PARTIAL], "Models", ["A note."])
    assert page.startswith("# Models\n\nA note.\n\n## Classification\n\n| arch |")
    assert "| `resnet18` | 224×224 | 11.2 | 1.81 | 44.7 | 2.5e-07 | 40.0 | 20.0 | ok | ok |" in page
    assert "| `unet` | 256×256 | 18.1 |  |  |  |  |  | no |  |" in page
    assert "- `unet`: TensorRT-RTX, float32: refuses a \\| b &lt;c> d\n- `unet`: INT8: no\n" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) == 1
    assert "What is missing" not in to_markdown([WHOLE], "Models", [])


def test_axis():
    axis = Axis(1, 100, 10, 30)
    assert [axis.position(v) for v in (1, 10, 100)] == pytest.approx([10, 20, 30])
    assert axis.ticks() == [1, 2, 5, 10, 20, 50, 100]
    around = Axis.around([3, 7], 0, 1)
    assert 0 < around.position(3) < around.position(7) < 1


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("resnet50d", "resnet"), ("cspdarknet53_mish", "darknet"), ("unet3p", "unet"), ("unetpp", "unet"), ("7", "7")],
)
def test_family(arch, expected):
    assert family(arch) == expected


def test_every_family_has_a_colour_of_its_own():
    names = {family(arch) for arch in models.list_models()}
    rows = [Row(name, "classification", 1, 1, parameters=1, fp32_ms=1.0) for name in names]
    picture = ElementTree.fromstring(to_svg(rows, "all"))
    assert len({circle.get("stroke") for circle in picture.iter(f"{SVG}circle")}) == len(names) + 1


def test_picture():
    slow = replace(WHOLE, arch="resnet50", parameters=25_000_000, fp32_ms=100.0, int8_ms=None)
    text = to_svg([WHOLE, slow, PARTIAL], "a < b")
    picture = ElementTree.fromstring(text)
    assert text == to_svg([WHOLE, slow, PARTIAL], "a < b")
    groups = {group.find(f"{SVG}title").text.split(":")[0]: group for group in picture.iter(f"{SVG}g")}
    assert set(groups) == {"resnet18", "resnet50"}  # what has no latency has no point
    points = {arch: [circle.attrib for circle in group.iter(f"{SVG}circle")] for arch, group in groups.items()}
    assert len(points["resnet18"]) == 2
    assert len(points["resnet50"]) == 1
    small, large = points["resnet18"][0], points["resnet50"][0]
    assert float(small["cx"]) < float(large["cx"])
    assert float(small["cy"]) > float(large["cy"])  # slower is higher
    assert float(points["resnet18"][1]["cy"]) > float(small["cy"])  # INT8 is faster
    width, height = (float(v) for v in picture.get("viewBox").split()[2:])
    assert all(0 < float(c.get("cx")) < width and 0 < float(c.get("cy")) < height for c in picture.iter(f"{SVG}circle"))
    words = [node.text for node in picture.iter(f"{SVG}text")]
    assert {"a < b", "resnet18", "resnet50", "parameters, millions", "latency, milliseconds"} <= set(words)
    assert ElementTree.fromstring(to_svg([PARTIAL], "nothing")) is not None


def test_rounds():
    sizes = {"a": 1, "b": 2, "c": 3, "d": 9, "e": 1}
    assert list(rounds("abcde", sizes, 5)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(rounds("", sizes, 5)) == []


def test_calls():
    assert [calls_for(gmacs) for gmacs in (None, 0.1, 10, 60, 1000)] == [50, 50, 20, 5, 5]


@pytest.mark.parametrize("arch", ["mobileone_s0", "repvgg_a0"])
def test_parameters(arch):
    assert count_parameters(arch) == sum(p.numel() for p in models.build_model(arch).parameters())


def test_parameters_of_what_needs_real_tensors(monkeypatch):
    class Curious(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 3)
            self.weight.sum().item()

    info = replace(models.get_model_info("repvgg_a0"), builder=lambda **kwargs: Curious())
    monkeypatch.setattr(models, "get_model_info", lambda name: info)
    assert count_parameters("curious") == 9


def test_digest_follows_sources(tmp_path):
    for file in ("export/a.py", "holocron/models/b.py", "tools/zoo/measure.py", "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1")
    before = sources_digest(tmp_path)
    (tmp_path / "README.md").write_text("2")
    assert sources_digest(tmp_path) == before
    (tmp_path / "export/a.py").write_text("2")
    assert sources_digest(tmp_path) != before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
def test_one_core():
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_cache(tmp_path):
    cache = Cache(tmp_path / "cache")
    assert cache.read("resnet18") is None
    entry = Entry("key", WHOLE, {"fp32": "1" * 64}, "here")
    cache.write(entry)
    assert Cache(tmp_path / "cache").read("resnet18") == entry
    assert [path.name for path in cache.folder.iterdir()] == ["resnet18.json"]
    path = cache.folder / "resnet18.json"
    for damaged in ("", "{", "[]", '{"key": 1}', path.read_text().replace('"arch"', '"architecture"')):
        path.write_text(damaged)
        assert cache.read("resnet18") is None


class Workshop:
    """Stands for the processes that export and time."""

    def __init__(self, monkeypatch):
        self.exported, self.timed = [], []
        self.fail = {}
        self.graphs = {}
        fake = SimpleNamespace(run=self.run, TimeoutExpired=subprocess.TimeoutExpired)
        monkeypatch.setattr(run_module, "subprocess", fake)
        monkeypatch.setattr(run_module, "time_alone", self.time_alone)
        monkeypatch.setattr(run_module, "sources_digest", lambda: self.key)
        self.key = "one"

    def run(self, command, **kwargs):
        arch, folder = command[-2:]
        self.exported.append(arch)
        how = self.fail.get(arch)
        if isinstance(how, BaseException):
            raise how
        if how is not None:
            return subprocess.CompletedProcess(command, -9, "", f"Traceback\n{how}\n")
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "manifest.json").write_text("{}")
        row = {**replace(WHOLE, arch=arch, fp32_ms=None, int8_ms=None).__dict__}
        graphs = self.graphs.get(arch, {"fp32": arch, "int8.cpu": arch})
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps({'row': row, 'graphs': graphs})}\n", "")

    def time_alone(self, row, folder, backend):
        assert (folder / "manifest.json").is_file()
        self.timed.append(row.arch)
        if self.fail.get("timing") == row.arch:
            raise KeyboardInterrupt
        return replace(row, fp32_ms=2.0, int8_ms=1.0)


@pytest.fixture
def workshop(monkeypatch):
    return Workshop(monkeypatch)


SIZES = {"mobileone_s0": 4_000_000, "repvgg_a0": 25_000_000, "repvgg_b3": 200_000_000, "repvgg_b2": 300_000_000}


def make_zoo(tmp_path):
    return Zoo(Cache(tmp_path), "onnxruntime", SIZES)


def test_measures_once(workshop, tmp_path, capsys):
    rows = make_zoo(tmp_path).measure(SIZES)
    assert [row.arch for row in rows] == sorted(SIZES)
    assert {(row.fp32_ms, row.int8_ms, row.error) for row in rows} == {(2.0, 1.0, None)}
    assert sorted(workshop.exported) == sorted(workshop.timed) == sorted(SIZES)
    assert not list((tmp_path / "bundles").iterdir())
    assert "[4/4] repvgg_b2: 1.81 GMACs, relative error 2.5e-07" in capsys.readouterr().err
    assert make_zoo(tmp_path).measure(SIZES) == rows
    assert len(workshop.exported) == len(workshop.timed) == 4


def test_an_architecture_that_fails_is_a_row_and_is_tried_again(workshop, tmp_path):
    workshop.fail = {"repvgg_a0": "MemoryError", "mobileone_s0": subprocess.TimeoutExpired("x", 1)}
    rows = {row.arch: row for row in make_zoo(tmp_path).measure(SIZES)}
    assert rows["repvgg_a0"].error == "the export ended with exit code -9: MemoryError"
    assert rows["mobileone_s0"].error == "the export took more than 60 minutes"
    assert rows["repvgg_a0"].parameters == SIZES["repvgg_a0"]
    assert sorted(workshop.timed) == ["repvgg_b2", "repvgg_b3"]
    workshop.fail = {}
    rows = make_zoo(tmp_path).measure(SIZES)
    assert all(row.error is None for row in rows)
    assert len(workshop.exported) == 6


def test_goes_on_after_an_interrupt(workshop, tmp_path):
    workshop.fail = {"timing": "repvgg_a0"}
    with pytest.raises(KeyboardInterrupt):
        make_zoo(tmp_path).measure(["mobileone_s0", "repvgg_a0"])
    workshop.fail = {}
    rows = make_zoo(tmp_path).measure(["mobileone_s0", "repvgg_a0"])
    assert [row.fp32_ms for row in rows] == [2.0, 2.0]
    assert sorted(workshop.exported) == ["mobileone_s0", "repvgg_a0"]
    assert workshop.timed == ["mobileone_s0", "repvgg_a0", "repvgg_a0"]


def test_sources_that_changed(workshop, tmp_path):
    names = ["mobileone_s0", "repvgg_a0"]
    make_zoo(tmp_path).measure(names)
    workshop.key = "two"
    workshop.graphs = {"repvgg_a0": {"fp32": "another"}}
    make_zoo(tmp_path).measure(names)
    assert sorted(workshop.exported) == sorted(names * 2)
    # The latencies of a graph that came out the same still hold.
    assert workshop.timed == [*names, "repvgg_a0"]


def test_timing(monkeypatch, tmp_path):
    asked = []

    def benchmark(folder, precisions, backends, threads, iterations, warmup, on_error):
        asked.append((precisions, backends, threads, iterations, warmup, len(os.sched_getaffinity(0))))
        on_error("int8.cpu", "onnxruntime", RuntimeError("refused"))
        return [BenchRow("fp32", "onnxruntime", "cpu", 1, 1, iterations, 7.0, 8.0, 9.0, 100.0, 50.0)]

    artefacts = [SimpleNamespace(kind="onnx", variant=variant) for variant in ("fp32", "int8.cpu", "int8.trt")]
    monkeypatch.setattr("runtime.bench.benchmark", benchmark)
    monkeypatch.setattr("runtime.manifest.read_manifest", lambda folder: SimpleNamespace(artefacts=artefacts))
    row = time_alone(replace(WHOLE, gmacs=10.0), tmp_path, "onnxruntime")
    assert (row.fp32_ms, row.int8_ms, row.error) == (7.0, None, "int8.cpu: refused")
    assert asked == [(["fp32", "int8.cpu"], ["onnxruntime"], 1, 20, 2, 1)]


@pytest.mark.slow
def test_a_real_one(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    row, graphs = measure_module.export("mobileone_s0", tmp_path / "mobileone_s0")
    assert set(graphs) == {"fp32", "int8.cpu", "int8.trt"}
    assert row.relative_error < 1e-4
    assert (row.rtx_fp32, row.rtx_int8, row.error) == ("ok", "ok", None)
    assert row.gmacs == pytest.approx(0.26, abs=0.01)
    row = time_alone(row, tmp_path / "mobileone_s0", "onnxruntime")
    assert row.fp32_ms > 0
    assert row.int8_ms > 0
