"""Training folders, good and spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import imwrite

NAMES = ["Background", "Tumor", "Stroma", "Vessel"]
UNLABELLED = 255


def write_dataset(
    folder: Path,
    *,
    suffix: str = ".tiff",
    channels: int = 3,
    dtype: type[np.generic] = np.uint8,
    size: tuple[int, int] = (64, 64),
    train: int = 4,
    validation: int = 2,
    classes: int = 2,
    unlabeled: int = UNLABELLED,
    config: Literal["readme", "java"] | None = "readme",
    context: bool = False,
    seed: int = 0,
) -> Path:
    """A good training folder: class k is a square of brightness by k, half of every patch is without labels."""
    generator = np.random.default_rng(seed)
    for number in range(train + validation):
        part = folder / ("train" if number < train else "validation")
        mask = make_mask(size, classes, unlabeled)
        image = make_image(generator, mask, channels, dtype)
        write_image(part / "images" / f"patch_{number:04}{suffix}", image)
        write_mask(part / "masks" / f"patch_{number:04}.png", mask)
        if context:
            write_image(part / "context" / f"patch_{number:04}{suffix}", image[::-1].copy())
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        write_config(folder, CONFIGS[config](NAMES[:classes], channels, unlabeled, context))
    return folder


def make_mask(size: tuple[int, int], classes: int, unlabeled: int = UNLABELLED) -> NDArray[np.uint8]:
    """Vertical stripes of the classes in the upper half, nothing in the lower."""
    mask = np.full(size, unlabeled, np.uint8)
    stripes = np.arange(size[1]) * classes // size[1]
    mask[: size[0] // 2] = stripes
    return mask


def make_image(
    generator: np.random.Generator, mask: NDArray[np.uint8], channels: int, dtype: type[np.generic]
) -> NDArray[Any]:
    values = 40 + 50 * (mask % 4)[..., None] + generator.integers(0, 40, (*mask.shape, channels))
    if np.issubdtype(dtype, np.floating):
        return (values + 0.5).astype(dtype)
    return (values * (100 if np.dtype(dtype).itemsize > 1 else 1)).astype(dtype)


def write_image(path: Path, image: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".raw":
        head = np.array(image.shape, "<i4").tobytes()
        path.write_bytes(head + image.astype("<f4").tobytes())
    elif path.suffix in {".tiff", ".tif"}:
        photometric = "rgb" if image.shape[2] in {3, 4} else "minisblack"
        if image.shape[2] == 1:
            imwrite(path, image[..., 0], photometric=photometric, metadata=None)
        else:
            imwrite(path, image, photometric=photometric, planarconfig="contig", metadata=None)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        Image.fromarray(image.squeeze()).save(path, quality=95)


def write_mask(path: Path, mask: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def write_config(folder: Path, content: dict[str, Any] | str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text, encoding="utf-8")


def readme_config(names: list[str], _channels: int, unlabeled: int, _context: bool) -> dict[str, Any]:
    weights = [1.0 + index for index in range(len(names))]
    return {"classes": names, "class_weights": weights, "unlabeled_index": unlabeled}


def java_config(names: list[str], channels: int, unlabeled: int, context: bool) -> dict[str, Any]:
    """As the exporter writes it."""
    return {
        "patch_size": 64,
        "downsample": 2.0,
        "unlabeled_index": unlabeled,
        "line_stroke_width": 5,
        "total_labeled_pixels": 1000,
        "classes": [
            {"index": index, "name": name, "color": f"#{index:02X}8040", "pixel_count": 500}
            for index, name in enumerate(names)
        ],
        "class_weights": [1.0 + index for index in range(len(names))],
        "channel_config": {
            "num_channels": channels * (2 if context else 1),
            "detail_channels": channels,
            "context_scale": 4 if context else 1,
            "channel_names": [f"Band {index}" for index in range(channels)],
            "bit_depth": 8,
            "normalization": {"strategy": "percentile_99", "per_channel": False, "clip_percentile": 99.0},
        },
        "metadata": {"source_image": "slide.svs", "train_count": 4, "validation_count": 2},
    }


CONFIGS = {"readme": readme_config, "java": java_config}


def request_body(folder: Path, **changes: Any) -> dict[str, Any]:
    """What goes with `write_dataset`'s defaults."""
    return {"data_path": str(folder), "classes": NAMES[:2], "num_channels": 3} | changes


FIRST = "train/images/patch_0000.tiff"
FIRST_MASK = "train/masks/patch_0000.png"
THIRD_MASK = "train/masks/patch_0002.png"


def _mask_with(value: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        mask = make_mask((64, 64), 2)
        mask[5, 7] = value
        write_mask(folder / THIRD_MASK, mask)

    return spoil


def _all_masks(fill: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in folder.glob("*/masks/*.png"):
            write_mask(path, fill(make_mask((64, 64), 2)))

    return spoil


def _image(image: NDArray[Any]) -> Callable[[Path], None]:
    return lambda folder: write_image(folder / FIRST, image)


def _bytes(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def _config(content: dict[str, Any] | str) -> Callable[[Path], None]:
    return lambda folder: write_config(folder, content)


def _remove(pattern: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def _cut(folder: Path) -> None:
    path = folder / FIRST
    path.write_bytes(path.read_bytes()[:2000])


def _twin(folder: Path) -> None:
    write_image(folder / "train/images/patch_0000.png", np.zeros((64, 64, 3), np.uint8))


def _zeros(*shape: int) -> NDArray[np.uint8]:
    return np.zeros(shape, np.uint8)


FAULTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no images": (_remove("train/images/*"), ["no images", "train/images"]),
    "no mask": (_remove(FIRST_MASK), [FIRST, FIRST_MASK, "missing"]),
    "two of one name": (_twin, ["patch_0000.tiff", "patch_0000.png", "remove one"]),
    "strange value": (_mask_with(7), [THIRD_MASK, "value 7", "2 classes", "0 to 1", "255 is unlabelled"]),
    "mask of another size": (
        lambda folder: write_mask(folder / FIRST_MASK, _zeros(64, 32)),
        [FIRST_MASK, "64 x 32", "64 x 64"],
    ),
    "colour mask": (
        lambda folder: write_mask(folder / FIRST_MASK, np.arange(12288, dtype=np.uint8).reshape(64, 64, 3)),
        [FIRST_MASK, "colour"],
    ),
    "empty mask file": (_bytes(FIRST_MASK, b""), [FIRST_MASK, "empty"]),
    "mask that is a TIFF": (_bytes(FIRST_MASK, b"II*\0" + bytes(40)), [FIRST_MASK, "TIFF", "PNG"]),
    "too many channels": (_image(_zeros(64, 64, 5)), [FIRST, "5 channels", "says 3 (num_channels)"]),
    "too few channels": (_image(_zeros(64, 64, 1)), [FIRST, "1 channel ", "3 (num_channels)"]),
    "image cut short": (_cut, [FIRST, "cut short"]),
    "image empty": (_bytes(FIRST, b""), [FIRST, "empty"]),
    "image of no kind": (_bytes(FIRST, b"BM" + bytes(60)), [FIRST, "neither a TIFF"]),
    "one class": (_all_masks(lambda mask: np.where(mask == 1, UNLABELLED, mask)), ["Only Background", "Tumor"]),
    "no labels": (_all_masks(lambda mask: np.full_like(mask, UNLABELLED)), ["no class", "two classes"]),
    "broken config": (_config('{"classes": ["A" "B"]}'), ["config.json", "line 1", "column 18"]),
    "config of other classes": (
        _config({"classes": ["A", "B", "C"]}),
        ["2 classes", "config.json 3"],
    ),
    "config is a list": (_config("[]"), ["config.json", "object"]),
    "classes of numbers": (_config({"classes": [1, 2]}), ["config.json", "names"]),
    "unlabeled_index is text": (_config({"unlabeled_index": "x"}), ["unlabeled_index", "'x'"]),
    "unlabeled_index is a class": (_config({"unlabeled_index": 1}), ["unlabeled_index", "Tumor", "255"]),
}
"""Each fault: what spoils `write_dataset`'s folder, and words that the error sentence must hold."""

DECODED_FAULTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "NaN": (_image(np.full((64, 64, 3), np.nan, np.float32)), [FIRST, "NaN"]),
}
"""Faults that only decoding the images shows."""
