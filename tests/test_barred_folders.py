"""Folders that the server may not enter are told, and are no failure of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from segserve.errors import BadInputError, MissingError
from segserve.models.classifiers import ClassifierStore
from segserve.models.tile_files import find_tile_file
from segserve.training.data.check import open_folder
from segserve.training.data.request import DataRequest


@pytest.fixture
def barred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is there and may not be entered, whoever runs the test."""
    folder = tmp_path / "private"
    folder.mkdir()

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    return folder


def test_a_classifier_in_it_is_not_found(barred: Path, tmp_path: Path) -> None:
    store = ClassifierStore(tmp_path / "own", tmp_path / "none")
    with pytest.raises(MissingError, match="may not look into"):
        find_tile_file(str(barred), store)


def test_training_data_in_it_are_refused(barred: Path) -> None:
    with pytest.raises(BadInputError, match="cannot look into"):
        open_folder(DataRequest(str(barred), ["A", "B"], 3))
