"""Which engines, devices and precisions come into question for a network, and starting one of them."""

from __future__ import annotations

from dataclasses import dataclass

from segserve.devices import cuda_devices
from segserve.engines.base import Engine, OnnxNetwork
from segserve.engines.registry import AUTO, ENGINES, installed_engines
from segserve.errors import BadInputError, MissingExtraError

REFERENCE = ("onnxruntime", "cpu", "float32")


@dataclass(frozen=True)
class Wish:
    """What the user leaves to choose.

    Attributes:
        engine: an engine's name, or `auto`.
        device: `cpu`, `cuda` or `cuda:N`, or None for any.
        reduced: whether precisions below float32 are permitted.
    """

    engine: str = AUTO
    device: str | None = None
    reduced: bool = False


@dataclass(frozen=True)
class Candidate:
    """One way to run a network."""

    engine: str
    device: str
    precision: str

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.precision == "float32"

    def __str__(self) -> str:
        return f"{self.engine} on {self.device} in {self.precision}"


def candidates(wish: Wish) -> list[Candidate]:
    """Every candidate on this machine, float32 before reduced precision; the first is the reference for the others.

    ONNX Runtime on the processor comes first where it is installed: it is the implementation that goes by the
    standard's own text.

    Raises:
        MissingExtraError: the engine asked for is not installed; names the extra.
        BadInputError: it cannot use the device asked for.
    """
    names = {engine.name for engine in installed_engines() if OnnxNetwork in engine.networks}
    if wish.engine != AUTO and wish.engine not in names:
        raise MissingExtraError(
            f"The engine {wish.engine} needs the optional part 'onnx' of Segserve: on the server's machine, "
            f"run pip install 'segserve[onnx]' and start the server again."
        )
    found = [candidate for name in names for candidate in _of_engine(name, wish) if _meets(candidate, wish)]
    if not found:
        raise BadInputError(f"The engine {wish.engine} cannot use the device {wish.device} on this machine.")
    return sorted(
        found, key=lambda one: (not one.exact, (one.engine, one.device, one.precision) != REFERENCE, str(one))
    )


def start(candidate: Candidate, network: OnnxNetwork) -> Engine:
    """The engine with the network in it.

    Raises:
        EngineError: it cannot read the network.
    """
    if candidate.engine == "onnxruntime":
        from segserve.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(network, candidate.device, candidate.precision)
    from segserve.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(network, candidate.precision)


def _of_engine(name: str, wish: Wish) -> list[Candidate]:
    if name == "onnxruntime":
        from segserve.engines.onnxruntime import CUDA_PRECISIONS

        cuda = wish.device if wish.device and wish.device.startswith("cuda") else "cuda"
        on_gpu = [Candidate(name, cuda, precision) for precision in CUDA_PRECISIONS] if _cuda_with(name) else []
        return [Candidate(name, "cpu", "float32"), *on_gpu]
    from segserve.engines.openvino import reduced_precisions

    return [Candidate(name, "cpu", precision) for precision in ("float32", *reduced_precisions())]


def _cuda_with(name: str) -> bool:
    return bool(cuda_devices()) and any(
        engine.name == name and "cuda" in engine.devices and engine.version() for engine in ENGINES
    )


def _meets(candidate: Candidate, wish: Wish) -> bool:
    return (
        wish.engine in {AUTO, candidate.engine}
        and (wish.device is None or candidate.device.partition(":")[0] == wish.device.partition(":")[0])
        and (wish.reduced or candidate.exact)
    )
