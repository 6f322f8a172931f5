"""`segserve infer` with every format, and with folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from typer.testing import CliRunner

from segserve.cli import app as command_line
from tests import itk_files, networks, volumes
from tests.volumes import Array, Header, affine_of

PATCH = (4, 5, 6)
SHAPE = (9, 8, 7)
CLASSES = 300
TILTED = volumes.rotation((11, -7, 14)) @ affine_of("PSL")

Infer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.wide_network(tmp_path_factory.mktemp("infer") / "wide.onnx", CLASSES, spatial=PATCH)


@pytest.fixture
def infer(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Infer:
    """Run `segserve infer` with the network, the way a user does."""
    state = str(tmp_path_factory.getbasetemp() / "infer-state")
    env = {**os.environ, "COLUMNS": "500", "NO_COLOR": "1", "TERM": "dumb", "SEGSERVE_STATE_DIR": state}

    def run(image: Path, output: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "segserve", "infer", str(network), str(image), "-o", str(output)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)

    return run


def scan(seed: int = 0) -> Array:
    """Voxels whose labels they are."""
    return np.random.default_rng(seed).integers(0, CLASSES, SHAPE, np.int16)


def labels_of(path: Path) -> Array:
    return itk_files.array_of(SimpleITK.ReadImage(str(path)))


def nifti(path: Path, stored: Array, affine: Array = TILTED) -> Path:
    return volumes.write(path, stored, Header(sform=affine, qform=affine))


@pytest.mark.parametrize(
    ("source", "ending", "magic"),
    [
        ("v.nii.gz", ".nrrd", b"NRRD"),
        ("v.nii.gz", ".mha", b"ObjectType"),
        ("v.mha", ".nii", b"\x5c\x01\0\0"),
        ("v.mha", ".nrrd", b"NRRD"),
    ],
)
def test_the_ending_of_the_output_is_its_format(
    source: str, ending: str, magic: bytes, infer: Infer, tmp_path: Path
) -> None:
    stored, out = scan(), tmp_path / f"labels{ending}"
    image = itk_files.load(nifti(tmp_path / "v.nii.gz", stored))
    if source == "v.mha":
        itk_files.save(tmp_path / source, image)
    ended = infer(tmp_path / source, out)
    assert ended.returncode == 0, ended.stderr
    assert str(out) in ended.stdout
    assert out.read_bytes().startswith(magic)
    written = SimpleITK.ReadImage(str(out))
    assert written.GetPixelID() == SimpleITK.sitkUInt16
    np.testing.assert_array_equal(itk_files.array_of(written), stored)
    itk_files.assert_same_place(written, image, 1e-6)


def test_a_header_of_ours_loses_no_digits(infer: Infer, tmp_path: Path) -> None:
    image = itk_files.image_of(scan(), volumes.rotation((1, 2, 3)) @ affine_of("LAS", (1 / 3, 2 / 3, 0.1)))
    assert infer(itk_files.save(tmp_path / "v.nrrd", image), tmp_path / "labels.mha").returncode == 0
    itk_files.assert_same_place(SimpleITK.ReadImage(str(tmp_path / "labels.mha")), image, 1e-14)


def test_a_2d_image_gives_2d_labels(infer: Infer, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    image = itk_files.image_of(scan()[:, :, 0], volumes.rotation((0, 0, 20)) @ affine_of("LPS"))
    for name in ("a.mha", "b.nrrd", "c.nii.gz"):
        itk_files.save(folder / name, image)
    ended = infer(folder, out)
    assert ended.returncode == 0, ended.stderr
    for name in ("a.mha", "b.nrrd", "c.nii.gz"):
        itk_files.assert_same_place(SimpleITK.ReadImage(str(out / name)), image)
        np.testing.assert_array_equal(labels_of(out / name), scan()[:, :, 0])


def test_a_sheared_volume_has_no_labels_as_metaimage(infer: Infer, tmp_path: Path) -> None:
    image = volumes.write(tmp_path / "v.nii", scan(), Header(sform=volumes.shear(0.3) @ affine_of("RAS")))
    ended = infer(image, tmp_path / "labels.mha")
    assert ended.returncode == 1
    assert "not perpendicular" in ended.stderr
    assert ".nii.gz" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.nii"]


def test_a_folder_is_done_one_by_one_and_again_only_what_is_missing(infer: Infer, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "deep" / "out"
    (folder / "inner.nii").mkdir(parents=True)
    for number, name in enumerate(["a.nii.gz", "b.nii", "d.NRRD", "e.mha"]):
        image = itk_files.load(nifti(tmp_path / "twin.nii", scan(number)))
        itk_files.save(folder / name.lower(), image)
        (folder / name.lower()).rename(folder / name)
    (folder / "f.mhd").write_bytes(itk_files.meta(scan(4), "zlib"))
    (folder / "c.mha").write_bytes(itk_files.meta(scan(5))[:-50])
    SimpleITK.WriteImage(itk_files.image_of(scan(6), TILTED), str(folder / "g.mhd"))
    assert (folder / "g.raw").exists()
    for name in (".hidden.nii", "notes.txt", "scan.dcm"):
        (folder / name).write_bytes(b"of no interest")

    ended = infer(folder, out)
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == "5 segmented, 0 skipped (their labels exist), 2 failed: c.mha, g.mhd"
    assert f"{folder / 'c.mha'}: The image file is cut short" in ended.stderr
    assert f"{folder / 'g.mhd'}: The MetaImage header names another file" in ended.stderr
    assert "Traceback" not in ended.stderr
    names = ["a.nii.gz", "b.nii", "d.NRRD", "e.mha", "f.mha"]
    assert sorted(path.name for path in out.iterdir()) == names
    for number, name in enumerate(names):
        np.testing.assert_array_equal(labels_of(out / name), scan(number))

    (folder / "c.mha").write_bytes(itk_files.meta(scan(5)))
    (folder / "g.mhd").write_bytes(itk_files.meta(scan(6)))
    (out / "a.nii.gz").write_bytes(b"kept as it is")
    ended = infer(folder, out)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "2 segmented, 5 skipped (their labels exist), 0 failed"
    assert (out / "a.nii.gz").read_bytes() == b"kept as it is"
    np.testing.assert_array_equal(labels_of(out / "c.mha"), scan(5))
    assert infer(folder, out).stdout == "0 segmented, 7 skipped (their labels exist), 0 failed\n"


def refused(network: Path, image: Path, output: Path) -> str:
    """The sentence of a command that ends before anything is loaded; it is run in this process, which is faster."""
    ended = CliRunner().invoke(command_line, ["infer", str(network), str(image), "-o", str(output)])
    assert ended.exit_code == 1, ended.output
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return str(ended.stderr)


def test_folders_that_make_no_sense_are_refused_before_any_work(network: Path, tmp_path: Path) -> None:
    empty, folder = tmp_path / "empty", tmp_path / "in"
    empty.mkdir()
    folder.mkdir()
    (folder / "a.mha").write_bytes(itk_files.meta(scan()))
    (tmp_path / "file").write_text("in the way")
    for image, output, words in (
        (empty, tmp_path / "out", "holds no volume"),
        (folder, tmp_path / "file", "must be a folder"),
        (folder, folder, "another one"),
        (folder / "a.mha", tmp_path / "labels.txt", ".nii.gz, .nii, .nrrd, .mha"),
        (folder / "a.mha", tmp_path / "none" / "labels.mha", "is not there"),
    ):
        sentence = refused(network, image, output)
        assert words in sentence
    (folder / "a.mhd").write_bytes(itk_files.meta(scan()))
    assert "a.mha and a.mhd would both become a.mha" in refused(network, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_loaded_is_told_once(tmp_path: Path, infer: Infer, network: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mha", "b.mha"):
        (folder / name).write_bytes(itk_files.meta(scan()))
    kept = network.read_bytes()
    network.write_bytes(b"no network")
    try:
        ended = infer(folder, tmp_path / "out")
    finally:
        network.write_bytes(kept)
    assert ended.returncode == 1
    assert ended.stderr.count(str(network)) == 1
    assert "segmented" not in ended.stdout


def infer_here(*arguments: str) -> str:
    """Run the command in this process, which has torch already; what it complained of, empty if it worked."""
    ended = CliRunner().invoke(command_line, ["infer", *arguments])
    assert (ended.exit_code == 0) == ("segserve:" not in ended.stderr), ended.output
    return str(ended.stderr) if ended.exit_code else ""


@pytest.fixture
def point_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A network whose labels are exact; its files are made in `tmp_path`, in every form but ONNX."""
    pytest.importorskip("itkit")
    monkeypatch.setenv("SEGSERVE_STATE_DIR", str(tmp_path / "state"))
    network, patch = torch.nn.Conv3d(1, 2, 1), torch.zeros(1, 1, 8, 8, 8)
    weights = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([150.0, 0.0])}
    network.load_state_dict(weights)
    torch.jit.trace(network, patch).save(tmp_path / "net.pt")
    torch.export.save(torch.export.export(network, (patch,)), tmp_path / "net.pt2")
    torch.save(network.state_dict(), tmp_path / "net.pth")
    conv = "type=Conv3d, in_channels=1, out_channels=2, kernel_size=1"
    (tmp_path / "config.py").write_text(f"from torch.nn import Conv3d\nmodel = dict(backbone=dict({conv}))\n")
    return network


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_network_is_taken(point_network: torch.nn.Module, tmp_path: Path) -> None:
    stored, out, config = scan(), tmp_path / "out.mha", str(tmp_path / "config.py")
    more = [str(nifti(tmp_path / "v.nii.gz", stored)), "-o", str(out), "--patch-size", "8", "8", "8"]
    for arguments in (["net.pt"], ["net.pt2"], ["net.pth", "--config", config]):
        assert not infer_here(str(tmp_path / arguments[0]), *arguments[1:], *more)
        np.testing.assert_array_equal(labels_of(out), stored > 150)
        out.unlink()

    unfit = [str(tmp_path / "net.pth"), *more]
    assert "--config" in infer_here(*unfit)
    torch.save({"weight": point_network.weight, "others": torch.zeros(1)}, tmp_path / "net.pth")
    assert "others" in infer_here(*unfit, "--config", config)
    assert "others" in infer_here(*unfit, "--config", config, "--strict")
    assert not infer_here(*unfit, "--config", config, "--no-strict")


@pytest.mark.skipif(sys.platform == "win32", reason="there, the owner counts")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", ["net.pt", "net.pt2", "net.pth"])
def test_code_that_others_may_change_is_not_run(
    point_network: torch.nn.Module, tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / ("config.py" if network == "net.pth" else network)
    code.chmod(0o666)
    assert point_network
    image, out = nifti(tmp_path / "v.nii.gz", scan()), tmp_path / "out.mha"
    command = [str(tmp_path / network), str(image), "-o", str(out), "--patch-size", "8", "8", "8"]
    command += ["--config", str(code)] if network == "net.pth" else []
    sentence = infer_here(*command)
    assert "--trust" in sentence
    assert str(code) in sentence
    assert not out.exists()
    assert not infer_here(*command, "--trust", str(tmp_path))
    out.unlink()
    monkeypatch.setenv("SEGSERVE_MODEL_DIR", str(tmp_path))
    assert not infer_here(*command)
