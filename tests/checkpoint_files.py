"""Checkpoints for tests: made, taken apart and compared."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from segserve.errors import BadInputError
from segserve.models.formats.checkpoint import read_checkpoint

State = dict[str, torch.Tensor]


def some_state() -> State:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    return dict(network.state_dict())


def assert_same(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
        assert not found[name].requires_grad


def save(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        read_checkpoint(path)
    assert caught.value.status == 400
    assert str(path.parent) not in caught.value.message
    return caught.value.message


def content_of(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The pickle in a checkpoint, and the other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    return records.pop("data.pkl"), records


def write_zip(path: Path, content: bytes, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in {"data.pkl": content, **records}.items():
            archive.writestr(f"archive/{name}", value)
    return path
