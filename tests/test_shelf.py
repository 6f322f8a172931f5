"""What is taken for a network in a model folder, and what its load request then is."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve.models.backends import is_barred
from segserve.models.request import LoadRequest
from segserve.models.shelf import Offer, Shelf, look_at

Tree = dict[str, Any]


def plant(folder: Path, tree: Tree) -> Path:
    """Write files: a mapping is a folder, or the JSON of a .json file; `torchscript` is such an archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = folder / name
        if isinstance(content, dict) and path.suffix != ".json":
            plant(path, content)
        elif content == "torchscript":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("net/constants.pkl", b"")
                archive.writestr("net/code/__torch__.py", b"")
        else:
            path.write_text(json.dumps(content) if isinstance(content, dict) else content)
    return folder


def offers_of(folder: Path) -> dict[str, Offer]:
    found, notes = look_at([folder])
    assert not notes
    return {offer.name: offer for _, offer in found}


def request_of(folder: Path, name: str) -> LoadRequest:
    return offers_of(folder)[name].request()


def test_what_is_offered_and_what_is_passed_over(tmp_path: Path) -> None:
    tree: Tree = {
        "liver.onnx": "x",
        "liver.onnx.data": "x",
        "a.b.ts": "x",
        "exported.pt2": "x",
        "script.pt": "torchscript",
        ".hidden.onnx": "x",
        "copied.onnx.tmp": "x",
        "notes.txt": "x",
        "alone.json": {"model_path": "liver.onnx"},
        "one network": {"net.onnx": "x", "convert.py": "x", "deeper": {"net.onnx": "x"}},
        "pair": {"config.py": "model = 1", "epoch_3.pth": "x", "20240101.log": "x"},
        "with modules": {"__init__.py": "", "config.py": "from net import N", "net.py": "", "w.safetensors": "x"},
        "jit": {"config.py": "model = 1", "net.pt": "torchscript"},
        "classifier": {"metadata.json": {"id": "c"}, "model.onnx": "x"},
        "code": {"a.py": "", "b.py": ""},
        "empty": {},
        ".git": {"net.onnx": "x"},
        "half.tmp": {"net.onnx": "x"},
    }
    found = {name: offer.body["backend_type"] for name, offer in offers_of(plant(tmp_path, tree)).items()}
    assert found == {
        "liver": "onnx",
        "a.b": "torchscript",
        "exported": "pt2",
        "script": "torchscript",
        "one network": "onnx",
        "pair": "mmengine",
        "with modules": "mmengine",
        "jit": "torchscript",
    }


def test_a_pairs_request_names_both_files(tmp_path: Path) -> None:
    plant(tmp_path, {"seg": {"config.py": "model = 1", "w.pth": "x"}})
    request = request_of(tmp_path, "seg")
    assert (request.config_path, request.model_path) == (
        str(tmp_path / "seg" / "config.py"),
        str(tmp_path / "seg" / "w.pth"),
    )
    offer = offers_of(tmp_path)["seg"]
    assert (offer.shown_path, offer.shown_config) == (str(Path("seg/w.pth")), str(Path("seg/config.py")))


def test_the_request_beside_a_file_is_its_own(tmp_path: Path) -> None:
    card = {"name": "Liver 2", "window_level": 40, "window_width": 400, "inference_config": {"patch_size": 8}}
    plant(tmp_path, {"liver.onnx": "x", "liver.json": card})
    request = request_of(tmp_path, "Liver 2")
    assert (request.window_level, request.config.patch_size, request.backend_type) == (40, (8, 8, 8), "onnx")
    asked = LoadRequest(
        name="mine",
        backend_type="mmengine",
        model_path="Liver 2",
        window_level=50,
        inference_config={"fp16": True, "patch_size": None},
    )
    merged = offers_of(tmp_path)["Liver 2"].request(asked)
    assert (merged.name, merged.backend_type, merged.model_path) == ("mine", "onnx", str(tmp_path / "liver.onnx"))
    assert (merged.window_level, merged.window_width) == (50, 400)
    assert merged.inference_config == {"patch_size": 8, "fp16": True}


def test_converted_weights_take_the_place_of_the_checkpoint(tmp_path: Path) -> None:
    plant(tmp_path, {"a": {"config.py": "model = 1", "best.pth": "x", "best.safetensors": "x"}})
    assert Path(request_of(tmp_path, "a").model_path).name == "best.safetensors"
    plant(tmp_path, {"a": {"last.pth": "x"}})
    assert "2 checkpoints (best.safetensors, last.pth)" in str(offers_of(tmp_path)["a"].failure)


def test_a_checkpoint_in_the_model_folder_itself_is_told_of(tmp_path: Path) -> None:
    found, notes = look_at([plant(tmp_path, {"config.py": "model = 1", "best.pth": "x", "weights.pt": "x"})])
    assert not found
    for name, note in zip(("best.pth", "weights.pt"), notes, strict=True):
        for word in (name, "configuration", "folder of their own"):
            assert word in note


def test_a_file_that_may_not_be_read_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {"liver.onnx": "x"})
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "may not read" in str(offers_of(tmp_path)["liver"].failure)


def test_a_path_through_a_folder_that_may_not_be_entered_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    assert not is_barred("/nowhere/net.onnx")
    assert not is_barred("net\0.onnx")
    monkeypatch.setattr(os, "stat", refuse)
    assert is_barred("/private/net.onnx")


def test_what_is_in_doubt_is_counted_and_named(tmp_path: Path) -> None:
    plant(tmp_path, {"runs": {"a.py": "model = 1", **{f"{number}.pth": "x" for number in range(7)}}})
    sentence = str(offers_of(tmp_path)["runs"].failure)
    assert "1 configuration (a.py), 7 checkpoints (0.pth, 1.pth, 2.pth, 3.pth, 4.pth and 2 more)" in sentence


def test_a_folder_of_networks_in_doubt_is_not_taken_for_another_kind(tmp_path: Path) -> None:
    plant(tmp_path, {"both": {"a.onnx": "x", "b.onnx": "x"}, "pairs": {"a.py": "", "a.pth": "x", "b.pth": "x"}})
    offers = offers_of(tmp_path)
    assert {name: offer.body["backend_type"] for name, offer in offers.items()} == {"both": "onnx", "pairs": "mmengine"}
    assert all(offer.failure for offer in offers.values())


def test_a_folders_request_settles_what_is_in_doubt(tmp_path: Path) -> None:
    files = {"a.py": "model = 1", "b.py": "model = 2", "best.pth": "x", "last.pth": "x"}
    plant(tmp_path, {"runs": files, "elsewhere": {"w.pth": "x"}})
    sentence = str(offers_of(tmp_path)["runs"].failure)
    for word in ("2 configurations (a.py, b.py)", "2 checkpoints (best.pth, last.pth)", "model.json"):
        assert word in sentence
    plant(tmp_path / "runs", {"model.json": {"model_path": "best.pth", "config_path": "b.py", "strict": False}})
    request = request_of(tmp_path, "runs")
    assert (Path(request.model_path).name, request.strict) == ("best.pth", False)
    assert request.config_path == str(tmp_path / "runs" / "b.py")
    plant(tmp_path / "runs", {"model.json": {"model_path": "../elsewhere/w.pth", "config_path": "a.py"}})
    assert request_of(tmp_path, "runs").model_path == str(tmp_path / "elsewhere" / "w.pth")


@pytest.mark.parametrize("key", ["model_path", "config_path"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_of_a_path_out_of_the_folder_only_what_the_card_says_is_shown(
    tmp_path: Path, key: str, *, there: bool, whole: bool
) -> None:
    files = {"model_path": "w.pth", "config_path": "c.py"}
    plant(tmp_path, {"models": {"net": {"w.pth": "x", "c.py": ""}}, "secret place": {files[key]: ""} if there else {}})
    path = str(tmp_path / "secret place" / files[key]) if whole else f"../../secret place/{files[key]}"
    plant(tmp_path / "models" / "net", {"model.json": {**files, key: path}})
    offer = offers_of(tmp_path / "models")["net"]
    shown = files[key] if whole else str(Path(path))
    if there:
        assert {"model_path": offer.shown_path, "config_path": offer.shown_config}[key] == shown
        assert getattr(offer.request(), key) == str(tmp_path / "secret place" / files[key])
    else:
        assert f": {shown}" in str(offer.failure)
    told = str(offer.failure) + offer.shown_path + str(offer.shown_config)
    assert str(tmp_path) not in told
    assert not whole or "secret" not in told


def test_texts_that_are_too_long_for_names_hide_nothing(tmp_path: Path) -> None:
    long = "n" * 300
    pair = {"config.py": f"note = {long!r}", "w.pth": "x"}
    plant(tmp_path, {"pair": pair, "two": {**pair, "base.py": f"note = {long!r}"}, "net.onnx": "x"})
    plant(tmp_path, {"net.json": {"model_path": long}})
    found = offers_of(tmp_path)
    assert found["pair"].failure is None
    assert "2 configurations" in str(found["two"].failure)
    assert "Model file not found" in str(found["net"].failure)


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ("{", "valid JSON"),
        ("[]", "JSON object"),
        ({"colour": 1}, "colour"),
        ({"model_path": "gone.onnx"}, "gone.onnx"),
        ({"model_path": 3}, "model_path"),
        ({"model_path": "a\x00b"}, "model_path"),
        ({"backend_type": "tf"}, "tf"),
        ({"backend_type": "mmengine"}, "Config file required"),
        ({"inference_config": {"patch_size": "large"}}, "patch_size"),
        ({"name": "a\nb"}, "name"),
        ({"labels": ["\ud800"]}, "text"),
        ("9" * 2**21, "too large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_told_and_the_model_still_listed(tmp_path: Path, card: Tree | str, word: str) -> None:
    plant(tmp_path, {"net.onnx": "x", "net.json": card})
    offer = offers_of(tmp_path)["net"]
    assert offer.failure is not None
    assert word in offer.failure.message
    assert str(tmp_path) not in offer.failure.message
    assert offer.body["backend_type"] == "onnx"
    with pytest.raises(type(offer.failure)):
        offer.request()


def test_of_one_name_the_first_folder_wins_and_the_other_is_told(tmp_path: Path) -> None:
    first, second = plant(tmp_path / "1", {"net.onnx": "x"}), plant(tmp_path / "2", {"net": {"other.pt2": "x"}})
    shelf = Shelf([first, second])
    shelf.look()
    seen = shelf.look()
    assert seen.offers["net"].body["backend_type"] == "onnx"
    assert [note for note in seen.notes if str(second / "net") in note]


def test_what_grows_is_not_offered_until_it_rests(tmp_path: Path) -> None:
    shelf = Shelf([plant(tmp_path, {"pair": {"config.py": "model = 1", "w.pth": "x"}})])
    assert not shelf.look().offers
    assert shelf.look().offers
    for file in ("w.pth", "config.py", "model.json"):
        (tmp_path / "pair" / file).write_text("{}" * 50)
        seen = shelf.look()
        assert (seen.offers, seen.unsettled) == ({}, True), file
        assert not shelf.look().unsettled


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="there, every name is text")
def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path / "net") + b"\xff.onnx")).write_text("x")
    ((name, offer),) = offers_of(tmp_path).items()
    assert name == r"net\udcff"
    assert offer.failure
    assert "rename" in offer.failure.message
    json.dumps([offer.failure.message, offer.shown_path], ensure_ascii=False).encode()


def test_a_folder_that_vanishes_is_a_note(tmp_path: Path) -> None:
    seen = Shelf([tmp_path / "gone"]).look()
    assert not seen.offers
    assert len(seen.notes) == 1
    assert "gone" in seen.notes[0]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["net.onnx", "..", "/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
CARDS = st.dictionaries(st.sampled_from([*LoadRequest.model_fields, "other"]), VALUES, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(card=(CARDS | VALUES).map(json.dumps).map(str.encode) | st.binary(max_size=30), folder=st.booleans())
def test_whatever_the_request_is_the_model_is_offered_or_its_failure_told(
    tmp_path: Path, card: bytes, *, folder: bool
) -> None:
    plant(tmp_path, {"net": {"net.onnx": "x"}} if folder else {"net.onnx": "x"})
    (tmp_path / ("net/model.json" if folder else "net.json")).write_bytes(card)
    places = [offer for place, offer in look_at([tmp_path])[0] if place.is_dir() == folder]
    (offer,) = places
    if offer.failure is None:
        assert Path(offer.request().model_path).is_file()
    else:
        assert offer.name == "net"
        json.dumps([offer.failure.message, offer.body], ensure_ascii=False).encode()
