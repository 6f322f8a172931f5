"""Trainings: start, watch, pause, resume, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from segserve.api.delivery import unless_hung_up
from segserve.api.qupath.hall import Hall, hall
from segserve.api.qupath.jobs import status, summary
from segserve.api.qupath.schemas import ResumeRequest, TrainRequest
from segserve.extras import need_torch
from segserve.jobs.record import ENDED
from segserve.training.spec import TrainingSpec

router = APIRouter(tags=["QuPath: training"])

LAST_EVENT = {"completed": "done", "failed": "failed", "cancelled": "cancelled", "paused": "paused"}
EVENT_SECONDS = 0.5


@router.post("/train")
async def start_training(request: Request, body: TrainRequest) -> dict[str, Any]:
    """Check everything that can be checked now, then queue a training; its record is on disk before the answer."""
    need_torch("Training")
    place, spec = hall(request), body.spec()
    warnings = await unless_hung_up(request, _check(place, spec))
    job = await place.runner.submit(spec, warnings)
    return {"job_id": job.id, "status": "started", "warnings": job.warnings}


@router.get("/train")
async def list_trainings(request: Request) -> dict[str, Any]:
    """All trainings, the newest first."""
    jobs = reversed(hall(request).book.jobs.values())
    return {"jobs": [summary(job) for job in jobs]}


@router.get("/train/{job_id}/status")
async def training_status(request: Request, job_id: str) -> dict[str, Any]:
    """How far a training is."""
    place = hall(request)
    return status(place.book.get(job_id), place.runner, place.classifiers)


@router.post("/train/{job_id}/cancel")
async def cancel_training(request: Request, job_id: str) -> dict[str, Any]:
    """End a training for good; one that has ended stays as it is."""
    await hall(request).runner.cancel(job_id)
    return {"status": "cancelled", "job_id": job_id}


@router.post("/train/{job_id}/pause")
async def pause_training(request: Request, job_id: str) -> dict[str, Any]:
    """Stop a training after the batch at hand, with a checkpoint."""
    await hall(request).runner.pause(job_id)
    return {"status": "pausing", "job_id": job_id}


@router.post("/train/{job_id}/resume")
async def resume_training(
    request: Request, job_id: str, body: Annotated[ResumeRequest | None, Body()] = None
) -> dict[str, Any]:
    """Queue a paused training again, or a failed one that has a checkpoint; it goes on where that is."""
    need_torch("Training")
    place, changes = hall(request), body or ResumeRequest()
    job = place.runner.check_resumable(job_id)
    spec = changes.applied_to(job.spec)
    if changes.data_path:
        await unless_hung_up(request, _check(place, spec, needs_weights=not job.has_checkpoint))
    await place.runner.resume(job_id, spec)
    return {"status": "resuming", "job_id": job_id}


@router.get("/train/{job_id}/history")
async def training_history(request: Request, job_id: str) -> dict[str, Any]:
    """Every finished epoch of a training."""
    place = hall(request)
    place.book.get(job_id)
    history = await place.book.in_thread(place.runner.folder(job_id).history)
    return {"job_id": job_id, "history": history}


@router.get("/train/{job_id}/log", response_class=PlainTextResponse)
async def training_log(request: Request, job_id: str) -> str:
    """The log of a training, as text."""
    place = hall(request)
    place.book.get(job_id)
    return await asyncio.to_thread(_read_log, place, job_id)


async def _known(request: Request, job_id: str) -> str:
    """The id of a job that exists; asked before a stream's answer begins."""
    return hall(request).book.get(job_id).id


@router.get("/train/{job_id}/events", response_class=EventSourceResponse)
async def training_events(request: Request, known: Annotated[str, Depends(_known)]) -> AsyncIterator[ServerSentEvent]:
    """Progress as it happens, until the training ends or is paused; each event's data is a status."""
    place = hall(request)
    async for job in place.book.watch(known):
        told = status(job, place.runner, place.classifiers)
        kind = LAST_EVENT.get(job.state, "progress")
        yield ServerSentEvent(event=kind, data=told)
        if job.state in ENDED or job.state == "paused":
            return
        await asyncio.sleep(EVENT_SECONDS)


def _read_log(place: Hall, job_id: str) -> str:
    path = place.runner.folder(job_id).log
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


async def _check(place: Hall, spec: TrainingSpec, *, needs_weights: bool = True) -> list[str]:
    """What the network and the data make impossible is refused now; the rest of what is odd comes back as warnings.

    Args:
        place: where models and settings are.
        spec: of the training.
        needs_weights: whether pretrained weights that it asks for are yet to be read; a checkpoint holds them.

    Raises:
        BadInputError: what is wrong, and what to do.
    """
    asked = spec.architecture
    await place.inspector.ask(
        "network",
        {
            "architecture": asked.type,
            "encoder": asked.backbone,
            "num_channels": spec.network_channels,
            "num_classes": len(spec.classes),
            "frozen_layers": asked.frozen_layers,
            "use_pretrained": asked.use_pretrained and needs_weights,
            "weights_dir": place.weights_dir,
        },
    )
    found = await place.scanner.ask("data", {"spec": spec.model_dump(mode="json")})
    warnings: list[str] = found["warnings"]
    return warnings
