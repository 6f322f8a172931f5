"""TorchScript files, as torch.jit.save writes them: a network's code and weights in one archive."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from segserve.engines.base import TorchNetwork, without_paths
from segserve.errors import BadInputError
from segserve.models.formats.one_output import OneOutput
from segserve.models.formats.opened import Opened
from segserve.models.metadata import KNOWN, read_metadata
from segserve.models.trust import trusted_file


def open_torchscript(path: Path, trusted: Sequence[Path]) -> Opened:
    """Read a TorchScript network. Its metadata are the archive's extra files of the names in `KNOWN`.

    Args:
        path: the archive, of any suffix.
        trusted: folders whose files may be run whoever owns them.

    Raises:
        NotTrustedError: the file may not be run.
        BadInputError: it is no TorchScript network that can be read.
    """
    real = trusted_file(path, trusted)
    extra = dict.fromkeys(KNOWN, b"")
    try:
        with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated: not news to whoever has such a file
            module = torch.jit.load(str(real), map_location="cpu", _extra_files=extra)
    except Exception as error:  # a damaged file raises any of them
        raise BadInputError(
            f"{path.name} is not a TorchScript file that can be read ({without_paths(str(error).partition('.')[0])}): "
            f"save the network with torch.jit.save."
        ) from error
    texts = {key: content.decode("utf-8", "replace") for key, content in extra.items() if content}
    return Opened(
        network=TorchNetwork(OneOutput(module.float().eval())),
        shape=(None,) * 5,
        described="not stated in the file",
        metadata=read_metadata(texts),
        files=[real],
    )
