"""Volumes, tiles and trainings at once, while processes of the server's family are killed one after the other."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from tests import tile_networks
from tests.classifier_client import Json, captured_body
from tests.light_server import Phoenix, patiently
from tests.light_worker import weights_after
from tests.serving import Served, wait_until
from tests.small_networks import assert_labels, save_volume, threshold_network
from tests.test_tile_models import TILE, ask, first_pixel

EPOCHS = 5
SERVER_IS_GONE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
GIVEN_UP = ("without getting further", "got no further")


class Load:
    """Clients that ask for something all the time, and notice what no client should see."""

    def __init__(self, phoenix: Phoenix, folder: Path) -> None:
        self.served: Served = phoenix.served  # its addresses outlive it
        self.network = threshold_network(folder / "above_100.onnx", 100)
        self.scan = folder / "image.nii.gz"
        self.labels = save_volume(self.scan) > 100
        self.classifier = tile_networks.pixel_classifier(folder / "tiles", shift=2)
        self.probability = float(tile_networks.pixel_answer(TILE, shift=2)[0, 0, 0])
        self.jobs: list[str] = []
        self.broken_off = 0
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        clients = (self.segment, self.segment, self.classify, self.classify, self.train, self.poll)
        self._threads = [threading.Thread(target=self._repeat, args=(client,), daemon=True) for client in clients]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop asking; every request must have its end."""
        self._over.set()
        for thread in self._threads:
            thread.join(130)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def _repeat(self, client: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                client()
                self.outcomes[client.__name__] += 1
            except SERVER_IS_GONE:
                self.outcomes["broken off"] += 1
                time.sleep(0.05)
            except Exception as error:  # the time-out among them; an assertion in a thread would be nobody's
                self.faults.append(f"{client.__name__}: {error!r}")
                return

    def segment(self) -> None:
        with self.scan.open("rb") as stream:
            answer = self.served.post("/api/infer", data={"model_name": "fine"}, files={"image": stream})
        if answer.status_code == 200:
            assert_labels(answer, self.labels)
        elif answer.status_code in {400, 404}:  # the server that had loaded it is gone
            assert "fine" in answer.json()["error"], answer.text
            body = {"name": "fine", "backend_type": "onnx", "model_path": str(self.network)}
            loaded = self.served.post("/api/models", json=body)
            assert loaded.status_code in {200, 503}, loaded.text
        else:
            assert answer.status_code == 503, answer.text

    def classify(self) -> None:
        answer = ask(self.served, self.classifier)
        if answer.status_code != 503:
            assert first_pixel(answer)[0] == pytest.approx(self.probability, abs=1e-5)

    def train(self) -> None:
        try:
            answer = self.served.post("/api/v1/train", json=captured_body(Path("/data"), epochs=EPOCHS))
        except SERVER_IS_GONE:
            self.broken_off += 1  # it may be there or not
            raise
        assert answer.status_code in {200, 503}, answer.text
        if answer.status_code == 200:
            self.jobs.append(answer.json()["job_id"])
        self._over.wait(2)

    def poll(self) -> None:
        for job_id in list(self.jobs):
            answer = self.served.get(f"/api/v1/train/{job_id}/status")
            assert answer.status_code == 200, answer.text
        self._over.wait(0.1)


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[Phoenix]:
    phoenix = Phoenix(tmp_path)
    yield phoenix
    phoenix.end()
    wait_until(lambda: not phoenix.family(), 10, "a process outlived its server")


def kill_one(phoenix: Phoenix, chance: random.Random, *, spare_server: bool) -> None:
    """Any process of the family, the server itself too."""
    victims = sorted(phoenix.family(), key=lambda process: process.pid)
    server = phoenix.served.process.pid
    victim = chance.choice([process for process in victims if not spare_server or process.pid != server] or [None])
    if victim is None:
        return
    if victim.pid == server:
        phoenix.kill()
        phoenix.start()
        return
    with suppress(psutil.NoSuchProcess):
        victim.kill()


def descriptors(phoenix: Phoenix) -> int:
    """Of the server when it has nothing to do and no model."""
    phoenix.served.post("/api/v1/gpu/clear")
    phoenix.served.delete("/api/models/fine")
    process = psutil.Process(phoenix.served.process.pid)
    count: Callable[[], int] = getattr(process, "num_fds", None) or getattr(process, "num_handles")  # noqa: B009
    return count()


def is_over(phoenix: Phoenix, job_id: str) -> bool:
    state: Json = patiently(lambda: phoenix.served.get(f"/api/v1/train/{job_id}/status").json())
    return state["status"] in {"completed", "failed"}


def survive(phoenix: Phoenix, folder: Path, kills: int) -> None:
    load, chance = Load(phoenix, folder), random.Random(3)
    for client in (load.segment, load.segment, load.classify, load.train):
        client()
    baseline = descriptors(phoenix)
    load.begin()
    for number in range(kills):
        time.sleep(chance.uniform(0.1, 1.0))
        # The last server lives long enough to gather what it might leak.
        kill_one(phoenix, chance, spare_server=number >= kills * 2 // 3)
    time.sleep(1)
    load.end()
    assert not load.faults, load.faults
    assert {"segment", "classify", "train", "poll"} <= set(load.outcomes), load.outcomes
    for job_id in load.jobs:
        wait_until(lambda job_id=job_id: is_over(phoenix, job_id), 120, f"job {job_id} never ended")  # type: ignore[misc]
    assert_jobs(phoenix, load)
    wait_until(lambda: not phoenix.served.spool_files(), 10, "a request left a file behind")
    known = {phoenix.served.process.pid, *(process.pid for process in phoenix.served.workers())}
    wait_until(lambda: {process.pid for process in phoenix.family()} <= known, 10, "a process is nobody's")
    wait_until(lambda: descriptors(phoenix) <= baseline + 2, 20, "descriptors are left open")


def assert_jobs(phoenix: Phoenix, load: Load) -> None:
    """None is lost, none is there twice, and what completed is what it would have been."""
    listed: list[Json] = phoenix.served.get("/api/v1/train").json()["jobs"]
    found = Counter(job["job_id"] for job in listed)
    assert set(found) >= set(load.jobs)
    assert set(found.values()) <= {1}
    assert len(found) <= len(load.jobs) + load.broken_off
    made: Counter[str] = Counter()
    for folder in (phoenix.state_dir / "models").iterdir():
        made[json.loads((folder / "metadata.json").read_text())["job_id"]] += 1
        assert (folder / "model.pt").read_text() == str(weights_after(EPOCHS))
    for job_id in load.jobs:
        state = phoenix.served.get(f"/api/v1/train/{job_id}/status").json()
        assert made[job_id] == (state["status"] == "completed"), state
        if state["status"] == "failed":
            assert any(words in state["error"] for words in GIVEN_UP), state


@pytest.mark.timeout(300)
def test_a_few_kills_under_mixed_load(phoenix: Phoenix, tmp_path: Path) -> None:
    survive(phoenix, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills_under_mixed_load(phoenix: Phoenix, tmp_path: Path) -> None:
    survive(phoenix, tmp_path, 100)
