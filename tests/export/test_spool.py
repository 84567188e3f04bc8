"""Tensors on disk and back: integers to the bit, floats to what float16 keeps of them, whatever their magnitude."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.quantize.spool import Spool

HALF = 2.0**-11
"""Half of float16's last place, relative to a value."""


def assert_kept(back, value):
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert torch.isfinite(back).all()
    largest = float(value.abs().max()) if value.numel() else 0.0
    # Relative to each value, down to where float16 has fewer bits: 2^-38 of the largest.
    assert ((back - value).abs() <= HALF * value.abs() + 2.0**-38 * largest + 1e-45).all()


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=4), elements=st.floats(-1, 1, width=32)),
    st.integers(-149, 127),
)
def test_floats_keep_eleven_bits_at_every_magnitude(values, exponent):
    value = torch.from_numpy((values.astype(np.float64) * 2.0**exponent).astype(np.float32))
    with Spool() as spool:
        spool.write("x", 0, value)
        back = spool.read("x", 0)
        assert_kept(back, value)
        # Written once more, it stays as it is: nothing drifts.
        spool.write("y", 0, back)
        assert torch.equal(spool.read("y", 0), back)


@pytest.mark.parametrize("largest", [3.4e38, 1e36, 1e20, 1e5, 1e-5, 1e-30, 1e-38])
def test_ends_of_the_range_of_float32(largest):
    value = torch.tensor([largest, -largest, largest / 3, largest / 1000, 0.0])
    with Spool() as spool:
        spool.write("x", 0, value)
        assert_kept(spool.read("x", 0), value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool])
def test_integers_are_exact(dtype):
    info = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    value = torch.tensor([[*info, 1], [0, 1, 0]], dtype=dtype)
    with Spool() as spool:
        spool.write("x", 0, value)
        back = spool.read("x", 0)
    assert back.dtype == dtype
    assert torch.equal(back, value)


def test_float64_stays_float64():
    value = torch.tensor([1.0, 1e-3, 3.0], dtype=torch.float64)
    with Spool() as spool:
        spool.write("x", 0, value)
        assert_kept(spool.read("x", 0), value)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1, 1, 1)])
def test_scalars_and_nothing(shape):
    value = torch.ones(shape)
    with Spool() as spool:
        spool.write("x", 0, value)
        assert torch.equal(spool.read("x", 0), value)


def test_zeros_and_what_is_not_finite():
    with Spool() as spool:
        spool.write("x", 0, torch.zeros(3))
        spool.write("x", 1, torch.tensor([1.0, np.inf, np.nan]))
        assert torch.equal(spool.read("x", 0), torch.zeros(3))
        back = spool.read("x", 1)
        assert back[0] == 1
        assert torch.isinf(back[1])
        assert torch.isnan(back[2])


def test_many_tensors_of_many_sizes_read_in_any_order():
    values = {(name, i): torch.randn(i + 1, 3 + j) * 10.0**i for j, name in enumerate("abc") for i in range(5)}
    with Spool() as spool:
        for i in range(5):
            for name in "abc":
                spool.write(name, i, values[name, i])
                assert_kept(spool.read(name, i), values[name, i])  # in between, and writing goes on at the end
        for key in sorted(values, key=lambda k: (k[1] * 7 % 5, k[0])):
            assert_kept(spool.read(*key), values[key])
            assert_kept(spool.read(*key), values[key])


def test_views_and_what_needs_gradients():
    x = torch.randn(4, 6, requires_grad=True)
    with Spool() as spool:
        spool.write("x", 0, x.t()[::2])
        back = spool.read("x", 0)
    assert not back.requires_grad
    assert_kept(back, x.detach().t()[::2])


def test_what_is_dropped_is_gone_and_can_be_written_anew():
    with Spool() as spool:
        for name in "ab":
            for i in range(3):
                spool.write(name, i, torch.full((2,), float(i)))
        spool.drop("a")
        spool.drop("nothing of that name")
        with pytest.raises(KeyError):
            spool.read("a", 1)
        assert torch.equal(spool.read("b", 2), torch.full((2,), 2.0))
        spool.write("a", 0, torch.ones(5))
        assert torch.equal(spool.read("a", 0), torch.ones(5))
        with pytest.raises(KeyError):
            spool.read("a", 1)


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None  # noqa: PTH208, PTH112
    with Spool() as spool:
        spool.write("x", 0, torch.randn(1000))
        assert list(tmp_path.iterdir())
        spool.close()
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(KeyError):
            spool.read("x", 0)
    with pytest.raises(KeyError), Spool() as spool:
        spool.read("what was never written", 0)
    assert list(tmp_path.iterdir()) == []
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) == opened  # noqa: PTH208
