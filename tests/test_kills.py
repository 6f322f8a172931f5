"""Real trainings whose processes and servers are killed: they complete, with the weights of one that was left alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.classifier_client import ClassifierClient, Json, captured_body
from tests.datasets import write_dataset
from tests.light_server import Phoenix, patiently
from tests.serving import wait_until
from tests.test_qupath_training import MODEL_FILES

SMALL: Json = {
    "backbone": "mobilenet_v2",
    "augmentation": True,
    "early_stopping": False,
}
VICTIMS = ("training", "server", "both")
SECONDS = 240.0


@dataclass
class Laboratory:
    """A server that is killed, and a small training."""

    phoenix: Phoenix
    data: Path

    @property
    def client(self) -> ClassifierClient:
        return ClassifierClient(self.phoenix.url)

    def start(self, epochs: int) -> str:
        return self.client.start_training(captured_body(self.data, epochs=epochs, **SMALL))

    def status(self, job_id: str) -> Json:
        return patiently(lambda: self.client.status(job_id))

    def kill(self, victim: str) -> None:
        """Kill, and start the server again if it was among the killed."""
        if victim in {"training", "both"}:
            self.phoenix.kill("training")
        if victim in {"server", "both"}:
            self.phoenix.kill()
            self.phoenix.start()

    def weights(self, job_id: str) -> dict[str, Tensor]:
        """What a completed training ended with; it must be whole, and the only model that it made."""
        ended = self.status(job_id)
        assert ended["status"] == "completed", ended
        folder = Path(ended["model_path"])
        assert {path.name for path in folder.iterdir()} == MODEL_FILES
        history = self.client.read("GET", f"/train/{job_id}/history")["history"]
        assert [entry["epoch"] for entry in history] == list(range(1, ended["total_epochs"] + 1))
        assert [model["metadata"]["job_id"] for model in self.models()].count(job_id) == 1
        weights: dict[str, Tensor] = torch.load(folder / "model.pt", weights_only=True)
        return weights

    def models(self) -> list[Json]:
        """Every listed model; each must be whole."""
        listed = self.client.read("GET", "/models")["models"]
        for model in listed:
            assert {path.name for path in Path(model["path"]).iterdir()} == MODEL_FILES, "half a model is listed"
        return [self.client.read("GET", f"/models/{model['id']}") for model in listed]

    def completes(self, job_id: str, look: Callable[[], object] = lambda: None) -> None:
        def completed() -> bool:
            look()
            state = self.status(job_id)
            assert state["status"] in {"queued", "training", "completed"}, state
            return bool(state["status"] == "completed")

        wait_until(completed, SECONDS, "it never completed")


@pytest.fixture
def laboratory(tmp_path: Path) -> Iterator[Laboratory]:
    data = write_dataset(tmp_path / "data", size=(32, 32), train=8, validation=2)
    phoenix = Phoenix(tmp_path, module="segserve")
    yield Laboratory(phoenix, data)
    phoenix.end()
    wait_until(lambda: not phoenix.family(), 10, "a process outlived its server")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_leave_no_trace_in_the_weights(laboratory: Laboratory) -> None:
    """The server's, its training's and both at once, in one training: each after something was done."""
    undisturbed, job_id = laboratory.start(4), laboratory.start(4)
    laboratory.completes(undisturbed)
    for victim, stage, epoch in (("server", "training", 0), ("training", "training", 1), ("both", "training", 2)):

        def is_there(stage: str = stage, epoch: int = epoch) -> bool:
            state = laboratory.status(job_id)
            return state["status"] == "completed" or (state.get("stage"), state["epoch"] >= epoch) == (stage, True)

        wait_until(is_there, SECONDS, f"{victim} never killed")
        laboratory.kill(victim)
    laboratory.completes(job_id)
    assert same(laboratory.weights(undisturbed), laboratory.weights(job_id))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_moments(laboratory: Laboratory) -> None:
    """Twenty trainings, each killed once, or its server, or both."""
    chance = random.Random(6)
    undisturbed = laboratory.start(6)
    began = time.monotonic()
    laboratory.completes(undisturbed)
    lasts = time.monotonic() - began
    wanted = laboratory.weights(undisturbed)
    for number in range(20):
        job_id = laboratory.start(6)
        moment = time.monotonic() + chance.uniform(0, lasts)
        while time.monotonic() < moment:
            laboratory.models()
            time.sleep(0.05)
        laboratory.kill(VICTIMS[number % 3])
        laboratory.completes(job_id, laboratory.models)
        assert same(wanted, laboratory.weights(job_id)), number
    kept = [path for path in (laboratory.phoenix.state_dir / "jobs").rglob("*") if path.suffix == ".pt"]
    assert not kept, "a completed training keeps its checkpoint"
