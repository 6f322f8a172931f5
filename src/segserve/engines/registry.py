"""Which engines exist and which are installed, known without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from segserve import devices
from segserve.engines.base import Network, OnnxNetwork, TorchNetwork

AUTO = "auto"


@dataclass(frozen=True)
class EngineInfo:
    """An engine: the package that brings it, the kinds of device it can use, and of network it can run.

    Attributes:
        extra: the optional part of Segserve that brings the package; None if it is always there.
    """

    name: str
    package: str
    devices: tuple[str, ...]
    networks: tuple[type[Network], ...]
    extra: str | None = None

    def version(self) -> str | None:
        """The installed package's version, None if it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


ENGINES = (
    EngineInfo("openvino", "openvino", ("cpu",), (OnnxNetwork, TorchNetwork)),
    EngineInfo("onnxruntime", "onnxruntime", ("cpu",), (OnnxNetwork,), "onnx"),
    EngineInfo("onnxruntime", "onnxruntime-gpu", ("cpu", "cuda"), (OnnxNetwork,), "cuda"),
    EngineInfo("torch", "torch", ("cpu", "cuda", "mps"), (TorchNetwork,), "torch"),
)


def installed_engines() -> list[EngineInfo]:
    """The engines whose package is installed."""
    return [engine for engine in ENGINES if engine.version()]


def cuda_is_usable() -> bool:
    """True only if an installed engine can use a CUDA device that is there."""
    return any("cuda" in engine.devices for engine in installed_engines()) and bool(devices.cuda_devices())
