"""Maps of every architecture over HTTP against ONNX Runtime on tiles normalised and padded here."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segserve.models.catalog.architectures import architecture
from segserve.training.export import write_onnx
from segserve.training.network.build import build_network
from tests.serving import Served
from tests.tile_client import TileClient, json_request, metadata_of, png_url, read_map

Values = NDArray[np.float64]
CLASSES = 3
NAMES = ("unet", "unetplusplus", "fpn", "deeplabv3plus", "linknet", "manet", "pspnet", "pan")
SIZES = ((256, 256), (512, 512), (100, 90), (33, 257))
STRATEGIES = ("min_max", "percentile_99", "z_score", "fixed_range")
TOLERANCE = {"onnxruntime": 1e-4, "openvino": 1e-3}


def made(name: str, folder: Path) -> Path:
    """A random network of an architecture, exported as trainings are; its batch norms have seen something."""
    torch.manual_seed(0)
    kind = architecture(name)
    network = build_network(name, "mobilenet_v2", 3, CLASSES).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 128, 128))
    folder.mkdir()
    why_not = write_onnx(
        network.eval(),
        folder,
        channels=3,
        divisor=kind.size_divisor,
        least=kind.size_least,
        properties={"size_divisor": kind.size_divisor, "size_least": kind.size_least},
    )
    assert why_not is None
    # As QuPath leaves it when it copies a classifier: whole numbers as floats, and nothing that it does not know.
    (folder / "metadata.json").write_text(json.dumps({"id": name, "input_config": {"num_channels": 3.0}}))
    return folder


def normalised(tile: NDArray[Any], strategy: str) -> Values:
    """Each channel by its own figures."""
    values = tile.astype(np.float64)
    if strategy == "fixed_range":
        return np.asarray(np.clip(values, 0, 255) / 255)
    low, high = values.min((0, 1)), values.max((0, 1))
    if strategy == "percentile_99":
        low, high = np.percentile(values, [1, 99], axis=(0, 1))
    if strategy == "z_score":
        mean, deviation = values.mean((0, 1)), values.std((0, 1))
        return np.asarray((np.clip((values - mean) / deviation, -5, 5) + 5) / 10)
    return np.asarray((np.clip(values, low, high) - low) / (high - low))


def padded(values: Values, reflection: int, divisor: int, least: int) -> tuple[Values, int]:
    """Reflected all around, then on the right and at the bottom up to what the network takes."""
    around = min(reflection, min(values.shape[:2]) // 2)
    values = np.pad(values, ((around, around), (around, around), (0, 0)), mode="reflect")
    for axis in (0, 1):
        length = values.shape[axis]
        missing = -(-max(length, least) // divisor) * divisor - length
        width = [(0, 0)] * 3
        width[axis] = (0, missing)
        values = np.pad(values, width, mode="reflect" if missing < length else "edge")
    return values, around


class Oracle:
    """The network run directly."""

    def __init__(self, folder: Path, name: str) -> None:
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self._kind = architecture(name)

    def maps(self, tile: NDArray[Any], strategy: str, reflection: int) -> Values:
        values, around = padded(normalised(tile, strategy), reflection, self._kind.size_divisor, self._kind.size_least)
        fed = np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)
        logits = np.asarray(self._session.run(None, {"input": fed})[0][0], np.float64)
        height, width = tile.shape[:2]
        logits = logits[:, around : around + height, around : around + width]
        powers = np.exp(logits - logits.max(0))
        return np.asarray(powers / powers.sum(0))


@pytest.fixture(
    scope="module", params=[name if name == "unet" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    folder = made(request.param, tmp_path_factory.mktemp("architectures") / request.param)
    return folder, Oracle(folder, request.param)


def tile_of(height: int, width: int, dtype: str) -> NDArray[Any]:
    """Blotches of colour, as tissue has, and noise."""
    random = np.random.default_rng(height * width)
    coarse = random.integers(20, 230, (-(-height // 16), -(-width // 16), 3))
    tile = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width] + random.normal(0, 8, (height, width, 3))
    whole = np.clip(tile, 0, 255).astype(np.uint8)
    return whole if dtype == "uint8" else whole.astype(np.float32)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", TOLERANCE)
def test_maps_are_those_of_onnx_runtime(
    server: Served, model: tuple[Path, Oracle], engine: str, tmp_path: Path
) -> None:
    folder, oracle = model
    client = TileClient(server.url)
    cases = [
        *product(SIZES, ("percentile_99",), ("uint8",), (0,)),
        *product(SIZES[2:], STRATEGIES, ("uint8", "float32"), (32,)),
    ]
    for (height, width), strategy, dtype, reflection in cases:
        tile = tile_of(height, width, dtype)
        expected = oracle.maps(tile, strategy, reflection)
        normalization = {"strategy": strategy, "per_channel": True, "clip_percentile": 99.0}
        changes = {
            "input_config": {"num_channels": 3, "selected_channels": [0, 1, 2], "normalization": normalization},
            "options": {"use_gpu": True, "reflection_padding": reflection, "engine": engine},
            "output_dir": str(tmp_path / "maps"),
        }
        answer = client.run_pixel_inference_binary(metadata_of(folder, ["0_0"], tile[None], **changes), tile[None])
        assert answer is not None
        paths, classes = answer
        assert classes == CLASSES
        answers = [read_map(paths["0_0"], classes, height, width)]
        if dtype == "uint8":
            paths, _ = client.run_pixel_inference(json_request(folder, {"0_0": png_url(tile)}, **changes))
            answers.append(read_map(paths["0_0"], classes, height, width))
        for found in answers:
            assert np.abs(found - expected).max() < TOLERANCE[engine], (height, width, strategy, dtype, reflection)
            np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_a_map_does_not_depend_on_its_company(server: Served, model: tuple[Path, Oracle], tmp_path: Path) -> None:
    folder, _ = model
    client = TileClient(server.url)
    sizes = ((96, 96), (100, 90), (33, 257), (96, 96), (40, 40))
    tiles: dict[str, str] = {}
    for index, (height, width) in enumerate(sizes):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.roll(tile_of(height, width, "uint8"), index, axis=0)).save(path)
        tiles[str(index)] = str(path)

    def ask(names: list[str], into: str) -> dict[str, NDArray[np.float32]]:
        options = {"use_gpu": True, "reflection_padding": 0, "engine": "openvino"}
        chosen = {name: tiles[name] for name in names}
        paths, classes = client.run_pixel_inference(
            json_request(folder, chosen, options=options, output_dir=str(tmp_path / into))
        )
        return {name: read_map(paths[name], classes, *sizes[int(name)]) for name in names}

    together = ask(list(tiles), "together")
    for name in tiles:
        np.testing.assert_allclose(ask([name], "alone")[name], together[name], atol=1e-5)
