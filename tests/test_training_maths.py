"""Losses, scores, learning rates and augmentation against numpy, torch's own schedulers and plain reasoning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler

from segserve.training.augment import augment
from segserve.training.loss import cross_entropy, dice_loss, training_loss
from segserve.training.metrics import Evaluation
from segserve.training.progress import Progress
from segserve.training.schedule import learning_rate
from segserve.training.spec import UNLABELLED

Array = npt.NDArray[Any]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def paper_entropy(logits: Array, target: Array, weights: Array | None) -> float:
    """Weighted mean negative log-likelihood, pixel by pixel."""
    total = mass = 0.0
    probabilities = softmax(logits)
    for n, y, x in zip(*np.nonzero(target != UNLABELLED), strict=True):
        k = target[n, y, x]
        weight = 1.0 if weights is None else weights[k]
        total -= weight * math.log(probabilities[n, k, y, x])
        mass += weight
    return total / mass


def paper_dice(logits: Array, target: Array) -> float:
    """The contract's formula, class by class."""
    probabilities, labelled = softmax(logits), target != UNLABELLED
    scores = []
    for k in range(logits.shape[1]):
        p, y = probabilities[:, k][labelled], (target == k)[labelled]
        scores.append((2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
    return 1 - float(np.mean(scores))


def sparse_batch(seed: int, classes: int = 4) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (2, classes, 5, 7))
    target = random.integers(0, classes, (2, 5, 7))
    target[random.random(target.shape) < 0.6] = UNLABELLED
    return logits, target


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.5]])
def test_losses_are_those_on_paper(seed: int, weights: list[float] | None) -> None:
    logits, target = sparse_batch(seed)
    tensors = torch.tensor(logits), torch.tensor(target)
    mass = None if weights is None else torch.tensor(weights)
    entropy = paper_entropy(logits, target, None if weights is None else np.array(weights))
    assert float(cross_entropy(tensors[0].float(), tensors[1], mass)) == pytest.approx(entropy, rel=1e-5)
    assert float(dice_loss(*tensors)) == pytest.approx(paper_dice(logits, target), rel=1e-6)
    both = 0.5 * entropy + 0.5 * paper_dice(logits, target)
    assert float(training_loss("ce_dice", *tensors, mass)) == pytest.approx(both, rel=1e-5)
    assert float(training_loss("cross_entropy", *tensors, mass)) == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("name", ["ce_dice", "cross_entropy"])
def test_pixels_without_a_label_have_no_gradient_at_all(name: str) -> None:
    logits, target = sparse_batch(7)
    tensor = torch.tensor(logits, requires_grad=True)
    training_loss(name, tensor, torch.tensor(target), torch.tensor([1.0, 2.0, 3.0, 4.0])).backward()
    gradient = tensor.grad
    assert gradient is not None
    ignored = torch.tensor(target == UNLABELLED)
    assert torch.count_nonzero(gradient.movedim(1, -1)[ignored]) == 0
    assert torch.all(torch.count_nonzero(gradient.movedim(1, -1)[~ignored], -1) > 0)


@pytest.mark.parametrize("name", ["ce_dice", "cross_entropy"])
@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 1.0, 1.0]])
def test_a_batch_that_teaches_nothing_costs_nothing(name: str, weights: list[float] | None) -> None:
    """Nothing labelled; or, for the entropy, only a class of weight 0."""
    logits = torch.randn(2, 4, 5, 7, requires_grad=True)
    target = torch.full((2, 5, 7), UNLABELLED)
    loss = training_loss(name, logits, target, None if weights is None else torch.tensor(weights))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_a_batch_of_weightless_pixels_is_finite() -> None:
    loss = cross_entropy(torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64), torch.tensor([0.0, 1.0]))
    assert float(loss) == 0


def test_scores_are_those_on_paper_and_leave_absent_classes_out() -> None:
    logits, target = sparse_batch(3)
    target[target == 2] = UNLABELLED
    evaluation = Evaluation(["a", "b", "c", "d"])
    for n in range(2):
        part = torch.tensor(logits[n : n + 1]), torch.tensor(target[n : n + 1])
        evaluation.add(*part, training_loss("cross_entropy", *part, None))
    empty = torch.full((1, 5, 7), UNLABELLED)
    evaluation.add(torch.zeros(1, 4, 5, 7), empty, torch.tensor(math.nan))
    scores = evaluation.scores()

    labelled, found = target != UNLABELLED, logits.argmax(1)
    iou, losses = {}, {}
    for k, name in ((0, "a"), (1, "b"), (3, "d")):
        hit, truth, said = (labelled & (target == k) & (found == k)).sum(), (target == k).sum(), (found == k)[labelled]
        iou[name] = float(hit / (truth + said.sum() - hit))
        only = np.where(target == k, target, UNLABELLED)
        losses[name] = paper_entropy(logits, only, None)
    assert scores.per_class_iou == {name: round(value, 4) for name, value in iou.items()}
    assert scores.per_class_loss == {name: pytest.approx(value, abs=6e-5) for name, value in losses.items()}
    assert scores.mean_iou == round(float(np.mean(list(iou.values()))), 4)
    assert scores.accuracy == pytest.approx((found == target)[labelled].mean())
    each = [paper_entropy(logits[n : n + 1], target[n : n + 1], None) for n in range(2)]
    assert scores.loss == pytest.approx(np.mean(each), rel=1e-5)


def test_scores_of_nothing_are_finite() -> None:
    scores = Evaluation(["a", "b"]).scores()
    assert (scores.loss, scores.accuracy, scores.mean_iou) == (0, 0, 0)
    assert scores.per_class_iou == scores.per_class_loss == {}


def torch_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total", [2, 7, 100])
def test_cosine_is_torchs_cosine_from_the_first_step_to_one_percent_at_the_last(total: int) -> None:
    expected = torch_rates(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - 1, eta_min=0.003), total
    )
    found = [learning_rate("cosine", 0.3, step, total) for step in range(total)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[0] == 0.3
    assert found[-1] == pytest.approx(0.003)


@pytest.mark.parametrize("thirds", [1, 2, 30])
def test_step_is_a_tenth_after_each_third(thirds: int) -> None:
    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, thirds), 3 * thirds)
    found = [learning_rate("step", 0.3, step, 3 * thirds) for step in range(3 * thirds)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_one_cycle_is_torchs_and_peaks_at_the_rate_asked_for() -> None:
    """With 11 steps both put the peak on step 3 of 0..10, at exactly 30 %."""
    total = 11
    found = [learning_rate("onecycle", 0.3, step, total) for step in range(total)]
    rise = [0.3 * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * s / 3)) / 2) for s in range(3)]
    fall = [0.3 * (4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * s / 7)) / 2) for s in range(8)]
    assert found == pytest.approx(rise + fall, rel=1e-6)
    assert max(found) == found[3] == 0.3


@given(
    st.sampled_from(["none", "cosine", "step", "onecycle"]),
    st.floats(1e-8, 1e3),
    st.integers(0, 500),
    st.integers(1, 400),
)
def test_rates_never_exceed_the_one_asked_for_nor_vanish(name: str, peak: float, step: int, total: int) -> None:
    rate = learning_rate(name, peak, step, total)
    assert 0 < rate <= peak * (1 + 1e-12)
    if name == "none":
        assert rate == peak


def labelled_batch(size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose grey value tells the label: 0.2, 0.5 and 0.8 for classes 0, 1 and 2."""
    masks = torch.randint(0, 3, (6, size // 8, size // 8), generator=torch.Generator().manual_seed(5))
    masks = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return (0.2 + 0.3 * masks.float()).unsqueeze(1).repeat(1, 2, 1, 1), masks


def test_augmentation_moves_labels_with_their_pixels() -> None:
    images, masks = labelled_batch()
    seen = 0
    for seed in range(12):
        changed, moved = augment(images, masks, seed)
        assert changed.shape == images.shape
        assert (moved.shape, moved.dtype) == (masks.shape, torch.int64)
        assert torch.isfinite(changed).all()
        assert set(moved.unique().tolist()) <= {0, 1, 2, UNLABELLED}
        for image, before, mask in zip(changed[:, 0], masks, moved, strict=True):
            means = [float(image[mask == k].mean()) for k in range(3)]
            assert means[0] < means[1] < means[2]
            seen += not torch.equal(before, mask)
    assert seen > 40


def test_what_comes_from_outside_the_frame_is_unlabelled_and_what_was_unlabelled_stays_so() -> None:
    images = torch.rand(8, 3, 48, 48)
    everywhere = torch.full((8, 48, 48), 1)
    nowhere = torch.full((8, 48, 48), UNLABELLED)
    gone = 0
    for seed in range(6):
        labels = augment(images, everywhere, seed)[1]
        assert set(labels.unique().tolist()) <= {1, UNLABELLED}
        gone += int((labels == UNLABELLED).sum())
        assert torch.equal(augment(images, nowhere, seed)[1], nowhere)
    assert gone > 0


def test_augmentation_is_a_function_of_its_seed_and_leaves_torchs_own_randomness_alone() -> None:
    images, masks = labelled_batch()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (augment(images, masks, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_augmentation_takes_any_number_of_channels_and_values_outside_0_to_1() -> None:
    for channels in (1, 2, 4, 9):
        images = torch.randn(2, channels, 32, 64) * 3
        changed, _ = augment(images, torch.zeros(2, 32, 64, dtype=torch.int64), 0)
        assert changed.shape == images.shape
        assert torch.isfinite(changed).all()


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.2))
def test_patience_counts_epochs_since_the_last_real_improvement(scores: list[float], min_delta: float) -> None:
    progress = Progress()
    reference, waited = -math.inf, 0
    for score in scores:
        progress.count_patience(score, min_delta)
        if score > reference + min_delta:
            reference, waited = score, 0
        else:
            waited += 1
        assert progress.waited == waited
