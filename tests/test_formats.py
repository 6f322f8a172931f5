"""NRRD and MetaImage volumes get the labels of the same volume as NIfTI, as a .nii.gz on their own grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK

from tests import itk_files, networks, oracle, volumes
from tests.oracle import Subject
from tests.volumes import Header, affine_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serving import Served
    from tests.volumes import Array

PATCH = (4, 5, 3)
SHAPE = (6, 7, 8)


@pytest.fixture(scope="module")
def subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.neighbour_network(tmp_path_factory.mktemp("formats") / "neighbour.onnx")
    yield Subject(server, "formats", oracle.neighbour_forward, PATCH).load(model)
    server.delete("/api/models/formats")


@pytest.fixture
def answered(subject: Subject, tmp_path: Path) -> Callable[[Path], SimpleITK.Image]:
    """Send a file, and give the answer as ITK reads it."""

    def ask(path: Path) -> SimpleITK.Image:
        answer = subject.server.infer(path, model_name=subject.name)
        assert answer.status_code == 200, answer.text
        return itk_files.load(tmp_path / "answer.nii.gz", answer.content)

    return ask


@pytest.fixture
def expected(subject: Subject, tmp_path: Path) -> Callable[[SimpleITK.Image], Array]:
    """The labels of ITK's image, from the oracle, which knows it as the NIfTI file that ITK writes of it."""
    return lambda image: subject.foretell(itk_files.save(tmp_path / "twin.nii", image))


def check(image: SimpleITK.Image, answer: SimpleITK.Image, labels: Array) -> None:
    itk_files.assert_same_place(answer, image)
    np.testing.assert_array_equal(itk_files.array_of(answer), labels)


@pytest.mark.parametrize("held", volumes.ORIENTATIONS)
def test_every_orientation_gets_the_labels_of_its_nifti_twin(
    held: str, subject: Subject, answered: Callable[[Path], SimpleITK.Image], tmp_path: Path
) -> None:
    twin = volumes.write(tmp_path / "twin.nii", volumes.distinct(SHAPE), Header(sform=affine_of(held)))
    labels = subject.check(twin)
    image = itk_files.load(twin)
    for name, compress in (("v.nrrd", True), ("v.mha", False)):
        path = itk_files.save(tmp_path / name, image, compress=compress)
        answer = answered(path)
        check(image, answer, labels)
        for index in [(0, 0, 0), (5, 6, 7), (2, 0, 7)]:
            there = answer.TransformPhysicalPointToIndex(image.TransformIndexToPhysicalPoint(index))
            assert answer[there] == labels[index]


@pytest.mark.parametrize("held", ["RAS", "LPS", "SAL", "AIR", "PSL", "IRP"])
@pytest.mark.parametrize("degrees", [(11, -7, 14), (-25, 20, 18)])
@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
def test_an_oblique_grid_is_kept(
    held: str,
    degrees: tuple[int, int, int],
    name: str,
    answered: Callable[[Path], SimpleITK.Image],
    expected: Callable[[SimpleITK.Image], Array],
    tmp_path: Path,
) -> None:
    affine = volumes.rotation(degrees) @ affine_of(held, (0.31, 0.9, 4.5))
    image = itk_files.image_of(volumes.distinct(SHAPE), affine)
    check(image, answered(itk_files.save(tmp_path / name, image)), expected(image))


@pytest.mark.parametrize("dtype", itk_files.DTYPES)
@pytest.mark.parametrize(
    ("write", "encoding", "order"),
    [
        *((itk_files.nrrd, encoding, order) for encoding in ("raw", "gzip") for order in "<>"),
        *((itk_files.meta, encoding, order) for encoding in ("raw", "zlib") for order in "<>"),
        (itk_files.nrrd, "text", "<"),
        (itk_files.meta, "text", "<"),
    ],
)
def test_every_type_of_voxel_in_every_encoding(
    dtype: str,
    write: Callable[..., bytes],
    encoding: str,
    order: str,
    answered: Callable[[Path], SimpleITK.Image],
    expected: Callable[[SimpleITK.Image], Array],
    tmp_path: Path,
) -> None:
    stored = volumes.distinct((6, 7, 5), dtype)
    path = tmp_path / f"v.{'nrrd' if write is itk_files.nrrd else 'mha'}"
    image = itk_files.load(path, write(stored, encoding, order))
    np.testing.assert_array_equal(itk_files.array_of(image), stored)
    check(image, answered(path), expected(image))


STORED = volumes.distinct(SHAPE)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(itk_files.nrrd(STORED, end="\r\n"), id="NRRD, lines as Windows ends them"),
        pytest.param(itk_files.nrrd(STORED, end="\r"), id="NRRD, lines as old Macs ended them"),
        pytest.param(itk_files.nrrd(STORED, fields={"space": "LAS", "content": "data file: none"}), id="NRRD in LAS"),
        pytest.param(itk_files.nrrd(STORED, fields={"space": "left-posterior-superior"}), id="NRRD in LPS"),
        pytest.param(
            itk_files.nrrd(
                STORED,
                fields={
                    **dict.fromkeys(("space", "space directions", "space origin")),
                    "spacings": "0.5 1 nan",
                    "axis mins": "1 2 3",
                },
            ),
            id="NRRD without a space",
        ),
        pytest.param(itk_files.nrrd(STORED) + b"more than the header says", id="NRRD, and more"),
        pytest.param(itk_files.nrrd(STORED, "gzip") + b"more than the header says", id="NRRD in gzip, and more"),
        pytest.param(itk_files.meta(STORED, end="\r\n"), id="MetaImage, lines as Windows ends them"),
        pytest.param(itk_files.meta(STORED).replace(b" = ", b":", 6), id="MetaImage with colons"),
        pytest.param(itk_files.meta(STORED).replace(b"\n", b"\n \t", 6), id="MetaImage, lines indented"),
        pytest.param(itk_files.meta(STORED).removeprefix(b"ObjectType = Image\n"), id="MetaImage, sort not told"),
        pytest.param(itk_files.meta(STORED, "gzip"), id="MetaImage with gzip inside"),
        pytest.param(itk_files.meta(STORED) + b"more than the header says", id="MetaImage, and more"),
        pytest.param(
            itk_files.meta(
                STORED,
                fields={
                    **dict.fromkeys(("TransformMatrix", "Offset", "ElementSpacing")),
                    "Orientation": "0 1 0 1 0 0 0 0 1",
                    "Position": "1 -2 3e1",
                    "ElementSize": "2 .5 1",
                },
            ),
            id="MetaImage, older names",
        ),
        pytest.param(itk_files.meta(STORED, fields={"ElementSpacing": "-2 1 0.5"}), id="MetaImage, an axis backwards"),
    ],
)
def test_a_header_is_read_as_itk_reads_it(
    content: bytes,
    answered: Callable[[Path], SimpleITK.Image],
    expected: Callable[[SimpleITK.Image], Array],
    tmp_path: Path,
) -> None:
    path = tmp_path / f"v.{'nrrd' if content.startswith(b'NRRD') else 'mha'}"
    image = itk_files.load(path, content)
    np.testing.assert_array_equal(itk_files.array_of(image), STORED)
    check(image, answered(path), expected(image))


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.jpg", "scan", "scan.mhd"])
@pytest.mark.parametrize("write", [itk_files.nrrd, itk_files.meta])
def test_the_name_of_the_file_does_not_matter(
    write: Callable[..., bytes], name: str, answered: Callable[[Path], SimpleITK.Image], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(write(STORED))
    assert answered(tmp_path / name).GetSize() == SHAPE


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
def test_a_2d_image_is_one_slice(
    name: str,
    answered: Callable[[Path], SimpleITK.Image],
    expected: Callable[[SimpleITK.Image], Array],
    tmp_path: Path,
) -> None:
    image = itk_files.image_of(volumes.distinct((9, 7)), volumes.rotation((0, 0, 20)) @ affine_of("LPS"))
    check(image, answered(itk_files.save(tmp_path / name, image)), expected(image))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(itk_files.meta(STORED[..., None]), id="MetaImage"),
        pytest.param(itk_files.nrrd(STORED[..., None], fields={"space directions": None}), id="NRRD"),
        pytest.param(
            itk_files.nrrd(
                STORED[None],
                fields={
                    "kinds": "list domain domain domain",
                    "space": "left-posterior-superior",
                    "space dimension": None,
                    "space directions": "none (0.7,0,0) (0,1.25,0) (0,0,3)",
                    "space origin": "(-31.5,17.25,42)",
                },
            ),
            id="NRRD, a list of one volume",
        ),
    ],
)
def test_one_point_in_time_is_a_volume(
    content: bytes, subject: Subject, answered: Callable[[Path], SimpleITK.Image], tmp_path: Path
) -> None:
    answer = answered(written(tmp_path / "v", content))
    spacing = (1.0, 1.0, 1.0) if b"space directions" not in content and content[:4] == b"NRRD" else volumes.SPACING
    np.testing.assert_allclose(answer.GetSpacing(), spacing, rtol=1e-6)
    affine = itk_files.LPS @ np.diag([*spacing, 1])
    twin = volumes.write(tmp_path / "twin.nii", STORED, Header(sform=affine))
    np.testing.assert_array_equal(itk_files.array_of(answer), subject.foretell(twin))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def long_subject(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.threshold_network(tmp_path_factory.mktemp("long") / "threshold.onnx", 5)
    yield Subject(server, "formats-long", oracle.threshold_forward(5), (1, 2, 33000)).load(model)
    server.delete("/api/models/formats-long")


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
def test_a_long_axis_needs_the_second_version_of_nifti(name: str, long_subject: Subject, tmp_path: Path) -> None:
    stored = np.zeros((33000, 2, 1), np.uint8)
    stored[32990:] = 9
    path = itk_files.save(tmp_path / name, itk_files.image_of(stored, affine_of("RAS")))
    answer = long_subject.server.infer(path, model_name=long_subject.name)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(volumes.labels_of(answer.content), stored > 5)
    assert volumes.plain(answer.content)[:4] == b"\x1c\x02\0\0"
