"""Which engines exist, which are installed and what they can use here, known without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass

from segserve import devices
from segserve.engines.base import Network, OnnxNetwork, TorchNetwork
from segserve.extras import installed_version, torch_cuda_version

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
        return installed_version(self.package)

    def usable_devices(self) -> list[str]:
        """The kinds of device that it can use and that are here."""
        return [kind for kind in self.devices if self._can_use(kind)]

    def _can_use(self, kind: str) -> bool:
        if kind == "cuda":
            return (self.package != "torch" or torch_cuda_version() is not None) and bool(devices.cuda_devices())
        return kind != "mps" or devices.has_apple_gpu()


ENGINES = (
    EngineInfo("openvino", "openvino", ("cpu",), (OnnxNetwork, TorchNetwork)),
    EngineInfo("onnxruntime", "onnxruntime", ("cpu",), (OnnxNetwork,), "onnx"),
    EngineInfo("onnxruntime", "onnxruntime-gpu", ("cpu", "cuda"), (OnnxNetwork,), "cuda"),
    EngineInfo("torch", "torch", ("cpu", "cuda", "mps"), (TorchNetwork,), "torch"),
)


def installed_engines(kind: type[Network] | None = None) -> list[EngineInfo]:
    """The engines whose package is installed: those that run such networks, or all."""
    return [engine for engine in ENGINES if (kind is None or kind in engine.networks) and engine.version()]


def usable_devices(kind: type[Network] | None = None) -> set[str]:
    """The kinds of device on which such networks, or any, can be run here."""
    return {device for engine in installed_engines(kind) for device in engine.usable_devices()}


def cuda_is_usable(kind: type[Network] | None = None) -> bool:
    """True only if an installed engine that runs such networks, or any, can use a CUDA device that is there."""
    return "cuda" in usable_devices(kind)
