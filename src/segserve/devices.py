"""What this machine computes with: processor, memory, GPUs. Asked without torch or any engine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Folder, and names of limit, usage and reclaimable cache; version 2, then 1. In a container these are what counts.
CGROUP_MEMORY = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
CGROUP_CPU = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))  # version 2, then 1


@dataclass(frozen=True)
class CudaDevice:
    """One NVIDIA GPU as its driver reports it; `memory` and `used` in bytes."""

    name: str
    memory: int
    used: int
    capability: tuple[int, int]


def cuda_devices() -> list[CudaDevice]:
    """The NVIDIA GPUs this process may see, by NVML; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [_cuda_device(handle) for handle in _visible(handles)]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _visible(handles: list[Any]) -> list[Any]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order: NVML does not know that variable, CUDA goes by it."""
    import pynvml

    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    by_name = {str(index): handle for index, handle in enumerate(handles)}
    by_uuid = {_text(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
    found = []
    for part in wanted.split(","):
        name = part.strip()
        matches = [handle for uuid, handle in by_uuid.items() if name and uuid.startswith(name)]
        handle = by_name.get(name) or (matches[0] if matches else None)
        if handle is None:
            break  # as CUDA does: what comes after an invalid entry is invisible
        found.append(handle)
    return found


def _cuda_device(handle: Any) -> CudaDevice:  # noqa: ANN401  # a handle of the driver's
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    return CudaDevice(name, int(memory.total), int(memory.used), (int(major), int(minor)))


def has_apple_gpu() -> bool:
    """True on Apple silicon."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def usable_cores() -> int:
    """The processor cores this process may run on: its affinity, and what its container may take."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(min(cores, int(quota)), 1) if quota else cores


def compute_threads() -> int:
    """How many threads to compute with: one a core. A core's second thread has no arithmetic unit of its own."""
    return min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores())


def processor_name() -> str:
    """The processor's model, as its system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cgroup_cores() -> float | None:
    """The cores a container's processor quota amounts to; None without one."""
    for read in (_quota_2, _quota_1):
        try:
            quota, period = read()
        except (OSError, ValueError):
            continue
        return quota / period if quota > 0 else None
    return None


def _quota_2() -> tuple[int, int]:
    quota, period = (CGROUP_CPU[0] / "cpu.max").read_text().split()
    return (-1 if quota == "max" else int(quota)), int(period)


def _quota_1() -> tuple[int, int]:
    quota, period = (int((CGROUP_CPU[1] / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return quota, period


def available_memory() -> int:
    """Bytes of memory that can still be taken: the machine's, or the container's where that is less."""
    available = int(psutil.virtual_memory().available)
    for folder, limit_name, usage_name, cache_name in CGROUP_MEMORY:
        try:
            limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            # The kernel gives page cache back before it kills, so usage overstates what is taken.
            available = min(available, max(int(limit) - usage + int(stat.get(cache_name, 0)), 0))
        break
    return available


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
