import tracemalloc

import numpy as np
import pytest

from calib import METHODS, CalibrationError, ImageStream, collect_ranges, make_observer
from runtime.manifest import TensorSpec


def batches(count, n=4, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.normal(size=(n, 3, 32, 24)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_the_tensors(session, method):
    found = collect_ranges(session, batches(5), ["relu", "input", "double"], method)
    assert list(found) == ["relu", "input", "double"]
    for name, f in (("input", lambda x: x), ("double", lambda x: 2 * x), ("relu", lambda x: np.maximum(x, 0))):
        observer = make_observer(method, name)
        for batch in batches(5):
            observer.observe(f(batch))
        assert found[name] == observer.ranges()


def test_batching_does_not_matter(session):
    data = np.concatenate(list(batches(6)))
    one = collect_ranges(session, [data], ["relu"], "mse")
    assert collect_ranges(session, list(data[:, None]), ["relu"], "mse") == one


def test_progress(session, tmp_path, photo, preprocessing):
    calls = []
    collect_ranges(session, batches(3), ["relu"], "minmax", lambda *a: calls.append(a))
    assert calls == [(1, None), (2, None), (3, None)]
    calls.clear()
    stream = ImageStream([photo(tmp_path / "a.png")] * 5, preprocessing, batch_size=2)
    collect_ranges(session, stream, ["relu"], "minmax", lambda *a: calls.append(a))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_unknown_tensor_and_method(session):
    with pytest.raises(CalibrationError, match="'conv7'"):
        collect_ranges(session, batches(1), ["relu", "conv7"], "mse")
    with pytest.raises(CalibrationError, match="'kl'"):
        collect_ranges(session, batches(1), ["relu"], "kl")


def test_two_inputs(session):
    session.inputs = (*session.inputs, TensorSpec("scale", "float32", (1,)))
    with pytest.raises(CalibrationError, match="one input, this one has 2"):
        collect_ranges(session, batches(1), ["relu"], "mse")


def test_no_batches(session):
    with pytest.raises(CalibrationError, match="'relu' was never observed"):
        collect_ranges(session, [], ["relu"], "minmax")


def test_not_a_number_names_the_tensor(session):
    bad = next(batches(1))
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="'double' holds NaN"):
        collect_ranges(session, [bad], ["double"], "mse")


def test_errors_of_the_images_pass(session, tmp_path, preprocessing):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(CalibrationError, match="none of the 1 images"):
        collect_ranges(session, ImageStream([tmp_path / "a.png"], preprocessing), ["relu"], "mse")


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow(session, method):
    def peak(count):
        tracemalloc.start()
        try:
            collect_ranges(session, batches(count), ["relu", "double"], method)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(60) - peak(4) < 100_000  # one batch has 37 kB, its activations 74 kB
