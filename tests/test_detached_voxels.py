"""No NRRD or MetaImage header leads the server to another file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import itk_files, networks, oracle, volumes
from tests.itk_files import meta, nrrd
from tests.oracle import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serving import Served

STORED = volumes.distinct((8, 7, 6))
# What the other file holds: in any byte order beyond what text or small numbers amount to.
CANARY = 0x7F7F
THRESHOLD = 32600


@pytest.fixture(scope="module")
def subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.threshold_network(tmp_path_factory.mktemp("detached") / "threshold.onnx", THRESHOLD)
    yield Subject(server, "detached", oracle.threshold_forward(THRESHOLD), (8, 8, 8)).load(model)
    server.delete("/api/models/detached")


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of raw voxels, more than enough for any header here."""
    path = tmp_path_factory.mktemp("canary") / "canary.raw"
    path.write_bytes(np.full(STORED.size * 4, CANARY, np.int16).tobytes())
    return path


def refuse(subject: Subject, path: Path, content: bytes, *words: str) -> None:
    path.write_bytes(content)
    answer = subject.server.infer(path, model_name=subject.name)
    assert answer.status_code == 400, answer.text
    for word in words:
        assert word in answer.json()["error"]


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
def test_itk_itself_would_follow_the_name(name: str, canary: Path, tmp_path: Path) -> None:
    header = nrrd(STORED, fields={"data file": str(canary)}) if name == "v.nrrd" else meta(STORED)
    image = itk_files.load(tmp_path / name, header.replace(b"LOCAL", str(canary).encode()))
    assert (itk_files.array_of(image) == CANARY).all()


@pytest.mark.parametrize(
    "line",
    [
        "data file: {}",
        "datafile: {}",
        "DATA FILE: {}",
        "Data  File : {}",
        " \tdata file: {}",
        "data file: LIST\n{}",
        "data file: LIST 3\n{}",
        "data file: {}%d 1 1 1",
        "data file:{}",
        "data file:= {}",
        "content: x\rdata file: {}",
        "# comment\r\ndatafile: {}",
    ],
)
def test_a_nrrd_header_that_names_another_file(line: str, subject: Subject, canary: Path, tmp_path: Path) -> None:
    named = line.format(canary).encode()
    attached = nrrd(STORED)
    header, _, voxels = attached.partition(b"\n\n")
    refuse(subject, tmp_path / "v", header + b"\n" + named + b"\n\n" + voxels, "another file", "one .nrrd file")
    refuse(subject, tmp_path / "v", header + b"\n" + named + b"\n", "another file", "one .nrrd file")
    refuse(subject, tmp_path / "v", attached.replace(b"\n", b"\n" + named + b"\n", 1), "another file", "one .nrrd file")


@pytest.mark.parametrize(
    "line",
    [
        "ElementDataFile = {}",
        "ElementDataFile={}",
        "ElementDataFile : {}",
        " \t ElementDataFile = {}",
        "ElementDataFile == :: {}",
        "elementdatafile = {}",
        "ElementDataFile = LIST\n{}",
        "ElementDataFile = LIST 2\n{}",
        "ElementDataFile = {}%d 1 1 1",
        "ElementDataFile = local",
        "ElementDataFile = LOCAL {}",
        "ElementDataFile =\n{}",
        "ElementDataFile = \r\n{}",
    ],
)
def test_a_metaimage_header_that_names_another_file(line: str, subject: Subject, canary: Path, tmp_path: Path) -> None:
    named = line.format(canary).encode()
    header, _, voxels = meta(STORED).partition(b"ElementDataFile = LOCAL\n")
    refuse(subject, tmp_path / "v", header + named + b"\n" + voxels, "another file", "one .mha file")
    refuse(
        subject,
        tmp_path / "v",
        header + named + b"\nElementDataFile = LOCAL\n" + voxels,
        "another file",
        "one .mha file",
    )


HEADERS = [nrrd(STORED * 0), nrrd(STORED * 0, "gzip"), meta(STORED * 0), meta(STORED * 0, "zlib")]
FRAGMENTS = [
    b"\n",
    b"\r",
    b"\n\n",
    b"data file: ",
    b"datafile",
    b"LIST",
    b"LOCAL",
    b"ElementDataFile = ",
    b"ElementDataFile",
    b": ",
    b":=",
    b"=",
    b" ",
    b"\0",
    b"#",
    b"%d 1 1 1",
    b"byte skip: -1\n",
    b"encoding: raw",
    b"NDims = 3\n",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(HEADERS),
    changes=st.lists(
        st.tuples(
            st.integers(0, 420),
            st.integers(0, 30),
            st.one_of(st.just(b"CANARY"), st.sampled_from(FRAGMENTS), st.binary(max_size=3)),
        ),
        max_size=6,
    ),
)
def test_no_header_leads_to_another_file(
    start: bytes, changes: list[tuple[int, int, bytes]], subject: Subject, canary: Path, tmp_path: Path
) -> None:
    content = start
    for place, length, piece in changes:
        content = content[:place] + piece.replace(b"CANARY", str(canary).encode()) + content[place + length :]
    path = tmp_path / "v"
    path.write_bytes(content)
    answer = subject.server.infer(path, model_name=subject.name)
    assert answer.status_code in {200, 400, 413}, answer.text
    if answer.status_code == 200 and b"\x7f" not in content:
        assert not volumes.labels_of(answer.content).any()
