"""Volumes to measure with, and the reading and writing that programs built on SimpleITK do around a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK

ORIENTATION = "LPI"
LEVEL, WIDTH = 0.0, 2000.0
"""The intensity window that goes with `write_volume`: its values become 0..1."""
WAVELENGTH_VOXELS = 60.0


def write_volume(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write an int16 volume (Z, Y, X) of slow waves under noise, with an identity direction.

    No two of its windows are alike, and none is uniform.
    """
    rng = np.random.default_rng(0)
    waves = [np.sin(2 * np.pi / WAVELENGTH_VOXELS * np.arange(size)) for size in shape]
    smooth = sum(np.ix_(*waves))
    values = 250 * smooth + rng.normal(0, 100, shape)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.rint(values).astype(np.int16)), str(path))
    return path


def read_turned(path: Path) -> tuple[npt.NDArray[np.float32], SimpleITK.Image]:
    """A volume as a network gets it, float32 (Z, Y, X), turned to `ORIENTATION` and windowed; and the turned image."""
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), ORIENTATION)
    low, high = LEVEL - WIDTH / 2, LEVEL + WIDTH / 2
    values = np.clip(SimpleITK.GetArrayFromImage(image).astype(np.float32), low, high)
    return (values - np.float32(low)) / np.float32(WIDTH), image


def write_labels(labels: npt.NDArray[np.uint8], like: SimpleITK.Image, path: Path) -> None:
    """Write labels (Z, Y, X) on the grid of `like`."""
    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(like)
    SimpleITK.WriteImage(image, str(path))


def turned_labels(path: Path) -> npt.NDArray[np.uint8]:
    """The labels (Z, Y, X) of a file, turned to `ORIENTATION`."""
    labels: npt.NDArray[np.uint8] = SimpleITK.GetArrayFromImage(
        SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), ORIENTATION)
    )
    return labels
