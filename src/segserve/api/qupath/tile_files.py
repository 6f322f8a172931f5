"""The files of an inference request: tiles it brings or names, and maps that a tile's id may name and nothing else."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from segserve.api.qupath.tile_image import SHOWN
from segserve.errors import BadInputError, TooLargeError, is_disk_full

SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._ -]{0,199}")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d) *(?:\..*)?", re.IGNORECASE)
MOST_TILES = 10_000


@dataclass(frozen=True)
class MapFiles:
    """Where the maps of a request go.

    Attributes:
        shown: by tile id, in the client's own spelling of the folder.
        outputs: by the tile's place in the request; of tiles with the same id only the last has one.
    """

    shown: dict[str, str]
    outputs: dict[str, Path]


def check_count(ids: Sequence[str]) -> None:
    """Bound what goes to the worker in one message.

    Raises:
        TooLargeError: there are too many tiles.
    """
    if len(ids) > MOST_TILES:
        raise TooLargeError(f"The request has {len(ids)} tiles, and {MOST_TILES} are the most: send fewer at a time.")


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that could name anything but a file in the folder for the maps, on any operating system.

    Raises:
        BadInputError: with the id and the rule.
        TooLargeError: there are too many.
    """
    check_count(ids)
    for identity in ids:
        if not SAFE_ID.fullmatch(identity) or RESERVED.fullmatch(identity):
            raise BadInputError(
                f"The tile id {identity[:SHOWN]!r} cannot name a file everywhere: use at most 200 of the letters A-Z "
                f"and a-z, digits, '_' and '-', from the second on also '.' and spaces; no name that Windows reserves."
            )


def is_data_url(data: str) -> bool:
    """Whether a tile's data holds the image itself; else it is a path."""
    return data.startswith("data:")


def tile_inputs(tiles: Iterable[tuple[str, str]], images: Mapping[int, Path]) -> dict[str, Path]:
    """The images of a request as files, `tile-0` the first.

    Args:
        tiles: id, and a data URL or a path.
        images: the files that hold data URLs' images, by the place of their tile.

    Raises:
        BadInputError: the data of a tile is neither, or is no base64.
    """
    return {
        f"tile-{index}": images.get(index) or _named_file(identity, data)
        for index, (identity, data) in enumerate(tiles)
    }


def map_files(folder: str, ids: Sequence[str]) -> MapFiles:
    """Make the folder for the maps of tiles with safe ids.

    Raises:
        BadInputError: maps cannot be put there, and why.
        OSError: the disk is full.
    """
    if PureWindowsPath(folder).is_absolute() and not Path(folder).is_absolute():
        raise BadInputError(
            f"output_dir {folder} is a folder of another computer: name one that this server can write to, "
            f'or send "output": "inline" to get the maps in the answer.'
        )
    _make_writable(folder)
    outputs = {identity: (str(index), Path(folder, f"{identity}.bin").absolute()) for index, identity in enumerate(ids)}
    for _, path in outputs.values():
        if path.is_dir() and not path.is_symlink():
            raise BadInputError(f"There is a folder where a map would go: {path.name} in {folder}.")
    # Not by way of a Path, which would spell the folder in its own way.
    shown = {identity: os.path.join(folder, path.name) for identity, (_, path) in outputs.items()}  # noqa: PTH118
    return MapFiles(shown, dict(outputs.values()))


def _named_file(identity: str, data: str) -> Path:
    if is_data_url(data):
        header = data.partition(",")[0][:SHOWN]
        raise BadInputError(f"The data URL of tile {identity} has no base64 after its first comma: {header}")
    path = Path(data)
    try:
        if path.is_file():
            return path.absolute()
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        pass
    raise BadInputError(
        f"The data of tile {identity} is neither a data URL (data:...) nor an existing file: {data[:SHOWN]}"
    )


def _make_writable(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # the only question to which every system answers truly
            pass
    except ValueError:
        raise BadInputError("output_dir has a character in it that no path may have.") from None
    except OSError as error:
        if is_disk_full(error):
            raise
        raise BadInputError(f"output_dir {folder} cannot be written to: {error.strerror}.") from None
