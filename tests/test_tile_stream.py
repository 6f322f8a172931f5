"""Bodies of tiles that are taken apart while they arrive: nothing is lost, wherever the pieces are cut."""

from __future__ import annotations

import base64
import gc
import json
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve.api.qupath.tile_stream import NotJsonError, TileStream
from segserve.errors import SegserveError, TooLargeError

NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
TILES = st.lists(
    st.fixed_dictionaries({"id": TEXT, "data": st.binary(min_size=1) | TEXT | VALUES}, optional={"more": VALUES})
)


def taken(body: bytes, folder: Path, step: int = 2**20) -> TileStream:
    stream = TileStream(folder)
    for piece in pieces(body, step):
        stream.write(piece)
    return stream


def pieces(body: bytes, step: int) -> Iterator[bytes]:
    return (body[start : start + step] for start in range(0, len(body), step))


@settings(deadline=None, max_examples=60)
@given(tiles=TILES, rest=st.dictionaries(TEXT.filter(lambda key: key != "tiles"), VALUES), step=st.integers(1, 100))
def test_what_comes_out_is_what_went_in(tiles: list[dict[str, Any]], rest: dict[str, Any], step: int) -> None:
    images = {index: tile["data"] for index, tile in enumerate(tiles) if isinstance(tile["data"], bytes)}
    for index, image in images.items():
        tiles[index] = {**tiles[index], "data": "data:image/png;base64," + base64.b64encode(image).decode()}
    with TemporaryDirectory() as folder:
        stream = taken(json.dumps({**rest, "tiles": tiles}).encode(), Path(folder), step)
        said = json.loads(stream.finish())
        assert {index: path.read_bytes() for index, path in stream.images.items()} == images
        assert {path.name for path in Path(folder).iterdir()} == {f"tile-{index}" for index in images}
    assert said == {
        **rest,
        "tiles": [{**tile, **({"data": "data:"} if i in images else {})} for i, tile in enumerate(tiles)],
    }


def test_the_last_of_several_counts(tmp_path: Path) -> None:
    body = b'{"tiles": [{"data": "data:,YQ==", "data": "a.png"}, {"data": "b.png", "data": "data:,Yg=="}]}'
    stream = taken(body, tmp_path)
    assert json.loads(stream.finish())["tiles"] == [{"data": "a.png"}, {"data": "data:"}]
    assert {index: path.read_bytes() for index, path in stream.images.items()} == {1: b"b"}


def test_what_only_looks_like_a_tile_is_none(tmp_path: Path) -> None:
    body = (
        b'{"tiles.item.data": "data:,YQ==", "tiles": [{"more": {"data": "data:,YQ=="}}], "x": [{"data": "data:,YQ=="}]}'
    )
    stream = taken(body, tmp_path)
    assert json.loads(stream.finish()) == json.loads(body)
    assert not stream.images


@pytest.mark.parametrize("url", ["data:", "data:image/png;base64", "data:image/png;base64,", "data:,=!", "data:,Y"])
def test_a_url_without_an_image_stays(tmp_path: Path, url: str) -> None:
    stream = taken(json.dumps({"tiles": [{"data": url}]}).encode(), tmp_path)
    assert json.loads(stream.finish())["tiles"] == [{"data": url.partition(",")[0]}]
    assert not stream.images


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"tiles": [' + b'{"id": "a", "data": "b"},' * 10_001, "10000 tiles"),
        (b'{"tiles": [{"id": "' + b"a" * 5_000_000 + b'"', "4.0 MiB"),
        (b'{"selected_channels": [' + b"0," * 600_000, "4.0 MiB"),
        (b'{"more": [' + b"{}," * 600_000, "4.0 MiB"),
    ],
)
def test_what_would_fill_the_memory_is_refused_while_it_arrives(tmp_path: Path, body: bytes, words: str) -> None:
    with pytest.raises(TooLargeError, match=words):
        taken(body, tmp_path)


@pytest.mark.parametrize("body", [b'{"tiles": [{"data": "data:,YWFh"}]}', b'{"tiles": [}'])
def test_nothing_of_a_body_outlives_it(tmp_path: Path, body: bytes) -> None:
    stream = TileStream(tmp_path)
    with suppress(NotJsonError):
        stream.write(body)
        stream.finish()
    found = weakref.ref(stream._found)
    del stream
    gc.collect()
    assert found() is None


def test_nesting_has_an_end(tmp_path: Path) -> None:
    assert json.loads(taken(b"[" * 50 + b"]" * 50, tmp_path).finish())
    with pytest.raises(NotJsonError, match="50 levels"):
        taken(b"[" * 100_000, tmp_path)


@settings(deadline=None, max_examples=200)
@given(
    digits=st.text("Ab+/", max_size=12) | st.binary(max_size=12).map(lambda data: base64.b64encode(data).decode()),
    more=st.text('A=\n \\"!é', max_size=4),
    place=st.integers(0, 12),
    step=st.integers(1, 40),
    escapes=st.booleans(),
)
def test_an_image_is_what_its_base64_holds_wherever_it_is_cut(
    digits: str, more: str, place: int, step: int, escapes: bool
) -> None:
    text = digits[:place] + more + digits[place:]
    try:
        digits_alone = "".join(text.split())
        # Python, some versions of it, takes too much padding for none.
        expected = base64.b64decode(digits_alone, validate=True) if len(digits_alone) % 4 == 0 else b""
    except ValueError:
        expected = b""
    written = json.dumps(text)
    if escapes:  # as other libraries write them
        written = written.replace("/", "\\/").replace("=", "\\u003d").replace("+", "\\u002B")
    body = f'{{"tiles": [{{"data": "data:x,{written[1:]}}}], "more": "{digits}"}}'
    with TemporaryDirectory() as folder:
        stream = taken(body.encode(), Path(folder), step)
        said = json.loads(stream.finish())
        assert [path.read_bytes() for path in Path(folder).iterdir()] == ([expected] if expected else [])
        assert list(stream.images) == ([0] if expected else [])
    assert said == {"tiles": [{"data": "data:" if expected else "data:x"}], "more": digits}


@pytest.mark.parametrize("content", [b"AB ", b"YWFh", b"\\n", b"A\\u000a", "é".encode(), b""])
def test_an_image_is_never_whole_in_memory(tmp_path: Path, content: bytes) -> None:
    body = b'{"tiles": [{"data": "data:,' + content * (2**24 // max(1, len(content))) + b'"}]}'
    stream = TileStream(tmp_path)
    tracemalloc.start()
    for piece in pieces(body, 2**20):
        stream.write(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.finish()
    assert peak < 2**24


@pytest.mark.parametrize(
    "text", [b'"data:,YWFh\\', b'"data:,YWFh\\u00', b'"data:,YW\\u00gghh"', b'"data:,YW\nFh"', b'"data:,']
)
def test_a_data_url_that_is_no_string_is_no_json(tmp_path: Path, text: bytes) -> None:
    for step in (1, 5, 100):
        with pytest.raises(NotJsonError, match=r"\w"):
            taken(b'{"tiles": [{"data": ' + text, tmp_path, step).finish()


@pytest.mark.parametrize("body", [b"", b"{", b"nul", b"{} {}", b'{"a": NaN}', b'{"a": "\xff"}', b"1" * 5000, b"\x00"])
def test_what_is_no_json_is_told(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(NotJsonError, match=r"\w"):
        taken(body, tmp_path).finish()


@settings(deadline=None, max_examples=60)
@given(
    body=st.binary(max_size=60) | st.text(alphabet='{}[]",:0e-tiles.da\\u', max_size=60).map(str.encode),
    step=st.integers(1, 60),
)
def test_anything_is_json_or_refused(body: bytes, step: int) -> None:
    with TemporaryDirectory() as folder, suppress(NotJsonError, SegserveError):
        json.loads(taken(body, Path(folder), step).finish())
