"""The network: a small 3D U-Net."""

import torch
from torch import Tensor, nn

from demo.brain.anatomy import LABELS
from demo.brain.training import Effort

EFFORT = Effort(peak_rate=2e-2, seconds=60, steps=240)
WIDTH = 8
LEVELS = 4


def _convolutions(count: int, channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, *[channels_out] * (count - 1)):
        layers += [
            nn.Conv3d(channels, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Four resolutions, each with a skip connection; one convolution before the first halving, for speed.

    Input (N, 1, Z, Y, X) float32, windowed intensities in 0..1, each side divisible by 8.
    Output (N, 3, Z, Y, X) float32 logits, one channel per key of `LABELS`.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH * 2**level for level in range(LEVELS)]
        pairs = list(zip(widths[1:], widths, strict=False))  # (coarser, finer)
        self.first = _convolutions(1, 1, widths[0])
        self.down = nn.ModuleList(_convolutions(2, finer, coarser) for coarser, finer in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose3d(coarser, finer, 2, stride=2) for coarser, finer in pairs)
        self.up = nn.ModuleList(_convolutions(2, 2 * finer, finer) for _, finer in pairs)
        self.head = nn.Conv3d(widths[0], len(LABELS), 1)
        self.halve = nn.MaxPool3d(2)

        # The memory layout in which the processor's convolutions run fastest.
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, image: Tensor) -> Tensor:
        """Logits for a batch of patches; see the class for shapes."""
        features = [self.first(image)]
        for block in self.down:
            features.append(block(self.halve(features[-1])))
        x = features.pop()
        for grow, block in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = block(torch.cat([grow(x), features.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits
