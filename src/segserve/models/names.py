"""What the files of a pixel classifier's folder are called."""

from __future__ import annotations

METADATA_FILE = "metadata.json"
NETWORK_FILE = "model.onnx"
WEIGHTS_FILE = "model.pt"
