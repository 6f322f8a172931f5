"""The demo from beginning to end: train two networks, serve a folder with both, segment, judge, draw."""

import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import requests

from demo.brain import network, segformer
from demo.brain.anatomy import SPLIT_MM, Brain, load_brain
from demo.brain.disturbance import disturb
from demo.brain.evaluation import Score, behind_split, best_thresholds, score
from demo.brain.export import export, largest_difference
from demo.brain.picture import save_picture
from demo.brain.training import train
from demo.errors import DemoError
from demo.serving import Client, running_server
from demo.terminal import say, step

SCAN_SEED = 4
LEAST_DICE = 0.8
UNET, SEGFORMER = "brain-unet", "brain-segformer"
SHOWN = ("backend_type", "patch_size", "patch_stride", "window_level", "window_width", "orientation", "labels")


@dataclass(frozen=True)
class Answers:
    """The scan that is sent, and where the labels that come back are kept, by the model that made them."""

    scan: Path
    labels: dict[str, Path]


def show_brain(output: Path) -> None:
    """Train two networks on the front of a brain, serve both, and judge their answers on the back.

    Leaves in `output`: models/ (served: an ONNX file, and a folder with a configuration and a checkpoint),
    brain-scan.nii.gz (sent), brain-unet-labels.nii.gz and brain-segformer-labels.nii.gz (answered), brain.png.

    Raises:
        DemoError: something failed, or the answer of the ONNX network is no better than thresholds or below
            `LEAST_DICE`.
    """
    print("An ONNX network and an ITKIT model segment a real brain over HTTP")
    models = output / "models"
    models.mkdir(exist_ok=True)
    answers = Answers(
        output / "brain-scan.nii.gz", {name: output / f"{name}-labels.nii.gz" for name in (UNET, SEGFORMER)}
    )
    with step("1. The brain: nilearn's MNI152 template, 2 mm, and a scan of it as a poor scanner gives it"):
        brain = load_brain()
        _write_scan(brain, answers.scan)
    effort = network.EFFORT
    with step(f"2. Train a small 3D U-Net in front of y = {SPLIT_MM:.0f} mm, {effort.seconds:.0f} s or more; to ONNX"):
        file = models / f"{UNET}.onnx"
        unet = train(network.SmallUNet, brain, effort, say)
        export(unet, file)
        say(f"{file}, {file.stat().st_size / 2**20:.1f} MiB")
        say(f"its logits differ from torch's by at most {largest_difference(unet, file):.1g}")
    effort = segformer.EFFORT
    with step(f"3. Train ITKIT's SegFormer3D, a small one, likewise, {effort.seconds:.0f} s or more"):
        segformer.save(train(segformer.make, brain, effort, say), models / SEGFORMER)
        say(f"{models / SEGFORMER}: config.py and checkpoint.pth, as ITKIT's users have them")
    with step(f"4. Start the server with --model-dir {models}, send the scan to both"):
        _serve(models, answers)
    with step("5. Judge the answers where the networks never learned, and draw one"):
        found = _judge(brain, answers, output / "brain.png")
    _require(*found)
    print("\nThe U-Net beats the thresholds on both tissues.")


def _write_scan(brain: Brain, path: Path) -> None:
    """The whole brain, disturbed as in training but by its own fixed draw: int16, on the template's grid."""
    values = np.rint(disturb(brain.intensity, np.random.default_rng(SCAN_SEED))).astype(np.int16)
    nib.Nifti1Image(values, brain.affine).to_filename(path)
    say(f"{path}, {' x '.join(map(str, values.shape))} voxels, with uneven brightness, gain and noise")


def _serve(models: Path, answers: Answers) -> None:
    with running_server("--model-dir", str(models)) as client:
        say(f"server at {client.address}, which loads what it finds in the folder; GET /api/info:")
        cards = client.loaded_models(set(answers.labels))
        for name, path in answers.labels.items():
            say(f"{name}, with all its settings read from its own files:")
            for key in SHOWN:
                say(f"   {key}: {cards[name].get(key)}")
            _segment(client, name, answers.scan, path)


def _segment(client: Client, name: str, scan: Path, answer: Path) -> None:
    start = time.monotonic()
    response = client.segment(name, scan)
    say(f"POST /api/infer: a label map after {time.monotonic() - start:.1f} s, with the headers")
    _say_headers(response)
    answer.write_bytes(response.content)


def _say_headers(response: requests.Response) -> None:
    for name, value in response.headers.items():
        if name.lower().startswith("x-segserve-") and value:
            say(f"   {name}: {value}")


def _judge(brain: Brain, answers: Answers, picture: Path) -> tuple[Score, Score]:
    """Print the table and draw the picture; returns the scores of the ONNX network and of the thresholds."""
    sent = nib.load(answers.scan)
    intensity = np.asarray(sent.dataobj, dtype=np.float32)
    truth = behind_split(brain.labels, brain)
    guesses = {name: _labels(path, sent) for name, path in answers.labels.items()}
    say("the label maps lie on exactly the scan's grid")
    scores = {name: score(behind_split(guess, brain), truth) for name, guess in guesses.items()}
    thresholds = best_thresholds(behind_split(intensity, brain), truth)
    _print_table(scores, thresholds)
    save_picture(picture, intensity, guesses[UNET], brain, scores[UNET])
    say(f"picture: {picture}")
    return scores[UNET], thresholds


def _labels(path: Path, sent: nib.Nifti1Image) -> npt.NDArray[np.uint8]:
    found = nib.load(path)
    if sent.shape != found.shape or not np.array_equal(sent.affine, found.affine):
        raise DemoError("the label map does not lie on the grid of the scan that was sent.")
    return np.asarray(found.dataobj, dtype=np.uint8)


def _print_table(scores: dict[str, Score], thresholds: Score) -> None:
    rows = [*((f"{name}, over HTTP", row) for name, row in scores.items()), ("the best two thresholds *", thresholds)]
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
