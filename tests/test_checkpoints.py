"""Checkpoints: every real one is read, damaged and other files are refused."""

from __future__ import annotations

import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from segserve.errors import BadInputError
from segserve.models.formats.checkpoint import WRAPPERS, read_checkpoint, read_state_dict
from tests.checkpoint_files import State, assert_same, content_of, refusal, save, some_state, write_zip
from tests.itkit_models import save_training


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
def test_weights_are_found_alone_and_under_the_usual_names(tmp_path: Path, wrapper: str | None, legacy: bool) -> None:
    state = some_state()
    content = state if wrapper is None else {"epoch": 3, "loss": torch.tensor(0.5), wrapper: state}
    found = read_checkpoint(save(tmp_path / "a.pth", content, legacy=legacy))
    assert_same(found.state, state)
    assert found.left_out == ([] if wrapper is None else ["epoch", "loss"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_training_put_before_the_names_is_taken_off(tmp_path: Path, prefix: str) -> None:
    state = some_state()
    content = OrderedDict((prefix + name, value) for name, value in state.items())
    assert_same(read_state_dict(save(tmp_path / "a.ckpt", content)), state)


def test_a_compiled_part_loses_its_mark_and_a_part_called_module_keeps_its_name(tmp_path: Path) -> None:
    content = {"backbone._orig_mod.a": torch.ones(1), "backbone.module.b": torch.ones(1)}
    assert list(read_state_dict(save(tmp_path / "a.pt", content))) == ["backbone.a", "backbone.module.b"]


def test_names_that_become_the_same_are_refused(tmp_path: Path) -> None:
    assert "twice" in refusal(save(tmp_path / "a.pt", {"module.a": torch.ones(1), "a": torch.ones(1)}))


def test_safetensors(tmp_path: Path) -> None:
    save_file(some_state(), tmp_path / "a.safetensors")
    assert_same(read_state_dict(tmp_path / "a.safetensors"), some_state())


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_kind(tmp_path: Path, legacy: bool) -> None:
    shared = torch.arange(24.0).reshape(2, 3, 4)
    state: State = {
        "half": torch.ones(2).half(),
        "bfloat": torch.ones(2).bfloat16(),
        "int": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "number": torch.tensor(7),
        "nan": torch.full((2,), torch.inf),
        "empty": torch.empty(0, 3),
        "whole": shared,
        "turned": shared.permute(2, 0, 1),
        "part": shared[1, 1:],
        "parameter": torch.nn.Parameter(torch.ones(2)).detach(),
    }
    kept = {**state, "parameter": torch.nn.Parameter(torch.ones(2))}
    kept["parameter"].note = "attributes make torch save it in another way"  # type: ignore[attr-defined]
    assert_same(read_state_dict(save(tmp_path / "a.pt", kept, legacy=legacy)), state)


def test_unsigned_tensors_which_torch_saves_in_its_newest_way(tmp_path: Path) -> None:
    state = {"a": torch.tensor([1, 60000], dtype=torch.uint16)}
    assert_same(read_state_dict(save(tmp_path / "a.pt", state)), state)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_dense_tensor_is_left_out_and_said(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "dense": torch.ones(2),
        "sparse": torch.eye(3).to_sparse(),
        "number": 5,
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }
    found = read_checkpoint(save(tmp_path / "a.pt", {"state_dict": state, "epoch": 1}))
    assert list(found.state) == ["dense"]
    assert sorted(found.left_out) == ["epoch", "number", "quantized", "sparse"]


def test_a_training_checkpoint_whose_code_is_gone(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(1, 2, 3)
    save_training(tmp_path / "iter.pth", network)
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "iter.pth", weights_only=False)
    found = read_checkpoint(tmp_path / "iter.pth")
    assert_same({name: found.state[f"backbone.{name}"] for name in ("weight", "bias")}, dict(network.state_dict()))
    assert found.left_out == ["meta", "message_hub", "optimizer", "param_schedulers"]


@pytest.mark.filterwarnings("ignore")
def test_whole_networks_are_refused_with_the_way_to_load_them(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(1, 2, 1).eval()
    torch.jit.save(torch.jit.script(network), tmp_path / "script.pt")
    torch.export.save(torch.export.export(network, (torch.ones(1, 1, 4, 4, 4),)), tmp_path / "exported.pt2")
    assert "backend_type 'torchscript'" in refusal(tmp_path / "script.pt")
    assert "backend_type 'pt2'" in refusal(tmp_path / "exported.pt2")


@pytest.mark.parametrize(
    "content",
    [None, 5, [torch.ones(2)], torch.ones(2), {"epoch": 1}, {"state_dict": {}}, {1: torch.ones(2)}, {"a": {"b": 1}}],
)
def test_files_without_weights_are_refused(tmp_path: Path, content: object) -> None:
    assert "holds no weights" in refusal(save(tmp_path / "a.pth", content))


def test_what_a_file_without_weights_holds_is_said(tmp_path: Path) -> None:
    assert "epoch, optimizer is in it" in refusal(save(tmp_path / "a.pth", {"epoch": 1, "optimizer": {"lr": 0.1}}))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"hello", b"\x80\x02", b"\0" * 100]
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "cannot be read" in refusal(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(some_state(), path)
    else:
        save(path, some_state(), legacy=kind == "legacy")
    whole = path.read_bytes()
    for length in {*range(1, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refusal(path)


def test_archives_that_were_packed_again_are_refused(tmp_path: Path) -> None:
    content, records = content_of(save(tmp_path / "a.pth", {"a": torch.zeros(10**6)}))
    path = write_zip(tmp_path / "packed.pth", content, records, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    assert "compressed" in refusal(path)


def test_archives_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"a": torch.zeros(1000)})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"/data/0") - content[: content.rindex(b"/data/0")][::-1].index(b"\x02\x01KP") - 4
    struct.pack_into("<II", content, place + 20, 2**30, 2**30)
    path.write_bytes(bytes(content))
    refusal(path)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    assert "larger than the file" in refusal(save(tmp_path / "a.pth", {"a": torch.zeros(1).expand(10**6, 10**6)}))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


@given(others=st.dictionaries(st.text(max_size=5).filter(lambda key: key not in WRAPPERS), PLAIN, max_size=4))
@settings(max_examples=60, deadline=None)
def test_weights_are_read_whatever_lies_beside_them(
    tmp_path_factory: pytest.TempPathFactory, others: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "beside.pth"
    found = read_checkpoint(save(path, {**others, "state_dict": some_state()}))
    assert_same(found.state, some_state())
    assert found.left_out == list(others)


@given(place=st.integers(0, 4000), value=st.binary(min_size=1, max_size=8), legacy=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: bytes, legacy: bool
) -> None:
    path = save(tmp_path_factory.getbasetemp() / "damaged.pth", some_state(), legacy=legacy)
    content = path.read_bytes()
    place %= len(content)
    path.write_bytes(content[:place] + value + content[place + len(value) :])
    with suppress(BadInputError):
        assert read_state_dict(path)


def test_reading_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", some_state())
    read_state_dict(tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]
