"""`GET /metrics`: what was counted, and what is there now, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.responses import Response

from segserve.api.ops.readings import Reader, Readings
from segserve.api.qupath.hall import Hall
from segserve.errors import printable
from segserve.jobs.record import State
from segserve.metrics import Metrics
from segserve.workers.placement import Kind
from segserve.workers.placement.watched import WatchedPlacement
from segserve.workers.supervisor import Supervisor

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Everything that is counted and measured, in the text format of Prometheus."""
    exposition: Exposition = request.app.state.exposition
    return Response(await exposition.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Exposition:
    """Puts what was counted beside what there is."""

    def __init__(
        self, counted: Metrics, watched: WatchedPlacement, supervisor: Supervisor, hall: Hall, reader: Reader
    ) -> None:
        self._counted = counted
        self._watched = watched
        self._supervisor = supervisor
        self._hall = hall
        self._reader = reader

    async def text(self) -> bytes:
        """All metrics in the text format."""
        readings = await self._reader.read()
        there = CollectorRegistry()
        there.register(_Now([*self._work(), *_system(readings), *self._workers(readings)]))
        return generate_latest(self._counted.registry) + generate_latest(there)

    def _work(self) -> Iterator[GaugeMetricFamily]:
        models, tiles = self._supervisor.models, self._hall.tiles
        jobs = Counter(job.state for job in self._hall.book.jobs.values())
        yield _by(
            "segserve_model_waiting",
            "Requests that wait for a volume model.",
            "model",
            {name: sum(one.waiting for one in model.family) for name, model in models.items()},
        )
        yield _by(
            "segserve_model_busy",
            "Requests that a volume model is serving.",
            "model",
            {name: sum(one.busy for one in model.family) for name, model in models.items()},
        )
        yield _by(
            "segserve_classifier_requests",
            "Requests that a pixel classifier is answering, by the name of its folder.",
            "model",
            {printable(name): busy for name, busy in tiles.requests.items()},
        )
        yield _one("segserve_tile_waiting_bytes", "Tiles of unanswered requests.", tiles.waiting_bytes)
        states = {state: jobs[state] for state in get_args(State)}
        yield _by("segserve_trainings", "Trainings, by state.", "state", states)

    def _workers(self, readings: Readings) -> Iterator[GaugeMetricFamily]:
        alive = Counter(worker.kind for worker in self._watched.workers)
        kinds: tuple[Kind, ...] = get_args(Kind)
        yield _by("segserve_workers", "Processes alive, by kind.", "kind", {kind: alive[kind] for kind in kinds})
        yield _by(
            "segserve_worker_resident_bytes",
            "Resident memory of those processes.",
            "kind",
            {kind: readings.workers.get(kind, 0) for kind in kinds},
        )


class _Now(Collector):
    """Metrics as they are at the moment of asking."""

    def __init__(self, families: Iterable[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def _system(readings: Readings) -> Iterator[GaugeMetricFamily]:
    yield _one("segserve_spool_files", "Files of running requests.", readings.spool_files)
    yield _one("segserve_spool_bytes", "Size of those files.", readings.spool_bytes)
    yield _one("segserve_state_free_bytes", "Room on the state directory's disk.", readings.free)
    yield _one("process_resident_memory_bytes", "Resident memory of the server's own process.", readings.resident)
    yield _one("process_open_fds", "Files and sockets that process has open.", readings.descriptors)


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
