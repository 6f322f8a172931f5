"""Random changes to a batch that a pathologist would call the same tissue."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segserve.training.spec import UNLABELLED

if TYPE_CHECKING:
    from kornia.augmentation import AugmentationSequential, ImageSequential

FREE_ROTATION = 45.0  # degrees
ELASTIC_SIGMA = 6.0  # pixels
ELASTIC_KERNEL = 31


def augment(images: Tensor, masks: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A random version of a batch; the same seed gives the same one.

    Args:
        images: (N, C, H, W) float32, normalised to about 0 to 1.
        masks: (N, H, W) int64, class numbers and 255 where unlabelled.
        seed: of all randomness in it.

    Returns:
        Images and masks of the same shapes and types. What comes from outside the frame is unlabelled.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kornia's, about its own use of torch
        torch.manual_seed(seed)
        # The warps fill with 0 what they have no pixel for: with every number one higher, 0 is nobody's.
        labels = torch.where(masks == UNLABELLED, 0, masks + 1).float().unsqueeze(1)
        for warp in (_rigid(square=images.shape[2] == images.shape[3]), _elastic()):
            images, labels = warp(images, labels)
        images = _colour()(images.clamp(0, 1))
    numbers = labels.squeeze(1).round().long() - 1
    return images, torch.where(numbers < 0, UNLABELLED, numbers)


@cache
def _rigid(*, square: bool) -> AugmentationSequential:
    from kornia import augmentation as K  # noqa: N812  # kornia's own custom
    from kornia.constants import SamplePadding

    return _for_both(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        # A patch that is not square would leave its frame at a quarter turn.
        K.RandomRotation90(times=(0, 3) if square else (2, 2), p=0.5),
        K.RandomAffine(degrees=FREE_ROTATION, p=0.25, padding_mode="reflection", align_corners=True),
        outside=SamplePadding.ZEROS,
    )


@cache
def _elastic() -> AugmentationSequential:
    from kornia import augmentation as K  # noqa: N812

    return _for_both(
        K.RandomElasticTransform(
            kernel_size=(ELASTIC_KERNEL, ELASTIC_KERNEL),
            sigma=(ELASTIC_SIGMA, ELASTIC_SIGMA),
            p=0.3,
            padding_mode="reflection",
            align_corners=True,
        ),
        outside="zeros",
    )


def _for_both(*changes: nn.Module, outside: object) -> AugmentationSequential:
    """Changes that images and masks go through together; masks keep their numbers, and get 0 from outside the frame.

    Args:
        changes: kornia's.
        outside: zeros, as these changes want them told: kornia's flips and turns by an enum, its warp by a word.
    """
    from kornia import augmentation as K  # noqa: N812
    from kornia.constants import DataKey, Resample

    masks = {"resample": Resample.NEAREST, "padding_mode": outside, "align_corners": True}
    return K.AugmentationSequential(*changes, data_keys=["input", "mask"], extra_args={DataKey.MASK: masks})


@cache
def _colour() -> ImageSequential:
    from kornia import augmentation as K  # noqa: N812

    return K.ImageSequential(
        K.RandomBrightness((0.8, 1.2), p=0.3),
        K.RandomContrast((0.8, 1.2), p=0.3),
        K.RandomGamma((0.8, 1.2), p=0.3),
        K.RandomGaussianBlur((3, 3), (0.1, 1.0), p=0.1),
        K.RandomGaussianNoise(std=0.03, p=0.2),
    )
