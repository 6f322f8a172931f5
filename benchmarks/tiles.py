"""Tiles: how much of the time is the network's own, in one request and in many, and who waits meanwhile.

Every figure is a ratio of two things measured in turn in one run:

- the engine that the server chose, alone, tile by tile: the bound;
- the server: one request with all the tiles, and 16 threads with a tile each, their maps written to files;
- a naive loop: read a PNG, normalise it, ONNX Runtime, softmax, write the map, one after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.bars import Bar
from benchmarks.networks import write_tile_unet
from benchmarks.timing import in_turn, seconds
from segserve import devices
from segserve.engines.base import Engine, OnnxNetwork
from segserve.engines.candidates import Candidate, start
from tests.serving import Served, start_server

CLASSES = 3
THREADS = 16
NORMALIZATION = {"strategy": "percentile_99", "per_channel": True, "clip_percentile": 99.0}
BOUND, BATCHED, SINGLE, NAIVE = "engine alone", "one request", f"{THREADS} threads, single tiles", "naive loop"


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    backbone: str
    edge: int
    tiles: int
    rounds: int


FULL = Size("resnet34", 512, 16, 3)
QUICK = Size("mobilenet_v2", 64, 6, 2)


class Contest:
    """The competitors, over the same tiles."""

    def __init__(self, size: Size, work: Path, server: Served) -> None:
        self._size = size
        self._server = server
        self._maps = work / "maps"
        self._folder = work / "model"
        self._folder.mkdir()
        write_tile_unet(self._folder / "model.onnx", size.backbone, classes=CLASSES)
        shape = (size.tiles, size.edge, size.edge, 3)
        self._tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self._pictures = [work / f"{index}.png" for index in range(size.tiles)]
        for path, tile in zip(self._pictures, self._tiles, strict=True):
            Image.fromarray(tile).save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = devices.compute_threads()
        self._session = onnxruntime.InferenceSession(self._folder / "model.onnx", options)
        self._engine: Engine | None = None

    def batched(self) -> float:
        """One request with all tiles."""
        return seconds(lambda: self._ask(range(len(self._tiles))))

    def single(self) -> float:
        """Many threads, a tile a request."""
        with ThreadPoolExecutor(THREADS) as pool:
            return seconds(lambda: list(pool.map(lambda index: self._ask([index]), range(len(self._tiles)))))

    def alone(self) -> float:
        """The engine that the server chose, and nothing else."""
        engine = self._engine or self._chosen()
        prepared = np.zeros((1, 3, self._size.edge, self._size.edge), np.float32)
        return seconds(lambda: [engine(prepared) for _ in range(len(self._tiles))])

    def naive(self) -> float:
        """What a script would do."""
        return seconds(lambda: [*map(self._classify, self._pictures)])

    def _chosen(self) -> Engine:
        kept = next((self._server.state_dir / "cache").glob("engine-*.json"))
        chosen = Candidate(**json.loads(kept.read_text())["chosen"])
        print(f"  the server chose {chosen}", flush=True)
        network = OnnxNetwork(self._folder / "model.onnx", np.dtype(np.float32), changing=True)
        self._engine = start(chosen, network)
        self._engine(np.zeros((1, 3, self._size.edge, self._size.edge), np.float32))
        return self._engine

    def _ask(self, indices: Any) -> None:  # noqa: ANN401  # a range or a list of numbers
        chosen = list(indices)
        metadata = {
            "model_path": str(self._folder),
            "tile_ids": [str(index) for index in chosen],
            "tile_height": self._size.edge,
            "tile_width": self._size.edge,
            "num_channels": 3,
            "dtype": "uint8",
            "input_config": {"num_channels": 3, "selected_channels": [0, 1, 2], "normalization": NORMALIZATION},
            "options": {"use_gpu": True},
            "output_dir": str(self._maps),
        }
        files = {"tiles": ("tiles.bin", self._tiles[chosen].tobytes(), "application/octet-stream")}
        form = {"metadata": json.dumps(metadata)}
        answer = self._server.post("/api/v1/inference/pixel/binary", data=form, files=files, timeout=600)
        answer.raise_for_status()

    def _classify(self, path: Path) -> None:
        tile = np.asarray(Image.open(path), np.float32)
        low, high = np.percentile(tile, [1, 99], axis=(0, 1))
        values = np.clip((tile - low) / (high - low), 0, 1).astype(np.float32)
        (logits,) = self._session.run(None, {"input": values.transpose(2, 0, 1)[None]})
        powers = np.exp(logits[0] - logits[0].max(axis=0))
        (powers / powers.sum(axis=0)).astype(np.float32).tofile(path.with_suffix(".bin"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The tile benchmark: throughput as ratios, and what it has to reach.")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to try the benchmark itself")
    size = QUICK if parser.parse_known_args()[0].quick else FULL
    print(
        f"Tiles: unet on {size.backbone}, {size.tiles} of {size.edge} x {size.edge}, median of {size.rounds}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        server = start_server(work / "state")
        try:
            contest = Contest(size, work, server)
            for warm in (contest.batched, contest.alone, contest.naive):
                warm()
            contenders = {BOUND: contest.alone, BATCHED: contest.batched, SINGLE: contest.single, NAIVE: contest.naive}
            medians = in_turn(contenders, size.rounds)
            with _polling(server) as polls:
                contest.single()
        finally:
            server.stop()
    _report(medians, polls, size)


@contextmanager
def _polling(server: Served) -> Iterator[list[float]]:
    """How long `/health` takes meanwhile, in seconds."""
    times: list[float] = []
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            times.append(seconds(lambda: server.get("/api/v1/health").raise_for_status()))
            time.sleep(0.02)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join()


def _report(medians: dict[str, float], polls: list[float], size: Size) -> None:
    moot = "a quick run" if size is QUICK else ""
    for name, median in medians.items():
        print(f"    {name:<28}{median / size.tiles:8.3f} s a tile")
    for above, below, bar in (
        (BOUND, BATCHED, Bar(">=", 0.8, moot)),
        (BATCHED, SINGLE, Bar(">=", 0.7, moot)),
        (NAIVE, BATCHED, None),
    ):
        ratio = medians[above] / medians[below]
        print(f"    throughput of {below} / of {above}: {ratio:.2f}  {bar.verdict(ratio) if bar else '(no bar)'}")
    median, late = np.quantile(polls, [0.5, 0.99]) * 1000
    print(f"    /health meanwhile: median {median:.1f} ms, 99th percentile {late:.1f} ms, {len(polls)} polls")


if __name__ == "__main__":
    main()
