"""Which optional parts of Segserve are installed, told without importing any of them."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from segserve.errors import MissingExtraError

TORCH_PACKAGES = (
    "torch",
    "torchvision",
    "kornia",
    "lightning_fabric",
    "onnxscript",
    "safetensors",
    "segmentation_models_pytorch",
    "timm",
    "torchmetrics",
)
CUDA_LINE = re.compile(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", re.MULTILINE)


@cache
def has_torch() -> bool:
    """Whether everything that training needs is installed."""
    return all(importlib.util.find_spec(name) for name in TORCH_PACKAGES)


def need_torch(what: str) -> None:
    """Refuse what cannot be done without torch.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    if not has_torch():
        raise MissingExtraError(
            f"{what} needs the optional part 'torch' of Segserve: on the server's machine, "
            f"run pip install 'segserve[torch]' and start the server again."
        )


@cache
def torch_cuda_version() -> str | None:
    """The CUDA version that the installed torch is built for; None if it uses no GPU of that kind, or is not here."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        found = CUDA_LINE.search((Path(spec.origin).parent / "version.py").read_text())
    except OSError:
        return None
    return found[1] if found else None
