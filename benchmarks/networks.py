"""Networks to measure with: real layer shapes, random weights."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import segmentation_models_pytorch
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SETTLING_PATCH = 32


class Block(nn.Sequential):
    """Two 3x3x3 convolutions."""

    def __init__(self, inside: int, outside: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inside, outside):
            layers += [nn.Conv3d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm3d(outside), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """A plain 3D U-Net of three levels, (N, 1, Z, Y, X) to (N, classes, Z, Y, X)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([Block(1, width), Block(width, 2 * width), Block(2 * width, 4 * width)])
        self.up = nn.ModuleList([Block(6 * width, 2 * width), Block(3 * width, width)])
        self.pool, self.grow = nn.MaxPool3d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        first = self.down[0](x)
        second = self.down[1](self.pool(first))
        deepest = self.down[2](self.pool(second))
        middle = self.up[0](torch.cat([self.grow(deepest), second], 1))
        logits: torch.Tensor = self.head(self.up[1](torch.cat([self.grow(middle), first], 1)))
        return logits


def random_unet(*, classes: int, width: int) -> UNet:
    """A U-Net in evaluation mode, the same random weights each time.

    Its normalisation has seen one patch in 0..1: without, one class would be the highest everywhere.
    """
    torch.manual_seed(0)
    network = UNet(classes, width)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.momentum = None  # the average of what was seen, and nothing of the values it starts with
    with torch.no_grad():
        network(torch.rand(1, 1, *[SETTLING_PATCH] * 3))
    return network.eval()


def gigaflops(network: nn.Module, patch: int) -> float:
    """What one patch costs: two operations for each multiplication of the convolutions, in thousands of millions."""
    image = torch.empty(1, 1, patch, patch, patch, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta")(image)
    return float(counter.get_total_flops()) / 1e9


def write_onnx(network: nn.Module, path: Path, *, patch: int) -> Path:
    """Export a network with a fixed patch."""
    # The exporter warns of torchvision, which this network has no use for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    shape = torch.zeros(1, 1, patch, patch, patch)
    torch.onnx.export(network, (shape,), str(path), dynamo=True, external_data=False, verbose=False)
    return path


def write_tile_unet(path: Path, backbone: str, *, classes: int) -> Path:
    """Export a random 2D U-Net of segmentation-models-pytorch, (N, 3, H, W) of any size divisible by 32."""
    torch.manual_seed(0)
    network = segmentation_models_pytorch.Unet(backbone, encoder_weights=None, in_channels=3, classes=classes).eval()
    axes = {0: "n", 2: "h", 3: "w"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 64, 64),),
            str(path),
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": axes, "output": axes},
            opset_version=18,
        )
    return path
