"""Networks for volumes, whatever kind of file they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segserve.errors import BadInputError
from segserve.models.backends import MMENGINE, ONNX, PT2, TORCHSCRIPT
from segserve.models.formats.mmengine_files import config_files
from segserve.models.formats.onnx import model_files, open_onnx
from segserve.models.formats.opened import Opened
from segserve.models.request import LoadRequest


def open_volume_network(request: LoadRequest, trusted: Sequence[Path]) -> Opened:
    """Read a network; where its file holds code, that runs in this process.

    Args:
        request: which one, and of which kind; one that `check_request` has let pass.
        trusted: folders whose files may be run whoever owns them.

    Raises:
        NotTrustedError: it holds code that may not be run.
        BadInputError: it cannot be read.
    """
    path, kind = Path(request.model_path), request.backend_type.lower()
    if kind == MMENGINE:
        from segserve.models.formats.mmengine import open_mmengine

        return open_mmengine(_config(request), path, strict=request.strict is not False, trusted=trusted)
    if kind == TORCHSCRIPT:
        from segserve.models.formats.torchscript import open_torchscript

        return open_torchscript(path, trusted)
    if kind == PT2:
        from segserve.models.formats.exported import open_exported

        return open_exported(path, trusted)
    file = open_onnx(path)
    return Opened(file.network(), file.input.shape, str(file.input), file.metadata, model_files(path))


def network_files(request: LoadRequest) -> list[Path]:
    """The files that a network is read from, found without running any of them.

    Raises:
        BadInputError: as `config_files`.
        OSError: one of them cannot be read.
    """
    path, kind = Path(request.model_path), request.backend_type.lower()
    if kind == MMENGINE:
        return [*config_files(_config(request)), path]
    return model_files(path) if kind == ONNX else [path]


def _config(request: LoadRequest) -> Path:
    if request.config_path is None:
        raise BadInputError("An MMEngine model needs config_path, its config's file.")
    return Path(request.config_path)
