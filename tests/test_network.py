"""Networks: that all that can be built works, also once exported, and that what cannot is refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from segserve.errors import BadInputError
from segserve.models.catalog import ARCHITECTURES, ENCODERS
from segserve.training.network import inspect
from segserve.training.network.build import build_network, quiet
from segserve.training.network.groups import layer_groups
from segserve.training.network.possible import impossible, outline
from segserve.training.network.pyramid import ShapePool
from segserve.training.network.survey import encoder_names, millions, sizes

NAMES = [entry.name for entry in ARCHITECTURES]
DIFFICULT = ["mobilenet_v2", "efficientnet-b0", "mit_b0", "tu-convnext_atto", "mobileone_s0"]


def worst_difference(folder: Path, architecture: str, encoder: str) -> float:
    """Export at one size; compare with torch at others, relative to the largest logit."""
    torch.manual_seed(0)
    network = build_network(architecture, encoder, 3, 2).eval()
    free = torch.export.Dim.DYNAMIC
    with quiet():
        torch.onnx.export(
            network,
            (torch.randn(2, 3, 160, 192),),
            folder / "network.onnx",
            input_names=["input"],
            output_names=["output"],
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=({0: free, 2: free, 3: free},),
        )
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    worst = 0.0
    for shape in [(1, 3, 128, 128), (3, 3, 256, 160), (1, 3, 224, 320), (2, 3, 128, 352)]:
        images = torch.randn(shape)
        with torch.no_grad():
            expected = network(images).numpy()
        (got,) = session.run(None, {"input": images.numpy()})
        assert got.shape == (shape[0], 2, *shape[2:])
        worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "encoder"), list(product(NAMES, ["resnet18", *DIFFICULT])))
def test_every_exported_network_is_right_at_other_sizes(tmp_path: Path, architecture: str, encoder: str) -> None:
    try:
        impossible(architecture, encoder, 3, 2)
    except BadInputError:
        pytest.skip("cannot be built")
    assert worst_difference(tmp_path, architecture, encoder) < 1e-4


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    bins=st.sampled_from([1, 2, 3, 6]),
    seed=st.integers(0, 2**31),
)
def test_pooling_from_the_shape_is_adaptive_pooling(height: int, width: int, bins: int, seed: int) -> None:
    maps = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(seed))
    expected = functional.adaptive_avg_pool2d(maps, bins)
    torch.testing.assert_close(ShapePool(bins)(maps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", NAMES)
def test_a_networks_tensors_are_named_as_the_librarys(architecture: str) -> None:
    ours = outline(architecture, "resnet18", 3, 2).state_dict()
    theirs = smp.create_model(architecture, "resnet18", None, 3, 2).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}


def test_pspnet_computes_what_the_librarys_does() -> None:
    ours = build_network("pspnet", "resnet18", 3, 2).eval()
    theirs = smp.create_model("pspnet", "resnet18", None, 3, 2).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "encoder", "words"),
    [
        ("deeplabv3", "densenet121", "dilation"),
        ("deeplabv3+", "vgg16_bn", "dilation"),
        ("pan", "densenet121", "dilation"),
        ("unet++", "mit_b0", "half the image's size"),
        ("linknet", "mit_b0", "half the image's size"),
        ("unet", "tu-swin_tiny_patch4_window7_224", "one size"),
        ("unet", "vit_tiny_patch16_224", "halved sizes"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(architecture: str, encoder: str, words: str) -> None:
    with pytest.raises(BadInputError) as caught:
        impossible(architecture, encoder, 3, 2)
    for part in (words, encoder, "resnet"):
        assert part in caught.value.message
    answer = inspect.combinations({"architecture": architecture, "encoder": encoder})
    assert answer == {"possible": False, "reason": caught.value.message}


@pytest.mark.slow
def test_refusals_agree_with_networks_of_real_numbers() -> None:
    for architecture, encoder in product(["linknet", "pan"], ["mobilenet_v2", "mit_b0"]):
        try:
            network = build_network(architecture, encoder, 4, 3).eval()
            with torch.no_grad(), quiet():
                works = network(torch.randn(2, 4, 128, 160)).shape == (2, 3, 128, 160)
        except ValueError:
            works = False
        body = {"architecture": architecture, "encoder": encoder, "num_channels": 4, "num_classes": 3}
        assert inspect.combinations(body)["possible"] == works


@pytest.mark.parametrize(
    ("written", "hint"), [("resnet35", "resnet34"), ("hf_hub:some/where", ""), ("local-dir:/tmp", ""), ("tu-", "")]
)
def test_an_unknown_encoder_is_refused_with_near_ones(written: str, hint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        impossible("unet", written, 3, 2)
    assert repr(written) in caught.value.message
    assert hint in caught.value.message


@pytest.mark.parametrize("encoder", ["resnet50_kather100k", "tu-resnet18", "resnet18d", "timm-mobilenetv3_small_100"])
def test_encoders_go_by_the_names_that_people_use(encoder: str) -> None:
    impossible("unet", encoder, 5, 2)


# From the published server, for U-Net; here with the batch-norms and transitions that belong to each group.
KNOWN_GROUPS = {
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "se_resnet50": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "efficientnet-b3": ["_conv_stem", "_blocks[0:4]", "_blocks[4:10]", "_blocks[10:18]", "_blocks[18:]"],
    "densenet121": ["features.conv0", *(f"features.denseblock{index}" for index in range(1, 5))],
    "vgg16_bn": ["features[0:7]", "features[7:14]", "features[14:24]", "features[24:34]", "features[34:]"],
    "mobilenet_v2": ["features[0:2]", "features[2:5]", "features[5:9]", "features[9:14]", "features[14:]"],
}
KNOWN_COUNTS = {
    "resnet18": [9408 + 128, 147968, 525568, 2099712, 8393728, 3151552, 290],
    "se_resnet50": [9408 + 128, 241200, 1352832, 7891328, 16544128, 9012928, 290],
    "mobilenet_v2": [1824, 23968, 105024, 411712, 1681344, 4404928, 290],
    "vgg16_bn": [38976, 221952, 1476864, 5902848, 7082496, 9033408, 290],
}


@pytest.mark.parametrize("encoder", KNOWN_GROUPS)
def test_layers_are_named_as_in_the_contract(encoder: str) -> None:
    wired = inspect.layers({"architecture": "unet", "encoder": encoder})
    assert [group["name"] for group in wired] == [
        *(f"encoder.{name}" for name in KNOWN_GROUPS[encoder]),
        "decoder",
        "segmentation_head",
    ]
    assert [group["depth"] for group in wired] == [0, 1, 2, 3, 4, 5, 6]
    assert [group["recommended_freeze"] for group in wired] == [True, True, True, False, False, False, False]
    assert [group["is_encoder"] for group in wired] == [True] * 5 + [False] * 2
    if encoder in KNOWN_COUNTS:
        assert [group["param_count"] for group in wired] == KNOWN_COUNTS[encoder]


def assert_adds_up(architecture: str, encoder: str) -> None:
    """Every parameter is in one group and no group is empty."""
    network = outline(architecture, encoder, 3, 2)
    groups = layer_groups(network, encoder)
    assert sum(group.param_count for group in groups) == sum(p.numel() for p in network.parameters())
    paths = [path for group in groups for path in group.modules]
    assert len(paths) == len(set(paths))
    assert all(group.param_count > 0 for group in groups)
    assert [group.depth for group in groups] == sorted(group.depth for group in groups)
    assert len({group.name for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("unet", name) for name in ["densenet121", "vgg11", "xception", "dpn68", *DIFFICULT]]
    + [("pan", "efficientnet-b0"), ("pspnet", "tu-convnext_atto"), ("deeplabv3plus", "mit_b0")],
)
def test_layer_groups_hold_every_parameter_once(architecture: str, encoder: str) -> None:
    assert_adds_up(architecture, encoder)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", smp.encoders.encoders)
def test_layer_groups_of_every_encoder_hold_every_parameter_once(encoder: str) -> None:
    assert_adds_up("unet", encoder)


def test_groups_of_other_encoders_follow_their_stages() -> None:
    """MobileOne's modules are called after their stride already, so they are the answer to compare with."""
    network = outline("unet", "mobileone_s0", 3, 2)
    for group in layer_groups(network, "mobileone_s0")[:5]:
        real = network.get_submodule(group.name)
        assert group.param_count == sum(parameter.numel() for parameter in real.parameters())


def test_attention_and_bare_parameters_are_grouped_by_stage() -> None:
    network = outline("unet", "tu-convnext_atto", 3, 2)
    groups = {group.name: group.modules for group in layer_groups(network, "tu-convnext_atto")}
    assert "encoder.model.stages_1.blocks.0" in groups["encoder.stage2"], "a layer scale owned by the block itself"
    network = outline("unet", "mit_b0", 3, 2)
    groups = {group.name: group.modules for group in layer_groups(network, "mit_b0")}
    assert "encoder.block1.0.attn.sr" in groups["encoder.stage1"], "reduces its keys to a stride of 32"


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "tu-convnext_atto"])
def test_dilation_changes_no_group(encoder: str) -> None:
    plain, dilated = (
        [(g.name, g.modules) for g in layer_groups(outline(name, encoder, 3, 2), encoder) if g.is_encoder]
        for name in ("unet", "deeplabv3")
    )
    assert plain == dilated


def test_a_real_network_has_the_groups_of_its_outline() -> None:
    real = build_network("fpn", "mobilenet_v2", 3, 2)
    assert layer_groups(real, "mobilenet_v2") == layer_groups(outline("fpn", "mobilenet_v2", 3, 2), "mobilenet_v2")


def test_all_encoders_are_listed_in_the_catalogues_form() -> None:
    listed = inspect.all_encoders({})
    assert listed[: len(ENCODERS)] == [entry.wire() for entry in ENCODERS]
    by_name = {entry["name"]: entry for entry in listed}
    assert len(by_name) == len(listed)
    assert {"mit_b2", "efficientnet-b1", "tu-convnext_tiny", "dpn68"} <= set(by_name)
    assert "tu-vit_tiny_patch16_224" not in by_name, "cannot be trained"
    for entry in listed:
        assert list(entry) == list(listed[0])
        assert isinstance(entry["params_millions"], float)
        assert entry["params_millions"] > 0
        assert entry["family"]
        assert entry["license"]


def test_one_encoder_outside_the_catalogue_can_be_asked_for() -> None:
    assert inspect.encoder({"name": "resnet18"}) == ENCODERS[0].wire()
    other = inspect.encoder({"name": "mit_b0"})
    network = outline("unet", "mit_b0", 3, 2).get_submodule("encoder")
    assert other["params_millions"] == round(sum(p.numel() for p in network.parameters()) / 1e6, 3)
    with pytest.raises(BadInputError, match="nope"):
        inspect.encoder({"name": "nope"})
    with pytest.raises(BadInputError, match="halved sizes"):
        inspect.encoder({"name": "vit_tiny_patch16_224"})


@pytest.mark.slow
def test_kept_sizes_are_what_is_measured() -> None:
    kept = sizes(0)
    for name in ("mit_b0", "tu-convnext_atto", "mobileone_s0"):
        assert kept[name] == millions(name)
    assert len(kept) > len(encoder_names()) / 2
