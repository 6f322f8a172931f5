"""What workers can do, one class of verbs a kind of worker."""

from segserve.workers.verbs.base import Cancelled, Request

__all__ = ["Cancelled", "Request"]
