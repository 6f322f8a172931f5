"""Training over HTTP, with the requests that QuPath's extension sends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from demo.errors import DemoError
from demo.serving import Client
from demo.terminal import say
from demo.tissue.export import PATCH
from demo.tissue.slide import CLASSES

BACKBONE = "resnet18"
EPOCHS = 16
BATCH = 8
PEAK_RATE = 5e-4
POLL_SECONDS = 1.0
BAR = 20
"""Characters of a mean IoU of 1."""


def request(folder: Path, seed: int) -> dict[str, Any]:
    """The body of `POST /api/v1/train` for the training folder `folder`."""
    return {
        "model_type": "unet",
        "architecture": {"backbone": BACKBONE, "input_size": [PATCH, PATCH], "use_pretrained": False},
        "input_config": {
            "num_channels": 3,
            "channel_names": ["Red", "Green", "Blue"],
            "bit_depth": 8,
            "normalization": {"strategy": "percentile_99", "per_channel": True, "clip_percentile": 99.0},
        },
        "training": {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "learning_rate": PEAK_RATE,
            "augmentation": True,
            "scheduler": "onecycle",
            "loss_function": "cross_entropy",
            # A few strokes are soon all right: their IoU then tells later epochs apart no more, their loss does.
            "early_stopping_metric": "val_loss",
            "seed": seed,
        },
        "classes": list(CLASSES),
        "data_path": str(folder.resolve()),
    }


def train(client: Client, body: dict[str, Any]) -> Path:
    """Train, and print every epoch as it is done.

    Returns:
        The folder of the finished model.

    Raises:
        DemoError: the training failed; with the server's reason.
    """
    answer = client.start_training(body)
    for warning in answer["warnings"]:
        say(f"the server remarks: {warning}")
    say(f"POST /api/v1/train: job {answer['job_id']}; its status, asked for every second:")
    say(f"{'epoch':>6}{'training loss':>16}{'validation loss':>18}{'mean IoU':>12}  on the validation strokes")
    told = 0
    while True:
        status = client.training_status(answer["job_id"])
        if status["status"] == "completed":
            return Path(status["model_path"])
        if status["status"] in {"failed", "cancelled"}:
            raise DemoError(f"the training {status['status']}: {status.get('error', 'nobody knows why.')}")
        if status["epoch"] > told:
            told = status["epoch"]
            _say_epoch(status)
        time.sleep(POLL_SECONDS)


def _say_epoch(status: dict[str, Any]) -> None:
    epoch = f"{status['epoch']}/{status['total_epochs']}"
    score = status["mean_iou"]
    bar = "#" * round(score * BAR)
    say(f"{epoch:>6}{status['train_loss']:>16.3f}{status['loss']:>18.3f}{score:>12.3f}  {bar}")
