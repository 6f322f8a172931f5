"""What happens to intensities before the network, and to class counts after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from tests import networks, oracle, volumes
from tests.oracle import Subject
from tests.volumes import Header, affine_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving import Served

PATCH = (5, 6, 4)
SHAPE = (9, 13, 7)
RSA = Header(sform=affine_of("RSA"))

Loader = Callable[..., Subject]


@pytest.fixture
def loaded(server: Served) -> Iterator[Loader]:
    """Load a network for one test: `loaded(model, forward, **body)`."""
    names: list[str] = []

    def load(model: Path, forward: oracle.Forward, **body: object) -> Subject:
        names.append(f"windowing-{model.stem}-{len(names)}")
        return Subject(server, names[-1], forward, PATCH).load(model, **body)

    yield load
    for name in names:
        server.delete(f"/api/models/{name}")


@pytest.fixture(scope="module")
def half(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A network that knows no window and says 1 above 0.5: the upper half of any window."""
    model = networks.threshold_network(tmp_path_factory.mktemp("half") / "half.onnx", 0.5)
    yield Subject(server, "windowing-half", oracle.threshold_forward(0.5), PATCH).load(model)
    server.delete("/api/models/windowing-half")


@pytest.fixture(scope="module")
def neighbour(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    model = networks.neighbour_network(tmp_path_factory.mktemp("next") / "neighbour.onnx")
    yield Subject(server, "windowing-next", oracle.neighbour_forward, PATCH).load(model)
    server.delete("/api/models/windowing-next")


@pytest.mark.parametrize("window", [(0, 64), (40, 350), (-300, 1500), (12.5, 0.5), (1e-3, 3e4)], ids=str)
def test_the_forms_window_is_applied_in_float32(
    window: tuple[float, float], half: Subject, neighbour: Subject, tmp_path: Path
) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), RSA)
    named = {"window_level": str(float(window[0])), "window_width": str(float(window[1]))}
    assert 0 < half.check(path, window, **named).mean() < 1
    neighbour.check(path, window, **named)


def test_without_a_window_intensities_go_in_as_they_are(half: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), RSA)
    half.check(path)
    half.check(path, window_level="", window_width="")


def test_a_windowed_value_is_the_printed_formula_to_the_last_bit(loaded: Loader, tmp_path: Path) -> None:
    # Level 40, width 350: the quotient of these differs from a product with the reciprocal in the last bit.
    values = np.arange(-135, 216, dtype=np.float32)
    quotients = oracle.windowed(values, (40, 350))
    products = (values + 135) * (np.float32(1) / np.float32(350))
    tells = np.minimum(quotients, products)[quotients != products]
    assert len(tells) > 20
    path = volumes.write(tmp_path / "v.nii", values.reshape(13, 27, 1), RSA)
    limit = float(tells[-1])
    model = networks.threshold_network(tmp_path / "exact.onnx", limit)
    subject = loaded(model, oracle.threshold_forward(limit))
    subject.check(path, (40, 350), window_level="40", window_width="350")


OWN = {"window_level": "0", "window_width": "20.5"}


@pytest.mark.parametrize(
    ("metadata", "body", "forms"),
    [
        (OWN, {}, [("", "", (0, 20.5)), ("30", "", (30, 20.5)), ("", "64", (0, 64))]),
        (OWN, {"window_level": 12, "window_width": None}, [("", "", (12, 20.5)), ("0", "", (0, 20.5))]),
        ({}, {"window_level": 0, "window_width": 8}, [("", "", (0, 8)), ("-50", "64", (-50, 64)), ("", "64", (0, 64))]),
        ({}, {"window_width": 8.5}, [("0.0", "", (0, 8.5)), ("-50", "1e2", (-50, 100))]),
    ],
)
def test_form_before_load_body_before_metadata_value_by_value(
    metadata: dict[str, str],
    body: dict[str, float | None],
    forms: list[tuple[str, str, tuple[float, float]]],
    loaded: Loader,
    tmp_path: Path,
) -> None:
    model = networks.threshold_network(tmp_path / "half.onnx", 0.5, metadata=metadata)
    subject = loaded(model, oracle.threshold_forward(0.5), **body)
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), RSA)
    for level, width, expected in forms:
        subject.check(path, expected, window_level=level, window_width=width)


@pytest.mark.parametrize(
    "form",
    [
        {"window_level": "40"},
        {"window_width": "350"},
        {"window_level": "40", "window_width": "0"},
        {"window_level": "40", "window_width": "-350"},
        {"window_level": "nan", "window_width": "350"},
        {"window_level": "40", "window_width": "nan"},
        {"window_level": "inf", "window_width": "350"},
    ],
    ids=str,
)
def test_a_window_that_is_none_is_refused(form: dict[str, str], half: Subject, tmp_path: Path) -> None:
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), RSA)
    answer = half.server.infer(path, model_name=half.name, **form)
    assert answer.status_code == 400, answer.text
    assert "window" in answer.json()["error"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_count_as_the_lowest_finite_value(
    value: float, neighbour: Subject, half: Subject, tmp_path: Path
) -> None:
    voxels = volumes.distinct(SHAPE, np.float32)
    clean = volumes.write(tmp_path / "clean.nii", voxels, RSA)
    voxels[2:4, 5, 1:3] = value
    path = volumes.write(tmp_path / "gaps.nii", voxels, RSA)
    neighbour.check(path)
    half.check(path, (10, 64), window_level="10", window_width="64")
    warned = neighbour.server.infer(path, model_name=neighbour.name).headers["X-Segserve-Warnings"]
    unwarned = neighbour.server.infer(clean, model_name=neighbour.name).headers.get("X-Segserve-Warnings", "")
    assert warned
    assert warned != unwarned


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_every_number_type_in_both_byte_orders(
    dtype: str, endian: Literal["<", ">"], neighbour: Subject, half: Subject, tmp_path: Path
) -> None:
    voxels = volumes.distinct((5, 6, 8), dtype)
    path = volumes.write(tmp_path / "v.nii.gz", voxels, Header(sform=affine_of("RSA"), endian=endian))
    neighbour.check(path)
    half.check(path)


@pytest.mark.parametrize("scaling", [(0.25, -8), (2, 0), (-1, 3), (1, 0.5), (0, 5), (np.nan, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_slope_and_intercept_are_applied(
    scaling: tuple[float, float], dtype: str, neighbour: Subject, half: Subject, tmp_path: Path
) -> None:
    header = Header(sform=affine_of("RSA"), slope=scaling[0], inter=scaling[1])
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE, dtype), header)
    neighbour.check(path)
    half.check(path)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_channel_is_foreground_strictly_above_one_half(sigmoid: bool, loaded: Loader, tmp_path: Path) -> None:
    metadata = {"activation": "none"} if sigmoid else {}
    model = networks.binary_network(tmp_path / "binary.onnx", 17, sigmoid=sigmoid, metadata=metadata)
    voxels = (volumes.distinct(SHAPE) % 40).astype(np.int16)
    labels = loaded(model, oracle.binary_forward(17)).check(volumes.write(tmp_path / "v.nii", voxels, RSA))
    assert labels.dtype == np.uint8
    assert set(voxels[labels == 1]) == set(range(18, 40))


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (300, np.uint16)])
def test_more_than_256_classes_take_sixteen_bits(classes: int, dtype: type, loaded: Loader, tmp_path: Path) -> None:
    model = networks.wide_network(tmp_path / "wide.onnx", classes)
    path = volumes.write(tmp_path / "v.nii", volumes.distinct(SHAPE), RSA)
    labels = loaded(model, oracle.wide_forward(classes)).check(path)
    assert labels.dtype == dtype
    assert labels.max() == classes - 1
