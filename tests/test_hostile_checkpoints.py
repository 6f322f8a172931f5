"""Checkpoints that would run something if they were read as pickles are: nothing of them is run."""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import tarfile
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from segserve.models.formats import inert_pickle
from segserve.models.formats.checkpoint import read_state_dict
from tests.checkpoint_files import assert_same, content_of, refusal, save, some_state, write_zip

MKDIR_EXTENSION = 240


class New:
    """Does something when it is made."""

    def __new__(cls, path: str) -> New:
        Path(path).mkdir()
        return super().__new__(cls)


class Filled:
    """Does something when it is given anything."""

    def __setstate__(self, state: str) -> None:
        Path(state).mkdir()

    __call__ = append = add = __setstate__

    def extend(self, values: list[str]) -> None:
        Path(values[0]).mkdir()

    def __setitem__(self, key: str, value: str) -> None:
        Path(value).mkdir()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


HERE = __name__
FILLED = named(HERE, "Filled") + b")\x81"
HARM: dict[str, Callable[[str], bytes]] = {
    "reduce": lambda path: named("os", "mkdir") + text(path) + b"\x85R",
    "reduce in Python 2": lambda path: named("posix", "mkdir") + text(path) + b"\x85R",
    "inst": lambda path: b"(" + text(path) + b"ios\nmkdir\n",
    "obj": lambda path: b"(" + named("os", "mkdir") + text(path) + b"o",
    "newobj": lambda path: named(HERE, "New") + text(path) + b"\x85\x81",
    "newobj with keywords": lambda path: named(HERE, "New") + b")}" + text("path") + text(path) + b"s\x92",
    "build": lambda path: FILLED + text(path) + b"b",
    "append": lambda path: FILLED + text(path) + b"a",
    "appends": lambda path: FILLED + b"(" + text(path) + b"e",
    "setitem": lambda path: FILLED + text("key") + text(path) + b"s",
    "setitems": lambda path: FILLED + b"(" + text("key") + text(path) + b"u",
    "additems": lambda path: FILLED + b"(" + text(path) + b"\x90",
    "call of an object": lambda path: FILLED + text(path) + b"\x85R",
    "stack global": lambda path: text("os") + text("mkdir") + b"\x93" + text(path) + b"\x85R",
    "dotted through torch": lambda path: (
        text("torch") + text("serialization.os.mkdir") + b"\x93" + text(path) + b"\x85R"
    ),
    "getattr": lambda path: (
        named("builtins", "getattr")
        + (named("builtins", "__import__") + text("os") + b"\x85R")
        + (text("mkdir") + b"\x86R" + text(path) + b"\x85R")
    ),
    "eval": lambda path: named("builtins", "eval") + text(f"__import__('os').mkdir({path!r})") + b"\x85R",
    "map": lambda path: (
        named("builtins", "list")
        + (named("builtins", "map") + named("os", "mkdir") + text(path) + b"\x85\x86R")
        + b"\x85R"
    ),
    "subprocess": lambda path: named("subprocess", "check_call") + b"]" + text("mkdir") + b"a" + text(path) + b"a\x85R",
    "a pickle in a pickle": lambda path: (
        named("pickle", "loads")
        + (b"B" + struct.pack("<I", len(HARM["reduce"](path)) + 1) + HARM["reduce"](path) + b".")
        + b"\x85R"
    ),
    "through torch's own rebuilding": lambda path: (
        named("torch._tensor", "_rebuild_from_type_v2")
        + (b"(" + named("os", "mkdir") + named("torch", "Tensor") + text(path) + b"\x85}tR")
    ),
    "extension": lambda path: b"\x82" + bytes([MKDIR_EXTENSION]) + text(path) + b"\x85R",
    "long extension": lambda path: b"\x84" + struct.pack("<i", MKDIR_EXTENSION) + text(path) + b"\x85R",
}


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension("os", "mkdir", MKDIR_EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", MKDIR_EXTENSION)
    copyreg.clear_extension_cache()


def with_harm(folder: Path, harm: bytes) -> Path:
    """A checkpoint with weights, and beside them what does harm."""
    state, records = content_of(save(folder / "fine.pth", some_state()))
    content = b"\x80\x04}(" + text("evil") + harm + text("state_dict") + state[2:-1] + b"u."
    return write_zip(folder / "evil.pth", content, records)


def legacy_with_harm(folder: Path, harm: bytes, place: str) -> Path:
    """The same in torch's older format: pickles one after the other, and then the numbers."""
    stream = io.BytesIO()
    torch.save({"state_dict": some_state(), "evil": "EVIL"}, stream, _use_new_zipfile_serialization=False)
    stream.seek(0)
    ends = [0]
    for _ in range(3):
        pickle.load(stream)
        ends.append(stream.tell())
    content = stream.getvalue()
    evil = b"\x80\x04" + harm + b"."
    if place == "header":
        content = content[: ends[2]] + evil + content[ends[3] :]
    elif place == "first":
        content = evil + content
    else:
        found = content.index(text("EVIL"))
        content = content[:found] + harm + content[found + len(text("EVIL")) :]
    path = folder / "evil.pth"
    path.write_bytes(content)
    return path


def assert_harmful(harm: bytes, canary: Path) -> None:
    """Python's own reader does run it; so does a test that could not tell."""
    with suppress(AttributeError):  # torch, of what harm gives back
        pickle.loads(b"\x80\x04" + harm + b".")
    canary.rmdir()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("kind", HARM)
def test_nothing_is_run_and_the_weights_are_read_all_the_same(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    harm = HARM[kind](str(canary))
    assert_harmful(harm, canary)
    for path in (with_harm(tmp_path, harm), legacy_with_harm(tmp_path, harm, "content")):
        assert_same(read_state_dict(path), some_state())
        assert not canary.exists()


@pytest.mark.parametrize("place", ["first", "header"])
@pytest.mark.parametrize("kind", ["reduce", "eval", "build", "inst"])
def test_nothing_is_run_in_the_pickles_before_the_content(tmp_path: Path, kind: str, place: str) -> None:
    canary = tmp_path / "canary"
    harm = HARM[kind](str(canary))
    path = legacy_with_harm(tmp_path, harm, place)
    if place == "header":
        assert_same(read_state_dict(path), some_state())
    else:
        assert "cannot be read" in refusal(path)
    assert not canary.exists()


def test_a_pickle_alone_is_no_checkpoint_and_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "a.pt").write_bytes(b"\x80\x04" + HARM["reduce"](str(canary)) + b".")
    assert "cannot be read" in refusal(tmp_path / "a.pt")
    assert not canary.exists()


def test_a_tar_archive_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    harm = b"\x80\x04" + HARM["reduce"](str(canary)) + b"."
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(harm)
            archive.addfile(member, io.BytesIO(harm))
    assert "tar archive" in refusal(tmp_path / "a.pt")
    assert not canary.exists()


POISON = b"(N}" + text("poison") + b"K\x01st"  # the state (None, {"poison": 1}), which is set as attributes


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "UntypedStorage"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("collections", "OrderedDict"),
    ],
)
def test_a_pickle_changes_no_class_and_no_function(tmp_path: Path, module: str, name: str) -> None:
    assert_same(read_state_dict(with_harm(tmp_path, named(module, name) + POISON + b"b")), some_state())
    ours = {**inert_pickle.FUNCTIONS, **inert_pickle.VALUES}[module, name]
    assert not hasattr(ours, "poison")
    assert not hasattr(torch.UntypedStorage, "poison")


def test_a_dictionary_with_attributes_is_a_dictionary(tmp_path: Path) -> None:
    state, records = content_of(save(tmp_path / "fine.pth", OrderedDict(some_state())))
    attributes = b"}(" + text("items") + b"N" + text("get") + b"N" + text("_metadata") + b"}ub"
    path = write_zip(tmp_path / "a.pth", state[:-1] + attributes + b".", records)
    assert pickle.loads(named("collections", "OrderedDict") + b")R" + attributes + b".").items is None
    assert_same(read_state_dict(path), some_state())


@pytest.mark.parametrize(
    "identity",
    [
        b"N",
        b"K\x05",
        b")",
        text("storage"),
        text("storage") + b"\x85",
        b"(" + text("module") + named("os", "mkdir") + text("file") + text("source") + b"t",
        b"(" + text("storage") + named("os", "mkdir") + text("0") + text("cpu") + b"K\x01t",
        b"(" + text("storage") + named("torch", "FloatStorage") + text("../../etc/passwd") + text("cpu") + b"K\x01t",
        b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"J\xff\xff\xff\xfft",
        b"("
        + text("storage")
        + named("torch", "FloatStorage")
        + text("9")
        + text("cuda")
        + b"\x8a\x08"
        + b"\x7f" * 8
        + b"t",
    ],
)
def test_persistent_ids_of_any_shape_are_refused(tmp_path: Path, identity: bytes) -> None:
    assert "cannot be read" in refusal(with_harm(tmp_path, identity + b"Q"))


def test_high_memo_numbers_take_no_memory(tmp_path: Path) -> None:
    path = with_harm(tmp_path, b"Nr" + struct.pack("<I", 2**26))
    tracemalloc.start()
    try:
        assert_same(read_state_dict(path), some_state())
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
