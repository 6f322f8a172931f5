"""The demo from beginning to end: train, export, serve, segment, judge, draw."""

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import requests

from demo.brain.anatomy import SPLIT_MM, Brain, load_brain
from demo.brain.disturbance import disturb
from demo.brain.evaluation import Score, behind_split, best_thresholds, score
from demo.brain.export import export, largest_difference
from demo.brain.picture import save_picture
from demo.brain.training import TRAINING_SECONDS, train
from demo.errors import DemoError
from demo.serving import running_server
from demo.terminal import say, step

SCAN_SEED = 4
LEAST_DICE = 0.8


def show_brain(output: Path) -> None:
    """Train a network on the front of a brain, serve it, and judge its answer on the back.

    Leaves in `output`: brain.onnx, brain-scan.nii.gz (sent), brain-labels.nii.gz (answered), brain.png.

    Raises:
        DemoError: something failed, or the answer is no better than thresholds or below `LEAST_DICE`.
    """
    print("An ONNX network segments a real brain over HTTP")
    model, scan, answer = (output / name for name in ("brain.onnx", "brain-scan.nii.gz", "brain-labels.nii.gz"))
    with step("1. The brain: nilearn's MNI152 template, 2 mm, and a scan of it as a poor scanner gives it"):
        brain = load_brain()
        _write_scan(brain, scan)
    with step(
        f"2. Train a small 3D U-Net on the part in front of y = {SPLIT_MM:.0f} mm, {TRAINING_SECONDS:.0f} s or more"
    ):
        trained = train(brain, say)
    with step("3. Export it to ONNX"):
        export(trained.network, model)
        say(f"{model}, {model.stat().st_size / 2**20:.1f} MiB")
        say(f"its logits differ from torch's by at most {largest_difference(trained.network, model):.1g}")
    with step("4. Start the server, load the model, send the scan"):
        _serve(model, scan, answer)
    with step("5. Judge the answer where the network never learned, and draw it"):
        found = _judge(brain, scan, answer, output / "brain.png")
    _require(*found)
    print("\nThe network beats the thresholds on both tissues.")


def _write_scan(brain: Brain, path: Path) -> None:
    """The whole brain, disturbed as in training but by its own fixed draw: int16, on the template's grid."""
    values = np.rint(disturb(brain.intensity, np.random.default_rng(SCAN_SEED))).astype(np.int16)
    nib.Nifti1Image(values, brain.affine).to_filename(path)
    say(f"{path}, {' x '.join(map(str, values.shape))} voxels, with uneven brightness, gain and noise")


def _serve(model: Path, scan: Path, answer: Path) -> None:
    with running_server() as client:
        say(f"server at {client.address}")
        card = client.load("brain", model)
        say("POST /api/models: the server read all its settings from the ONNX file:")
        for key in ("patch_size", "patch_stride", "window_level", "window_width", "orientation", "labels"):
            say(f"   {key}: {card.get(key)}")
        start = time.monotonic()
        response = client.segment("brain", scan)
        say(f"POST /api/infer: a label map after {time.monotonic() - start:.1f} s, with the headers")
        _say_headers(response)
        answer.write_bytes(response.content)
        client.unload("brain")
        say("DELETE /api/models/brain: unloaded")


def _say_headers(response: requests.Response) -> None:
    for name, value in response.headers.items():
        if name.lower().startswith("x-segserve-") and value:
            say(f"   {name}: {value}")


def _judge(brain: Brain, scan: Path, answer: Path, picture: Path) -> tuple[Score, Score]:
    """Print the table and draw the picture; returns the scores of the network and of the thresholds."""
    sent, labels = nib.load(scan), nib.load(answer)
    if sent.shape != labels.shape or not np.array_equal(sent.affine, labels.affine):
        raise DemoError("the label map does not lie on the grid of the scan that was sent.")
    say("the label map lies on exactly the scan's grid")
    intensity = np.asarray(sent.dataobj, dtype=np.float32)
    guess = np.asarray(labels.dataobj, dtype=np.uint8)
    truth = behind_split(brain.labels, brain)
    network = score(behind_split(guess, brain), truth)
    thresholds = best_thresholds(behind_split(intensity, brain), truth)
    _print_table(network, thresholds)
    save_picture(picture, intensity, guess, brain, network)
    say(f"picture: {picture}")
    return network, thresholds


def _print_table(network: Score, thresholds: Score) -> None:
    rows = (("the network, over HTTP", network), ("the best two thresholds *", thresholds))
    print(f"\n   {f'Dice behind y = {SPLIT_MM:.0f} mm':<28}{'grey matter':>12}{'white matter':>14}")
    for name, row in rows:
        print(f"   {name:<28}{row.grey:>12.3f}{row.white:>14.3f}")
    print("   Dice: how much of the tissue was found and is right; 1 is perfect, 0 is nothing.")
    print("   * chosen knowing the right answer, on these very voxels: no threshold can do better\n")


def _require(network: Score, thresholds: Score) -> None:
    if min(network.grey, network.white) < LEAST_DICE:
        raise DemoError(f"a Dice of {min(network.grey, network.white):.4f} is below {LEAST_DICE}: too little training.")
    if network.grey <= thresholds.grey or network.white <= thresholds.white:
        raise DemoError("the network is no better than two thresholds.")
