"""What counts when request and model both say how tiles are read, and what a network takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.errors import BadInputError
from segserve.models.catalog.architectures import architecture
from segserve.tiles.normalize import Normalization
from segserve.tiles.recipe import Needs, Recipe
from segserve.tiles.statistics import ChannelStats
from segserve.training import metadata
from segserve.training.known import Known
from segserve.training.spec import TrainingSpec

TRAINED = [{"p1": 1.0, "p99": 90.0}, {"p1": 2.0, "p99": 91.0}]
SENT = [{"p1": 5.0, "p99": 50.0, "unknown": "x"}]
Json = object  # whatever a client or a file may hold
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def asking(*, options: Json = None, selected: Json = None, **normalization: Json) -> dict[str, Any]:
    config = {"num_channels": 3, "selected_channels": selected, "normalization": normalization}
    return {"input_config": config, "options": options}


def of_model(stats: Json = None, **normalization: Json) -> dict[str, Any]:
    return {"input_config": {"normalization": normalization}, "normalization_stats": stats}


def test_nothing_said_anywhere() -> None:
    expected = Recipe((), Normalization("percentile_99", per_channel=True, clip_percentile=99.0), (), 0)
    assert Recipe.of({}, {}) == expected
    assert Recipe.of({"input_config": None, "options": None}, {"input_config": None}) == expected
    assert Recipe.of(asking(), of_model()) == expected


def test_the_request_counts_first_then_the_model() -> None:
    model = of_model(strategy="fixed_range", per_channel=False, clip_percentile=98.0, min=-1.0, max=7.0, more=1)
    assert Recipe.of({}, model).normalization == Normalization("fixed_range", False, 98.0, -1, 7)
    mixed = Recipe.of(asking(per_channel=True, max=9, clip_percentile=None), model).normalization
    assert mixed == Normalization("fixed_range", True, 98.0, -1, 9)
    other = Recipe.of(asking(strategy="z_score", clip_percentile=90), model).normalization
    assert other == Normalization("z_score", False, 90.0, -1, 7)


def test_a_model_as_qupath_rewrites_it() -> None:
    rewritten = {"channel_config": {"normalization_strategy": "MIN_MAX"}}
    assert Recipe.of({}, rewritten).normalization.strategy == "min_max"
    kept = {**rewritten, **of_model(strategy="z_score")}
    assert Recipe.of({}, kept).normalization.strategy == "z_score"


def test_whose_statistics_count() -> None:
    trained = tuple(ChannelStats(p1=entry["p1"], p99=entry["p99"]) for entry in TRAINED)
    sent = (ChannelStats(p1=5, p99=50),)
    assert Recipe.of(asking(precomputed=True, channel_stats=SENT), of_model(TRAINED)).stats == sent
    assert Recipe.of(asking(precomputed=True, channel_stats=SENT), {}).stats == sent
    assert Recipe.of(asking(precomputed=False, channel_stats=SENT), of_model(TRAINED)).stats == trained
    assert Recipe.of(asking(channel_stats=SENT), of_model(TRAINED)).stats == trained
    assert Recipe.of(asking(precomputed=True, channel_stats=[]), of_model(TRAINED)).stats == trained
    assert Recipe.of(asking(precomputed=True), of_model(TRAINED)).stats == trained
    assert Recipe.of(asking(), {}).stats == ()


def test_a_range_that_is_asked_for_wins_over_the_trainings() -> None:
    model = of_model([{"min": 0.0, "max": 100.0}], strategy="fixed_range", max=100.0)
    assert Recipe.of({}, model).stats == (ChannelStats(min=0, max=100),)
    asked = Recipe.of(asking(max=50), model)
    assert (asked.stats, asked.normalization.fixed_range) == ((), (0, 50))


@pytest.mark.parametrize(("sent", "read"), [(None, ()), ([], ()), ([2, 0], (2, 0)), ([1.0, 4.0], (1, 4))])
def test_selected_channels(sent: Json, read: tuple[int, ...]) -> None:
    assert Recipe.of(asking(selected=sent), {}).selected == read


@pytest.mark.parametrize(
    ("sent", "read"), [({}, 0), ({"reflection_padding": None}, 0), ({"reflection_padding": 32.0}, 32)]
)
def test_padding(sent: Json, read: int) -> None:
    assert Recipe.of(asking(options=sent), {}).padding == read


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (asking(strategy="histogram"), ["input_config.normalization.strategy", "percentile_99", "'histogram'"]),
        (asking(strategy=7), ["strategy", "7"]),
        (asking(per_channel="often"), ["per_channel", "often"]),
        (asking(clip_percentile=50), ["clip_percentile", "50"]),
        (asking(clip_percentile=float("nan")), ["clip_percentile", "nan"]),
        (asking(strategy="fixed_range", min=3, max=3), ["min must be below max", "3"]),
        (asking(strategy="fixed_range", min=300), ["300", "255"]),
        (asking(precomputed=True, channel_stats=[1]), ["channel_stats", "1"]),
        (asking(selected=[-1]), ["selected_channels", "-1"]),
        (asking(selected=[0.5]), ["selected_channels", "0.5"]),
        (asking(options={"reflection_padding": -1}), ["options.reflection_padding", "-1"]),
        (asking(options={"reflection_padding": "wide"}), ["options.reflection_padding", "wide"]),
        (asking(options=[32]), ["options must be an object", "32"]),
        ({"input_config": 5}, ["input_config must be an object", "5"]),
        ({"input_config": {"normalization": "z_score"}}, ["normalization must be an object", "z_score"]),
    ],
)
def test_nonsense_is_told(request_: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        Recipe.of(request_, {})
    for word in words:
        assert word in caught.value.message


def test_nonsense_in_a_model_is_told_as_the_models() -> None:
    for model in (of_model(clip_percentile=7), of_model(strategy="odd"), of_model("odd"), of_model([3])):
        with pytest.raises(BadInputError, match=r"metadata\.json"):
            Recipe.of({}, model)
    assert Recipe.of(asking(strategy="min_max"), of_model(strategy="odd")).normalization.strategy == "min_max"


@given(request_=st.dictionaries(st.sampled_from(["input_config", "options"]), JSON), model=JSON, part=JSON)
def test_any_json_is_read_or_refused(request_: dict[str, Any], model: Json, part: Json) -> None:
    nested = {"input_config": {"selected_channels": model, "normalization": {"strategy": part, "min": model}}}
    said = {"input_config": model, "architecture": part, "normalization_stats": part, "size_divisor": model}
    for asked in (request_, nested, {"options": {"reflection_padding": part}}):
        try:
            recipe = Recipe.of(asked, said)
        except BadInputError as error:
            assert error.message.endswith(".")  # noqa: PT017  # either outcome is right
        else:
            assert recipe.padding >= 0
    needs = Needs.of(said, (None, None, None, None))
    assert needs.divisor >= 1


FREE = (None, None, None, None)


@pytest.mark.parametrize(
    ("said", "shape", "channels", "context"),
    [
        ({}, FREE, None, False),
        ({}, (1, 5, None, None), 5, False),
        ({"input_config": {"num_channels": 4.0}}, FREE, 4, False),
        ({"input_config": {"num_channels": 4.5}}, FREE, None, False),
        ({"input_config": {"num_channels": 3}}, (None, 5, None, None), 5, False),
        ({"input_config": {"num_channels": 3.0}}, (None, 6, None, None), 6, True),
        ({"input_config": {"num_channels": 3}, "architecture": {"context_scale": 4.0}}, FREE, 6, True),
        ({"input_config": {"num_channels": 3}, "architecture": {"context_scale": 4}}, (1, 3, 64, None), 3, False),
        ({"architecture": {"context_scale": 4, "input_channels": 3.0}}, FREE, 6, True),
        ({"architecture": {"context_scale": 1.0, "input_channels": 3}}, FREE, 3, False),
        ({"architecture": {"input_channels": 3}}, (None, 6, None, None), 6, False),
        ({"architecture": {"context_scale": 2}}, (None, 8, None, None), 8, True),
        ({"architecture": {"context_scale": 2}}, (None, 7, None, None), 7, False),
    ],
)
def test_channels_of_a_network(
    said: Mapping[str, Any], shape: tuple[int | None, ...], channels: int | None, context: bool
) -> None:
    needs = Needs.of(said, shape)
    assert (needs.channels, needs.context) == (channels, context)
    assert (needs.divisor, needs.least, needs.fixed) == (1, 1, None)


def test_sizes_of_a_network() -> None:
    needs = Needs.of({"size_divisor": 32.0, "size_least": 128}, (1, 3, 256, 512))
    assert (needs.divisor, needs.least, needs.fixed) == (32, 128, (256, 512))
    assert Needs.of({"size_divisor": 0, "size_least": "x"}, FREE).divisor == 1


def test_what_a_training_writes_is_read_back() -> None:
    spec = TrainingSpec.model_validate(
        {
            "architecture": {"type": "pan", "context_scale": 4},
            "input_config": {"num_channels": 2, "normalization": {"strategy": "z_score", "per_channel": False}},
            "training": {},
            "classes": ["a", "b"],
            "data_path": "x",
        }
    )
    stats = [ChannelStats(0, 1, 0, 1, 0.5, float(channel)) for channel in range(4)]
    known = Known(stats=stats, colours=[None, None], source="", licence=None, patches={}, pixels={}, warnings=[])
    best = {"epoch": 1, "loss": 0.0, "accuracy": 1.0, "mean_iou": 1.0}
    written = metadata.describe(spec, architecture("pan"), known, best=best, epochs_run=1, warnings=[])
    recipe = Recipe.of({}, written)
    assert recipe.normalization == Normalization("z_score", per_channel=False)
    assert recipe.stats == tuple(stats)
    assert Needs.of(written, FREE) == Needs(4, context=True, divisor=32, least=128, fixed=None)
