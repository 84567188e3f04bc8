"""The C++ runtime beside the Python runtime: the same bundles and photographs, the same answers."""

import subprocess

import numpy as np
import pytest
from parity_bundles import MAX_FRAME, REAL, TINY

import runtime

RELATIVE = 1e-5


def with_precisions(specs, *marks):
    """One parameter a bundle and precision."""
    return [
        pytest.param((name, precision), id=f"{name}-{precision}", marks=marks)
        for name, spec in specs.items()
        for precision in spec.precisions
    ]


@pytest.fixture(params=with_precisions(TINY) + with_precisions(REAL, pytest.mark.slow))
def opened(request, backend, exported, library):
    """A bundle in both runtimes, on the same backend with one thread."""
    name, precision = request.param
    folder = exported(name)
    with (
        runtime.load(folder, precision, backend, 1) as python,
        library.load(folder, precision, backend) as cpp,
    ):
        yield python, cpp


def in_order(model, images):
    """Arrays as the Python runtime takes them: of a network of BGR frames they are in that order."""
    frame = model.manifest.frame
    return [image[..., ::-1] for image in images] if frame is not None and frame.channels == "bgr" else images


def same_classification(found, wanted):
    classes, logits = found
    expected = wanted.top(len(classes))
    assert len(classes) == len(wanted.top(1000))
    assert [c[0] for c in classes] == [p.index for p in expected]
    assert [c[2] for c in classes] == [p.label for p in expected]
    np.testing.assert_allclose([c[1] for c in classes], [p.score for p in expected], rtol=RELATIVE)
    if logits is None:
        assert not hasattr(wanted, "logits")
    else:
        np.testing.assert_allclose(logits, wanted.logits, rtol=RELATIVE, atol=1e-6)


def same_detections(found, wanted):
    objects, status = found
    assert status == wanted.status
    assert [o[2] for o in objects] == wanted.labels.tolist()
    np.testing.assert_allclose([o[1] for o in objects], wanted.scores, rtol=RELATIVE)
    np.testing.assert_allclose(np.reshape([o[0] for o in objects], (-1, 4)), wanted.boxes, rtol=RELATIVE, atol=1e-4)


def same_segmentation(found, wanted):
    cells, pixels, classes = found
    np.testing.assert_array_equal(cells, wanted.class_map)
    np.testing.assert_array_equal(pixels, wanted.resized())
    assert [(c[0], c[1], c[2]) for c in classes] == [(r.index, r.share, r.label) for r in wanted.regions()]


SAME = {"classification": same_classification, "detection": same_detections, "segmentation": same_segmentation}
METHODS = {"classification": "classify", "detection": "detect", "segmentation": "segment"}


class TestAnswers:
    def test_of_one_photograph_after_the_other(self, opened, photographs):
        python, cpp = opened
        assert len(photographs) >= 4
        for image in photographs:
            (found,) = getattr(cpp, METHODS[python.task])([image])
            SAME[python.task](found, python(in_order(python, [image])[0]))

    def test_of_a_batch(self, opened, photographs):
        python, cpp = opened
        images = photographs * 8
        found = getattr(cpp, METHODS[python.task])(images)
        wanted = python(in_order(python, images))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            SAME[python.task](one, other)

    def test_of_nothing(self, opened):
        python, cpp = opened
        assert getattr(cpp, METHODS[python.task])([]) == python([]) == []

    def test_say_where_they_come_from(self, opened):
        python, cpp = opened
        for what in ("precision", "backend", "device"):
            assert cpp.text(what) == getattr(python, what)
        assert cpp.text("artefact") == python.artefact.file
        assert cpp.text("name") == python.manifest.name


class TestTensors:
    def test_the_network_is_fed_the_same_bytes(self, opened, photographs):
        python, cpp = opened
        for images in ([photographs[0]], photographs):
            found, wanted = cpp.feeds(images), python.feeds(in_order(python, images))
            assert set(found) == set(wanted)
            for name, array in wanted.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)

    def test_outputs_are_the_same(self, opened, photographs):
        python, cpp = opened
        wanted = python.run(in_order(python, photographs))
        for found in (cpp.run_images(photographs), cpp.run(python.feeds(in_order(python, photographs)))):
            assert set(found) == set(wanted)
            for name, array in wanted.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                np.testing.assert_allclose(found[name], array, rtol=RELATIVE, atol=1e-6)


def luma_and_chroma(rgb):
    """A frame in NV12 `(3/2 H, W)` that is made of a photograph, and the colours that it has as BT.601 says."""
    luma, chroma = rgb[..., 1].copy(), rgb[::2, ::2, [2, 0]].astype(np.float64) - 128
    red_of_cr, blue_of_cb = 1.402 * 255 / 224, 1.772 * 255 / 224
    cb, cr = (chroma[..., i].repeat(2, 0).repeat(2, 1) for i in range(2))
    while True:
        y = (luma.astype(np.float64) - 16) * 255 / 219
        green = y - blue_of_cb * 0.114 / 0.587 * cb - red_of_cr * 0.299 / 0.587 * cr
        exact = np.stack([y + red_of_cr * cr, green, y + blue_of_cb * cb], -1)
        unclear = (np.abs(exact - np.floor(exact) - 0.5) < 0.001).any(-1)  # which way it is rounded
        if not unclear.any():
            break
        luma[unclear] -= 1
    planes = np.concatenate([luma, rgb[::2, ::2, [2, 0]].reshape(-1, luma.shape[1])])
    return planes, np.clip(np.floor(exact + 0.5), 0, 255).astype(np.uint8)


def frames_of_every_kind(c, rgb):
    """Frames, each with the RGB pixels that it shows."""
    bgra = np.dstack([rgb[..., ::-1], np.zeros(rgb.shape[:2], np.uint8)])
    height, width = rgb.shape[:2]
    wide = np.zeros((height, width + 5, 3), np.uint8)
    wide[:, :width] = rgb
    large = np.full((height + 9, width + 8, 3), 77, np.uint8)
    large[4 : 4 + height, 3 : 3 + width] = rgb
    planes, colours = luma_and_chroma(rgb)
    nv12 = c.frame_of(planes, c.NV12)
    nv12.height = height
    kept = [rgb[..., ::-1].copy(), bgra[..., [2, 1, 0, 3]].copy(), rgb[..., 0].copy()]
    frames = [
        (c.frame_of(kept[0], c.BGR), rgb),
        (c.frame_of(kept[1], c.RGBA), rgb),
        (c.frame_of(bgra, c.BGRA), rgb),
        (c.frame_of(wide[:, :width]), rgb),
        (c.frame_of(large, c.RGB, (3, 4, width, height)), rgb),
        (c.frame_of(kept[2], c.GRAY), np.dstack([kept[2]] * 3)),
        (nv12, colours),
    ]
    return frames, [*kept, bgra, wide, large, planes]


class TestFrames:
    """Formats of all kinds, rows that lie apart, and parts of a picture."""

    def test_of_every_format_and_of_a_part(self, opened, c_interface, photographs):
        python, cpp = opened
        frames, kept = frames_of_every_kind(c_interface, photographs[0])
        shown = in_order(python, [rgb for _, rgb in frames])
        found, wanted = cpp.feeds([frame for frame, _ in frames]), python.feeds(shown)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
        for (frame, _), pixels in zip(frames, shown, strict=True):
            (answer,) = getattr(cpp, METHODS[python.task])([frame])
            SAME[python.task](answer, python(pixels))
        assert len(kept) == len(frames)

    def test_larger_than_the_network_takes(self, exported, library):
        folder = exported("frames")
        large = np.zeros((MAX_FRAME[0] + 1, 4, 3), np.uint8)
        with library.load(folder) as cpp, runtime.load(folder, backend="openvino") as python:
            with pytest.raises(library.Error, match="takes frames of up to") as found:
                cpp.classify([large])
            with pytest.raises(runtime.ImageError) as wanted:
                python([large])
        assert str(found.value) == str(wanted.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_answers_of_the_larger_networks_depend_on_the_photograph(exported, photographs, name):
    """Otherwise it would say little that two runtimes agree on them."""
    with runtime.load(exported(name), "fp32", "openvino", 1) as model:
        answers = model(in_order(model, photographs))
    if model.task == "classification":
        assert len({answer.top(1)[0].index for answer in answers}) >= 3
        assert max(answer.top(1)[0].score for answer in answers) > 0.1
    elif model.task == "detection":
        assert min(len(answer.labels) for answer in answers) >= 1
        assert len({label for answer in answers for label in answer.labels.tolist()}) >= 3
    else:
        assert all(len([r for r in answer.regions() if r.share > 0.02]) >= 3 for answer in answers)


def test_a_c_program_says_the_same(exported, openvino_build, photographs, tmp_path):
    program = openvino_build.program("holocron_c_program")
    image = photographs[0]
    (tmp_path / "image.rgb").write_bytes(image.tobytes())
    for name, precision in (("logits", "int8.cpu"), ("boxes", "fp32"), ("scores", "fp32")):
        folder = exported(name)
        height, width = image.shape[:2]
        command = [program, folder, precision, tmp_path / "image.rgb", width, height]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, timeout=60)
        lines = [line.split() for line in done.stdout.splitlines()]
        with runtime.load(folder, precision, "openvino", 1) as model:
            answer = model(image)
        if model.task == "detection":
            assert [int(line[0]) for line in lines] == answer.labels.tolist()
            numbers = np.array([line[1:] for line in lines], np.float64)
            np.testing.assert_allclose(numbers[:, 0], answer.scores, rtol=RELATIVE)
            np.testing.assert_allclose(numbers[:, 1:], answer.boxes, rtol=RELATIVE, atol=1e-4)
        else:
            entries = answer.top(99) if model.task == "classification" else answer.regions()
            scores = [e.score if model.task == "classification" else e.share for e in entries]
            assert [int(line[0]) for line in lines] == [e.index for e in entries]
            np.testing.assert_allclose([float(line[1]) for line in lines], scores, rtol=RELATIVE)
