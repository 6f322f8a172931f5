"""A disk that is full or cannot be written, and a locked database: clear errors, nothing lost, no restart needed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import requests
import torch

from segserve.training import checkpoint
from segserve.training.events import CheckpointReady
from segserve.workers.verbs.training import _Teller
from tests.classifier_client import ClassifierClient, Json, captured_body
from tests.datasets import write_dataset
from tests.light_server import Phoenix
from tests.serving import wait_until
from tests.small_networks import assert_labels, error_of, save_volume, threshold_network

ENDLESS = 10_000


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at `folder`; the test is skipped where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or sys.platform != "linux":
        pytest.skip("small disks are made on Linux only")
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount disks")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[Phoenix]:
    """A server whose state directory is a disk of 64 MB."""
    with small_disk(tmp_path / "state", "64m"):
        phoenix = Phoenix(tmp_path)
        yield phoenix
        phoenix.end()


@pytest.fixture
def client(phoenix: Phoenix) -> ClassifierClient:
    return ClassifierClient(phoenix.url)


def start(client: ClassifierClient, epochs: int = ENDLESS) -> str:
    return client.start_training(captured_body(Path("/data"), epochs=epochs))


def is_in(client: ClassifierClient, job_id: str, state: str) -> None:
    wait_until(lambda: client.status(job_id)["status"] == state, 30, f"never {state}: {client.status(job_id)}")


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            pass
    return filler


def refused_training(client: ClassifierClient) -> requests.Response:
    """The answer to the first training that is not taken: the journal may still have room for some."""
    while True:
        before = client.read("GET", "/train")["jobs"]
        answer = client.call("POST", "/train", captured_body(Path("/data")))
        after = [job["job_id"] for job in client.read("GET", "/train")["jobs"]]
        if answer.status_code != 200:
            assert after == [job["job_id"] for job in before]
            return answer
        client.cancel_training(answer.json()["job_id"])


def test_a_full_disk(phoenix: Phoenix, client: ClassifierClient, tmp_path: Path) -> None:
    scan = tmp_path / "image.nii.gz"
    labels = save_volume(scan) > 100
    phoenix.served.load("fine", threshold_network(tmp_path / "above_100.onnx", 100))
    running, waiting = start(client), start(client)
    wait_until(lambda: client.status(running)["epoch"] >= 1, 30)
    filler = fill(phoenix.state_dir)

    assert "disk is full" in error_of(refused_training(client), 507, "detail")
    assert "disk is full" in error_of(phoenix.served.infer(scan, model_name="fine"), 507)
    for job_id in (running, waiting):  # one after the other
        is_in(client, job_id, "failed")
        error = client.status(job_id)["error"]
        assert "disk is full" in error
        assert "Resume" in error
    assert client.read("GET", "/health")["status"] == "healthy"

    filler.unlink()
    assert_labels(phoenix.served.infer(scan, model_name="fine"), labels)
    client.resume_training(running, epochs=client.status(running)["epoch"] + 2)
    is_in(client, running, "completed")
    later = start(client, 1)
    is_in(client, later, "completed")
    phoenix.kill()
    phoenix.start()
    assert client.status(waiting)["status"] == "failed", "what could not be written at once was never written"
    client.resume_training(waiting, epochs=1)
    is_in(client, waiting, "completed")
    wait_until(lambda: not phoenix.served.spool_files(), 10)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """The superuser may write everywhere but into what is immutable."""
    scan = tmp_path / "image.nii.gz"
    labels = save_volume(scan) > 100
    phoenix = Phoenix(tmp_path)
    client = ClassifierClient(phoenix.url)
    phoenix.served.load("fine", threshold_network(tmp_path / "above_100.onnx", 100))
    folders = [str(phoenix.state_dir / name) for name in ("spool", "jobs")]
    chattr = shutil.which("chattr")
    try:
        if chattr is None or subprocess.run([chattr, "+i", *folders], capture_output=True, check=False).returncode:
            pytest.skip("this user may not make folders immutable")
        try:
            assert "read-only" in error_of(phoenix.served.infer(scan, model_name="fine"), 503)
            answer = client.call("POST", "/train", captured_body(Path("/data"), epochs=2))
            assert "cannot write its folder of trainings" in error_of(answer, 503, "detail")
            assert client.read("GET", "/train")["jobs"] == []
            assert client.read("GET", "/health")["status"] == "healthy"
        finally:
            subprocess.run([chattr, "-i", *folders], check=True)
        assert_labels(phoenix.served.infer(scan, model_name="fine"), labels)
        is_in(client, start(client, 2), "completed")
    finally:
        phoenix.end()


def test_a_database_that_somebody_else_has_locked(phoenix: Phoenix, client: ClassifierClient) -> None:
    short, running, waiting = start(client, 20), start(client), start(client)
    lock = sqlite3.connect(phoenix.state_dir / "jobs.sqlite", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    client.pause_training(waiting)  # takes as long as it waits for the lock
    slowest = 0.0
    until = time.monotonic() + 8
    while time.monotonic() < until or client.status(short)["status"] != "completed":
        began = time.monotonic()
        assert client.status(waiting)["status"] == "paused"
        assert client.read("GET", "/health")["status"] == "healthy"
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 4, "the lock shows"
    error_of(client.call("POST", "/train", captured_body(Path("/data"))), 503, "detail")
    lock.execute("ROLLBACK")
    lock.close()
    wait_until(lambda: client.status(running)["epoch"] >= 1, 30)
    later = start(client)
    phoenix.kill()
    phoenix.start()
    states = {job["job_id"]: job["status"] for job in client.read("GET", "/train")["jobs"]}
    assert set(states) == {short, running, waiting, later}
    assert (states[short], states[waiting], states[later]) == ("completed", "paused", "queued")


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_and_ends_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "disk" / "checkpoint.pt"
    heard: list[Json] = []
    teller = _Teller(heard.append, kept)
    with small_disk(kept.parent, "2m"):
        teller.tell(CheckpointReady({"small": torch.zeros(10)}))
        teller.tell(CheckpointReady({"large": torch.zeros(1_000_000)}))
        assert [event["kind"] for event in heard] == ["checkpoint", "trouble"]
        assert "No space left on device" in heard[-1]["text"]
        assert "Free some space" in heard[-1]["text"]
        assert [path.name for path in kept.parent.iterdir()] == ["checkpoint.pt"]
        assert set(torch.load(kept, weights_only=True)) == {"small"}
        teller.tell(CheckpointReady({"again": torch.zeros(10)}))
        assert set(torch.load(kept, weights_only=True)) == {"again"}
        assert heard[2:] == [{"kind": "checkpoint"}]


def test_a_pause_waits_until_its_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "not yet there" / "checkpoint.pt"
    waited: list[float] = []
    heard: list[Json] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            kept.parent.mkdir()

    monkeypatch.setattr("segserve.workers.verbs.training.time.sleep", wait)
    _Teller(heard.append, kept).tell(CheckpointReady({"weights": torch.ones(1)}, pausing=True))
    assert len(waited) == 3
    assert [event["kind"] for event in heard] == ["trouble", "checkpoint"]
    assert "cannot pause yet" in heard[0]["text"]
    assert set(torch.load(kept, weights_only=True)) == {"weights"}


@pytest.mark.slow
def test_a_pause_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A real training: it stays as it is while there is no room, and pauses when there is."""
    data = write_dataset(tmp_path / "data", size=(32, 32), train=4, validation=2)
    with small_disk(tmp_path / "state", "512m"):
        phoenix = Phoenix(tmp_path, module="segserve")
        try:
            client = ClassifierClient(phoenix.url)
            job_id = client.start_training(captured_body(data, epochs=ENDLESS, backbone="mobilenet_v2"))
            wait_until(lambda: client.status(job_id)["epoch"] >= 2, 60, "it never trained")
            filler = fill(phoenix.state_dir)
            client.pause_training(job_id)
            wait_until(
                lambda: any("cannot pause yet" in text for text in client.status(job_id)["warnings"]), 30, "untold"
            )
            before = client.status(job_id)
            assert before["status"] == "training"
            filler.unlink()
            is_in(client, job_id, "paused")
            assert not client.status(job_id)["warnings"]
            client.resume_training(job_id, epochs=before["epoch"] + 1)
            is_in(client, job_id, "completed")
            epochs = [entry["epoch"] for entry in client.read("GET", f"/train/{job_id}/history")["history"]]
            assert epochs == list(range(1, before["epoch"] + 2))
        finally:
            phoenix.end()


def test_never_more_than_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, most = tmp_path / "checkpoint.pt", 0
    save = torch.save

    def count(state: Json, stream: IO[bytes]) -> None:
        nonlocal most
        save(state, stream)
        most = max(most, len(list(tmp_path.iterdir())))

    monkeypatch.setattr(torch, "save", count)
    for number in range(4):
        checkpoint.save(path, {"number": number})
        assert list(tmp_path.iterdir()) == [path]
    assert most == 2
    assert torch.load(path, weights_only=True) == {"number": 3}
