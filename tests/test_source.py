"""An image's odd values are found, however its voxels are shared among planes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.volumes.nifti import read_planes
from segserve.volumes.source import Limits, open_image
from tests import volumes

LIMITS = Limits(max_decompressed=2**32, max_voxels=2**31)


@pytest.mark.parametrize("shape", [(1, 1, 30_000), (20, 15, 1000), (700, 600, 3), (1, 30_000, 20)])
def test_odd_values_are_found_in_few_looks(
    shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    flat = voxels.reshape(-1, order="F")  # as they lie in the file
    flat[[0, 7, -1]] = np.nan, np.inf, -np.inf
    flat[-2] = -100
    path = volumes.write(tmp_path / "image.nii", flat.reshape(shape, order="F"), volumes.Header())
    looks = 0

    def read(*args: Any) -> NDArray[Any]:
        nonlocal looks
        looks += 1
        return read_planes(*args)

    monkeypatch.setattr("segserve.volumes.source.read_planes", read)
    found, warnings = open_image(path, tmp_path, LIMITS).intensities()
    assert found.fill == -100
    assert warnings == ["3 voxels were NaN or infinite and count as the lowest finite value, -100"]
    assert looks <= 5
