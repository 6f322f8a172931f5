"""The made-up data set, and the two ways to have it written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tifffile import imread
from typer.testing import CliRunner

from segserve.cli import app
from tests.test_commands import run

SCRIPT = Path(__file__).parent / "generate_test_data.py"
TRAIN = [f"patch_000{number}" for number in range(4)]
VALIDATION = ["patch_0004", "patch_0005"]


def demo_data(folder: Path) -> str:
    ended = CliRunner().invoke(app, ["demo-data", str(folder)])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def assert_refused(folder: Path, *words: str) -> None:
    ended = CliRunner().invoke(app, ["demo-data", str(folder)])
    assert ended.exit_code == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert all(word in ended.stderr for word in words), ended.stderr


def assert_is_the_set(folder: Path) -> None:
    """Check the layout and every value that is known without running the code."""
    stems = {"train": TRAIN, "validation": VALIDATION}
    expected = {"config.json"}
    for part, names in stems.items():
        expected |= {f"{part}/images/{name}.tiff" for name in names} | {f"{part}/masks/{name}.png" for name in names}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["classes"] == ["Background", "Foreground"]
    assert config["class_weights"] == [1, 2]
    assert config["unlabeled_index"] == 255
    for part, names in stems.items():
        for name in names:
            image = imread(folder / part / "images" / f"{name}.tiff")
            mask = np.asarray(Image.open(folder / part / "masks" / f"{name}.png"))
            assert_is_a_patch(image, mask)


def assert_is_a_patch(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    assert image.shape == (256, 256, 3)
    assert mask.shape == (256, 256)
    assert image.dtype == mask.dtype == np.uint8
    assert (mask[:50] == 0).all()
    below = mask[50:]
    assert set(np.unique(below)) == {1, 255}
    # The smallest disc has a radius of 15 pixels; the largest six of 34 cannot cover more.
    assert np.pi * 14**2 < (below == 1).sum() < 6 * np.pi * 35**2
    # Discs: at most 175 in any channel; noise: at least 180.
    assert image[mask == 1].max() < 180 <= image[mask != 1].min()


def test_the_command_writes_the_set(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "set"
    said = demo_data(folder)
    assert_is_the_set(folder)
    assert "4 patches to train on and 2 to validate on, 256 x 256 RGB" in said
    assert f'"data_path": "{folder.as_posix()}"' in said


def test_the_command_writes_the_same_set_again_over_an_older_one(tmp_path: Path) -> None:
    demo_data(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    next(tmp_path.rglob("*.tiff")).unlink()
    demo_data(tmp_path)
    assert_is_the_set(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.png")}


@pytest.mark.parametrize("name", ["notes.txt", "train/images/mine.tiff"])
def test_the_command_leaves_a_folder_with_other_files_alone(tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text("mine", encoding="utf-8")
    assert_refused(tmp_path, name, "other files")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
    assert other.read_text(encoding="utf-8") == "mine"


def test_the_command_takes_no_file_for_a_folder(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    assert_refused(taken, "taken", "folder")
    assert taken.read_text(encoding="utf-8") == "mine"


def test_the_script_writes_the_set_beside_itself(tmp_path: Path) -> None:
    # A copy, so that the test leaves no files in the repository.
    script = shutil.copy(SCRIPT, tmp_path)
    for _ in range(2):
        ended = run(sys.executable, str(script))
        assert ended.returncode == 0, ended.stderr
        assert_is_the_set(tmp_path / "test_data")
    listed = [line.strip() for line in ended.stdout.splitlines()]
    assert f"Written to {tmp_path / 'test_data'}:" in listed
    assert {"config.json", "train/images/patch_0000.tiff", "validation/masks/patch_0005.png"} <= set(listed)
