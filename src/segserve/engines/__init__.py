"""What runs a network: `logits = engine(batch)`."""

from segserve.engines.base import Engine, EngineError, TensorSpec
from segserve.engines.registry import ENGINES, EngineInfo, cuda_is_usable, installed_engines

__all__ = ["ENGINES", "Engine", "EngineError", "EngineInfo", "TensorSpec", "cuda_is_usable", "installed_engines"]
