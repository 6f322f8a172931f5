"""`config.json` as programs and people write it, and patches dealt out to sides and batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve.errors import BadInputError
from segserve.training.data.batches import epoch_batches
from segserve.training.data.config import ClassInfo, read_config
from segserve.training.data.split import split_patches
from tests.datasets import (
    NAMES,
    java_config,
    write_config,
)


def test_java_config_is_read_whole(tmp_path: Path) -> None:
    content = java_config(NAMES[:2], 4, 254, True)
    content["patch_size"] = 64.0
    write_config(tmp_path, content)
    config = read_config(tmp_path)
    assert config.classes == [ClassInfo("Background", "#008040"), ClassInfo("Tumor", "#018040")]
    assert (config.unlabeled_index, config.context_scale, config.patch_size, config.downsample) == (254, 4, 64, 2.0)
    assert config.channel_names == ["Band 0", "Band 1", "Band 2", "Band 3"]
    assert config.source_images == ["slide.svs"]
    content["classes"].reverse()
    content["metadata"] = {"source_images": ["a", "b"]}
    write_config(tmp_path, content)
    assert read_config(tmp_path).classes == config.classes
    assert read_config(tmp_path).source_images == ["a", "b"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[0,750000, 1,500000]", [0.75, 1.5]),
        ("[0,050000, 1,500000]", [0.05, 1.5]),
        ("[12,050000,1,500000]", [12.05, 1.5]),
        ("[0.75, 1.5]", [0.75, 1.5]),
        ("[1, 200000]", [1, 200000]),
        ("[1.0, 2.0, 3.0]", None),
        ("[1.0, -2.0]", None),
        ("[0, 0]", None),
        ("[NaN, 1.0]", None),
        ("[1e999, 1.0]", None),
        ("[\u0660\u066b\u0667, \u0661\u066b\u0665]", None),
        ('"x"', None),
        ("null", None),
        ("[1, 2, 3, 4]", None),
    ],
)
def test_class_weights_of_any_locale(tmp_path: Path, written: str, read: list[float] | None) -> None:
    text = f'{{"classes": ["A", "B"], "class_weights": {written}, "unlabeled_index": 255.0}}'
    write_config(tmp_path, text)
    config = read_config(tmp_path)
    assert config.class_weights == read
    repaired = ",0" in written or ",5" in written
    assert len(config.warnings) == (0 if written == "null" or (read and not repaired) else 1)
    assert config.unlabeled_index == 255


@pytest.mark.parametrize("name", ["umlaut \xe4", "tab\there"])
def test_configs_in_the_systems_encoding_and_with_control_characters(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_bytes(f'{{"classes": ["{name}", "B"]}}'.encode("latin-1"))
    assert read_config(tmp_path).classes == [ClassInfo(name), ClassInfo("B")]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "", "{", '{"x": ' + "1" * 5000 + "}"])
def test_a_hostile_config_is_a_sentence(tmp_path: Path, text: str) -> None:
    write_config(tmp_path, text)
    with pytest.raises(BadInputError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(BadInputError, match="16 MiB"):
        read_config(tmp_path)


@settings(max_examples=80, deadline=None)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["classes", "class_weights", "unlabeled_index", "channel_config", "metadata", "name", "index"]
                ),
                inner,
                max_size=5,
            )
        ),
    )
)
def test_any_json_is_a_config_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    folder = tmp_path_factory.mktemp("config")
    write_config(folder, json.dumps(content))
    outcome = "config.json"
    try:
        read_config(folder)
    except BadInputError as error:
        outcome = error.message
    assert "config.json" in outcome


@settings(max_examples=150, deadline=None)
@given(
    present=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=12),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_holding_out_keeps_every_class_in_training(present: list[list[bool]], fraction: float, seed: int) -> None:
    counts = np.array(present, np.int64) * 7
    split = split_patches(len(counts), 0, counts, fraction, seed)
    assert sorted(split.train + split.validation) == list(range(len(counts)))
    assert split.train
    assert 1 <= len(split.validation) <= max(1, round(fraction * len(counts)))
    repeated = np.count_nonzero(counts, axis=0)
    spare = [row for row in counts if not any(row.astype(bool) & (repeated == 1))]
    if spare:
        assert (counts[split.train].any(axis=0) == counts.any(axis=0)).all()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([(32, 32), (64, 32), (64, 64)]), max_size=40),
    batch_size=st.integers(1, 9),
    seed=st.integers(-5, 2**64),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
)
def test_an_epoch_deals_every_patch_once(
    sizes: list[tuple[int, int]], batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    batches = epoch_batches(sizes, batch_size, seed, epoch, shuffle=shuffle)
    assert sorted(number for batch in batches for number in batch) == list(range(len(sizes)))
    occurring = Counter(sizes)
    for batch in batches:
        assert len({sizes[number] for number in batch}) == 1
        assert len(batch) <= max(batch_size, 3 if batch_size == 2 else 1)
        assert len(batch) > 1 or batch_size == 1 or occurring[sizes[batch[0]]] == 1
    assert batches == epoch_batches(sizes, batch_size, seed, epoch, shuffle=shuffle)
    if not shuffle:
        assert batches == epoch_batches(sizes, batch_size, seed + 1, epoch + 1, shuffle=False)


def test_epochs_and_seeds_differ() -> None:
    deals = [epoch_batches([(32, 32)] * 40, 4, seed, epoch, shuffle=True) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(deal) for deal in deals}) == 4
    assert epoch_batches([(32, 32)] * 5, 4, 0, 0, shuffle=False) == [[0, 1, 2], [3, 4]]
