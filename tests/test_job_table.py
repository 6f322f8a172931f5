"""Every command in every state of a training, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.classifier_client import ClassifierClient, Json, captured_body
from tests.light_server import Phoenix
from tests.light_worker import BROKEN, DIVERGES
from tests.serving import wait_until

ENDLESS = 100_000
COMMANDS = ("pause", "resume", "cancel", "clear")
# For each state what pause, resume and cancel answer, and what each command makes of it.
TABLE: dict[str, tuple[tuple[int, int, int], tuple[str, str, str, str]]] = {
    "queued": ((200, 400, 200), ("paused", "queued", "cancelled", "paused")),
    "training": ((200, 400, 200), ("paused", "training", "cancelled", "cancelled")),
    "paused": ((200, 200, 200), ("paused", "training", "cancelled", "paused")),
    "completed": ((400, 400, 200), ("completed", "completed", "completed", "completed")),
    "failed with a checkpoint": ((400, 200, 200), ("failed", "training", "failed", "failed")),
    "failed without one": ((400, 400, 200), ("failed", "failed", "failed", "failed")),
    "cancelled": ((400, 400, 200), ("cancelled", "cancelled", "cancelled", "cancelled")),
    "cleared": ((400, 200, 200), ("cancelled", "training", "cancelled", "cancelled")),
}
WORDS = {"pause": "pausing", "resume": "resuming", "cancel": "cancelled", "clear": "cleared"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    phoenix = Phoenix(tmp_path_factory.mktemp("table"))
    yield phoenix
    phoenix.end()


@pytest.fixture
def client(server: Phoenix) -> Iterator[ClassifierClient]:
    client = ClassifierClient(server.url)
    yield client
    for job in client.read("GET", "/train")["jobs"]:
        client.cancel_training(job["job_id"])


def start(client: ClassifierClient, data: str = "/data", epochs: int = ENDLESS) -> str:
    return client.start_training(captured_body(Path(data), epochs=epochs))


def becomes(client: ClassifierClient, job_id: str, state: str) -> Json:
    wait_until(lambda: client.status(job_id)["status"] == state, 30, f"never {state}: {client.status(job_id)}")
    return client.status(job_id)


def arrange(client: ClassifierClient, state: str) -> str:
    """A job in a state."""
    if state == "queued":
        start(client)
        return start(client)
    if state == "completed":
        job_id = start(client, epochs=1)
    elif state.startswith("failed"):
        job_id = start(client, BROKEN if state.endswith("one") else DIVERGES)
    else:
        job_id = start(client)
        wait_until(lambda: client.status(job_id)["epoch"] >= 1, 30, "it never trained")
    if state == "paused":
        client.pause_training(job_id)
    elif state == "cancelled":
        client.cancel_training(job_id)
    elif state == "cleared":
        assert client.clear_gpu_memory()[0] == [job_id]
    becomes(client, job_id, "cancelled" if state == "cleared" else state.split(maxsplit=1)[0])
    return job_id


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", TABLE)
def test_a_command_in_a_state(client: ClassifierClient, state: str, command: str) -> None:
    answers, states = TABLE[state]
    wanted = states[COMMANDS.index(command)]
    job_id = arrange(client, state)
    if command == "clear":
        answer = client.call("POST", "/gpu/clear")
        status = 200
    else:
        body = {"data_path": "/data"} if command == "resume" else None  # what failed goes on with better data
        answer = client.call("POST", f"/train/{job_id}/{command}", body)
        status = answers[COMMANDS.index(command)]
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["status"] == WORDS[command]
        assert command != "resume" or client.status(job_id)["status"] != "paused"
    else:
        assert answer.json()["detail"].startswith(
            f"Cannot {command} job in state {state.replace('cleared', 'cancelled').split()[0]}"
        )
    becomes(client, job_id, wanted)


def test_what_was_cleared_goes_on_where_it_was(client: ClassifierClient) -> None:
    job_id = arrange(client, "cleared")
    before = client.read("GET", f"/train/{job_id}/history")["history"]
    client.resume_training(job_id, epochs=len(before) + 1)
    becomes(client, job_id, "completed")
    history = client.read("GET", f"/train/{job_id}/history")["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, len(before) + 2))
