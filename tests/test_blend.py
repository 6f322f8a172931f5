"""Sums of windows against MONAI's sliding window: the same positions, the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segserve.volumes.blend import window_weights
from segserve.volumes.grid import Grid
from segserve.volumes.labels import above
from segserve.volumes.sliding import Sweep, Windows

CLASSES = 4
CASES = [
    ((21, 17, 30), (8, 8, 8), 0.5),
    ((16, 20, 13), (8, 12, 4), 0.25),
    ((5, 30, 9), (8, 8, 8), 0.75),
    ((3, 4, 5), (8, 8, 8), 0.5),
]


class TorchEngine:
    """Two random convolutions in torch, as an engine."""

    name, device, precision = "torch", "cpu", "float32"

    def __init__(self, classes: int) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv3d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(6, classes, 3, padding=1)
        ).eval()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            answer: NDArray[np.float32] = self.network(torch.from_numpy(batch)).numpy()
        return answer


def averaged(engine: TorchEngine, volume: NDArray[np.float32], grid: Grid, windows: Windows) -> NDArray[np.float32]:
    """The averaged logits (K, Z, Y, X), caught where labels are made of them."""
    planes: list[NDArray[np.float32]] = []

    def catch(scores: NDArray[np.float32], windows: NDArray[np.float32], out: NDArray[Any]) -> None:
        planes.append(scores / windows)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return volume.take(range(start, stop), axis=grid.sweep)

    def take(start: int, stop: int) -> NDArray[Any]:
        return np.empty((stop - start, 1, 1))

    Sweep(engine, grid, CLASSES, catch, windows).run(read, take, lambda done, total: None)
    return np.moveaxis(np.stack(planes, 1), 1, 1 + grid.sweep)


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize(("shape", "patch", "overlap"), CASES)
def test_averages_are_those_of_monai(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float, blend: str
) -> None:
    from monai.inferers.utils import sliding_window_inference  # late: importing it takes ten seconds

    engine = TorchEngine(CLASSES)
    volume = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = sliding_window_inference(
            torch.from_numpy(volume)[None, None],
            patch,
            2,
            engine.network,
            overlap=overlap,
            mode=blend,
            sigma_scale=0.125,
            padding_mode="replicate",
        )
    assert isinstance(expected, torch.Tensor)
    z, y, x = (max(int(size * (1 - overlap)), 1) for size in patch)
    for sweep in range(3):
        grid = Grid(shape, patch, (z, y, x), sweep)
        found = averaged(engine, volume, grid, Windows(3, window_weights(blend, patch)))
        np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)


def test_gaussian_weights_reach_networks_that_end_in_a_probability() -> None:
    # The mean of 0.9 and 0.2 is above one half, their mean weighted by place is not.
    scores = np.array([[[0.9 * 0.1 + 0.2 * 1.0]]], np.float32)
    out = np.empty((1, 1), np.uint8)
    decide = above(0.5, "none")
    decide(scores, np.array([[1.1]], np.float32), out)
    assert out[0, 0] == 0
    decide(np.array([[[0.9 + 0.2]]], np.float32), np.array([[2.0]], np.float32), out)
    assert out[0, 0] == 1
