"""Training: about a minute of random patches from the front of the brain, for each network."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from demo.brain.anatomy import LABELS, SPLIT_MM, Brain, in_network_frame
from demo.brain.disturbance import disturb

Network = TypeVar("Network", bound=nn.Module)

WINDOW_LEVEL = 850.0
WINDOW_WIDTH = 1700.0
"""Level and width of the intensity window in scanner units: 0..1700 becomes 0..1."""
PATCH = 32
"""Of the training; the server may use larger ones."""
BATCH = 5
SEED = 20
WARM_UP = 0.1
REPORTS = 4


@dataclass(frozen=True)
class Effort:
    """How long a network is trained, and how fast it learns.

    Attributes:
        peak_rate: the learning rate at its highest.
        seconds: of training, at least.
        steps: likewise; a busy machine trains longer rather than too little.
    """

    peak_rate: float
    seconds: float
    steps: int


def windowed(intensity: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scanner units to 0..1, float32, exactly as the server does it before the network."""
    low = np.float32(WINDOW_LEVEL - WINDOW_WIDTH / 2)
    high = np.float32(WINDOW_LEVEL + WINDOW_WIDTH / 2)
    return (np.clip(intensity, low, high) - low) / np.float32(WINDOW_WIDTH)


class FrontPatches:
    """Random disturbed patches from the part of the brain in front of `SPLIT_MM`."""

    def __init__(self, brain: Brain, rng: np.random.Generator) -> None:
        front = brain.y_mm() > SPLIT_MM
        self._intensity = in_network_frame(brain.intensity[:, front], brain.affine)
        self._labels = in_network_frame(brain.labels[:, front], brain.affine)
        self._rng = rng

    def _patch(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        corner = [int(self._rng.integers(0, size - PATCH + 1)) for size in self._labels.shape]
        place = tuple(slice(start, start + PATCH) for start in corner)
        flipped = tuple(axis for axis in range(3) if self._rng.random() < 0.5)
        order = self._rng.permutation(3)
        image = np.flip(self._intensity[place], flipped).transpose(order)
        labels = np.flip(self._labels[place], flipped).transpose(order)
        return windowed(disturb(image, self._rng)), labels.astype(np.int64)

    def batch(self) -> tuple[Tensor, Tensor]:
        """`BATCH` patches: images (N, 1, Z, Y, X) float32 in 0..1 and labels (N, Z, Y, X) int64."""
        images, labels = zip(*(self._patch() for _ in range(BATCH)), strict=True)
        return torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.stack(labels))


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus one minus the mean soft Dice of the tissues; a scalar."""
    truth = F.one_hot(labels, len(LABELS)).movedim(-1, 1)
    guess = logits.softmax(dim=1)
    over_voxels = (0, 2, 3, 4)
    overlap = (guess * truth).sum(over_voxels)
    dice = (2 * overlap + 1) / (guess.sum(over_voxels) + truth.sum(over_voxels) + 1)
    return F.cross_entropy(logits, labels) + 1 - dice[1:].mean()


def learning_rate(peak: float, progress: float) -> float:
    """The rate at `progress` 0..1 through the training: a short climb, then a cosine down to nothing."""
    if progress < WARM_UP:
        return peak * (0.1 + 0.9 * progress / WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def train(make: Callable[[], Network], brain: Brain, effort: Effort, say: Callable[[str], None]) -> Network:
    """Train a fresh network on the front of `brain`, reporting a few times through `say`; in evaluation mode."""
    torch.manual_seed(SEED)
    patches = FrontPatches(brain, np.random.default_rng(SEED))
    network = make()
    optimiser = torch.optim.AdamW(network.parameters(), lr=effort.peak_rate)
    start, step, progress, reported = time.monotonic(), 0, 0.0, 0
    while progress < 1:
        optimiser.param_groups[0]["lr"] = learning_rate(effort.peak_rate, progress)
        images, labels = patches.batch()
        loss = segmentation_loss(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        seconds = time.monotonic() - start
        progress = min(seconds / effort.seconds, step / effort.steps)
        if progress * REPORTS >= reported + 1:
            reported += 1
            say(f"after {seconds:3.0f} s, {step:4d} steps: loss {loss.item():.3f}")
    return network.eval()
