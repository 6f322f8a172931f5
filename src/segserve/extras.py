"""Which optional parts of Segserve are installed, told without importing any of them."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
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
MMENGINE_PACKAGES = ("torch", "safetensors", "mmengine", "itkit", "monai", "zarr")
CUDA_LINE = re.compile(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", re.MULTILINE)


@cache
def has_torch() -> bool:
    """Whether everything that training needs is installed."""
    return _installed(TORCH_PACKAGES)


def need_torch(what: str) -> None:
    """Refuse what cannot be done without torch and what training needs besides.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    _need(has_torch(), what, "torch")


def need_torch_networks(what: str) -> None:
    """Refuse what cannot be done without torch itself.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    _need(_installed(("torch",)), what, "torch")


def need_mmengine(what: str) -> None:
    """Refuse what cannot be done without MMEngine and the libraries that ITKIT's configs use.

    Raises:
        MissingExtraError: one of them is not installed; names the extra.
    """
    _need(_installed(MMENGINE_PACKAGES), what, "mmengine")


def _installed(names: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


def _need(here: bool, what: str, extra: str) -> None:
    if not here:
        raise missing_extra(what, extra)


def missing_extra(what: str, extra: str) -> MissingExtraError:
    """The refusal of what cannot be done without an optional part, and how to get that."""
    return MissingExtraError(
        f"{what} needs the optional part {extra!r} of Segserve: on the server's machine, "
        f"run pip install 'segserve[{extra}]' and start the server again."
    )


def installed_version(package: str) -> str | None:
    """The version of an installed package, by its name on the registry; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
