"""PSPNet's pooling, written from the image's shape so that an exported network is right at every size."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShapePool(nn.Module):
    """Adaptive average pooling to `bins` x `bins` as two matrix products.

    Torch's exporter turns `AdaptiveAvgPool2d` into windows of fixed size, which fit the traced image only; and Apple's
    GPUs refuse it where the size is no multiple of the bins.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, maps: Tensor) -> Tensor:
        """Average (N, C, H, W) over the bins.

        Returns:
            (N, C, bins, bins) of the same dtype.
        """
        rows = bin_weights(maps.shape[-2], self.bins, maps)
        columns = bin_weights(maps.shape[-1], self.bins, maps)
        return torch.matmul(torch.matmul(rows, maps), columns.transpose(0, 1))


def bin_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """The weight of each pixel in each bin along one axis.

    Bin i covers the pixels from floor(i L / B) up to, not including, ceil((i + 1) L / B): the rule of torch's
    adaptive pooling (aten/src/ATen/native/AdaptivePooling.h).

    Args:
        length: L pixels; may be symbolic while exporting.
        bins: B.
        like: gives dtype and device.

    Returns:
        (B, L); every row sums to 1.
    """
    pixel = torch.arange(length, device=like.device).unsqueeze(0)
    number = torch.arange(bins, device=like.device).unsqueeze(1)
    # As comparisons of products: division of integers rounds differently from one runtime to the next.
    inside = ((pixel + 1) * bins > number * length) & (pixel * bins < (number + 1) * length)
    weights = inside.to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


class PyramidLevel(nn.Module):
    """One level of PSPNet's pyramid: pool, convolve, stretch back. Named inside as the block it stands in for."""

    def __init__(self, bins: int, convolution: nn.Module) -> None:
        super().__init__()
        self.pool = nn.Sequential(ShapePool(bins), convolution)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        pooled = self.pool(maps)
        return functional.interpolate(pooled, size=maps.shape[-2:], mode="bilinear", align_corners=True)


def write_pooling_from_shape(network: nn.Module) -> None:
    """Swap the pyramid of a PSPNet for one that exports right; weights and their names stay."""
    blocks = cast("nn.ModuleList", network.get_submodule("decoder.psp.blocks"))
    for index, block in enumerate(blocks):
        blocks[index] = PyramidLevel(cast("int", block.pool_size), block.get_submodule("pool.1"))
