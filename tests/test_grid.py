"""Window positions and the choice of the sweep, against their definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segserve.volumes.grid import Grid, WindowStarts, choose_grid

SIZES = st.integers(1, 60)
TRIPLES = st.tuples(SIZES, SIZES, SIZES)


@given(length=SIZES, patch=SIZES, data=st.data())
def test_starts_are_those_of_the_published_rule(length: int, patch: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, patch))
    count = max(length - patch + stride - 1, 0) // stride + 1
    ends = [min(step * stride + patch, length) for step in range(count)]
    starts = WindowStarts(length, patch, stride)
    assert list(starts) == [max(end - patch, 0) for end in ends]
    assert len(starts) == count


@given(length=SIZES, patch=SIZES, data=st.data())
def test_windows_cover_every_voxel_and_coverage_counts_them(length: int, patch: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, patch))
    starts = WindowStarts(length, patch, stride)
    counted = np.zeros(length, np.float32)
    for start in starts:
        counted[start : start + patch] += 1
    assert counted.min() >= 1
    begin = data.draw(st.integers(0, length))
    end = data.draw(st.integers(begin, length))
    np.testing.assert_array_equal(starts.coverage(begin, end), counted[begin:end], strict=True)


@given(shape=TRIPLES, patch=TRIPLES, slowest=st.integers(0, 2))
def test_no_other_sweep_would_keep_less(shape: tuple[int, int, int], patch: tuple[int, int, int], slowest: int) -> None:
    chosen = choose_grid(shape, patch, (1, 1, 1), slowest=slowest)
    needs = [Grid(shape, patch, (1, 1, 1), axis).slab_voxels() for axis in range(3)]
    assert chosen.slab_voxels() == min(needs)
    if needs[slowest] == min(needs):
        assert chosen.sweep == slowest


@given(shape=TRIPLES)
def test_the_slab_does_not_grow_with_the_length_of_the_sweep(shape: tuple[int, int, int]) -> None:
    patch = (1, 1, 1)
    grid = choose_grid(shape, patch, patch, slowest=0)
    longer = list(shape)
    longer[grid.sweep] *= 2
    doubled = Grid((longer[0], longer[1], longer[2]), patch, patch, grid.sweep)
    assert doubled.slab_voxels() == grid.slab_voxels()
