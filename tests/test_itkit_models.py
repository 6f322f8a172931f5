"""ITKIT models over HTTP: loaded as their users load them, labels as from the published servers' sliding window."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests import itkit_models, volumes
from tests.itkit_models import PATCH, Sample
from tests.oracle import Array, decided, margin, segment
from tests.serving import Served
from tests.small_networks import assert_labels, error_of, save_volume, threshold_network

pytest.importorskip("mmengine")
pytest.importorskip("itkit")
pytestmark = pytest.mark.filterwarnings("ignore")

STRIDE = PATCH // 2
WINDOW = (50.0, 500.0)
LOAD_SECONDS = 120  # the client's patience
POINTWISE = {"in_channels": 1, "out_channels": 3, "kernel_size": 1}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.nii.gz"
    voxels = np.random.default_rng(0).integers(-300, 400, (40, 34, 37)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, volumes.affine_of("PIL")), path)
    return path


@pytest.fixture
def shared(server: Served) -> Iterator[Served]:
    yield server
    for name in server.get("/api/info").json()["models"]:
        server.delete(f"/api/models/{name}")


def body(sample: Sample) -> dict[str, Any]:
    """As the notes of the published servers' users have it."""
    return {
        "backend_type": "mmengine",
        "config_path": str(sample.config),
        "model_path": str(sample.checkpoint),
        "inference_config": {"patch_size": [PATCH] * 3, "patch_stride": [STRIDE] * 3},
    }


def assert_segments_like_upstream(served: Served, sample: Sample, image: Path, **fields: str) -> None:
    network = sample.network()

    def forward(patch: Array) -> Array:
        with torch.no_grad():
            answer = network(torch.from_numpy(np.ascontiguousarray(patch))[None, None])
        return np.asarray((answer[0] if isinstance(answer, list) else answer)[0])

    def foretold(decide: Callable[[Array], Array]) -> Array:
        return segment(image, forward, [PATCH] * 3, stride=[STRIDE] * 3, window=WINDOW, decide=decide)

    answer = served.infer(image, **fields)
    assert answer.status_code == 200, answer.text
    given, expected = volumes.labels_of(answer.content), foretold(decided)
    assert len(np.unique(expected)) > 1
    clear = foretold(margin) > 1e-3
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(given[clear], expected[clear])


def assert_serves(served: Served, sample: Sample, image: Path) -> None:
    name = sample.config.stem
    answer = served.post("/api/models", json={"name": name, **body(sample)}, timeout=LOAD_SECONDS)
    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    assert model["loaded"]
    assert model["num_classes"] == itkit_models.CLASSES
    assert (model["window_level"], model["window_width"]) == WINDOW
    assert_segments_like_upstream(served, sample, image, model_name=name)


def test_segformer_by_name(shared: Served, tmp_path: Path, image: Path) -> None:
    assert_serves(shared, itkit_models.segformer(tmp_path / "own"), image)


@pytest.mark.slow
def test_segformer_as_the_one_model(shared: Served, tmp_path: Path, image: Path) -> None:
    sample = itkit_models.segformer(tmp_path / "own")
    answer = shared.post("/api/model", json=body(sample), timeout=LOAD_SECONDS)
    assert answer.status_code == 200, answer.text
    assert shared.get("/api/info").json()["model"]["name"] == sample.checkpoint.stem
    assert_segments_like_upstream(shared, sample, image)


@pytest.mark.slow
@pytest.mark.parametrize("make", [itkit_models.mednext, itkit_models.unetr])
def test_mednext_and_unetr(shared: Served, tmp_path: Path, image: Path, make: Callable[[Path], Sample]) -> None:
    assert_serves(shared, make(tmp_path / "own"), image)


class Harm:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def test_what_is_refused_is_not_run_and_leaves_what_was_loaded(shared: Served, tmp_path: Path) -> None:
    voxels = save_volume(tmp_path / "scan.nii.gz")
    shared.load("before", threshold_network(tmp_path / "before.onnx", 100.0))
    canary = tmp_path / "canary"
    sample = itkit_models.textual(tmp_path / "own", "torch.nn", "Conv3d", POINTWISE)

    def refused(status: int) -> str:
        sent = {"name": "before", **body(sample)}
        sentence = error_of(shared.post("/api/models", json=sent, timeout=LOAD_SECONDS), status)
        assert not canary.exists()
        assert_labels(shared.infer(tmp_path / "scan.nii.gz", model_name="before"), voxels > 100)
        return sentence

    torch.save({"state_dict": {"backbone.weight": torch.ones(3, 2, 1, 1, 1)}, "hook": Harm(canary)}, sample.checkpoint)
    sentence = refused(400)
    assert "bias" in sentence
    assert "3 x 2 x 1 x 1 x 1 instead of 3 x 1 x 1 x 1 x 1" in sentence

    sample.checkpoint.write_bytes(pickle.dumps(Harm(canary)))
    assert "cannot be read" in refused(400)

    sample.config.write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    sample.config.chmod(0o666)
    sentence = refused(403)
    assert "may be changed by every user" in sentence
    assert "--trust" in sentence


def test_a_checkpoint_that_fits_in_part_is_loaded_if_asked_and_its_harm_is_not(shared: Served, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    sample = itkit_models.textual(tmp_path / "own", "torch.nn", "Conv3d", POINTWISE)
    torch.save({"state_dict": {"backbone.weight": torch.ones(3, 1, 1, 1, 1)}, "hook": Harm(canary)}, sample.checkpoint)
    sent = {"name": "part", **body(sample), "strict": False}
    answer = shared.post("/api/models", json=sent, timeout=LOAD_SECONDS)
    assert answer.status_code == 200, answer.text
    assert any("loaded in part" in warning and "bias" in warning for warning in answer.json()["model"]["warnings"])
    assert not canary.exists()
