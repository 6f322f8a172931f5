"""What files are called: those of a pixel classifier's folder, and of weights that hold nothing but tensors."""

from __future__ import annotations

METADATA_FILE = "metadata.json"
NETWORK_FILE = "model.onnx"
WEIGHTS_FILE = "model.pt"
SAFETENSORS = ".safetensors"
