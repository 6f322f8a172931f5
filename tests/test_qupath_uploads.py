"""An uploaded network gives the maps that the same file gives by its path, whatever it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segserve.engines.candidates import Wish
from segserve.tiles.model import TileModel
from segserve.tiles.recipe import Recipe
from tests.serving import Served
from tests.tile_client import TileClient, picture
from tests.tile_networks import telling_network

STATS = [{"min": low, "max": 180.0, "mean": 90.0, "std": 40.0, "p1": low + 5, "p99": 170.0} for low in (0.0, 9.0, 30.0)]
TRAINED = {
    "input_config": {"num_channels": 3, "normalization": {"strategy": "z_score", "per_channel": True}},
    "architecture": {"type": "unet", "input_channels": 3, "context_scale": 1},
    "normalization_stats": STATS,
    "size_divisor": 32,
    "classes": [{"index": 0, "name": "Tumour"}],
}
WITH_CONTEXT = {"type": "unet", "input_channels": 3, "context_scale": 4}


@pytest.mark.parametrize(
    ("says", "channels"),
    [
        pytest.param({}, 3, marks=pytest.mark.slow),
        pytest.param(TRAINED, 3, marks=pytest.mark.slow),
        ({**TRAINED, "input_config": {"num_channels": 3}}, 3),
        ({"channel_config": {"normalization_strategy": "Z_SCORE"}, "normalization_stats": STATS}, 3),
        ({**TRAINED, "architecture": WITH_CONTEXT, "normalization_stats": 2 * STATS}, 6),
        pytest.param({"architecture": WITH_CONTEXT}, 6, marks=pytest.mark.slow),
        pytest.param({"architecture": {"context_scale": 4}, "input_config": None}, 6, marks=pytest.mark.slow),
        pytest.param({"architecture": "unet", "input_config": [3]}, 6, marks=pytest.mark.slow),
    ],
)
def test_the_same_maps_by_path_and_uploaded(
    server: Served, tmp_path: Path, says: dict[str, Any], channels: int
) -> None:
    file = telling_network(tmp_path / "telling", says, channels=channels)
    image = np.dstack([picture(), picture(seed=1) // 2])[..., :channels]
    for asked in ({}, {"normalization": {"strategy": "min_max"}}):
        by_path, uploaded = (maps(path, image, asked) for path in (file, upload(server, file) / file.name))
        np.testing.assert_array_equal(uploaded, by_path)


def test_the_oldest_route_too(server: Served, tmp_path: Path) -> None:
    file = telling_network(tmp_path / "telling", TRAINED)
    Image.fromarray(picture()).save(tmp_path / "tile.png")
    names = [str(file), upload(server, file).name]
    client = TileClient(server.url)
    by_path, uploaded = (
        client.post_json(f"/batch?model_path={name}", [str(tmp_path / "tile.png")]).json()["results"] for name in names
    )
    assert uploaded == by_path


def upload(server: Served, file: Path) -> Path:
    """The folder that the server keeps it in, which has its id as its name."""
    answer = server.post("/api/v1/models/upload", files={"file": (file.name, file.read_bytes())})
    assert answer.status_code == 200, answer.text
    return Path(server.state_dir / "models" / answer.json()["model_id"])


def maps(network: Path, image: NDArray[Any], asked: dict[str, Any]) -> NDArray[np.float32]:
    model = TileModel.load(network, Wish("openvino", "cpu"))
    return model.classify(image, Recipe.of({"input_config": asked}, model.metadata), "t", blocked=True)
