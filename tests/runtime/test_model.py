"""`runtime.load` and the model that it gives."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import runtime
from runtime import BackendError, BundleError, Classification, ImageError, backends, cpu, model
from runtime.backends import cuda, unavailable
from runtime.manifest import TensorSpec, read_manifest


@pytest.fixture
def tiny(bundle):
    with runtime.load(bundle, backend="onnxruntime", threads=1) as opened:
        yield opened


class TestCalling:
    def test_every_kind_of_image_gives_the_same_answer(self, tiny, picture, tmp_path):
        Image.fromarray(picture).save(tmp_path / "a.png")
        expected = tiny(picture).logits
        for image in (Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
            found = tiny(image)
            assert isinstance(found, Classification)
            np.testing.assert_array_equal(found.logits, expected)
        assert tiny(picture).labels == ("cat", "dog", "eel", "fox")

    def test_it_is_preprocessing_and_then_the_session(self, tiny, picture):
        x = tiny.preprocess(picture)
        assert x.shape == (1, 3, 16, 16)
        np.testing.assert_array_equal(tiny.session.run(x)["logits"][0], tiny(picture).logits)
        assert tiny.preprocess([picture, picture]).shape == (2, 3, 16, 16)

    @pytest.mark.parametrize("kind", [list, tuple, np.stack])
    def test_several_images_give_a_list_in_their_order(self, tiny, kind):
        images = [np.full((8, 8, 3), 3 * i, np.uint8) for i in range(70)]  # more than one chunk
        found = tiny(kind(images))
        assert isinstance(found, list)
        for image, answer in zip(images, found, strict=True):
            np.testing.assert_allclose(answer.logits, tiny(image).logits, rtol=1e-5)

    def test_no_images_give_no_answers(self, tiny):
        assert tiny([]) == []
        assert tiny(()) == []
        assert tiny(np.zeros((0, 8, 8, 3), np.uint8)) == []

    def test_a_bad_image_is_an_error_that_names_it(self, tiny, picture, tmp_path):
        with pytest.raises(ImageError, match=r"none\.png"):
            tiny(tmp_path / "none.png")
        with pytest.raises(ImageError, match=r"none\.png"):
            tiny([picture, tmp_path / "none.png"])
        with pytest.raises(ImageError, match="image 1 is float32"):
            tiny([picture, picture.astype(np.float32)])
        with pytest.raises(ImageError, match="the batch of images is float32"):
            tiny(picture[None].astype(np.float32))
        with pytest.raises(ImageError, match="is a NoneType"):
            tiny(None)

    def test_a_closed_model_is_an_error(self, bundle, picture):
        with runtime.load(bundle, backend="onnxruntime") as opened:
            opened(picture)
        opened.close()
        with pytest.raises(BackendError, match="closed: load the model again"):
            opened(picture)
        assert "closed" in repr(opened)

    def test_several_threads_share_it(self, bundle, cpu_backend):
        images = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(12)]
        with runtime.load(bundle, "fp32", cpu_backend, threads=1) as opened:
            expected = [opened(image).logits for image in images]
            barrier = threading.Barrier(6)

            def work(_):
                barrier.wait()
                for _ in range(10):
                    for image, logits in zip(images, expected, strict=True):
                        np.testing.assert_array_equal(opened(image).logits, logits)

            with ThreadPoolExecutor(6) as pool:
                list(pool.map(work, range(6)))

    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_network_of_fixed_batch_is_fed_in_pieces(
        self, tmp_path, make_bundle, network, bundle, cpu_backend, batch
    ):
        fixed_bundle = make_bundle(
            tmp_path / "fixed",
            {"fp32": network(batch=batch)},
            inputs=(TensorSpec("input", "float32", (batch, 3, 16, 16)),),
        )
        images = [np.full((8, 8, 3), 20 * i, np.uint8) for i in range(10)]
        with runtime.load(fixed_bundle, backend=cpu_backend, threads=1) as fixed:
            found = [a.logits for a in fixed(images)]
            with runtime.load(bundle, "fp32", cpu_backend, threads=1) as dynamic:
                np.testing.assert_allclose(found, [a.logits for a in dynamic(images)], rtol=1e-5, atol=1e-6)
            assert fixed(images[0]).logits.shape == (4,)

    def test_nan_from_the_network_is_an_error(self, tmp_path, make_bundle, network, picture):
        bundle = make_bundle(tmp_path / "nan", {"fp32": network(bias=np.nan)})
        with (
            runtime.load(bundle, backend="onnxruntime") as opened,
            pytest.raises(BackendError, match="NaN or infinite values in fp32 on onnxruntime"),
        ):
            opened(picture)

    def test_repr_says_what_is_open(self, tiny):
        assert repr(tiny) == "Model('tiny', 4 classes, int8.cpu, onnxruntime on cpu)"


class TestChoosing:
    def test_the_best_is_int8_of_the_scheme_that_suits(self, bundle, cpu_backend):
        with runtime.load(bundle, backend=cpu_backend) as opened:
            assert (opened.precision, opened.backend, opened.device) == ("int8.cpu", cpu_backend, "cpu")
            assert opened.artefact == read_manifest(bundle).artefacts[1]
            assert opened.manifest == read_manifest(bundle)
            assert opened.threads == cpu.default_threads()

    @pytest.mark.parametrize(
        ("precision", "opened_as"),
        [
            ("fp32", "fp32"),
            ("float32", "fp32"),
            ("int8", "int8.cpu"),
            ("int8.cpu", "int8.cpu"),
            ("int8.trt", "int8.trt"),
        ],
    )
    def test_a_precision_can_be_asked_for(self, bundle, precision, opened_as):
        with runtime.load(bundle, precision, "onnxruntime") as opened:
            assert opened.precision == opened_as

    def test_without_int8_it_is_fp32(self, tmp_path, make_bundle, network):
        bundle = make_bundle(tmp_path / "b", {"int8.trt": network("int8.trt"), "fp32": network()})
        with runtime.load(bundle) as opened:
            assert opened.precision == "fp32"

    def test_a_precision_that_is_not_there_is_refused_with_those_that_are(self, tmp_path, make_bundle, network, bundle):
        with pytest.raises(BackendError, match=r"has no fp16: it has fp32, int8\.cpu, int8\.trt"):
            runtime.load(bundle, "fp16")
        only_trt = make_bundle(tmp_path / "b", {"fp32": network(), "int8.trt": network("int8.trt")})
        with pytest.raises(BackendError, match=r"has no int8\.cpu, which int8 means on .*: it has fp32, int8\.trt"):
            runtime.load(only_trt, "int8")
        with pytest.raises(BackendError, match="there is no precision 'int4': expected one of fp32, fp16, int8"):
            runtime.load(bundle, "int4")

    def test_a_backend_that_is_not_there_is_refused_with_those_that_are(self, bundle, monkeypatch):
        with pytest.raises(BackendError, match="there is no backend 'tflite'"):
            runtime.load(bundle, backend="tflite")
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(
            BackendError, match=r'pip install "holocron-edge\[openvino\]"; available here: onnxruntime$'
        ):
            runtime.load(bundle, backend="openvino")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BackendError, match=r"no backend to run the network.*holocron-edge\[cpu\]"):
            runtime.load(bundle)

    def test_devices(self, bundle, monkeypatch):
        with runtime.load(bundle, device="cpu") as opened:
            assert opened.device == "cpu"
        monkeypatch.setattr(cuda, "device_count", lambda: 0)
        with pytest.raises(BackendError, match="no backend here runs on the device 'cuda:0'"):
            runtime.load(bundle, device="cuda:0")
        with pytest.raises(BackendError, match="openvino has no device 'npu9': expected one of cpu"):
            runtime.load(bundle, device="npu9")

    @pytest.mark.parametrize(
        ("variants", "backend", "chosen"),
        [
            (("fp32", "fp16", "int8.cpu", "int8.trt"), "onnxruntime-tensorrt", "int8.trt"),
            (("fp32", "fp16", "int8.cpu"), "onnxruntime-tensorrt", "fp16"),
            (("fp32", "fp16", "int8.cpu", "int8.trt"), "onnxruntime-cuda", "fp16"),
            (("fp32", "int8.cpu"), "onnxruntime-cuda", "fp32"),
            (("fp32", "fp16", "int8.trt"), "openvino", "fp32"),
            (("fp16",), "onnxruntime", "fp16"),
        ],
    )
    def test_the_variant_suits_the_backend(self, tmp_path, manifest_of, variants, backend, chosen):
        source = model._Source(tmp_path, manifest_of(), dict.fromkeys(variants))
        assert model._variant(source, None, backend) == chosen

    def test_a_gpu_that_does_not_open_the_network_is_passed_over(self, bundle, monkeypatch):
        tried = []

        def refuse(file, name, threads, device, precision, **options):
            tried.append((name, precision))
            if name.startswith("onnxruntime-"):
                raise BackendError("no")
            return backends.open_session(file, name, threads, device, precision, **options)

        monkeypatch.setattr(model, "available_backends", lambda: ("onnxruntime-tensorrt", "onnxruntime"))
        monkeypatch.setattr(model, "open_session", refuse)
        with runtime.load(bundle) as opened:
            assert opened.backend == "onnxruntime"
        assert tried == [("onnxruntime-tensorrt", "int8.trt"), ("onnxruntime", "int8.cpu")]

    def test_threads_are_checked(self, bundle):
        with pytest.raises(ValueError, match="threads is 0"):
            runtime.load(bundle, threads=0)
        with pytest.raises(TypeError, match=r"threads is 1\.5"):
            runtime.load(bundle, threads=1.5)


class TestOpening:
    def test_an_edited_network_is_refused(self, own_bundle):
        file = own_bundle / "model.int8.cpu.onnx"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(BundleError, match="SHA-256"):
            runtime.load(own_bundle)
        runtime.load(own_bundle, "fp32").close()  # the other file is whole

    def test_what_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
            runtime.load(tmp_path)
        with pytest.raises(BundleError, match="is not there: expected a bundle's folder or an ONNX file"):
            runtime.load(tmp_path / "none")

    def test_engines_are_passed_over(self, own_bundle, edit_manifest):
        def add(data):
            engine = {"library": "tensorrt", "version": "10.3", "compute_capability": "8.7", "max_batch": 1}
            data["artefacts"].insert(0, data["artefacts"][1] | {"file": "a.engine", "kind": "engine", "engine": engine})

        edit_manifest(own_bundle, add)
        with runtime.load(own_bundle) as opened:
            assert opened.artefact.file == "model.int8.cpu.onnx"
        edit_manifest(own_bundle, lambda data: data.update(artefacts=data["artefacts"][:1]))
        with pytest.raises(BackendError, match="has no ONNX file, which onnxruntime opens: export the model again"):
            runtime.load(own_bundle, backend="onnxruntime")
        if unavailable("tensorrt") is not None:  # the one backend that would open it, which says why it does not
            with pytest.raises(BackendError, match=r"^tensorrt (is not installed|needs an NVIDIA GPU)"):
                runtime.load(own_bundle)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": ("a", "b")}, "2 labels do not fit"),
            (
                {"inputs": (TensorSpec("image", "float32", ("batch", 3, 16, 16)),)},
                "'image' of float32, the network has",
            ),
            ({"outputs": (TensorSpec("logits", "int64", ("batch", 4)),)}, "'logits' of int64, the network has"),
        ],
    )
    def test_a_manifest_of_another_network_is_refused(self, tmp_path, make_bundle, network, changes, message):
        bundle = make_bundle(tmp_path / "b", {"fp32": network()}, **changes)
        with pytest.raises(BundleError, match=message):
            runtime.load(bundle)

    def test_a_size_that_the_network_does_not_take_is_refused(self, own_bundle, edit_manifest):
        edit_manifest(own_bundle, lambda data: data["preprocessing"].update(size=[32, 32]))
        with pytest.raises(BundleError, match="preprocessing gives"):
            runtime.load(own_bundle)

    def test_a_lone_onnx_file_opens(self, lone_onnx, bundle, picture, cpu_backend):
        with runtime.load(lone_onnx, backend=cpu_backend) as lone, runtime.load(bundle, backend=cpu_backend) as whole:
            assert (lone.precision, lone.artefact) == ("int8.cpu", None)
            np.testing.assert_array_equal(lone(picture).logits, whole(picture).logits)
        runtime.load(lone_onnx, "int8").close()
        with pytest.raises(BackendError, match=r"has no fp32: it has int8\.cpu"):
            runtime.load(lone_onnx, "fp32")

    def test_a_lone_onnx_file_may_leave_its_precision_out(self, tmp_path, network, manifest_of):
        metadata = {runtime.manifest.METADATA_KEY: manifest_of().to_json()}
        (tmp_path / "a.onnx").write_bytes(network(metadata=metadata))
        with runtime.load(tmp_path / "a.onnx") as opened:
            assert opened.precision == "unknown"

    def test_a_stranger_s_onnx_file_is_refused(self, tmp_path, network):
        (tmp_path / "a.onnx").write_bytes(network())
        with pytest.raises(BundleError, match="without Holocron Edge's metadata"):
            runtime.load(tmp_path / "a.onnx")
        (tmp_path / "b.onnx").write_bytes(network(metadata={runtime.manifest.METADATA_KEY: json.dumps({})}))
        with pytest.raises(BundleError, match=r"the metadata of .*b\.onnx has schema version None"):
            runtime.load(tmp_path / "b.onnx")
        (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff")
        with pytest.raises(BundleError, match="is not an ONNX file"):
            runtime.load(tmp_path / "c.jpg")
