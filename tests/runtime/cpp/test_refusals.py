"""What the C++ runtime refuses, and how: the sentences of the Python runtime."""

import ctypes
import json
import os
import subprocess
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper

import runtime
from runtime.errors import BackendError, BundleError, HolocronError, ImageError, InputError
from runtime.manifest import METADATA_KEY, FrameSpec, TensorSpec

KINDS = {BundleError: "bundle", BackendError: "backend", ImageError: "image", InputError: "input"}


@pytest.fixture
def both_refuse(library):
    """Open a bundle in both runtimes: both must refuse it alike. Gives the sentence."""

    def refuse(path, precision=None, device=None):
        with pytest.raises(HolocronError) as wanted:
            runtime.load(path, precision, "openvino", 1, device)
        with pytest.raises(library.Error) as found:
            library.load(path, precision, device=device)
        assert found.value.status == KINDS[type(wanted.value)]
        assert str(found.value) == str(wanted.value)
        return str(found.value)

    return refuse


def _set(*keys, value):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        if value is Ellipsis:
            del data[keys[-1]]
        else:
            data[keys[-1]] = value

    return change


ENGINE = {"library": "tensorrt", "version": "10.3.0", "compute_capability": "8.7", "max_batch": 1}
DETECTIONS = {
    "kind": "detections", "score_threshold": 0.2, "iou_threshold": 0.5, "max_detections": 9, "candidates": 9,
    "steps": 4,
}  # fmt: skip
CHANGES = {
    "schema": _set("schema_version", value=7),
    "no schema": _set("schema_version", value=...),
    "schema as text": _set("schema_version", value="1"),
    "unknown key": _set("zebra", value=1),
    "long unknown key": _set("z" * 100, value=1),
    "missing key": _set("outputs", value=...),
    "name is a list": _set("name", value=[]),
    "task": _set("task", value="ünïcode\n'\""),
    "task is an object": _set("task", value={"b": [1, 2.5, None, True], "a": {"c": {"d": {}}}}),
    "labels is a string": _set("labels", value="cat"),
    "label is a boolean": _set("labels", 2, value=False),
    "too few labels": _set("labels", value=["cat"]),
    "no labels": _set("labels", value=[]),
    "no inputs": _set("inputs", value=[]),
    "two inputs": lambda data: data["inputs"].append({**data["inputs"][0], "name": "second"}),
    "dtype": _set("inputs", 0, "dtype", value="float8"),
    "dtype of another kind": _set("inputs", 0, "dtype", value="float16"),
    "input name": _set("inputs", 0, "name", value="other"),
    "output name": _set("outputs", 0, "name", value="other"),
    "output shape": _set("outputs", 0, "shape", value=["batch", 4, 1]),
    "output classes": _set("outputs", 0, "shape", value=["batch", 5]),
    "two outputs": lambda data: data["outputs"].append({**data["outputs"][0], "name": "second"}),
    "shape of zero": _set("inputs", 0, "shape", 1, value=0),
    "shape of a fraction": _set("inputs", 0, "shape", 1, value=3.0),
    "huge shape": _set("inputs", 0, "shape", 1, value=10**40),
    "size": _set("preprocessing", "size", value=[16]),
    "other size": _set("preprocessing", "size", value=[16, 17]),
    "size too large": _set("preprocessing", "size", 0, value=2**15 + 1),
    "mean": _set("preprocessing", "mean", 1, value="0.5"),
    "mean too large": _set("preprocessing", "mean", 1, value=-2e30),
    "mean of many digits": _set("preprocessing", "mean", 1, value=10**100),
    "std": _set("preprocessing", "std", value=[1, 1e-13, 2.5]),
    "resize": _set("preprocessing", "resize", value="crop"),
    "pad mode": _set("preprocessing", "pad_mode", value=None),
    "interpolation": _set("preprocessing", "interpolation", value=3),
    "provenance": _set("provenance", value=[1]),
    "artefacts": _set("artefacts", value={}),
    "no artefacts": _set("artefacts", value=[]),
    "artefact is null": _set("artefacts", 0, value=None),
    "artefact twice": lambda data: data["artefacts"].append(data["artefacts"][0]),
    "kind": _set("artefacts", 0, "kind", value="tflite"),
    "precision": _set("artefacts", 0, "precision", value="int4"),
    "scheme of fp32": _set("artefacts", 0, "scheme", value="cpu"),
    "no scheme of int8": _set("artefacts", 1, "scheme", value=None),
    "unknown scheme": _set("artefacts", 1, "scheme", value=["cpu"]),
    "negative size": _set("artefacts", 0, "size", value=-1),
    "size beyond exact numbers": _set("artefacts", 0, "size", value=2**53 + 1),
    "short hash": _set("artefacts", 0, "sha256", value="0" * 63),
    "upper-case hash": _set("artefacts", 0, "sha256", value="A" * 64),
    "engine of onnx": _set("artefacts", 0, "engine", value=ENGINE),
    "engine without its entry": _set("artefacts", 0, "kind", value="engine"),
    "engine with an unknown key": lambda data: data["artefacts"][0].update(kind="engine", engine={**ENGINE, "x": 1}),
    "engine batch": lambda data: data["artefacts"][0].update(kind="engine", engine={**ENGINE, "max_batch": 2**16 + 1}),
    "engine flag": lambda data: data["artefacts"][0].update(kind="engine", engine={**ENGINE, "stripped": 1}),
    "verification": _set("artefacts", 0, "verification", value={"reference": "x"}),
    "verification images": _set(
        "artefacts", 0, "verification",
        value={"reference": "x", "images": True, "relative_error": 0, "cosine": 1, "top1_agreement": None},
    ),
    "absolute path": _set("artefacts", 0, "file", value="/etc/passwd"),
    "parent path": _set("artefacts", 0, "file", value="a/../../x"),
    "backslash": _set("artefacts", 0, "file", value="a\\b"),
    "drive": _set("artefacts", 0, "file", value="c:x"),
    "NUL": _set("artefacts", 0, "file", value="a\0b"),
    "the folder": _set("artefacts", 0, "file", value="./."),
    "no name": _set("artefacts", 0, "file", value=""),
    "frame with other inputs": _set("frame", value={"channels": "rgb", "size": [8, 8], "fixed": True}),
    "frame channels": _set("frame", value={"channels": "yuv", "size": [8, 8], "fixed": True}),
    "frame size": _set("frame", value={"channels": "rgb", "size": [8, 8, 8], "fixed": True}),
    "frame flag": _set("frame", value={"channels": "rgb", "size": [8, 8], "fixed": "yes"}),
    "post-processing kind": _set("post_processing", value={"kind": 7}),
    "post-processing of another task": _set("post_processing", value=DETECTIONS),
    "post-processing lacks a number": _set("post_processing", value={"kind": "top_classes"}),
    "post-processing of another kind": _set("post_processing", value={**DETECTIONS, "top_k": 3}),
    "post-processing outputs": _set("post_processing", value={"kind": "top_classes", "top_k": 3}),
    "post-processing is a list": _set("post_processing", value=[]),
    "coordinates": _set("post_processing", value={"kind": "probabilities", "coordinates": "x"}),
}  # fmt: skip


class TestManifests:
    @pytest.mark.parametrize("name", CHANGES)
    def test_that_were_edited(self, own_bundle, edit_manifest, both_refuse, name):
        edit_manifest(own_bundle, CHANGES[name])
        both_refuse(own_bundle, "fp32")

    def test_that_are_no_text(self, own_bundle, both_refuse):
        (own_bundle / "manifest.json").write_bytes(b'{"name": "\xff"}')
        assert both_refuse(own_bundle).endswith("manifest.json: it is not UTF-8 text")

    def test_with_other_ends_of_lines(self, own_bundle, both_refuse):
        path = own_bundle / "manifest.json"
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[3] += " x"
        for end in ("\n", "\r\n", "\r"):
            path.write_bytes(end.join(lines).encode())
            assert both_refuse(own_bundle).endswith(": export the model again")

    @pytest.mark.parametrize("what", ["missing", "folder", "loop", "dangling", "below a file", "unreadable"])
    def test_that_cannot_be_read(self, own_bundle, both_refuse, what):
        path = own_bundle / "manifest.json"
        text = path.read_bytes()
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "loop":
            path.symlink_to(path)
        elif what == "dangling":
            path.symlink_to("nothing")
        elif what == "below a file":
            path.symlink_to("model.onnx/manifest.json")
        elif what == "unreadable":
            path.write_bytes(text)
            path.chmod(0)
            if os.access(path, os.R_OK):
                pytest.skip("this user reads every file")
        both_refuse(own_bundle)

    def test_of_gigabytes(self, own_bundle, both_refuse):
        with (own_bundle / "manifest.json").open("wb") as file:
            file.truncate(2**32)
        both_refuse(own_bundle)

    def test_that_both_read(self, own_bundle, edit_manifest, library):
        """What is odd but allowed."""

        def change(data):
            data["provenance"] = {"ü": [{"deep": [[[None]]]}], "big": 10**30}
            data["preprocessing"]["mean"] = [0, -1, 10**29]
            del data["preprocessing"]["resize"], data["preprocessing"]["pad_mode"]
            data["artefacts"][0]["file"] = "./" + data["artefacts"][0]["file"]
            data["artefacts"][0]["verification"] = None
            data["frame"] = data["post_processing"] = None

        edit_manifest(own_bundle, change)
        runtime.load(own_bundle, "fp32", "openvino").close()
        with library.load(own_bundle, "fp32") as model:
            assert model.text("name") == "tiny"


class TestFiles:
    def test_that_are_missing(self, own_bundle, both_refuse):
        (own_bundle / "model.onnx").unlink()
        assert both_refuse(own_bundle, "fp32").endswith("which the manifest names: No such file or directory")

    def test_that_are_links(self, own_bundle, both_refuse):
        path = own_bundle / "model.onnx"
        path.unlink()
        for target in ("model.onnx", "nothing", "manifest.json/x", "..", "manifest.json", "/dev/null"):
            path.symlink_to(target)
            both_refuse(own_bundle, "fp32")
            path.unlink()

    @pytest.mark.parametrize("file", ["manifest.json/x", "x" * 300, "x/" * 3000 + "x", "ü/ö", "a/./b"])
    def test_with_odd_names(self, own_bundle, edit_manifest, both_refuse, file):
        edit_manifest(own_bundle, _set("artefacts", 0, "file", value=file))
        both_refuse(own_bundle, "fp32")

    def test_that_were_cut_off(self, own_bundle, both_refuse):
        path = own_bundle / "model.onnx"
        path.write_bytes(path.read_bytes()[:-1])
        assert "it was cut off or changed" in both_refuse(own_bundle, "fp32")

    def test_that_were_changed(self, own_bundle, both_refuse):
        path = own_bundle / "model.onnx"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert "SHA-256" in both_refuse(own_bundle, "fp32")

    def test_that_lead_out_of_the_bundle(self, own_bundle, both_refuse, tmp_path):
        path = own_bundle / "model.onnx"
        path.rename(tmp_path / "elsewhere.onnx")
        path.symlink_to(tmp_path / "elsewhere.onnx")
        assert "leads out of the bundle" in both_refuse(own_bundle, "fp32")

    def test_that_are_folders(self, own_bundle, both_refuse):
        (own_bundle / "model.onnx").unlink()
        (own_bundle / "model.onnx").mkdir()
        assert "is not a file" in both_refuse(own_bundle, "fp32")

    def test_with_another_network(self, tmp_path, make_bundle, network, both_refuse):
        both_refuse(make_bundle(tmp_path / "b", {"fp32": network(classes=5)}))
        both_refuse(make_bundle(tmp_path / "c", {"fp32": network(input_name="x")}))

    def test_that_openvino_does_not_open(self, tmp_path, make_bundle, library):
        folder = make_bundle(tmp_path / "b", {"fp32": b"\x08\x08\x3a\x02\x0a\x00"})
        with pytest.raises(library.Error, match=r"openvino cannot open .*model.onnx: ") as found:
            library.load(folder)
        assert found.value.status == "backend"
        assert "\n" not in str(found.value)


class TestChoices:
    def test_of_a_precision(self, own_bundle, both_refuse):
        both_refuse(own_bundle, "int4")
        both_refuse(own_bundle, "fp16")
        both_refuse(own_bundle, "int8.trt")

    def test_of_a_device(self, own_bundle, both_refuse):
        both_refuse(own_bundle, device="abacus")

    def test_of_a_backend(self, own_bundle, library):
        with pytest.raises(library.Error, match="there is no backend 'tflite': expected one of ") as found:
            library.load(own_bundle, backend="tflite")
        assert found.value.status == "backend"

    def test_of_the_best(self, own_bundle, library):
        with library.load(own_bundle, backend=None) as model:
            assert model.text("backend") in ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx")
            assert model.text("precision") == "int8.cpu"
        with library.load(own_bundle, "float32") as model:
            assert model.text("precision") == "fp32"

    def test_of_places(self, tmp_path, both_refuse, monkeypatch):
        both_refuse(tmp_path / "nowhere")
        both_refuse(tmp_path)
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path)
        for path in (
            "",
            ".",
            "./",
            "empty/",
            ".//empty/./.",
            "empty/..",
            "/",
            "nowhere/",
            "\u00fc",
            "x" * 300,
            "empty/x/",
        ):
            both_refuse(path)

    def test_of_lone_files(self, lone_onnx, library, picture, both_refuse, tmp_path, network):
        with library.load(lone_onnx) as cpp, runtime.load(lone_onnx, backend="openvino") as python:
            assert cpp.text("precision") == python.precision == "int8.cpu"
            assert cpp.text("artefact") == ""
            ((classes, _),) = cpp.classify([picture])
            assert classes[0][0] == python(picture).index
        (tmp_path / "bare.onnx").write_bytes(network())
        both_refuse(tmp_path / "bare.onnx")

    def test_of_damaged_onnx_files(self, tmp_path, both_refuse, network, manifest_of):
        good, text = network(), manifest_of().to_json()
        lone = network(metadata={METADATA_KEY: text, "other": "x"})
        at = lone.index(b"other")
        damaged = [
            b"", b"x", good[:-3], b"\x00" * 9, b"\xff" * 20, b"\x08\x08", b"\x3a\x00", b"\x08" + b"\x80" * 9 + b"\x01",
            b"\x08" + b"\x80" * 9 + b"\x02", b"\x08" + b"\x80" * 10 + b"\x01", b"\x08" + b"\xff" * 9 + b"\x7f", b"\x0b",
            b"\x0c", b"\x0d\0\0",
            b"\x72\x02\x0a\x05", b"\x72" + b"\xff" * 9 + b"\x01", b"\x72\xff\xff\xff\xff\x0f", b"\x09\0\0",
            lone[:at] + b"\xff" + lone[at + 1 :],
            network(metadata={METADATA_KEY: text[:99]}), network(metadata={METADATA_KEY: "[]"}),
            network(metadata={METADATA_KEY: ""}),
            network(metadata={METADATA_KEY: text.replace('"tiny"', "7")}), network(metadata={METADATA_KEY: text + "x"}),
        ]  # fmt: skip
        for data in damaged:
            (tmp_path / "damaged.onnx").write_bytes(data)
            both_refuse(tmp_path / "damaged.onnx")

    def test_of_an_engine_without_a_manifest(self, tmp_path, library):
        path = tmp_path / "alone.engine"
        path.write_bytes(b"plan")
        with pytest.raises(BundleError) as wanted:
            runtime.load(path)
        with pytest.raises(library.Error) as found:
            library.load(path)
        # Python goes on about a function of its own.
        assert str(wanted.value).startswith(f"{found.value}, or ")

    @pytest.mark.parametrize("kind", ["beside another's manifest", "named", "cut off", "missing"])
    def test_of_lone_engines(self, own_bundle, edit_manifest, both_refuse, kind):
        plan = own_bundle / "model.engine"
        plan.write_bytes(b"plan")
        entry = {
            "file": plan.name,
            "kind": "engine",
            "precision": "fp16",
            "size": 4,
            "sha256": "0" * 64,
            "engine": ENGINE,
        }
        if kind != "beside another's manifest":
            edit_manifest(own_bundle, lambda data: data["artefacts"].append(entry))
        if kind == "cut off":
            plan.write_bytes(b"pla")
        if kind == "missing":
            plan.unlink()
        both_refuse(plan)


class TestRunning:
    def test_tensors_that_do_not_fit(self, own_bundle, library):
        good = np.zeros((1, 3, 16, 16), np.float32)
        bad = {
            "missing": {},
            "unknown": {"input": good, "other": good},
            "shape": {"input": good[:, :2]},
            "empty": {"input": good[:0]},
            "NaN": {"input": np.full_like(good, np.nan)},
        }
        with library.load(own_bundle, "fp32") as cpp, runtime.load(own_bundle, "fp32", "openvino") as python:
            for feeds in bad.values():
                with pytest.raises(InputError) as wanted:
                    python.session.run(feeds)
                with pytest.raises(library.Error) as found:
                    cpp.run(feeds)
                assert (found.value.status, str(found.value)) == ("input", str(wanted.value))
            with pytest.raises(library.Error, match="the input 'input' is int32: expected float32"):
                cpp.run({"input": good.astype(np.int32)})

    def test_after_closing(self, own_bundle, library, picture):
        with library.load(own_bundle) as cpp, runtime.load(own_bundle, backend="openvino") as python:
            for model in (cpp, python):
                model.close()
                model.close()
            with pytest.raises(BackendError) as wanted:
                python(picture)
            with pytest.raises(library.Error) as found:
                cpp.classify([picture])
            assert (found.value.status, str(found.value)) == ("backend", str(wanted.value))

    def test_while_another_thread_closes(self, own_bundle, library, c_interface, picture):
        with library.load(own_bundle, "fp32", concurrency=2) as model:
            (wanted,) = model.classify([picture])
            started, problems = threading.Barrier(5), []

            def run():
                started.wait()
                try:
                    while True:
                        (found,) = model.classify([picture])
                        if found[0] != wanted[0]:
                            problems.append(found)
                except c_interface.CError as e:
                    if "session is closed" not in str(e):
                        problems.append(e)

            threads = [threading.Thread(target=run) for _ in range(4)]
            for thread in threads:
                thread.start()
            started.wait()
            for _ in range(50):
                model.classify([picture])
            model.close()
            for thread in threads:
                thread.join()
        assert problems == []

    def test_a_network_of_a_fixed_batch(self, tmp_path, make_bundle, network, library, picture):
        folder = make_bundle(tmp_path / "b", {"fp32": network(batch=4)})
        with library.load(folder) as cpp, runtime.load(folder, backend="openvino") as python:
            for count in (1, 4, 6):
                found, wanted = cpp.classify([picture] * count), python([picture] * count)
                assert len(found) == count
                for (_, logits), answer in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(logits, answer.logits, rtol=1e-5)

    def test_answers_that_are_not_finite(self, tmp_path, make_bundle, network, library, picture):
        folder = make_bundle(tmp_path / "b", {"fp32": network(bias=np.nan)})
        with library.load(folder) as cpp, runtime.load(folder, backend="openvino") as python:
            with pytest.raises(BackendError) as wanted:
                python(picture)
            with pytest.raises(library.Error) as found:
                cpp.classify([picture])
        assert (found.value.status, str(found.value)) == ("backend", str(wanted.value))

    def test_frames_that_are_none(self, own_bundle, library, c_interface, picture):
        def broken(**changes):
            frame = c_interface.frame_of(picture)
            for key, value in changes.items():
                setattr(frame, key, value)
            return frame

        frames = {
            "no pixels": broken(pixels=None),
            "no width": broken(width=0),
            "negative height": broken(height=-3),
            "absurd width": broken(width=2**31 - 1),
            "a stride below a row": broken(stride=89),
            "a region outside": broken(region=(ctypes.c_int32 * 4)(25, 0, 6, 5)),
            "a region without extent": broken(region=(ctypes.c_int32 * 4)(1, 1, 0, 0)),
            "odd NV12": broken(format=c_interface.NV12, width=29),
        }
        with library.load(own_bundle) as model:
            for what, frame in frames.items():
                with pytest.raises(c_interface.CError) as found:
                    model.classify([picture, frame])
                assert found.value.status == "image", what
            with pytest.raises(c_interface.CError) as found:
                model.classify([broken(format=99)])
            assert found.value.status == "argument"
            assert len(model.classify([picture])) == 1

    def test_frames_of_another_size_than_the_networks(self, tmp_path, make_bundle, library):
        nodes = [
            helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["logits"], axes=[1, 2], keepdims=0),
        ]
        frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, ["batch", 20, 30, 3])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
        graph = helper.make_graph(nodes, "frames", [frame], [logits])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        folder = make_bundle(
            tmp_path / "b",
            {"fp32": model.SerializeToString()},
            labels=("r", "g", "b"),
            inputs=(TensorSpec("frame", "uint8", ("batch", 20, 30, 3)),),
            outputs=(TensorSpec("logits", "float32", ("batch", 3)),),
            frame=FrameSpec("rgb", (20, 30), True),
        )
        good = np.full((20, 30, 3), 7, np.uint8)
        with library.load(folder) as cpp, runtime.load(folder, backend="openvino") as python:
            assert len(cpp.classify([good] * 40)) == 40
            for images in (
                [good[:19]],
                [good, good[:, :-1]],
                [good] * 39 + [good[:3]],
                [np.zeros((21, 31, 3), np.uint8)],
            ):
                with pytest.raises(ImageError) as wanted:
                    python(images)
                with pytest.raises(library.Error) as found:
                    cpp.classify(images)
                assert (found.value.status, str(found.value)) == ("image", str(wanted.value))

    def test_no_frames_at_all(self, own_bundle, library):
        with library.load(own_bundle, "fp32") as cpp, runtime.load(own_bundle, "fp32", "openvino") as python:
            assert cpp.classify([]) == python([]) == []
            assert cpp.run_images([]) == python.run([]) == {}
            with pytest.raises(ImageError) as wanted:
                python.feeds([])
            with pytest.raises(library.Error) as found:
                cpp.feeds([])
        assert (found.value.status, str(found.value)) == ("image", str(wanted.value))

    def test_raw_heads(self, tmp_path, make_bundle, network, library, picture):
        folder = make_bundle(tmp_path / "b", {"fp32": network()}, task="detection")
        with library.load(folder) as cpp, runtime.load(folder, backend="openvino") as python:
            with pytest.raises(BundleError) as wanted:
                python(picture)
            with pytest.raises(library.Error) as found:
                cpp.detect([picture])
            assert str(found.value) == str(wanted.value).replace("Model.run", "Model::run")
            np.testing.assert_allclose(cpp.run_images([picture])["logits"], python.run(picture)["logits"], rtol=1e-5)


def test_mutated_manifests_are_clean_errors(cpp_build):
    program = cpp_build.folder / "tests" / "holocron_mutate"
    done = subprocess.run([str(program), "3000", "7"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["manifests"]["refused"] > 1000
    assert counts["bundles"]["refused"] > 50


def test_the_library_needs_nothing_that_was_not_asked_for(cpp_build):
    command = ["readelf", "-d", str(cpp_build.library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    needed = {line.split("[")[1].split(".so")[0] for line in done.stdout.splitlines() if "(NEEDED)" in line}
    system = {"libcrypto", "libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert needed - system <= {"libopenvino", "libonnxruntime", "libcudart"}
