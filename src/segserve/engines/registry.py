"""Which engines exist and which are installed, known without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from segserve import devices

AUTO = "auto"


@dataclass(frozen=True)
class EngineInfo:
    """An engine: the package that brings it and the kinds of device it can use."""

    name: str
    package: str
    devices: tuple[str, ...]

    def version(self) -> str | None:
        """The installed package's version, None if it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


ENGINES = (
    EngineInfo("openvino", package="openvino", devices=("cpu",)),
    EngineInfo("onnxruntime", package="onnxruntime", devices=("cpu",)),
    EngineInfo("onnxruntime", package="onnxruntime-gpu", devices=("cpu", "cuda")),
)


def installed_engines() -> list[EngineInfo]:
    """The engines whose package is installed."""
    return [engine for engine in ENGINES if engine.version()]


def cuda_is_usable() -> bool:
    """True only if an installed engine can use a CUDA device that is there."""
    return any("cuda" in engine.devices for engine in installed_engines()) and bool(devices.cuda_devices())
