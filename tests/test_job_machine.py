"""Trainings driven at random over HTTP, their processes and their server killed in between, beside a model of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.classifier_client import ClassifierClient, Json, captured_body, read_status
from tests.classifier_client import Training as Polled
from tests.light_server import Phoenix

ENDLESS, SHORT = 10_000, 3
UNHEARD = 4  # more epochs than a killed process can have told without having been heard yet
ENDED = {"completed", "failed", "cancelled"}
Wish = Literal["run", "pause", "stop", "clear"]


@dataclass
class Known:
    """What is known of a job from outside.

    Attributes:
        wish: what was last asked of it.
        short: it may complete.
        deaths: of its process since it was last asked to run, or got further.
        further: the epoch from which on it surely has a checkpoint that is younger than its process's last death.
        floor: so many finished epochs are in a checkpoint.
        seen: a state that it cannot leave by itself; empty while it may.
        resumable: whether it can be resumed in that state; None if that depends on a checkpoint.
        epochs: how many were last asked for.
    """

    wish: Wish
    short: bool
    epochs: int
    deaths: int = 0
    further: float = math.inf
    floor: int = 0
    seen: str = ""
    resumable: bool | None = False

    @property
    def allowed(self) -> set[str]:
        if self.seen:
            return {self.seen}
        states = {
            "run": {"queued", "training"},
            "pause": {"training", "paused"},
            "stop": {"cancelled"},
            "clear": {"cancelled", "paused"},
        }[self.wish]
        if self.deaths >= 2:
            states = states | {"failed"}
        return states | {"completed"} if self.short and self.wish != "stop" else states

    def see(self, state: str, epoch: int) -> None:
        """Learn a job's state and its last finished epoch."""
        assert epoch >= self.floor, (self, epoch)
        self.floor = max(self.floor, epoch - 1)  # an epoch's checkpoint is written before the next one is told
        if epoch >= self.further:
            self.deaths, self.further = 0, math.inf
        if state in ENDED or (state == "paused" and self.wish in {"pause", "clear"}):
            self.seen = state
            failed = True if self.floor else None
            self.resumable = {"paused": True, "cancelled": self.wish == "clear", "failed": failed}.get(state, False)

    def wishes(self, wish: Wish) -> None:
        """It was asked for something, and that was granted."""
        self.wish, self.seen, self.resumable = wish, "", False
        if wish == "run":
            self.deaths, self.further = 0, math.inf

    def die(self) -> None:
        """Its process was killed."""
        self.deaths, self.further = self.deaths + 1, math.inf

    def lose_server(self) -> None:
        """What it has done since its record was written is known again only when it goes on."""
        self.floor, self.further = 0, math.inf


class JobMachine(RuleBasedStateMachine):
    """One server, whatever happens to it, and the jobs of this run of the machine."""

    def __init__(self, phoenix: Phoenix) -> None:
        super().__init__()
        self.phoenix = phoenix
        self.client = ClassifierClient(phoenix.url)
        self.jobs: dict[str, Known] = {}
        self.others: set[str] = set()

    @initialize()
    def look_around(self) -> None:
        self.others = {job["job_id"] for job in self.listed()}

    def listed(self) -> list[Json]:
        found: list[Json] = self.client.read("GET", "/train")["jobs"]
        return found

    def look_at(self, job_id: str) -> Known:
        known, answer = self.jobs[job_id], self.client.status(job_id)
        assert answer["status"] in known.allowed, (known, answer)
        assert answer["total_epochs"] == known.epochs
        read_status(Polled(job_id, last=answer))
        known.see(answer["status"], answer["epoch"])
        return known

    def pick(self, number: int) -> str:
        return sorted(self.jobs)[number % len(self.jobs)]

    @rule(short=st.booleans())
    def train(self, short: bool) -> None:
        epochs = SHORT if short else ENDLESS
        job_id = self.client.start_training(captured_body(Path("/data"), epochs=epochs))
        assert job_id not in self.others | set(self.jobs)
        self.jobs[job_id] = Known("run", short, epochs)

    @precondition(lambda self: self.jobs)
    @rule(number=st.integers(0, 9))
    def pause(self, number: int) -> None:
        job_id = self.pick(number)
        known = self.look_at(job_id)
        answer = self.client.call("POST", f"/train/{job_id}/pause")
        if known.seen == "paused":
            assert answer.status_code == 200
        elif known.seen or answer.status_code != 200:
            assert answer.status_code == 400
            assert self.client.status(job_id)["status"] in known.allowed & ENDED
        else:
            known.wishes("pause")

    @precondition(lambda self: self.jobs)
    @rule(
        number=st.integers(0, 9),
        more=st.integers(0, 2),
        other=st.sampled_from([{}, {"batch_size": 3}, {"data_path": "/elsewhere"}]),
    )
    def resume(self, number: int, more: int, other: Json) -> None:
        job_id = self.pick(number)
        known = self.look_at(job_id)
        changes = {"epochs": known.epochs + more, "learning_rate": 0.5, **other} if more else other
        answer = self.client.call("POST", f"/train/{job_id}/resume", changes or None)
        if known.seen and known.resumable is not None:
            assert answer.status_code == (200 if known.resumable else 400), (known, answer.text)
        if answer.status_code != 200:
            assert answer.status_code == 400
            assert answer.json()["detail"].startswith("Cannot resume job in state")
            return
        assert known.seen or known.wish == "pause" or "failed" in known.allowed, known
        known.wishes("run")
        known.epochs += more
        assert self.client.status(job_id)["status"] != "paused"

    @precondition(lambda self: self.jobs)
    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        job_id = self.pick(number)
        known = self.look_at(job_id)
        assert self.client.cancel_training(job_id) == {"status": "cancelled", "job_id": job_id}
        state = self.client.status(job_id)["status"]
        assert state in ENDED
        if known.seen in ENDED or state != "cancelled":
            assert state in known.allowed
        else:
            known.wishes("stop")

    @rule()
    def clear(self) -> None:
        for job_id in self.jobs:
            self.look_at(job_id)
        cancelled, _ = self.client.clear_gpu_memory()
        assert len(cancelled) <= 1
        for known in self.jobs.values():
            if not known.seen:
                known.wishes("clear")

    @rule(kind=st.sampled_from(["training", "inspector"]))
    def kill_a_worker(self, kind: str) -> None:
        if self.phoenix.kill(kind) and kind == "training":
            for job_id, known in self.jobs.items():
                if known.wish in {"run", "pause"} and not known.seen:
                    known.die()
                    known.further = self.look_at(job_id).floor + UNHEARD

    @rule(gently=st.booleans())
    def restart(self, gently: bool) -> None:
        if gently:
            self.phoenix.end()
        else:
            self.phoenix.kill()
            for known in self.jobs.values():
                known.lose_server()
        self.phoenix.start()

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        jobs = self.listed()
        identities = [job["job_id"] for job in jobs]
        assert len(set(identities)) == len(identities)
        assert set(identities) == self.others | set(self.jobs)
        for job_id in self.jobs:
            self.look_at(job_id)
        assert self.client.read("GET", "/health")["status"] == "healthy"

    @invariant()
    def every_completed_job_has_one_model(self) -> None:
        completed = {job["model_id"] for job in self.listed() if job["status"] == "completed"}
        models = [model["id"] for model in self.client.read("GET", "/models")["models"]]
        makers = [self.client.read("GET", f"/models/{model}")["metadata"]["job_id"] for model in models]
        assert len(set(makers)) == len(makers)
        assert completed <= set(models)

    def teardown(self) -> None:
        for job_id in self.jobs:
            self.client.cancel_training(job_id)


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[Phoenix]:
    phoenix = Phoenix(tmp_path)
    yield phoenix
    phoenix.end()
    assert not phoenix.family()


def drive(phoenix: Phoenix, examples: int, steps: int, *, same: bool) -> None:
    class Machine(JobMachine):
        def __init__(self) -> None:
            super().__init__(phoenix)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=same,
            database=None,
            phases=[Phase.generate],  # time passes differently each time: a shorter example may not fail
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_short_walk_through_the_states(phoenix: Phoenix) -> None:
    drive(phoenix, 3, 10, same=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_walk_through_the_states(phoenix: Phoenix) -> None:
    drive(phoenix, 30, 25, same=False)
