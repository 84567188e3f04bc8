"""Engines: real TensorRT-RTX ones, and every way in which TensorRT can refuse, played by a stand-in."""

import enum
import sys
import types

import onnx
import pytest

from export import ExportSpec, engine, export_model
from export.engine import build_engine, check_builder, engine_file
from export.errors import EngineError
from export.pipeline import run_export
from runtime.manifest import EngineInfo

RTX = EngineInfo("tensorrt_rtx", "1.7.1", "8.6", 4)
TRT = EngineInfo("tensorrt", "10.3.0", "8.7", 4)


# The real TensorRT-RTX.


@pytest.mark.parametrize("variant", ["", ".fp16", ".int8.trt"])
def test_rtx_builds_without_a_gpu(tiny_bundle, variant):
    pytest.importorskip("tensorrt_rtx")
    plan = build_engine((tiny_bundle / f"model{variant}.onnx").read_bytes(), RTX)
    assert isinstance(plan, bytes)
    assert len(plan) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0"])
def test_rtx_builds_for_each_capability_that_it_knows(tiny_bundle, capability):
    pytest.importorskip("tensorrt_rtx")
    check_builder("tensorrt_rtx", (capability,))
    info = EngineInfo("tensorrt_rtx", "1.7.1", capability, 1)
    assert build_engine((tiny_bundle / "model.fp16.onnx").read_bytes(), info)


def test_a_capability_that_rtx_does_not_know_lists_those_it_does():
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(
        EngineError, match=r"does not build for compute capability 3\.5; it knows 7\.5, .*8\.6, .*12\.0"
    ):
        check_builder("tensorrt_rtx", ("8.6", "3.5"))


def test_rtx_refuses_what_is_not_onnx():
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* refuses the graph: ") as caught:
        build_engine(b"not a graph", RTX)
    assert "\n" not in str(caught.value)


def test_rtx_refuses_the_cpu_scheme(tiny_bundle):
    """The reason for having two schemes."""
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError):
        build_engine((tiny_bundle / "model.int8.cpu.onnx").read_bytes(), RTX)


def test_engine_files_name_what_they_were_built_with():
    assert (
        engine_file("fp16", EngineInfo("tensorrt", "10.3.0.30", "8.7", 1)) == "model.fp16.tensorrt-10.3.0-sm87.engine"
    )
    assert engine_file("int8.trt", RTX) == "model.int8.trt.tensorrt_rtx-1.7.1-sm86.engine"


# A stand-in for `tensorrt`, which cannot be installed here.


class _Flag(enum.IntEnum):
    STRONGLY_TYPED = 1


def fake_tensorrt(version="10.3.0", flags=_Flag, parse_errors=(), plan=b"plan", log="", start=None):
    """A module with as much of TensorRT's interface as an engine takes, which writes down what is asked of it."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.asked = {}
    if flags is not None:
        trt.NetworkDefinitionCreationFlag = flags

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING")

        def __init__(self):
            pass

    class Profile:
        def set_shape(self, *shapes):
            trt.asked["shapes"] = shapes

    class Config:
        def add_optimization_profile(self, profile):
            trt.asked["profile"] = profile

    class Builder:
        def __init__(self, logger):
            self.logger = logger
            if start is not None:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure\nwith error 35")
                raise start

        def create_network(self, flags):
            trt.asked["flags"] = flags
            image = types.SimpleNamespace(name="input", shape=(-1, 3, 24, 20))
            return types.SimpleNamespace(num_inputs=1, get_input=lambda i: image)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            self.logger.log(ILogger.Severity.WARNING, "nothing much")
            if plan is None and log:
                self.logger.log(ILogger.Severity.ERROR, log)
                self.logger.log(ILogger.Severity.WARNING, "an afterthought")
            return plan

    class OnnxParser:
        num_errors = len(parse_errors)

        def __init__(self, network, logger):
            pass

        def parse(self, data):
            trt.asked["onnx"] = data
            return not parse_errors

        def get_error(self, i):
            return types.SimpleNamespace(desc=lambda: parse_errors[i])

    trt.ILogger, trt.Builder, trt.OnnxParser = ILogger, Builder, OnnxParser
    return trt


@pytest.fixture
def install(monkeypatch):
    """Puts a stand-in where `import tensorrt` finds it, with a number of GPUs."""

    def install(trt, gpus=1):
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(engine, "device_count", lambda: gpus)
        return trt

    return install


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.2.0.19"])
def test_too_old(install, version):
    install(fake_tensorrt(version))
    with pytest.raises(EngineError, match=rf"TensorRT {version} is too old: 10\.3 or later"):
        check_builder("tensorrt")


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.2", "11.4.0"])
def test_new_enough(install, version):
    install(fake_tensorrt(version))
    check_builder("tensorrt")


def test_no_gpu_names_the_ways_forward(install):
    install(fake_tensorrt(), gpus=0)
    with pytest.raises(
        EngineError, match=r"this machine, which has none: .*--rtx.*holocron-export BUNDLE --trt.*device"
    ):
        check_builder("tensorrt")


def test_not_installed_names_the_ways_forward(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"not installed .*holocron-edge\[trt\].*--rtx.*holocron-export BUNDLE --trt"):
        check_builder("tensorrt")


def test_rtx_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"--rtx needs `tensorrt_rtx`, .*holocron-edge\[rtx\]") as caught:
        check_builder("tensorrt_rtx", ("8.6",))
    assert "--trt" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError("libnvinfer.so.10: cannot open"), ImportError("libcudart: no such file")])
def test_installed_but_broken(monkeypatch, error):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "tensorrt":
                raise error

    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(EngineError, match=r"which does not load .lib"):
        check_builder("tensorrt")


def test_another_library():
    with pytest.raises(EngineError, match="'tvm' builds no engines, expected one of tensorrt, tensorrt_rtx"):
        check_builder("tvm")


@pytest.mark.parametrize(("flags", "expected"), [(_Flag, 2), (enum.IntEnum("None_", "OTHER"), 0), (None, 0)])
def test_the_network_is_strongly_typed(install, flags, expected):
    """By a flag in TensorRT 10; TensorRT 11 knows nothing else, and may not have the flag."""
    trt = install(fake_tensorrt("11.4.0", flags))
    assert build_engine(b"graph", TRT) == b"plan"
    assert trt.asked["flags"] == expected
    assert trt.asked["onnx"] == b"graph"
    assert trt.asked["shapes"] == ("input", (1, 3, 24, 20), (4, 3, 24, 20), (4, 3, 24, 20))
    assert trt.asked["profile"] is not None


def test_refused_by_the_parser(install):
    install(fake_tensorrt(parse_errors=("no importer for Hardmax", "node 7")))
    with pytest.raises(EngineError, match=r"^TensorRT 10\.3\.0 refuses the graph: no importer for Hardmax; node 7$"):
        build_engine(b"graph", TRT)


@pytest.mark.parametrize(
    ("log", "reason"), [("out of memory\nthere", "out of memory there"), ("", "it gave no reason")]
)
def test_a_failed_build_says_the_last_error_in_one_line(install, log, reason):
    install(fake_tensorrt(plan=None, log=log))
    with pytest.raises(EngineError, match=rf"^TensorRT 10\.3\.0 could not build the engine: {reason}$"):
        build_engine(b"graph", TRT)


@pytest.mark.parametrize("error", [TypeError("factory function returned nullptr"), RuntimeError("no")])
def test_a_builder_that_does_not_start(install, error):
    install(fake_tensorrt(start=error))
    with pytest.raises(EngineError, match=r"does not start: CUDA initialization failure with error 35$"):
        build_engine(b"graph", TRT)


# Through the exporter.


@pytest.mark.parametrize("installed", [False, True])
def test_trt_is_refused_before_any_work(tmp_path, recorder, monkeypatch, install, holds_only, installed):
    if installed:
        install(fake_tensorrt(), gpus=0)
    else:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    spec = ExportSpec("repvgg_a0", output=tmp_path / "out", weights="none", trt=True)
    with pytest.raises(EngineError, match="--rtx"):
        run_export(spec, recorder)
    assert recorder.stages == []
    assert holds_only(tmp_path)


def test_unknown_capability_is_refused_before_any_work(tmp_path, recorder):
    pytest.importorskip("tensorrt_rtx")
    spec = ExportSpec("repvgg_a0", output=tmp_path / "out", weights="none", rtx=True, rtx_capabilities=("9.9",))
    with pytest.raises(EngineError, match=r"9\.9; it knows"):
        run_export(spec, recorder)
    assert recorder.stages == []


def test_trt_on_a_device_adds_the_engine_of_the_fastest_graph(tiny_bundle, tmp_path, install, monkeypatch):
    install(fake_tensorrt("10.3.0.30"))
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    result = export_model(tiny_bundle, tmp_path / "out", trt=True, max_batch=2)
    assert result.made == ("model.int8.trt.tensorrt-10.3.0-sm87.engine",)
    made = result.manifest.artefacts[-1]
    assert made.engine == EngineInfo("tensorrt", "10.3.0.30", "8.7", 2)
    assert (made.precision, made.scheme, made.kind) == ("int8", "trt", "engine")
    assert (result.bundle / made.file).read_bytes() == b"plan"
    assert len(list(result.bundle.iterdir())) == 7


def test_an_engine_that_cannot_be_built_leaves_nothing(tiny_bundle, tmp_path, install, monkeypatch, holds_only):
    install(fake_tensorrt(plan=None))
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    with pytest.raises(EngineError, match="could not build"):
        export_model(tiny_bundle, tmp_path / "out", trt=True)
    assert holds_only(tmp_path)


def test_force_builds_anew_only_what_is_asked(tiny_bundle, tmp_path, install, monkeypatch):
    """Another capability's engine stays; one that was built from a graph that is replaced goes, with a word."""
    install(fake_tensorrt())
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    first = export_model(tiny_bundle, tmp_path / "out", trt=True)
    monkeypatch.setattr(engine, "device_capability", lambda: "8.9")
    second = export_model(first.bundle, trt=True)
    engines = [f"model.int8.trt.tensorrt-10.3.0-sm{sm}.engine" for sm in (87, 89)]
    assert second.made == (engines[1],)
    assert [a.file for a in second.manifest.artefacts if a.engine] == engines

    again = export_model(first.bundle, trt=True, force=True)
    assert again.made == (engines[1],)
    assert [a.file for a in again.manifest.artefacts if a.engine] == engines
    assert not again.warnings

    remade = export_model(first.bundle, int8=True, force=True)
    assert [a for a in remade.manifest.artefacts if a.engine] == []
    assert [w for w in remade.warnings if w.startswith(engines[0])]
    assert [w for w in remade.warnings if w.startswith(engines[1])]
    assert not list(first.bundle.glob("*.engine"))


def test_another_largest_batch_needs_force(tiny_bundle, tmp_path, install, monkeypatch):
    install(fake_tensorrt())
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    bundle = export_model(tiny_bundle, tmp_path / "out", trt=True, max_batch=2).bundle
    assert export_model(bundle, trt=True, max_batch=2).made == ()
    with pytest.raises(EngineError.__mro__[1], match=r"takes batches of up to 2, not 8: .*--force"):
        export_model(bundle, trt=True, max_batch=8)
    result = export_model(bundle, trt=True, max_batch=8, force=True)
    assert result.manifest.artefacts[-1].engine.max_batch == 8


def test_the_graphs_of_the_bundle_are_what_engines_are_built_from(tiny_bundle, tmp_path, install, monkeypatch):
    trt = install(fake_tensorrt())
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    export_model(tiny_bundle, tmp_path / "out", trt=True, fp16=True)
    assert trt.asked["onnx"] == (tiny_bundle / "model.fp16.onnx").read_bytes()
    onnx.checker.check_model(onnx.load_from_string(trt.asked["onnx"]))
