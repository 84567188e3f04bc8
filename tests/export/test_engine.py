"""Engines: real TensorRT-RTX ones, and every way in which TensorRT can refuse, played by a stand-in."""

import enum
import json
import sys
import types
from dataclasses import replace

import onnx
import pytest
from click.testing import CliRunner

from export import ExportSpec, engine, export_model
from export.cli import main
from export.engine import build_engine, check_builder, engine_file
from export.engine_layers import EngineLayers
from export.engine_options import EngineBuild
from export.errors import EngineError, ExportError
from export.pipeline import run_export
from runtime.backends import cuda as driver
from runtime.backends.cuda import device_count
from runtime.backends.engine_cache import PairedFile
from runtime.manifest import EngineInfo, FrameSpec, read_manifest

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


class _BuilderFlag(enum.IntEnum):
    GPU_FALLBACK = 3
    TF32 = 6
    VERSION_COMPATIBLE = 12
    STRIP_PLAN = 18
    REFIT_IDENTICAL = 19


def fake_tensorrt(
    version="10.3.0",
    flags=_Flag,
    parse_errors=(),
    plan=b"plan",
    log="",
    start=None,
    during=None,
    cores=0,
    levels=None,
    inputs=(("weights", (5, 7)), ("input", (-1, 3, 24, 20))),
):
    """A module with as much of TensorRT's interface as a build takes, which writes down what is asked of it."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.asked = {}
    trt.timings = []
    if flags is not None:
        trt.NetworkDefinitionCreationFlag = flags
    trt.BuilderFlag = _BuilderFlag
    trt.DeviceType = enum.Enum("DeviceType", "GPU DLA")
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    trt.HardwareCompatibilityLevel = enum.Enum("Level", levels or "NONE AMPERE_PLUS")

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING")

        def __init__(self):
            pass

    class IProgressMonitor:
        def __init__(self):
            pass

    class Profile:
        def set_shape(self, *shapes):
            trt.asked.setdefault("all_shapes", []).append(shapes)
            trt.asked["shapes"] = shapes

    class TimingCache:
        """The timings of some builds: numbers, as text."""

        def __init__(self, data):
            self.entries = set(data.split())

        def serialize(self):
            return b" ".join(sorted(self.entries))

        def combine(self, other, ignore_mismatch):
            assert not ignore_mismatch
            self.entries |= other.entries
            return True

    class Config:
        def __init__(self):
            self.flags = {"TF32"}  # as TensorRT sets it

        def add_optimization_profile(self, profile):
            trt.asked["profile"] = profile

        def set_flag(self, flag):
            assert isinstance(flag, _BuilderFlag)
            self.flags.add(flag.name)

        def clear_flag(self, flag):
            self.flags.remove(flag.name)

        def set_memory_pool_limit(self, pool, size):
            trt.asked["pool"] = (pool.name, size)

        def create_timing_cache(self, data):
            return None if data == b"stale" else TimingCache(data)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            self.cache = cache
            trt.timings.append(sorted(cache.entries))
            return True

    class Builder:
        num_DLA_cores = cores  # noqa: N815

        def __init__(self, logger):
            self.logger = logger
            if start is not None:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure\nwith error 35")
                raise start

        def create_network(self, flags):
            trt.asked["flags"] = flags
            tensors = [types.SimpleNamespace(name=name, shape=shape) for name, shape in inputs]
            return types.SimpleNamespace(num_inputs=len(tensors), get_input=tensors.__getitem__)

        def create_builder_config(self):
            trt.asked["config"] = Config()
            return trt.asked["config"]

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            self.logger.log(ILogger.Severity.WARNING, "nothing much")
            if during is not None and during(config) is False:
                return None
            if hasattr(config, "cache"):
                config.cache.entries.add(f"kernel{len(trt.timings)}".encode())
            if plan is None and log:
                self.logger.log(ILogger.Severity.ERROR, log)
                self.logger.log(ILogger.Severity.ERROR, "where it was caught")
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

    trt.IProgressMonitor = IProgressMonitor
    trt.ILogger, trt.Builder, trt.OnnxParser = ILogger, Builder, OnnxParser
    return trt


@pytest.fixture(autouse=True)
def cache_home(monkeypatch, tmp_path_factory):
    """Where timings are kept: never in the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "holocron-edge"


@pytest.fixture
def install(monkeypatch):
    """Puts a stand-in where `import tensorrt` finds it, with a number of GPUs."""

    def install(trt, gpus=1):
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(engine, "device_count", lambda: gpus)
        monkeypatch.setattr(driver, "device_count", lambda: 0)  # what it builds is for no GPU to run
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
    assert trt.asked["all_shapes"] == [
        ("weights", (5, 7), (5, 7), (5, 7)),
        ("input", (1, 3, 24, 20), (4, 3, 24, 20), (4, 3, 24, 20)),
    ]
    assert trt.asked["profile"] is not None


def test_refused_by_the_parser(install):
    install(fake_tensorrt(parse_errors=("no importer for Hardmax", "node 7")))
    with pytest.raises(EngineError, match=r"^TensorRT 10\.3\.0 refuses the graph: no importer for Hardmax; node 7$"):
        build_engine(b"graph", TRT)


@pytest.mark.parametrize(
    ("log", "reason"), [("out of memory\nthere", "out of memory there"), ("", "it gave no reason")]
)
def test_a_failed_build_says_the_first_error_in_one_line(install, log, reason):
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


# What else can be asked of an engine.


def ask(**options):
    """What the manifest says of an engine of the stand-in, built with options."""
    return EngineBuild(**options).info("tensorrt", "10.3.0", "8.7", 4)


def test_nothing_is_set_that_is_not_asked(install):
    trt = install(fake_tensorrt())
    build_engine(b"graph", ask())
    config = trt.asked["config"]
    assert vars(config) == {"flags": set()}
    assert "pool" not in trt.asked


def test_options_reach_the_builder(install):
    trt = install(fake_tensorrt())
    info = ask(optimization_level=5, workspace_mib=64, hardware_compatibility="ampere_plus", version_compatible=True)
    build_engine(b"graph", info, detailed=True)
    config = trt.asked["config"]
    assert config.builder_optimization_level == 5
    assert trt.asked["pool"] == ("WORKSPACE", 64 * 2**20)
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.flags == {"VERSION_COMPATIBLE"}


def test_stripped_weights_come_back_unchanged(install):
    trt = install(fake_tensorrt())
    build_engine(b"graph", ask(strip_weights=True))
    assert trt.asked["config"].flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}


def test_the_accelerator_has_one_batch_and_the_gpu_for_what_it_has_not(install):
    trt = install(fake_tensorrt(cores=2))
    build_engine(b"graph", ask(dla_core=1))
    config = trt.asked["config"]
    assert (config.default_device_type.name, config.DLA_core, config.flags) == ("DLA", 1, {"GPU_FALLBACK"})
    assert trt.asked["shapes"] == ("input", (4, 3, 24, 20), (4, 3, 24, 20), (4, 3, 24, 20))
    assert engine_file("fp16", ask(dla_core=1)) == "model.fp16.tensorrt-10.3.0-sm87-dla1.engine"


FRAME_INPUTS = (("frame", (-1, -1, -1, 3)), ("rows", (-1, 24, -1)), ("columns", (-1, -1, 20)))


def test_frames_of_any_size_are_tuned_for_the_largest(install):
    trt = install(fake_tensorrt(inputs=FRAME_INPUTS))
    build_engine(b"graph", ask(), FrameSpec("rgb", (60, 80), False))
    assert trt.asked["all_shapes"] == [
        ("frame", (1, 1, 1, 3), (4, 60, 80, 3), (4, 60, 80, 3)),
        ("rows", (1, 24, 1), (4, 24, 60), (4, 24, 60)),
        ("columns", (1, 1, 20), (4, 80, 20), (4, 80, 20)),
    ]


def test_frames_of_one_size_have_a_dynamic_batch_alone(install):
    trt = install(fake_tensorrt(inputs=(("frame", (-1, 60, 80, 3)),)))
    build_engine(b"graph", ask(), FrameSpec("rgb", (60, 80), True))
    assert trt.asked["all_shapes"] == [("frame", (1, 60, 80, 3), (4, 60, 80, 3), (4, 60, 80, 3))]


def test_the_accelerator_has_one_size_of_frames(install):
    trt = install(fake_tensorrt(inputs=FRAME_INPUTS, cores=1))
    build_engine(b"graph", ask(dla_core=0), FrameSpec("rgb", (60, 80), False))
    assert all(smallest == largest for _, smallest, _, largest in trt.asked["all_shapes"])


@pytest.mark.parametrize(("cores", "have"), [(0, "none"), (2, "cores 0 to 1")])
def test_no_such_accelerator(install, cores, have):
    install(fake_tensorrt(cores=cores))
    with pytest.raises(EngineError, match=rf"no deep learning accelerator 2 here \({have}.*leave out --dla"):
        build_engine(b"graph", ask(dla_core=2))


def test_a_compatibility_that_this_version_does_not_know(install):
    install(fake_tensorrt())
    with pytest.raises(EngineError, match=r"10\.3\.0 does not know --hardware-compatible same_compute_capability"):
        build_engine(b"graph", ask(hardware_compatibility="same_compute_capability"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "--engine-level 6 is out of range, expected an integer from 0 to 5"),
        ({"optimization_level": True}, "--engine-level True"),
        ({"workspace_mib": 0}, "--workspace 0 is out of range"),
        ({"dla_core": -1}, "--dla -1 is out of range"),
        (
            {"hardware_compatibility": "all"},
            "--hardware-compatible 'all' is unknown, expected one of none, ampere_plus",
        ),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ExportError, match=message):
        EngineBuild(**options)


def test_a_timing_cache_that_is_a_folder(tmp_path):
    with pytest.raises(ExportError, match="is a folder, expected a file"):
        EngineBuild(timing_cache=tmp_path)


@pytest.mark.parametrize("option", ["strip_weights", "version_compatible", "layer_information"])
def test_options_of_engines_need_an_engine(option):
    with pytest.raises(ExportError, match=r"is of an engine: add --trt or --rtx"):
        ExportSpec("repvgg_a0", engine=EngineBuild(**{option: True}))


# Timings of kernels, kept from build to build.


def test_timings_are_kept_and_read(install, tmp_path):
    trt = install(fake_tensorrt())
    for _ in range(3):
        build_engine(b"graph", TRT, timing_cache=tmp_path / "new" / "timings")
    assert trt.timings == [[], [b"kernel1"], [b"kernel1", b"kernel2"]]


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: d[:-1] + b"?", lambda d: b"", lambda d: b"rubbish"])
def test_damaged_timings_are_measured_again(install, tmp_path, damage):
    trt = install(fake_tensorrt())
    path = tmp_path / "timings"
    build_engine(b"graph", TRT, timing_cache=path)
    path.write_bytes(damage(path.read_bytes()))
    build_engine(b"graph", TRT, timing_cache=path)
    assert trt.timings == [[], []]


def test_timings_of_another_gpu_or_version_are_not_taken(install, tmp_path):
    trt = install(fake_tensorrt())
    for capability, version in (("8.7", "10.3.0"), ("8.9", "10.3.0"), ("8.9", "10.9.0")):
        build_engine(b"graph", EngineInfo("tensorrt", version, capability, 1), timing_cache=tmp_path / "t")
    assert trt.timings == [[], [], []]


def test_timings_that_tensorrt_does_not_take(install, tmp_path):
    trt = install(fake_tensorrt())
    PairedFile(tmp_path / "t", b"tensorrt 10.3.0 8.7").write(b"stale")
    assert build_engine(b"graph", TRT, timing_cache=tmp_path / "t") == b"plan"
    assert trt.timings == [[]]


def test_timings_that_another_build_added_meanwhile_stay(install, tmp_path):
    path = tmp_path / "t"

    def another(config):
        PairedFile(path, b"tensorrt 10.3.0 8.7").write(b"theirs")

    trt = install(fake_tensorrt(during=another))
    build_engine(b"graph", TRT, timing_cache=path)
    build_engine(b"graph", TRT, timing_cache=path)
    assert trt.timings[1] == [b"kernel1", b"theirs"]


def test_a_build_without_a_place_for_timings(install, tmp_path):
    install(fake_tensorrt())
    (tmp_path / "file").write_text("in the way")
    assert build_engine(b"graph", TRT, timing_cache=tmp_path / "file" / "timings") == b"plan"


# Progress.


def play(monitor):
    """A build as TensorRT tells of it: two phases in one, then one that ends before its steps are done."""
    monitor.phase_start("build", None, 4)
    monitor.phase_start("inner", "build", 2)
    assert monitor.step_complete("inner", 0)
    assert monitor.step_complete("inner", 1)
    monitor.phase_finish("inner")
    assert monitor.step_complete("build", 0)
    monitor.phase_start("optimize", "build", 100)
    for step in range(50):
        assert monitor.step_complete("optimize", step)
    monitor.phase_finish("optimize")
    monitor.step_complete("build", 1)
    monitor.step_complete("unknown", 1)
    monitor.phase_finish("build")


def test_progress_is_told_in_percent_that_never_fall(install):
    told = []
    install(fake_tensorrt(during=lambda config: play(config.progress_monitor)))
    build_engine(b"graph", TRT, progress=lambda done, total: told.append((done, total)))
    percents = [done for done, _ in told]
    assert percents == sorted(set(percents))
    assert percents[0] == 12
    assert 25 in percents
    assert 37 in percents
    assert percents[-1] == 100
    assert {total for _, total in told} == {100}


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_an_interrupt_stops_the_build_and_arrives(install, error):
    """It cannot leave through TensorRT, which is C++."""
    steps = []

    def during(config):
        config.progress_monitor.phase_start("build", None, 10)
        for step in range(10):
            steps.append(step)
            if not config.progress_monitor.step_complete("build", step):
                return False
        return True

    def tell(done, total):
        if done >= 30:
            raise error

    install(fake_tensorrt(during=during))
    with pytest.raises(error):
        build_engine(b"graph", TRT, progress=tell)
    assert steps == [0, 1, 2]


# Layers, through the exporter.

DETAILED = {
    "Layers": [
        {"Name": "a", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Thirty-two wide channel INT8"}]},
        {"Name": "b", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Channel major FP16 format"}]},
        {"Name": "c", "LayerType": "Reformat", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
        {"Name": "d", "LayerType": "NoOp", "Outputs": []},
    ]
}


def test_layers_are_counted():
    layers = EngineLayers.from_json(json.dumps(DETAILED))
    assert (layers.count, layers.kinds["CaskConvolution"]) == (4, 2)
    assert layers.precisions == {"int8": 1, "float16": 1, "float32": 1}
    assert str(layers) == ("4 layers; 2 CaskConvolution, 1 Reformat, 1 NoOp; 1 in int8, 1 in float16, 1 in float32")


@pytest.mark.parametrize(
    ("text", "count"), [('{"Layers": ["a", "b"]}', 2), ("{}", 0), ("[]", 0), ("no", 0), ('{"Layers": 3}', 0)]
)
def test_layers_that_say_less(text, count):
    layers = EngineLayers.from_json(text)
    assert (layers.count, layers.kinds, layers.precisions) == (count, {}, {})


def test_many_kinds_of_layers_stay_a_line():
    layers = EngineLayers.from_json(json.dumps({"Layers": [{"LayerType": f"k{i}"} for i in range(9)]}))
    assert str(layers).endswith("1 k5, 3 others")


def test_layers_go_beside_the_engine(tiny_bundle, tmp_path, install, monkeypatch):
    install(fake_tensorrt())
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    told = []

    def layer_information(plan, info, graph):
        told.append((plan, info, graph))
        return json.dumps(DETAILED)

    monkeypatch.setattr(engine, "layer_information", layer_information)
    result = export_model(tiny_bundle, tmp_path / "out", trt=True, engine=EngineBuild(layer_information=True))
    (file,) = result.made
    assert json.loads((result.bundle / file.replace(".engine", ".layers.json")).read_text()) == DETAILED
    assert result.engine_lines() == [f"{file}: {EngineLayers.from_json(json.dumps(DETAILED))}"]
    assert result.to_dict()["engine_layers"][file]["count"] == 4
    (result.bundle / f"{file}.cache").write_bytes(b"kernels")
    again = export_model(result.bundle, tmp_path / "again", trt=True, engine=EngineBuild(layer_information=True))
    assert again.made == ()
    for companion in (file.replace(".engine", ".layers.json"), f"{file}.cache"):  # they go where the engine goes
        assert (again.bundle / companion).read_bytes() == (result.bundle / companion).read_bytes()
    assert told == [(b"plan", result.manifest.artefacts[-1].engine, (tiny_bundle / "model.int8.trt.onnx").read_bytes())]


def test_another_option_needs_force(tiny_bundle, tmp_path, install, monkeypatch, cache_home):
    install(fake_tensorrt())
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    bundle = export_model(tiny_bundle, tmp_path / "out", trt=True).bundle
    assert [path.name for path in cache_home.iterdir()] == ["tensorrt-10.3.0-sm87.timing"]
    options = EngineBuild(optimization_level=1)
    with pytest.raises(ExportError, match="was built with other options: build it again with --force"):
        export_model(bundle, trt=True, engine=options)
    result = export_model(bundle, trt=True, engine=options, force=True)
    assert read_manifest(bundle).artefacts[-1].engine.optimization_level == 1
    assert result.manifest == read_manifest(bundle)


def test_options_on_the_command_line(tiny_bundle, tmp_path, install, monkeypatch):
    trt = install(fake_tensorrt(cores=1))
    monkeypatch.setattr(engine, "device_capability", lambda: "8.7")
    command = [
        str(tiny_bundle), "-o", str(tmp_path / "out"), "--trt", "--max-batch", "3", "--engine-level", "2",
        "--workspace", "512", "--dla", "0", "--hardware-compatible", "ampere_plus", "--version-compatible",
        "--strip-weights", "--timing-cache", str(tmp_path / "timings"), "-q",
    ]  # fmt: skip
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    info = EngineInfo("tensorrt", "10.3.0", "8.7", 3, "ampere_plus", True, True, 0, 2, 512)
    assert read_manifest(tmp_path / "out").artefacts[-1].engine == info
    assert trt.asked["config"].flags == {"GPU_FALLBACK", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"}
    assert (tmp_path / "timings").is_file()


# What TensorRT-RTX has of it, asked of the real one.


@pytest.mark.parametrize("level", [0, 5])
def test_rtx_levels(tiny_bundle, level):
    pytest.importorskip("tensorrt_rtx")
    info = EngineBuild(optimization_level=level).info("tensorrt_rtx", "1.7.1", "8.6", 2)
    assert len(build_engine((tiny_bundle / "model.onnx").read_bytes(), info)) > 1000


def test_rtx_workspace_limits(tiny_bundle):
    pytest.importorskip("tensorrt_rtx")
    graph = (tiny_bundle / "model.onnx").read_bytes()
    large, small = (EngineBuild(workspace_mib=n).info("tensorrt_rtx", "1.7.1", "8.6", 2) for n in (256, 1))
    assert build_engine(graph, large)
    with pytest.raises(EngineError, match=r"could not build the engine: .*workspace") as caught:
        build_engine(graph, small)
    assert "\n" not in str(caught.value)


def test_rtx_tells_its_progress(tiny_bundle):
    pytest.importorskip("tensorrt_rtx")
    told = []
    build_engine((tiny_bundle / "model.fp16.onnx").read_bytes(), RTX, progress=lambda *a: told.append(a))
    percents = [done for done, _ in told]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100
    assert len(percents) > 5


def test_rtx_is_interrupted(tiny_bundle):
    pytest.importorskip("tensorrt_rtx")

    def tell(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine((tiny_bundle / "model.onnx").read_bytes(), RTX, progress=tell)
    assert build_engine((tiny_bundle / "model.onnx").read_bytes(), RTX)


def test_rtx_detailed_layers(tiny_bundle):
    pytest.importorskip("tensorrt_rtx")
    assert build_engine((tiny_bundle / "model.onnx").read_bytes(), RTX, detailed=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"hardware_compatibility": "ampere_plus"},
            "know no --hardware-compatible: build one for each --rtx-capability",
        ),
        ({"version_compatible": True}, "leave out --version-compatible"),
        ({"dla_core": 0}, "run on GPUs alone: leave out --dla"),
        ({"strip_weights": True}, "--strip-weights with --rtx needs a GPU to build on"),
    ],
)
def test_what_rtx_has_not_is_refused_before_any_work(tmp_path, recorder, monkeypatch, options, message):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(engine, "device_count", lambda: 0)
    spec = ExportSpec("repvgg_a0", output=tmp_path / "o", weights="none", rtx=True, engine=EngineBuild(**options))
    with pytest.raises(EngineError, match=message):
        run_export(spec, recorder)
    assert recorder.stages == []


def test_rtx_itself_does_not_strip_weights_without_a_gpu(tiny_bundle):
    """The reason for refusing it: it fails late, with words that do not help."""
    pytest.importorskip("tensorrt_rtx")
    if device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="could not build the engine"):
        build_engine((tiny_bundle / "model.onnx").read_bytes(), replace(RTX, stripped=True))


def test_rtx_layers_without_a_gpu_are_a_warning(float_bundle, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(engine, "device_count", lambda: 0)
    result = export_model(float_bundle, tmp_path / "out", rtx=True, engine=EngineBuild(layer_information=True))
    (file,) = result.made
    assert result.warnings == (f"the layers of {file} can be read where there is a GPU alone",)
    assert not result.engine_layers
