"""Volumes spoilt at random: labels or a sentence, and the model's process lives on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests import networks, oracle, volumes
from tests.corruption import corrupted, corrupted_gzip
from tests.fuzz.verdict import judge
from tests.itk_files import meta, nrrd
from tests.oracle import Subject
from tests.serving import Served, wait_until

STORED = volumes.distinct((9, 8, 7))
NAME = "fuzz-volumes"


def nifti(name: str, header: volumes.Header) -> Callable[[Path], bytes]:
    return lambda folder: volumes.write(folder / name, STORED, header).read_bytes()


PLACED = volumes.Header(sform=volumes.affine_of("RAS"), qform=volumes.affine_of("LPI"), slope=2, inter=3)
FILES: dict[str, Callable[[Path], bytes]] = {
    "nifti": nifti("v.nii", PLACED),
    "nifti big-endian": nifti("v.nii", volumes.Header(qform=volumes.affine_of("PIR"), endian=">")),
    "nifti 2": nifti("v.nii", volumes.Header(sform=volumes.affine_of("RAS"), version=2, extensions=((6, b"hello"),))),
    "nifti gzip": nifti("v.nii.gz", PLACED),
    "nrrd": lambda _: nrrd(STORED),
    "nrrd gzip": lambda _: nrrd(STORED, "gzip"),
    "nrrd text": lambda _: nrrd(STORED, "text"),
    "mha": lambda _: meta(STORED),
    "mha zlib": lambda _: meta(STORED, "zlib"),
}


@pytest.fixture(scope="module")
def subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.threshold_network(tmp_path_factory.mktemp("fuzz") / "threshold.onnx", 3)
    yield Subject(server, NAME, oracle.threshold_forward(3), (4, 4, 4)).load(model)
    server.delete(f"/api/models/{NAME}")


def see(subject: Subject, folder: Path, kind: str, seeds: range) -> None:
    content = FILES[kind](folder)
    spoil = corrupted_gzip if kind == "nifti gzip" else corrupted
    alive = subject.server.pids_of(NAME)

    def send(seed: int) -> requests.Response:
        return subject.server.post(
            "/api/infer", data={"model_name": NAME}, files={"image": spoil(content, seed)}, timeout=60
        )

    statuses = judge(subject.server, send, seeds)
    assert set(statuses) <= {200, 400, 413}
    assert statuses[400] > len(seeds) / 4
    subject.check(volumes.write(folder / "good.nii", STORED, PLACED))
    assert alive
    assert subject.server.pids_of(NAME) == alive
    wait_until(lambda: not subject.server.spool_files(), message="files stay in the spool")


@pytest.mark.parametrize("kind", FILES)
def test_a_few_corruptions(kind: str, subject: Subject, tmp_path: Path) -> None:
    see(subject, tmp_path, kind, range(12))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", FILES)
def test_many_corruptions(kind: str, subject: Subject, tmp_path: Path) -> None:
    see(subject, tmp_path, kind, range(1000, 1090))
