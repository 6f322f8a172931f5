"""The story from beginning to end: strokes, export, train over HTTP, classify, judge, draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo.errors import DemoError
from demo.serving import running_server
from demo.terminal import say, step
from demo.tissue.evaluation import by_colour, mean_iou
from demo.tissue.export import Part, export
from demo.tissue.picture import save_picture
from demo.tissue.slide import CLASSES, POSITIVE, Slide, load_slide
from demo.tissue.strokes import UNLABELLED, areas, draw_strokes
from demo.tissue.tiles import OVERLAP, TILE, colour, tile_count
from demo.tissue.training import BACKBONE, EPOCHS, request, train

SEED = 0
LEAST_IOU = 0.85


def show_tissue(output: Path, seed: int = SEED) -> None:
    """Train a pixel classifier on strokes on the left two thirds of a slide, and judge it on the right third.

    Leaves in `output`: tissue-data/ (the training folder), tissue.png.

    Args:
        output: an existing folder.
        seed: of the strokes and the training.

    Raises:
        DemoError: something failed, or the classifier is no better than colour alone or below `LEAST_IOU`.
    """
    print("\n\nA pixel classifier is trained over HTTP on real tissue")
    folder = output / "tissue-data"
    with step("1. The slide: scikit-image's immunohistochemistry image, colon glands stained brown (DAB) for FHL2"):
        slide = load_slide()
        _say_truth(slide)
    with step("2. Draw strokes on the left two thirds, export patches of them as QuPath does"):
        strokes = _export(slide, folder, seed)
    with step(
        f"3. Start the server, train a U-Net on {BACKBONE} from random weights, {EPOCHS} epochs, and colour the slide"
    ):
        guess = _train(slide, folder, seed)
    with step("4. Judge it on the right third, of which nothing was learned, and draw it"):
        scores = _judge(slide, strokes, guess, output / "tissue.png")
    _require(*scores)
    print("\nThe classifier beats colour alone.")


def _say_truth(slide: Slide) -> None:
    height, width, _ = slide.image.shape
    share = float((slide.truth[:, slide.split :] == POSITIVE).mean())
    say(f"{width} x {height} pixels, RGB; columns from {slide.split} on are the right third")
    say("what counts as true: the amount of brown, capped, smoothed over half a nucleus, cut by Otsu's threshold.")
    say("It labels the strokes and judges the result; nothing else sees it")
    say(f"{CLASSES[POSITIVE]} on the right third: {share:.0%}")


def _export(slide: Slide, folder: Path, seed: int) -> npt.NDArray[np.uint8]:
    """Draw and export; returns all strokes, (H, W) uint8, class numbers, 255 elsewhere."""
    rng = np.random.default_rng(seed)
    training, validation = areas(slide)
    parts = (
        Part("train", training, draw_strokes(slide, training, rng)),
        Part("validation", validation, draw_strokes(slide, validation, rng)),
    )
    counts = export(folder, slide, parts)
    strokes = np.minimum(parts[0].strokes, parts[1].strokes)
    share = (strokes != UNLABELLED).sum() / (slide.truth.shape[0] * slide.split)
    each = " and ".join(f"{area.strokes} to {verb}" for area, verb in ((training, "train"), (validation, "validate")))
    say(f"strokes of each class: {each} on, these in the lowest quarter;")
    say(f"together {share:.1%} of the pixels of the left two thirds, none of the right third")
    say(f"{folder}: {counts['train']} overlapping patches to train on, {counts['validation']} to validate on")
    return strokes


def _train(slide: Slide, folder: Path, seed: int) -> npt.NDArray[np.uint8]:
    """Train; returns the classes that the finished model gives the slide's pixels, (H, W) uint8."""
    with running_server() as client:
        say(f"server at {client.address}")
        model = train(client, request(folder, seed))
        say(f"finished: {model.name}, {(model / 'model.onnx').stat().st_size / 2**20:.0f} MiB as ONNX")
        count = tile_count(*slide.truth.shape)
        say(f"{count} tiles of {TILE} x {TILE} pixels, {OVERLAP} shared with the next, classified over HTTP")
        say("and blended as QuPath's extension blends them")
        return np.asarray(colour(client, model, slide.image).argmax(axis=0), np.uint8)


def _judge(
    slide: Slide, strokes: npt.NDArray[np.uint8], guess: npt.NDArray[np.uint8], picture: Path
) -> tuple[float, float]:
    """Print the table and draw the picture; returns the mean IoU of the network and of colour alone."""
    plain = by_colour(slide, strokes)
    network, colour = mean_iou(guess, slide), mean_iou(plain, slide)
    save_picture(picture, slide, strokes, (plain, colour), (guess, network))
    print(f"\n   {'on all pixels of the right third':<36}{'mean IoU':>10}")
    print(f"   {'the network, trained over HTTP':<36}{network:>10.3f}")
    print(f"   {'logistic regression on colour *':<36}{colour:>10.3f}")
    print("   Mean IoU: of a class's pixels, found or true, the share that is both; mean of the classes; 1 is perfect.")
    print("   * of each pixel alone, learned from the same strokes, those for validation included\n")
    say(f"picture: {picture}")
    return network, colour


def _require(network: float, colour: float) -> None:
    if network < LEAST_IOU:
        raise DemoError(f"a mean IoU of {network:.4f} is below {LEAST_IOU}: too little training.")
    if network <= colour:
        raise DemoError(f"the network's mean IoU of {network:.4f} is no better than colour alone, {colour:.4f}.")
