"""`make soak`: an hour of everything at once, good and bad; what the server holds must not grow.

Every 10 s the server's memory, descriptors, threads, processes and spool are looked at. Over the second half a straight
line is laid through each; the run passes if none of them rises by more than `MOST_RISE` from its beginning to its end.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import psutil
import requests

from tests.classifier_client import captured_body
from tests.corruption import corrupted, corrupted_json
from tests.datasets import write_dataset
from tests.networks import conv_network, threshold_network
from tests.serving import Served, start_server, wait_until
from tests.small_networks import save_volume
from tests.tile_client import form_request, json_request, picture, png_url
from tests.tile_networks import pixel_classifier

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
SAMPLE_SECONDS = 10.0
CLASSIFIERS = 6  # more than max_tile_models, so that one goes for every one that comes
MEBI = 2**20
MOST_RISE = {"server": 25.0, "descriptors": 8.0, "threads": 8.0, "processes": 2.0, "volumes": 25.0, "spool": 4.0}
FORBIDDEN = frozenset(range(500, 600)) - {501, 503, 507}


@dataclass(frozen=True)
class Sample:
    """What the server holds at one moment.

    Attributes:
        server: MiB of the HTTP process.
        descriptors: open in that process.
        threads: of that process.
        processes: children of all kinds.
        volumes: MiB of the processes that hold models for volumes.
        spool: files in the spool.
    """

    server: float
    descriptors: float
    threads: float
    processes: float
    volumes: float
    spool: float


NAMES = [field.name for field in fields(Sample)]


def look(served: Served) -> Sample:
    """What the server holds now."""
    process = psutil.Process(served.process.pid)
    children = process.children(recursive=True)
    seen = process.as_dict(["num_handles" if sys.platform == "win32" else "num_fds"])
    volumes = 0
    for child in children:
        with suppress(psutil.NoSuchProcess, ValueError):
            line = child.cmdline()
            volumes += child.memory_info().rss if line[line.index("--kind") + 1] == "volume" else 0
    own = process.memory_info().rss
    spool = len(served.spool_files())
    (descriptors,) = seen.values()
    return Sample(own / MEBI, descriptors, process.num_threads(), len(children), volumes / MEBI, spool)


class Load:
    """Threads that each do one kind of thing over and over; counts what came of it."""

    def __init__(self, served: Served, work: Path) -> None:
        self.outcomes: Counter[tuple[str, int]] = Counter()
        self.over = threading.Event()
        self._served = served
        self._volume = work / "volume.nii"
        save_volume(self._volume, (30, 28, 26))
        config = {"patch_size": [16, 16, 16], "engine": "openvino"}
        served.load("first", threshold_network(work / "first.onnx", 50), inference_config=config)
        served.load("second", conv_network(work / "second.onnx", 3), inference_config=config)
        self._classifiers = [pixel_classifier(work / f"pixels{index}") for index in range(CLASSIFIERS)]
        self._tile = png_url(picture(64, 64))
        self._data = write_dataset(work / "data", train=2, validation=1)
        kinds: list[Callable[[], int]] = [self.volume, self.tile, self.training, self.garbage, self.hang_up]
        self.threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]

    def _repeat(self, kind: Callable[[], int]) -> None:
        while not self.over.is_set():
            self.outcomes[kind.__name__, kind()] += 1

    def volume(self) -> int:
        """One volume, by either model."""
        return self._served.infer(self._volume, model_name=random.choice(("first", "second"))).status_code

    def tile(self) -> int:
        """One tile, by any classifier."""
        body = json_request(random.choice(self._classifiers), {"t": self._tile})
        return self._served.post("/api/v1/inference", json=body).status_code

    def training(self) -> int:
        """A training that is begun and soon cancelled."""
        begun = self._served.post("/api/v1/train", json=captured_body(self._data, epochs=50))
        self.over.wait(random.uniform(0, 20))
        if begun.ok:
            self._served.post(f"/api/v1/train/{begun.json()['job_id']}/cancel")
        return begun.status_code

    def garbage(self) -> int:
        """A spoilt volume or a spoilt request for tiles."""
        seed = random.getrandbits(32)
        if seed % 2:
            image = corrupted(self._volume.read_bytes(), seed)
            answer = self._served.post("/api/infer", data={"model_name": "first"}, files={"image": image})
        else:
            body = corrupted_json(json_request(self._classifiers[0], {"t": self._tile}), seed)
            with suppress(requests.exceptions.InvalidJSONError, UnicodeEncodeError):
                return self._served.post("/api/v1/inference", json=body).status_code
            return 0
        return answer.status_code

    def hang_up(self) -> int:
        """A client that goes away: in the middle of its upload, or before the answer."""
        form = {"model_name": (None, b"second"), "image": ("v.nii", self._volume.read_bytes())}
        head, body = form_request(self._served.url, "/api/infer", form)
        sent = random.choice((len(body), len(body) // 2))
        with self._served.dial() as connection:
            connection.sendall(head + body[:sent])
            self.over.wait(random.uniform(0, 0.3))
        return 0


def rise(values: list[float]) -> float:
    """By how much a straight line through these rises from the first to the last."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0] * (len(values) - 1))


def verdict(samples: list[Sample], load: Load) -> list[str]:
    """Print what was seen; what was wrong with it."""
    late = samples[len(samples) // 2 :]
    wrong: list[str] = []
    print(f"{'':12}{'first':>9}{'last':>9}{'most':>9}{'rise in the second half':>26}{'allowed':>9}")
    for place, name in enumerate(NAMES):
        values = [astuple(sample)[place] for sample in samples]
        grown = rise([astuple(sample)[place] for sample in late])
        print(f"{name:12}{values[0]:9.1f}{values[-1]:9.1f}{max(values):9.1f}{grown:26.1f}{MOST_RISE[name]:9.1f}")
        if grown > MOST_RISE[name]:
            wrong.append(f"{name} rises by {grown:.1f} in the second half")
    for (kind, status), count in sorted(load.outcomes.items()):
        print(f"  {kind:10} {status or 'gone':>5} {count:7}")
    wrong += [f"{kind} was answered {status}" for kind, status in load.outcomes if status in FORBIDDEN]
    done = {kind for kind, status in load.outcomes if status in {0, 200}}
    return wrong + [f"no {kind} succeeded" for kind in ("volume", "tile", "training", "hang_up") if kind not in done]


def main() -> None:
    """Load a server for `SOAK_MINUTES` and say whether it held."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        served = start_server(work / "state")
        try:
            load = Load(served, work)
            samples: list[Sample] = []
            for thread in load.threads:
                thread.start()
            end = time.monotonic() + MINUTES * 60
            while time.monotonic() < end and all(thread.is_alive() for thread in load.threads):
                time.sleep(SAMPLE_SECONDS)
                samples.append(look(served))
            early = time.monotonic() < end
            load.over.set()
            for thread in load.threads:
                thread.join()
            wrong = verdict(samples, load) + (["a client failed: see above"] if early else [])
            with suppress(AssertionError):
                wait_until(lambda: not served.spool_files(), 30)
            wrong += [f"{len(left)} files stay in the spool"] if (left := served.spool_files()) else []
        finally:
            served.stop()
    print("\n".join(wrong) or "held")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
