"""What this machine computes with: processor, memory, GPUs. Asked without torch or any engine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP_MEMORY = (  # (limit, usage) of cgroup v2, then v1: inside a container they are what counts
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


@dataclass(frozen=True)
class CudaDevice:
    """One NVIDIA GPU as its driver reports it; `memory` in bytes."""

    name: str
    memory: int


def cuda_devices() -> list[CudaDevice]:
    """The NVIDIA GPUs this process may see, by NVML; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            CudaDevice(_text(pynvml.nvmlDeviceGetName(h)), int(pynvml.nvmlDeviceGetMemoryInfo(h).total))
            for h in handles
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def has_apple_gpu() -> bool:
    """True on Apple silicon."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def usable_cores() -> int:
    """The processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory that can still be taken: the machine's, or the container's where that is less."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in CGROUP_MEMORY:
        try:
            limit, usage = limit_file.read_text().strip(), int(usage_file.read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            # The kernel gives page cache back before it kills, so usage overstates; psutil's figure caps the answer.
            available = min(available, max(int(limit) - usage + _reclaimable(), 0))
        break
    return available


def _reclaimable() -> int:
    """Bytes of page cache charged to this cgroup that the kernel would give back."""
    try:
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
