"""What the server computes on, as the dialect tells it: the union of what its README and its clients know."""

from __future__ import annotations

from typing import Any

from segserve import devices
from segserve.engines.registry import cuda_is_usable
from segserve.extras import has_torch, torch_cuda_version

MIB = 2**20
APPLE = "Apple Silicon (MPS)"


def training_devices() -> list[str]:
    """The devices that torch can train on, best kind only: `cuda:N`, else `mps`, else `cpu`."""
    if has_torch() and torch_cuda_version() and (cards := devices.cuda_devices()):
        return [f"cuda:{index}" for index in range(len(cards))]
    return ["mps"] if has_torch() and devices.has_apple_gpu() else ["cpu"]


def _usable_cards() -> list[devices.CudaDevice]:
    return devices.cuda_devices() if cuda_is_usable() else []


def gpu_info() -> dict[str, Any]:
    """The answer of `GET /gpu`; what does not apply is absent, never null."""
    cards = _usable_cards()
    if cards:
        first, cuda = cards[0], torch_cuda_version()
        return {
            "available": True,
            "name": first.name,
            "memory_mb": first.memory // MIB,
            "device_type": "cuda",
            "device_string": "cuda:0",
            **({"cuda_version": cuda} if cuda else {}),
            "compute_capability": list(first.capability),
            "total_memory_mb": first.memory // MIB,
            **_card_memory(first),
        }
    if training_devices() == ["mps"]:
        return {
            "available": True,
            "name": APPLE,
            "memory_mb": 0,
            "device_type": "mps",
            "device_string": "mps",
            "mps_available": True,
            "backend": "mps",
        }
    return {"available": False, "name": "CPU", "memory_mb": 0, "device_type": "cpu", "device_string": "cpu"}


def memory_info() -> dict[str, Any]:
    """The memory of the first device, before and after it is cleared."""
    cards = _usable_cards()
    if cards:
        return {"device": "cuda", **_card_memory(cards[0])}
    if training_devices() == ["mps"]:
        return {"device": "mps", "info": "Unified memory, shared with the system"}
    return {"device": "cpu", "info": "Using system RAM"}


def _card_memory(card: devices.CudaDevice) -> dict[str, Any]:
    """A card's memory in MiB. The driver counts every process; this one allocates nothing of its own."""
    used = round(card.used / MIB, 1)
    return {
        "allocated_mb": used,
        "reserved_mb": used,
        "max_allocated_mb": used,
        "total_mb": card.memory // MIB,
        "utilization_percent": round(100 * card.used / card.memory, 1) if card.memory else 0.0,
    }
