"""What counts as broken, from figures worked out by hand."""

import math
import shutil

import numpy as np
import pytest
from PIL import Image

from calib import find_images
from calib.errors import CalibrationError
from export import Tolerances, export_model
from export.errors import ExportError, VerificationError
from export.verify import Comparison, FrameStream, Remembered, VerificationImages, check, compare_networks
from runtime.manifest import Artefact, FrameSpec, Manifest, frame_inputs
from runtime.preprocess import Preprocessor

REFERENCE = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]], np.float32)


def compare(ours, reference, name, targets=None):
    comparison = Comparison()
    comparison.add({"scores": ours}, {"scores": reference})
    return comparison.result(name, targets)


def artefact(precision="fp32", file="model.onnx"):
    return Artefact(file, "onnx", precision, 1, "0" * 64, scheme="cpu" if precision == "int8" else None)


def test_figures():
    ours = REFERENCE + np.array([[0, 0, 5], [0, 0, 0]], np.float32)
    result = compare(ours, REFERENCE, "pytorch", [2, 2])
    assert result.images == result.labelled_images == 2
    assert result.relative_error == pytest.approx(5 / math.sqrt(50))
    assert result.cosine == pytest.approx(5 / math.sqrt(50))  # of the worse image
    assert result.top1_agreement == 0.5
    assert (result.accuracy, result.reference_accuracy) == (1.0, 0.5)
    assert (result.reference, result.backend) == ("pytorch", "onnxruntime")


def test_no_labels_no_accuracy():
    result = compare(REFERENCE, REFERENCE, "pytorch")
    assert (result.accuracy, result.reference_accuracy, result.labelled_images) == (None, None, 0)
    assert (result.relative_error, result.top1_agreement) == (0.0, 1.0)
    assert result.cosine == pytest.approx(1)


def test_answers_of_zeros_are_the_same_answer():
    zeros = np.zeros((2, 3), np.float32)
    result = compare(zeros, zeros, "pytorch")
    assert (result.relative_error, result.cosine) == (0, 1)


def test_large_scores_do_not_overflow():
    big = np.full((2, 3), 1e38, np.float32)
    assert compare(big, big, "pytorch").cosine == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("trained", [True, False])
def test_nan_is_a_failure(bad, precision, trained):
    ours = REFERENCE.copy()
    ours[1, 0] = bad
    with pytest.raises(VerificationError, match="relative error"):
        check(artefact(precision), compare(ours, REFERENCE, "pytorch"), Tolerances(), trained)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 3e-2), ("int8", 0.5)])
def test_each_precision_has_its_bound(precision, bound):
    for factor, passes in ((0.99, True), (1.01, False)):
        result = compare(REFERENCE * np.float32(1 + factor * bound), REFERENCE, "pytorch")
        if passes:
            check(artefact(precision), result, Tolerances(), trained=True)
        else:
            with pytest.raises(VerificationError, match=r"^model\.onnx does not answer as pytorch does: "):
                check(artefact(precision), result, Tolerances(), trained=True)


def one_hot(classes):
    return np.eye(10, dtype=np.float32)[classes] + 10


def test_agreement_counts_where_weights_are_trained():
    reference, ours = one_hot([0] * 10), one_hot([0] * 5 + [1] * 5)
    result = compare(ours, reference, "pytorch")
    with pytest.raises(VerificationError, match=r"top-1 agreement 50\.0% on 10 images \(at least 60%\).*--calib"):
        check(artefact("int8"), result, Tolerances(), trained=True)
    check(artefact("int8"), result, Tolerances(), trained=False)
    check(artefact("int8"), result, Tolerances(int8_agreement=0.5), trained=True)


def test_accuracy_counts_where_there_are_labels():
    reference, ours = one_hot([0] * 10), one_hot([0] * 8 + [1] * 2)
    result = compare(ours, reference, "pytorch", [0] * 10)
    with pytest.raises(VerificationError, match=r"accuracy 80\.00% where the reference has 100\.00% \(at most 10 p"):
        check(artefact("int8"), result, Tolerances(), trained=True)
    check(artefact("int8"), result, Tolerances(int8_accuracy_drop=0.2001), trained=True)


@pytest.fixture
def some_broken(photos, tmp_path):
    """Twelve photographs of which the third, the fourth and the last are no images."""
    folder = tmp_path / "some_broken"
    shutil.copytree(photos, folder)
    paths = find_images(folder)
    paths[2].write_bytes(b"no image")
    paths[3].write_bytes(b"")
    paths[11].write_bytes(paths[11].read_bytes()[:100])
    return folder, (2, 3, 11)


def test_images_are_read_once_and_those_that_cannot_be_are_left_out(some_broken, preprocessing):
    folder, broken = some_broken
    paths = find_images(folder)
    seen, done = [], []

    def mean(_, batch):
        return {"mean": batch.mean((2, 3))}

    def keeping(batch):
        seen.append(batch)
        return {"mean": -batch.mean((2, 3))}

    images, compared = VerificationImages(paths, preprocessing), Comparison()
    compare_networks(keeping, mean, images, compared, lambda i, n: done.append((i, n)))
    assert images.read == [i for i in range(12) if i not in broken]
    assert done == [(8, 12), (9, 12)]
    assert compared.result("x").relative_error == pytest.approx(2)
    assert compared.result("x").images == 9
    np.testing.assert_array_equal(
        np.concatenate(seen), Preprocessor(preprocessing).batch([paths[i] for i in images.read])
    )


def test_what_fits_into_memory_is_read_once(some_broken, preprocessing, monkeypatch):
    folder, _ = some_broken
    frame = FrameSpec("rgb", (60, 80), False)
    manifest = Manifest(
        "tiny", "classification", ("a",), frame_inputs(frame, preprocessing), (), preprocessing, frame=frame
    )
    paths = find_images(folder)
    kept = {
        "images": VerificationImages(paths, preprocessing),
        "frames": VerificationImages(paths, preprocessing, FrameStream(paths, manifest)),
    }
    first = {name: list(images) for name, images in kept.items()}
    assert [len(batch) for _, batch in first["images"]] == [8, 1]
    assert all(fed is batch for fed, batch in first["images"])
    assert [len(batch) for _, batch in first["frames"]] == [1] * 9
    monkeypatch.setattr("export.verify._REMEMBERED_BYTES", 9 * 3 * 24 * 20 * 4 - 1)  # all but the last value
    too_many = VerificationImages(paths, preprocessing)
    assert len(list(too_many)) == 2
    shutil.rmtree(folder)
    for name, images in kept.items():
        again = list(images)
        assert images.read == [0, 1, *range(4, 11)]
        assert all(a is b and fed is other for (fed, a), (other, b) in zip(again, first[name], strict=True))
    with pytest.raises(CalibrationError, match="none of the 12 images is readable"):  # read again, not kept by halves
        list(too_many)


def test_a_reference_is_run_once_while_there_is_room(monkeypatch):
    calls = []

    def network(batch):
        calls.append(batch)
        return {"out": batch * 2}

    remembered = Remembered(network)
    batches = [np.full((2, 3), i, np.float32) for i in range(3)]
    for _ in range(2):
        for batch in batches:
            np.testing.assert_array_equal(remembered(batch.copy())["out"], batch * 2)
    assert len(calls) == 3
    monkeypatch.setattr("export.verify._REMEMBERED_BYTES", 30)
    full = Remembered(network)
    for _ in range(2):
        for batch in batches:
            np.testing.assert_array_equal(full(batch)["out"], batch * 2)
    assert len(calls) == 3 + 3 + 2


@pytest.fixture(scope="module")
def labelled(tiny_bundle, photos, tmp_path_factory):
    """The photographs in a folder for each label that PyTorch's graph gives them: the reference is always right."""
    import runtime

    folder = tmp_path_factory.mktemp("labelled")
    model = runtime.load(tiny_bundle, "fp32", "onnxruntime")
    for path in find_images(photos):
        target = folder / model(path).top(1)[0].label
        target.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder


def test_accuracy_on_labelled_folders(own_bundle, tiny_bundle, labelled, photos, tmp_path):
    result = export_model(tiny_bundle, tmp_path / "out", int8=True, force=True, calib=photos, eval_folder=labelled)
    made = [a for a in result.manifest.artefacts if a.file in result.made]
    assert len(made) == 2
    for a in made:
        assert a.verification.reference == "onnx-fp32"
        assert a.verification.labelled_images == a.verification.images == 12
        assert a.verification.reference_accuracy == 1
        # With the reference always right, to be accurate is to agree.
        assert a.verification.accuracy == a.verification.top1_agreement
    kept = next(a for a in result.manifest.artefacts if a.precision == "fp32")
    assert kept.verification.reference == "pytorch"


def test_skipped_images_keep_labels_aligned(tiny_bundle, labelled, photos, tmp_path):
    folder = tmp_path / "eval"
    shutil.copytree(labelled, folder)
    for path in find_images(folder)[::3]:
        # Unreadable, and first of its folder: whoever counts wrongly gives its label to the next.
        path.with_name(f"00_{path.name}").write_bytes(b"no image")
    result = export_model(tiny_bundle, tmp_path / "out", fp16=True, force=True, eval_folder=folder)
    (made,) = [a for a in result.manifest.artefacts if a.file in result.made]
    assert made.verification.images == 12
    assert made.verification.reference_accuracy == 1
    assert any("4 of 16 verification images could not be read" in w for w in result.warnings)


def test_a_failed_verification_leaves_no_bundle(tiny_bundle, photos, tmp_path, holds_only):
    strict = Tolerances(int8=1e-9)
    with pytest.raises(VerificationError, match=r"model\.int8\.(cpu|trt)\.onnx does not answer as onnx-fp32 does"):
        export_model(tiny_bundle, tmp_path / "new" / "out", int8=True, force=True, calib=photos, tolerances=strict)
    assert holds_only(tmp_path)


def test_a_failed_verification_leaves_the_old_bundle(own_bundle, photos, holds_only):
    before = {p.name: p.read_bytes() for p in own_bundle.iterdir()}
    with pytest.raises(VerificationError):
        export_model(own_bundle, int8=True, calib=photos, tolerances=Tolerances(int8=1e-9))
    assert {p.name: p.read_bytes() for p in own_bundle.iterdir()} == before
    assert holds_only(own_bundle.parent, "own")


def test_a_network_that_overflows_float16_is_refused(tmp_path, tiny_net, preprocessing, photos, holds_only):
    """Constants fit, activations do not: only running it shows that."""
    import torch

    class Loud(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_net()

        def forward(self, x):
            return self.net(x * 6e4) / 6e4

    bundle = export_model(Loud(), tmp_path / "out", preprocessing=preprocessing, calib=photos).bundle
    for option in ("fp16", "int8"):
        with pytest.raises(ExportError, match=r"reaches .*e\+05 on these images, float16 ends at 65504"):
            export_model(bundle, calib=photos, **{option: True})
        assert holds_only(tmp_path, "out")
        assert holds_only(bundle, "manifest.json", "model.onnx")


@pytest.mark.parametrize("kind", ["no image", "unreadable", "no folder of a label"])
def test_evaluation_folders_that_cannot_serve(own_bundle, tmp_path, kind):
    folder = tmp_path / "eval"
    (folder / "0").mkdir(parents=True)
    if kind == "unreadable":
        (folder / "0" / "a.png").write_bytes(b"no image")
    elif kind == "no folder of a label":
        Image.new("RGB", (4, 4)).save(folder / "0" / "a.png")
        (folder / "0").rename(folder / "zebra")
    with pytest.raises(CalibrationError):
        export_model(own_bundle, fp16=True, eval_folder=folder)
    assert sorted(p.name for p in own_bundle.iterdir()) == ["manifest.json", "model.onnx"]
