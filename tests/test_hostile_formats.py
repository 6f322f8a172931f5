"""NRRD and MetaImage files that cannot be segmented are refused with a sentence, quickly and without harm."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from tests import memory, networks, oracle, volumes
from tests.itk_files import meta, nrrd, packed
from tests.oracle import Subject
from tests.serving import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serving import Served

MiB = 2**20
STORED = volumes.distinct((8, 7, 6))
THRESHOLD = 5


def unnamed(value: object) -> str:
    """Files make long names for tests."""
    return type(value).__name__


@pytest.fixture(scope="module")
def subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.threshold_network(tmp_path_factory.mktemp("hostile") / "threshold.onnx", THRESHOLD)
    yield Subject(server, "hostile-formats", oracle.threshold_forward(THRESHOLD), (4, 4, 4)).load(model)
    server.delete("/api/models/hostile-formats")


@pytest.fixture
def refused(subject: Subject, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Send a file and see it refused with these words; the same model process must answer well after."""
    alive = subject.server.pids_of(subject.name)
    assert alive

    def send(content: bytes, *words: str, status: int = 400) -> None:
        path = tmp_path / "v"
        path.write_bytes(content)
        answer = subject.server.infer(path, model_name=subject.name)
        assert answer.status_code == status, answer.text
        sentence: str = answer.json()["error"]
        for word in words:
            assert word in sentence, sentence
        for secret in ("itk", "/", "0x", "Traceback", "\n"):
            assert secret not in sentence, sentence

    yield send
    subject.check(volumes.write(tmp_path / "good.nii", STORED))
    assert subject.server.pids_of(subject.name) == alive
    wait_until(lambda: not subject.server.spool_files(), message="files stay in the spool")


@pytest.mark.parametrize("write", [nrrd, meta])
def test_a_header_without_an_end(write: Callable[..., bytes], refused: Callable[..., None]) -> None:
    content = write(STORED)
    refused(content[: len(content) - STORED.nbytes - 2], "no end in this file")
    note = b"# " if write is nrrd else b"Note = "
    long = (note + b"x" * 1000 + b"\n") * 1100
    refused(content.replace(b"3\n", b"3\n" + long, 1), "no end in this file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(nrrd(STORED)), ["in a gzip file", ".nii.gz"]),
        (gzip.compress(meta(STORED)), ["in a gzip file", ".nii.gz"]),
        (b"NRRD0009\ntype: short\n\n", ["NRRD0009", "no known version"]),
        (nrrd(STORED)[:-20], ["cut short", "Save it again"]),
        (meta(STORED)[:-20], ["cut short", "Save it again"]),
        (nrrd(STORED, "gzip")[:-20], ["compressed voxels are damaged"]),
        (meta(STORED, "zlib")[:-20], ["compressed voxels are damaged"]),
        (meta(STORED, "zlib")[: -len(packed(STORED, "zlib"))], ["compressed voxels are damaged"]),
        (nrrd(STORED, "text")[:-20], ["cut short"]),
        (nrrd(STORED[:4], "gzip", fields={"sizes": "8 7 6"}), ["cut short"]),
        (meta(STORED[:4], "zlib", fields={"DimSize": "8 7 6"}), ["cut short"]),
        (nrrd(STORED, fields={"encoding": "gzip"}), ["compressed voxels are damaged"]),
        (meta(STORED, fields={"CompressedData": "True"}), ["compressed voxels are damaged"]),
        (nrrd(STORED, fields={"encoding": "hex"}), ["'hex'", "raw or gzip"]),
        (nrrd(STORED, fields={"encoding": "bzip2"}), ["'bzip2'", "raw or gzip"]),
        (nrrd(STORED, fields={"endian": None}), ["byte order", "save the image again"]),
        (nrrd(STORED, fields={"line skip": "3"}), ["line skip"]),
        (nrrd(STORED, "gzip", fields={"byte skip": "-1"}), ["byte skip"]),
        (meta(STORED, fields={"HeaderSize": "-1"}), ["HeaderSize"]),
        (nrrd(STORED, fields={"type": None}), ["does not tell the type"]),
        (nrrd(STORED, fields={"type": "block", "block size": "9"}), ["NRRD header is damaged"]),
        (nrrd(STORED, fields={"sizes": "8 7"}), ["sizes and its dimension do not agree"]),
        (nrrd(STORED, fields={"sizes": "8 7 -6"}), ["sizes and its dimension do not agree"]),
        (nrrd(STORED, fields={"SIZES": "8 7 6"}), ["gives its sizes twice"]),
        (nrrd(STORED, fields={"centerings": "cell " * 1000}), ["its centerings cannot be read"]),
        (nrrd(STORED).replace(b"note:=", b"note "), ["is no field"]),
        (meta(STORED, fields={"ElementType": None}), ["ElementType"]),
        (meta(STORED, fields={"ElementType": "MET_OTHER"}), ["MetaImage header is damaged"]),
        (meta(STORED, fields={"ElementType": "short"}), ["'short'", "no type of voxels"]),
        (meta(STORED, fields={"DimSize": "8 7"}), ["DimSize and NDims do not agree"]),
        (meta(STORED, fields={"NDims": "-3"}), ["NDims"]),
        (meta(STORED, fields={"Offset": "1 2"}), ["Offset is not 3 numbers"]),
        (meta(STORED, fields={"ElementSpacing": "1 nan 1"}), ["ElementSpacing is not 3 numbers"]),
        (meta(STORED).replace(b"NDims = 3", b"NDims = 3\nNDims = 4000"), ["gives its NDims twice"]),
        (meta(STORED).replace(b"Note = ", b"Note "), ["is no field"]),
        (meta(STORED, fields={"ObjectType": "Tube"}), ["'Tube'", "not an image"]),
    ],
    ids=unnamed,
)
def test_a_file_that_cannot_be_read(content: bytes, words: list[str], refused: Callable[..., None]) -> None:
    refused(content, *words)


@pytest.mark.parametrize("write", [nrrd, meta])
def test_compressed_voxels_whose_checksum_disagrees(write: Callable[..., bytes], refused: Callable[..., None]) -> None:
    # The data still inflate; only their checksum tells. ITK's own reader of MetaImage takes them.
    content = bytearray(write(STORED, "gzip"))
    plain = bytearray(packed(STORED, "raw"))
    plain[100] ^= 1
    spoilt = gzip.compress(bytes(plain), mtime=0)
    good = gzip.compress(packed(STORED, "raw"), mtime=0)
    content[-len(packed(STORED, "gzip")) :] = spoilt[:-8] + good[-8:]
    refused(bytes(content), "compressed voxels are damaged")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nrrd(np.stack([STORED, STORED], -1), fields={"space directions": None}), ["[8, 7, 6, 2]", "series"]),
        (meta(np.stack([STORED, STORED], -1)), ["[8, 7, 6, 2]", "series"]),
        (nrrd(STORED[None, :3], fields={"kinds": "domain domain domain domain", "space directions": None}), ["series"]),
        (
            nrrd(
                STORED[..., None],
                fields={"space": "right-anterior-superior-time", "space dimension": None, "space directions": None},
            ),
            ["right-anterior-superior-time", "3D volume"],
        ),
        (meta(STORED, fields={"ElementNumberOfChannels": "3"}), ["3 values a voxel", "scalar"]),
        (
            nrrd(STORED[:3], fields={"kinds": "RGB-color domain domain", "space": None, "space directions": None}),
            ["3 values a voxel", "scalar"],
        ),
        (
            nrrd(
                STORED[:2].astype("f4"),
                fields={"kinds": "complex domain domain", "space": None, "space directions": None},
            ),
            ["2 values a voxel", "complex"],
        ),
    ],
    ids=unnamed,
)
def test_more_than_one_number_a_place(content: bytes, words: list[str], refused: Callable[..., None]) -> None:
    without_origin = content.replace(b"space origin:", b"# origin:") if content.startswith(b"NRRD") else content
    refused(without_origin, *words)


@pytest.mark.parametrize(
    "content",
    [
        nrrd(STORED, fields={"space directions": "(1,0,0) (0,1,0) (1,1,0)"}),
        meta(STORED, fields={"TransformMatrix": "1 0 0 0 1 0 0 1 0"}),
        meta(STORED, fields={"ElementSpacing": "1 0 1"}),
        meta(STORED, fields={"ElementSpacing": "1 1e-60 1"}),
        meta(STORED, fields={"Offset": "1 1e60 1"}),
    ],
    ids=unnamed,
)
def test_an_orientation_that_makes_no_sense(content: bytes, refused: Callable[..., None]) -> None:
    refused(content, "orientation makes no sense")


@pytest.mark.parametrize(
    "content",
    [
        nrrd(STORED, fields={"space directions": "(1,0,0) (0.3,1,0) (0,0,1)"}),
        meta(STORED, fields={"TransformMatrix": "1 0 0 0.3 1 0 0 0 1"}),
    ],
    ids=["NRRD", "MetaImage"],
)
def test_sheared_axes(content: bytes, refused: Callable[..., None]) -> None:
    refused(content, "not perpendicular", ".nii.gz")


@pytest.mark.parametrize("words", ["1" * 2000, "9" * 300_000, "1 x 3", "1 2.5 3", "1 99999 3", "1 2 \0 3"])
def test_text_that_holds_no_numbers(words: str, refused: Callable[..., None]) -> None:
    content = nrrd(STORED, "text")
    header = content[: content.index(b"\n\n") + 2]
    refused(header + words.encode() + b" 7" * STORED.size, "no number of the type int16")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (nrrd(STORED[:1, :1, :1], fields={"sizes": "900 900 900"}), 400),
        (nrrd(STORED[:1, :1, :1], "gzip", fields={"sizes": "900 900 900"}), 400),
        (meta(STORED[:1, :1, :1], "zlib", fields={"DimSize": "900 900 900"}), 400),
        (nrrd(STORED[:1, :1, :1], "gzip", fields={"sizes": "30000 30000 30000"}), 413),
        (meta(STORED[:1, :1, :1], fields={"DimSize": "30000 30000 30000"}), 413),
        (meta(STORED[:1, :1, :1], "zlib", fields={"DimSize": "2147483647 2147483647 2147483647"}), 413),
        (nrrd(STORED[:1, :1, :1], fields={"sizes": "8 7 4294967302"}), 400),
        (nrrd(STORED[:1, :1, :1], fields={"dimension": "17", "sizes": "1 " * 17}), 400),
        (meta(STORED[:1, :1, :1], fields={"NDims": "4000", "DimSize": "1 " * 4000}), 400),
        (nrrd(STORED[:1, :1, :1], fields={"content": " " * 1_000_000}), 400),
    ],
    ids=unnamed,
)
def test_a_small_file_that_claims_to_be_huge_costs_nothing(
    content: bytes, status: int, refused: Callable[..., None], subject: Subject
) -> None:
    if len(content) > MiB // 2:
        content = content.replace(b"sizes: 1 1 1", b"sizes: 1 1 9")
    processes = [*subject.server.workers(), psutil.Process(subject.server.process.pid)]
    before, begun = memory.held(processes), time.monotonic()
    with memory.Peak(processes) as peak:
        refused(content, status=status)
    assert time.monotonic() - begun < 6
    assert peak.size - before < 64 * MiB


@pytest.mark.parametrize(
    "content",
    [
        nrrd(STORED, "gzip", fields={"sizes": "8 7 6"})[: -len(packed(STORED, "gzip"))]
        + gzip.compress(packed(STORED, "raw") + bytes(256 * MiB), 1),
        meta(STORED, "zlib", fields={"CompressedDataSize": "999999999999"})[: -len(packed(STORED, "zlib"))]
        + zlib.compress(packed(STORED, "raw") + bytes(256 * MiB), 1),
    ],
    ids=["NRRD", "MetaImage"],
)
def test_a_bomb_is_read_as_far_as_its_header_says(content: bytes, subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_bytes(content)
    processes = subject.server.workers()
    before = memory.held(processes)
    with memory.Peak(processes) as peak:
        labels = subject.ask(path)
    assert peak.size - before < 64 * MiB
    np.testing.assert_array_equal(labels, STORED > THRESHOLD)
