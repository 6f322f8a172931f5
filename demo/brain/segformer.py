"""A SegFormer3D of ITKIT's, as its users keep their models: a configuration in Python and a checkpoint."""

from pathlib import Path

import torch
from itkit.models.SegFormer3D import SegFormer3D

from demo.brain.anatomy import LABELS
from demo.brain.training import PATCH, WINDOW_LEVEL, WINDOW_WIDTH, Effort

EFFORT = Effort(peak_rate=3e-3, seconds=60, steps=150)
SIZES = {
    "in_channels": 1,
    "num_classes": len(LABELS),
    "embed_dims": [16, 32, 64, 128],
    "num_heads": [1, 2, 4, 8],
    "mlp_ratios": [2, 2, 2, 2],
    "depths": [1, 1, 1, 1],
    "sr_ratios": [4, 2, 1, 1],
    "patch_kernel_size": [3, 3, 3, 3],
    "patch_stride": [2, 2, 2, 2],
    "patch_padding": [1, 1, 1, 1],
    "decoder_head_embedding_dim": 32,
}
"""A tenth of the usual SegFormer3D, which a processor trains in a minute."""

CONFIG = """from itkit.criterions.segment import DiceCELoss_3D
from itkit.mm.task_models import SemSeg3D
from itkit.models.SegFormer3D import SegFormer3D

wl = {level}
ww = {width}
labels = {labels!r}
model = dict(
    type=SemSeg3D,
    num_classes={classes},
    backbone=dict(type=SegFormer3D, **{sizes!r}),
    criterion=dict(type=DiceCELoss_3D),
    inference_config=dict(patch_size={patch}, patch_stride={stride}),
)
"""


def make() -> torch.nn.Module:
    """An untrained network."""
    network: torch.nn.Module = SegFormer3D(**SIZES)
    return network


def save(network: torch.nn.Module, folder: Path) -> None:
    """Write `config.py` and `checkpoint.pth`, the latter as ITKIT's training does: the network is the `backbone`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(
        level=WINDOW_LEVEL,
        width=WINDOW_WIDTH,
        labels={str(value): name for value, name in LABELS.items()},
        classes=len(LABELS),
        sizes=SIZES,
        patch=[PATCH] * 3,
        stride=[PATCH // 2] * 3,
    )
    (folder / "config.py").write_text(config, encoding="utf-8")
    weights = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    torch.save({"meta": {"seed": 0}, "state_dict": weights}, folder / "checkpoint.pth")
