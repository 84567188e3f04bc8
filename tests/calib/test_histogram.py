import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calib.errors import CalibrationError
from calib.histogram import BINS, Histogram

# No magnitudes so far apart that scaling by the width underflows float32.
_values = st.one_of(
    st.just(0.0),
    st.floats(2.0**-20, 2.0**40, width=32),
    st.floats(-(2.0**40), -(2.0**-20), width=32),
)
_arrays = st.lists(hnp.arrays(np.float32, st.integers(1, 50), elements=_values), min_size=1, max_size=5)


def _reference(histogram, x):
    """The counts of one pass in float64 over the final edges."""
    _, edges = histogram.density()
    x = x[x != 0].astype(np.float64)
    index = np.floor(x / histogram.width).astype(int) - round(edges[0] / histogram.width)
    return np.bincount(index, minlength=edges.size - 1)


@given(_arrays)
def test_doubling_equals_one_shot(arrays):
    histogram = Histogram()
    for x in arrays:
        histogram.observe(x)
    everything = np.concatenate(arrays)
    counts, edges = histogram.density()
    assert counts.sum() == np.count_nonzero(everything)
    assert histogram.zeros == np.count_nonzero(everything == 0)
    assert (histogram.minimum, histogram.maximum) == (everything.min(), everything.max())
    if histogram.width:
        np.testing.assert_array_equal(counts, _reference(histogram, everything))
        assert counts.size <= BINS
        assert edges[0] <= min(everything.min(), 0)
        assert edges[-1] > max(everything.max(), 0)


@given(_arrays, st.randoms(use_true_random=False))
def test_order_and_batching_do_not_matter(arrays, random):
    forward, shuffled = Histogram(), Histogram()
    for x in arrays:
        forward.observe(x)
    values = np.concatenate(arrays).tolist()
    random.shuffle(values)
    for x in np.array_split(np.array(values, np.float32), 3):
        shuffled.observe(x)
    assert forward.width == shuffled.width
    for a, b in zip(forward.density(), shuffled.density(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bins_are_between_half_and_all_in_use():
    for scale in np.geomspace(1e-20, 1e20, 41):
        histogram = Histogram()
        histogram.observe((np.linspace(-1, 2, 1000) * scale).astype(np.float32))
        counts, _ = histogram.density()
        assert BINS / 2 - 2 <= counts.size <= BINS


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_element_types_agree(dtype):
    x = np.random.default_rng(0).normal(size=(3, 5, 70001 // 15)).astype(np.float16)
    expected, histogram = Histogram(), Histogram()
    expected.observe(x.astype(np.float32))
    histogram.observe(x.astype(dtype))
    for a, b in zip(expected.density(), histogram.density(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float64_values_just_below_an_edge():
    # As float32 these round up to the edge, past the last bin that their float64 values are in.
    histogram = Histogram()
    histogram.observe(np.array([np.nextafter(1.0, 0.0), 0.5]))
    counts, edges = histogram.density()
    assert counts.sum() == 2
    assert histogram.maximum == 1.0 < edges[-1]


def test_strided_and_empty_arrays():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    strided, contiguous = Histogram(), Histogram()
    strided.observe(x[:, ::2, ::-1])
    strided.observe(np.empty((0, 3), np.float32))
    contiguous.observe(np.ascontiguousarray(x[:, ::2]))
    np.testing.assert_array_equal(strided.density()[0], contiguous.density()[0])
    assert strided.count == 16


@pytest.mark.parametrize("extreme", [3.4e38, 1.5e-45, 1e-38])
def test_extreme_magnitudes(extreme):
    histogram = Histogram()
    histogram.observe(np.array([extreme, -extreme, 0], np.float32))
    counts, edges = histogram.density()
    assert counts.sum() == 2
    assert np.isfinite(edges).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([1.0, np.nan], np.float32), "NaN"),
        (np.array([np.inf], np.float32), "infinity"),
        (np.array([-np.inf, np.nan], np.float32), "NaN"),
        (np.array([1e300]), "overflows float32"),
        (np.array([1, 2]), "int64"),
        (np.array([1j]), "complex128"),
    ],
)
def test_bad_values_are_named_and_not_counted(x, message):
    histogram = Histogram("layer1.relu")
    histogram.observe(np.ones(3, np.float32))
    with pytest.raises(CalibrationError, match=rf"'layer1\.relu'.*{message}"):
        histogram.observe(x)
    assert histogram.count == 3
    assert histogram.density()[0].sum() == 3


@pytest.mark.parametrize("bins", [0, 3, 4097])
def test_bad_number_of_bins(bins):
    with pytest.raises(ValueError, match=str(bins)):
        Histogram(bins=bins)


def test_memory_does_not_grow():
    histogram = Histogram()
    x = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    histogram.observe(x)
    tracemalloc.start()
    try:
        histogram.observe(x * 2)
        before = tracemalloc.get_traced_memory()[0]
        for scale in np.geomspace(2, 1e6, 50).astype(np.float32):
            x_scaled = x * scale
            tracemalloc.reset_peak()
            histogram.observe(x_scaled)
            after, peak = tracemalloc.get_traced_memory()
            del x_scaled
        assert after - x.nbytes - before < 20_000
        assert peak - after < 2**20
    finally:
        tracemalloc.stop()
