"""What is in force: request, metadata and the network's shape brought together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.errors import BadInputError, TooLargeError
from segserve.models.metadata import read_metadata
from segserve.models.plan import FreeShape, Plan, check_input_shape, make_plan
from segserve.models.request import InferenceConfig, parse, parse_load_request
from segserve.volumes.memory import check_patch

FREE: FreeShape = (None, 1, None, None, None)
FIXED: FreeShape = (1, 1, 32, 40, 48)


def plan(
    shape: FreeShape = FREE,
    metadata: dict[str, str] | None = None,
    devices: tuple[str, ...] = ("cpu",),
    **body: object,
) -> Plan:
    request = parse_load_request({"name": "m", "backend_type": "onnx", "model_path": "m.onnx", **body})
    return make_plan(request, read_metadata(metadata or {}), shape, default_patch=96, devices=devices)


def test_the_request_wins_over_the_metadata_key_by_key() -> None:
    metadata = {
        "inference_config": json.dumps({"patch_size": [16, 16, 16], "patch_stride": [8, 8, 8]}),
        "window_level": "40",
        "window_width": "400",
        "orientation": "RAS",
        "labels": json.dumps({"1": "liver"}),
    }
    own = plan(metadata=metadata)
    assert (own.patch_size, own.patch_stride, own.orientation) == ((16, 16, 16), (8, 8, 8), "RAS")
    assert (own.window_level, own.window_width, own.labels) == (40, 400, {"1": "liver"})
    asked = plan(metadata=metadata, inference_config={"patch_size": 24}, window_level=0, orientation="native")
    assert (asked.patch_size, asked.patch_stride, asked.orientation) == ((24, 24, 24), (8, 8, 8), "native")
    assert (asked.window_level, asked.window_width) == (0, 400)


def test_nothing_named_means_the_default_patch_half_the_stride_lpi_and_a_warning() -> None:
    found = plan(inference_config={"fp16": False})
    assert (found.patch_size, found.patch_stride, found.batch, found.orientation) == ((96,) * 3, (48,) * 3, 1, "LPI")
    assert any("patch_size" in warning for warning in found.warnings)


def test_a_fixed_shape_wins_with_a_warning_only_if_it_contradicts() -> None:
    assert plan(FIXED).patch_size == (32, 40, 48)
    assert plan(FIXED, inference_config={"patch_size": [32, 40, 48]}).warnings == []
    replaced = plan(FIXED, inference_config={"patch_size": 64, "forward_batch_windows": 4})
    assert replaced.patch_size == (32, 40, 48)
    assert replaced.batch == 1
    assert len(replaced.warnings) == 2


def test_a_stride_above_the_patch_in_force_becomes_half_of_it() -> None:
    found = plan(FIXED, inference_config={"patch_stride": [64, 20, 48]})
    assert found.patch_stride == (16, 20, 48)
    assert any("patch_stride" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("asked", "here", "taken", "warned"),
    [
        ({}, ("cpu", "cuda"), None, ""),
        ({"forward_device": "cpu"}, ("cpu", "cuda"), "cpu", ""),
        ({"forward_device": "cuda:1"}, ("cpu", "cuda"), "cuda:1", ""),
        ({"forward_device": "cuda"}, ("cpu",), None, "runs on the CPU"),
        ({"forward_device": "cpu", "accumulate_device": "cuda"}, ("cpu",), "cpu", "runs on the CPU"),
        ({"forward_device": "cuda", "accumulate_device": "cpu"}, ("cpu", "mps"), None, "use cuda"),
        ({"forward_device": "mps"}, ("cpu", "mps"), "mps", ""),
        ({"forward_device": "mps"}, ("cpu", "cuda"), None, "use mps"),
    ],
)
def test_devices_that_are_not_here_are_a_warning(
    asked: dict[str, str], here: tuple[str, ...], taken: str | None, warned: str
) -> None:
    found = plan(devices=here, inference_config={"patch_size": 8, **asked})
    assert found.wish.device == taken
    assert [warned in warning for warning in found.warnings] == ([True] if warned else [])


@pytest.mark.parametrize(("text", "threshold"), [("0.3", 0.3), ("0", 0.5), ("1", 0.5), ("nan", 0.5), ("half", 0.5)])
def test_the_threshold_of_one_class_lies_between_none_and_all(text: str, threshold: float) -> None:
    found = plan(metadata={"binary_segment_threshold": text}, inference_config={"patch_size": 8})
    assert found.threshold == threshold
    assert bool(found.warnings) == (text != "0.3")
    assert plan(inference_config={"patch_size": 8}).threshold == 0.5


@given(patch=st.integers(1, 200), stride=st.integers(1, 200))
def test_strides_never_leave_gaps(patch: int, stride: int) -> None:
    found = plan(inference_config={"patch_size": patch, "patch_stride": stride})
    assert all(1 <= step <= max(size, 1) for step, size in zip(found.patch_stride, found.patch_size, strict=True))


@pytest.mark.parametrize(
    ("value", "size"),
    [([96, 64, 32], (96, 64, 32)), (48, (48, 48, 48)), ([8.0, 8, 8], (8, 8, 8))],
)
def test_sizes_are_three_integers_or_one(value: object, size: tuple[int, int, int]) -> None:
    assert parse(InferenceConfig, {"patch_size": value}, "here").patch_size == size


@pytest.mark.parametrize(
    "value", [0, -1, 1.5, True, "x", [], [1, 2], [1, 2, 0], [1, 2, 3, 4], float("nan"), 10**400, {}]
)
def test_other_sizes_are_refused_by_name(value: object) -> None:
    with pytest.raises(BadInputError, match="patch_size"):
        parse(InferenceConfig, {"patch_size": value}, "here")


def test_nulls_count_as_absent_and_unknown_keys_are_named() -> None:
    assert parse(InferenceConfig, {"patch_size": None, "fp16": None}, "here") == InferenceConfig()
    with pytest.raises(BadInputError, match=r"Unknown key in here: patchsize, stride\. Known keys: patch_size"):
        parse(InferenceConfig, {"patchsize": 1, "stride": 2, "fp16": True}, "here")


def test_metadata_that_makes_no_sense_is_a_warning_and_the_rest_counts() -> None:
    metadata = {
        "inference_config": '{"patch_size": [8, 8, 8], "patch_stride": "wide", "mood": 1}',
        "window_level": "high",
        "window_width": "-5",
        "orientation": "up",
        "labels": "liver",
        "author": "somebody",
    }
    found = plan(metadata=metadata)
    assert found.patch_size == (8, 8, 8)
    assert (found.window_level, found.window_width, found.orientation, found.labels) == (None, None, "LPI", None)
    for name in ("patch_stride", "mood", "window_level", "window_width", "orientation", "labels"):
        assert any(name in warning for warning in found.warnings), name
    assert not any("author" in warning for warning in found.warnings)


def test_metadata_that_could_not_be_sent_on_is_ignored() -> None:
    found = plan(metadata={"labels": '{"1": "half \\ud800"}'})
    assert found.labels is None
    assert any("labels" in warning for warning in found.warnings)
    assert plan(metadata={"labels": json.dumps({"1": "x" * 2**21})}).labels is None
    assert plan(metadata={"labels": "[" * 100_000}).labels is None


@given(
    st.dictionaries(
        st.sampled_from(["inference_config", "labels", "window_level", "activation", "binary_segment_threshold"]),
        st.text(),
    )
)
def test_no_metadata_stops_a_model_from_loading(metadata: dict[str, str]) -> None:
    assert plan(metadata=metadata).patch_size == (96, 96, 96)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (), (1, 3, 8, 8, 8), (1, 1, 0, 8, 8)])
def test_an_input_that_is_no_volume_is_refused(shape: FreeShape) -> None:
    with pytest.raises(BadInputError):
        check_input_shape(shape, "float32 (...)")


def test_a_patch_that_cannot_fit_is_refused_before_it_is_made() -> None:
    with pytest.raises(TooLargeError, match="smaller patch_size"):
        check_patch(plan(inference_config={"patch_size": 2**20}))
