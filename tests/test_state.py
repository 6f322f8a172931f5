"""The state directory's small files: whole or not there, and no leftovers of servers that were killed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from segserve.state import StateDir, write_whole


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.mark.parametrize("left", ["", "\n"])
def test_an_empty_key_is_made_anew_and_then_kept(state: StateDir, left: str) -> None:
    """A power cut can leave it empty, and then nobody could get in."""
    state.root.mkdir()
    state.key_file.write_text(left)
    key = state.api_key()
    assert len(key) >= 32
    assert state.api_key() == key == state.key_file.read_text()


def test_what_killed_servers_were_writing_is_removed(state: StateDir) -> None:
    state.root.mkdir()
    for name in (".server.json.4711", ".api-key.4711"):
        (state.root / name).write_text("a part")
    state.key_file.write_text("a key")
    state.acquire()
    try:
        names = {path.name for path in state.root.iterdir() if path.is_file()}
    finally:
        state.release()
    assert names - {"lock"} == {"api-key"}


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_file_that_finds_no_room_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Its content is on the disk before the name is: otherwise a power cut could leave it empty."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "card.json"
    write_whole(path, "old")
    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["card.json"]
    assert path.read_text() == "old"
