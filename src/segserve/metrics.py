"""What the server counts, in the form that Prometheus reads; each server has its own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters that whoever does the thing increments; what is merely there is read when somebody asks."""

    def __init__(self) -> None:
        # When a counter was made is of no use to anybody here, and doubles what is sent.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "segserve_requests", "Requests answered; status 0: the client got none.", "method", "route", "status"
        )
        self.request_seconds = self._histogram(
            "segserve_request_seconds", "From a request's first byte to its answer's last.", "method", "route"
        )
        self.in_flight = Gauge(
            "segserve_requests_in_flight", "Requests being answered, this one included.", registry=self.registry
        )
        self.volumes = self._counter("segserve_volumes", "Volumes segmented.")
        self.volume_seconds = self._histogram(
            "segserve_volume_seconds", "To read, segment and write a volume, as its worker counts."
        )
        self.stage_seconds = self._counter(
            "segserve_volume_stage_seconds", "Seconds of that by stage: read, network, stitch, write.", "stage"
        )
        self.patches = self._counter(
            "segserve_patches", "Patches of those volumes, by how they came about: computed, skipped.", "how"
        )
        self.tiles = self._counter("segserve_tiles", "Tiles classified.")
        self.call_seconds = self._histogram(
            "segserve_worker_call_seconds", "Calls that workers answered, trainings excepted.", "kind", "verb"
        )
        self.worker_starts = self._counter("segserve_worker_starts", "Processes started.", "kind")
        self.worker_start_failures = self._counter(
            "segserve_worker_start_failures", "Processes that could not be started.", "kind"
        )
        self.worker_deaths = self._counter(
            "segserve_worker_deaths", "Processes that ended without the server ending them.", "kind"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=SECONDS, registry=self.registry)
