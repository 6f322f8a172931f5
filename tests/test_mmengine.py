"""MMEngine configs: ITKIT's own networks run from them; what fails is said in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segserve import extras
from segserve.engines.base import TorchNetwork
from segserve.errors import MissingExtraError
from segserve.models.formats.opened import Opened
from tests import itkit_models
from tests.itkit_models import CLASSES, PATCH, Sample
from tests.mmengine_configs import PLAIN, conv, folder, open_files, opened, own_imports, refusal

__all__ = ["folder", "open_files", "own_imports"]  # fixtures

pytest.importorskip("mmengine")
pytest.importorskip("itkit")
pytestmark = pytest.mark.filterwarnings("ignore")


def logits(network: Opened, batch: torch.Tensor) -> torch.Tensor:
    assert isinstance(network.network, TorchNetwork)
    answer = network.network.module(batch)
    assert isinstance(answer, torch.Tensor)
    return answer


def assert_like_a_direct_call(sample: Sample) -> Opened:
    found = opened(sample.config, sample.checkpoint)
    batch = torch.randn(1, 1, PATCH, PATCH, PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        direct = sample.network()(batch)
    expected = direct[0] if isinstance(direct, list) else direct
    assert expected.shape == (1, CLASSES, PATCH, PATCH, PATCH)
    assert expected.std() > 1e-2
    torch.testing.assert_close(logits(found, batch), expected, atol=1e-4, rtol=0)
    assert found.classes == CLASSES
    assert (found.metadata.fields.window_level, found.metadata.fields.window_width) == (50, 500)
    assert found.metadata.config.patch_size == (PATCH,) * 3
    return found


def test_segformer_in_lazy_style_with_classes_that_only_training_has(folder: Path) -> None:
    found = assert_like_a_direct_call(itkit_models.segformer(folder / "own"))
    config = found.metadata.config
    assert config.patch_stride == (PATCH * 3 // 4,) * 3
    assert (config.accumulate_device, config.forward_device) == ("cpu", "cuda")
    assert (config.forward_batch_windows, config.argmax_batchsize) == (2, 8)
    assert len(found.metadata.warnings) == 1
    assert "no_such_key" in found.metadata.warnings[0]
    *own, source = found.files
    names = [path.relative_to(folder / "own").as_posix() for path in own]
    assert names == ["segformer3d.py", "_base_/sizes.py", "iter_10.pth"]
    assert source.name == "SegFormer3D.py", "another version of the library would be taken for the same network"


def test_mednext_with_deep_supervision_in_text_style_with_a_module_beside_it(folder: Path) -> None:
    found = assert_like_a_direct_call(itkit_models.mednext(folder / "own"))
    assert not found.metadata.warnings
    names = {path.relative_to(folder / "own").as_posix() for path in found.files[:-1]}
    assert names == {"mednext.py", "_base_/sizes.py", "mednext_beside.py", "iter_10.pth"}


@pytest.mark.slow
def test_unetr(folder: Path) -> None:
    assert_like_a_direct_call(itkit_models.unetr(folder / "own"))


def test_a_model_that_is_ready_to_be_used(folder: Path) -> None:
    module = opened(*conv(folder)).network.module  # type: ignore[union-attr]
    assert not any(one.training for one in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("wl = 40", "window_level", 40),
        ("window_level = -5.5", "window_level", -5.5),
        ("model['wl'] = 0", "window_level", 0),
        ("wl = 1\nmodel['wl'] = 2", "window_level", 1),
        ("ww = 400", "window_width", 400),
        ("model['window_width'] = 350", "window_width", 350),
        ("labels = ['air', 'liver']", "labels", {"0": "air", "1": "liver"}),
        ("classes = ('air', 'liver')", "labels", {"0": "air", "1": "liver"}),
        ("labels = {1: 'liver'}", "labels", {"1": "liver"}),
    ],
)
def test_settings_are_found_at_the_top_and_in_the_model(folder: Path, lines: str, field: str, value: object) -> None:
    metadata = opened(*conv(folder, PLAIN + lines)).metadata
    assert getattr(metadata.fields, field) == value
    assert not metadata.warnings


@pytest.mark.parametrize(
    "lines", ["wl = 'middle'", "ww = 0", "ww = [1]", "model['inference_config'] = 5", "labels = 5"]
)
def test_settings_that_make_no_sense_are_warnings(folder: Path, lines: str) -> None:
    assert len(opened(*conv(folder, PLAIN + lines)).metadata.warnings) == 1


def test_a_threshold_is_passed_on(folder: Path) -> None:
    metadata = opened(*conv(folder, PLAIN + "model['binary_segment_threshold'] = 0.3")).metadata
    assert metadata.fields.model_dump()["binary_segment_threshold"] == 0.3


def test_itkits_own_class_of_inference_settings_says_only_what_was_given(folder: Path) -> None:
    text = PLAIN + (
        "import importlib\n"
        "kind = importlib.import_module('itkit.mm.sliding_window').InferenceConfig\n"
        "model['inference_config'] = kind(patch_size=(8, 8, 8))\n"
    )
    config = opened(*conv(folder, text)).metadata.config
    assert config.model_dump(exclude_none=True) == {"patch_size": (8, 8, 8)}


def test_a_default_scope_whose_package_is_there_or_not(folder: Path) -> None:
    weights = torch.nn.Conv3d(1, 2, 3).state_dict()
    (folder / "scoped_by_test").mkdir()
    (folder / "scoped_by_test" / "registry.py").write_text(
        "from mmengine.registry import MODELS as PARENT, Registry\nfrom torch.nn import Conv3d\n"
        "MODELS = Registry('model', parent=PARENT, scope='scoped_by_test')\n"
        "MODELS.register_module(name='Net', module=Conv3d)\n"
    )
    text = "default_scope = 'scoped_by_test'\n"
    text += "model = dict(backbone=dict(type='Net', in_channels=1, out_channels=2, kernel_size=3))\n"
    assert opened(*conv(folder, text, weights)).classes is None
    assert opened(*conv(folder, "default_scope = 'no_such_package'\n" + PLAIN)).classes is None


# Failures of configs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = (\n", "config.py, line 1: '(' was never closed"),
        ("a = 1\nb = c\n", "config.py, line 2: NameError: name 'c' is not defined"),
        ("import sys\n\nsys.exit(3)\n", "config.py, line 3: SystemExit: 3"),
        ("def f():\n    raise ValueError('no luck\\nsecond line')\nf()\n", "config.py, line 2: ValueError: no luck"),
        ("custom_imports = dict(imports=['no_such_module'])\n", "No module named 'no_such_module'"),
        (
            "from no_such_module import Net\nmodel = dict(backbone=dict(type=Net))\n",
            "No module named 'no_such_module'",
        ),
        ("from torch.nn import NoSuchNet\nmodel = dict(backbone=dict(type=NoSuchNet))\n", "NoSuchNet"),
        ("a = 1\n", "has no model: the network is model = dict(backbone=dict(type=...))"),
        ("model = 5\n", "has no model:"),
        ("model = dict(type='x')\n", "has no model.backbone:"),
        ("model = dict(backbone=dict(depth=3))\n", "has no model.backbone:"),
        ("model = dict(backbone=dict(type='NoSuchNet'))\n", "NoSuchNet is not in the mmengine::model registry"),
        (PLAIN.replace("in_channels", "in_chanels"), "unexpected keyword argument 'in_chanels'"),
        ("from pathlib import Path\nmodel = dict(backbone=dict(type=Path))\n", "has no network as its model.backbone"),
        ("_base_ = './no_such_base.py'\n", "config.py, line 1: its base no_such_base.py is not there"),
        ("a = 1\n_base_ = a\n", "config.py, line 2: _base_ must be a plain text"),
        (
            "from mmengine.config import read_base\nwith read_base():\n    from .no import *\n",
            "its base no.py is not there",
        ),
        ("_base_ = ['a.yaml']\n", "is no MMEngine config"),
        ("with open('x') as f:\n    pass\n", "config.py fails: "),
        ("x = '\0'\n", "config.py"),
        ("open('/no/such/secret/place')\n", "FileNotFoundError"),
    ],
)
def test_a_config_that_fails_is_one_sentence_with_the_line(folder: Path, text: str, words: str) -> None:
    (folder / "a.yaml").write_text("a: 1\n")
    message = refusal(*conv(folder, text))
    assert words in message
    assert str(folder) not in message
    assert "/no/such" not in message


def test_a_module_beside_that_fails_is_named_with_its_line(folder: Path) -> None:
    (folder / "beside_that_fails.py").write_text("a = 1\n\n1 / 0\n")
    message = refusal(*conv(folder, "custom_imports = dict(imports='beside_that_fails')\nmodel = dict()\n"))
    assert "beside_that_fails.py, line 3: ZeroDivisionError" in message


# Checkpoints that do not fit


def test_missing_unexpected_and_misshapen_names_are_listed(folder: Path) -> None:
    config, checkpoint = conv(
        folder, PLAIN, {"weight": torch.ones(2, 1, 5, 5, 5), "gain": torch.ones(2), "mean": torch.ones(1)}
    )
    message = refusal(config, checkpoint)
    assert "1 of the network's 2 tensors are missing in the checkpoint (bias)" in message
    assert "2 of the checkpoint's tensors are not in the network (gain, mean)" in message
    assert "1 have another shape (weight is 2 x 1 x 5 x 5 x 5 instead of 2 x 1 x 3 x 3 x 3)" in message
    assert "strict: false" in message


def test_only_ten_names_are_shown(folder: Path) -> None:
    weights = dict(torch.nn.Conv3d(1, 2, 3).state_dict()) | {f"more{n}": torch.ones(1) for n in range(12)}
    message = refusal(*conv(folder, PLAIN, weights))
    assert "12 of the checkpoint's tensors" in message
    assert "more9, ..." in message
    assert "more10" not in message


def test_what_fits_is_loaded_if_that_is_asked_for(folder: Path) -> None:
    config, checkpoint = conv(
        folder, PLAIN, {"bias": torch.tensor([7.0, 8.0]), "weight": torch.ones(1), "gain": torch.ones(2)}
    )
    found = opened(config, checkpoint, strict=False)
    assert isinstance(found.network, TorchNetwork)
    assert found.network.module.network.bias.tolist() == [7, 8]
    assert len(found.metadata.warnings) == 2
    assert "gain" in found.metadata.warnings[0]
    assert "weight is 1 instead of" in found.metadata.warnings[1]


def test_only_the_backbones_part_of_a_checkpoint_counts(folder: Path) -> None:
    state = torch.nn.Conv3d(1, 2, 3).state_dict()
    weights = {f"module.backbone.{name}": value for name, value in state.items()} | {"head.weight": torch.ones(1)}
    found = opened(*conv(folder, PLAIN, weights))
    assert isinstance(found.network, TorchNetwork)
    assert torch.equal(found.network.module.network.weight, state["weight"])


def test_weights_of_other_types_become_the_networks(folder: Path) -> None:
    weights = {"weight": torch.ones(2, 1, 3, 3, 3).half(), "bias": torch.tensor([1, 2])}
    found = opened(*conv(folder, PLAIN, weights))
    assert isinstance(found.network, TorchNetwork)
    assert found.network.module.network.bias.dtype == torch.float32
    assert found.network.module.network.bias.tolist() == [1, 2]


def test_modules_beside_may_be_imported_by_the_network_while_it_runs(folder: Path) -> None:
    (folder / "late_beside.py").write_text("FACTOR = 3\n")
    (folder / "net_beside.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x):\n        from late_beside import FACTOR\n        return FACTOR * x\n"
    )
    text = "from net_beside import Net\nmodel = dict(backbone=dict(type=Net))\n"
    found = opened(*conv(folder, text, {"unused": torch.ones(1)}), strict=False)
    assert torch.equal(logits(found, torch.ones(1, 1, 2, 2, 2)), torch.full((1, 1, 2, 2, 2), 3.0))


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, checkpoint = conv(folder)
    monkeypatch.setattr(extras, "MMENGINE_PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(MissingExtraError) as caught:
        opened(config, checkpoint)
    assert caught.value.status == 501
    assert "segserve[mmengine]" in caught.value.message
