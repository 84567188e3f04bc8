"""Resizing by matrices, against Pillow: the same weights, so the same pixels, rounded where Pillow rounds."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.manifest import INTERPOLATIONS, PAD_MODES, Preprocessing
from runtime.preprocess import resize
from runtime.resampling import WEIGHT_BITS, axis_weights, resize_matrices, rows_first

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def product(weights, pixels):
    """One pass in integers: the rounded product of (T, S) weights and (S, …) pixels."""
    units = np.round(weights.astype(np.float64) * 2**WEIGHT_BITS).astype(np.int64)
    sums = np.tensordot(units, pixels.astype(np.int64), 1) + 2 ** (WEIGHT_BITS - 1)
    return np.clip(sums >> WEIGHT_BITS, 0, 255)


def resized_by_matrices(image, preprocessing):
    matrices = resize_matrices(*image.shape[:2], preprocessing)
    if rows_first(*image.shape[:2], preprocessing):
        rows_done = product(matrices.rows, image)
        return product(matrices.columns.T, rows_done.transpose(1, 0, 2)).transpose(1, 0, 2).astype(np.uint8)
    columns_first = product(matrices.columns.T, image.transpose(1, 0, 2))
    return product(matrices.rows, columns_first.transpose(1, 0, 2)).astype(np.uint8)


lengths = st.integers(1, 300)


@settings(max_examples=150, deadline=None)
@given(lengths, lengths, st.sampled_from(INTERPOLATIONS))
@example(1920, 224, "bilinear")
@example(1080, 224, "bicubic")
@example(7, 2999, "lanczos")
@example(4000, 1, "hamming")
def test_one_axis_is_pillows_to_the_bit(source, target, interpolation):
    image = noise(3, source, source * 301 + target)
    theirs = Image.fromarray(image).resize((target, 3), getattr(Image.Resampling, interpolation.upper()))
    found = product(axis_weights(source, target, interpolation), image.transpose(1, 0, 2))
    np.testing.assert_array_equal(found.transpose(1, 0, 2), np.asarray(theirs))


@pytest.mark.parametrize(("source", "target"), [(23, 5), (15, 7), (39, 7), (43, 7)])
def test_the_middle_of_hammings_window_is_one(source, target):
    """A pixel that lies there has another unit otherwise, which one row in a thousand shows."""
    image = noise(20_000, source)
    theirs = Image.fromarray(image).resize((target, 20_000), Image.Resampling.HAMMING)
    found = product(axis_weights(source, target, "hamming"), image.transpose(1, 0, 2))
    np.testing.assert_array_equal(found.transpose(1, 0, 2), np.asarray(theirs))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(("squish", *PAD_MODES)),
    st.sampled_from(INTERPOLATIONS),
)
def test_both_axes_and_padding_are_those_of_preprocessing(height, width, H, W, mode, interpolation):
    squish = mode == "squish"
    spec = Preprocessing(
        (H, W), MEAN, STD, "squish" if squish else "pad", "constant" if squish else mode, interpolation
    )
    image = noise(height, width, height * 91 + width)
    np.testing.assert_array_equal(resized_by_matrices(image, spec), np.asarray(resize(Image.fromarray(image), spec)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("length", [1, 2, 224])
def test_an_axis_of_the_right_length_stays_as_it_is(interpolation, length):
    np.testing.assert_array_equal(axis_weights(length, length, interpolation), np.eye(length, dtype=np.float32))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_weights_are_whole_units_that_add_up_to_one(interpolation):
    weights = axis_weights(333, 50, interpolation).astype(np.float64)
    units = weights * 2**WEIGHT_BITS
    np.testing.assert_array_equal(units, np.round(units))
    np.testing.assert_allclose(weights.sum(1), 1, atol=333 / 2**WEIGHT_BITS)


def test_matrices_are_remembered_and_cannot_be_changed():
    spec = Preprocessing((16, 24), MEAN, STD)
    first = resize_matrices(40, 50, spec)
    assert resize_matrices(40, 50, spec) is first
    assert (first.rows.shape, first.columns.shape) == ((16, 40), (50, 24))
    for matrix in (first.rows, first.columns):
        assert matrix.dtype == np.float32
        assert matrix.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 1
