"""Which engines, devices and precisions come into question for a network, and starting one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segserve.engines.base import Engine, Network, OnnxNetwork, TorchNetwork
from segserve.engines.registry import AUTO, ENGINES, installed_engines
from segserve.errors import BadInputError
from segserve.extras import missing_extra

KINDS = {OnnxNetwork: "ONNX", TorchNetwork: "PyTorch"}


@dataclass(frozen=True)
class Wish:
    """What the user leaves to choose.

    Attributes:
        engine: an engine's name, or `auto`.
        device: `cpu`, `cuda`, `cuda:N` or `mps`, or None for any.
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


# The implementation that goes by the standard's own text, and the one that the network was made with.
REFERENCES = (Candidate("onnxruntime", "cpu", "float32"), Candidate("torch", "cpu", "float32"))


def candidates(wish: Wish, kind: type[Network]) -> list[Candidate]:
    """Every candidate on this machine for a kind of network; the first is the reference for the others.

    That is one of `REFERENCES` where it is installed. The others are in the order in which they are worth trying:
    float32 before reduced precision, a GPU before the processor.

    Raises:
        MissingExtraError: the engine asked for is not installed; names the extra.
        BadInputError: it does not run such networks, or cannot use the device asked for.
    """
    _refuse_engine(wish.engine, kind)
    found = [one for one in _all(wish.device, kind) if _meets(one, wish)]
    if not found:
        raise BadInputError(f"The engine {wish.engine} cannot use the device {wish.device} on this machine.")
    return sorted(found, key=lambda one: (not one.exact, one not in REFERENCES, one.device == "cpu", str(one)))


def start(candidate: Candidate, network: Network, shape: tuple[int, ...] | None = None) -> Engine:
    """The engine with the network in it.

    Args:
        candidate: the engine, its device and its precision.
        network: what it is to run.
        shape: of the batches to come; an engine that prepares for a shape does it now, not at the first batch.

    Raises:
        EngineError: it cannot read the network, not use the device, or not take such batches.
    """
    if isinstance(network, OnnxNetwork) and candidate.engine == "onnxruntime":
        from segserve.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(network, candidate.device, candidate.precision)
    if isinstance(network, TorchNetwork) and candidate.engine == "torch":
        from segserve.engines.torch import TorchEngine

        return TorchEngine(network, candidate.device, candidate.precision)
    from segserve.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(network, candidate.precision, shape)


def _refuse_engine(name: str, kind: type[Network]) -> None:
    able = {engine.name: engine for engine in reversed(ENGINES) if kind in engine.networks}
    if name == AUTO or name in {engine.name for engine in installed_engines(kind)}:
        return
    if name not in able:
        raise BadInputError(
            f"The engine {name} does not run {KINDS[kind]} networks: ask for {', '.join(sorted(able))} or {AUTO}."
        )
    extra = able[name].extra
    assert extra, "what no optional part brings is always installed"
    raise missing_extra(f"The engine {name}", extra)


def _all(device: str | None, kind: type[Network]) -> set[Candidate]:
    """Every way to run a kind of network here; `device` may name one of several GPUs."""
    found = set()
    for engine in installed_engines(kind):
        for usable in engine.usable_devices():
            place = device if device and device.partition(":")[0] == usable else usable
            found |= {Candidate(engine.name, place, precision) for precision in _precisions(engine.name, usable)}
    return found


def _precisions(engine: str, device: str) -> Sequence[str]:
    if device == "cpu":
        from segserve.engines.openvino import reduced_precisions

        # OpenVINO knows the processor; of what it names, torch is faster in bfloat16 alone.
        known = {"openvino": reduced_precisions(), "torch": [one for one in reduced_precisions() if one == "bfloat16"]}
        return ["float32", *known.get(engine, [])]
    if engine == "onnxruntime":
        from segserve.engines.onnxruntime import CUDA_PRECISIONS

        return list(CUDA_PRECISIONS)
    from segserve.engines.torch import GPU_PRECISIONS

    return GPU_PRECISIONS[device]


def _meets(candidate: Candidate, wish: Wish) -> bool:
    return (
        wish.engine in {AUTO, candidate.engine}
        and (wish.device is None or candidate.device.partition(":")[0] == wish.device.partition(":")[0])
        and (wish.reduced or candidate.exact)
    )
