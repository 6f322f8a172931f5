"""MMEngine configs of one convolution, opened in the tests' own process."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from segserve.errors import BadInputError, SegserveError
from segserve.models.formats.mmengine import open_mmengine
from segserve.models.formats.opened import Opened

PLAIN = """
from torch.nn import Conv3d
model = dict(backbone=dict(type=Conv3d, in_channels=1, out_channels=2, kernel_size=3, padding=1))
"""


@pytest.fixture(autouse=True, scope="module")
def open_files() -> Iterator[None]:
    """MMEngine leaves the copy of a config that fails open: the warning of that must come while it is ignored."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def own_imports() -> Iterator[None]:
    """A model's process runs one config; this one runs many, whose folders must not remain in the way."""
    paths, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield
    sys.path[:], sys.meta_path[:] = paths, finders
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(os.environ.get("TMPDIR", "/tmp")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is trusted; /tmp above it is sticky."""
    path = tmp_path.resolve() / "models"
    path.mkdir(mode=0o755)
    return path


def conv(folder: Path, text: str = PLAIN, weights: dict[str, torch.Tensor] | None = None) -> tuple[Path, Path]:
    """A config, and a checkpoint with the weights of one convolution unless other weights are given."""
    config, checkpoint = folder / "config.py", folder / "weights.pth"
    config.write_text(text)
    torch.save(weights or torch.nn.Conv3d(1, 2, 3).state_dict(), checkpoint)
    return config, checkpoint


def opened(config: Path, checkpoint: Path, *, strict: bool = True, trusted: tuple[Path, ...] = ()) -> Opened:
    return open_mmengine(config, checkpoint, strict=strict, trusted=trusted)


def refusal(
    config: Path,
    checkpoint: Path,
    error: type[SegserveError] = BadInputError,
    *,
    trusted: tuple[Path, ...] = (),
) -> str:
    with pytest.raises(error) as caught:
        opened(config, checkpoint, trusted=trusted)
    message = caught.value.message
    assert message.endswith(".")
    assert "\n" not in message
    assert "site-packages" not in message
    return message
