"""What the published QuPath extension's HTTP client sends, and how it reads the answers.

The extension reads JSON with Gson: a getter on a missing or null value throws, and `has` is true for a null. Every
getter here does the same, so that an answer which would end a user's training ends the test.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import requests

JSON_TYPE = {"Content-Type": "application/json; charset=utf-8", "Accept-Encoding": "gzip"}
HTML_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&='"}
STRATEGIES = {"MIN_MAX", "PERCENTILE_99", "Z_SCORE", "FIXED_RANGE"}
Json = dict[str, Any]
T = TypeVar("T")


class GsonError(Exception):
    """What the Java side would throw."""


def java_double(value: float) -> str:
    """As `Double.toString` writes it: `1.0E-4`."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa)!r}E{int(exponent)}"


def gson(value: object, depth: int = 0) -> str:
    """Pretty-printed, with HTML escaping."""
    inner = "\n" + "  " * (depth + 1)
    outer = "\n" + "  " * depth
    if isinstance(value, dict):
        entries = [f"{gson(key)}: {gson(entry, depth + 1)}" for key, entry in value.items()]
        return "{" + inner + ("," + inner).join(entries) + outer + "}" if entries else "{}"
    if isinstance(value, list):
        entries = [gson(entry, depth + 1) for entry in value]
        return "[" + inner + ("," + inner).join(entries) + outer + "]" if entries else "[]"
    if isinstance(value, float):
        return java_double(value)
    text = json.dumps(value, ensure_ascii=False)
    return "".join(HTML_ESCAPES.get(character, character) for character in text)


def _no_constant(name: str) -> float:
    raise GsonError(f"{name} in the answer")


def parse(text: str) -> Json:
    parsed: Json = json.loads(text, parse_constant=_no_constant)
    return parsed


def get(source: Json, key: str) -> object:
    if source.get(key) is None:
        raise GsonError(f"{key} is {'null' if key in source else 'missing'} in {source}")
    return source[key]


def getter_of(kind: type[T]) -> Callable[[Json, str], T]:
    def get_kind(source: Json, key: str) -> T:
        value = get(source, key)
        if not isinstance(value, kind):
            raise GsonError(f"{key} is {value!r}, not a {kind.__name__}")
        return value

    return get_kind


get_object: Callable[[Json, str], Json] = getter_of(dict)
get_string = getter_of(str)
get_bool = getter_of(bool)
get_list: Callable[[Json, str], list[Any]] = getter_of(list)


def get_double(source: Json, key: str) -> float:
    value = get(source, key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise GsonError(f"{key} is {value!r}, not a finite number")
    return float(value)


def get_int(source: Json, key: str) -> int:
    value = get_double(source, key)
    if value != int(value) or not -(2**31) <= value < 2**31:
        raise GsonError(f"{key} is {value!r}, not an int")
    return int(value)


def get_numbers(source: Json, key: str) -> dict[str, float]:
    """An object of numbers; the client lets the whole of it be null, but nothing in it."""
    return {name: get_double(source[key], name) for name in source[key] or {}}


def optional(source: Json, key: str, getter: Callable[[Json, str], T], default: T) -> T:
    return getter(source, key) if key in source else default


@dataclass
class Training:
    """What the user was shown of one training, and every answer as it came."""

    job_id: str
    state: str = ""
    answers: list[Json] = field(default_factory=list)
    progress: list[Json] = field(default_factory=list)
    last: Json = field(default_factory=dict)

    @property
    def states(self) -> list[str]:
        """The states in the order they were seen, each once in a row."""
        seen = [str(answer["status"]) for answer in self.answers]
        return [state for number, state in enumerate(seen) if number == 0 or seen[number - 1] != state]


class ClassifierClient:
    """The extension's calls, by its names."""

    def __init__(self, url: str) -> None:
        self.base = url + "/api/v1"

    def call(self, method: str, path: str, body: object = None) -> requests.Response:
        """Send a Gson body, or the zero-length one with a JSON type that OkHttp sends for none."""
        text = b"" if body is None else gson(body).encode()
        sent = None if method == "GET" else text
        return requests.request(method, self.base + path, data=sent, headers=JSON_TYPE, timeout=300)

    def read(self, method: str, path: str, body: object = None) -> Json:
        answer = self.call(method, path, body)
        if not answer.ok:
            raise OSError(f"{method} {path}: {answer.status_code} {answer.text}")
        return parse(answer.text)

    def read_list(self, method: str, path: str, body: object = None) -> list[Json]:
        answer: object = self.read(method, path, body)
        assert isinstance(answer, list)
        return answer

    def start_training(self, body: Json) -> str:
        return get_string(self.read("POST", "/train", body), "job_id")

    def cancel_training(self, job_id: str) -> Json:
        return self.read("POST", f"/train/{job_id}/cancel")

    def pause_training(self, job_id: str) -> Json:
        return self.read("POST", f"/train/{job_id}/pause")

    def resume_training(self, job_id: str, **changes: Any) -> Json:
        return self.read("POST", f"/train/{job_id}/resume", changes)

    def status(self, job_id: str) -> Json:
        return self.read("GET", f"/train/{job_id}/status")

    def gpu_info(self) -> str:
        answer = self.read("GET", "/gpu")
        if not get_bool(answer, "available"):
            return "No GPU available (CPU mode)"
        return f"{get_string(answer, 'name')} ({get_int(answer, 'memory_mb')} MB)"

    def clear_gpu_memory(self) -> tuple[list[str], Json]:
        answer = self.read("POST", "/gpu/clear")
        optional(answer, "freed_mb", get_double, 0.0)
        after = optional(answer, "memory_after", get_object, Json())
        for key in ("allocated_mb", "total_mb"):
            optional(after, key, get_double, 0.0)
        return optional(answer, "cancelled_jobs", get_list, list[Any]()), answer

    def poll(self, job_id: str, *, every: float = 0.1, seconds: float = 240.0) -> Training:
        """Poll until the client would stop: `completed`, `failed`, `cancelled` or `paused`."""
        training = Training(job_id)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            training.last = self.status(job_id)
            training.answers.append(training.last)
            if read_status(training):
                return training
            time.sleep(every)
        self.cancel_training(job_id)
        raise AssertionError(f"not over after {seconds} s: {training.last}")


def read_status(training: Training) -> bool:
    """Read what the client reads in this state; true where it stops polling."""
    answer = training.last
    training.state = get_string(answer, "status")
    match training.state:
        case "training":
            _read_progress(training, answer)
        case "completed":
            get_string(answer, "model_path")
            get_double(answer, "final_loss")
            get_double(answer, "final_accuracy")
        case "failed":
            get_string(answer, "error")
        case "paused":
            get_int(answer, "epoch")
            get_int(answer, "total_epochs")
    return training.state in {"completed", "failed", "cancelled", "paused"}


def _read_progress(training: Training, answer: Json) -> None:
    get_int(answer, "total_epochs")
    if get_int(answer, "epoch") == 0:
        return
    loss = get_double(answer, "loss")
    shown: Json = {"epoch": answer["epoch"], "loss": loss}
    for key, default in (("train_loss", loss), ("accuracy", 0.0), ("mean_iou", 0.0)):
        shown[key] = optional(answer, key, get_double, default)
    for key in ("per_class_iou", "per_class_loss"):
        shown[key] = optional(answer, key, get_numbers, dict[str, float]())
    for key in ("device", "device_info"):
        optional(answer, key, get_string, "")
    if shown not in training.progress:
        training.progress.append(shown)


def read_model(folder: Path) -> Json:
    """Read a model's metadata.json as the extension's model manager does."""
    source = parse((folder / "metadata.json").read_text("utf-8"))
    for key in ("id", "name"):
        get_string(source, key)
    optional(source, "description", get_string, "")
    created = datetime.fromisoformat(optional(source, "createdAt", get_string, "2026-01-01T00:00:00"))
    assert created.tzinfo is None, "LocalDateTime.parse refuses an offset"
    architecture = get_object(source, "architecture")
    for key in ("type", "backbone"):
        optional(architecture, key, get_string, "")
    for key in ("input_width", "input_height", "input_channels", "context_scale"):
        optional(architecture, key, get_int, 0)
    optional(architecture, "downsample", get_double, 1.0)
    _read_channels(optional(source, "channel_config", get_object, Json()))
    for entry in get_list(source, "classes"):
        get_int(entry, "index")
        get_string(entry, "name")
        optional(entry, "color", get_string, "#808080")
    training = optional(source, "training", get_object, Json())
    optional(training, "image_name", get_string, "")
    optional(training, "epochs", get_int, 0)
    for key in ("final_loss", "final_accuracy"):
        optional(training, key, get_double, 0.0)
    for entry in optional(source, "normalization_stats", get_list, list[Any]()):
        for key in ("p1", "p99", "min", "max", "mean", "std"):
            get_double(entry, key)
    assert source["classes"]
    return source


def _read_channels(source: Json) -> None:
    for name in optional(source, "expected_channels", get_list, list[Any]()):
        assert isinstance(name, str)
    assert optional(source, "normalization_strategy", get_string, "PERCENTILE_99") in STRATEGIES
    optional(source, "bit_depth_trained", get_int, 8)


def events(url: str, job_id: str) -> Iterator[tuple[str, Json]]:
    """The server-sent events of a training, until the server ends them."""
    with requests.get(f"{url}/api/v1/train/{job_id}/events", stream=True, timeout=300) as answer:
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        name = "message"
        for line in answer.iter_lines(decode_unicode=True):
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                yield name, parse(line[5:])


def captured_body(data: Path, **changes: Any) -> Json:
    """The extension's own request, as it was captured; `changes` go to the part that has the key."""
    body: Json = {
        "model_type": "unet",
        "architecture": {
            "backbone": "resnet18",
            "input_size": [64, 64],
            "downsample": 2.0,
            "use_pretrained": False,
            "context_scale": 1,
        },
        "input_config": {
            "num_channels": 3,
            "channel_names": ["Red", "Green", "Blue"],
            "bit_depth": 8,
            "normalization": {"strategy": "percentile_99", "per_channel": False, "clip_percentile": 99.0},
        },
        "training": {
            "epochs": 1,
            "batch_size": 2,
            "learning_rate": 0.001,
            "weight_decay": 1.0e-4,
            "validation_split": 0.2,
            "augmentation": False,
            "scheduler": "onecycle",
            "loss_function": "ce_dice",
            "early_stopping": True,
            "early_stopping_patience": 15,
            "early_stopping_metric": "mean_iou",
            "mixed_precision": False,
        },
        "classes": ["Background", "Tumor"],
        "data_path": str(data),
    }
    for key, value in changes.items():
        parts = [body["input_config"]["normalization"], body["architecture"], body["input_config"], body["training"]]
        new = body["architecture"] if key == "frozen_layers" else body
        next((part for part in parts if key in part), new)[key] = value
    return body
