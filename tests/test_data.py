"""Training folders: found, checked, split, decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pytest
from tifffile import imread

from segserve.errors import BadInputError
from segserve.training.data.check import DataRequest, quick_check
from segserve.training.data.patches import DataSet, load
from segserve.training.data.synthetic import write_synthetic
from tests.datasets import (
    DECODED_FAULTS,
    FAULTS,
    NAMES,
    make_mask,
    request_body,
    write_config,
    write_dataset,
    write_image,
    write_mask,
)

PLENTY = 2**30


SUFFIXES = [".tiff", ".tif", ".png", ".jpg", ".jpeg", ".raw"]


def request(folder: Path, **changes: Any) -> DataRequest:
    return DataRequest(**request_body(folder, **changes))


def loaded(folder: Path, tmp_path: Path, **changes: Any) -> DataSet:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return load(request(folder, **changes), scratch, memory_bound=PLENTY)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("config", ["readme", "java"])
def test_good_folders_are_accepted(tmp_path: Path, suffix: str, config: Literal["readme", "java"]) -> None:
    folder = write_dataset(tmp_path / "data", suffix=suffix, config=config)
    summary = quick_check(request(folder), 60)
    assert summary.complete
    assert summary.warnings == []
    assert (summary.train, summary.validation) == (4, 2)
    assert summary.train_pixels == [4 * 32 * 32] * 2
    assert summary.validation_pixels == [2 * 32 * 32] * 2
    assert summary.sizes == [(64, 64, 6)]
    assert summary.class_weights == [1.0, 2.0]
    wire = json.loads(json.dumps(summary.to_wire()))
    assert [entry["name"] for entry in wire["classes"]] == NAMES[:2]
    assert ("color" in wire["classes"][0]) == (config == "java")
    assert loaded(folder, tmp_path).summary == summary


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_sentence(tmp_path: Path, fault: str) -> None:
    folder = write_dataset(tmp_path / "data")
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(BadInputError) as quick:
        quick_check(request(folder), 60)
    with pytest.raises(BadInputError) as full:
        loaded(folder, tmp_path)
    for word in words:
        assert word in quick.value.message
        assert word in full.value.message
    assert quick.value.message.count(". ") == 0


@pytest.mark.parametrize("fault", DECODED_FAULTS)
def test_faults_that_decoding_shows(tmp_path: Path, fault: str) -> None:
    folder = write_dataset(tmp_path / "data")
    spoil, words = DECODED_FAULTS[fault]
    spoil(folder)
    with pytest.raises(BadInputError) as caught:
        loaded(folder, tmp_path)
    assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize("path", ["data", "/no/such/folder", "C:\\data\\x", "bad\0name", "/" + "a" * 5000])
def test_a_path_that_leads_nowhere_says_on_which_machine(path: str) -> None:
    with pytest.raises(BadInputError, match="on the machine that the server runs on"):
        quick_check(DataRequest(path, NAMES[:2], 3), 60)


def test_a_check_out_of_time_says_so_and_does_not_fail(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    FAULTS["strange value"][0](folder)
    summary = quick_check(request(folder), 0)
    assert not summary.complete
    assert (summary.train, summary.validation, summary.sizes) == (4, 2, [])


def test_a_missing_config_is_a_warning(tmp_path: Path) -> None:
    summary = quick_check(request(write_dataset(tmp_path / "data", config=None)), 60)
    assert summary.class_weights == [1.0, 1.0]
    assert "config.json" in summary.warnings[0]


def test_weights_that_fit_the_file_but_not_the_request_are_dropped(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", classes=3)
    write_config(folder, {"class_weights": [1.0, 2.0]})
    for path in folder.glob("*/masks/*"):
        mask = make_mask((64, 64), 3)
        mask[:4] = 0
        write_mask(path, mask)
    summary = quick_check(request(folder, classes=NAMES[:3]), 60)
    counts = np.bincount(mask.ravel())[:3]
    np.testing.assert_allclose(summary.class_weights, counts.sum() / (3 * counts))
    assert any("2 of them for 3 classes" in warning for warning in summary.warnings)


def test_files_are_taken_in_the_published_order_and_oddities_are_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", train=1)
    for stem, suffix in (("b", ".png"), ("a", ".raw"), ("d", ".TIF"), ("c", ".tiff")):
        write_image(folder / "train/images" / f"{stem}{suffix.lower()}", np.zeros((64, 64, 3), np.uint8))
        (folder / "train/images" / f"{stem}{suffix.lower()}").rename(folder / "train/images" / f"{stem}{suffix}")
        write_mask(folder / f"train/masks/{stem}.png", make_mask((64, 64), 2))
    write_mask(folder / "train/masks/orphan.png", make_mask((64, 64), 2))
    (folder / "train/images/.hidden.png").write_bytes(b"")
    (folder / "train/images/notes.txt").write_bytes(b"x")
    data = loaded(folder, tmp_path)
    names = ["c.tiff", "patch_0000.tiff", "d.TIF", "b.png", "a.raw"]
    assert data.train.names == [f"train/images/{name}" for name in names]
    assert [word for word in ("orphan.png", "notes.txt", ".hidden") if word in " ".join(data.summary.warnings)] == [
        "orphan.png",
        "notes.txt",
    ]


def test_an_alpha_band_is_dropped_and_named_bands_are_picked(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", channels=4, config="java")
    image = imread(folder / "train/images/patch_0000.tiff")
    np.testing.assert_array_equal(loaded(folder, tmp_path).train.images[0], image[..., :3])
    picked = loaded(folder, tmp_path, num_channels=2, channel_names=["Band 3", "Band 1"])
    np.testing.assert_array_equal(picked.train.images[0], image[..., [3, 1]])
    three = loaded(folder, tmp_path, channel_names=["Band 1", "Band 2", "Band 3"])
    np.testing.assert_array_equal(three.train.images[0], image[..., 1:])
    with pytest.raises(BadInputError, match="4 channels and the request says 2"):
        quick_check(request(folder, num_channels=2, channel_names=["Band 3", "Other"]), 60)


@pytest.mark.parametrize("lost", ["none", "one", "all"])
def test_context_lies_behind_the_patch(tmp_path: Path, lost: str) -> None:
    folder = write_dataset(tmp_path / "data", context=True, config="java")
    files = sorted(folder.glob("*/context/*"))
    for path in files[: {"none": 0, "one": 1, "all": len(files)}[lost]]:
        path.unlink()
    data = loaded(folder, tmp_path, context_scale=4)
    image = imread(folder / "train/images/patch_0000.tiff")
    behind = image if lost != "none" else image[::-1]
    np.testing.assert_array_equal(data.train.images[0], np.dstack([image, behind]))
    assert len(data.summary.warnings) == {"none": 0, "one": 1, "all": 2}[lost]
    assert quick_check(request(folder, context_scale=4), 60) == data.summary
    assert loaded(folder, tmp_path).train.images[0].shape == (64, 64, 3)


def test_context_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", context=True)
    write_image(folder / "train/context/patch_0001.tiff", np.zeros((64, 32, 3), np.uint8))
    for check in (lambda: quick_check(request(folder, context_scale=2), 60),
                  lambda: loaded(folder, tmp_path, context_scale=2)):  # fmt: skip
        with pytest.raises(BadInputError, match=r"train/context/patch_0001\.tiff has 64 x 32"):
            check()


@pytest.mark.parametrize("train", [1, 2, 3, 10])
def test_an_empty_validation_is_held_out(tmp_path: Path, train: int) -> None:
    folder = write_dataset(tmp_path / "data", train=train, validation=0)
    data = loaded(folder, tmp_path, validation_split=0.3)
    held = {1: 1, 2: 1, 3: 1, 10: 3}[train]
    assert len(data.validation) == held
    assert len(data.train) == max(1, train - held)
    assert len({*data.train.names, *data.validation.names}) == train
    assert "one patch only" in data.summary.warnings[0] or f"{held} of the {train}" in data.summary.warnings[0]
    again = loaded(folder, tmp_path, validation_split=0.3)
    assert again.validation.names == data.validation.names


def test_absent_classes_are_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", classes=4)
    for path in folder.glob("*/masks/*.png"):
        mask = make_mask((64, 64), 4)
        gone = [2] if path.parts[-3] == "train" else [1]
        mask[np.isin(mask, gone)] = 255
        write_mask(path, mask)
    summary = quick_check(request(folder, classes=NAMES), 60)
    assert summary.warnings == [
        "No training pixel is labelled Stroma: the model cannot learn it.",
        "No validation pixel is labelled Tumor: left out of the scores.",
    ]


@pytest.mark.parametrize("bound", [0, 20_000, PLENTY])
def test_patches_are_the_same_in_memory_and_in_the_file(tmp_path: Path, bound: int) -> None:
    folder = write_dataset(tmp_path / "data", suffix=".raw", unlabeled=200, size=(33, 57))
    seen: list[tuple[int, int]] = []
    data = load(request(folder), tmp_path, memory_bound=bound, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert data.nbytes == 6 * 33 * 57 * 4
    assert data.in_memory == {0: 0, 20_000: 20_000 - 20_000 % (33 * 57), PLENTY: data.nbytes}[bound] or bound == 20_000
    assert data.in_memory <= bound
    assert (tmp_path / "patches.bin").exists() == (bound != PLENTY)
    reference = np.fromfile(folder / "train/images/patch_0002.raw", "<f4", offset=12).reshape(33, 57, 3)
    np.testing.assert_array_equal(data.train.images[2], reference)
    assert data.train.images[2].dtype == np.uint8
    np.testing.assert_array_equal(data.train.masks[2], make_mask((33, 57), 2, 255))


@pytest.mark.parametrize(("dtype", "kept"), [(np.uint16, np.uint16), (np.float64, np.float32), (np.int32, np.uint16)])
def test_patches_are_kept_as_compactly_as_they_came(
    tmp_path: Path, dtype: type[np.generic], kept: type[np.generic]
) -> None:
    folder = write_dataset(tmp_path / "data", channels=5, dtype=dtype)
    assert {image.dtype for image in loaded(folder, tmp_path, num_channels=5).train.images} == {np.dtype(kept)}


def test_a_16_bit_png_of_colours_keeps_its_bits(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", suffix=".png", dtype=np.uint16)
    stored = imagecodecs.png_decode((folder / "train/images/patch_0000.png").read_bytes())
    np.testing.assert_array_equal(loaded(folder, tmp_path).train.images[0], stored)


def test_the_synthetic_set_is_what_the_readme_says(tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    summary = quick_check(DataRequest(str(tmp_path), ["Background", "Foreground"], 3), 60)
    assert (summary.train, summary.validation, summary.sizes, summary.warnings) == (4, 2, [(256, 256, 6)], [])
    assert summary.class_weights == [1.0, 2.0]
    data = load(DataRequest(str(tmp_path), ["Background", "Foreground"], 3), tmp_path, memory_bound=PLENTY)
    assert data.train.names[0] == "train/images/patch_0000.tiff"
    for image, mask in zip(data.train.images, data.train.masks, strict=True):
        assert image.dtype == np.uint8
        assert (mask[:50] == 0).all()
        assert set(np.unique(mask[50:])) == {1, 255}
        assert image[mask == 1].mean() < image[mask == 0].mean() - 50
