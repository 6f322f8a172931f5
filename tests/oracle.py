"""What the server must answer, worked out slowly and plainly, without any of its code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from tests import volumes
from tests.networks import BIT_CLEAR, BIT_SET, place_votes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import nibabel as nib

    from tests.serving import Served

Array = npt.NDArray[Any]
Forward = Callable[[Array], Array]
"""A patch (Z, Y, X) in float32 to its logits (K, Z, Y, X)."""


@dataclass(frozen=True)
class Subject:
    """A network on the server, and what the oracle needs to foretell its answers."""

    server: Served
    name: str
    forward: Forward
    patch: Sequence[int]
    stride: Sequence[int] | None = None
    orientation: str = "LPI"

    def load(self, model: Path, **body: object) -> Subject:
        config: dict[str, object] = {"patch_size": list(self.patch)}
        if self.stride is not None:
            config["patch_stride"] = list(self.stride)
        if self.orientation != "LPI":
            body.setdefault("orientation", self.orientation)
        self.server.load(self.name, model, inference_config=config, **body)
        return self

    def ask(self, path: Path, **fields: object) -> Array:
        answer = self.server.infer(path, model_name=self.name, **fields)
        assert answer.status_code == 200, answer.text
        return volumes.labels_of(answer.content)

    def foretell(self, path: Path, window: tuple[float, float] | None = None) -> Array:
        return segment(path, self.forward, self.patch, stride=self.stride, orientation=self.orientation, window=window)

    def check(self, path: Path, window: tuple[float, float] | None = None, **fields: object) -> Array:
        """Assert that not one voxel differs, and return the labels."""
        expected, given = self.foretell(path, window), self.ask(path, **fields)
        assert given.shape == expected.shape
        assert given.dtype.newbyteorder("=") == expected.dtype
        wrong = np.argwhere(given != expected)
        assert len(wrong) == 0, f"{self}: {len(wrong)} of {given.size} voxels differ in {path.name}, first {wrong[:3]}"
        return given


def segment(
    path: Path,
    forward: Forward,
    patch: Sequence[int],
    *,
    stride: Sequence[int] | None = None,
    orientation: str = "LPI",
    window: tuple[float, float] | None = None,
    decide: Callable[[Array], Array] | None = None,
    weights: Array | None = None,
) -> Array:
    """The labels of a NIfTI file on its own grid, array[i, j, k] (the file's own number of axes).

    `decide` makes something else than labels of the mean logits.
    """
    image = volumes.read(path.read_bytes())
    shape: tuple[int, ...] = image.shape
    stored = np.asarray(image.dataobj).astype(np.float32).reshape((*shape, 1, 1)[:3])
    intensities = windowed(without_gaps(stored), window)
    held = letters_of(affine_of(volumes.header_of(path.read_bytes())))
    axes, flips = placement(held, orientation if orientation != "native" else held)
    fed = np.flip(intensities.transpose(axes), flips)
    logits = sliding_logits(fed, forward, patch, stride or [max(1, side // 2) for side in patch], weights)
    labels = (decide or decided)(logits)
    return np.asarray(np.flip(labels, flips).transpose(np.argsort(axes))).reshape(shape)


def affine_of(header: nib.Nifti1Header) -> Array:
    """Voxel steps to millimetres (right, front, top): sform first, then qform, then as ITK reads neither."""
    if header["sform_code"] > 0:
        return np.array([header["srow_x"], header["srow_y"], header["srow_z"]], dtype=float)[:, :3]
    if header["qform_code"] > 0:
        return turned(*(float(header[f"quatern_{letter}"]) for letter in "bcd")) @ np.diag(
            [1.0, 1.0, -1.0 if header["pixdim"][0] < 0 else 1.0]
        )
    return np.diag([-1.0, -1.0, 1.0])


def turned(b: float, c: float, d: float) -> Array:
    """The rotation of a NIfTI quaternion."""
    a = np.sqrt(max(1 - b * b - c * c - d * d, 0))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def letters_of(affine: Array) -> str:
    """The nearest of the 48 orientations: the side of the patient that each array axis grows towards."""
    columns = affine / np.linalg.norm(affine, axis=0)
    best, letters = -np.inf, ""
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            likeness = sum(signs[axis] * columns[order[axis], axis] for axis in range(3))
            if likeness > best:
                best = likeness
                letters = "".join(("RL", "AP", "SI")[order[axis]][signs[axis] < 0] for axis in range(3))
    return letters


def placement(held: str, wanted: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For the fed array (z, y, x): which stored axis each of its axes is, and which of its axes are flipped."""
    opposite = dict(zip("RLAPSI", "LRPAIS", strict=True))
    axes, flips = [], []
    for position, letter in enumerate(reversed(wanted)):
        axes.append(held.index(letter) if letter in held else held.index(opposite[letter]))
        if letter not in held:
            flips.append(position)
    return tuple(axes), tuple(flips)


def without_gaps(intensities: Array) -> Array:
    """NaN and infinite voxels as the lowest finite value."""
    finite = np.isfinite(intensities)
    return np.asarray(np.where(finite, intensities, intensities[finite].min()))


def windowed(intensities: Array, window: tuple[float, float] | None) -> Array:
    if window is None:
        return intensities
    level, width = window
    low, high = np.float32(level - width / 2), np.float32(level + width / 2)
    return np.asarray((np.clip(intensities, low, high) - low) / np.float32(width))


def starts(length: int, patch: int, stride: int) -> list[int]:
    """Where the windows of one axis begin; the last is moved inward."""
    count = max(length - patch + stride - 1, 0) // stride + 1
    return [max(min(number * stride + patch, length) - patch, 0) for number in range(count)]


def windows(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    per_axis = [starts(*axis) for axis in zip(shape, patch, stride, strict=True)]
    for corner in product(*per_axis):
        yield tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))


def gaussian(patch: Sequence[int]) -> Array:
    """The weight of each voxel of a patch: a bell of an eighth of the patch in width, not below a thousandth."""
    weights = np.ones(patch)
    for axis, side in enumerate(patch):
        for place in range(side):
            curve = np.exp(-0.5 * ((place - (side - 1) / 2) / (side / 8)) ** 2)
            weights[(slice(None),) * axis + (place,)] *= curve
    return np.maximum(weights, 1e-3)


def sliding_logits(
    fed: Array, forward: Forward, patch: Sequence[int], stride: Sequence[int], weights: Array | None = None
) -> Array:
    """The mean logits (K, Z, Y, X) of all windows over each voxel, each by its weight there."""
    each = np.ones(patch) if weights is None else weights
    missing = [max(side - length, 0) for side, length in zip(patch, fed.shape, strict=True)]
    padded = np.pad(fed, [(gap // 2, gap - gap // 2) for gap in missing], mode="edge")
    total: Array = np.zeros(0, np.float32)
    count = np.zeros(padded.shape, np.float32)
    for window in windows(padded.shape, patch, stride):
        logits = forward(np.ascontiguousarray(padded[window]))
        if total.size == 0:
            total = np.zeros((len(logits), *padded.shape), np.float32)
        total[(slice(None), *window)] += logits * each
        count[window] += each
    inside = tuple(slice(gap // 2, gap // 2 + length) for gap, length in zip(missing, fed.shape, strict=True))
    return np.asarray((total / count)[(slice(None), *inside)])


def decided(logits: Array) -> Array:
    """Mean logits to labels."""
    classes = len(logits)
    if classes == 1:
        # The sigmoid is above one half exactly where the logit is above 0.
        return np.asarray(logits[0] > 0, np.uint8)
    return np.asarray(logits.argmax(axis=0), np.uint8 if classes <= 256 else np.uint16)


def margin(logits: Array) -> Array:
    """How far the best class is ahead of the second best."""
    ordered = np.sort(logits, axis=0)
    return np.asarray(ordered[-1] - ordered[-2])


def threshold_forward(threshold: float) -> Forward:
    def forward(patch: Array) -> Array:
        above = (patch > np.float32(threshold)).astype(np.float32)
        return np.stack([1 - above, above])

    return forward


def binary_forward(threshold: float) -> Forward:
    return lambda patch: (patch - np.float32(threshold))[None]


def wide_forward(classes: int) -> Forward:
    numbers = np.arange(classes, dtype=np.float32)[:, None, None, None]
    return lambda patch: np.asarray(2 * numbers * patch[None] - numbers * numbers)


def neighbour_forward(patch: Array) -> Array:
    scores = []
    for axis in range(3):
        last = patch.shape[axis] - 1
        following = patch.take([*range(1, last + 1), last], axis=axis)
        scores.append(np.where(patch > following, BIT_SET, BIT_CLEAR).astype(np.float32))
    z, y, x = scores
    signs = [(1 if k & 4 else -1, 1 if k & 2 else -1, 1 if k & 1 else -1) for k in range(8)]
    return np.stack([a * z + b * y + c * x for a, b, c in signs])


def place_forward(threshold: float, patch: Sequence[int]) -> Forward:
    below, above = place_votes(patch)
    return lambda fed: np.asarray(np.where(fed > np.float32(threshold), above, below))


def onnx_forward(model: Path, dtype: npt.DTypeLike = np.float32, output: int = 0) -> Forward:
    """The network itself, run by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(patch: Array) -> Array:
        answer = np.asarray(session.run(None, {name: patch[None, None].astype(dtype)})[output], np.float32)
        return answer.reshape(answer.shape[1:])

    return forward
