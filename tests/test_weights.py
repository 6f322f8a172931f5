"""Pretrained weights: found, checked, loaded whole or not at all; and what is said when there are none."""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segserve.errors import BadInputError
from segserve.models.catalog import ARCHITECTURES
from segserve.training.network import inspect
from segserve.training.network.build import build_encoder, build_network, without_memory
from segserve.training.network.loading import check, load
from segserve.training.network.possible import outline
from segserve.training.network.weights import WeightsSource, fetch, locate
from tests.thinned import thinned

State = dict[str, torch.Tensor]


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Let the client take this machine for the hub."""
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty cache, and a hub whose port nobody listens on."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    use_hub(monkeypatch, 9)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def encoder_state(encoder: str, seed: int = 0) -> State:
    """The state of an encoder of colour images, statistics included, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    with without_memory():
        state = build_encoder(encoder).state_dict()
    return {
        name: torch.rand(v.shape, generator=generator) if v.is_floating_point() else torch.tensor(3)
        for name, v in state.items()
    }


def loaded(architecture: str, encoder: str, channels: int, path: Path) -> nn.Module:
    """A network with the weights of a file, in its encoder."""
    with without_memory():
        network = build_network(architecture, encoder, channels, 2)
    check(network, encoder, channels, path)
    network.to_empty(device="cpu")
    load(network, encoder, channels, path)
    return network.get_submodule("encoder")


@pytest.mark.parametrize(
    ("encoder", "suffix"),
    thinned(["resnet18", "mobilenet_v2", "mit_b0", "resnet50_lunit-swav"], [".safetensors", ".pth"], every=3),
)
def test_a_file_in_the_weights_folder_is_found_and_loaded(tmp_path: Path, encoder: str, suffix: str) -> None:
    state = encoder_state(encoder)
    path = tmp_path / f"{encoder}{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    source = locate(encoder, tmp_path, ask_hub=False)
    assert (source.kind, source.path, fetch(source)) == ("file", path, path)
    assert WeightsSource.from_wire(source.to_wire()) == source
    for name, value in loaded("unet", encoder, 3, path).state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("architecture", thinned([entry.name for entry in ARCHITECTURES], every=4))
def test_weights_load_under_every_architecture(tmp_path: Path, architecture: str) -> None:
    state = encoder_state("resnet18")
    save_file(state, tmp_path / "resnet18.safetensors")
    encoder = loaded(architecture, "resnet18", 3, tmp_path / "resnet18.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("encoder", "channels"), thinned(["resnet18", "efficientnet-b0", "mobileone_s0"], [1, 3, 5], every=4)
)
def test_other_channels_are_adapted_as_the_library_does(tmp_path: Path, encoder: str, channels: int) -> None:
    path = tmp_path / "weights.safetensors"
    state = encoder_state(encoder)
    save_file(state, path)
    oracle: Any = build_encoder(encoder)
    oracle.load_state_dict(dict(state))
    oracle.set_in_channels(channels, pretrained=True)
    got = loaded("unet", encoder, channels, path).state_dict()
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(got[name], value, msg=name)


@pytest.mark.parametrize(
    ("name", "channels"), thinned(["resnet18d", "convnext_atto", "mobilenetv3_small_050"], [1, 3, 4], every=4)
)
def test_timms_own_files_load_as_timm_loads_them(tmp_path: Path, name: str, channels: int) -> None:
    """The file is of timm's classifier, head included; the oracle is timm's feature extractor given the same file."""
    torch.manual_seed(0)
    whole = timm.create_model(name)
    state = {key: torch.rand_like(v) if v.is_floating_point() else v for key, v in whole.state_dict().items()}
    path = tmp_path / f"tu-{name}.safetensors"
    save_file(state, path)
    oracle = timm.create_model(
        name, features_only=True, in_chans=channels, pretrained=True, pretrained_cfg_overlay={"state_dict": state}
    )
    got = loaded("unet", f"tu-{name}", channels, path).state_dict()
    for key, value in oracle.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(got[f"model.{key}"], value, msg=key)


@pytest.mark.parametrize("prefix", thinned(["encoder.", "backbone.", "module.", "model.", "module.encoder."], every=4))
def test_prefixes_classifiers_and_wrappers_do_not_matter(tmp_path: Path, prefix: str) -> None:
    state = encoder_state("resnet18")
    content = {prefix + name: value for name, value in state.items() if "num_batches_tracked" not in name}
    content |= {f"{prefix}fc.weight": torch.zeros(1000, 512), "decoder.conv1.weight": torch.zeros(3)}
    torch.save({"state_dict": content, "epoch": 7}, tmp_path / "resnet18.pth")
    got = loaded("unet", "resnet18", 3, tmp_path / "resnet18.pth").state_dict()
    for name, value in state.items():
        assert "num_batches_tracked" in name or torch.equal(got[name], value)


def test_torchvisions_oldest_densenet_names_load(tmp_path: Path) -> None:
    state = encoder_state("densenet121")
    old = {
        name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1."): value
        for name, value in state.items()
    }
    assert old.keys() != state.keys()
    save_file(old, tmp_path / "densenet121.safetensors")
    check(outline("unet", "densenet121", 3, 2), "densenet121", 3, tmp_path / "densenet121.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), "missing (layer2.0.conv1.weight)"),
        (lambda state: state.pop("bn1.running_var"), "missing (bn1.running_var)"),
        (lambda state: state.update({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}), "64 x 64 x 1 x 1"),
        (lambda state: state.update({"conv1.weight": torch.zeros(64, 4, 7, 7)}), "64 x 4 x 7 x 7"),
        (lambda state: state.clear(), "are missing"),
    ],
)
def test_a_file_that_is_not_of_the_encoder_changes_nothing(
    tmp_path: Path, spoil: Callable[[State], object], words: str
) -> None:
    state = encoder_state("resnet18")
    spoil(state)
    path = tmp_path / "resnet18.safetensors"
    save_file(state, path)
    network = build_network("unet", "resnet18", 3, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for refuse in (check, load):
        with pytest.raises(BadInputError) as caught:
            refuse(network, "resnet18", 3, path)
        for part in (words, "resnet18.safetensors", "use_pretrained"):
            assert part in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Malicious:
    """Unpickled in full, this makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_a_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    state: dict[str, Any] = {**encoder_state("resnet18"), "extra": Malicious(trace)}
    torch.save(state, tmp_path / "resnet18.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Malicious(trace)))
    network = outline("unet", "resnet18", 3, 2)
    for path in (tmp_path / "resnet18.pth", tmp_path / "bare.pth"):
        with pytest.raises(BadInputError, match="cannot be read as weights"):
            check(network, "resnet18", 3, path)
    assert not trace.exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes())
    assert trace.exists(), "the trap itself works"


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.pth"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"PK\x03\x04 not a zip"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=rf"{name} cannot be read as weights"):
        check(outline("unet", "resnet18", 3, 2), "resnet18", 3, tmp_path / name)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("encoder", ["resnet34", "resnet50_lunit-bt", "tu-convnext_atto"])
def test_without_weights_the_refusal_is_quick_and_helps(tmp_path: Path, encoder: str, *, folder: bool) -> None:
    begun = time.monotonic()
    with pytest.raises(BadInputError) as caught:
        locate(encoder, tmp_path if folder else None, ask_hub=True)
    assert time.monotonic() - begun < 12
    repository = {"resnet34": "smp-hub/resnet34.imagenet", "resnet50_lunit-bt": "1aurent/resnet50.lunit_bt"}
    for part in (
        *(f"{encoder}.safetensors", f"{encoder}.pth", repository.get(encoder, "timm/convnext_atto")),
        *("could not be reached", "use_pretrained", "weights folder" if folder else "--weights-dir"),
    ):
        assert part in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_hub_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, silent_port: int) -> None:
    use_hub(monkeypatch, silent_port)
    begun = time.monotonic()
    with pytest.raises(BadInputError, match=r"did not answer in time|could not be reached"):
        locate("resnet50_lunit-bt", None, ask_hub=True)
    assert 1 < time.monotonic() - begun < 14


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInputError, match="was not asked"):
        locate("resnet34", None, ask_hub=True)


def test_a_cached_file_is_found_without_asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--1aurent--resnet50.lunit_swav"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    (snapshot / "model.safetensors").write_bytes(b"here")
    source = locate("resnet50_lunit-swav", None, ask_hub=False)
    assert source.kind == "cache"
    assert source.path == snapshot / "model.safetensors"
    assert (source.repo_id, source.licence) == ("1aurent/resnet50.lunit_swav", "Non-commercial (Lunit)")


def test_histology_weights_are_never_a_plain_resnets(tmp_path: Path) -> None:
    (tmp_path / "resnet50.safetensors").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"resnet50_lunit-bt\.safetensors"):
        locate("resnet50_lunit-bt", tmp_path, ask_hub=False)


def test_a_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    # The client tries again and again for twenty seconds unless it is told that there is no network.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = WeightsSource("hub", "MIT", None, "smp-hub/resnet18.imagenet", "model.safetensors", "main")
    with pytest.raises(BadInputError, match=r"smp-hub/resnet18\.imagenet could not be downloaded"):
        fetch(source)


def test_an_encoder_that_nobody_pretrained_is_refused_but_for_a_file(tmp_path: Path) -> None:
    configs = {name: timm.models.get_pretrained_cfg(name) for name in timm.list_models("resnet*")}
    bare = next(name for name, config in configs.items() if config and not config.hf_hub_id)
    with pytest.raises(BadInputError, match="Nobody has published"):
        locate(f"tu-{bare}", tmp_path, ask_hub=True)
    (tmp_path / f"{bare}.pth").write_bytes(b"")
    assert locate(f"tu-{bare}", tmp_path, ask_hub=True).path == tmp_path / f"{bare}.pth"


def test_a_network_is_checked_before_its_training(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "architecture": "unet",
        "encoder": "resnet50_kather100k",
        "num_channels": 6,
        "num_classes": 3,
    }
    body |= {"frozen_layers": ["encoder.layer1"], "use_pretrained": True, "weights_dir": str(tmp_path)}
    save_file(encoder_state("resnet50"), tmp_path / "resnet50_kather100k.safetensors")
    answer = inspect.check_network(body)
    real = outline("unet", "resnet50", 6, 3)
    assert answer["parameters"] == sum(parameter.numel() for parameter in real.parameters())
    assert (answer["licence"], answer["weights"]["path"]) == (
        "CC-BY-4.0",
        str(tmp_path / "resnet50_kather100k.safetensors"),
    )
    assert inspect.check_network({**body, "use_pretrained": False})["weights"] is None
    changes: list[tuple[dict[str, Any], str]] = [
        ({"architecture": "pan", "encoder": "vgg16_bn"}, "dilation"),
        ({"frozen_layers": ["encoder.layer9"]}, "encoder.layer9"),
        ({"frozen_layers": ["encoder", "decoder", "segmentation_head"]}, "nothing is left"),
    ]
    for change, words in changes:
        with pytest.raises(BadInputError, match=words):
            inspect.check_network({**body, **change})
