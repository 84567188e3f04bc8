"""Engines of bundles: which is taken, what is refused and in which words, building anew, and who is trusted."""

import hashlib
import os
import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

import runtime
from runtime import BackendError, BundleError, engines
from runtime.backends import available_backends, open_session, unavailable
from runtime.backends.engine_options import EngineOptions
from runtime.bench import _combinations
from runtime.engines import engine_problem, read_artefact
from runtime.manifest import Artefact, EngineInfo, FrameSpec, Preprocessing, frame_inputs, read_manifest

SHAPES = {
    "inputs": (("input", "FLOAT", (1, 3, 16, 16), (4, 3, 16, 16)),),
    "outputs": (("logits", "FLOAT", (-1, 4)),),
}


@pytest.fixture(autouse=True)
def cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tiny_plan(fakes, make_plan, network):
    """Engines of the little classifier, which compute what ONNX Runtime computes."""
    session = onnxruntime.InferenceSession(network(), providers=["CPUExecutionProvider"])

    def tiny(feeds):
        return {"logits": session.run(None, feeds)[0]}

    fakes[1].network(tiny)
    return lambda **changes: make_plan("tiny", **{**SHAPES, **changes})


@pytest.fixture
def engine_bundle(make_bundle, network, tiny_plan, tmp_path):
    """Makes a bundle with two graphs and the engines that are asked for, each a variant, an info and a plan."""

    def make(*added, variants=("fp32", "int8.trt")):
        folder = make_bundle(tmp_path / "bundle", {v: network(v) for v in variants})
        manifest = read_manifest(folder)
        artefacts = list(manifest.artefacts)
        for i, (variant, info, plan) in enumerate(added):
            file = f"{i}.engine"
            (folder / file).write_bytes(plan)
            precision, _, scheme = variant.partition(".")
            digest = hashlib.sha256(plan).hexdigest()
            artefacts.append(Artefact(file, "engine", precision, len(plan), digest, scheme or None, info))
        (folder / "manifest.json").write_text(replace(manifest, artefacts=tuple(artefacts)).to_json())
        return folder

    return make


def info(version="10.3.0", capability="8.7", library="tensorrt", max_batch=4, **changes):
    return EngineInfo(library, version, capability, max_batch, **changes)


class TestFitting:
    @pytest.mark.parametrize(
        ("engine", "version", "capability", "fits"),
        [
            (info(), "10.3.0", "8.7", True),
            (info("10.3.0.30"), "10.3.0.26", "8.7", True),
            (info(), "10.3.1", "8.7", False),
            (info(), "10.16.1", "8.7", False),
            (info(), "11.3.0", "8.7", False),
            (info(), "10.3.0", "8.9", False),
            (info(), "10.3.0", None, False),
            (info(version_compatible=True), "10.16.1.2", "8.7", True),
            (info("10.16.1", version_compatible=True), "10.3.0", "8.7", False),
            (info(version_compatible=True), "11.4.0", "8.7", False),
            (info(hardware_compatibility="ampere_plus"), "10.3.0", "8.9", True),
            (info(hardware_compatibility="ampere_plus"), "10.3.0", "12.0", True),
            (info(hardware_compatibility="ampere_plus"), "10.3.0", "7.5", False),
            (info(hardware_compatibility="ampere_plus"), "10.3.0", None, False),
            (info(hardware_compatibility="same_compute_capability"), "10.3.0", "8.9", False),
            (info("1.7.1", "8.6", "tensorrt_rtx"), "1.7.1.116", "8.6", True),
        ],
    )
    def test_what_an_engine_is_for(self, engine, version, capability, fits):
        assert (engine_problem(engine, version, capability) is None) == fits

    def test_both_are_named(self):
        problem = engine_problem(info(), "10.16.1", "8.9")
        assert problem == (
            "was built with TensorRT 10.3.0 for compute capability 8.7, here are TensorRT 10.16.1 and 8.9"
        )
        assert "an unknown GPU" in engine_problem(info(), "10.3.0", None)


class TestLoading:
    def test_the_engine_that_fits_is_taken(self, install, engine_bundle, tiny_plan, picture):
        install(version="10.16.1", capability="8.9")
        folder = engine_bundle(
            ("int8.trt", info(), tiny_plan()),
            ("fp32", info("10.16.1", "8.9"), tiny_plan(version="10.16.1", capability="8.9")),
        )
        with runtime.load(folder) as model, runtime.load(folder, "fp32", "onnxruntime") as reference:
            assert (model.backend, model.precision, model.device) == ("tensorrt", "fp32", "cuda:0")
            assert model.artefact.file == "1.engine"
            for _ in range(3):
                found, expected = model(picture), reference(picture)
                assert found.top(4) == expected.top(4)

    def test_more_images_than_the_engine_takes_are_fed_in_parts(self, install, engine_bundle, tiny_plan, picture):
        install()
        folder = engine_bundle(("fp32", info(), tiny_plan()))
        images = [np.roll(picture, i, 0) for i in range(11)]
        with runtime.load(folder) as model, runtime.load(folder, "fp32", "onnxruntime") as reference:
            np.testing.assert_allclose(model.run(images)["logits"], reference.run(images)["logits"], rtol=1e-5)

    def test_an_engine_of_one_batch_size_is_filled_up(self, install, engine_bundle, tiny_plan, picture):
        install()
        plan = tiny_plan(inputs=(("input", "FLOAT", (4, 3, 16, 16), (4, 3, 16, 16)),))
        folder = engine_bundle(("fp32", info(dla_core=0), plan))
        images = [np.roll(picture, i, 0) for i in range(6)]
        with runtime.load(folder) as model, runtime.load(folder, "fp32", "onnxruntime") as reference:
            assert model.session.inputs[0].shape == (4, 3, 16, 16)
            np.testing.assert_allclose(model.run(images)["logits"], reference.run(images)["logits"], rtol=1e-5)

    def test_without_one_that_fits_the_graph_is_run(self, install, engine_bundle, tiny_plan):
        install(capability="8.9")
        with runtime.load(engine_bundle(("int8.trt", info(), tiny_plan()))) as model:
            assert model.backend in ("onnxruntime", "openvino")

    def test_asked_for_it_is_refused_with_both_named(self, install, engine_bundle, tiny_plan):
        install(version="10.9.0", capability="8.9")
        folder = engine_bundle(("int8.trt", info(), tiny_plan()), ("fp32", info("10.9.0", "8.6"), tiny_plan()))
        with pytest.raises(BackendError, match="rebuild=True") as caught:
            runtime.load(folder, backend="tensorrt")
        assert str(caught.value) == (
            "0.engine was built with TensorRT 10.3.0 for compute capability 8.7, here are TensorRT 10.9.0 and 8.9; "
            "1.engine was built with TensorRT 10.9.0 for compute capability 8.6, here are TensorRT 10.9.0 and 8.9: "
            "export the bundle here with --trt or --rtx, or open it with rebuild=True"
        )

    def test_a_bundle_without_engines(self, install, engine_bundle):
        install()
        with pytest.raises(
            BackendError, match=r"has no engine of TensorRT in int8\.trt, fp16, fp32: export the bundle"
        ):
            runtime.load(engine_bundle(), backend="tensorrt")

    @pytest.mark.parametrize(("precision", "found"), [("int8", "int8.trt"), ("fp32", "fp32"), (None, "int8.trt")])
    def test_the_precision_that_is_asked_for(self, install, engine_bundle, tiny_plan, precision, found):
        install()
        folder = engine_bundle(*((v, info(), tiny_plan()) for v in ("fp32", "int8.trt")))
        with runtime.load(folder, precision, "tensorrt") as model:
            assert model.precision == found

    def test_options_reach_the_session(self, install, engine_bundle, tiny_plan):
        install()
        options = EngineOptions(contexts=1, cuda_graphs=False)
        with runtime.load(engine_bundle(("fp32", info(), tiny_plan())), engine=options) as model:
            assert model.session.options == options

    def test_tensorrt_rtx_keeps_its_cache_beside_the_engine(self, install, engine_bundle, tiny_plan, picture):
        install(library="tensorrt_rtx", version="1.7.1", capability="8.6")
        plan = tiny_plan(library="tensorrt_rtx", version="1.7.1", capability="8.6")
        folder = engine_bundle(("fp32", info("1.7.1", "8.6", "tensorrt_rtx"), plan))
        with runtime.load(folder) as model:
            assert model.backend == "tensorrt_rtx"
            model(picture)
        assert (folder / "0.engine.cache").is_file()

    def test_stripped_engines_take_the_weights_of_their_graph(
        self, install, engine_bundle, tiny_plan, network, picture
    ):
        _, trt = install()
        folder = engine_bundle(("int8.trt", info(stripped=True), tiny_plan(stripped=True)))
        with runtime.load(folder) as model:
            model(picture)
        assert trt.controls.refitted == network("int8.trt")

    def test_a_stripped_engine_without_its_graph(self, install, engine_bundle, tiny_plan):
        install()
        folder = engine_bundle(("fp16", info(stripped=True), tiny_plan(stripped=True)))
        with pytest.raises(BackendError, match="has no ONNX file in fp16"):
            runtime.load(folder, backend="tensorrt")

    def test_bench_times_the_engines_there_are(self, install, engine_bundle, tiny_plan):
        install()
        found = _combinations(engine_bundle(("int8.trt", info(), tiny_plan())), None, ["tensorrt", "onnxruntime"])
        assert found == [("int8.trt", "tensorrt"), ("fp32", "onnxruntime")]


class TestTrust:
    """Opening an engine executes it."""

    @pytest.mark.parametrize(
        "damage",
        [
            lambda d: d[:-5],
            lambda d: d + b"x",
            lambda d: d[:50] + b"?" + d[51:],
            lambda d: b"",
            lambda d: b"x" * len(d),
        ],
    )
    def test_a_changed_engine_is_not_opened(self, install, engine_bundle, tiny_plan, monkeypatch, damage):
        _, trt = install()
        folder = engine_bundle(("fp32", info(), tiny_plan()))
        path = folder / "0.engine"
        path.write_bytes(damage(path.read_bytes()))
        for options in ({}, {"backend": "tensorrt"}, {"rebuild": True}):
            with pytest.raises(BundleError, match=r"0\.engine .*(cut off or changed|was changed)"):
                runtime.load(folder, **options)
        with pytest.raises(BundleError):
            runtime.load(path)
        assert trt.controls.engines == []

    def test_an_engine_that_leads_out_of_the_bundle(self, install, engine_bundle, tiny_plan, tmp_path):
        install()
        folder = engine_bundle(("fp32", info(), tiny_plan()))
        (folder / "0.engine").rename(tmp_path / "elsewhere")
        (folder / "0.engine").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleError, match="leads out of the bundle"):
            runtime.load(folder, backend="tensorrt")

    def test_what_is_checked_is_what_is_opened(self, engine_bundle, tiny_plan):
        plan = tiny_plan()
        folder = engine_bundle(("fp32", info(), plan))
        artefact = read_manifest(folder).artefacts[-1]
        assert read_artefact(folder, artefact) == plan

    def test_a_bare_engine_needs_trust(self, install, tiny_plan, tmp_path):
        install()
        path = tmp_path / "found.engine"
        path.write_bytes(tiny_plan())
        for model in (path, tiny_plan()):
            with pytest.raises(BackendError, match=r"executes what is in it, and no manifest vouches .*trust=True"):
                open_session(model, "tensorrt")
            session = open_session(model, "tensorrt", trust=True)
            assert session.run(np.zeros((1, 3, 16, 16), np.float32))["logits"].shape == (1, 4)
            session.close()

    def test_a_bare_engine_that_is_not_there(self, install, tmp_path):
        install()
        with pytest.raises(BackendError, match=r"cannot read .*none: No such file"):
            open_session(tmp_path / "none", "tensorrt", trust=True)

    def test_an_engine_in_a_bundle_is_opened_by_its_path(self, install, engine_bundle, tiny_plan):
        install()
        folder = engine_bundle(("fp32", info(), tiny_plan()), ("int8.trt", info(), tiny_plan()))
        with runtime.load(folder / "0.engine") as model:
            assert (model.backend, model.precision) == ("tensorrt", "fp32")

    def test_an_engine_that_no_manifest_names(self, install, engine_bundle, tiny_plan, tmp_path):
        install()
        folder = engine_bundle()
        (folder / "other.engine").write_bytes(tiny_plan())
        with pytest.raises(BundleError, match=r"not in the manifest beside it, so nothing vouches"):
            runtime.load(folder / "other.engine")
        (tmp_path / "other.engine").write_bytes(tiny_plan())
        with pytest.raises(BundleError, match=r"without a manifest beside it, .*trust=True"):
            runtime.load(tmp_path / "other.engine")

    def test_a_lone_graph_has_no_engine(self, install, lone_onnx):
        install()
        with pytest.raises(BackendError, match=r"is an ONNX file, and tensorrt opens engines: open the bundle"):
            runtime.load(lone_onnx, backend="tensorrt")


@pytest.fixture
def builder(monkeypatch, tiny_plan):
    """Builds engines of the stand-in, and remembers what it was asked for."""
    asked = []

    def build(onnx, info, frame=None, timing_cache=None):
        assert frame is None
        asked.append((onnx, info, timing_cache))
        return tiny_plan(version=info.version, capability=info.compute_capability, stripped=info.stripped)

    monkeypatch.setattr(engines, "build_engine", build)
    return asked


class TestRebuilding:
    def test_what_was_built_for_another_machine_is_built_for_this(
        self, install, engine_bundle, tiny_plan, builder, network, picture
    ):
        install(version="10.9.0", capability="8.9")
        old = info(max_batch=4, optimization_level=5, workspace_mib=64)
        folder = engine_bundle(("int8.trt", old, tiny_plan()))
        with runtime.load(folder, rebuild=True) as model:
            assert (model.backend, model.precision) == ("tensorrt", "int8.trt")
            model(picture)
        new = replace(old, version="10.9.0", compute_capability="8.9")
        assert [(onnx, info) for onnx, info, _ in builder] == [(network("int8.trt"), new)]
        assert builder[0][2].name == "tensorrt-10.9.0-sm89.timing"
        manifest = read_manifest(folder)
        assert [a.file for a in manifest.artefacts][2:] == ["0.engine", "model.int8.trt.tensorrt-10.9.0-sm89.engine"]
        assert manifest.artefacts[-1].engine == new
        with runtime.load(folder) as model:  # now it fits
            assert model.artefact == manifest.artefacts[-1]
        assert len(builder) == 1
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]

    def test_a_bundle_without_engines_gets_the_one_of_the_best_graph(self, install, engine_bundle, builder, network):
        install()
        with runtime.load(engine_bundle(), rebuild=True) as model:
            assert model.precision == "int8.trt"
        assert builder[0][0] == network("int8.trt")
        assert builder[0][1] == info(max_batch=1)

    def test_an_engine_that_does_not_open_is_built_again(self, install, engine_bundle, tiny_plan, builder):
        """The library and the GPU are those that the manifest says, and it refuses the engine all the same."""
        install()
        folder = engine_bundle(("fp32", info(), b"PLAN of an earlier build"))
        with pytest.raises(BackendError, match=r"^0\.engine: .*does not open the engine.*rebuild=True"):
            runtime.load(folder, backend="tensorrt")
        with runtime.load(folder, backend="tensorrt", rebuild=True) as model:
            assert model.artefact.file == "model.fp32.tensorrt-10.3.0-sm87.engine"

    def test_a_stripped_engine_stays_stripped(self, install, engine_bundle, tiny_plan, builder, network):
        _, trt = install(capability="8.9")
        folder = engine_bundle(("fp32", info(stripped=True), tiny_plan(stripped=True)))
        with runtime.load(folder, rebuild=True):
            assert trt.controls.refitted == network("fp32")
        assert read_manifest(folder).artefacts[-1].engine.stripped

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it is forbidden")
    def test_a_bundle_that_cannot_be_written(self, install, engine_bundle, builder):
        install()
        folder = engine_bundle()
        folder.chmod(0o500)
        with pytest.warns(RuntimeWarning, match="cannot be written: the engine that was built is used now"):
            runtime.load(folder, rebuild=True).close()

    def test_a_disk_without_room(self, install, engine_bundle, builder, monkeypatch, picture):
        install()
        folder = engine_bundle()
        before = (folder / "manifest.json").read_bytes()
        monkeypatch.setattr(engines, "write_atomically", lambda path, data: False)
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            model = runtime.load(folder, rebuild=True)
        model(picture)
        model.close()
        assert (folder / "manifest.json").read_bytes() == before

    def test_a_changed_graph_is_not_built_from(self, install, engine_bundle, builder):
        install()
        folder = engine_bundle()
        path = folder / "model.int8.trt.onnx"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(BundleError, match="was changed"):
            runtime.load(folder, rebuild=True)
        assert builder == []

    def test_a_network_that_takes_frames(self, install, make_bundle, network, fakes, make_plan, tmp_path, monkeypatch):
        """It is tuned for the largest of them, and what it is fed is cut into batches that the engine takes."""
        fed = []

        def corners(feeds):
            fed.append({name: array.shape for name, array in feeds.items()})
            return {"logits": feeds["frame"].reshape(len(feeds["frame"]), -1)[:, :4].astype(np.float32)}

        fakes[1].network(corners)
        plan = make_plan(
            "corners",
            inputs=(
                ("frame", "UINT8", (1, 1, 1, 3), (2, 60, 80, 3)),
                ("rows", "FLOAT", (1, 16, 1), (2, 16, 60)),
                ("columns", "FLOAT", (1, 1, 16), (2, 80, 16)),
            ),
            outputs=(("logits", "FLOAT", (-1, 4)),),
        )
        asked = []

        def build(onnx, info, frame=None, timing_cache=None):
            asked.append(frame)
            return plan

        monkeypatch.setattr(engines, "build_engine", build)
        install()
        frame = FrameSpec("rgb", (60, 80), False)
        inputs = frame_inputs(frame, Preprocessing((16, 16), (0, 0, 0), (1, 1, 1)))
        folder = make_bundle(tmp_path / "bundle", {"fp32": network()}, frame=frame, inputs=inputs)
        manifest = read_manifest(folder)
        old = Artefact("0.engine", "engine", "fp32", 1, "0" * 64, engine=info("10.2.0", max_batch=2))
        (folder / "manifest.json").write_text(replace(manifest, artefacts=(*manifest.artefacts, old)).to_json())
        frames = [np.full((h, w, 3), h, np.uint8) for h, w in ((60, 80), (16, 16), (20, 30))]
        with runtime.load(folder, rebuild=True) as model:
            assert model.backend == "tensorrt"
            np.testing.assert_array_equal(model.run(frames)["logits"][:, 0], [60, 16, 20])
        assert asked == [frame]
        assert [shapes["frame"] for shapes in fed] == [(2, 60, 80, 3), (2, 60, 80, 3)]  # filled up

    def test_on_another_device(self, install, engine_bundle, builder):
        install(devices=2)
        with pytest.raises(
            BackendError, match=r"engines are built on cuda:0, not on 'cuda:1': set CUDA_VISIBLE_DEVICES"
        ):
            runtime.load(engine_bundle(), backend="tensorrt", device="cuda:1", rebuild=True)

    def test_a_build_that_fails_leaves_the_bundle_as_it_was(self, install, engine_bundle, monkeypatch):
        install()
        folder = engine_bundle()
        before = sorted((p.name, p.read_bytes()) for p in folder.iterdir())

        def build(*_, **__):
            raise BackendError("TensorRT 10.3.0 refuses the graph: no")

        monkeypatch.setattr(engines, "build_engine", build)
        with pytest.raises(BackendError, match="refuses the graph"):
            runtime.load(folder, backend="tensorrt", rebuild=True)
        with runtime.load(folder, rebuild=True) as model:  # by another backend, where the choice is free
            assert model.backend in ("onnxruntime", "openvino")
        assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == before

    def test_nothing_is_built_where_one_fits(self, install, engine_bundle, tiny_plan, builder):
        install()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runtime.load(engine_bundle(("fp32", info(), tiny_plan())), rebuild=True).close()
        assert builder == []


class TestAvailability:
    def test_with_everything_it_comes_first(self, install):
        install()
        assert available_backends()[0] == "tensorrt"

    def test_without_cuda_python(self, install, monkeypatch):
        import sys

        install()
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        assert "tensorrt" not in available_backends()
        reason = unavailable("tensorrt")
        assert reason.startswith("cuda-python is not installed")
        assert reason.endswith('pip install "holocron-edge[trt]"')

    def test_too_old(self, install):
        install(version="8.6.1")
        assert unavailable("tensorrt") == (
            "TensorRT 8.6.1 is too old: 10.3 or later is needed (JetPack 6 and 7 have it)"
        )

    def test_type_stubs_are_not_tensorrt(self, install, monkeypatch):
        """They leave a folder of that name, which can be imported and holds nothing."""
        import sys
        from types import ModuleType

        install()
        stubs = ModuleType("tensorrt")
        stubs.__spec__ = sys.modules["tensorrt"].__spec__
        monkeypatch.setitem(sys.modules, "tensorrt", stubs)
        assert "`tensorrt`, which is not installed (pip install 'holocron-edge[trt]')" in unavailable("tensorrt")

    @pytest.mark.parametrize(("name", "extra"), [("tensorrt", "trt"), ("tensorrt_rtx", "rtx")])
    def test_not_installed(self, monkeypatch, name, extra):
        import sys

        monkeypatch.setitem(sys.modules, name, None)
        assert unavailable(name) == f'{name} is not installed: pip install "holocron-edge[{extra}]"'

    def test_without_a_gpu(self, install):
        install(devices=0)
        assert unavailable("tensorrt") == "tensorrt needs an NVIDIA GPU and its driver, and none was found"
