"""A file that cannot be segmented is refused with a sentence, quickly and without harm."""

from __future__ import annotations

import gzip
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from tests import memory, networks, oracle, volumes
from tests.oracle import Subject
from tests.serving import wait_until
from tests.volumes import Header, affine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import requests

    from tests.serving import Served

SHAPE = (8, 7, 6)
RAS = Header(sform=affine_of("RAS"))
MiB = 2**20


@pytest.fixture(scope="module")
def subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.threshold_network(tmp_path_factory.mktemp("bad") / "threshold.onnx", 3)
    yield Subject(server, "bad-files", oracle.threshold_forward(3), (4, 4, 4)).load(model)
    server.delete("/api/models/bad-files")


@pytest.fixture
def refused(subject: Subject, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Send a file, see it refused as the client's mistake, and give the sentence; the server must be well after."""

    def send(path: Path, *statuses: int) -> str:
        answer = subject.server.infer(path, model_name=subject.name)
        assert answer.status_code in (statuses or (400,)), answer.text
        return sentence_of(answer, subject.server)

    yield send
    subject.check(volumes.write(tmp_path / "good.nii", volumes.distinct(SHAPE), RAS))
    wait_until(lambda: not spooled(subject.server), message="files stay in the spool")


def spooled(server: Served) -> list[str]:
    """What lies in the spool; folders may vanish while this looks."""
    return [name for _, _, names in os.walk(server.state_dir / "spool") for name in names]


def sentence_of(answer: requests.Response, server: Served) -> str:
    body = answer.json()
    assert list(body) == ["error"]
    sentence: str = body["error"]
    assert len(sentence.split()) >= 3, sentence
    for secret in ("Traceback", "\n", str(server.state_dir), "Error("):
        assert secret not in sentence, sentence
    return sentence


@pytest.mark.parametrize("shape", [(8, 7, 6, 2), (8, 7, 6, 1, 3)], ids=str)
def test_more_than_one_volume_is_refused(shape: tuple[int, ...], refused: Callable[..., str], tmp_path: Path) -> None:
    refused(volumes.write(tmp_path / "v.nii.gz", volumes.distinct(shape), RAS))


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]),
        np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
        np.dtype(np.complex64),
    ],
    ids=["RGB", "RGBA", "complex"],
)
def test_colours_and_complex_numbers_are_refused(
    dtype: np.dtype[np.void], refused: Callable[..., str], tmp_path: Path
) -> None:
    refused(volumes.write(tmp_path / "v.nii", np.zeros(SHAPE, dtype), RAS))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [10, 200, 348, 352, 400, -20])
def test_a_file_cut_short_is_refused(kept: int, suffix: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = volumes.write(tmp_path / f"v{suffix}", volumes.distinct((24, 20, 16)), RAS)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        b"this is a letter, not a volume",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 500,
        np.random.default_rng(1).bytes(5000),
        gzip.compress(np.random.default_rng(2).bytes(5000)),
        gzip.compress(b""),
        b"\x1f\x8b" + np.random.default_rng(3).bytes(5000),
    ],
    ids=["empty", "zeros", "text", "PNG", "noise", "noise in gzip", "empty gzip", "gzip magic and noise"],
)
@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii", "v.txt"])
def test_what_is_no_nifti_is_refused(content: bytes, name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path)


def test_a_gzip_whose_checksum_disagrees_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), RAS)
    content = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    content[-100] ^= 1
    path = tmp_path / "v.nii.gz"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", [3, 0, 7, 6, 1, 1, 1, 1]),
        ("dim", [3, -8, 7, 6, 1, 1, 1, 1]),
        ("dim", [0, 8, 7, 6, 1, 1, 1, 1]),
        ("dim", [9, 8, 7, 6, 1, 1, 1, 1]),
        ("datatype", 12345),
        ("datatype", 0),
        ("vox_offset", 1e9),
        ("vox_offset", -352),
        ("vox_offset", float("nan")),
        ("magic", b"xyz"),
        ("srow_x", [0, 0, 0, 0]),
        ("srow_y", [0, float("nan"), 0, 0]),
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_refused(
    field: str, value: object, refused: Callable[..., str], tmp_path: Path
) -> None:
    header = Header(sform=affine_of("RAS"), fields={field: value})
    refused(volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), header))


@pytest.mark.parametrize("side", [900, 1200, 30000])
@pytest.mark.parametrize("kind", [(1, ".nii"), (1, ".nii.gz"), (2, ".nii"), (2, ".nii.gz")], ids=str)
def test_a_small_file_that_claims_to_be_huge_costs_nothing(
    side: int, kind: tuple[int, str], refused: Callable[..., str], subject: Subject, tmp_path: Path
) -> None:
    version, suffix = kind
    claimed = volumes.build(Header(sform=affine_of("RAS"), version=version), np.zeros((1, 1, 1), np.int16))
    claimed["dim"][1:4] = side
    claimed["vox_offset"] = 544 if version == 2 else 352
    content = claimed.binaryblock + bytes(1024)
    path = tmp_path / f"v{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    processes = [*subject.server.workers(), psutil.Process(subject.server.process.pid)]
    before, begun = memory.held(processes), time.monotonic()
    with memory.Peak(processes) as peak:
        refused(path, 400, 413)
    assert time.monotonic() - begun < 5
    assert peak.size - before < 64 * MiB


def test_a_volume_without_a_finite_voxel_never_breaks_the_server(subject: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", np.full(SHAPE, np.nan, np.float32), RAS)
    assert subject.server.infer(path, model_name=subject.name).status_code in {200, 400}
