"""Freezing: names that people use, and that what is frozen does not change by a bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segserve.errors import BadInputError
from segserve.training.network.build import build_network
from segserve.training.network.freeze import freeze, resolve
from segserve.training.network.groups import layer_groups, owners
from segserve.training.network.possible import outline


def state_under(network: nn.Module, paths: list[str]) -> dict[str, torch.Tensor]:
    """Copies of the weights and buffers that the modules at these paths own."""
    found = {}
    for path in paths:
        module = network.get_submodule(path)
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            found[f"{path}.{name}"] = value.detach().clone()
    return found


def train_steps(network: nn.Module, held: object, steps: int = 3) -> None:
    """Take optimiser steps as a training does, with the decay that moves weights even without a gradient."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        network.train()
        held.hold()  # type: ignore[attr-defined]
        optimiser.zero_grad()
        network(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize(
    ("encoder", "names"),
    [
        ("resnet18", ["encoder.conv1", "encoder.layer1"]),
        ("mobilenet_v2", ["encoder.features[0:5]", "decoder"]),
        pytest.param("mit_b0", ["encoder.layer_early", "encoder.layer_mid"], marks=pytest.mark.slow),
        pytest.param("tu-convnext_atto", ["encoder"], marks=pytest.mark.slow),
        pytest.param("efficientnet-b0", ["encoder._blocks[4:10]", "segmentation_head"], marks=pytest.mark.slow),
    ],
)
def test_frozen_weights_and_statistics_do_not_change_by_a_bit(encoder: str, names: list[str]) -> None:
    torch.manual_seed(1)
    network = build_network("unet", encoder, 3, 2)
    paths = resolve(network, encoder, names)
    held = freeze(network, encoder, names)
    before = state_under(network, paths)
    free = state_under(network, [path for path in owners(network) if path not in paths])
    train_steps(network, held)
    after = state_under(network, paths)
    assert before
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    moved = state_under(network, [path for path in owners(network) if path not in paths])
    unmoved = [name for name, value in free.items() if torch.equal(value, moved[name])]
    # Layers that no output depends on get no gradient, such as EfficientNet's last convolution.
    assert len(unmoved) < 0.2 * len(free), unmoved
    assert any("running_mean" in name and name not in unmoved for name in free)


def test_without_hold_the_statistics_would_change() -> None:
    network = build_network("unet", "resnet18", 3, 2)
    freeze(network, "resnet18", ["encoder"])
    before = network.state_dict()["encoder.bn1.running_mean"].clone()
    network.train()
    network(torch.randn(2, 3, 64, 64))
    assert not torch.equal(before, network.state_dict()["encoder.bn1.running_mean"])


def test_a_frozen_encoder_drops_nothing() -> None:
    torch.manual_seed(0)
    network = build_network("unet", "efficientnet-b0", 3, 2)
    held = freeze(network, "efficientnet-b0", ["encoder"])
    network.train()
    held.hold()
    images = torch.randn(2, 3, 64, 64)
    encoder = network.get_submodule("encoder")
    for first, second in zip(encoder(images), encoder(images), strict=True):
        assert torch.equal(first, second)
    assert network.get_submodule("decoder").training


@pytest.mark.parametrize(
    ("encoder", "written", "same"),
    [
        ("se_resnet50", "encoder.layer0", ["encoder.conv1"]),
        ("resnet18", "encoder.layer_early", ["encoder.conv1", "encoder.layer1"]),
        ("resnet18", "encoder.layer_mid", ["encoder.layer2"]),
        ("resnet18", "encoder.layer_late", ["encoder.layer3", "encoder.layer4"]),
        ("vgg16_bn", "encoder.features[0:14]", ["encoder.features[0:7]", "encoder.features[7:14]"]),
        ("vgg16_bn", "encoder.features[3]", ["encoder.features.3"]),
        ("mobilenet_v2", "encoder.features[:2]", ["encoder.features[0:2]"]),
        ("densenet121", "encoder.features", ["encoder"]),
        ("mit_b0", "encoder.layer_early", ["encoder.stage1"]),
    ],
)
def test_names_stand_for_the_same_layers(encoder: str, written: str, same: list[str]) -> None:
    network = outline("unet", encoder, 3, 2)
    found = resolve(network, encoder, [written])
    assert found
    assert found == resolve(network, encoder, same)


def test_a_group_takes_its_normalisation_along() -> None:
    network = outline("unet", "resnet18", 3, 2)
    assert resolve(network, "resnet18", ["encoder.conv1"]) == ["encoder.conv1", "encoder.bn1"]
    network = outline("unet", "densenet121", 3, 2)
    frozen = resolve(network, "densenet121", ["encoder.features.denseblock1"])
    assert "encoder.features.transition1.conv" in frozen


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121", "mobilenet_v2", "mit_b0", "tu-convnext_atto"])
def test_every_listed_name_resolves_to_its_modules(encoder: str) -> None:
    network = outline("unet", encoder, 3, 2)
    for group in layer_groups(network, encoder):
        assert resolve(network, encoder, [group.name]) == list(group.modules)


def test_an_empty_slice_of_the_clients_table_freezes_nothing() -> None:
    network = outline("unet", "vgg11", 3, 2)
    assert resolve(network, "vgg11", ["encoder.features[34:]"]) == []


@pytest.mark.parametrize(
    "name",
    [
        *(
            "encoder.layer5",
            "layer1",
            "",
            "encoder.layer1[9]",
            "encoder.conv1[0]",
            "encoder.layer1[]",
            "encoder.layer0",
        ),
        *("encoder.layer1[0:1:2]", "encoder.layer1[1", "nonsense[0:7]", "encoder.layer1[x]", "classification_head"),
    ],
)
def test_an_unknown_name_is_refused_with_the_valid_ones(name: str) -> None:
    network = outline("unet", "resnet18", 3, 2)
    with pytest.raises(BadInputError) as caught:
        resolve(network, "resnet18", ["encoder.conv1", name])
    assert repr(name) in caught.value.message
    for valid in ("encoder.conv1", "encoder.layer4", "decoder", "segmentation_head"):
        assert valid in caught.value.message


def test_a_network_frozen_whole_is_refused() -> None:
    network = outline("unet", "resnet18", 3, 2)
    with pytest.raises(BadInputError, match="nothing is left to train"):
        freeze(network, "resnet18", ["encoder", "decoder", "segmentation_head"])
