"""The catalogue: what the protocol's contract lists, and what it says of anything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segserve.errors import BadInputError
from segserve.models import catalog

ENCODERS = [
    "resnet18 11.7 resnet imagenet",
    "resnet34 21.8 resnet imagenet",
    "resnet50 25.6 resnet imagenet",
    "resnet50_lunit-swav 25.6 resnet histology",
    "resnet50_lunit-bt 25.6 resnet histology",
    "resnet50_kather100k 25.6 resnet histology",
    "resnet50_tcga-brca 25.6 resnet histology",
    "resnet101 44.5 resnet imagenet",
    "efficientnet-b0 5.3 efficientnet imagenet",
    "efficientnet-b3 12.0 efficientnet imagenet",
    "efficientnet-b4 19.0 efficientnet imagenet",
    "se_resnet50 28.1 se_resnet imagenet",
    "densenet121 8.0 densenet imagenet",
    "densenet169 14.1 densenet imagenet",
    "mobilenet_v2 3.5 mobilenet imagenet",
    "vgg16_bn 138.4 vgg imagenet",
]


def test_encoders_are_the_contracts_in_its_order() -> None:
    wired = [entry.wire() for entry in catalog.ENCODERS]
    lines = [
        f"{entry['name']} {entry['params_millions']} {entry['family']} {entry['pretrained_weights'][0]}"
        for entry in wired
    ]
    assert lines == ENCODERS
    fields = ["name", "display_name", "family", "params_millions", "pretrained_weights", "license", "recommended_for"]
    for entry in wired:
        assert list(entry) == fields
        assert isinstance(entry["params_millions"], float)
        assert entry["license"]
        assert entry["recommended_for"]
        assert all(isinstance(use, str) for use in entry["recommended_for"])


def test_architectures_are_the_contracts_and_pan() -> None:
    wired = {entry.name: entry.wire() for entry in catalog.ARCHITECTURES}
    assert list(wired) == [
        *("unet", "unetplusplus", "deeplabv3", "deeplabv3plus", "fpn", "pspnet", "manet", "linknet", "pan"),
    ]
    assert wired["deeplabv3plus"]["decoder_channels"] == [256, 48]
    assert [name for name, entry in wired.items() if entry["supports_aux_output"]] == ["unetplusplus"]
    for entry in wired.values():
        assert list(entry) == ["name", "display_name", "description", "decoder_channels", "supports_aux_output"]
        assert entry["description"].endswith(".")


@pytest.mark.parametrize(
    ("written", "canonical"),
    [("unet++", "unetplusplus"), ("UNet", "unet"), ("DeepLabV3+", "deeplabv3plus"), ("FPN", "fpn"), (" pan ", "pan")],
)
def test_architectures_go_by_several_names(written: str, canonical: str) -> None:
    assert catalog.canonical_architecture(written) == canonical


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError) as caught:
        catalog.canonical_architecture("segnet")
    assert "'segnet'" in caught.value.message
    for entry in catalog.ARCHITECTURES:
        assert entry.name in caught.value.message
    assert catalog.find_architecture("segnet") is None


def test_traits_say_what_images_an_architecture_takes() -> None:
    traits = {entry.name: (entry.size_divisor, entry.size_least) for entry in catalog.ARCHITECTURES}
    assert traits.pop("pan") == (32, 128)
    assert set(traits.values()) == {(32, 32)}
    assert {entry.name for entry in catalog.ARCHITECTURES if entry.pools_to_one} == {
        "deeplabv3",
        "deeplabv3plus",
        "pan",
    }


def test_histology_encoders_are_a_resnet50_with_a_repository_of_their_own() -> None:
    histology = [entry for entry in catalog.ENCODERS if entry.histology]
    assert {entry.base for entry in histology} == {"resnet50"}
    assert {entry.hub_id for entry in histology} == {
        "1aurent/resnet50.lunit_swav",
        "1aurent/resnet50.lunit_bt",
        "1aurent/resnet50.tiatoolbox-kather100k",
        "1aurent/resnet50.tcga_brca_simclr",
    }
    plain = catalog.find_encoder("resnet34")
    assert plain
    assert (plain.base, plain.hub_id) == ("resnet34", None)
    assert catalog.find_encoder("resnet152") is None


@pytest.mark.parametrize(
    ("size", "encoder", "frozen"),
    [
        ("small", "resnet34", "TTTTF"),
        ("medium", "resnet34", "TTTFF"),
        ("large", "resnet34", "TTFFF"),
        ("small", "resnet50_lunit-bt", "TTFFF"),
        ("medium", "resnet50_lunit-bt", "TFFFF"),
        ("large", "resnet50_lunit-bt", "FFFFF"),
        ("medium", "anything", "TTTFF"),
        ("medium", None, "TTTFF"),
    ],
)
def test_freeze_recommendations_are_the_contracts(size: str, encoder: str | None, frozen: str) -> None:
    assert catalog.recommendations(size, encoder) == {depth: letter == "T" for depth, letter in enumerate(frozen)}


def test_freeze_recommendations_need_a_size_of_the_contract() -> None:
    with pytest.raises(BadInputError, match="small, medium, large"):
        catalog.recommendations("huge", None)


def test_the_catalogue_loads_no_torch() -> None:
    code = "import sys, segserve.models.catalog; print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
