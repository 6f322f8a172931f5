"""What will not fit is refused with the numbers, before any memory is taken."""

from __future__ import annotations

import math

from segserve.devices import available_memory
from segserve.errors import TooLargeError, by, human_bytes
from segserve.models.plan import Plan
from segserve.volumes.grid import FLOAT_BYTES, Grid


def volume_need(grid: Grid, classes: int, *, weighted: bool) -> int:
    """Bytes that segmenting takes beyond the loaded network.

    A slab of float32 scores, one of intensities, one of sums of weights if windows are weighted, and a plane that
    counts windows.
    """
    slabs = classes + 1 + int(weighted)
    return FLOAT_BYTES * (grid.slab_voxels() * slabs + grid.plane_voxels())


def check_volume(grid: Grid, classes: int, limit: int, *, weighted: bool) -> None:
    """Refuse a volume that would not fit.

    Args:
        grid: the windows over it.
        classes: K.
        limit: bytes one request may take; 0 is what is free now.
        weighted: whether windows count differently at different voxels.

    Raises:
        TooLargeError: with the need, what there is, and what to change.
    """
    what = f"A volume of {by(grid.shape)} voxels with {classes} classes and a patch of {by(grid.patch)}"
    need = volume_need(grid, classes, weighted=weighted)
    _check(need, limit, what, "crop the volume, or load the model with a smaller patch_size")


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
