"""Where a training runs and in which precision."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal

import torch

from segserve import devices

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Place:
    """A device as torch names it, the same in words, and the precision in force (a Lightning Fabric name)."""

    device: str
    info: str
    precision: Precision

    @property
    def kind(self) -> str:
        """`cuda`, `mps` or `cpu`."""
        return self.device.partition(":")[0]


def choose(wanted: str, *, mixed: bool) -> Place:
    """The device asked for, or the processor if torch cannot use it.

    Args:
        wanted: `cuda:N`, `mps` or `cpu`.
        mixed: permits reduced precision where the hardware has it.
    """
    if wanted.startswith("cuda:") and int(wanted.removeprefix("cuda:")) < torch.cuda.device_count():
        return Place(wanted, torch.cuda.get_device_name(wanted), _cuda_precision() if mixed else "32-true")
    if wanted == "mps" and torch.backends.mps.is_available():
        return Place("mps", "Apple Silicon (MPS)", "32-true")
    precision: Precision = "bf16-mixed" if mixed and has_fast_bf16() else "32-true"
    name = platform.processor() or platform.machine()
    return Place("cpu", f"CPU {name}, {devices.usable_cores()} threads", precision)


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware: AMX or AVX512-BF16."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def _cuda_precision() -> Precision:
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
