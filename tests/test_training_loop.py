"""The training loop on small real networks: what it changes, what it must not, and that a pause leaves no trace."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segserve.errors import BadInputError
from segserve.models.catalog.architectures import architecture
from segserve.tiles.normalize import Normalization
from segserve.tiles.statistics import measure
from segserve.training import checkpoint
from segserve.training.data.patches import load
from segserve.training.data.request import DataRequest
from segserve.training.device import Place
from segserve.training.events import BatchDone, CheckpointReady, EpochDone, Event, Paused
from segserve.training.feed import Feed
from segserve.training.loop import Loop, Setting
from segserve.training.network.build import build_network
from segserve.training.network.freeze import freeze
from segserve.training.progress import Progress
from segserve.training.spec import ArchitectureChoice, Hyperparameters, InputConfig, TrainingSpec
from tests.datasets import NAMES, write_dataset
from tests.thinned import thinned

CPU = Place("cpu", "CPU", "32-true")
State = dict[str, Any]


@contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with two_threads():
        yield


def make_spec(folder: Path, **changes: Any) -> TrainingSpec:
    values: dict[str, Any] = {
        "kind": "unet",
        "backbone": "mobilenet_v2",
        "frozen": [],
        "channels": 3,
        "context": 1,
        "classes": 2,
        **changes,
    }
    named = {"kind", "backbone", "frozen", "channels", "context", "classes"}
    training = {"epochs": 2, "batch_size": 2, "scheduler": "cosine", "mixed_precision": False}
    return TrainingSpec(
        architecture=ArchitectureChoice(
            type=values["kind"],
            backbone=values["backbone"],
            frozen_layers=values["frozen"],
            context_scale=values["context"],
        ),
        input_config=InputConfig(num_channels=values["channels"]),
        training=Hyperparameters(**{**training, **{k: v for k, v in changes.items() if k not in named}}),
        classes=NAMES[: values["classes"]],
        data_path=str(folder),
    )


def make_loop(spec: TrainingSpec, scratch: Path, state: State | None = None, **changes: Any) -> Loop:
    scratch.mkdir(exist_ok=True)
    data = load(DataRequest.of(spec), scratch, memory_bound=2**30)
    torch.manual_seed(spec.training.seed)
    chosen = spec.architecture
    network = build_network(chosen.type, chosen.backbone, spec.network_channels, len(spec.classes))
    frozen = freeze(network, chosen.backbone, chosen.frozen_layers)
    normalization = Normalization(**spec.input_config.normalization.model_dump())
    stats = measure(data.train.images, normalization, 0)
    kind = architecture(chosen.type)
    setting = Setting(
        spec=spec,
        train=Feed(data.train, normalization, stats, kind),
        validation=Feed(data.validation, normalization, stats, kind),
        place=changes.pop("place", CPU),
        frozen=frozen,
        class_weights=data.summary.class_weights,
    )
    progress = Progress.of(state, same_batches=changes.pop("same_batches", True)) if state else Progress()
    return Loop(setting, network, progress, changes.pop("pause_asked", lambda: False))


def events_of(loop: Loop) -> list[Event]:
    return list(loop.run())


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def after(batches: int) -> Callable[[], bool]:
    """Asks for a pause after so many looks."""
    looks = iter(range(batches))
    return lambda: next(looks, None) is None


def on_disk(state: State, folder: Path) -> State:
    """A checkpoint as the next process finds it."""
    path = folder / "checkpoint.pt"
    checkpoint.save(path, state)
    found = checkpoint.load(path)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), train=5, validation=2)


@pytest.mark.slow
def test_a_training_learns_what_brightness_tells(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, epochs=20, learning_rate=0.003, augmentation=False)
    loop = make_loop(spec, tmp_path / "scratch")
    epochs = [event for event in events_of(loop) if isinstance(event, EpochDone)]
    assert [event.epoch for event in epochs] == list(range(1, len(epochs) + 1))
    assert epochs[-1].train_loss < epochs[0].train_loss / 2
    best = max(epoch.mean_iou for epoch in epochs)
    assert best > 0.85
    assert loop.progress.best is not None
    assert loop.progress.best["mean_iou"] == best
    assert same(weights_of(loop.network), loop.progress.best["state"])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        loop = make_loop(make_spec(data, seed=seed, epochs=1), tmp_path / "scratch")
        events_of(loop)
        found.append(weights_of(loop.network))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(
    ("looks", "place"),
    [
        *((looks, CPU) for looks in (0, 3)),
        pytest.param(1, replace(CPU, precision="bf16-mixed"), marks=pytest.mark.slow),
        *(pytest.param(looks, CPU, marks=pytest.mark.slow) for looks in (1, 4, 5, 7)),
        pytest.param(6, replace(CPU, precision="bf16-mixed"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_paused_training_goes_on_as_if_it_had_never_been_paused(
    data: Path, tmp_path: Path, looks: int, place: Place
) -> None:
    """Paused before anything, in an epoch, between its last batch and its validation, in the validation."""
    spec = make_spec(data, scheduler="onecycle", optimizer="adam")
    undisturbed = make_loop(spec, tmp_path / "scratch", place=place)
    whole = [event for event in events_of(undisturbed) if isinstance(event, EpochDone)]

    first = make_loop(spec, tmp_path / "scratch", pause_asked=after(looks), place=place)
    told = events_of(first)
    assert isinstance(told[-1], Paused)
    assert isinstance(told[-2], CheckpointReady)
    assert sum(isinstance(event, BatchDone) for event in told) <= looks
    second = make_loop(spec, tmp_path / "scratch", on_disk(told[-2].state, tmp_path), place=place)
    rest = events_of(second)

    assert same(weights_of(undisturbed.network), weights_of(second.network))
    epochs = [event for event in [*told, *rest] if isinstance(event, EpochDone)]
    untimed = [replace(event, seconds=0, peak_memory=0) for event in epochs]
    assert untimed == [replace(event, seconds=0, peak_memory=0) for event in whole]


def test_a_resume_with_another_batch_size_starts_the_epoch_over(data: Path, tmp_path: Path) -> None:
    first = make_loop(make_spec(data), tmp_path / "scratch", pause_asked=after(1))
    state = events_of(first)[-2]
    assert isinstance(state, CheckpointReady)
    assert state.state["batch"] == 1
    spec = make_spec(data, batch_size=3, learning_rate=0.5)
    second = make_loop(spec, tmp_path / "scratch", on_disk(state.state, tmp_path), same_batches=False)
    batches = [event for event in events_of(second) if isinstance(event, BatchDone)]
    assert [(event.epoch, event.batch, event.batches) for event in batches] == [
        (1, 1, 2),
        (1, 2, 2),
        (2, 1, 2),
        (2, 2, 2),
    ]
    assert second.progress.history[0]["learning_rate"] <= 0.5
    assert second.progress.history[0]["learning_rate"] > 0.001


def test_a_second_pause_before_the_first_batch_keeps_what_was_learnt_since_the_best_epoch(
    data: Path, tmp_path: Path
) -> None:
    first = make_loop(make_spec(data), tmp_path / "scratch")
    events = first.run()
    next(event for event in events if isinstance(event, EpochDone))
    best = first._state()
    assert best["network"] is best["best"]["state"], "written twice"
    next(event for event in events if isinstance(event, BatchDone))
    learnt = weights_of(first.network)
    state = on_disk(first._state(), tmp_path)
    assert not same(state["best"]["state"], state["network"])

    second = make_loop(
        make_spec(data, batch_size=3), tmp_path / "scratch", state, same_batches=False, pause_asked=lambda: True
    )
    ready = events_of(second)[-2]
    assert isinstance(ready, CheckpointReady)
    assert same(ready.state["network"], learnt)


def test_a_checkpoint_comes_after_an_epoch_when_half_a_minute_has_passed_since_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("segserve.training.loop.time.monotonic", lambda: now)
    loop = make_loop(make_spec(data, epochs=4, batch_size=5, early_stopping=False), tmp_path / "scratch")
    kept = []
    for event in loop.run():
        now += 16.0 if isinstance(event, EpochDone) else 0.0
        if isinstance(event, CheckpointReady):
            assert not event.pausing
            kept.append(event.state["epoch"])
    assert kept == [1, 3]


def test_a_resume_with_more_epochs_trains_those_and_one_with_fewer_none(data: Path, tmp_path: Path) -> None:
    first = make_loop(make_spec(data, epochs=1), tmp_path / "scratch")
    events_of(first)
    state = on_disk(first._state(), tmp_path)
    more = make_loop(make_spec(data, epochs=3), tmp_path / "scratch", state)
    assert [event.epoch for event in events_of(more) if isinstance(event, EpochDone)] == [2, 3]
    again = make_loop(make_spec(data, epochs=1), tmp_path / "scratch", on_disk(first._state(), tmp_path))
    assert events_of(again) == []
    assert same(weights_of(again.network), weights_of(first.network))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_frozen_weights_and_statistics_stay_as_they_are_bit_for_bit(data: Path, tmp_path: Path, backbone: str) -> None:
    names = {
        "mobilenet_v2": ["encoder.features[0:2]", "encoder.layer_mid", "segmentation_head"],
        "resnet18": ["encoder.conv1", "encoder.layer1", "encoder.layer2"],
    }[backbone]
    loop = make_loop(make_spec(data, backbone=backbone, frozen=names, epochs=1), tmp_path / "scratch")
    before = weights_of(loop.network)
    held = {name for name, parameter in loop.network.named_parameters() if not parameter.requires_grad}
    assert held
    events_of(loop)
    now = weights_of(loop.network)
    owners = {name.rpartition(".")[0] for name in held}
    moved = 0
    for name, tensor in now.items():
        if name.rpartition(".")[0] in owners:
            assert torch.equal(tensor, before[name]), name
        else:
            moved += not torch.equal(tensor, before[name])
    assert moved > 10


def test_unlabelled_pixels_teach_nothing(tmp_path: Path) -> None:
    """The same strokes over other values where nothing is labelled, in a part that no labelled pixel's view reaches."""
    patches = write_dataset(tmp_path / "data", train=2, validation=1)
    loop = make_loop(make_spec(patches, augmentation=False), tmp_path / "scratch")
    logits = torch.randn(2, 2, 64, 64, requires_grad=True)
    _, masks = next(loop.setting.train.batches([[0, 1]]))
    from segserve.training.loss import training_loss

    training_loss("ce_dice", logits, masks, None).backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad.movedim(1, -1)[masks == 255]) == 0


@pytest.mark.parametrize(
    ("kind", "sizes"),
    thinned(("deeplabv3plus", "pan", "pspnet", "unet"), ((1, 8), (3, 2), (2, 1)), every=4),
)
def test_a_batch_of_one_patch_trains(tmp_path: Path, kind: str, sizes: tuple[int, int]) -> None:
    train, batch = sizes
    patches = write_dataset(tmp_path / "data", train=train, validation=1)
    spec = make_spec(patches, kind=kind, batch_size=batch, epochs=1)
    epochs = [e for e in events_of(make_loop(spec, tmp_path / "scratch")) if isinstance(e, EpochDone)]
    assert len(epochs) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"size": (50, 70)},
        {"channels": 1},
        {"channels": 5, "dtype": "uint16"},
        {"suffix": ".raw"},
        {"context": True},
        {"classes": 4},
    ],
    ids=str,
)
def test_sizes_channels_contexts_and_classes_of_all_kinds_train(tmp_path: Path, options: dict[str, Any]) -> None:
    import numpy as np

    made = {**options, "dtype": np.dtype(options.get("dtype", "uint8")).type}
    patches = write_dataset(tmp_path / "data", train=3, validation=1, **made)
    spec = make_spec(
        patches,
        epochs=1,
        channels=options.get("channels", 3),
        context=2 if options.get("context") else 1,
        classes=options.get("classes", 2),
    )
    loop = make_loop(spec, tmp_path / "scratch")
    assert next(loop.network.parameters()).shape[1] == options.get("channels", 3) * (2 if options.get("context") else 1)
    epochs = [event for event in events_of(loop) if isinstance(event, EpochDone)]
    assert set(epochs[0].per_class_iou) == set(spec.classes)


def test_early_stopping_ends_a_training_whose_score_does_not_move(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, epochs=9, early_stopping_patience=1, early_stopping_min_delta=5.0, learning_rate=1e-6)
    loop = make_loop(spec, tmp_path / "scratch")
    assert len([event for event in events_of(loop) if isinstance(event, EpochDone)]) == 2
    patient = make_loop(make_spec(data, epochs=2, early_stopping=False), tmp_path / "scratch")
    assert len([event for event in events_of(patient) if isinstance(event, EpochDone)]) == 2


def test_the_metric_decides_which_epoch_is_kept(data: Path, tmp_path: Path) -> None:
    loop = make_loop(make_spec(data, epochs=3, early_stopping_metric="val_loss"), tmp_path / "scratch")
    epochs = [event for event in events_of(loop) if isinstance(event, EpochDone)]
    assert loop.progress.best is not None
    assert loop.progress.best["loss"] == min(event.val_loss for event in epochs)
    assert [event.best for event in epochs] == [
        all(event.val_loss < earlier.val_loss for earlier in epochs[:number]) for number, event in enumerate(epochs)
    ]


def test_a_training_that_diverges_says_so_with_advice(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, epochs=30, learning_rate=1e30, gradient_clip=0, scheduler="none", optimizer="adam")
    with pytest.raises(BadInputError, match=r"diverged in epoch \d+.*learning rate \(it is 1e\+30; try 1e\+29\)"):
        events_of(make_loop(spec, tmp_path / "scratch"))


def test_checkpoints_hold_no_code_and_a_damaged_one_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    loop = make_loop(make_spec(data), tmp_path / "scratch", pause_asked=after(1))
    ready = events_of(loop)[-2]
    assert isinstance(ready, CheckpointReady)
    stream = io.BytesIO()
    torch.save(ready.state, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True)["batch"] == 1
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path) is None
    path.write_bytes(stream.getvalue()[:1000])
    assert checkpoint.load(path) is None
