"""Losses over the labelled pixels alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own custom
from torch import Tensor

from segserve.training.spec import UNLABELLED

DICE_SMOOTHING = 1.0


def training_loss(name: str, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """The loss of a batch: 0, with zero gradients, where nothing is labelled.

    Args:
        name: `cross_entropy`, or `ce_dice` for half of each.
        logits: (N, K, H, W), any float.
        target: (N, H, W) int64, class numbers and 255 where unlabelled.
        weights: (K,) float32 for the cross entropy, or None.
    """
    logits = logits.float()
    entropy = cross_entropy(logits, target, weights)
    if name == "cross_entropy":
        return entropy
    return 0.5 * entropy + 0.5 * dice_loss(logits, target)


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean of the negative log-likelihood over labelled pixels, in nats."""
    total = F.cross_entropy(logits, target, weights, ignore_index=UNLABELLED, reduction="sum")
    labelled = target[target != UNLABELLED]
    mass = labelled.numel() if weights is None else weights[labelled].sum()
    return total / mass if labelled.numel() and float(mass) > 0 else total * 0


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One less the mean over classes of (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), sums over batch and pixels.

    Soft Dice of Milletari et al. 2016 without squares, smoothed by 1; classes that are absent count too.
    """
    labelled = target != UNLABELLED
    if not bool(labelled.any()):
        return logits.sum() * 0
    probabilities = logits.movedim(1, -1)[labelled].softmax(-1)
    truth = torch.zeros_like(probabilities).scatter_(1, target[labelled].unsqueeze(1), 1.0)
    overlap = 2 * (probabilities * truth).sum(0) + DICE_SMOOTHING
    return 1 - (overlap / (probabilities.sum(0) + truth.sum(0) + DICE_SMOOTHING)).mean()
