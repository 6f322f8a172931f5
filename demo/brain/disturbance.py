"""What a scanner adds to a picture: uneven brightness, an arbitrary gain, and noise."""

import numpy as np
import numpy.typing as npt

BIAS_STRENGTH = 0.4
"""The brightness drifts by at most this fraction up or down across the volume."""
BIAS_WAVES = 3
WAVELENGTH_VOXELS = (40.0, 90.0)
GAIN = (0.85, 1.15)
NOISE = 30.0
"""Standard deviation in scanner units: about 3.5 % of the white-matter level."""


def bias_field(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A smooth random factor around 1 for each voxel, float32, within 1 +- `BIAS_STRENGTH`.

    A weighted sum of plane waves in random directions: smooth everywhere, and a patch gets the same kind of
    field as a whole volume.
    """
    weights = BIAS_STRENGTH * rng.dirichlet(np.ones(BIAS_WAVES))
    field = np.ones(shape, dtype=np.float32)
    for weight in weights:
        direction = rng.normal(size=len(shape))
        direction *= 2 * np.pi / (rng.uniform(*WAVELENGTH_VOXELS) * np.linalg.norm(direction))
        steps = [k * np.arange(n) for k, n in zip(direction, shape, strict=True)]
        phase = sum(np.ix_(*steps), start=rng.uniform(0, 2 * np.pi))
        field += weight * np.cos(np.asarray(phase, dtype=np.float32))
    return field


def disturb(clean: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """The same volume or patch as a poor scanner would give it: same shape, float32, scanner units."""
    noise = rng.standard_normal(clean.shape, dtype=np.float32) * NOISE
    gain = np.float32(rng.uniform(*GAIN))
    return clean * bias_field(clean.shape, rng) * gain + noise
