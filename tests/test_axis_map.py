"""Axis maps against ITK's own reorientation."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from segserve.models.request import is_orientation
from segserve.volumes.geometry import AxisMap, axis_map

LETTERS = ["".join(choice) for order in permutations(["LR", "PA", "IS"]) for choice in product(*order)]
SPACING = (1.0, 2.0, 3.0)


def volume(direction: NDArray[np.float64]) -> sitk.Image:
    """A volume of distinct values with the given direction cosines (LPS, columns are the axes)."""
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(4, 3, 2))
    image.SetSpacing(SPACING)
    image.SetDirection(direction.flatten().tolist())
    return image


def ras_affine(image: sitk.Image) -> NDArray[np.float64]:
    """The image's affine as nibabel has it: (i, j, k) to RAS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def signed_permutations() -> list[NDArray[np.float64]]:
    return [
        np.eye(3)[:, list(order)] * np.array(signs)
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]


def rotation(degrees: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return np.asarray(about_z @ about_x)


def test_there_are_48_orientations() -> None:
    assert len(set(LETTERS)) == 48
    assert all(is_orientation(letters) for letters in LETTERS)
    assert not any(is_orientation(letters) for letters in ("LLI", "LP", "XYZ", "LPSI"))


@pytest.mark.parametrize("letters", LETTERS)
def test_reorientation_equals_itks_for_every_axis_order(letters: str) -> None:
    for direction in signed_permutations():
        image = volume(direction)
        expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, letters))
        mapped = axis_map(ras_affine(image), letters).to_network(sitk.GetArrayFromImage(image))
        np.testing.assert_array_equal(mapped, expected)


@pytest.mark.parametrize("degrees", [-30.0, 12.0, 30.0])
def test_reorientation_equals_itks_for_oblique_volumes(degrees: float) -> None:
    for direction in signed_permutations():
        image = volume(rotation(degrees) @ direction)
        expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPI"))
        mapped = axis_map(ras_affine(image), "LPI").to_network(sitk.GetArrayFromImage(image))
        np.testing.assert_array_equal(mapped, expected)


def test_writing_through_the_network_view_writes_the_file_order() -> None:
    for direction in signed_permutations():
        image = volume(direction)
        axes = axis_map(ras_affine(image), "LPI")
        stored = sitk.GetArrayFromImage(image)
        copy = np.zeros_like(stored)
        axes.to_network(copy)[...] = axes.to_network(stored)
        np.testing.assert_array_equal(copy, stored)
        assert axes.network_shape(stored.shape) == axes.to_network(stored).shape


def test_plane_ranges_follow_flips() -> None:
    stored = np.arange(10)[:, None, None]
    for flipped in (False, True):
        axes = AxisMap((0, 1, 2), (flipped, False, False))
        first, last = axes.file_range(0, 2, 5, 10)
        np.testing.assert_array_equal(axes.to_network(stored)[2:5], axes.to_network(stored[first:last]))


def test_native_is_the_files_own_order() -> None:
    stored = np.arange(24).reshape(4, 3, 2)
    np.testing.assert_array_equal(axis_map(np.diag([-1.0, 1, 1, 1]), "native").to_network(stored), stored)
