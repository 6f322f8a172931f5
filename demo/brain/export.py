"""The trained network as one ONNX file that tells the server all it needs to know."""

import json
import logging
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from demo.brain.anatomy import LABELS, NETWORK_ORIENTATION
from demo.brain.network import SmallUNet
from demo.brain.training import WINDOW_LEVEL, WINDOW_WIDTH
from demo.errors import DemoError

PATCH = 64
STRIDE = 32
OPSET = 18
TOLERANCE = 1e-3
"""Largest difference of a logit that rounding may explain."""


def export(network: SmallUNet, path: Path) -> None:
    """Write `network` to `path`: float32 (1, 1, 64, 64, 64) to logits (1, 3, 64, 64, 64).

    Everything the server must know travels in the file's metadata: patch size and overlap, intensity window,
    orientation and label names. No settings are sent along later.
    """
    # The exporter warns of torchvision, which this network has no use for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.zeros(1, 1, PATCH, PATCH, PATCH)
    program = torch.onnx.export(
        network, (example,), input_names=["image"], output_names=["logits"], opset_version=OPSET, dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(
        {
            "inference_config": json.dumps({"patch_size": [PATCH] * 3, "patch_stride": [STRIDE] * 3}),
            "window_level": str(WINDOW_LEVEL),
            "window_width": str(WINDOW_WIDTH),
            "orientation": NETWORK_ORIENTATION,
            "labels": json.dumps(LABELS),
        }
    )
    program.save(path, external_data=False)


def largest_difference(network: SmallUNet, path: Path) -> float:
    """The largest difference between the file's logits and `network`'s, on one random patch.

    Raises:
        DemoError: it is more than rounding.
    """
    patch = np.random.default_rng(0).random((1, 1, PATCH, PATCH, PATCH), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(patch)).numpy()
    (given,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": patch})
    difference = float(np.abs(given - expected).max())
    if difference > TOLERANCE:
        raise DemoError(f"the ONNX file's logits differ from the trained network's by {difference:.2g}.")
    return difference
