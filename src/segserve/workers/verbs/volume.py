"""What a worker can do with the volume network it holds."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segserve.models.backends import is_file
from segserve.models.formats.volume import network_files
from segserve.models.request import LoadRequest
from segserve.volumes.model import Job, VolumeModel
from segserve.volumes.source import Limits
from segserve.workers.verbs.base import Cancelled, Request

log = logging.getLogger("segserve.worker")

EVENT_SECONDS = 0.25


class VolumeVerbs:
    """The verbs, and the model they share."""

    def __init__(self, choices: Path) -> None:
        """Hold no model yet.

        Args:
            choices: a folder where choices of engines are kept.
        """
        self._choices = choices
        self._model: VolumeModel | None = None

    def load(self, request: Request) -> dict[str, Any]:
        """Load a model and run it once; replies what is in force, and which state of its files that is."""
        asked = LoadRequest.model_validate(request.body["request"])
        fingerprint = _fingerprint(asked)
        self._model = VolumeModel.load(
            asked,
            default_patch=request.body["default_patch"],
            choices=self._choices,
            trusted=[Path(folder) for folder in request.body["trusted"]],
        )
        log.info("loaded %s", asked.name)
        return {"card": self._model.describe(), "fingerprint": fingerprint}

    def segment(self, request: Request) -> dict[str, Any]:
        """Segment the file `image` into the file `labels`; replies how it went."""
        if self._model is None or request.scratch is None:
            raise RuntimeError("segment needs a loaded model and a scratch folder")

        job = Job(
            image=request.inputs["image"],
            target=request.outputs["labels"],
            scratch=request.scratch,
            limits=Limits(**request.body["limits"]),
            window_level=request.body["window_level"],
            window_width=request.body["window_width"],
            progress=_Teller(request),
        )
        outcome = self._model.segment(job)
        log.info("segmented %d patches in %.2f s", outcome.patches, outcome.seconds)
        return asdict(outcome)


class _Teller:
    """Tells whoever listens to a request how far it is, and stops it when nobody waits any more."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        if self._request.cancelled():
            raise Cancelled
        log.debug("patch %d of %d", done, total)
        now = time.monotonic()
        if done == total or now - self._last >= EVENT_SECONDS:
            self._last = now
            self._tell("patches", done, total)
        if done == total:
            self._tell("writing", done, total)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._request.emit({"stage": stage, "done": done, "total": total})


def _fingerprint(asked: LoadRequest) -> str:
    """Sizes and times of the files that the network is read from; what is missing, loading will tell."""
    states = [file.stat() for file in network_files(asked) if is_file(file)]
    return " ".join(f"{state.st_size}-{state.st_mtime_ns}" for state in states)
