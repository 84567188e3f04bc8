import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import ndtri

from calib.errors import CalibrationError
from calib.observers import METHODS, PercentileObserver, make_observer


def ranges_of(method, *arrays):
    observer = make_observer(method, "x")
    for x in arrays:
        observer.observe(np.asarray(x, np.float32))
    return observer.ranges()


def symmetric_error(x, clip):
    step = clip / 127
    return np.mean((np.clip(np.rint(x / step), -127, 127) * step - x) ** 2)


def asymmetric_error(x, low, high):
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return np.mean((np.clip(np.rint(x / step) + zero, 0, 255) * step - zero * step - x) ** 2)


def sample(name, size=40_000):
    rng = np.random.default_rng(7)
    x = {
        "gaussian": lambda: rng.normal(size=size),
        "laplace": lambda: rng.laplace(size=size),
        "relu": lambda: np.maximum(rng.normal(size=size), 0),
        "negative": lambda: -rng.exponential(size=size),
        "skewed": lambda: rng.gamma(2, size=size) - 1,
        "silu": lambda: (lambda v: v / (1 + np.exp(-v)))(rng.normal(size=size) * 3),
        "relu6": lambda: np.clip(rng.normal(size=size) * 3, 0, 6),
        "uniform": lambda: rng.uniform(-3, 5, size=size),
        "outliers": lambda: np.append(rng.normal(size=size), [60.0, -80.0]),
    }[name]()
    return x.astype(np.float32).astype(np.float64)


DISTRIBUTIONS = ("gaussian", "laplace", "relu", "negative", "skewed", "silu", "relu6", "uniform", "outliers")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_symmetric_against_brute_force(name):
    x = sample(name)
    found = ranges_of("mse", x).symmetric
    best = min(symmetric_error(x, clip) for clip in np.linspace(0.02, 1.0, 150) * np.abs(x).max())
    assert symmetric_error(x, found) <= best * 1.01


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_asymmetric_against_brute_force(name):
    x = sample(name, 15_000)
    found = ranges_of("mse", x).asymmetric
    shares = np.linspace(0.08, 1.0, 24)
    lows = shares * x.min() if x.min() < 0 else [0.0]
    highs = shares * x.max() if x.max() > 0 else [0.0]
    best = min(asymmetric_error(x, low, high) for low in lows for high in highs)
    assert asymmetric_error(x, *found) <= best * 1.01


def test_mse_of_known_densities():
    # Optimal clipping of a Laplacian of scale 1: rounding costs step²/12 with step = clip / 127, clipping 2 exp(-clip).
    # The derivative of their sum is zero where clip / (6 · 127²) = 2 exp(-clip).
    x = np.random.default_rng(0).laplace(size=2_000_000)
    clip = ranges_of("mse", x).symmetric
    root = min(np.linspace(5, 15, 100_001), key=lambda c: abs(c / (6 * 127**2) - 2 * math.exp(-c)))
    assert clip == pytest.approx(root, rel=0.03)
    # A uniform density has nothing to clip.
    assert ranges_of("mse", np.linspace(-1, 1, 100_001)).symmetric == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("percentile", [90.0, 99.9, 99.99])
def test_percentile_against_quantile(name, percentile):
    x = sample(name)
    observer = PercentileObserver("x", percentile)
    observer.observe(x.astype(np.float32))
    found = observer.ranges()
    bin_width = 2 * (max(x.max(), 0) - min(x.min(), 0)) / 4096
    outside = 1 - percentile / 100
    share = outside / 2 if x.min() < 0 < x.max() else outside
    # numpy interpolates between the neighbouring order statistics; the tail is sparse, so allow for their distance.
    for value, data, q in (
        (found.symmetric, np.abs(x), 1 - outside),
        (found.asymmetric[1], np.maximum(x, 0), 1 - share),
        (found.asymmetric[0], np.minimum(x, 0), share),
    ):
        nearby = np.quantile(data, np.clip([q - 1.5 / x.size, q + 1.5 / x.size], 0, 1))
        assert nearby[0] - bin_width <= value <= nearby[1] + bin_width


def test_percentile_of_a_tensor_that_is_nearly_all_zero():
    x = np.zeros(100_000)
    x[:3] = 5, 6, 7
    assert ranges_of("percentile", x).symmetric == 7
    assert ranges_of("percentile", x).asymmetric == (0, 7)
    # One end that holds next to nothing is not stretched to its outlier.
    x[50:60_000] = 1
    x[4] = -1000
    low, high = ranges_of("percentile", x).asymmetric
    assert low == 0
    assert 0.5 < high < 2


@pytest.mark.parametrize("percentile", [0, 50, 100.1, math.nan])
def test_bad_percentile(percentile):
    with pytest.raises(ValueError, match=str(percentile)):
        PercentileObserver("x", percentile)


def brute_force_divergence(x, clip, levels=127):
    """KL divergence of a clipped half-normal and its quantized form, from their definitions on fine bins."""
    width = clip / (levels * 16)
    counts = np.histogram(np.abs(x), np.arange(levels * 16 + 1) * width)[0].astype(float)
    p, q = counts.copy(), np.empty_like(counts)
    p[np.flatnonzero(p)[-1]] += (np.abs(x) > clip).sum()
    level = np.floor((np.arange(counts.size) + 0.5) / 16 + 0.5).clip(0, levels)
    for k in range(levels + 1):
        q[level == k] = counts[level == k].mean()
    p, q = p / p.sum(), q / q.sum()
    return np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_entropy_against_its_definition(name):
    # From the density's quantiles: no sampling noise for the finer bins of the reference to pick up.
    u = (np.arange(600_000) + 0.5) / 600_000
    x = ndtri(u) if name == "gaussian" else np.where(u < 0.5, np.log(2 * u), -np.log(2 - 2 * u))
    clip = ranges_of("entropy", x).symmetric
    clips = np.linspace(0.3, 1.0, 60) * np.abs(x).max()
    losses = [brute_force_divergence(x, c) for c in clips]
    assert brute_force_divergence(x, clip) <= min(losses) * 1.05


def test_entropy_clips_outliers_and_keeps_the_rest():
    x = sample("gaussian", 1_000_000)
    alone = ranges_of("entropy", x)
    assert 3.5 < alone.symmetric <= np.abs(x).max()
    polluted = ranges_of("entropy", x, [100.0, -90.0])
    assert 3.5 < polluted.symmetric < 10
    assert -10 < polluted.asymmetric[0] < -3.5
    assert 3.5 < polluted.asymmetric[1] < 10


def test_entropy_ignores_the_zeros_of_a_relu():
    x = sample("relu", 500_000)
    more_zeros = ranges_of("entropy", x, np.zeros(5_000_000))
    assert more_zeros == ranges_of("entropy", x)


def test_entropy_of_few_values_keeps_them():
    x = np.random.default_rng(0).normal(size=500)
    assert ranges_of("entropy", x).symmetric > 0.9 * np.abs(x).max()


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_what_was_seen_is_exact(self, method):
        x = sample("skewed")
        found = ranges_of(method, *np.array_split(x, 5))
        assert (found.minimum, found.maximum) == (x.min(), x.max())

    def test_nothing_observed(self, method):
        with pytest.raises(CalibrationError, match="'x' was never observed"):
            ranges_of(method)
        with pytest.raises(CalibrationError, match="'x' was never observed"):
            ranges_of(method, np.empty((0, 3)))

    def test_zeros(self, method):
        found = ranges_of(method, np.zeros(10), -np.zeros(3))
        assert (found.minimum, found.maximum) == (0, 0)
        assert found.symmetric == 1
        assert found.asymmetric == (0, 1)

    def test_zeros_before_values(self, method):
        x = sample("gaussian", 1000)
        assert ranges_of(method, np.zeros(50), x) == ranges_of(method, x, np.zeros(50))

    @pytest.mark.parametrize("value", [3.7, -0.02, 1e30, -1e-20])
    def test_constant(self, method, value):
        found = ranges_of(method, np.full(100, value))
        x = float(np.float32(value))
        assert math.sqrt(symmetric_error(x, found.symmetric)) <= abs(x) / 1000
        assert math.sqrt(asymmetric_error(x, *found.asymmetric)) <= abs(x) / 1000
        assert found.asymmetric[0 if value > 0 else 1] == 0

    def test_below_float32_scales(self, method):
        found = ranges_of(method, [1e-40, -1e-42])
        assert found.symmetric == 1
        assert found.asymmetric == (0, 1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, method, bad):
        with pytest.raises(CalibrationError, match="'x'"):
            ranges_of(method, [1.0, bad])

    def test_integers_are_refused(self, method):
        with pytest.raises(CalibrationError, match="int32"):
            make_observer(method).observe(np.zeros(3, np.int32))

    def test_one_outlier_on_the_other_side(self, method):
        x = np.append(np.abs(sample("gaussian")), -3.0)
        low, high = ranges_of(method, x).asymmetric
        assert -3.1 <= low <= 0
        assert 3 < high < 5


@settings(deadline=None, max_examples=40)
@given(
    method=st.sampled_from(METHODS),
    arrays=st.lists(
        hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)),
        min_size=1,
        max_size=4,
    ),
)
def test_invariants(method, arrays):
    found = ranges_of(method, *arrays)
    low, high = found.asymmetric
    everything = np.concatenate(arrays)
    assert (found.minimum, found.maximum) == (everything.min(), everything.max())
    assert low <= 0 <= high
    assert low < high
    assert found.symmetric > 0
    assert np.float32(found.symmetric / 127) > 0
    assert np.float32((high - low) / 255) > 0
    if np.abs(everything).max() > 1e-29:
        assert found.symmetric <= np.abs(everything).max()
        step = (high - low) / 255
        assert min(found.minimum, 0) - step <= low
        assert high <= max(found.maximum, 0) + step
    if method != "minmax":  # zero falls on a level, so that rounding the zero point moves nothing
        assert method == "percentile" or abs(low / (high - low) * 255 - round(low / (high - low) * 255)) < 1e-6
    backwards = ranges_of(method, *(x[::-1] for x in reversed(arrays)))
    assert found.symmetric == pytest.approx(backwards.symmetric, rel=1e-9)
    assert found.asymmetric == pytest.approx(backwards.asymmetric, rel=1e-9, abs=1e-9 * (high - low))


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-60, 60), method=st.sampled_from(METHODS))
def test_ranges_scale_with_the_data(exponent, method):
    x = sample("silu", 2000)
    one, scaled = ranges_of(method, x), ranges_of(method, x * 2.0**exponent)
    assert scaled.symmetric == pytest.approx(one.symmetric * 2.0**exponent, rel=1e-6)
    assert scaled.asymmetric == pytest.approx([v * 2.0**exponent for v in one.asymmetric], rel=1e-6)


def test_methods_differ_as_they_should():
    x = sample("outliers")
    clips = {method: ranges_of(method, x).symmetric for method in METHODS}
    assert clips["minmax"] == 80
    assert clips["percentile"] < 5
    assert clips["entropy"] < clips["mse"] < 80


def test_unknown_method():
    with pytest.raises(CalibrationError, match=r"'kl'.*minmax, percentile, entropy, mse"):
        make_observer("kl")
