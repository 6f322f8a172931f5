"""Finding the network that a tile request means, without opening it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from segserve.errors import MissingError, MissingExtraError
from segserve.models.classifiers import SAFE_ID, ClassifierStore
from segserve.models.names import METADATA_FILE, NETWORK_FILE, WEIGHTS_FILE


@dataclass(frozen=True)
class TileFile:
    """A network for tiles on disk.

    Attributes:
        path: the .onnx file.
        fingerprint: of it and of what belongs to it; another one means that it was replaced.
    """

    path: Path
    fingerprint: str


def find_tile_file(model_path: str, store: ClassifierStore) -> TileFile:
    """The network that a client means.

    Args:
        model_path: a classifier's folder, an .onnx file, or the id of a known classifier.
        store: the known ones.

    Raises:
        MissingError: it is not there.
        MissingExtraError: there is a classifier, but only as PyTorch weights.
    """
    try:
        path = _located(model_path, store)
        if path.is_dir():
            path = _in_folder(path, model_path)
        belongings = [path.parent / METADATA_FILE, *_beside(path)]
        states = [(file.name, file.stat()) for file in (path, *belongings) if file.is_file()]
    except PermissionError:
        raise MissingError(f"Model not found: {model_path}. The server may not look into its folder: let it.") from None
    except OSError:
        raise _missing(model_path) from None
    told = repr([(name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states])
    return TileFile(path, hashlib.sha256(told.encode()).hexdigest()[:32])


def _located(model_path: str, store: ClassifierStore) -> Path:
    try:
        if os.path.exists(model_path):  # noqa: PTH110  # Path.exists raises on names that are too long
            return Path(model_path)
    except ValueError:  # a NUL in it
        raise _missing(model_path) from None
    if not SAFE_ID.fullmatch(model_path):
        raise _missing(model_path)
    if (store.own / model_path).is_dir():
        return store.own / model_path
    try:
        return store.get(model_path).path
    except MissingError:
        raise _missing(model_path) from None


def _in_folder(folder: Path, model_path: str) -> Path:
    networks = [folder / NETWORK_FILE] if (folder / NETWORK_FILE).is_file() else sorted(folder.glob("*.onnx"))
    if len(networks) == 1:
        return networks[0]
    if (folder / WEIGHTS_FILE).is_file():
        raise MissingExtraError(
            f"{model_path} holds only PyTorch weights ({WEIGHTS_FILE}), which this version does not run: "
            f"put the exported {NETWORK_FILE} beside them, or train the classifier here."
        )
    raise _missing(model_path)


def _beside(network: Path) -> list[Path]:
    """The files that may hold the network's weights: those that begin with its name, as exporters call them."""
    return sorted(file for file in network.parent.glob(f"{escape(network.name)}?*") if file.is_file())


def _missing(model_path: str) -> MissingError:
    return MissingError(f"Model not found: {model_path}")
