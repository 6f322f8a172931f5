"""The seam that runs networks: what every engine must do, and how one of them is chosen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from segserve import devices
from segserve.engines import agreement, candidates, choose, registry, remembered
from segserve.engines.base import Engine, EngineError, Network, OnnxNetwork, TorchNetwork, without_paths
from segserve.engines.candidates import Candidate, Wish
from segserve.engines.verdict import Choice, Trial, Verdict
from segserve.errors import BadInputError, MissingExtraError
from tests import networks
from tests.tile_networks import coarse_classifier

Array = NDArray[np.float32]
EXACT = [Candidate("openvino", "cpu", "float32"), Candidate("onnxruntime", "cpu", "float32")]
TORCH = Candidate("torch", "cpu", "float32")
FLOAT32 = np.dtype(np.float32)


@pytest.fixture(params=EXACT, ids=str)
def started(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    def start(path: Path, dtype: str = "float32", output: int = 0, *, changing: bool = False) -> Engine:
        return candidates.start(request.param, OnnxNetwork(path, np.dtype(dtype), output, changing))

    return start


def directly(path: Path, batch: NDArray[Any], output: int = 0) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[output], np.float32)


class TestEveryOnnxEngine:
    """The contract."""

    def test_logits_on_paper(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        engine = started(networks.wide_network(tmp_path / "wide.onnx", 5))
        batch = np.random.default_rng(0).integers(0, 5, (2, 1, 3, 4, 5)).astype(np.float32)
        numbers = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1, 1)
        np.testing.assert_array_equal(engine(batch), 2 * numbers * batch - numbers**2)

    def test_shapes_may_follow_each_other(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        path = networks.conv_network(tmp_path / "conv.onnx", 3)
        engine = started(path)
        for shape in ((1, 1, 4, 5, 6), (3, 1, 4, 5, 6), (1, 1, 9, 5, 7), (1, 1, 4, 5, 6)):
            batch = np.random.default_rng(1).normal(size=shape).astype(np.float32)
            np.testing.assert_allclose(engine(batch), directly(path, batch), atol=1e-4)

    def test_a_float16_input(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        path = networks.conv_network(tmp_path / "conv.onnx", 3, dtype="float16")
        batch = np.random.default_rng(1).normal(size=(1, 1, 6, 6, 6)).astype(np.float32)
        found = started(path, "float16")(batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, directly(path, batch.astype(np.float16)), atol=2e-2)

    def test_the_chosen_output(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        path = networks.two_outputs_network(tmp_path / "two.onnx")
        batch = np.random.default_rng(1).normal(size=(1, 1, 4, 4, 4)).astype(np.float32)
        for output in (0, 1):
            np.testing.assert_allclose(started(path, output=output)(batch), directly(path, batch, output), atol=1e-5)

    def test_a_damaged_file(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(b"\x08\x0a\x12\x04nope" * 9)
        with pytest.raises(EngineError) as caught:
            started(path)
        assert str(tmp_path) not in caught.value.message

    def test_a_shape_the_network_does_not_take(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        engine = started(networks.conv_network(tmp_path / "conv.onnx", 3, spatial=(4, 4, 4)))
        with pytest.raises(EngineError):
            engine(np.zeros((1, 2, 4, 4, 4), np.float32))
        good = np.zeros((1, 1, 4, 4, 4), np.float32)
        assert engine(good).shape == (1, 3, 4, 4, 4)

    def test_a_failure_changes_no_answer_after_it(self, started: Callable[..., Engine], tmp_path: Path) -> None:
        path = coarse_classifier(tmp_path / "coarse") / "model.onnx"
        engine = started(path, changing=True)
        for seed in range(3):
            fine = np.random.default_rng(seed).random((1, 3, 64, 64), np.float32)
            np.testing.assert_allclose(engine(fine), directly(path, fine), atol=1e-4)
            for shape in [(1, 3, 33, 257), (1, 3, 100, 90)][:seed]:
                with suppress(EngineError):  # whether it fails at all is the engine's own affair
                    engine(np.zeros(shape, np.float32))


@pytest.fixture(params=[TORCH, EXACT[0]], ids=str)
def started_torch(request: pytest.FixtureRequest) -> Callable[[torch.nn.Module], Engine]:
    return lambda module: candidates.start(request.param, TorchNetwork(module.eval()))


class TestEveryTorchEngine:
    """The contract, for PyTorch networks."""

    def test_logits_on_paper(self, started_torch: Callable[..., Engine]) -> None:
        weights = torch.arange(5.0).reshape(5, 1, 1, 1, 1)
        network = torch.nn.Conv3d(1, 5, 1)
        with torch.no_grad():
            network.weight.copy_(2 * weights)
            network.bias.copy_(-(weights.flatten() ** 2))  # type: ignore[union-attr]
        batch = np.random.default_rng(0).integers(0, 5, (2, 1, 3, 4, 5)).astype(np.float32)
        numbers = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1, 1)
        np.testing.assert_array_equal(started_torch(network)(batch), 2 * numbers * batch - numbers**2)

    def test_shapes_may_follow_each_other(self, started_torch: Callable[..., Engine]) -> None:
        network = small_torch_network(3)
        engine = started_torch(network)
        for shape in ((1, 1, 4, 5, 6), (3, 1, 4, 5, 6), (1, 1, 9, 5, 7), (1, 1, 4, 5, 6)):
            batch = np.random.default_rng(1).normal(size=shape).astype(np.float32)
            with torch.no_grad():
                np.testing.assert_allclose(engine(batch), network(torch.tensor(batch)).numpy(), atol=1e-4)

    def test_images_and_channels(self, started_torch: Callable[..., Engine]) -> None:
        network = torch.nn.Conv2d(3, 4, 3, padding=1)
        batch = np.random.default_rng(1).normal(size=(2, 3, 8, 9)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.tensor(batch)).numpy()
        np.testing.assert_allclose(started_torch(network)(batch), expected, atol=1e-4)

    def test_float64_out_is_float32(self, started_torch: Callable[..., Engine]) -> None:
        class Wide(torch.nn.Module):
            def forward(self, batch: torch.Tensor) -> torch.Tensor:
                return batch.double() * 2

        found = started_torch(Wide())(np.ones((1, 1, 2, 2, 2), np.float32))
        assert found.dtype == np.float32
        assert (found == 2).all()

    def test_a_shape_the_network_does_not_take(self, started_torch: Callable[..., Engine]) -> None:
        engine = started_torch(small_torch_network(3))
        with pytest.raises(EngineError, match="channels"):
            engine(np.zeros((1, 2, 4, 4, 4), np.float32))
        assert engine(np.zeros((1, 1, 4, 4, 4), np.float32)).shape == (1, 3, 4, 4, 4)

    def test_a_network_that_fails_says_why_and_nothing_of_the_server(
        self, started_torch: Callable[..., Engine]
    ) -> None:
        class Failing(torch.nn.Module):
            def forward(self, batch: torch.Tensor) -> torch.Tensor:
                raise FileNotFoundError(f"no /home/somebody/secret.bin for {batch.shape[1]} channel")

        with pytest.raises(EngineError, match=r"FileNotFoundError: no \(a path\) for 1 channel") as caught:
            started_torch(Failing())(np.zeros((1, 1, 2, 2, 2), np.float32))
        assert "secret" not in caught.value.message

    def test_neither_the_network_nor_the_batch_is_changed(self, started_torch: Callable[..., Engine]) -> None:
        class Greedy(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = small_torch_network(3)

            def forward(self, batch: torch.Tensor) -> torch.Tensor:
                answer: torch.Tensor = self.inner(batch.mul_(2))
                return answer

        network = Greedy()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        batch = np.ones((1, 1, 4, 4, 4), np.float32)
        engine = started_torch(network)
        np.testing.assert_array_equal(engine(batch), engine(batch))
        assert (batch == 1).all()
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert not network.training


def small_torch_network(classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, 3, padding=1),
        torch.nn.GroupNorm(2, 6),
        torch.nn.ReLU(),
        torch.nn.Conv3d(6, classes, 3, padding=1),
    ).eval()


class Fake:
    """An engine that takes `seconds` and is wrong by `off` where `where` says."""

    def __init__(self, candidate: Candidate, seconds: float = 0.0, off: float = 0.0, share: float = 1.0) -> None:
        self.name, self.device, self.precision = candidate.engine, candidate.device, candidate.precision
        self._seconds, self._off, self._share = seconds, off, share

    def __call__(self, batch: Array) -> Array:
        time.sleep(self._seconds)
        logits = np.concatenate([batch, -batch], axis=1)
        wrong = int(np.ceil(self._share * logits[0, 0].size))
        logits[:, 0].reshape(len(batch), -1)[:, :wrong] += self._off
        return logits


REFERENCE = Candidate("onnxruntime", "cpu", "float32")
OTHER = Candidate("openvino", "cpu", "float32")
HALF = Candidate("openvino", "cpu", "bfloat16")
BATCH = np.random.default_rng(0).normal(size=(2, 1, 8, 8, 8)).astype(np.float32)
TRIAL = Trial([BATCH], lambda logits: "softmax")


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Choice]:
    """Choose among engines that are made up."""
    path = tmp_path / "network.onnx"
    path.write_bytes(b"weights")

    def hold(engines: dict[Candidate, Fake | Exception], trial: Trial = TRIAL, wish: Wish | None = None) -> Choice:
        def start(candidate: Candidate, network: OnnxNetwork, shape: object = None) -> Engine:
            engine = engines[candidate]
            if isinstance(engine, Exception):
                raise engine
            return engine

        for module in (choose, remembered):
            monkeypatch.setattr(module, "start", start)
        monkeypatch.setattr(choose, "candidates", lambda wish, kind: list(engines))
        folder = tmp_path / "choices"
        return remembered.choose_once(OnnxNetwork(path, FLOAT32), [path], wish or Wish(), trial, folder)

    return hold


def verdicts(choice: Choice) -> dict[Candidate, Verdict]:
    return {Candidate(one.engine, one.device, one.precision): one for one in choice.verdicts}


def test_the_fastest_that_agrees_is_chosen(contest: Callable[..., Choice]) -> None:
    choice = contest({REFERENCE: Fake(REFERENCE, 0.05), OTHER: Fake(OTHER, 0.01, 1e-5), HALF: Fake(HALF, 0.03)})
    assert choice.candidate == OTHER
    assert choice.repeatable
    found = verdicts(choice)
    assert all(one.refused is None for one in found.values())
    assert found[REFERENCE].error is None
    assert 0 < (found[OTHER].error or 0) < 1e-4
    assert (found[REFERENCE].seconds or 0) > (found[OTHER].seconds or 9)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Fake(OTHER, off=0.1), "0.001 at most"),
        (Fake(OTHER, off=0.1, share=0.001), "0.001 at most"),
        (Fake(OTHER, off=np.nan), "at most"),
        (EngineError("no such operator"), "no such operator"),
    ],
)
def test_an_engine_that_is_wrong_is_refused(
    contest: Callable[..., Choice], engine: Fake | Exception, reason: str
) -> None:
    choice = contest({REFERENCE: Fake(REFERENCE, 0.02), OTHER: engine})
    assert choice.candidate == REFERENCE
    refused = verdicts(choice)[OTHER]
    assert reason in (refused.refused or "")
    json.dumps(choice.describe(), allow_nan=False)


def test_reduced_precision_may_be_off_in_few_places_and_no_more(contest: Callable[..., Choice]) -> None:
    slow = Fake(REFERENCE, 0.02)
    assert contest({REFERENCE: slow, HALF: Fake(HALF, off=0.03)}).candidate == HALF
    assert (
        contest({REFERENCE: slow, HALF: Fake(HALF, off=2.0, share=0.003)}, wish=Wish("auto", None, True)).candidate
        == HALF
    )
    refused = contest({REFERENCE: slow, HALF: Fake(HALF, off=0.3)}, wish=Wish("openvino"))
    assert refused.candidate == REFERENCE
    assert "0.02 at most" in (verdicts(refused)[HALF].refused or "")


def test_where_the_reference_cannot_run_another_takes_its_place(contest: Callable[..., Choice]) -> None:
    choice = contest({REFERENCE: EngineError("cannot"), OTHER: Fake(OTHER), HALF: Fake(HALF, 0.01, off=9)})
    assert choice.candidate == OTHER
    assert verdicts(choice)[HALF].refused


def test_no_engine_at_all_is_the_references_error(contest: Callable[..., Choice]) -> None:
    with pytest.raises(EngineError, match="first"):
        contest({REFERENCE: EngineError("first"), OTHER: EngineError("second")})


def test_a_network_that_is_no_use_is_refused_at_once(contest: Callable[..., Choice]) -> None:
    def check(logits: Array) -> str:
        raise BadInputError("no segmentation")

    with pytest.raises(BadInputError, match="no segmentation"):
        contest({REFERENCE: Fake(REFERENCE), OTHER: Fake(OTHER)}, Trial([BATCH], check))


def test_timing_ends(contest: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "TIMING_SECONDS", 0.1)
    choice = contest({REFERENCE: Fake(REFERENCE, 0.2), OTHER: Fake(OTHER)})
    assert choice.candidate == REFERENCE
    assert not choice.repeatable
    assert "not tried" in (verdicts(choice)[OTHER].refused or "")


def test_a_slow_reference_leaves_time_for_the_others(
    contest: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "TIMING_SECONDS", 1.2)
    both = Trial([BATCH, BATCH + 1], lambda logits: "softmax")
    choice = contest({REFERENCE: Fake(REFERENCE, 0.3), OTHER: Fake(OTHER, 0.01)}, both)
    assert choice.candidate == OTHER
    assert choice.repeatable
    assert choice.shape == (2, 2, 8, 8, 8)


def test_a_slow_reference_that_stays_the_best_is_run_again(
    contest: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "TIMING_SECONDS", 1.2)
    assert contest({REFERENCE: Fake(REFERENCE, 0.3), OTHER: EngineError("cannot")}).repeatable


def test_a_network_that_depends_on_its_batch_is_noticed(contest: Callable[..., Choice]) -> None:
    class Normalising(Fake):
        def __call__(self, batch: Array) -> Array:
            return super().__call__(batch - batch[:1].mean())

    assert not contest({REFERENCE: Normalising(REFERENCE)}).repeatable


def test_a_choice_is_made_once(contest: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch) -> None:
    first = contest({REFERENCE: Fake(REFERENCE, 0.05), OTHER: Fake(OTHER)})
    monkeypatch.setattr(remembered, "choose", lambda *_: pytest.fail("chosen again"))
    again = contest({REFERENCE: Fake(REFERENCE), OTHER: Fake(OTHER, 0.05)})
    assert again.candidate == first.candidate == OTHER
    assert (again.verdicts, again.repeatable) == (first.verdicts, first.repeatable)


def test_other_weights_or_another_wish_are_chosen_for_anew(contest: Callable[..., Choice], tmp_path: Path) -> None:
    contest({REFERENCE: Fake(REFERENCE, 0.05), OTHER: Fake(OTHER)})
    assert contest({REFERENCE: Fake(REFERENCE)}, wish=Wish("onnxruntime")).candidate == REFERENCE
    (tmp_path / "network.onnx").write_bytes(b"other weights")
    assert contest({REFERENCE: Fake(REFERENCE), OTHER: Fake(OTHER, 0.05)}).candidate == REFERENCE


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"chosen": {"engine": 1}}'])
def test_a_damaged_memory_is_no_memory(contest: Callable[..., Choice], damage: bytes, tmp_path: Path) -> None:
    contest({REFERENCE: Fake(REFERENCE, 0.05), OTHER: Fake(OTHER)})
    for kept in (tmp_path / "choices").iterdir():
        kept.write_bytes(damage)
    assert contest({REFERENCE: Fake(REFERENCE), OTHER: Fake(OTHER, 0.05)}).candidate == REFERENCE


def test_a_remembered_engine_that_fails_is_replaced(contest: Callable[..., Choice]) -> None:
    contest({REFERENCE: Fake(REFERENCE, 0.05), OTHER: Fake(OTHER)})
    assert contest({REFERENCE: Fake(REFERENCE), OTHER: EngineError("gone")}).candidate == REFERENCE


def test_what_is_asked_for_narrows_the_field() -> None:
    assert {one.engine for one in candidates.candidates(Wish(), OnnxNetwork)} == {"openvino", "onnxruntime"}
    assert candidates.candidates(Wish("openvino"), OnnxNetwork) == [OTHER]
    assert all(one.exact for one in candidates.candidates(Wish(), OnnxNetwork))
    assert candidates.candidates(Wish(), OnnxNetwork)[0] == REFERENCE
    with pytest.raises(BadInputError, match="cuda"):
        candidates.candidates(Wish("openvino", "cuda"), OnnxNetwork)


def test_torch_is_the_reference_for_its_own_networks() -> None:
    found = candidates.candidates(Wish(reduced=True), TorchNetwork)
    assert found[0] == TORCH
    assert OTHER in found
    assert {one.engine for one in found} == {"torch", "openvino"}
    assert [one.exact for one in found] == sorted((one.exact for one in found), reverse=True)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("onnxruntime", TorchNetwork, "PyTorch networks: ask for openvino, torch or auto"),
        ("torch", OnnxNetwork, "ONNX"),
    ],
)
def test_an_engine_that_does_not_run_such_networks(name: str, kind: type[Network], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        candidates.candidates(Wish(name), kind)


class TestGpus:
    """Machines that this is not."""

    @pytest.fixture
    def cards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        card = devices.CudaDevice("a card", 2**33, 0, (9, 0))
        monkeypatch.setattr(devices, "cuda_devices", lambda: [card])

    @pytest.mark.usefixtures("cards")
    @pytest.mark.parametrize("built_for", [None, "12.8"])
    def test_a_card_counts_where_torch_was_built_for_it(
        self, built_for: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registry, "torch_cuda_version", lambda: built_for)
        assert registry.cuda_is_usable(TorchNetwork) == bool(built_for)
        assert not registry.cuda_is_usable(OnnxNetwork)
        found = candidates.candidates(Wish(reduced=True), TorchNetwork)
        on_card = {one.precision for one in found if one.device == "cuda"}
        assert on_card == ({"float32", "tfloat32", "float16", "bfloat16"} if built_for else set())
        if built_for:
            assert [str(one) for one in found[:2]] == [str(TORCH), "torch on cuda in float32"]
            asked = candidates.candidates(Wish(device="cuda:1"), TorchNetwork)
            assert asked == [Candidate("torch", "cuda:1", "float32")]

    def test_apples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "has_apple_gpu", lambda: True)
        assert registry.usable_devices(TorchNetwork) == {"cpu", "mps"}
        assert registry.usable_devices(OnnxNetwork) == {"cpu"}
        found = candidates.candidates(Wish(device="mps", reduced=True), TorchNetwork)
        assert [one.precision for one in found] == ["float32", "float16"]


def test_a_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "installed_engines", lambda kind: [])
    with pytest.raises(MissingExtraError, match=r"segserve\[onnx\]"):
        candidates.candidates(Wish("onnxruntime"), OnnxNetwork)
    with pytest.raises(MissingExtraError, match=r"segserve\[torch\]"):
        candidates.candidates(Wish("torch"), TorchNetwork)


def test_differences_are_of_probabilities() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0, 9, (2, 2, 4, 3, 5, 6)).astype(np.float32)

    def softmax(logits: Array) -> NDArray[np.float64]:
        powers = np.exp(logits.astype(np.float64))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    expected = np.abs(softmax(ours) - softmax(theirs)).max(axis=1)
    np.testing.assert_allclose(agreement.differences(ours, theirs, "softmax"), expected, atol=1e-6)
    one, other = ours[:, :1], theirs[:, :1]
    expected = np.abs(1 / (1 + np.exp(-one)) - 1 / (1 + np.exp(-other)))[:, 0]
    np.testing.assert_allclose(agreement.differences(one, other, "sigmoid"), expected, atol=1e-6)
    np.testing.assert_allclose(agreement.differences(one, other, "none"), np.abs(one - other)[:, 0])


def test_what_is_no_number_agrees_only_with_its_like() -> None:
    logits = np.zeros((1, 2, 1, 1, 3), np.float32)
    broken = logits.copy()
    broken[0, 0, 0, 0, 0] = np.nan
    assert agreement.differences(broken, logits, "softmax").tolist() == [[[[np.inf, 0, 0]]]]
    assert not agreement.differences(broken, broken, "softmax").any()


def test_external_names_are_found_as_onnx_writes_them(tmp_path: Path) -> None:
    from segserve.models.formats.onnx import model_files

    path = networks.conv_network(tmp_path / "conv.onnx", 3)
    assert model_files(path) == [path]
    long_name = "w" * 150 + ".bin"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=long_name, size_threshold=0)
    assert model_files(path) == [path, tmp_path / long_name]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://example.org/a/b for more", "see https://example.org/a/b for more"),
        ("open /home/me/net.onnx failed", "open (a path) failed"),
        ("file:///home/me/net.onnx", "file:(a path)"),
        ("C:\\Users\\me failed", "(a path) failed"),
    ],
)
def test_messages_lose_paths_and_keep_addresses(text: str, shown: str) -> None:
    assert without_paths(text) == shown
