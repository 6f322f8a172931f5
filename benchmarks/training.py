"""Training: how much of an epoch is the network's own, what reduced precision gains, and who waits for it.

The bound is a bare loop over prepared batches: network, loss, gradients, optimiser, no more. Ours decodes nothing
either (patches are decoded once), but normalises, pads, augments, clips, counts and reports.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import seconds
from segserve import devices
from segserve.models.catalog.architectures import architecture
from segserve.tiles.normalize import Normalization
from segserve.tiles.statistics import measure
from segserve.training.data.patches import load
from segserve.training.data.request import DataRequest
from segserve.training.device import Place, has_fast_bf16
from segserve.training.feed import Feed
from segserve.training.loop import Loop, Setting
from segserve.training.loss import training_loss
from segserve.training.network.build import build_network
from segserve.training.network.freeze import Frozen
from segserve.training.progress import Progress
from segserve.training.spec import ArchitectureChoice, Hyperparameters, InputConfig, TrainingSpec
from tests.datasets import NAMES, write_dataset
from tests.serving import Served, start_server, wait_until

BACKBONE, EDGE, PATCHES, BATCH = "resnet34", 256, 16, 8
REPEATS = 3
POLLS, POLL_SECONDS = 150, 0.05
FP32 = Place("cpu", "CPU", "32-true")
BF16 = Place("cpu", "CPU", "bf16-mixed")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(devices.usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = write_dataset(work / "data", size=(EDGE, EDGE), train=PATCHES, validation=1)
        print(f"Training: unet on {BACKBONE}, {PATCHES} patches of {EDGE} x {EDGE}, batch {BATCH}, median of {REPEATS}")
        _epochs(data, work)
        _polls(work)


def _epochs(data: Path, work: Path) -> None:
    places = [FP32, BF16] if has_fast_bf16() else [FP32]
    contenders: dict[str, Callable[[], object]] = {}
    for place in places:
        contenders[f"bare loop, {place.precision}"] = _bare(data, work, place)
        contenders[f"ours without augmentation, {place.precision}"] = _ours(data, work, place, augmentation=False)
        contenders[f"ours, {place.precision}"] = _ours(data, work, place, augmentation=True)
    for contender in contenders.values():
        contender()  # kernels are chosen, caches filled
    rounds = [[seconds(contender) for contender in contenders.values()] for _ in range(REPEATS)]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    for name, epoch in zip(contenders, medians, strict=True):
        bound = medians[0] if "32-true" in name else medians[3]
        print(f"  {name}: {epoch:.2f} s an epoch = {epoch / bound:.2f} x the bare loop")
    if len(places) == 2:
        print(f"  bfloat16 is {medians[2] / medians[5]:.2f} x as fast as float32")


def _loop(data: Path, work: Path, place: Place, *, augmentation: bool) -> Loop:
    spec = TrainingSpec(
        architecture=ArchitectureChoice(type="unet", backbone=BACKBONE),
        input_config=InputConfig(num_channels=3),
        training=Hyperparameters(epochs=10**4, batch_size=BATCH, augmentation=augmentation, early_stopping=False),
        classes=NAMES[:2],
        data_path=str(data),
    )
    found = load(DataRequest.of(spec), work, memory_bound=2**30)
    normalization, kind = Normalization(), architecture("unet")
    stats = measure(found.train.images, normalization, 0)
    sides = [Feed(patches, normalization, stats, kind) for patches in (found.train, found.validation)]
    setting = Setting(spec, sides[0], sides[1], place, Frozen(()), None)
    return Loop(setting, build_network("unet", BACKBONE, 3, 2), Progress(), lambda: False)


def _ours(data: Path, work: Path, place: Place, *, augmentation: bool) -> Callable[[], object]:
    loop = _loop(data, work, place, augmentation=augmentation)

    def epoch() -> None:
        for _ in loop._batches():
            pass
        loop.progress.next_epoch({})

    return epoch


def _bare(data: Path, work: Path, place: Place) -> Callable[[], object]:
    loop = _loop(data, work, place, augmentation=False)
    network = loop.network.train()
    batches = [
        (images.to(memory_format=torch.channels_last), masks)
        for images, masks in loop.setting.train.batches(loop.setting.train.plan(BATCH, seed=0, epoch=0, shuffle=True))
    ]
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def epoch() -> None:
        for images, masks in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=place is BF16):
                logits = network(images)
            training_loss("ce_dice", logits, masks, None).backward()
            optimizer.step()

    return epoch


def _polls(work: Path) -> None:
    """How long `/health` and a status take, with nothing to do and while one job trains and two wait."""
    data = write_dataset(work / "small", size=(128, 128), train=8, validation=1)
    server = start_server(work / "state")
    try:
        body = {
            "model_type": "unet",
            "architecture": {"backbone": "resnet18", "use_pretrained": False},
            "input_config": {"num_channels": 3, "normalization": {}},
            "training": {"epochs": 500, "batch_size": 8, "early_stopping": False},
            "classes": NAMES[:2],
            "data_path": str(data),
        }
        idle = _latencies(server, ["/api/v1/health"])
        jobs = [_start(server, body) for _ in range(3)]
        wait_until(lambda: server.get(f"/api/v1/train/{jobs[0]}/status").json()["epoch"] > 0, 120)
        busy = _latencies(server, ["/api/v1/health", *(f"/api/v1/train/{job}/status" for job in jobs)])
        for job in jobs:
            server.post(f"/api/v1/train/{job}/cancel")
    finally:
        server.stop()
    for name, latencies in (("idle", idle), ("one job trains, two wait", busy)):
        print(f"  polls, {name}: median {_ms(latencies, 50)} ms, p99 {_ms(latencies, 99)} ms")


def _latencies(server: Served, paths: Sequence[str]) -> list[float]:
    times = []
    for number in range(POLLS):
        times.append(seconds(partial(_poll, server, paths[number % len(paths)])))
        time.sleep(POLL_SECONDS)
    return times


def _start(server: Served, body: dict[str, Any]) -> str:
    answer = server.post("/api/v1/train", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


def _poll(server: Served, path: str) -> None:
    server.get(path).raise_for_status()


def _ms(times: Sequence[float], percentile: int) -> str:
    return f"{1000 * statistics.quantiles(times, n=100)[percentile - 1]:.1f}"


if __name__ == "__main__":
    main()
