"""MMEngine configs with a checkpoint. Importing this needs none of their libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segserve.extras import need_mmengine
from segserve.models.formats.opened import Opened


def open_mmengine(config: Path, checkpoint: Path, *, strict: bool, trusted: Sequence[Path]) -> Opened:
    """Build a config's backbone and give it a checkpoint's weights. The config's code is run in this process.

    Args:
        config: text or lazy style.
        checkpoint: as `read_state_dict` reads it.
        strict: refuse weights that are not exactly the backbone's; else what does not fit becomes warnings.
        trusted: folders whose files may be run whoever owns them.

    Raises:
        MissingExtraError: the libraries are not installed.
        NotTrustedError: the config, or a file that it brings, may not be run.
        BadInputError: the config fails or holds no network, or the checkpoint cannot be read or does not fit.
    """
    need_mmengine("An MMEngine config")
    from segserve.models.formats.mmengine_model import open_model

    return open_model(config, checkpoint, strict=strict, trusted=trusted)
