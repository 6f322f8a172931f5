"""`pip install .` alone: small, without torch, and enough to serve and to segment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.small_networks import threshold_network

ROOT = Path(__file__).parents[1]
UNWANTED = ("torch", "onnxruntime", "monai", "matplotlib", "scipy")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment into which only the base package was installed."""
    folder = tmp_path_factory.mktemp("install") / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    found = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([found, "-m", "pip", "install", "--quiet", ROOT], check=True, timeout=280)
    return found


@pytest.mark.slow
def test_base_install_is_small_and_brings_no_torch(python: Path) -> None:
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    packages = {line.split("==")[0].lower() for line in listed.stdout.splitlines()}
    assert "openvino" in packages
    assert not packages & set(UNWANTED)
    size = sum(path.stat().st_size for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 800 * 2**20


@pytest.mark.slow
def test_base_install_segments(python: Path, tmp_path: Path) -> None:
    network = threshold_network(tmp_path / "threshold.onnx", 0.0)
    voxels = np.random.default_rng(0).normal(size=(20, 18, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "image.nii.gz")
    command: list[str | Path] = [
        python,
        "-m",
        "segserve",
        "infer",
        network,
        tmp_path / "image.nii.gz",
        "-o",
        tmp_path / "labels.nii.gz",
    ]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    labels = np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 1}
