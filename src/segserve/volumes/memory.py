"""What will not fit is refused with the numbers, before any memory is taken."""

from __future__ import annotations

import math

from segserve.devices import available_memory
from segserve.errors import TooLargeError, by, human_bytes
from segserve.models.plan import Plan
from segserve.volumes.grid import FLOAT_BYTES, Grid


def volume_need(grid: Grid, classes: int) -> int:
    """Bytes that segmenting takes beyond the loaded network: a slab of float32 scores and one of intensities."""
    return FLOAT_BYTES * grid.slab_voxels() * (classes + 1)


def check_volume(grid: Grid, classes: int, limit: int) -> None:
    """Refuse a volume that would not fit.

    Args:
        grid: the windows over it.
        classes: K.
        limit: bytes one request may take; 0 is what is free now.

    Raises:
        TooLargeError: with the need, what there is, and what to change.
    """
    what = f"A volume of {by(grid.shape)} voxels with {classes} classes and a patch of {by(grid.patch)}"
    _check(volume_need(grid, classes), limit, what, "crop the volume, or load the model with a smaller patch_size")


def check_patch(plan: Plan) -> None:
    """Refuse a patch that could not even be handed to the network.

    Raises:
        TooLargeError: as for volumes.
    """
    need = 2 * FLOAT_BYTES * plan.batch * math.prod(plan.patch_size)
    what = f"A patch of {by(plan.patch_size)}, {plan.batch} at a time,"
    _check(need, 0, what, "load the model with a smaller patch_size or forward_batch_windows")


def _check(need: int, limit: int, what: str, remedy: str) -> None:
    room = limit or available_memory()
    if need > room:
        allowed = "memory_limit allows" if limit else "are free"
        raise TooLargeError(f"{what} needs {human_bytes(need)} of memory and {human_bytes(room)} {allowed}: {remedy}.")
