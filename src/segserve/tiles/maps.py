"""What a network gives for a tile to probabilities, class numbers and files."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.errors import BadInputError, is_disk_full
from segserve.tiles.prepare import Prepared

MOST_CLASSES = 2**8


def probabilities(logits: NDArray[np.float32], prepared: Prepared, name: str) -> NDArray[np.float32]:
    """Cut the padding off and take the softmax over classes.

    Args:
        logits: float32 (K, H', W') for `prepared.values`. One class is a logit of the second of two: its sigmoid is
            the softmax of 0 and it.
        prepared: the tile that the network was given.
        name: the tile's id, for the error.

    Returns:
        float32 (K, H, W), contiguous, summing to 1 in each pixel; K is 2 for a network of one class.

    Raises:
        BadInputError: the network's output is not finite.
    """
    top, left = prepared.padding, prepared.padding
    scores = logits[:, top : top + prepared.height, left : left + prepared.width]
    if not np.isfinite(scores).all():
        raise BadInputError(
            f"The model gives values that are not finite (NaN or infinity) for tile {name}: train it again or use "
            "another one."
        )
    if len(scores) == 1:
        scores = np.concatenate([np.zeros_like(scores), scores])
    with np.errstate(over="ignore"):  # a difference beyond float32: its exponential is 0 either way
        result: NDArray[np.float32] = np.subtract(scores, scores.max(axis=0), order="C")
    np.exp(result, out=result)
    result /= result.sum(axis=0)
    return result


def classes(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The likeliest class of each pixel, the first where several are equal.

    Many times faster than `numpy.argmax` over the first axis.

    Args:
        probabilities: float32 (K, H, W), finite.

    Returns:
        uint8 (1, H, W).

    Raises:
        BadInputError: there are more classes than a byte can number.
    """
    last = len(probabilities) - 1
    if last >= MOST_CLASSES:
        raise BadInputError(
            f"The model has {last + 1} classes and a class map holds {MOST_CLASSES} at most: ask for float32 maps."
        )
    best = probabilities.max(axis=0)
    behind = np.zeros(best.shape, np.uint8)  # how many classes come after the first that is best
    for label, plane in enumerate(probabilities):
        np.maximum(behind, (plane == best).view(np.uint8) * np.uint8(last - label), out=behind)
    return np.subtract(np.uint8(last), behind)[None]


def means(probabilities: NDArray[np.float32]) -> list[float]:
    """The spatial mean of each class of (K, H, W) probabilities."""
    return [float(plane.mean(dtype=np.float64)) for plane in probabilities]


def deliver_map(path: Path, values: NDArray[Any], name: str) -> None:
    """Write the map of tile `name` where its client wants it; see `write_map`.

    Raises:
        BadInputError: it cannot be written there, and why.
        OSError: the disk is full.
    """
    try:
        write_map(path, values)
    except OSError as error:
        if is_disk_full(error):
            raise
        _deliver_again(path, values, name)


def _deliver_again(path: Path, values: NDArray[Any], name: str) -> None:
    """The folder was there when the request came, but viewers clear theirs away when they like."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_map(path, values)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise BadInputError(
            f"The map of tile {name} cannot be written to {path.name} in output_dir: {error.strerror}. Close whatever "
            "has that file open, or name another folder."
        ) from None


def write_map(path: Path, values: NDArray[Any]) -> None:
    """Write values little-endian in C order; the file appears whole or not at all, in place of any before it.

    Raises:
        OSError: it cannot be written, by the operating system's own number: `numpy.tofile` gives none.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
