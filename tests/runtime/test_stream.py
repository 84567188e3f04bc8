"""A stream of images: the same answers as one by one, in order; read ahead, but not far; and always ended cleanly."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from runtime import BackendError, ImageError, load
from runtime.stream import split_threads


def noise(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def model(bundle):
    with load(bundle, "fp32", threads=1) as model:
        yield model


def no_threads_left():
    for _ in range(100):
        if not any(thread.name.startswith("stream") for thread in threading.enumerate()):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_answers_are_those_of_single_calls_in_order(model, workers, tmp_path):
    images = [noise(i, 10 + i, 40 - i) for i in range(25)]
    for i in range(0, 25, 3):
        Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
        images[i] = tmp_path / f"{i}.png"
    answers = list(model.stream(iter(images), workers))
    assert [answer.index for answer in answers] == list(range(25))
    assert all(answer.image is image for answer, image in zip(answers, images, strict=True))
    for answer, image in zip(answers, images, strict=True):
        np.testing.assert_array_equal(answer.get().logits, model(image).logits)
    assert no_threads_left()


def test_nothing_gives_nothing(model):
    assert list(model.stream([])) == []


def test_an_image_that_cannot_be_taken_leaves_the_others(model, tmp_path):
    good, bad, gone = noise(0), np.zeros((2, 2), np.float32), tmp_path / "gone.png"
    first, second, third, last = model.stream([good, bad, gone, good], 2)
    assert (first.error, last.error) == (None, None)
    assert (second.result, third.result) == (None, None)
    for answer, message in ((second, "is float32"), (third, r"gone\.png")):
        with pytest.raises(ImageError, match=message):
            answer.get()


def test_the_source_is_read_ahead_but_not_far(model):
    read = []

    def source():
        for i in range(100):
            read.append(i)
            yield noise(i)

    answers = model.stream(source(), 2)
    for _ in range(3):
        next(answers)
    time.sleep(0.2)
    assert 3 < len(read) <= 3 + 2 * 2 + 1  # twice the workers, and the one that waits for room
    answers.close()
    assert no_threads_left()
    assert len(read) < 12


@pytest.mark.parametrize("taken", [1, 20])
def test_the_source_is_closed_at_the_end(model, taken):
    closed = threading.Event()

    def camera():
        try:
            for i in range(20):
                yield noise(i)
        finally:
            closed.set()

    answers = model.stream(camera(), 2)
    for _ in range(taken):
        next(answers)
    assert next(answers, None) is None or taken < 20
    answers.close()
    assert closed.wait(5)


def test_by_default_decoding_overlaps_with_the_network(bundle):
    with load(bundle, "fp32", threads=64) as model:
        assert len(list(model.stream([noise(i) for i in range(5)]))) == 5


def test_what_the_source_raises_comes_out_where_it_was(model):
    def source():
        yield noise(0)
        yield noise(1)
        raise ConnectionError("the camera is gone")

    answers = model.stream(source(), 3)
    assert [next(answers).index, next(answers).index] == [0, 1]
    with pytest.raises(ConnectionError, match="the camera is gone"):
        next(answers)
    assert no_threads_left()


def test_a_network_that_fails_ends_it(bundle):
    with load(bundle, "fp32", threads=1) as model:
        answers = model.stream((noise(i) for i in range(50)), 2)
        next(answers)
        model.close()
        with pytest.raises(BackendError, match="closed"):
            list(answers)
    assert no_threads_left()


def test_a_source_that_waits_does_not_hold_the_end_up(model):
    wait = threading.Event()

    def camera():
        yield noise(0)
        wait.wait()

    answers = model.stream(camera(), 2)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 10
    wait.set()
    assert no_threads_left()


def test_images_are_worked_on_at_once(model, monkeypatch):
    """Both are inside the call at the same time, or the barrier breaks."""
    barrier = threading.Barrier(2, timeout=20)
    single = type(model).__call__

    def call(self, image):
        barrier.wait()
        return single(self, image)

    monkeypatch.setattr(type(model), "__call__", call)
    assert len(list(model.stream([noise(i) for i in range(4)], 2))) == 4


def test_calls_at_once_are_answered_alike(bundle, cpu_backend):
    images = [noise(i) for i in range(12)]
    with load(bundle, "fp32", cpu_backend, threads=1, concurrency=2) as model:
        for answer in model.stream(images, 2):
            np.testing.assert_allclose(answer.get().logits, model(answer.image).logits, rtol=1e-5)


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)])
def test_bad_numbers_of_workers(model, workers, error):
    with pytest.raises(error, match=f"workers is {workers}"):
        model.stream([], workers)


@pytest.mark.parametrize("concurrency", [0, 1025])
def test_bad_concurrency(bundle, concurrency):
    with pytest.raises(ValueError, match=f"concurrency is {concurrency}, expected 1 to 1024"):
        load(bundle, concurrency=concurrency)


@pytest.mark.parametrize(
    ("threads", "images", "expected"),
    [
        (2, 200, (2, 1)),
        (2, 1, (1, 2)),
        (1, 10, (1, 1)),
        (16, 1000, (8, 2)),
        (16, 3, (3, 5)),
        (4, 0, (1, 4)),
        (4, None, (4, 1)),
    ],
)
def test_threads_go_to_images_first(threads, images, expected):
    assert split_threads(threads, images) == expected
