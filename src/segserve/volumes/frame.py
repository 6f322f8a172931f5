"""Where a NIfTI header says its voxels lie."""

from __future__ import annotations

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.quaternions import fillpositive, quat2mat

from segserve.errors import BadInputError
from segserve.volumes.geometry import Affine, directions

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LONGEST_QUATERNION = 1.01  # writers round; beyond this it is no rotation
ROUNDING = 1e-6


def header_affine(header: Nifti1Header) -> Affine:
    """The 4x4 that takes voxel indices (i, j, k) to RAS millimetres.

    The sform where its code is set and it makes sense, else the qform likewise. A header with neither code has no
    orientation; ITK and the viewers take its axes as LPS, and so does this.

    Raises:
        BadInputError: a code is set, but nothing that makes sense goes with it.
    """
    coded = [make(header) for code, make in (("sform_code", _sform), ("qform_code", _qform)) if int(header[code]) > 0]
    if not coded:
        return np.asarray(LPS_TO_RAS @ np.diag([*_spacing(header), 1.0]))
    for affine in coded:
        if np.isfinite(affine).all() and np.linalg.matrix_rank(directions(affine)) == 4:
            return affine
    raise BadInputError("The image's orientation (sform or qform) makes no sense: an axis has no direction or spacing.")


def _sform(header: Nifti1Header) -> Affine:
    return np.asarray(header.get_sform(), np.float64)


def _qform(header: Nifti1Header) -> Affine:
    """The quaternion's rotation as the NIfTI standard reads it, mending what writers round or leave out."""
    vector = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    length = float(np.linalg.norm(vector))
    if not length <= LONGEST_QUATERNION:  # NaN included
        return np.full((4, 4), np.nan)
    affine = np.eye(4)
    handedness = -1.0 if header["pixdim"][0] < 0 else 1.0
    rotation = quat2mat(fillpositive(vector / max(length, 1.0), ROUNDING))
    affine[:3, :3] = rotation @ np.diag(_spacing(header) * [1.0, 1.0, handedness])
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _spacing(header: Nifti1Header) -> Affine:
    """The three spacings, 1 where the header has none: flat images often leave the third at 0."""
    spacing = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    return np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)
