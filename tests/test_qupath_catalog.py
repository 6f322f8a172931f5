"""The QuPath door's catalogue: encoders, architectures, layers, what to freeze; and its health and GPU routes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import segmentation_models_pytorch as smp

from tests.classifier_client import ClassifierClient, get_bool, get_int, get_string
from tests.serving import Served

# name, display name, family, millions of parameters, weights, licence, recommended for
ENCODERS = """
resnet18|ResNet-18|resnet|11.7|imagenet|MIT (torchvision)|small_datasets, fast_inference
resnet34|ResNet-34|resnet|21.8|imagenet|MIT (torchvision)|general_purpose, balanced
resnet50|ResNet-50|resnet|25.6|imagenet|MIT (torchvision)|large_datasets, high_accuracy
resnet50_lunit-swav|ResNet-50 Lunit SwAV (Histology)|resnet|25.6|histology|Non-commercial (Lunit)|histopathology, high_accuracy, tissue_classification
resnet50_lunit-bt|ResNet-50 Lunit Barlow Twins (Histology)|resnet|25.6|histology|Non-commercial (Lunit)|histopathology, high_accuracy, tissue_classification
resnet50_kather100k|ResNet-50 Kather100K (Histology)|resnet|25.6|histology|CC-BY-4.0|histopathology, colorectal, tissue_classification
resnet50_tcga-brca|ResNet-50 TCGA-BRCA (Histology)|resnet|25.6|histology|GPLv3|histopathology, breast_cancer, tissue_classification
resnet101|ResNet-101|resnet|44.5|imagenet|MIT (torchvision)|very_large_datasets
efficientnet-b0|EfficientNet-B0|efficientnet|5.3|imagenet|Apache 2.0|efficient, mobile
efficientnet-b3|EfficientNet-B3|efficientnet|12.0|imagenet|Apache 2.0|balanced, efficient
efficientnet-b4|EfficientNet-B4|efficientnet|19.0|imagenet|Apache 2.0|high_accuracy, efficient
se_resnet50|SE-ResNet-50|se_resnet|28.1|imagenet|MIT|attention, histopathology
densenet121|DenseNet-121|densenet|8.0|imagenet|BSD|feature_reuse, small_objects
densenet169|DenseNet-169|densenet|14.1|imagenet|BSD|feature_reuse
mobilenet_v2|MobileNet-V2|mobilenet|3.5|imagenet|Apache 2.0|mobile, fast_inference, low_memory
vgg16_bn|VGG-16 (BatchNorm)|vgg|138.4|imagenet|MIT (torchvision)|texture, histopathology
"""  # noqa: E501 - one line each
DECODERS = {
    "unet": ("U-Net", [256, 128, 64, 32, 16]),
    "unetplusplus": ("U-Net++", [256, 128, 64, 32, 16]),
    "deeplabv3": ("DeepLab V3", [256]),
    "deeplabv3plus": ("DeepLab V3+", [256, 48]),
    "fpn": ("Feature Pyramid Network", [256, 256, 256, 256]),
    "pspnet": ("PSPNet", [512]),
    "manet": ("MA-Net", [256, 128, 64, 32, 16]),
    "linknet": ("LinkNet", [256, 128, 64, 32]),
}
RESNET = ["encoder.conv1", "encoder.layer1", "encoder.layer2", "encoder.layer3", "encoder.layer4"]
GROUPS = {
    "resnet18": RESNET,
    "resnet50_kather100k": RESNET,
    "efficientnet-b0": [
        "encoder._conv_stem",
        "encoder._blocks[0:4]",
        "encoder._blocks[4:10]",
        "encoder._blocks[10:18]",
        "encoder._blocks[18:]",
    ],
    "densenet121": ["encoder.features.conv0", *(f"encoder.features.denseblock{number}" for number in (1, 2, 3, 4))],
    "vgg16_bn": [f"encoder.features[{part}]" for part in ("0:7", "7:14", "14:24", "24:34", "34:")],
    "mobilenet_v2": [f"encoder.features[{part}]" for part in ("0:2", "2:5", "5:9", "9:14", "14:")],
}
IMAGENET = {"small": "TTTTF", "medium": "TTTFF", "large": "TTFFF"}
HISTOLOGY = {"small": "TTFFF", "medium": "TFFFF", "large": "FFFFF"}


@pytest.fixture
def client(server: Served) -> ClassifierClient:
    return ClassifierClient(server.url)


def layers(client: ClassifierClient, architecture: str, encoder: str, **more: int) -> list[dict[str, Any]]:
    body = {"architecture": architecture, "encoder": encoder, "num_channels": 3, "num_classes": 2} | more
    answer = client.read_list("POST", "/pretrained/layers", body)
    for entry in answer:
        for key in ("name", "display_name", "description"):
            assert get_string(entry, key)
        for key in ("param_count", "depth"):
            get_int(entry, key)
        for key in ("is_encoder", "recommended_freeze"):
            get_bool(entry, key)
    return answer


def encoder_entry(line: str) -> dict[str, Any]:
    name, display, family, millions, weights, licence, purposes = line.split("|")
    return {
        "name": name,
        "display_name": display,
        "family": family,
        "params_millions": float(millions),
        "pretrained_weights": [weights],
        "license": licence,
        "recommended_for": purposes.split(", "),
    }


def test_encoders_are_the_contracts(client: ClassifierClient) -> None:
    listed = client.read_list("GET", "/pretrained/encoders")
    wanted = [encoder_entry(line) for line in ENCODERS.strip().splitlines()]
    assert [entry["name"] for entry in listed] == [entry["name"] for entry in wanted]
    for got, entry in zip(listed, wanted, strict=True):
        assert {key: got[key] for key in entry} == entry


def test_architectures_are_the_contracts_and_pan(client: ClassifierClient) -> None:
    listed = {entry["name"]: entry for entry in client.read_list("GET", "/pretrained/architectures")}
    assert list(listed)[:8] == list(DECODERS)
    assert set(listed) == {*DECODERS, "pan"}
    for name, (display, channels) in DECODERS.items():
        assert listed[name]["display_name"] == display
        assert listed[name]["decoder_channels"] == channels
        assert listed[name]["supports_aux_output"] is (name == "unetplusplus")
    assert all(get_string(entry, "description") for entry in listed.values())


@pytest.mark.parametrize("kind", ["encoder", "architecture"])
def test_one_entry_is_as_in_the_list(client: ClassifierClient, kind: str) -> None:
    for entry in client.read_list("GET", f"/pretrained/{kind}s"):
        assert client.read("GET", f"/pretrained/{kind}/{entry['name']}") == entry


def test_readme_names_of_architectures_are_known(client: ClassifierClient) -> None:
    assert client.read("GET", "/pretrained/architecture/unet++")["name"] == "unetplusplus"
    assert client.read("GET", "/pretrained/architecture/deeplabv3+")["name"] == "deeplabv3plus"


@pytest.mark.parametrize(("kind", "title"), [("encoder", "Encoder"), ("architecture", "Architecture")])
def test_an_unknown_name_is_404(client: ClassifierClient, kind: str, title: str) -> None:
    answer = client.call("GET", f"/pretrained/{kind}/nonsense")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(f"{title} 'nonsense' not found")


def test_all_encoders_hold_the_readmes_and_the_dialogs(client: ClassifierClient) -> None:
    names = {entry["name"] for entry in client.read_list("GET", "/pretrained/encoders?all=true")}
    readme = {"vgg16", "dpn68", "resnext50_32x4d", "timm-efficientnet-b3", "mit_b2"}
    assert names >= readme | {"efficientnet-b1", "efficientnet-b2", "resnet18", "resnet50_lunit-bt"}


@pytest.mark.parametrize("encoder", GROUPS)
def test_layers_have_the_names_of_the_contract(client: ClassifierClient, encoder: str) -> None:
    listed = layers(client, "unet", encoder)
    assert [entry["name"] for entry in listed] == [*GROUPS[encoder], "decoder", "segmentation_head"]
    assert [entry["depth"] for entry in listed] == list(range(7))
    assert [entry["is_encoder"] for entry in listed] == [True] * 5 + [False] * 2
    assert [entry["recommended_freeze"] for entry in listed] == [True] * 3 + [False] * 4
    assert all(entry["display_name"].startswith("Encoder: ") for entry in listed[:5])
    assert [entry["display_name"] for entry in listed[5:]] == ["Decoder (all layers)", "Segmentation Head"]


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("unet", "resnet18"),
        ("unet", "se_resnet50"),
        ("fpn", "efficientnet-b0"),
        ("pan", "resnet34"),
        ("unet", "mit_b2"),
    ],
)
def test_parameters_of_the_layers_add_up_to_the_network(
    client: ClassifierClient, architecture: str, encoder: str
) -> None:
    listed = layers(client, architecture, encoder, num_channels=5, num_classes=4)
    network = smp.create_model(architecture, encoder, encoder_weights=None, in_channels=5, classes=4)
    head = sum(value.numel() for value in network.segmentation_head.parameters())
    assert sum(entry["param_count"] for entry in listed) == sum(value.numel() for value in network.parameters())
    assert listed[-1]["param_count"] == head
    assert all(entry["param_count"] > 0 for entry in listed[:-2])


def test_layers_answer_both_spellings_alike(client: ClassifierClient) -> None:
    assert layers(client, "unet++", "resnet18") == layers(client, "unetplusplus", "resnet18")


def test_layers_need_neither_channels_nor_classes(client: ClassifierClient) -> None:
    short = client.read_list("POST", "/pretrained/layers", {"architecture": "unet", "encoder": "resnet18"})
    assert short == layers(client, "unet", "resnet18")


@pytest.mark.parametrize(
    ("architecture", "encoder", "words"),
    [
        ("nonsense", "resnet18", ["nonsense"]),
        ("unet", "nonsense", ["nonsense"]),
        ("deeplabv3plus", "densenet121", ["densenet121"]),
        ("pan", "vgg16_bn", ["vgg16_bn"]),
        ("unetplusplus", "mit_b2", ["mit_b2"]),
    ],
)
def test_layers_of_what_cannot_be_built_are_400(
    client: ClassifierClient, architecture: str, encoder: str, words: list[str]
) -> None:
    answer = client.call("POST", "/pretrained/layers", {"architecture": architecture, "encoder": encoder})
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["detail"] for word in words), answer.text


@pytest.mark.parametrize("size", IMAGENET)
@pytest.mark.parametrize("encoder", [None, "resnet18", "nonsense", "resnet50_lunit-swav"])
def test_freeze_recommendations(client: ClassifierClient, size: str, encoder: str | None) -> None:
    query = f"?encoder={encoder}" if encoder else ""
    answer = client.read("GET", f"/pretrained/freeze-recommendations/{size}{query}")
    letters = (HISTOLOGY if encoder == "resnet50_lunit-swav" else IMAGENET)[size]
    assert answer["dataset_size"] == size
    assert answer["recommendations"] == {str(depth): letter == "T" for depth, letter in enumerate(letters)}


def test_freeze_recommendations_of_an_unknown_size_are_422(client: ClassifierClient) -> None:
    answer = client.call("GET", "/pretrained/freeze-recommendations/huge")
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


def test_health_and_gpu_are_what_the_client_reads(client: ClassifierClient) -> None:
    assert client.read("GET", "/health")["status"] == "healthy"
    gpu = client.read("GET", "/gpu")
    assert "null" not in json.dumps(gpu)
    assert client.gpu_info() == (
        f"{gpu['name']} ({gpu['memory_mb']} MB)" if gpu["available"] else "No GPU available (CPU mode)"
    )
    assert {"device_type", "device_string"} <= set(gpu)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/health"),
        ("POST", "/gpu"),
        ("GET", "/gpu/clear"),
        ("PUT", "/train"),
        ("GET", "/train/0/cancel"),
        ("GET", "/pretrained/layers"),
        ("POST", "/pretrained/encoders"),
        ("POST", "/models"),
    ],
)
def test_a_wrong_method_is_405(client: ClassifierClient, method: str, path: str) -> None:
    answer = client.call(method, path)
    assert answer.status_code == 405, answer.text
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("path", ["/nonsense", "/train/0/nonsense", "/pretrained/nonsense"])
def test_an_unknown_path_is_404(client: ClassifierClient, path: str) -> None:
    answer = client.call("GET", path)
    assert answer.status_code == 404
    assert isinstance(answer.json()["detail"], str)


def test_health_without_the_prefix_is_404(server: Served) -> None:
    assert server.get("/health").status_code == 404


def test_options_is_200_or_405(client: ClassifierClient) -> None:
    assert client.call("OPTIONS", "/health").status_code in {200, 405}
