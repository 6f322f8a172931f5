"""Trainings through the QuPath door, as the published extension drives them, and the folders they leave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file

from segserve.training.data.synthetic import write_synthetic
from tests.classifier_client import ClassifierClient, Json, Training, captured_body, events, read_model
from tests.datasets import java_config, make_image, make_mask, write_config, write_dataset, write_image, write_mask
from tests.serving import Served, start_server, wait_until

FROZEN = ["encoder.conv1", "encoder.layer1"]
FROZEN_PARTS = ("conv1.", "bn1.", "layer1.")
MODEL_FILES = {"metadata.json", "model.onnx", "model.pt", "model.safetensors", "training_history.json"}
HISTORY_KEYS = {"epoch", "train_loss", "val_loss", "accuracy", "learning_rate", "per_class_iou", "per_class_loss"}


def write_weights(folder: Path, encoder: str) -> Path:
    """Weights as if they had been trained: random ones, with statistics of their own."""
    generator = torch.Generator().manual_seed(5)
    state = smp.encoders.get_encoder(encoder, weights=None).state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            state[name] = torch.rand(value.shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / f"{encoder}.safetensors")
    return folder / f"{encoder}.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for encoder in ("resnet18", "resnet34"):
        write_weights(folder, encoder)
    return folder


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Served]:
    """A server of this module alone, with weights on disk and no hub."""
    folder = tmp_path_factory.mktemp("training")
    env = {"HOME": str(folder), "USERPROFILE": str(folder), "HF_ENDPOINT": "http://127.0.0.1:9"}
    served = start_server(folder / "state", "--weights-dir", str(weights), env=env)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def client(door: Served) -> ClassifierClient:
    return ClassifierClient(door.url)


@dataclass
class Finished:
    """A training that ended well, all that was heard of it, and what it left."""

    training: Training
    body: Json
    events: list[tuple[str, Json]]
    url: str

    @property
    def folder(self) -> Path:
        return Path(self.training.last["model_path"])

    @property
    def metadata(self) -> Json:
        return read_model(self.folder)


@pytest.fixture(scope="module")
def finished(door: Served, client: ClassifierClient, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The extension's own request: pretrained, partly frozen, two epochs; polled and listened to all the while."""
    data = write_dataset(tmp_path_factory.mktemp("data") / "set=1", config="java", train=4, validation=2)
    body = captured_body(data, epochs=2, use_pretrained=True, frozen_layers=FROZEN, per_channel=True)
    job_id = client.start_training(body)
    heard: list[tuple[str, Json]] = []
    listener = threading.Thread(target=lambda: heard.extend(events(door.url, job_id)), daemon=True)
    listener.start()
    training = client.poll(job_id)
    listener.join(10)
    assert not listener.is_alive(), "the event stream goes on after the end"
    assert training.state == "completed", training.last
    return Finished(training, body, heard, door.url)


def test_the_client_sees_training_then_completed(finished: Finished) -> None:
    known = [state for state in finished.training.states if state not in {"pending", "queued"}]
    assert known == ["training", "completed"]
    assert [entry["epoch"] for entry in finished.training.progress] == [1, 2]
    assert all(set(entry["per_class_iou"]) == {"Background", "Tumor"} for entry in finished.training.progress)
    assert all(set(entry["per_class_loss"]) == {"Background", "Tumor"} for entry in finished.training.progress)


def test_no_answer_ever_holds_a_null_or_a_non_finite_number(finished: Finished) -> None:
    for answer in [*finished.training.answers, *(data for _, data in finished.events)]:
        assert "null" not in json.dumps(answer, allow_nan=False)


def test_epochs_reported_never_go_back(finished: Finished) -> None:
    epochs = [answer["epoch"] for answer in finished.training.answers if "epoch" in answer]
    assert epochs == sorted(epochs)
    assert {answer["total_epochs"] for answer in finished.training.answers if "total_epochs" in answer} == {2}


def test_events_follow_the_training_and_end_with_done(finished: Finished) -> None:
    assert finished.events[-1][0] == "done"
    assert [name for name, _ in finished.events].count("done") == 1
    assert finished.events[-1][1]["model_path"] == str(finished.folder)
    assert {1, 2} <= {data.get("epoch") for _, data in finished.events}
    assert any(data.get("batch", 0) > 0 for _, data in finished.events), "no progress within an epoch"


def test_the_history_route_and_file_tell_of_every_epoch(finished: Finished, client: ClassifierClient) -> None:
    routed = client.read("GET", f"/train/{finished.training.job_id}/history")["history"]
    filed = json.loads((finished.folder / "training_history.json").read_text("utf-8"))
    for history in (routed, filed):
        assert [entry["epoch"] for entry in history] == [1, 2]
        assert all(set(entry) >= HISTORY_KEYS | {"mean_iou"} for entry in history)
    best = max(filed, key=lambda entry: entry["mean_iou"])
    assert finished.training.last["final_loss"] == pytest.approx(best["val_loss"])
    assert finished.training.last["final_accuracy"] == pytest.approx(best["accuracy"])


def test_the_log_estimates_memory_and_says_the_peak_of_every_epoch(finished: Finished, door: Served) -> None:
    answer = door.get(f"/api/v1/train/{finished.training.job_id}/log")
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.text.lower().splitlines()
    assert any("memory" in line and "estimate" in line for line in lines)
    assert sum("peak" in line for line in lines) >= 2, answer.text


def test_the_job_is_in_the_list_of_all_jobs(finished: Finished, client: ClassifierClient) -> None:
    listed = {job["job_id"]: job for job in client.read("GET", "/train")["jobs"]}
    assert listed[finished.training.job_id]["status"] == "completed"
    assert re.fullmatch("[0-9a-f]{8}", finished.training.job_id)


def test_the_folder_holds_what_a_model_needs_and_nothing_else(finished: Finished, door: Served) -> None:
    assert {path.name for path in finished.folder.iterdir()} == MODEL_FILES
    assert re.fullmatch(r"unet_\d{8}_\d{6}(_\d+)?", finished.folder.name)
    left = [path for path in (door.state_dir / "models").iterdir() if not re.match(r"\w+_\d{8}_\d{6}", path.name)]
    assert not left


def test_java_reads_the_metadata(finished: Finished) -> None:
    model = finished.metadata
    assert model["id"] == finished.folder.name
    assert model["name"] == "UNET Classifier"
    wanted = {"type": "unet", "backbone": "resnet18", "input_width": 64, "input_height": 64, "input_channels": 3}
    assert wanted.items() <= model["architecture"].items()
    assert model["architecture"]["downsample"] == 2.0
    assert model["channel_config"]["expected_channels"] == ["Red", "Green", "Blue"]
    assert model["channel_config"]["normalization_strategy"] == "PERCENTILE_99"
    assert [(entry["index"], entry["name"]) for entry in model["classes"]] == [(0, "Background"), (1, "Tumor")]
    assert [entry["color"].upper() for entry in model["classes"]] == ["#008040", "#018040"]
    assert model["training"]["epochs"] == 2


def test_the_published_servers_metadata_is_there_too(finished: Finished) -> None:
    model = finished.metadata
    assert model["architecture"]["input_size"] == [64, 64]
    assert model["architecture"]["use_pretrained"] is True
    assert model["architecture"]["frozen_layers"] == FROZEN
    assert model["architecture"]["context_scale"] == 1
    assert model["input_config"]["num_channels"] == 3
    assert model["input_config"]["channel_names"] == ["Red", "Green", "Blue"]
    assert model["input_config"]["normalization"] == finished.body["input_config"]["normalization"]


def test_the_statistics_are_those_of_the_training_patches(finished: Finished) -> None:
    generator = np.random.default_rng(0)
    patches = [make_image(generator, make_mask((64, 64), 2), 3, np.uint8) for _ in range(4)]
    pixels = np.concatenate([patch.reshape(-1, 3) for patch in patches]).astype(np.float64)
    wanted = {
        "p1": np.percentile(pixels, 1, axis=0),
        "p99": np.percentile(pixels, 99, axis=0),
        "min": pixels.min(axis=0),
        "max": pixels.max(axis=0),
        "mean": pixels.mean(axis=0),
        "std": pixels.std(axis=0),
    }
    assert len(finished.metadata["normalization_stats"]) == 3
    for channel, entry in enumerate(finished.metadata["normalization_stats"]):
        for key, values in wanted.items():
            assert entry[key] == pytest.approx(values[channel], rel=0.01), (channel, key)


def test_frozen_layers_keep_the_weights_file_bit_for_bit_and_the_rest_does_not(
    finished: Finished, weights: Path
) -> None:
    before = load_file(weights / "resnet18.safetensors")
    after = load_file(finished.folder / "model.safetensors")
    for name, value in before.items():
        if name.startswith(FROZEN_PARTS):
            assert torch.equal(after[f"encoder.{name}"], value), name
    moved = [
        name for name in before if name.startswith("layer4") and not torch.equal(after[f"encoder.{name}"], before[name])
    ]
    assert len(moved) > 20


def rebuilt(folder: Path, build: Callable[..., torch.nn.Module] = smp.Unet, **how: Any) -> torch.nn.Module:
    """The network of model.pt, built by the library alone."""
    network = build(**{"encoder_name": "resnet18", "encoder_weights": None, "in_channels": 3, "classes": 2} | how)
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return network.eval()


def test_both_weight_files_hold_the_same(finished: Finished) -> None:
    pickled = torch.load(finished.folder / "model.pt", weights_only=True)
    safe = load_file(finished.folder / "model.safetensors")
    assert set(pickled) == set(safe)
    assert all(torch.equal(pickled[name], safe[name]) for name in safe)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 3, 96, 160), (3, 3, 128, 32)])
def test_onnx_computes_what_torch_computes(finished: Finished, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).random(shape, np.float32)
    session = onnxruntime.InferenceSession(finished.folder / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["output"], {"input": image})
    with torch.inference_mode():
        wanted = rebuilt(finished.folder)(torch.from_numpy(image)).softmax(1).numpy()
    got = torch.from_numpy(logits).softmax(1).numpy()
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-3
    assert wanted.std() > 1e-3, "the network says the same everywhere: nothing was compared"


def test_onnx_is_one_file(finished: Finished) -> None:
    model = onnx.load(finished.folder / "model.onnx", load_external_data=False)
    assert not any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer)


def test_the_finished_model_is_listed(finished: Finished, client: ClassifierClient) -> None:
    models = {model["id"]: model for model in client.read("GET", "/models")["models"]}
    listed = models[finished.folder.name]
    assert listed == {
        "id": finished.folder.name,
        "name": "UNET Classifier",
        "type": "unet",
        "path": str(finished.folder),
    }
    single = client.read("GET", f"/models/{finished.folder.name}")
    assert single == listed | {"metadata": finished.metadata}


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_finished_training_cannot_be_paused_or_resumed(
    finished: Finished, client: ClassifierClient, verb: str
) -> None:
    answer = client.call("POST", f"/train/{finished.training.job_id}/{verb}", {} if verb == "resume" else None)
    assert answer.status_code == 400
    assert "completed" in answer.json()["detail"]


def test_cancel_of_a_finished_training_does_nothing(finished: Finished, client: ClassifierClient) -> None:
    job_id = finished.training.job_id
    assert client.cancel_training(job_id) == {"status": "cancelled", "job_id": job_id}
    assert client.status(job_id)["status"] == "completed"
    assert (finished.folder / "model.onnx").exists()


def readme_body(data: Path) -> Json:
    """The README's request as printed, but for the path."""
    return {
        "model_type": "unet",
        "architecture": {"backbone": "resnet34", "use_pretrained": True, "frozen_layers": FROZEN},
        "input_config": {
            "num_channels": 3,
            "normalization": {"strategy": "percentile_99", "per_channel": True, "clip_percentile": 99.0},
        },
        "training_params": {
            "epochs": 50,
            "batch_size": 8,
            "learning_rate": 0.001,
            "weight_decay": 0.0001,
            "augmentation": True,
            "early_stopping": True,
            "patience": 10,
            "scheduler": "cosine",
        },
        "classes": ["Background", "Foreground"],
        "data_path": str(data),
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_readmes_request_trains_as_printed(client: ClassifierClient, tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    training = client.poll(client.start_training(readme_body(tmp_path)), seconds=1400)
    assert training.state == "completed", training.last
    settings = read_model(Path(training.last["model_path"]))["training"]["settings"]
    printed = {"epochs": 50, "batch_size": 8, "learning_rate": 0.001, "scheduler": "cosine", "augmentation": True}
    assert printed.items() <= settings.items()
    assert settings["early_stopping_patience"] == 10


def worst_export(folder: Path) -> Path:
    """What the extension legally writes of an ordinary slide in a country with decimal commas.

    `.raw` of 0..255 with an alpha band, odd sizes, no validation patch drawn, weights broken by the locale, classes
    as objects, and one patch without a single label.
    """
    generator = np.random.default_rng(3)
    for number in range(5):
        mask = make_mask((50, 70), 2)
        image = make_image(generator, mask, 4, np.float32)
        write_image(folder / "train" / "images" / f"patch_{number:04}.raw", image)
        write_mask(folder / "train" / "masks" / f"patch_{number:04}.png", mask if number else np.full_like(mask, 255))
    for kind in ("images", "masks"):
        (folder / "validation" / kind).mkdir(parents=True)
    config = java_config(["Background", "Tumor"], 3, 255, context=False)
    text = json.dumps(config).replace('"class_weights": [1.0, 2.0]', '"class_weights": [1,000000, 2,000000]')
    assert "1,000000" in text
    write_config(folder, text)
    return folder


def claim_ids(models: Path, model_type: str, seconds: int) -> list[Path]:
    """Folders of every id that a training could be given in the next seconds."""
    now = datetime.now()  # noqa: DTZ005 - ids are in local time
    folders = [models / f"{model_type}_{now + timedelta(seconds=n):%Y%m%d_%H%M%S}" for n in range(seconds)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


@pytest.mark.slow
def test_the_worst_legal_export_trains_and_its_id_collides_with_none(
    door: Served, client: ClassifierClient, tmp_path: Path
) -> None:
    """DeepLabV3+ with batches of two: of four patches left to train on or of three, a last batch of one is normed."""
    data = worst_export(tmp_path)
    claimed = claim_ids(door.state_dir / "models", "deeplabv3plus", 300)
    changes: Json = {"model_type": "deeplabv3+", "batch_size": 3, "scheduler": "one_cycle", "augmentation": True}
    training = client.poll(client.start_training(captured_body(data, **changes)))
    assert training.state == "completed", training.last
    warnings = " ".join(training.last["warnings"])
    for word in ("validation", "class_weights"):
        assert word in warnings
    folder = Path(training.last["model_path"])
    assert re.fullmatch(r"deeplabv3plus_\d{8}_\d{6}_\d+", folder.name)
    assert not any(any(path.iterdir()) for path in claimed)
    model = read_model(folder)
    assert model["architecture"]["type"] == "deeplabv3plus"
    assert model["input_config"]["num_channels"] == 3
    for path in claimed:
        path.rmdir()


@pytest.mark.slow
def test_the_learning_rate_that_blows_up_ends_with_advice(client: ClassifierClient, tmp_path: Path) -> None:
    data = write_dataset(tmp_path, train=4, validation=2)
    body = captured_body(data, learning_rate=1e30, epochs=3, scheduler="none", backbone="mobilenet_v2")
    training = client.poll(client.start_training(body))
    assert training.state == "failed", training.last
    assert re.search("learning.rate", training.last["error"]), training.last
    assert "Traceback" not in training.last["error"]


Oddity = tuple[Callable[[Path], Path], Json, str]
ODDITIES: dict[str, Oddity] = {
    "sixteen bit": (lambda folder: write_dataset(folder, dtype=np.uint16), {"bit_depth": 16}, ""),
    "float": (lambda folder: write_dataset(folder, dtype=np.float32), {"strategy": "z_score"}, ""),
    "jpeg": (lambda folder: write_dataset(folder, suffix=".jpg"), {"strategy": "min_max"}, ""),
    "png": (lambda folder: write_dataset(folder, suffix=".png"), {"strategy": "fixed_range"}, ""),
    "raw colour": (lambda folder: write_dataset(folder, suffix=".raw", config="java"), {"scheduler": "step"}, ""),
    "alpha band": (lambda folder: write_dataset(folder, channels=4), {}, "alpha"),
    "five bands": (
        lambda folder: write_dataset(folder, channels=5),
        {"num_channels": 5, "channel_names": list("ABCDE"), "use_pretrained": True},
        "",
    ),
    "one band": (
        lambda folder: write_dataset(folder, channels=1),
        {"num_channels": 1, "channel_names": ["Grey"], "use_pretrained": True, "frozen_layers": FROZEN},
        "",
    ),
    "context": (
        lambda folder: write_dataset(folder, config="java", context=True),
        {"context_scale": 4, "use_pretrained": True},
        "",
    ),
    "no config": (lambda folder: write_dataset(folder, config=None), {"loss_function": "cross_entropy"}, ""),
    "absent class": (
        lambda folder: write_dataset(folder, config=None),
        {"classes": ["Background", "Tumor", "Stroma"]},
        "Stroma",
    ),
    "odd sizes": (lambda folder: write_dataset(folder, size=(45, 83)), {"model_type": "fpn"}, ""),
    "unet++": (write_dataset, {"model_type": "unet++", "scheduler": "none"}, ""),
    "pspnet": (write_dataset, {"model_type": "pspnet", "scheduler": "cosine"}, ""),
    "pan": (write_dataset, {"model_type": "pan", "early_stopping_metric": "val_loss"}, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("oddity", ODDITIES)
def test_every_legal_oddity_trains(client: ClassifierClient, tmp_path: Path, oddity: str) -> None:
    write, changes, warning = ODDITIES[oddity]
    body = captured_body(write(tmp_path), **changes)
    training = client.poll(client.start_training(body))
    assert training.state == "completed", training.last
    assert warning in " ".join(training.last["warnings"])
    model = read_model(Path(training.last["model_path"]))
    channels = body["input_config"]["num_channels"]
    assert model["input_config"]["num_channels"] == channels
    doubled = 2 if oddity == "context" else 1
    assert len(model["normalization_stats"]) == channels * doubled
    session = onnxruntime.InferenceSession(Path(training.last["model_path"]) / "model.onnx")
    assert session.get_inputs()[0].shape[1] == channels * doubled
    absent = {"Stroma"} if oddity == "absent class" else set()
    assert all(set(entry["per_class_iou"]) == set(body["classes"]) - absent for entry in training.progress)


@pytest.mark.slow
def test_a_resume_reads_no_pretrained_weights(client: ClassifierClient, weights: Path, tmp_path: Path) -> None:
    """They are in the checkpoint, and their file may be gone by then."""
    data = write_dataset(tmp_path / "set", config="java", train=2, validation=1)
    job_id = client.start_training(captured_body(data, epochs=5000, use_pretrained=True))
    wait_until(lambda: client.status(job_id).get("epoch", 0) >= 1, 120)
    client.pause_training(job_id)
    wait_until(lambda: client.status(job_id)["status"] == "paused", 60)
    file, aside = weights / "resnet18.safetensors", weights / "resnet18.aside"
    file.rename(aside)
    try:
        assert client.resume_training(job_id, data_path=str(data))["status"] == "resuming"
    finally:
        aside.rename(file)
        client.cancel_training(job_id)
