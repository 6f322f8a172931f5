"""The dialect of QuPath's DL pixel classifier extension: `/api/v1/*`."""

from segserve.api.qupath.status import router

__all__ = ["router"]
