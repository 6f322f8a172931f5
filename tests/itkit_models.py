"""Small ITKIT models as their users keep them: a config in one of MMEngine's styles, and a training's checkpoint."""

from __future__ import annotations

import datetime as dt
import importlib
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

PATCH = 32
CLASSES = 3

SEGFORMER: dict[str, Any] = {
    "in_channels": 1,
    "embed_dims": [8, 8, 16, 16],
    "num_heads": [1, 2, 2, 4],
    "depths": [1, 1, 1, 1],
    "mlp_ratios": [2, 2, 2, 2],
    "decoder_head_embedding_dim": 8,
    "num_classes": CLASSES,
}
MEDNEXT: dict[str, Any] = {
    "in_channels": 1,
    "n_channels": 2,
    "n_classes": CLASSES,
    "exp_r": 2,
    "kernel_size": 3,
    "deep_supervision": True,
    "do_res": True,
    "do_res_up_down": True,
    "block_counts": [1] * 9,
}
UNETR: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": CLASSES,
    "img_size": (PATCH, PATCH, PATCH),
    "feature_size": 4,
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_heads": 2,
}

BASE = f"""
size = ({PATCH},) * 3
num_classes = {CLASSES}
"""
LAZY = """
from mmengine.config import read_base
from itkit.criterions.no_such_module import DiceCELoss_3D
from itkit.mm.no_such_module import SegDataPreProcessor_3D
from itkit.mm.task_models import SemSeg3D
from {module} import {name}

with read_base():
    from ._base_.sizes import *

wl = 50
ww = 500

model = dict(
    type=SemSeg3D,
    num_classes=num_classes,
    data_preprocessor=dict(type=SegDataPreProcessor_3D),
    backbone=dict(type={name}, **{arguments!r}),
    criterion=dict(type=DiceCELoss_3D, softmax=True),
    inference_config=dict(
        patch_size=size,
        patch_stride=[s * 3 // 4 for s in size],
        accumulate_device="cpu",
        forward_device="cuda",
        forward_batch_windows=2,
        argmax_batchsize=8,
        no_such_key=1,
    ),
)
"""
TEXT = """
_base_ = ["./_base_/sizes.py"]
custom_imports = dict(imports=["{beside}"], allow_failed_imports=False)

model = dict(
    type="SemSeg3D",
    num_classes={{{{_base_.num_classes}}}},
    wl=50,
    window_width=500,
    backbone=dict(type="{beside}Net", **{arguments!r}),
    criterion=dict(type="NoSuchCriterion"),
    inference_config=dict(patch_size={{{{_base_.size}}}}),
)
"""
BESIDE = """
from mmengine.registry import MODELS

from {module} import {name}

MODELS.register_module(name="{beside}Net", module={name})
"""


@dataclass(frozen=True)
class Sample:
    """A model on disk, and the class and arguments of its network."""

    config: Path
    checkpoint: Path
    module: str
    name: str
    arguments: dict[str, Any]
    seed: int

    def network(self) -> torch.nn.Module:
        """The network as it was saved, made without MMEngine."""
        return made(self.module, self.name, self.arguments, self.seed)


def segformer(folder: Path) -> Sample:
    return lazy(folder, "itkit.models.SegFormer3D", "SegFormer3D", SEGFORMER, seed=0)


def unetr(folder: Path) -> Sample:
    return lazy(folder, "itkit.models.UNETR", "UNETR", UNETR)


def mednext(folder: Path) -> Sample:
    return textual(folder, "itkit.models.MedNeXt", "MedNeXt", MEDNEXT)


def textual(folder: Path, module: str, name: str, arguments: dict[str, Any]) -> Sample:
    """A text style config, whose networks are known by name to a module beside it; imports nothing of ITKIT itself."""
    stem = name.lower()
    sample = Sample(folder / f"{stem}.py", folder / "iter_10.pth", module, name, arguments, 5)
    _write(sample, TEXT)
    (folder / f"{stem}_beside.py").write_text(BESIDE.format(module=module, name=name, beside=f"{stem}_beside"))
    return sample


def lazy(folder: Path, module: str, name: str, arguments: dict[str, Any], seed: int = 5) -> Sample:
    """A lazy style config of a class."""
    sample = Sample(folder / f"{name.lower()}.py", folder / "iter_10.pth", module, name, arguments, seed)
    _write(sample, LAZY)
    return sample


def _write(sample: Sample, text: str) -> None:
    folder = sample.config.parent
    (folder / "_base_").mkdir(parents=True)
    (folder / "_base_" / "sizes.py").write_text(BASE)
    beside = f"{sample.config.stem}_beside"
    sample.config.write_text(
        text.format(module=sample.module, name=sample.name, arguments=sample.arguments, beside=beside)
    )
    save_training(sample.checkpoint, sample.network())


def made(module: str, name: str, arguments: dict[str, Any], seed: int) -> torch.nn.Module:
    """A network with random weights and statistics, always the same; most seeds give one label everywhere."""
    torch.manual_seed(seed)
    network: torch.nn.Module = getattr(importlib.import_module(module), name)(**arguments)
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def save_training(path: Path, network: torch.nn.Module) -> None:
    """Write a checkpoint as a training leaves it: much more than weights, and of a class that nobody else has."""
    gone = ModuleType("training_code_of_somebody")
    exec("class Hook:\n    pass\nclass Outer:\n    class Inner(dict):\n        pass\n", vars(gone))
    sys.modules[gone.__name__] = gone
    hook = gone.Hook()
    hook.history = {"loss": np.float64(0.25), "when": dt.datetime(2024, 2, 29, tzinfo=dt.UTC)}
    inner = gone.Outer.Inner(a=1)
    inner.link = hook
    weights = OrderedDict((f"backbone.{name}", value) for name, value in network.state_dict().items())
    optimizer = torch.optim.AdamW(network.parameters())
    content = {
        "meta": {"epoch": 1, "time": "today", "inner": inner, "seed": np.int64(3), "path": Path("/somewhere")},
        "state_dict": weights | {"criterion.weight": torch.ones(3), "data_preprocessor.mean": torch.zeros(1)},
        "message_hub": {"hook": hook, "log": {"loss": np.arange(3.0)}, "set": {1, 2}},
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [],
    }
    try:
        torch.save(content, path)
    finally:
        del sys.modules[gone.__name__]
