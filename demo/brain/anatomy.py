"""The brain: nilearn's packaged MNI152 template with its grey- and white-matter probability maps."""

from dataclasses import dataclass
from typing import TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nilearn import datasets

Kind = TypeVar("Kind", bound=np.generic)

LABELS = {0: "background", 1: "grey matter", 2: "white matter"}
GREY, WHITE = 1, 2
NETWORK_ORIENTATION = "LPI"
SPLIT_MM = -20.0
"""World y in mm (RAS+): the network learns in front of this plane and is judged behind it."""
WHITE_MATTER_LEVEL = 1000.0
"""Intensity per unit of the template; white matter is then near 850, as in a real T1 scan."""


@dataclass(frozen=True)
class Brain:
    """A T1 volume with its true labels, both on one grid with array axes (X, Y, Z), 2 mm voxels.

    `intensity`: float32, scanner units, 0 outside the brain.
    `labels`: uint8, keys of `LABELS`.
    `affine`: (4, 4) float64, voxel index to world mm, RAS+.
    """

    intensity: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]

    def y_mm(self) -> npt.NDArray[np.float64]:
        """World y in mm of each slice along the second array axis, shape (Y,)."""
        step, origin = float(self.affine[1, 1]), float(self.affine[1, 3])
        return origin + step * np.arange(self.labels.shape[1], dtype=np.float64)


def load_brain() -> Brain:
    """The template at 2 mm, labelled by the likeliest of three: grey matter, white matter, neither.

    "Neither" gets the probability that grey and white leave over, so fluid and skull are background.
    """
    template = datasets.load_mni152_template(resolution=2)
    grey = datasets.load_mni152_gm_template(resolution=2).get_fdata()
    white = datasets.load_mni152_wm_template(resolution=2).get_fdata()
    likeliest = np.argmax([1.0 - grey - white, grey, white], axis=0)
    return Brain(
        intensity=(WHITE_MATTER_LEVEL * template.get_fdata()).astype(np.float32),
        labels=likeliest.astype(np.uint8),
        affine=np.asarray(template.affine, dtype=np.float64),
    )


def in_network_frame(array: npt.NDArray[Kind], affine: npt.NDArray[np.float64]) -> npt.NDArray[Kind]:
    """Turn an (X, Y, Z) array of any orientation into what the server feeds a network: (Z, Y, X), LPI.

    x then grows to the patient's left, y to the back, z downwards.
    """
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(NETWORK_ORIENTATION)
    )
    turned: npt.NDArray[Kind] = nib.orientations.apply_orientation(array, turn).transpose(2, 1, 0)
    return np.ascontiguousarray(turned)
