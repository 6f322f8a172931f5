"""The program of a worker whose trainings take no torch and little time: everything else about it is real.

A training's weights are a number that every epoch changes, so that an interrupted one can be compared with another.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from segserve.errors import BadInputError
from segserve.workers import process
from segserve.workers.verbs import Request

EPOCH_SECONDS = 0.1
MODULUS = 2**31 - 1
# Data folders that make a training fail: before its first checkpoint, and after it.
BROKEN, DIVERGES = "/broken", "/diverges"


def weights_after(epochs: int, value: int = 1) -> int:
    """What a training ends with."""
    for _ in range(epochs):
        value = (value * 48271 + 11) % MODULUS
    return value


class LightTraining:
    """A training process: stages, epochs, checkpoints, pauses and a model folder."""

    def train(self, request: Request) -> dict[str, Any]:
        spec, kept = request.body["spec"], request.outputs["checkpoint"]
        state = {"epoch": 0, "value": 1}
        if request.body["resume"]:
            state = json.loads(kept.read_text("utf-8"))
        for number in range(1, state["epoch"] + 1):
            request.emit({"kind": "past epoch", "epoch": _told(number)})
        for stage in ("weights", "data", "training"):
            request.emit({"kind": "stage", "stage": stage})
        if spec["data_path"] == BROKEN:
            raise BadInputError("The data are broken.")
        request.emit({"kind": "started", "device": "cpu", "info": "CPU", "warnings": []})
        while state["epoch"] < spec["training"]["epochs"]:
            for _ in range(10):
                if request.told("pause"):
                    _keep(request, kept, state)
                    return {"outcome": "paused"}
                time.sleep(EPOCH_SECONDS / 10)
            state = {"epoch": state["epoch"] + 1, "value": weights_after(1, state["value"])}
            request.emit({"kind": "epoch", "epoch": _told(state["epoch"])})
            _keep(request, kept, state)
            if spec["data_path"] == DIVERGES:
                raise BadInputError("The training diverged.")
        request.emit({"kind": "stage", "stage": "export"})
        return self._export(request, state["value"])

    def _export(self, request: Request, value: int) -> dict[str, Any]:
        folder = request.outputs["model"]
        (folder / "model.pt").write_text(str(value), "utf-8")
        time.sleep(EPOCH_SECONDS)
        (folder / "training_history.json").write_text("[]", "utf-8")
        figures = {"final_loss": 0.5, "final_accuracy": 0.75}
        metadata = {"name": "light", "architecture": {"type": "unet"}, "training": figures}
        return {"outcome": "finished", "metadata": metadata, "warnings": []}


class LightInspection:
    """Nothing is ever wrong with a network or its data."""

    def network(self, _request: Request) -> dict[str, Any]:
        return {}

    def data(self, _request: Request) -> dict[str, Any]:
        return {"warnings": []}


def _keep(request: Request, kept: Path, state: dict[str, int]) -> None:
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    part.write_text(json.dumps(state), "utf-8")
    part.replace(kept)
    request.emit({"kind": "checkpoint"})


def _told(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "accuracy": 0.5, "mean_iou": 0.5}


LIGHT = {"training": LightTraining, "inspector": LightInspection}


if __name__ == "__main__":
    real = process._verbs
    process._verbs = lambda kind, state: LIGHT[kind]() if kind in LIGHT else real(kind, state)
    process.main()
