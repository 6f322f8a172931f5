"""A model process holds the logits of one slab of windows, never those of the whole volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import memory, networks, volumes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving import Served


@dataclass
class Watched:
    """A many-class network alone on its server, and the folder its volumes go to."""

    server: Served
    folder: Path
    classes: int
    patch: tuple[int, int, int]

    def load(self) -> Watched:
        model = networks.wide_network(self.folder / "wide.onnx", self.classes)
        config = {"patch_size": list(self.patch), "patch_stride": list(self.patch)}
        self.server.load("wide", model, inference_config=config)
        return self

    def peak(self, shape: tuple[int, int, int]) -> int:
        """The most the model's process held while it segmented a volume of shape (z, y, x)."""
        voxels = np.random.default_rng(5).integers(0, self.classes, shape[::-1], np.int16)
        header = volumes.Header(sform=volumes.affine_of("LPI"))
        path = volumes.write(self.folder / "volume.nii", voxels, header)
        with memory.Peak(self.server.workers()) as peak:
            answer = self.server.infer(path, model_name="wide")
        assert answer.status_code == 200, answer.text
        assert (volumes.labels_of(answer.content) == voxels).all()
        return peak.size

    def at_rest(self) -> int:
        """What the process holds after a volume of one patch."""
        self.peak(self.patch)
        return memory.held(self.server.workers())

    def slab(self, across: int) -> int:
        """Bytes of the logits of one patch depth over a cross-section of `across` voxels."""
        return self.classes * self.patch[0] * across * 4


def test_peak_memory_is_one_slab_of_logits_and_does_not_grow_with_depth(own_server: Served, tmp_path: Path) -> None:
    watched = Watched(own_server, tmp_path, 48, (32, 32, 32)).load()
    rest = watched.at_rest()
    single = watched.peak((96, 96, 96)) - rest
    double = watched.peak((192, 96, 96)) - rest
    slab = watched.slab(96 * 96)
    assert single <= 1.3 * slab, f"{single / slab:.2f} slabs"
    assert double <= 1.3 * slab, f"{double / slab:.2f} slabs"
    assert double == pytest.approx(single, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("side", [96, 32])
def test_peak_memory_of_a_hundred_classes_over_a_large_volume(side: int, own_server: Served, tmp_path: Path) -> None:
    watched = Watched(own_server, tmp_path, 105, (side, side, side)).load()
    rest = watched.at_rest()
    single = watched.peak((256, 256, 256)) - rest
    double = watched.peak((512, 256, 256)) - rest
    slab = watched.slab(256 * 256)
    assert single <= 1.15 * slab, f"{single / slab:.3f} slabs"
    assert double == pytest.approx(single, rel=0.03), f"{double / slab:.3f} slabs against {single / slab:.3f}"
