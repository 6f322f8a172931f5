"""The QuPath door's jobs: what is refused before one begins, and every way from one state to another."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.classifier_client import ClassifierClient, Json, captured_body
from tests.datasets import FAULTS, write_dataset
from tests.serving import Served, start_server, wait_until

NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
START = 90.0
UNKNOWN_VALUES: dict[str, Json] = {
    "scheduler": {"scheduler": "warm_up"},
    "loss_function": {"loss_function": "lovasz"},
    "early_stopping_metric": {"early_stopping_metric": "accuracy"},
    "strategy": {"strategy": "histogram"},
    "epochs": {"epochs": "many"},
    "batch_size": {"batch_size": 8.5},
    "num_channels": {"num_channels": "three"},
    "learning_rate": {"learning_rate": -0.001},
}
IMPOSSIBLE = [("deeplabv3", "densenet121"), ("pan", "vgg16_bn"), ("unet++", "mit_b2"), ("linknet", "mit_b2")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), train=3, validation=2)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("status")
    (folder / "weights").mkdir()
    env = {"HOME": str(folder), "USERPROFILE": str(folder), **NOWHERE}
    served = start_server(folder / "state", "--weights-dir", str(folder / "weights"), env=env)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def client(door: Served) -> ClassifierClient:
    return ClassifierClient(door.url)


@pytest.fixture
def idle(client: ClassifierClient) -> Iterator[ClassifierClient]:
    """The client; whatever still runs or waits after the test is cancelled."""
    yield client
    for job in client.read("GET", "/train")["jobs"]:
        client.cancel_training(job["job_id"])


def endless(data: Path, **changes: object) -> Json:
    """A training that ends only if it is ended."""
    settings = {"backbone": "mobilenet_v2", "epochs": 5000, "early_stopping_patience": 5000, "scheduler": "none"}
    return captured_body(data, **settings | changes)


def reaches(client: ClassifierClient, job_id: str, epoch: int) -> Json:
    """Wait for the end of an epoch and return the answer that tells of it."""
    last: Json = {}

    def reached() -> bool:
        last.update(client.status(job_id))
        assert last["status"] not in {"failed", "cancelled", "completed"}, last
        return bool(last["status"] == "training" and last["epoch"] >= epoch)

    wait_until(reached, START, f"epoch {epoch} never came: {client.status(job_id)}")
    return last


def is_in(client: ClassifierClient, job_id: str, *states: str, seconds: float = START) -> Json:
    """Wait until the job is in one of the states and return that answer."""
    wait_until(
        lambda: client.status(job_id)["status"] in states,
        seconds,
        f"never one of {states}: {client.status(job_id)}",
    )
    return client.status(job_id)


def learning_rates(client: ClassifierClient, job_id: str) -> list[float]:
    return [entry["learning_rate"] for entry in client.read("GET", f"/train/{job_id}/history")["history"]]


def refusal(client: ClassifierClient, body: object, status: int) -> str:
    """Send a training that is refused: one sentence, no job, and no 5xx."""
    before = client.read("GET", "/train")["jobs"]
    answer = client.call("POST", "/train", body)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert detail.strip()
    assert "\n" not in detail
    assert "Traceback" not in detail
    assert client.read("GET", "/train")["jobs"] == before
    return detail


@pytest.mark.parametrize("part", ["model_type", "input_config", "classes", "data_path"])
def test_a_missing_part_is_422_and_named(client: ClassifierClient, data: Path, part: str) -> None:
    body = captured_body(data)
    del body[part]
    assert part in refusal(client, body, 422)


@pytest.mark.parametrize("name", UNKNOWN_VALUES)
def test_an_unknown_value_is_422_and_named(client: ClassifierClient, data: Path, name: str) -> None:
    assert name in refusal(client, captured_body(data, **UNKNOWN_VALUES[name]), 422)


def test_an_empty_request_is_422_with_the_list_beside_the_sentence(client: ClassifierClient) -> None:
    answer = client.call("POST", "/train", {})
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)
    missing = {tuple(error["loc"]) for error in answer.json()["errors"]}
    assert missing >= {("body", part) for part in ("model_type", "input_config", "classes", "data_path")}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": NaN}', '{"a": "\\ud800"}', "\x00"])
def test_what_is_no_request_is_422(door: Served, text: str) -> None:
    answer = door.post("/api/v1/train", data=text.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_of_the_data_is_400_and_says_which(client: ClassifierClient, tmp_path: Path, name: str) -> None:
    spoil, words = FAULTS[name]
    spoil(write_dataset(tmp_path))
    detail = refusal(client, captured_body(tmp_path), 400)
    assert all(word in detail for word in words), detail


def test_a_folder_that_is_not_there_is_400(client: ClassifierClient, tmp_path: Path) -> None:
    assert str(tmp_path / "gone") in refusal(client, captured_body(tmp_path / "gone"), 400)


def test_a_folder_without_train_is_400(client: ClassifierClient, tmp_path: Path) -> None:
    assert "train" in refusal(client, captured_body(tmp_path), 400)


def test_channels_that_do_not_fit_are_400_with_both_numbers(client: ClassifierClient, data: Path) -> None:
    body = captured_body(data, num_channels=5, channel_names=list("ABCDE"))
    detail = refusal(client, body, 400)
    assert re.search(r"\b3\b", detail), detail
    assert re.search(r"\b5\b", detail), detail


def test_an_unknown_architecture_or_encoder_is_400(client: ClassifierClient, data: Path) -> None:
    assert "nonsense" in refusal(client, captured_body(data, model_type="nonsense"), 400)
    assert "nonsense" in refusal(client, captured_body(data, backbone="nonsense"), 400)


@pytest.mark.parametrize(("architecture", "encoder"), IMPOSSIBLE)
def test_a_combination_that_cannot_work_is_400(
    client: ClassifierClient, data: Path, architecture: str, encoder: str
) -> None:
    detail = refusal(client, captured_body(data, model_type=architecture, backbone=encoder), 400)
    assert encoder in detail


def test_an_unknown_frozen_layer_is_400_and_the_valid_ones_are_listed(client: ClassifierClient, data: Path) -> None:
    detail = refusal(client, captured_body(data, frozen_layers=["encoder.layer1", "encoder.layer9"]), 400)
    for name in ("encoder.layer9", "encoder.conv1", "encoder.layer1", "encoder.layer4", "decoder"):
        assert name in detail


def test_missing_weights_are_400_within_seconds_and_say_what_to_do(
    client: ClassifierClient, door: Served, data: Path
) -> None:
    """The folder is named by what it is for: its path was never the client's."""
    client.call("POST", "/train", captured_body(data, backbone="nonsense"))  # wakes the helper process
    begun = time.monotonic()
    detail = refusal(client, captured_body(data, use_pretrained=True), 400)
    assert time.monotonic() - begun < 15
    for word in ("resnet18.safetensors", "weights folder", "use_pretrained"):
        assert word in detail
    assert str(door.state_dir.parent) not in detail


@pytest.mark.parametrize(
    ("method", "verb"), [("GET", "status"), ("POST", "cancel"), ("POST", "pause"), ("GET", "log"), ("GET", "history")]
)
def test_an_unknown_job_is_404(client: ClassifierClient, method: str, verb: str) -> None:
    answer = client.call(method, f"/train/00000000/{verb}")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "Job 00000000 not found"


def test_resume_and_events_of_an_unknown_job_are_404(client: ClassifierClient) -> None:
    assert client.call("POST", "/train/00000000/resume", {}).status_code == 404
    assert client.call("GET", "/train/00000000/events").status_code == 404


@pytest.mark.slow
def test_jobs_that_wait_can_be_paused_resumed_and_cancelled(idle: ClassifierClient, data: Path, door: Served) -> None:
    running, second, third = (idle.start_training(endless(data)) for _ in range(3))
    for job_id in (second, third):
        assert idle.status(job_id)["status"] not in {"training", "paused", "cancelled"}
    assert idle.cancel_training(third) == {"status": "cancelled", "job_id": third}
    assert idle.status(third)["status"] == "cancelled"
    assert idle.call("POST", f"/train/{third}/resume", {}).status_code == 400
    assert idle.call("POST", f"/train/{third}/pause").status_code == 400
    assert idle.call("POST", f"/train/{second}/resume", {}).status_code == 400
    idle.pause_training(second)
    paused = idle.status(second)
    assert (paused["status"], paused["epoch"], paused["total_epochs"]) == ("paused", 0, 5000)
    idle.pause_training(second)
    assert idle.status(second)["status"] == "paused"
    assert idle.resume_training(second) == {"status": "resuming", "job_id": second}
    assert idle.status(second)["status"] not in {"paused", "training"}
    answer = idle.call("POST", f"/train/{running}/resume", {})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Cannot resume job in state")
    reaches(idle, running, 1)
    assert_prompt(idle, running)
    idle.cancel_training(running)
    assert idle.status(running)["status"] == "cancelled"
    wait_until(lambda: running not in " ".join(kept_files(door)), 10, "the cancelled job keeps its files")
    assert idle.call("POST", f"/train/{running}/resume", {}).status_code == 400
    reaches(idle, second, 1)
    trainers = training_processes(door)
    assert trainers
    idle.cancel_training(second)
    wait_until(lambda: not trainers & training_processes(door), 10, "the process lives on")
    models = door.state_dir / "models"
    assert not models.exists() or not list(models.iterdir())


def assert_prompt(client: ClassifierClient, job_id: str) -> None:
    for path in ["/health", f"/train/{job_id}/status"] * 10:
        begun = time.monotonic()
        assert requests.get(client.base + path, timeout=10).ok
        assert time.monotonic() - begun < 2


def kept_files(door: Served) -> list[str]:
    """Files of jobs too large to be a log: checkpoints and the like."""
    paths = [path for path in (door.state_dir / "jobs").rglob("*") if path.is_file()]
    return [str(path) for path in paths if path.stat().st_size > 1_000_000]


def training_processes(door: Served) -> set[int]:
    """By the name that the server gives them on their command line."""
    found = set()
    for process in door.workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "training" in process.cmdline():
                found.add(process.pid)
    return found


@pytest.mark.slow
def test_a_paused_training_goes_on_where_it_was_and_completes(idle: ClassifierClient, data: Path) -> None:
    """Pause, resume with a rate and a batch size of its own, pause, resume with no epochs left."""
    job_id = idle.start_training(endless(data, learning_rate=1e-4, batch_size=1))
    assert reaches(idle, job_id, 1)["batches"] == 3
    assert idle.pause_training(job_id) == {"status": "pausing", "job_id": job_id}
    paused = idle.poll(job_id)
    assert paused.state == "paused"
    done = paused.last["epoch"]
    assert done >= 1
    assert idle.resume_training(job_id, learning_rate=2e-4, batch_size=3)["status"] == "resuming"
    assert idle.status(job_id)["status"] != "paused", "the client takes this for paused again"
    assert reaches(idle, job_id, done + 1)["batches"] == 1
    rates = learning_rates(idle, job_id)
    assert rates[:done] == pytest.approx([1e-4] * done)
    assert rates[done:] == pytest.approx([2e-4] * len(rates[done:]))
    idle.pause_training(job_id)
    done = idle.poll(job_id).last["epoch"]
    idle.resume_training(job_id, epochs=done)
    finished = idle.poll(job_id)
    assert finished.state == "completed", finished.last
    history = idle.read("GET", f"/train/{job_id}/history")["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, done + 1))
    best = max(entry["mean_iou"] for entry in history)
    of_best = [entry["val_loss"] for entry in history if entry["mean_iou"] >= best - 0.0011]
    assert any(finished.last["final_loss"] == pytest.approx(loss) for loss in of_best)


def test_resume_takes_an_empty_body_and_no_nonsense(idle: ClassifierClient, data: Path) -> None:
    idle.start_training(endless(data))
    job_id = idle.start_training(endless(data))
    idle.pause_training(job_id)
    for changes in ({"epochs": "many"}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}):
        answer = idle.call("POST", f"/train/{job_id}/resume", changes)
        assert answer.status_code == 422, (changes, answer.text)
        assert isinstance(answer.json()["detail"], str)
        assert idle.status(job_id)["status"] == "paused"
    answer = idle.call("POST", f"/train/{job_id}/resume")
    assert (answer.status_code, answer.json()["status"]) == (200, "resuming")


def test_clearing_the_gpu_answers_the_fields_of_both_forms(client: ClassifierClient) -> None:
    cancelled, answer = client.clear_gpu_memory()
    assert cancelled == []
    assert answer["status"] == "cleared"
    assert {"memory_before", "memory_after"} <= set(answer)
    assert {"available", "device_type", "device_string", "name"} <= set(answer)
    assert "null" not in json.dumps(answer)


@pytest.mark.slow
def test_clearing_the_gpu_cancels_what_runs_and_keeps_what_waits(
    idle: ClassifierClient, data: Path, door: Served
) -> None:
    running = idle.start_training(endless(data))
    waiting, paused = (idle.start_training(endless(data)) for _ in range(2))
    idle.pause_training(paused)
    done = reaches(idle, running, 1)["epoch"]
    cancelled, answer = idle.clear_gpu_memory()
    assert cancelled == [running]
    assert answer["status"] == "cleared"
    states = [idle.status(job_id)["status"] for job_id in (running, waiting, paused)]
    assert states == ["cancelled", "paused", "paused"]
    wait_until(lambda: not door.workers(), 10, "a worker lives on")
    assert idle.clear_gpu_memory()[0] == []
    idle.resume_training(running)
    assert idle.status(running)["status"] not in {"paused", "cancelled"}
    assert reaches(idle, running, done + 1)["status"] == "training"


@pytest.mark.slow
def test_a_restarted_server_goes_on_with_its_training(tmp_path: Path, data: Path) -> None:
    env = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), **NOWHERE}
    first = start_server(tmp_path / "state", env=env)
    client = ClassifierClient(first.url)
    job_id, paused = (client.start_training(endless(data)) for _ in range(2))
    client.pause_training(paused)
    done = reaches(client, job_id, 2)["epoch"]
    before = client.read("GET", f"/train/{job_id}/history")["history"][:done]
    begun = time.monotonic()
    first.stop()
    assert time.monotonic() - begun < 15
    second = start_server(tmp_path / "state", env=env)
    client = ClassifierClient(second.url)
    try:
        assert client.status(paused)["status"] == "paused"
        assert client.status(job_id)["status"] not in {"failed", "cancelled", "paused"}
        reaches(client, job_id, done + 1)
        history = client.read("GET", f"/train/{job_id}/history")["history"]
        assert [entry["epoch"] for entry in history] == list(range(1, len(history) + 1))
        assert history[:done] == before, "finished epochs were trained again"
        client.cancel_training(job_id)
    finally:
        second.stop()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_the_export_is_not_left_half_done(idle: ClassifierClient, data: Path, door: Served, verb: str) -> None:
    """A pause that meets the export ends completed; a cancel leaves no model."""
    job_id = idle.start_training(captured_body(data, backbone="mobilenet_v2"))
    wait_until(lambda: idle.status(job_id).get("stage") == "export", START, "no export")
    send: Callable[[str], Json] = idle.pause_training if verb == "pause" else idle.cancel_training
    send(job_id)
    ended = idle.poll(job_id)
    models = list((door.state_dir / "models").glob("unet_*"))
    if verb == "pause":
        assert ended.state == "completed", ended.last
        assert models
        shutil.rmtree(ended.last["model_path"])
    else:
        assert ended.state == "cancelled"
        assert not models
