"""The dialect of 3D Slicer's ITKIT module: `/api/*`."""

from segserve.api.slicer.routes import router

__all__ = ["router"]
