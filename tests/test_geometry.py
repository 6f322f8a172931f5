"""Labels lie where the contract puts them: no voxel differs from the oracle, whatever the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import networks, oracle, volumes
from tests.oracle import Subject
from tests.volumes import Header, affine_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving import Served

PATCH = (5, 6, 4)
SHAPE = (9, 13, 7)

Loader = Callable[..., Subject]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("geometry")


@pytest.fixture(scope="module")
def threshold(server: Served, folder: Path) -> Iterator[Subject]:
    model = networks.threshold_network(folder / "threshold.onnx", 17)
    yield Subject(server, "geometry-threshold", oracle.threshold_forward(17), PATCH).load(model)
    server.delete("/api/models/geometry-threshold")


@pytest.fixture(scope="module")
def neighbour_model(folder: Path) -> Path:
    return networks.neighbour_network(folder / "neighbour.onnx")


@pytest.fixture(scope="module")
def neighbour(server: Served, neighbour_model: Path) -> Iterator[Subject]:
    yield Subject(server, "geometry-lpi", oracle.neighbour_forward, PATCH).load(neighbour_model)
    server.delete("/api/models/geometry-lpi")


@pytest.fixture(scope="module")
def place(server: Served, folder: Path) -> Iterator[Subject]:
    model = networks.place_network(folder / "place.onnx", 17, PATCH)
    yield Subject(server, "geometry-place", oracle.place_forward(17, PATCH), PATCH).load(model)
    server.delete("/api/models/geometry-place")


@pytest.fixture(scope="module")
def native(server: Served, neighbour_model: Path) -> Iterator[Subject]:
    subject = Subject(server, "geometry-native", oracle.neighbour_forward, PATCH, orientation="native")
    yield subject.load(neighbour_model)
    server.delete("/api/models/geometry-native")


@pytest.fixture(scope="module")
def reloaded(server: Served, neighbour_model: Path) -> Iterator[Callable[..., Subject]]:
    """Load the neighbour network under one name again and again, each time in another way."""

    def reload(*how: object) -> Subject:
        subject = Subject(server, "geometry-any", oracle.neighbour_forward, *how)  # type: ignore[arg-type]
        return subject.load(neighbour_model)

    yield reload
    server.delete("/api/models/geometry-any")


@pytest.fixture
def loaded(server: Served) -> Iterator[Loader]:
    """Load a neighbour network for one test: `loaded(model, patch=..., ..., body=...)`."""
    names: list[str] = []

    def load(model: Path, body: dict[str, object] | None = None, **known: object) -> Subject:
        names.append(f"geometry-{model.stem}-{len(names)}")
        subject = Subject(server, names[-1], **{"forward": oracle.neighbour_forward, "patch": PATCH, **known})  # type: ignore[arg-type]
        return subject.load(model, **(body or {}))

    yield load
    for name in names:
        server.delete(f"/api/models/{name}")


@pytest.mark.parametrize("held", volumes.ORIENTATIONS)
def test_every_orientation_is_fed_as_lpi_and_answered_on_its_own_grid(
    held: str, threshold: Subject, neighbour: Subject, native: Subject, tmp_path: Path
) -> None:
    path = volumes.write(tmp_path / f"{held}.nii", volumes.distinct(SHAPE), Header(sform=affine_of(held)))
    threshold.check(path)
    labels = neighbour.check(path)
    assert (native.check(path) == labels).all() == (held == "LPI")


@pytest.mark.parametrize("held", ["RAS", "LPS", "SAL", "AIR", "PSL", "IRP"])
@pytest.mark.parametrize("degrees", [(11, -7, 14), (-25, 20, 18)])
def test_an_oblique_grid_is_read_by_its_nearest_axes(
    held: str, degrees: tuple[int, int, int], neighbour: Subject, tmp_path: Path
) -> None:
    affine = volumes.rotation(degrees) @ affine_of(held)
    path = volumes.write(tmp_path / "oblique.nii.gz", volumes.distinct(SHAPE), Header(sform=affine, qform=affine))
    neighbour.check(path)


@pytest.mark.parametrize("held", ["RAS", "ILA", "PSR"])
def test_a_sheared_grid_is_read_by_its_nearest_axes(held: str, neighbour: Subject, tmp_path: Path) -> None:
    affine = volumes.shear(0.3) @ affine_of(held)
    path = volumes.write(tmp_path / "sheared.nii", volumes.distinct(SHAPE), Header(sform=affine))
    neighbour.check(path)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(Header(sform=affine_of("RAS"), qform=affine_of("PIL")), id="sform before qform"),
        pytest.param(Header(sform=affine_of("RAS"), qform=affine_of("PIL"), sform_code=0), id="sform of code 0"),
        pytest.param(Header(qform=affine_of("SLA")), id="qform alone, right-handed"),
        pytest.param(Header(qform=affine_of("SRA")), id="qform alone, left-handed"),
        pytest.param(Header(sform=affine_of("ALS"), sform_code=4, qform_code=0), id="sform alone"),
        pytest.param(Header(sform=affine_of("RAS"), qform=affine_of("PIL"), sform_code=0, qform_code=0), id="both 0"),
        pytest.param(Header(), id="no transform at all"),
        pytest.param(Header(qform=affine_of("SLA"), fields={"pixdim": [0, *volumes.SPACING, 1, 1, 1, 1]}), id="qfac 0"),
    ],
)
def test_the_transform_in_force_decides(header: Header, neighbour: Subject, tmp_path: Path) -> None:
    neighbour.check(volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), header))


@pytest.mark.parametrize(
    "shape",
    [(3, 4, 2), (1, 1, 1), (2, 20, 9), (20, 3, 9), (12, 11, 1), (1, 12, 11), (12, 1, 11), (9, 13), (9, 13, 7, 1)],
    ids=str,
)
@pytest.mark.parametrize("held", ["LPI", "SAR"])
def test_small_flat_and_one_time_point_volumes(
    shape: tuple[int, ...], held: str, place: Subject, neighbour: Subject, tmp_path: Path
) -> None:
    path = volumes.write(tmp_path / "v.nii.gz", volumes.distinct(shape), Header(sform=affine_of(held)))
    place.check(path)
    neighbour.check(path)


@pytest.mark.parametrize("wanted", ["RAS", "SPL"])
def test_the_load_body_may_name_another_orientation(
    wanted: str, neighbour: Subject, neighbour_model: Path, loaded: Loader, tmp_path: Path
) -> None:
    other = loaded(neighbour_model, orientation=wanted)
    for held in ("LPI", "RAS", "PSR"):
        path = volumes.write(tmp_path / f"{held}.nii", volumes.distinct(SHAPE), Header(sform=affine_of(held)))
        assert (other.check(path) != neighbour.check(path)).any()


def test_the_networks_metadata_may_name_another_orientation_but_the_load_body_wins(
    neighbour: Subject, loaded: Loader, tmp_path: Path
) -> None:
    model = networks.neighbour_network(tmp_path / "own.onnx", metadata={"orientation": "PIR"})
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), Header(sform=affine_of("ASL")))
    said = loaded(model, {"orientation": None}, orientation="PIR")
    assert (said.check(path) != neighbour.check(path)).any()
    loaded(model, orientation="SLA").check(path)


@pytest.mark.parametrize("wanted", ["XYZ", "LRI", "LP"])
def test_letters_that_name_no_orientation_are_refused(wanted: str, server: Served, neighbour_model: Path) -> None:
    body = {"name": "geometry-bad", "backend_type": "onnx", "model_path": str(neighbour_model), "orientation": wanted}
    answer = server.post("/api/models", json={**body, "inference_config": {"patch_size": list(PATCH)}})
    assert answer.status_code == 400, answer.text
    assert "orientation" in answer.json()["error"].lower()


@pytest.mark.parametrize(
    ("patch", "stride"),
    [((5, 6, 4), (1, 2, 3)), ((5, 6, 4), (5, 6, 4)), ((8, 3, 16), (3, 3, 5))],
)
def test_strides_that_overlap_and_that_do_not(
    patch: tuple[int, ...], stride: tuple[int, ...], loaded: Loader, tmp_path: Path
) -> None:
    model = networks.place_network(tmp_path / "place.onnx", 17, patch)
    subject = loaded(model, forward=oracle.place_forward(17, patch), patch=patch, stride=stride)
    for held, shape in (("LPI", SHAPE), ("RSA", (6, 5, 17)), ("PIL", (2, 18, 10))):
        path = volumes.write(tmp_path / "v.nii", volumes.distinct(shape), Header(sform=affine_of(held)))
        subject.check(path)


@pytest.mark.parametrize("batch", [1, 4])
def test_static_axes_and_batches_change_nothing(batch: int, loaded: Loader, tmp_path: Path) -> None:
    model = networks.neighbour_network(tmp_path / f"static{batch}.onnx", spatial=PATCH, batch=batch)
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), Header(sform=affine_of("RIP")))
    loaded(model).check(path)


def test_several_windows_at_once_change_nothing(server: Served, neighbour_model: Path, tmp_path: Path) -> None:
    config = {"patch_size": list(PATCH), "forward_batch_windows": 3, "argmax_batchsize": 2}
    server.load("geometry-batched", neighbour_model, inference_config=config)
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), Header(sform=affine_of("RIP")))
    Subject(server, "geometry-batched", oracle.neighbour_forward, PATCH).check(path)
    server.delete("/api/models/geometry-batched")


def test_a_random_network_agrees_with_onnx_runtime(server: Served, loaded: Loader, tmp_path: Path) -> None:
    model = networks.conv_network(tmp_path / "conv.onnx", classes=5, seed=3)
    forward = oracle.onnx_forward(model)
    subject = loaded(model, forward=forward, patch=(12, 16, 20))
    voxels = np.random.default_rng(7).normal(0, 1, (30, 26, 37)).astype(np.float32)
    path = volumes.write(tmp_path / "v.nii", voxels, Header(sform=affine_of("RAS")))
    clear = oracle.segment(path, forward, subject.patch, decide=oracle.margin) > 1e-4
    assert np.count_nonzero(~clear) < 0.001 * clear.size
    given, expected = subject.ask(path), subject.foretell(path)
    assert np.count_nonzero((given != expected) & clear) == 0
    assert len(np.unique(expected)) == 5


Sizes = st.tuples(*[st.integers(1, 10)] * 3)
Sides = st.integers(1, 8).flatmap(lambda side: st.tuples(st.just(side), st.integers(1, side)))
_numbers = count()


@settings(max_examples=5, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sides=st.tuples(Sides, Sides, Sides),
    wanted=st.sampled_from([*volumes.ORIENTATIONS, "native"]),
    cases=st.lists(st.tuples(Sizes, st.sampled_from(volumes.ORIENTATIONS)), min_size=3, max_size=6),
)
def test_any_small_grid_patch_stride_and_orientation(
    reloaded: Loader,
    folder: Path,
    sides: tuple[tuple[int, int], ...],
    wanted: str,
    cases: list[tuple[tuple[int, ...], str]],
) -> None:
    patch, stride = zip(*sides, strict=True)
    subject = reloaded(patch, stride, wanted)
    for shape, held in cases:
        path = folder / f"{held}-{shape}-{next(_numbers)}.nii"
        subject.check(volumes.write(path, volumes.distinct(shape), Header(sform=affine_of(held))))
