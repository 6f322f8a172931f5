"""A network that has learned something, the brain demo's: labels in reduced precision, and what skipped air saves."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import requests

from benchmarks.bars import Bar
from benchmarks.timing import in_turn, seconds
from demo.brain.anatomy import Brain, load_brain
from demo.brain.disturbance import disturb
from demo.brain.export import PATCH, export
from demo.brain.network import EFFORT, SmallUNet
from demo.brain.story import SCAN_SEED
from demo.brain.training import train
from tests.serving import Served, start_server
from tests.volumes import labels_of

FIELD_VOXELS = 224
"""Edge of the field of view in which the brain lies for the sake of the air around it: 45 cm, as of a CT."""
AIR = 1.0
"""Intensity of the template up to which there is nothing."""
SKIPPING, WHOLE = "skip_uniform: true", "skip_uniform: false"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The volume benchmark's part on a trained network.")
    parser.add_argument("--quick", action="store_true", help="do not train, and take wide steps")
    parser.add_argument("--brain-model", type=Path, help="the brain demo's .onnx, instead of training one for a minute")
    options = parser.parse_args()
    brain = load_brain()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        network = options.brain_model or _network(brain, work / "brain.onnx", quick=options.quick)
        server = start_server(work / "state")
        try:
            _compare_precisions(server, network, _scan(brain, work / "scan.nii.gz"), "a quick run" * options.quick)
            _compare_skipping(server, network, _scan_in_air(brain, work / "air.nii.gz"), 1 if options.quick else 3)
        finally:
            server.stop()


def _network(brain: Brain, path: Path, *, quick: bool) -> Path:
    """The demo's network, trained unless the run is quick."""
    print(f"Brain: the demo's network, {'untrained' if quick else 'being trained'}", flush=True)
    network = (
        SmallUNet().eval() if quick else train(SmallUNet, brain, EFFORT, lambda line: print(f"  {line}", flush=True))
    )
    export(network, path)
    return path


def _disturbed(brain: Brain) -> npt.NDArray[np.int16]:
    """The demo's scan, (X, Y, Z)."""
    return np.rint(disturb(brain.intensity, np.random.default_rng(SCAN_SEED))).astype(np.int16)


def _scan(brain: Brain, path: Path) -> Path:
    nib.Nifti1Image(_disturbed(brain), brain.affine).to_filename(path)
    return path


def _scan_in_air(brain: Brain, path: Path) -> Path:
    """The demo's scan with air around the brain that has no noise in it, and much of it."""
    clean = np.where(brain.intensity > AIR, _disturbed(brain), np.int16(0))
    missing = [FIELD_VOXELS - size for size in clean.shape]
    values = np.pad(clean, [(gap // 2, gap - gap // 2) for gap in missing])
    nib.Nifti1Image(values, brain.affine).to_filename(path)
    return path


def _compare_precisions(server: Served, network: Path, scan: Path, moot: str) -> None:
    labels = []
    for fp16 in (False, True):
        card = server.load("brain", network, inference_config={"fp16": fp16})
        answer = _infer(server, scan, "brain")
        labels.append(labels_of(answer.content))
        print(f"  fp16: {str(fp16).lower()} runs {card['engine']} {card['precision']}", *card["warnings"])
        print(f"    {answer.headers['X-Segserve-Patches']} windows, {answer.headers['X-Segserve-Skipped']} skipped")
    differing, tissue = int(np.sum(labels[0] != labels[1])), int(np.sum((labels[0] > 0) | (labels[1] > 0)))
    same = 1 - differing / labels[0].size
    print(f"  the same label: {same:.3%} of {labels[0].size} voxels {Bar('>=', 0.995, moot).verdict(same)};")
    print(f"    {differing} differ, {tissue} are called tissue by either", flush=True)


def _compare_skipping(server: Served, network: Path, scan: Path, rounds: int) -> None:
    config: dict[str, Any] = {"patch_stride": PATCH}
    # The same engine for both: `auto` may find another one the fastest the second time.
    config["engine"] = server.load(SKIPPING, network, inference_config=config)["engine"]
    server.load(WHOLE, network, inference_config={**config, "skip_uniform": False})
    skipping, whole = (_infer(server, scan, name) for name in (SKIPPING, WHOLE))
    patches, skipped = (int(skipping.headers[f"X-Segserve-{name}"]) for name in ("Patches", "Skipped"))
    assert whole.headers["X-Segserve-Skipped"] == "0"
    assert skipped > 0
    identical = np.array_equal(labels_of(skipping.content), labels_of(whole.content))
    names = (SKIPPING, WHOLE)
    medians = in_turn({name: partial(seconds, partial(_infer, server, scan, name)) for name in names}, rounds)
    print(f"  in {FIELD_VOXELS}^3 voxels, most of them air, {skipped} of {patches} windows are skipped;")
    print(f"    labels with skipping and without are {'identical: ok' if identical else 'different: missed'}")
    print(f"    {1 - skipped / patches:.2f} of the windows take {medians[SKIPPING] / medians[WHOLE]:.2f} of the time:")
    print(f"    {medians[SKIPPING]:.2f} s instead of {medians[WHOLE]:.2f} s, median of {rounds}", flush=True)


def _infer(server: Served, image: Path, name: str) -> requests.Response:
    answer = server.infer(image, model_name=name)
    answer.raise_for_status()
    return answer


if __name__ == "__main__":
    main()
