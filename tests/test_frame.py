"""Header orientations against nibabel's reading, and the defects that real files have."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from segserve.errors import BadInputError
from segserve.volumes.frame import header_affine
from segserve.volumes.geometry import axis_map

ANGLES = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)


def rotated(quaternion: tuple[float, ...]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(np.asarray(quaternion)) @ np.diag([0.7, 1.25, 3.0])
    affine[:3, 3] = [4, -5, 6]
    return affine


@settings(max_examples=60, deadline=None)
@given(quaternion=ANGLES, flipped=st.booleans())
def test_qform_is_read_as_nibabel_reads_it(quaternion: tuple[float, ...], flipped: bool) -> None:
    header = nib.Nifti1Header()
    affine = rotated(quaternion)
    affine[:3, 2] *= -1 if flipped else 1
    header.set_qform(affine, 1)
    np.testing.assert_allclose(header_affine(header), header.get_qform(), atol=2e-3)


def test_a_quaternion_that_rounding_made_too_long_is_still_a_rotation() -> None:
    header = nib.Nifti1Header()
    header.set_qform(rotated((0, 1, 0, 1)), 1)
    header["quatern_b"] = header["quatern_d"] = 0.70711
    with pytest.raises(ValueError, match="w2"):
        header.get_qform()
    np.testing.assert_allclose(header_affine(header), rotated((0, 1, 0, 1)), atol=1e-4)


def test_a_handedness_of_zero_counts_as_one() -> None:
    header = nib.Nifti1Header()
    header.set_qform(rotated((1, 0, 0, 0)), 1)
    header["pixdim"][0] = 0
    np.testing.assert_allclose(header_affine(header), rotated((1, 0, 0, 0)), atol=1e-6)


def test_an_empty_sform_gives_way_to_the_qform() -> None:
    header = nib.Nifti1Header()
    header.set_qform(rotated((1, 2, 3, 4)), 1)
    header.set_sform(np.zeros((4, 4)), 1)
    np.testing.assert_allclose(header_affine(header), header.get_qform(), atol=1e-5)


@pytest.mark.parametrize("spacing", [1e-200, 1e200, 1e308])
def test_no_spacing_is_too_odd_to_give_an_orientation(spacing: float) -> None:
    header = nib.Nifti2Header()
    header.set_sform(np.diag([spacing, 2.0, -3.0, 1.0]), 1)
    assert axis_map(header_affine(header), "LPI") == axis_map(np.diag([1.0, 2.0, -3.0, 1.0]), "LPI")


def test_a_code_with_nothing_usable_is_refused() -> None:
    header = nib.Nifti1Header()
    header.set_sform(np.zeros((4, 4)), 1)
    with pytest.raises(BadInputError, match="makes no sense"):
        header_affine(header)
    header["qform_code"], header["quatern_b"] = 1, 3
    with pytest.raises(BadInputError, match="makes no sense"):
        header_affine(header)
