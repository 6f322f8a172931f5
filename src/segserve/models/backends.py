"""The kinds of networks for volumes: how files of them are told apart, and what each kind needs."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path

from segserve.errors import BadInputError
from segserve.extras import need_mmengine, need_torch_networks
from segserve.models.names import SAFETENSORS
from segserve.models.request import LoadRequest

ONNX, MMENGINE, TORCHSCRIPT, PT2 = BACKENDS = ("onnx", "mmengine", "torchscript", "pt2")
CHECKPOINTS = (".pth", ".pt", ".ckpt", SAFETENSORS)
BY_SUFFIX = {".onnx": ONNX, ".ts": TORCHSCRIPT, ".pt2": PT2}
TORCHSCRIPT_RECORD, TORCHSCRIPT_FOLDER = "constants.pkl", "code/"
REMEMBERED = 1000


def backend_of(path: Path) -> str | None:
    """The kind of a file that holds a whole network; None if it holds none, such as a checkpoint.

    Raises:
        OSError: it cannot be looked at.
    """
    suffix = path.suffix.lower()
    if suffix == ".pt":
        state = path.stat()
        return TORCHSCRIPT if _is_torchscript(path, state.st_size, state.st_mtime_ns) else None
    return BY_SUFFIX.get(suffix)


def check_request(request: LoadRequest) -> None:
    """Check what of a load request needs no look into the files.

    Raises:
        BadInputError: the kind is unknown, or a file is not there or may not be read.
        MissingExtraError: the kind needs a part of Segserve that is not installed.
    """
    backend = request.backend_type.lower()
    if not is_file(request.model_path):
        raise BadInputError(f"Model file not found: {request.told(request.model_path)}.")
    _check_readable(request.model_path, request)
    if backend not in BACKENDS:
        raise BadInputError(f"Unknown backend type: {request.backend_type}. Known: {', '.join(BACKENDS)}.")
    if backend == MMENGINE:
        if not request.config_path or not is_file(request.config_path):
            raise BadInputError(f"Config file required for MMEngine: {request.told(str(request.config_path))}")
        _check_readable(request.config_path, request)
        need_mmengine("An MMEngine model")
    elif backend != ONNX:
        need_torch_networks(f"A model of the kind {backend}")


@lru_cache(REMEMBERED)
def _is_torchscript(path: Path, size: int, changed: int) -> bool:
    """Whether a file is an archive as torch.jit.save makes it; its size and time are there to be remembered by."""
    del size, changed
    inside = archive_records(path)
    return TORCHSCRIPT_RECORD in inside and any(name.startswith(TORCHSCRIPT_FOLDER) for name in inside)


def archive_records(path: Path) -> list[str]:
    """What lies in an archive as torch makes them, below its one folder; nothing if it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def _check_readable(path: str, request: LoadRequest) -> None:
    if not os.access(path, os.R_OK):
        raise BadInputError(
            f"The server's user may not read {request.told(path)}: change its permissions, or its owner."
        )


def is_file(path: str | Path) -> bool:
    """Whether a path that a client sent, or a file of its names, leads to a file; whatever that path is."""
    try:
        return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises on names that are too long, and where it may not look
    except ValueError:  # a NUL in it
        return False


def is_barred(path: str) -> bool:
    """Whether a path that a client sent leads through a folder that the server may not enter."""
    try:
        os.stat(path)  # noqa: PTH116
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False
