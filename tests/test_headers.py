"""The answer keeps the input's header, byte for byte but for what a label map must change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests import networks, oracle, volumes
from tests.oracle import Subject
from tests.volumes import Header, affine_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serving import Served

CHANGED = {
    "datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max", "descrip",
    "intent_code", "intent_p1", "intent_p2", "intent_p3", "intent_name",
}  # fmt: skip
SHAPE = (7, 9, 6)
OBLIQUE = volumes.rotation((11, -7, 14)) @ affine_of("PSL")
NOTE = ((6, b"a comment that the file carries"), (4, b"<xml>AFNI</xml>"))

HEADERS = {
    "plain": Header(sform=affine_of("RAS"), qform=affine_of("RAS")),
    "oblique": Header(sform=OBLIQUE, qform=OBLIQUE, sform_code=2, qform_code=1, units=18),
    "sform and qform disagree": Header(sform=affine_of("RAS"), qform=OBLIQUE, sform_code=4, qform_code=1),
    "sheared": Header(sform=volumes.shear(0.3) @ affine_of("RAS"), qform=affine_of("LPS")),
    "qform alone": Header(qform=affine_of("SLA"), qform_code=3),
    "left-handed qform": Header(qform=affine_of("SRA")),
    "sform alone": Header(sform=affine_of("AIL"), sform_code=3, qform_code=0),
    "both codes 0": Header(sform=affine_of("RAS"), qform=OBLIQUE, sform_code=0, qform_code=0),
    "nothing set": Header(units=0),
    "big-endian": Header(sform=affine_of("RAS"), qform=OBLIQUE, endian=">"),
    "scaled": Header(sform=affine_of("RAS"), slope=0.5, inter=-1024),
    "slope of zero": Header(sform=affine_of("RAS"), slope=0, inter=7),
    "extensions": Header(sform=affine_of("RAS"), extensions=NOTE),
    "big-endian with extensions": Header(sform=affine_of("RAS"), extensions=NOTE, endian=">"),
    "NIfTI-2": Header(sform=affine_of("RAS"), qform=OBLIQUE, version=2),
    "NIfTI-2, big-endian with extensions": Header(sform=OBLIQUE, version=2, endian=">", extensions=NOTE),
}
READ_BY_ITK = [name for name in HEADERS if not name.startswith("NIfTI-2")]


@pytest.fixture(scope="module")
def subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.neighbour_network(tmp_path_factory.mktemp("headers") / "neighbour.onnx")
    yield Subject(server, "headers", oracle.neighbour_forward, (5, 6, 4)).load(model)
    server.delete("/api/models/headers")


def fields(content: bytes, *, without: set[str]) -> tuple[dict[str, bytes], bytes]:
    """Each field of a NIfTI header as its bytes, and the bytes between header and voxels."""
    header = volumes.header_of(content)
    raw = header.structarr
    between = volumes.plain(content)[len(header.binaryblock) : int(raw["vox_offset"])]
    return {name: raw[name].tobytes() for name in raw.dtype.names if name not in without}, between


def answer_of(subject: Subject, path: Path) -> bytes:
    answer = subject.server.infer(path, model_name=subject.name)
    assert answer.status_code == 200, answer.text
    assert answer.content[:2] == b"\x1f\x8b"
    return answer.content


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", HEADERS)
def test_the_header_is_the_inputs(name: str, suffix: str, subject: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / f"v{suffix}", volumes.distinct(SHAPE), HEADERS[name])
    content = answer_of(subject, path)
    assert fields(content, without=CHANGED) == fields(path.read_bytes(), without=CHANGED)
    np.testing.assert_array_equal(volumes.labels_of(content), subject.foretell(path))


@pytest.mark.parametrize("name", HEADERS)
def test_the_changed_fields_say_label_map(name: str, subject: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), HEADERS[name])
    content = answer_of(subject, path)
    raw = volumes.header_of(content)
    assert (int(raw["datatype"]), int(raw["bitpix"])) == (2, 8)
    assert (float(raw["scl_slope"]), float(raw["scl_inter"])) == (1, 0)
    assert len(volumes.plain(content)) == int(raw["vox_offset"]) + np.prod(SHAPE)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 5, 1)], ids=str)
def test_the_number_of_axes_stays(shape: tuple[int, ...], subject: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(shape), HEADERS["oblique"])
    content = answer_of(subject, path)
    assert fields(content, without=CHANGED) == fields(path.read_bytes(), without=CHANGED)
    assert volumes.read(content).shape == shape


@pytest.mark.parametrize("name", READ_BY_ITK)
def test_simpleitk_reads_the_same_labels_on_the_same_grid(name: str, subject: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), HEADERS[name])
    saved = tmp_path / "labels.nii.gz"
    saved.write_bytes(answer_of(subject, path))
    before, after = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(saved))
    for said in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(after, said)() == getattr(before, said)()
    read: Any = nib.load(saved)
    labels = SimpleITK.GetArrayFromImage(after)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.transpose(), np.asarray(read.dataobj))
