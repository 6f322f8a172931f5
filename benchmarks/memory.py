"""Memory of the model process on a network of many classes: one slab of scores, however long the volume."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from segserve.volumes.grid import FLOAT_BYTES
from tests.memory import Peak
from tests.networks import wide_network
from tests.serving import Served, start_server

CLASSES, SIDE, PATCH = 105, 192, 32
MEBI = 2**20


def main() -> None:
    """Measure and print."""
    slab = CLASSES * PATCH * SIDE * SIDE * FLOAT_BYTES
    print(f"Memory: {CLASSES} classes, patch {PATCH}; one slab of scores is {slab / MEBI:.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        server = start_server(work / "state")
        try:
            network = wide_network(work / "wide.onnx", classes=CLASSES)
            base = _peak(server, network, work, (PATCH, PATCH, PATCH))
            for length in (SIDE, 2 * SIDE):
                more = _peak(server, network, work, (SIDE, SIDE, length)) - base
                every = CLASSES * SIDE * SIDE * length * FLOAT_BYTES
                print(
                    f"  {SIDE} x {SIDE} x {length}: {more / MEBI:.0f} MiB = {more / slab:.2f} slabs "
                    f"(all scores at once: {every / MEBI:.0f} MiB)"
                )
        finally:
            server.stop()


def _peak(server: Served, network: Path, work: Path, shape: tuple[int, int, int]) -> int:
    """The most bytes a fresh model process holds while it segments one volume."""
    image = work / "image.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), image)
    server.load("wide", network, inference_config={"patch_size": PATCH, "patch_stride": PATCH})
    with Peak(server.workers()) as peak:
        server.infer(image, model_name="wide").raise_for_status()
    return peak.size
