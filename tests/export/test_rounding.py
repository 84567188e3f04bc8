"""Rounding that compensates, against exhaustive search and against the same algorithm in its textbook form."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.quantize.rounding import LEVELS, output_error, round_compensating, round_to_nearest


def inputs_of(rows, columns, seed, correlation=0.8):
    """Correlated inputs of a layer about their mean, and their second moments, float64."""
    generator = np.random.default_rng([seed, rows, columns])
    common = generator.standard_normal((rows, 1))
    x = correlation * common + generator.standard_normal((rows, columns)) * np.exp(
        generator.standard_normal(columns) / 2
    )
    x -= x.mean(0)
    return x, x.T @ x / rows


def weights_of(rows, columns, seed):
    return np.random.default_rng([seed, rows, columns, 1]).standard_normal((rows, columns))


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(a))[None] for a in arrays]


def compensating(weight, moments, scale, **options):
    """One group's codes, by the function under test."""
    return round_compensating(*tensors(weight, moments, scale), **options)[0].numpy()


def nearest(weight, scale):
    return np.clip(np.rint(weight / scale[:, None]), -127, 127)


def error_of(codes, weight, moments, scale):
    difference = codes * scale[:, None] - weight
    return np.einsum("rk,kl,rl->", difference, moments, difference)


def textbook(weight, moments, scale, damping=0.01):
    """Round one input after the other, the largest first; after each, the rest is solved for anew by least squares."""
    size = len(moments)
    damped = moments + damping * np.diag(moments).mean() * np.eye(size)
    order = np.argsort(-np.diag(moments), kind="stable")
    result = np.zeros_like(weight)
    for r in range(len(weight)):
        w = weight[r].copy()
        for n, j in enumerate(order):
            result[r, j] = np.clip(np.rint(w[j] / scale[r]), -127, 127)
            rest = order[n + 1 :]
            if len(rest):
                off = result[r, j] * scale[r] - w[j]
                w[rest] -= np.linalg.solve(damped[np.ix_(rest, rest)], damped[rest, j]) * off
    return result


@given(
    weight=st.lists(st.floats(-300, 300), min_size=6, max_size=6),
    scale=st.lists(st.floats(0.01, 10), min_size=2, max_size=2),
)
def test_the_nearest(weight, scale):
    w, s = np.array(weight).reshape(2, 3), np.array(scale)
    ours = round_to_nearest(torch.from_numpy(w), torch.from_numpy(s)).numpy()
    np.testing.assert_array_equal(ours, nearest(w, s))
    assert np.abs(ours).max() <= LEVELS == 127


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_textbook_algorithm(size, seed):
    _, moments = inputs_of(4 * size, size, seed)
    weight = weights_of(3, size, seed)
    scale = np.abs(weight).max(1) / 7  # a coarse step, at which it matters
    np.testing.assert_array_equal(compensating(weight, moments, scale), textbook(weight, moments, scale))


@pytest.mark.parametrize("size", [127, 128, 129, 300])
def test_in_blocks_it_is_the_same(size):
    """Blocks of 128 columns are an optimization; a value that lies between two integers may fall to either side."""
    _, moments = inputs_of(2 * size, size, 0)
    weight = weights_of(2, size, 0)
    scale = np.abs(weight).max(1) / 7
    ours, expected = compensating(weight, moments, scale), textbook(weight, moments, scale)
    assert (ours != expected).mean() <= 0.01
    assert error_of(ours, weight, moments, scale) < 0.75 * error_of(nearest(weight, scale), weight, moments, scale)


def test_against_all_there_are():
    """Between the nearest integers and the best of all there are, and closer to the best."""
    sums = np.zeros(3)
    for seed in range(60):
        _, moments = inputs_of(30, 4, seed)
        weight = weights_of(1, 4, seed)
        scale = np.abs(weight).max(1) / 3
        around = [[np.floor(w / scale[0]) + d for d in (-1, 0, 1, 2)] for w in weight[0]]
        best = min(error_of(np.array([c]), weight, moments, scale) for c in itertools.product(*around))
        found = error_of(compensating(weight, moments, scale), weight, moments, scale)
        plain = error_of(nearest(weight, scale), weight, moments, scale)
        assert found >= best * (1 - 1e-9)
        sums += (best, found, plain)
    best, found, plain = sums
    assert found < 0.85 * plain
    assert found < best + 0.5 * (plain - best)


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 3, 6, generator=generator, dtype=dtype)
    scale = weight.abs().amax(2) / 127
    for diagonal in (torch.ones(2, 6, dtype=dtype), torch.rand(2, 6, generator=generator, dtype=dtype) + 0.01):
        codes = round_compensating(weight, torch.diag_embed(diagonal), scale)
        # In between to within float's own rounding, a value may fall to either side.
        off = (weight / scale[..., None] - codes).abs()
        assert (off <= 0.5 + 1e-4).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    rows=st.integers(1, 3),
    size=st.integers(1, 9),
    samples=st.integers(1, 12),
    level=st.floats(0.5, 300),
)
def test_codes_are_integers_of_eight_bits_whatever_comes(seed, groups, rows, size, samples, level):
    """Fewer samples than inputs, steps that are too small: what the moments lack in rank does no harm."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, samples, size, generator=generator)
    weight = torch.randn(groups, rows, size, generator=generator)
    moments = x.transpose(1, 2) @ x
    before = moments.clone()
    scale = (weight.abs().amax(2) / level).clamp_min(1e-6)
    codes = round_compensating(weight, moments, scale)
    assert codes.shape == weight.shape
    assert codes.dtype == weight.dtype
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= 127
    assert torch.equal(moments, before), "what is given is not changed"


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_of_few_directions_hardly_anything_is_lost(rank):
    """With more inputs than directions there are integers that lose almost nothing: nearest ones do not find them."""
    plain = found = 0.0
    for seed in range(8):
        x, _ = inputs_of(rank, 24, seed)
        x += np.random.default_rng(seed).standard_normal(24)  # otherwise one direction alone would be nothing
        moments = x.T @ x / rank
        weight = weights_of(4, 24, seed)
        scale = np.abs(weight).max(1) / 15
        plain += error_of(nearest(weight, scale), weight, moments, scale)
        found += error_of(compensating(weight, moments, scale), weight, moments, scale)
    assert found < 0.25 * plain


def test_clipping_is_compensated_too():
    """A step so small that the largest weight does not fit: the others make up for what is cut off."""
    plain = found = 0.0
    for seed in range(8):
        _, moments = inputs_of(60, 6, seed, correlation=3.0)
        weight = weights_of(2, 6, seed)
        scale = np.abs(weight).max(1) / 150
        codes = compensating(weight, moments, scale)
        assert np.abs(codes).max() <= 127
        plain += error_of(nearest(weight, scale), weight, moments, scale)
        found += error_of(codes, weight, moments, scale)
    assert found < 0.5 * plain


def test_inputs_that_are_always_the_same_are_rounded_to_the_nearest():
    x, _ = inputs_of(50, 8, 0)
    x[:, [1, 4]] = 0
    moments = x.T @ x / 50
    weight = weights_of(3, 8, 0)
    scale = np.abs(weight).max(1) / 10
    codes = compensating(weight, moments, scale)
    np.testing.assert_array_equal(codes[:, [1, 4]], nearest(weight, scale)[:, [1, 4]])
    # The others do not notice that they are there.
    live = [0, 2, 3, 5, 6, 7]
    smaller = compensating(weight[:, live], moments[np.ix_(live, live)], scale, damping=0.01 * 6 / 8)
    np.testing.assert_array_equal(codes[:, live], smaller)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_moments_that_say_nothing_give_the_nearest(value):
    """All inputs dead, or so large that their squares are no numbers any more."""
    weight, scale = weights_of(3, 5, 0), np.full(3, 0.02)
    moments = np.full((5, 5), value)
    np.testing.assert_array_equal(compensating(weight, moments, scale), nearest(weight, scale))


def test_a_group_with_dead_inputs_takes_nothing_from_the_others():
    _, live = inputs_of(50, 6, 0)
    weight, scale = np.stack([weights_of(3, 6, s) for s in range(3)]), np.full((3, 3), 0.1)
    for value in (0.0, np.inf):
        moments = np.stack([live, np.full((6, 6), value), live])
        codes = round_compensating(*map(torch.from_numpy, (weight, moments, scale))).numpy()
        np.testing.assert_array_equal(codes[1], nearest(weight[1], scale[1]))
        for g in (0, 2):
            np.testing.assert_array_equal(codes[g], textbook(weight[g], live, scale[g]))


def test_groups_and_rows_are_rounded_by_themselves():
    moments = np.stack([inputs_of(50, 6, s)[1] for s in range(3)])
    weight = np.stack([weights_of(4, 6, s) for s in range(3)])
    scale = np.abs(weight).max(2) / 10
    together = round_compensating(*map(torch.from_numpy, (weight, moments, scale))).numpy()
    for g, r in itertools.product(range(3), range(4)):
        alone = compensating(weight[g, r : r + 1], moments[g], scale[g, r : r + 1])
        np.testing.assert_array_equal(together[g, r], alone[0])


@given(st.integers(0, 2**32 - 1))
def test_the_error_is_that_of_the_outputs(seed):
    generator = np.random.default_rng(seed)
    x, d = generator.standard_normal((2, 20, 4)), generator.standard_normal((2, 3, 4))
    moments = np.einsum("gnk,gnl->gkl", x, x)
    expected = sum(np.sum((x[g] @ d[g].T) ** 2) for g in range(2))
    assert output_error(torch.from_numpy(d), torch.from_numpy(moments)) == pytest.approx(expected)
    assert output_error(torch.zeros(1, 2, 3), torch.ones(1, 3, 3)) == 0.0
