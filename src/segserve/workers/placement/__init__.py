"""Where workers run: the seam, and the one place there is, this machine."""

from segserve.workers.placement.base import Call, Kind, Listener, Placement, Worker, WorkerDiedError

__all__ = ["Call", "Kind", "Listener", "Placement", "Worker", "WorkerDiedError"]
