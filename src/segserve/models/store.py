"""The models that lie in the state directory."""

from __future__ import annotations

from pathlib import Path

NETWORK_FILE = "model.onnx"


def stored_models(folder: Path) -> list[Path]:
    """Every ONNX file of a folder, and every folder in it that holds a `model.onnx`, by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == ".onnx" or (path / NETWORK_FILE).is_file())
