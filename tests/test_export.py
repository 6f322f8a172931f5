"""Exported networks equal torch's, at sizes they were not traced at, after a real training step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from segserve.models.catalog import ARCHITECTURES
from segserve.models.catalog.architectures import Architecture, architecture
from segserve.models.names import NETWORK_FILE, WEIGHTS_FILE
from segserve.tiles.frame import crop, pad
from segserve.training.export import SAFE_FILE, write_onnx, write_weights
from segserve.training.loss import training_loss
from segserve.training.network.build import build_network
from segserve.training.network.possible import impossible

ENCODERS = ("resnet34", "efficientnet-b0", "mobilenet_v2", "mit_b2")
NEVER = {("unetplusplus", "mit_b2"), ("linknet", "mit_b2")}
PAIRS = [(entry.name, encoder) for entry in ARCHITECTURES for encoder in ENCODERS if (entry.name, encoder) not in NEVER]
SIZES = ((1, 200, 312), (1, 33, 257), (1, 512, 256), (3, 64, 96))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def trained_a_step(kind: Architecture, encoder: str) -> nn.Module:
    network = build_network(kind.name, encoder, 3, 2).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    edge = kind.size_least
    images, target = torch.rand(2, 3, edge, edge + 32), torch.randint(0, 2, (2, edge, edge + 32))
    training_loss("ce_dice", network(images), target, None).backward()
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    return network.eval()


def check_export(kind: Architecture, encoder: str, folder: Path) -> None:
    network = trained_a_step(kind, encoder)
    why_not = write_onnx(
        network, folder, channels=3, divisor=kind.size_divisor, least=kind.size_least, properties={"classes": ["a"]}
    )
    assert why_not is None
    assert [path.name for path in folder.iterdir()] == [NETWORK_FILE]
    session = ort.InferenceSession(folder / NETWORK_FILE, providers=["CPUExecutionProvider"])
    assert [port.name for port in [*session.get_inputs(), *session.get_outputs()]] == ["input", "output"]
    random = np.random.default_rng(1)
    for batch, height, width in SIZES:
        tiles = random.random((batch, height, width, 3), np.float32)
        padded = np.ascontiguousarray(pad(tiles, kind.size_divisor, kind.size_least).transpose(0, 3, 1, 2))
        found = crop(np.asarray(session.run(None, {"input": padded})[0]), height, width)
        with torch.no_grad():
            expected = crop(network(torch.from_numpy(padded)), height, width)
        assert found.shape == (batch, 2, height, width)
        gap = np.abs(torch.from_numpy(found).softmax(1).numpy() - expected.softmax(1).numpy()).max()
        assert gap < 1e-3, (height, width)


def test_a_unet_is_exported_as_one_file_that_knows_its_classes(tmp_path: Path) -> None:
    check_export(architecture("unet"), "mobilenet_v2", tmp_path)
    model = onnx.load(tmp_path / NETWORK_FILE, load_external_data=False)
    onnx.checker.check_model(model)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["classes"]) == ["a"]
    assert model.opset_import[0].version >= 18


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "encoder"), PAIRS)
def test_every_pair_that_can_be_built_is_exported(kind: str, encoder: str, tmp_path: Path) -> None:
    check_export(architecture(kind), encoder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "encoder"), sorted(NEVER))
def test_the_other_pairs_cannot_be_built(kind: str, encoder: str) -> None:
    with pytest.raises(Exception, match=encoder):
        impossible(kind, encoder, 3, 2)


class Liar(nn.Module):
    """Adds its input's height, but bakes it into the exported graph as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        exporting = torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
        scores: torch.Tensor = self.layer(images)
        return scores * (1.0 if exporting else float(images.shape[2]))


def test_an_export_that_is_wrong_at_other_sizes_is_not_kept(tmp_path: Path) -> None:
    reason = write_onnx(Liar(), tmp_path, channels=3, divisor=32, least=32, properties={})
    assert reason is not None
    assert "differ from torch's by" in reason
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_is_told_without_details_of_the_server(tmp_path: Path) -> None:
    class Unexportable(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
                raise RuntimeError(f"cannot write {tmp_path}")
            return images

    reason = write_onnx(Unexportable(), tmp_path, channels=3, divisor=32, least=32, properties={})
    assert reason is not None
    assert reason.startswith("the exporter failed")
    assert str(tmp_path) not in reason
    assert not list(tmp_path.iterdir())


def test_weights_are_written_twice_under_the_librarys_names(tmp_path: Path) -> None:
    network = build_network("unet", "mobilenet_v2", 3, 2)
    write_weights(network, tmp_path)
    plain = torch.load(tmp_path / WEIGHTS_FILE, weights_only=True)
    safe = load_file(tmp_path / SAFE_FILE)
    assert plain.keys() == safe.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(plain[name], tensor)
        assert torch.equal(safe[name], tensor)
