"""The measuring stick itself: the oracle against SimpleITK, ONNX Runtime and sums done by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK

from tests import networks, oracle, volumes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("held", volumes.ORIENTATIONS)
def test_the_fed_array_is_the_one_that_dicomorient_gives(held: str, tmp_path: Path) -> None:
    leaning = volumes.rotation((11, -7, 14)) @ volumes.affine_of(held)
    path = volumes.write(tmp_path / "v.nii", volumes.distinct((3, 4, 5)), volumes.Header(sform=leaning, qform=leaning))
    image = SimpleITK.ReadImage(str(path))
    stored = volumes.labels_of(path.read_bytes())
    assert oracle.letters_of(leaning[:3, :3]) == held
    for wanted in ("LPI", "RAS", "SPR", "AIL"):
        axes, flips = oracle.placement(held, wanted)
        turned = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, wanted))
        np.testing.assert_array_equal(np.flip(stored.transpose(axes), flips), turned)


@pytest.mark.parametrize("held", volumes.ORIENTATIONS)
def test_a_qform_is_the_rotation_that_nibabel_reads(held: str, tmp_path: Path) -> None:
    leaning = volumes.rotation((11, -7, 14)) @ volumes.affine_of(held)
    path = volumes.write(tmp_path / "v.nii", volumes.distinct((3, 4, 5)), volumes.Header(qform=leaning))
    header = volumes.header_of(path.read_bytes())
    np.testing.assert_allclose(oracle.affine_of(header) * volumes.SPACING, header.get_qform()[:3, :3], atol=1e-6)


def test_the_networks_give_the_logits_that_the_oracle_works_out(tmp_path: Path) -> None:
    pairs = [
        (networks.threshold_network(tmp_path / "t.onnx", 3), oracle.threshold_forward(3)),
        (networks.binary_network(tmp_path / "b.onnx", 3), oracle.binary_forward(3)),
        (networks.neighbour_network(tmp_path / "n.onnx"), oracle.neighbour_forward),
        (networks.neighbour_network(tmp_path / "s.onnx", spatial=(4, 1, 6), batch=1), oracle.neighbour_forward),
        (networks.place_network(tmp_path / "p.onnx", 3, (4, 1, 6)), oracle.place_forward(3, (4, 1, 6))),
        (networks.wide_network(tmp_path / "w.onnx", 300), oracle.wide_forward(300)),
    ]
    patch = volumes.distinct((4, 1, 6)).astype(np.float32)
    for model, forward in pairs:
        np.testing.assert_array_equal(oracle.onnx_forward(model)(patch), forward(patch), err_msg=model.name)


def test_labels_of_the_neighbour_network_by_hand() -> None:
    patch = np.array([[[5, 4, 9]], [[1, 7, 3]]], np.float32)
    labels = oracle.decided(oracle.neighbour_forward(patch))
    assert labels.tolist() == [[[4 + 1, 0, 4]], [[0, 1, 0]]]


def test_window_positions_by_hand() -> None:
    assert oracle.starts(10, 4, 3) == [0, 3, 6]
    assert oracle.starts(11, 4, 3) == [0, 3, 6, 7]
    assert oracle.starts(4, 4, 2) == [0]
    assert oracle.starts(3, 4, 2) == [0]
    assert oracle.starts(10, 4, 4) == [0, 4, 6]


def test_padding_and_averaging_by_hand() -> None:
    fed = np.array([1, 2, 3, 4, 5], np.float32).reshape(1, 1, 5)

    def sum_of_patch(patch: np.ndarray) -> np.ndarray:
        return np.full((1, *patch.shape), patch.sum(), np.float32)

    narrow = oracle.sliding_logits(fed, sum_of_patch, (1, 1, 3), (1, 1, 2))
    assert narrow.ravel().tolist() == [6, 6, 9, 12, 12]
    wide = oracle.sliding_logits(fed, sum_of_patch, (1, 2, 8), (1, 1, 4))
    assert wide.ravel().tolist() == [2 * (1 + 15 + 5 + 5)] * 5


def test_windowing_by_hand() -> None:
    values = np.array([-200, -60, 40, 140, 900], np.float32)
    assert oracle.windowed(values, (40, 200)).tolist() == [0, 0, 0.5, 1, 1]
    assert oracle.windowed(values, None).tolist() == values.tolist()
