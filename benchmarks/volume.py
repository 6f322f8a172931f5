"""One volume: how much of the time is the network's own.

Three figures of one run: the engine alone on as many patches as the volume has (the bound), the core without HTTP,
and a request to a server.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.networks import write_unet
from segserve.models.request import parse_load_request
from segserve.volumes.model import Job, VolumeModel
from segserve.volumes.source import Limits
from tests.serving import Served, start_server

PATCH, STRIDE, CLASSES, WIDTH = 64, 32, 14, 16
SHAPE = (128, 128, 96)
REPEATS = 3


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        network = write_unet(work / "unet.onnx", classes=CLASSES, width=WIDTH, patch=PATCH)
        image = work / "image.nii.gz"
        noise = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), image)
        print(f"Time: 3D U-Net, {CLASSES} classes, patch {PATCH}, stride {STRIDE}, volume {SHAPE}, median of {REPEATS}")
        server = start_server(work / "state")
        try:
            _compare(network, image, work, server)
        finally:
            server.stop()


def _compare(network: Path, image: Path, work: Path, server: Served) -> None:
    config = {"patch_stride": STRIDE}
    body = {"name": "unet", "backend_type": "onnx", "model_path": str(network), "inference_config": config}
    model = VolumeModel.load(parse_load_request(body), default_patch=PATCH)
    server.load("unet", network, inference_config=config)
    patches = _segment(model, image, work)
    # In turn, not in blocks: a machine that slows down slows all three.
    rounds = [
        (
            _seconds(lambda: _engine_only(model, patches)),
            _seconds(lambda: _segment(model, image, work)),
            _seconds(lambda: server.infer(image, model_name="unet").raise_for_status()),
        )
        for _ in range(REPEATS)
    ]
    engine, core, http = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"  {patches} patches, engine alone: {engine:.2f} s")
    for name, seconds in (("core", core), ("HTTP request", http)):
        print(f"  {name}: {seconds:.2f} s = {seconds / engine:.2f} x the engine alone")


def _segment(model: VolumeModel, image: Path, work: Path) -> int:
    limits = Limits(max_decompressed=2**34, max_voxels=2**31)
    return model.segment(Job(image, work / "labels.nii.gz", work, limits)).patches


def _engine_only(model: VolumeModel, patches: int) -> None:
    batch = np.random.default_rng(0).normal(size=model.engine.input_shape).astype(np.float32)
    for _ in range(patches):
        model.engine(batch)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
