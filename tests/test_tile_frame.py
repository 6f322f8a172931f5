"""Padding against numpy's own, and cropping back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segserve.tiles.frame import crop, pad, pad_mask, padded_size

SIDES = st.integers(1, 90)


@given(height=SIDES, width=SIDES, divisor=st.integers(1, 40), least=st.integers(1, 130))
def test_padded_sides_are_the_smallest_that_will_do(height: int, width: int, divisor: int, least: int) -> None:
    for side, padded in zip((height, width), padded_size(height, width, divisor, least), strict=True):
        allowed = [size for size in range(1, 400) if size % divisor == 0 and size >= max(side, least)]
        assert padded == allowed[0]


@given(height=SIDES, width=SIDES, batch=st.booleans())
def test_padding_is_numpys_and_crops_back(height: int, width: int, batch: bool) -> None:
    image = np.random.default_rng(0).random((*([2] if batch else []), height, width, 3))
    padded = pad(image, 32, 64)
    expected = image
    for axis, side in ((-3, height), (-2, width)):
        more = padded_size(height, width, 32, 64)[0 if axis == -3 else 1] - side
        widths = [(0, 0)] * image.ndim
        widths[axis] = (0, more)
        expected = np.pad(expected, widths, mode="reflect" if more < side else "edge")
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(np.moveaxis(crop(np.moveaxis(padded, -1, 0), height, width), 0, -1), image)


def test_the_edge_pixel_is_not_repeated() -> None:
    row = np.array([[[1], [2], [3]]])
    assert pad(row, 1, 1) is row
    assert pad(row, 5, 1)[0].ravel().tolist() == [1, 2, 3, 2, 1]
    assert pad(row, 6, 1)[0].ravel().tolist() == [1, 2, 3, 3, 3, 3]
    assert pad(row, 2, 1)[:, 0, 0].tolist() == [1, 1]


def test_masks_are_padded_with_what_is_not_labelled() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    padded = pad_mask(mask, 4, 1, fill=255)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded, np.pad(mask, ((0, 2), (0, 1)), constant_values=255))
    assert pad_mask(mask, 1, 1, fill=255) is mask


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_numpy_and_torch_are_cropped_alike(make: type) -> None:
    assert tuple(crop(make((2, 3, 64, 96)), 33, 57).shape) == (2, 3, 33, 57)
