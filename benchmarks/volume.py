"""One volume: how much of the time is the network's own, and how long others take for the same labels.

Every figure is a ratio of two things measured in turn in one run:

- the engine that the server chose, called alone on as many patches as the volume has: the bound;
- the server, from upload to download, in float32 and in the reduced precision that `fp16` permits;
- the published server's algorithm (`upstream`) and MONAI's sliding window with torch in float32, from file to file.

Then `benchmarks.brain`, on a network that has learned something.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.bars import Bar
from benchmarks.contest import BOUND, CLASSES, FP16, MONAI, OURS, UPSTREAM, Contest, Size
from benchmarks.networks import gigaflops, random_unet, write_onnx
from benchmarks.timing import seconds
from segserve import devices
from tests.serving import start_server

FULL = Size(32, 96, 48, (160, 192, 192), (96, 96, 96), sample=9, every=14, rounds=2)
QUICK = Size(4, 16, 8, (32, 40, 40), (16, 24, 24), sample=9, every=14, rounds=2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The volume benchmark: times as ratios, and what they have to reach.")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to try the benchmark itself")
    parser.add_argument("--brain-model", help="the brain demo's .onnx, instead of training one for a minute")
    options = parser.parse_args()
    took = seconds(lambda: _compete(QUICK, "a quick run") if options.quick else _compete(FULL, ""))
    # In a process of its own: the demo decides how torch's threads wait, there and in whatever is started after.
    flags = ["--quick"] if options.quick else []
    flags += ["--brain-model", options.brain_model] if options.brain_model else []
    took += seconds(lambda: subprocess.run([sys.executable, "-m", "benchmarks.brain", *flags], check=True))
    print(f"The volume benchmark took {took / 60:.1f} minutes.")


def _compete(size: Size, moot: str) -> None:
    """Run a contest; `moot` says why its outcome is not judged, if it is not."""
    torch.set_num_threads(devices.usable_cores())
    network = random_unet(classes=CLASSES, width=size.width)
    cost = gigaflops(network, size.patch)
    print(
        f"Time: 3D U-Net, random weights, {CLASSES} classes, {cost:.4g} GFLOP per patch of {size.patch}^3", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = write_onnx(network, work / "unet.onnx", patch=size.patch)
        server = start_server(work / "state")
        try:
            contest = Contest(size, network, path, server)
            engines = [f"{ours.engine.name} {ours.engine.precision}" for ours in (contest.exact, contest.reduced)]
            print(f"  the server chose {engines[0]}; with fp16: true, {engines[1]}", flush=True)
            _print_alike(contest.warm_up(work))
            medians = contest.race(work)
        finally:
            server.stop()
    _print_seconds(medians, size)
    _print_ratios(medians, moot)


def _print_alike(alike: dict[str, float]) -> None:
    print("  labels as ours in float32 (classes of a random network nearly tie):")
    for name, share in alike.items():
        print(f"    {name:<32}{share:8.2%}", flush=True)


def _print_seconds(medians: dict[str, float], size: Size) -> None:
    shape = " x ".join(map(str, size.shape))
    print(f"  seconds for {shape} voxels, stride {size.stride}, {size.patches} patches, median of {size.rounds}:")
    notes = {BOUND: " (1)", BOUND + FP16: " (1)", UPSTREAM: " (2)", MONAI: " (2)"}
    for name, median in medians.items():
        print(f"    {name:<32}{median:8.2f}{notes.get(name, '')}")
    run = -(-size.patches // size.every)
    print(f"    (1) {size.sample} of {size.patches} patches, scaled")
    print(f"    (2) the network for {run} of {size.patches} windows, its time scaled; all the rest in full")


def _print_ratios(medians: dict[str, float], moot: str) -> None:
    amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    print("  ratios:")
    for above, below, bar in (
        (OURS, BOUND, Bar("<=", 1.15, moot)),
        (OURS + FP16, BOUND + FP16, Bar("<=", 1.15, moot)),
        (UPSTREAM, OURS, Bar(">=", 1.8, moot)),
        (UPSTREAM, OURS + FP16, Bar(">=", 6, moot or ("" if amx else "no AMX here"))),
        (MONAI, OURS, None),
        (MONAI, OURS + FP16, None),
    ):
        ratio = medians[above] / medians[below]
        print(f"    {f'{above} / {below}':<50}{ratio:6.2f}  {bar.verdict(ratio) if bar else '(no bar)'}")


if __name__ == "__main__":
    main()
