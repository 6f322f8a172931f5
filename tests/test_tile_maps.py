"""Network output to probabilities, class numbers and files, against formulas written out in float64."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.tiles.maps import classes, deliver_map, means, probabilities, write_map
from segserve.tiles.prepare import Prepared, prepare
from segserve.tiles.recipe import Needs, Recipe

GENERATOR = np.random.default_rng(0)


def cut(height: int, width: int, padding: int = 0) -> Prepared:
    return Prepared(np.zeros((1, 1, 1), np.float32), height, width, padding)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=0))


@given(
    count=st.integers(2, 6),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    padding=st.integers(0, 9),
    below=st.integers(0, 33),
)
def test_softmax_of_what_is_not_padding(count: int, height: int, width: int, padding: int, below: int) -> None:
    size = (count, height + 2 * padding + below, width + 2 * padding + below // 2)
    logits = GENERATOR.normal(0, 8, size).astype(np.float32)
    before = logits.copy()
    found = probabilities(logits, cut(height, width, padding), "t")
    assert found.flags.c_contiguous
    assert found.dtype == np.float32
    assert found.shape == (count, height, width)
    expected = softmax(logits[:, padding : padding + height, padding : padding + width])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(logits, before)


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), padding=st.integers(0, 40), divisor=st.sampled_from([1, 32])
)
def test_every_pixel_comes_back_to_its_place(height: int, width: int, padding: int, divisor: int) -> None:
    image = GENERATOR.integers(0, 255, (height, width, 2), dtype=np.uint8)
    recipe = Recipe.of(
        {"options": {"reflection_padding": padding}}, {"input_config": {"normalization": {"strategy": "fixed_range"}}}
    )
    prepared = prepare(image, recipe, Needs(2, context=False, divisor=divisor, least=1, fixed=None), "t")
    found = probabilities(prepared.values, prepared, "t")
    np.testing.assert_allclose(found, softmax(image.transpose(2, 0, 1) / 255), atol=1e-6)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20))
def test_one_class_is_the_second_of_two(values: list[float]) -> None:
    logits = np.array(values, np.float32).reshape(1, 1, -1)
    found = probabilities(logits, cut(1, len(values)), "t")
    sigmoid = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    np.testing.assert_allclose(found, [1 - sigmoid, sigmoid], atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 3.4e38])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_large_logits(scale: float, count: int) -> None:
    logits = np.linspace(-scale, scale, count * 2, dtype=np.float32).reshape(count, 1, 2)
    found = probabilities(logits, cut(1, 2), "t")
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=0), 1)
    assert found[-1, 0, 1] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_output_that_is_not_finite(value: float) -> None:
    logits = np.zeros((3, 8, 8), np.float32)
    logits[2, 4, 4] = value
    with pytest.raises(BadInputError, match=r"not finite .* for tile 0_64"):
        probabilities(logits, cut(8, 8), "0_64")
    np.testing.assert_allclose(probabilities(logits, cut(4, 4), "0_64"), 1 / 3, rtol=1e-6)


@given(count=st.integers(2, 256), width=st.integers(1, 40), levels=st.integers(1, 5))
def test_the_first_of_the_likeliest_classes(count: int, width: int, levels: int) -> None:
    scores = GENERATOR.integers(0, levels, (count, 3, width)).astype(np.float32)
    found = classes(scores)
    assert found.dtype == np.uint8
    assert found.shape == (1, 3, width)
    np.testing.assert_array_equal(found[0], scores.argmax(axis=0))


def test_more_classes_than_a_byte_can_number() -> None:
    with pytest.raises(BadInputError, match="257 classes"):
        classes(np.zeros((257, 1, 1), np.float32))


def test_means_are_exact_sums() -> None:
    maps = GENERATOR.random((3, 700, 900)).astype(np.float32)
    found = means(maps)
    assert all(type(value) is float for value in found)
    np.testing.assert_allclose(found, maps.astype(np.float64).mean(axis=(1, 2)), rtol=1e-12)
    constant = np.full((1, 4096, 4096), 0.1, np.float32)
    assert means(constant) == [pytest.approx(float(np.float32(0.1)), rel=1e-12)]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "u1"])
def test_a_file_is_little_endian_and_in_c_order(tmp_path: Path, dtype: str) -> None:
    values = np.arange(24).reshape(4, 3, 2).astype(dtype).transpose(2, 1, 0)
    path = tmp_path / "0_0.bin"
    path.write_bytes(b"before")
    write_map(path, values)
    stored = np.frombuffer(path.read_bytes(), np.dtype(dtype).newbyteorder("<"))
    np.testing.assert_array_equal(stored.reshape(2, 3, 4), values)
    assert path.stat().st_size == values.nbytes
    assert [entry.name for entry in tmp_path.iterdir()] == ["0_0.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    link = tmp_path / "0.bin"
    link.symlink_to(victim)
    write_map(link, np.ones(2, np.float32))
    assert victim.read_bytes() == b"mine"
    assert not link.is_symlink()
    assert link.stat().st_size == 8


def test_nothing_is_left_where_the_file_cannot_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "0.bin").mkdir()
    with pytest.raises(OSError, match=r"0\.bin"):
        write_map(tmp_path / "0.bin", np.ones(2, np.float32))
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.bin"]
    with pytest.raises(FileNotFoundError):
        write_map(tmp_path / "missing" / "0.bin", np.ones(2, np.float32))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
def test_a_write_that_stops_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "0.bin"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"[Ff]ile too large") as caught:
            write_map(path, np.ones((3, 256, 256), np.float32))
        with pytest.raises(BadInputError, match=r"tile t .* 0\.bin in output_dir: File too large"):
            deliver_map(path, np.ones((3, 256, 256), np.float32), "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG  # kept, as that of a full disk is
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.bin"]
