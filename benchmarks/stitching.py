"""What a patch costs beside its network: summing its scores and choosing labels, by one core and by all of them.

`python -m benchmarks.stitching`
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import in_turn, seconds
from segserve import devices
from segserve.volumes import threads
from segserve.volumes.grid import Grid, choose_grid
from segserve.volumes.labels import highest_class
from segserve.volumes.sliding import Sweep, Windows

SHAPE, PATCH, STRIDE, CLASSES = (160, 192, 192), (96, 96, 96), (48, 48, 48), 14
ROUNDS = 5


class Instant:
    """An engine that knows its answer."""

    name, device, precision = "none", "cpu", "float32"

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The answer, whatever the batch."""
        del batch
        return self._logits


def main() -> None:
    """Print milliseconds a patch."""
    generator = np.random.default_rng(0)
    engine = Instant(generator.normal(size=(1, CLASSES, *PATCH)).astype(np.float32))
    volume = generator.normal(size=SHAPE).astype(np.float32)
    grid = choose_grid(SHAPE, PATCH, STRIDE, slowest=0)
    cores = devices.compute_threads()
    labels = {count: np.zeros(SHAPE, np.uint8) for count in (1, cores)}

    def contender(count: int) -> Callable[[], float]:
        def work() -> float:
            threads._pool.cache_clear()
            with patch.object(threads, "compute_threads", lambda: count):
                return seconds(lambda: _sweep(engine, grid, volume, labels[count]))

        return work

    found = in_turn({str(count): contender(count) for count in labels}, ROUNDS)
    for count, taken in found.items():
        print(f"stitching with {count} of {cores} cores: {taken / grid.patches * 1000:.1f} ms a patch")
    alike = np.array_equal(labels[1], labels[cores])
    print(f"ratio {found['1'] / found[str(cores)]:.2f}; the labels are {'the same' if alike else 'DIFFERENT'}")


def _sweep(engine: Instant, grid: Grid, volume: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    axis = grid.sweep
    turned, out = np.moveaxis(volume, axis, 0), np.moveaxis(labels, axis, 0)
    Sweep(engine, grid, CLASSES, highest_class, Windows()).run(
        lambda start, stop: np.moveaxis(turned[start:stop], 0, axis),
        lambda start, stop: out[start:stop],
        lambda done, total: None,
    )


if __name__ == "__main__":
    main()
