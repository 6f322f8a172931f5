"""`segserve convert`: any checkpoint to safetensors, nothing of it run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from segserve.cli import app
from segserve.models.formats.checkpoint import write_safetensors
from tests.itkit_models import save_training


def convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def refusal(*arguments: str | Path) -> str:
    ended = convert(*arguments)
    assert ended.exit_code == 1
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("segserve: ")
    assert not ended.stdout
    return lines[0]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "iter.pth"
    save_training(path, torch.nn.Conv3d(1, 2, 3))
    return path


def test_a_training_becomes_weights_beside_it_and_the_rest_is_named(checkpoint: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "segserve", "convert", checkpoint],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    target = checkpoint.with_suffix(".safetensors")
    assert said.stdout == f"{target}: 4 tensors; left out: meta, message_hub, optimizer, param_schedulers\n"
    assert not said.stderr
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    saved = load_file(target)
    trained = torch.nn.Conv3d(1, 2, 3)
    assert set(saved) == {
        *(f"backbone.{name}" for name in trained.state_dict()),
        "criterion.weight",
        "data_preprocessor.mean",
    }
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["iter.pth", "iter.safetensors"]


def test_shared_turned_and_partial_tensors_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    state = {"a": whole, "b": whole, "turned": whole.permute(2, 0, 1), "part": whole[1, 1:], "empty": torch.ones(0, 2)}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.ckpt")
    ended = convert(tmp_path / "a.ckpt", "-o", tmp_path / "b.safetensors")
    assert ended.stdout == f"{tmp_path / 'b.safetensors'}: 5 tensors\n"
    saved = load_file(tmp_path / "b.safetensors")
    assert set(saved) == set(state)
    for name, value in state.items():
        assert torch.equal(saved[name], value)


def test_an_output_is_replaced_only_if_asked(checkpoint: Path) -> None:
    target = checkpoint.with_suffix(".safetensors")
    target.write_bytes(b"dear to somebody")
    assert "--force" in refusal(checkpoint)
    assert target.read_bytes() == b"dear to somebody"
    assert convert(checkpoint, "--force").exit_code == 0
    assert len(load_file(target)) == 4


def test_a_failed_conversion_leaves_the_output_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    (tmp_path / "a.safetensors").write_bytes(b"dear to somebody")
    assert "cannot be read" in refusal(tmp_path / "a.pth", "--force")
    assert (tmp_path / "a.safetensors").read_bytes() == b"dear to somebody"


def test_the_checkpoint_itself_is_never_replaced(checkpoint: Path) -> None:
    convert(checkpoint)
    weights = checkpoint.with_suffix(".safetensors")
    before = weights.read_bytes()
    assert "the checkpoint itself" in refusal(weights, "--force")
    assert weights.read_bytes() == before


def test_what_cannot_be_converted_is_one_sentence(checkpoint: Path) -> None:
    folder = checkpoint.parent
    assert "is not there" in refusal(folder / "no.pth")
    assert "must end in .safetensors" in refusal(checkpoint, "-o", folder / "a.pth")
    assert "is not there" in refusal(checkpoint, "-o", folder / "no" / "a.safetensors")
    torch.save({"epoch": 1}, folder / "b.pth")
    assert "holds no weights" in refusal(folder / "b.pth")


def test_others_may_read_the_weights_as_they_may_read_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_safetensors({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode
