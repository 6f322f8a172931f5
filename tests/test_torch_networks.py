"""TorchScript and torch.export networks through the server, and how PyTorch networks are run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from segserve.engines.base import EngineError, TorchNetwork
from segserve.engines.candidates import Candidate, Wish, candidates, start
from segserve.engines.choose import choose
from segserve.engines.torch import TorchEngine
from segserve.engines.trial import trial_batches
from segserve.engines.verdict import Choice, Trial
from segserve.errors import BadInputError, NotTrustedError
from segserve.models.formats.exported import open_exported
from segserve.models.formats.one_output import OneOutput
from segserve.models.formats.opened import Opened
from segserve.models.formats.torchscript import open_torchscript
from segserve.models.plan import check_input_shape
from segserve.models.request import parse_load_request
from segserve.volumes import model
from tests import oracle, volumes
from tests.serving import Served
from tests.torch_networks import PATCH, Bias, Small, exported, scripted, torch_forward

STRIDE = (4, 4, 4)
WINDOW = (40.0, 400.0)
BATCH = np.random.default_rng(0).normal(size=(2, 1, *PATCH)).astype(np.float32)
Save = Callable[..., Path]
KINDS = [(scripted, "torchscript"), (exported, "pt2")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stored = np.random.default_rng(5).integers(-300, 400, (17, 13, 20)).astype(np.int16)
    return volumes.write(tmp_path_factory.mktemp("image") / "image.nii.gz", stored)


def body(kind: str, model: Path, **more: Any) -> dict[str, Any]:
    config = {"patch_size": list(PATCH), "patch_stride": list(STRIDE), **more.pop("config", {})}
    return {"name": "net", "backend_type": kind, "model_path": str(model), "inference_config": config, **more}


def refusal(server: Served, kind: str, model: Path, status: int = 400, **more: Any) -> str:
    answer = server.post("/api/models", json=body(kind, model, **more))
    assert answer.status_code == status, answer.text
    said: str = answer.json()["error"]
    return said


def ask(server: Served, image: Path) -> NDArray[Any]:
    answer = server.infer(image, model_name="net")
    assert answer.status_code == 200, answer.text
    return volumes.labels_of(answer.content)


def holds_torch(pid: int) -> bool:
    return any("libtorch" in place.path for place in psutil.Process(pid).memory_maps())


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    """Take the network out of a package."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith("model.json")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


def compiled(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/net.wrapper.so", b"machine code")


class TestOverHttp:
    @pytest.mark.parametrize(
        ("save", "kind", "engine"),
        [(*KINDS[0], "auto"), (*KINDS[1], "auto"), pytest.param(*KINDS[1], "openvino", marks=pytest.mark.slow)],
    )
    def test_labels_are_those_of_the_module_itself(
        self, server: Served, image: Path, save: Save, kind: str, engine: str, tmp_path: Path
    ) -> None:
        module = Small().eval()
        texts = {"window_level": "40", "window_width": "400", "labels": '{"1": "liver"}', "author": "somebody"}
        path = save(module, tmp_path / f"net.{kind}", texts)
        model = server.post("/api/models", json=body(kind, path, config={"engine": engine})).json()["model"]
        assert (model["num_classes"], model["labels"], model["window_level"]) == (3, {"1": "liver"}, 40)
        assert model["engine"] == engine or engine == "auto"
        assert model["threshold"] is None
        if engine == "auto":
            verdicts = {(one["engine"], one["precision"]): one for one in model["engines"]}
            assert list(verdicts) == [("torch", "float32"), ("openvino", "float32")]
            assert verdicts["openvino", "float32"]["error"] < 1e-4
        expected = oracle.segment(image, torch_forward(module), PATCH, stride=STRIDE, window=WINDOW)
        np.testing.assert_array_equal(ask(server, image), expected)
        if hasattr(psutil.Process, "memory_maps"):
            assert not holds_torch(server.process.pid)
            assert all(holds_torch(pid) for pid in server.pids_of("net"))

    def test_a_fixed_shape_wins(self, server: Served, image: Path, tmp_path: Path) -> None:
        module = Small().eval()
        texts = {"window_level": "40", "window_width": "400", "inference_config": '{"blend": "gaussian"}'}
        path = exported(module, tmp_path / "net.pt2", texts)
        config = {"patch_size": 16, "patch_stride": 4, "forward_batch_windows": 3}
        model = server.post("/api/models", json=body("pt2", path, config=config)).json()["model"]
        assert (model["patch_size"], model["batch"], model["blend"]) == (list(PATCH), 2, "gaussian")
        assert len(model["warnings"]) == 2
        weights = oracle.gaussian(PATCH)
        expected = oracle.segment(image, torch_forward(module), PATCH, stride=STRIDE, window=WINDOW, weights=weights)
        np.testing.assert_array_equal(ask(server, image), expected)

    def test_one_class(self, server: Served, image: Path, tmp_path: Path) -> None:
        # Of what is windowed to 0..1; no voxel's logit is the threshold's.
        texts = {"window_level": "40", "window_width": "400", "binary_segment_threshold": "0.25"}
        path = scripted(Bias(-4.99, 10.0), tmp_path / "net.ts", texts)
        model = server.post("/api/models", json=body("torchscript", path)).json()["model"]
        assert (model["num_classes"], model["threshold"]) == (1, 0.25)
        values = volumes.read(image.read_bytes()).get_fdata()
        logits = -4.99 + 10 * np.clip((values - (40 - 200)) / 400, 0, 1)
        assert np.abs(logits + np.log(3)).min() > 1e-5
        np.testing.assert_array_equal(ask(server, image), logits > -np.log(3))

    def test_channels_that_nobody_feeds_it(self, server: Served, tmp_path: Path) -> None:
        path = scripted(Small(channels=4), tmp_path / "net.ts")
        said = refusal(server, "torchscript", path)
        assert all(word in said for word in ("4 channels", "one channel")), said
        assert "\n" not in said

    def test_a_patch_that_the_network_does_not_take(self, server: Served, tmp_path: Path) -> None:
        path = exported(Halving().eval(), tmp_path / "net.pt2", free=True)
        said = refusal(server, "pt2", path, config={"patch_size": 7, "patch_stride": 7})
        assert "patch_size 7 x 7 x 7" in said


class Halving(torch.nn.Module):
    """Fits sizes that can be halved."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.max_pool3d(batch, 2)
        return torch.cat([batch, torch.nn.functional.interpolate(small, scale_factor=2.0)], dim=1)


@pytest.mark.parametrize(
    ("read", "make", "words"),
    [
        (open_torchscript, lambda path: path.write_bytes(b"nothing" * 30), "torch.jit.save"),
        (open_torchscript, lambda path: torch.save(Small().state_dict(), path), "torch.jit.save"),
        (open_torchscript, lambda path: exported(Small().eval(), path), "torch.jit.save"),
        (open_exported, lambda path: scripted(Small(), path), "not a package"),
        (open_exported, lambda path: path.write_bytes(b""), "not a package"),
        (open_exported, lambda path: halved(exported(Small().eval(), path)), "not a package"),
        (open_exported, compiled, "AOTInductor"),
        (open_exported, lambda path: emptied(exported(Small().eval(), path)), "cannot be read"),
        (open_exported, lambda path: exported(Small(), path), r"eval\(\)"),
        (open_exported, lambda path: exported(Adding(), path, inputs=2), "2 inputs"),
    ],
)
def test_files_that_are_something_else(
    read: Callable[..., Any], make: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "net.pt2")
    with pytest.raises(BadInputError, match=words) as caught:
        read(tmp_path / "net.pt2", [tmp_path])
    assert caught.value.message.startswith(("net.pt2 ", "The network in net.pt2 "))
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (Small(channels=4), (1, 4, 8, 8, 8), "4 channels"),
        (torch.nn.Conv2d(1, 2, 1), (1, 1, 8, 8), "5D input"),
    ],
)
def test_inputs_that_are_no_volume(module: torch.nn.Module, shape: tuple[int, ...], words: str, tmp_path: Path) -> None:
    opened = open_exported(exported(module.eval(), tmp_path / "net.pt2", shape=shape), [tmp_path])
    with pytest.raises(BadInputError, match=words):
        check_input_shape(opened.shape, opened.described)


class Adding(torch.nn.Module):
    """Wants two volumes."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + other


@pytest.mark.skipif(psutil.WINDOWS, reason="modes are POSIX")
def test_a_file_that_others_could_have_written_is_not_run(server: Served, tmp_path: Path) -> None:
    path = scripted(Small(), tmp_path / "net.ts")
    path.chmod(0o666)
    assert "--trust" in refusal(server, "torchscript", path, 403)


@pytest.mark.skipif(psutil.WINDOWS, reason="modes are POSIX")
@pytest.mark.parametrize("read", [open_torchscript, open_exported])
def test_nothing_is_read_of_a_file_that_is_not_trusted(read: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"damaged")
    with pytest.raises(BadInputError):
        read(path, [tmp_path])
    path.chmod(0o666)
    with pytest.raises(NotTrustedError):
        read(path, [])


@pytest.mark.skipif(psutil.WINDOWS, reason="links need a permission there")
@pytest.mark.parametrize(
    ("save", "read", "reader"),
    [
        (scripted, open_torchscript, "torch.jit.load"),
        (exported, open_exported, "segserve.models.formats.exported.archive_records"),
    ],
)
def test_a_link_that_changes_after_it_was_judged_brings_nothing_else(
    save: Save, read: Callable[..., Opened], reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, foreign = (save(Bias(bias), tmp_path / f"{bias}.pt2") for bias in (1.0, 2.0))
    foreign.chmod(0o666)
    link = tmp_path / "net.pt2"
    link.symlink_to(ours)
    load: Any = resolve_name(reader)

    def changed(*args: Any, **options: Any) -> object:
        link.unlink()
        link.symlink_to(foreign)
        return load(*args, **options)

    monkeypatch.setattr(reader, changed)
    network = read(link, []).network
    assert isinstance(network, TorchNetwork)
    np.testing.assert_array_equal(TorchEngine(network)(BATCH), BATCH + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("save", [scripted, exported])
def test_files_of_other_precisions_are_computed_in_float32(save: Save, dtype: torch.dtype, tmp_path: Path) -> None:
    module = Small().eval().to(dtype)
    more = {"dtype": dtype} if save is exported else {}
    path = save(module, tmp_path / "net.pt2", **more)
    read = open_torchscript if save is scripted else open_exported
    network = read(path, [tmp_path]).network
    assert isinstance(network, TorchNetwork)
    found = TorchEngine(network)(BATCH)
    with torch.no_grad():
        np.testing.assert_allclose(found, module.float()(torch.tensor(BATCH)).numpy(), atol=1e-5)


class Several(torch.nn.Module):
    """Deep supervision: the same answer in several sizes, in some nesting."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.inner = Small()
        self.shape = shape

    def forward(self, batch: torch.Tensor) -> object:
        full = self.inner(batch)
        half, quarter = (torch.nn.functional.avg_pool3d(full, size) for size in (2, 4))
        answers: dict[str, object] = {
            "first": [full, half, quarter],
            "last": (quarter, half, full),
            "named": {"aux": half, "out": full},
            "nested": [({"deep": [[[quarter]], half]}, [full])],
            "only": [full],
        }
        return answers[self.shape]


@pytest.mark.parametrize("shape", ["first", "last", "named", "nested", "only"])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_of_several_outputs_the_one_of_full_size_is_used(shape: str, engine: str) -> None:
    module = Several(shape).eval()
    found = start(Candidate(engine, "cpu", "float32"), TorchNetwork(OneOutput(module)))(BATCH)
    with torch.no_grad():
        np.testing.assert_allclose(found, module.inner(torch.tensor(BATCH)).numpy(), atol=1e-5)


class Nothing(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> list[object]:
        return [batch.shape[0], {"no": None}]


def test_no_output_at_all_is_a_sentence() -> None:
    with pytest.raises(EngineError, match="gives no tensor"):
        TorchEngine(TorchNetwork(OneOutput(Nothing())))(BATCH)


class Moody(torch.nn.Module):
    """Goes another way for images than for nothing, which a recording cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.inner(batch)
        return answer * 5 if bool(batch.abs().max() > 0) else answer


class Unconvertible(torch.nn.Module):
    """Does what no other engine knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.inner(batch) + torch.special.bessel_j0(batch)
        return answer


def chosen(module: torch.nn.Module, wish: Wish | None = None) -> Choice:
    trial = Trial(trial_batches((2, 1, *PATCH), unit=True), lambda logits: "softmax")
    return choose(TorchNetwork(OneOutput(module.eval())), wish or Wish(), trial)


@pytest.mark.parametrize(("module", "reason"), [(Moody(), "probabilities"), (Unconvertible(), "bessel")])
def test_what_openvino_gets_wrong_stays_with_torch(module: torch.nn.Module, reason: str) -> None:
    choice = chosen(module)
    assert choice.candidate == Candidate("torch", "cpu", "float32")
    assert choice.repeatable
    (refused,) = [one.refused or "" for one in choice.verdicts if one.engine == "openvino"]
    assert reason in refused


def test_converting_starts_no_process_and_leaves_the_network_alone() -> None:
    module = Small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    children = psutil.Process().children(recursive=True)
    engine = start(Candidate("openvino", "cpu", "float32"), TorchNetwork(OneOutput(module.eval())))
    engine(BATCH)
    assert psutil.Process().children(recursive=True) == children
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_every_reduced_precision_here_is_near_float32() -> None:
    network = TorchNetwork(OneOutput(Small().eval()))
    exact = TorchEngine(network)(BATCH)
    for candidate in candidates(Wish(reduced=True), TorchNetwork)[1:]:
        found = start(candidate, network)(BATCH)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, atol=0.05)


class Viewing(torch.nn.Module):
    """Looks at how its tensors lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.inner(batch)
        return answer.view(len(batch), -1).view(answer.shape)


def test_a_network_that_wants_its_tensors_plain_gets_them() -> None:
    # Asked for on every processor: one without bfloat16 computes it too, only slower.
    module = Viewing().eval()
    found = TorchEngine(TorchNetwork(module), "cpu", "bfloat16")(BATCH)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.tensor(BATCH)).numpy(), atol=0.05)


def test_torchs_own_settings_count_for_nothing_and_stay() -> None:
    module = Small().eval()
    exact = TorchEngine(TorchNetwork(module))(BATCH)
    places: Any = torch.backends
    before = places.mkldnn.conv.fp32_precision, torch.get_num_threads()
    try:
        places.mkldnn.conv.fp32_precision = "bf16"
        np.testing.assert_array_equal(TorchEngine(TorchNetwork(module))(BATCH), exact)
        assert places.mkldnn.conv.fp32_precision == "bf16"
    finally:
        places.mkldnn.conv.fp32_precision = before[0]
    assert torch.get_num_threads() == before[1]


def test_the_cards_memory_is_too_small() -> None:
    class Greedy(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError(f"CUDA out of memory: tried to allocate {batch.numel()} GiB")

    with pytest.raises(EngineError, match=r"patch_size.*force_cpu"):
        TorchEngine(TorchNetwork(Greedy()))(BATCH)


@pytest.mark.parametrize(("said", "warned"), [(None, False), (3, False), (4, True)])
def test_a_number_of_classes_that_is_not_the_networks(
    said: int | None, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = replace(open_torchscript(scripted(Small(), tmp_path / "net.ts"), [tmp_path]), classes=said)
    monkeypatch.setattr(model, "open_volume_network", lambda request, trusted: opened)
    loaded = model.VolumeModel.load(parse_load_request(body("torchscript", tmp_path / "net.ts")), default_patch=8)
    assert any("4 classes" in warning for warning in loaded.plan.warnings) == warned


def test_all_but_the_networks_own_formats_can_do_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import segserve.workers.verbs.volume, segserve.cli.doctor"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
