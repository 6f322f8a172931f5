"""A job as the protocol's status: everything in it is there, non-null and finite, or not there at all."""

from __future__ import annotations

from typing import Any

from segserve.jobs.record import Job
from segserve.jobs.runner import Runner
from segserve.models.classifiers import ClassifierStore
from segserve.training.events import finite

EPOCH_FIELDS = ("train_loss", "accuracy", "mean_iou", "per_class_iou", "per_class_loss")


def status(job: Job, runner: Runner, classifiers: ClassifierStore) -> dict[str, Any]:
    """What `GET /train/{job_id}/status` answers."""
    answer: dict[str, Any] = {
        "status": job.state,
        "job_id": job.id,
        "epoch": job.epoch,
        "total_epochs": job.spec.training.epochs,
        "warnings": [*job.warnings, *([job.trouble] if job.trouble else [])],
    }
    if job.state in {"training", "paused"}:
        answer |= _figures(job)
    if job.state == "training":
        answer |= {"stage": job.stage, "batch": job.batch, "batches": job.batches}
    if job.state == "paused" and job.has_checkpoint:
        answer["checkpoint_path"] = str(runner.folder(job.id).checkpoint)
    if job.device:
        answer |= {"device": job.device, "device_info": job.device_info}
    if job.state == "completed":
        answer |= {
            "model_id": job.model_id,
            "model_path": str(classifiers.own / job.model_id),
            "final_loss": finite(job.final_loss),
            "final_accuracy": finite(job.final_accuracy),
        }
    if job.state == "failed":
        answer["error"] = job.error or "The training failed; its log tells more."
    return answer


def summary(job: Job) -> dict[str, Any]:
    """A job in the list of all."""
    return {
        "job_id": job.id,
        "status": job.state,
        "epoch": job.epoch,
        "total_epochs": job.spec.training.epochs,
        "model_type": job.spec.architecture.type,
        "backbone": job.spec.architecture.backbone,
        "classes": job.spec.classes,
        "created": job.created,
        **({"model_id": job.model_id} if job.model_id else {}),
    }


def _figures(job: Job) -> dict[str, Any]:
    latest = job.latest or {}
    figures: dict[str, Any] = {"loss": finite(latest.get("val_loss", 0.0))}
    for field in EPOCH_FIELDS:
        value = latest.get(field, {} if field.startswith("per_class") else 0.0)
        figures[field] = {name: finite(v) for name, v in value.items()} if isinstance(value, dict) else finite(value)
    return figures
