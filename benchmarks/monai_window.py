"""MONAI's sliding window with the network in torch, between the same reading and writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from monai.inferers.utils import sliding_window_inference

from benchmarks.images import read_turned, write_labels

Forward = Callable[[torch.Tensor], torch.Tensor]


def segment(image: Path, target: Path, forward: Forward, *, patch: int, stride: int) -> None:
    """Segment `image` and write the labels in the network's orientation.

    Args:
        image: a volume that SimpleITK reads.
        target: the .nii.gz to write.
        forward: a window (1, 1, Z, Y, X) to its logits (1, K, Z, Y, X).
        patch: edge of the windows, in voxels.
        stride: from one window to the next.
    """
    values, turned = read_turned(image)
    with torch.inference_mode():
        scores = sliding_window_inference(
            torch.from_numpy(values)[None, None], (patch,) * 3, 1, forward, overlap=1 - stride / patch, mode="constant"
        )
        assert isinstance(scores, torch.Tensor)
        labels = scores.argmax(1)[0].to(torch.uint8)
    write_labels(labels.numpy(), turned, target)
