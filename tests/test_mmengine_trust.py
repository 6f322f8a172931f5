"""Which files of an MMEngine config count, and that none of them is run if one could be somebody else's."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from segserve.errors import BadInputError, NotTrustedError
from segserve.models.formats.mmengine_files import config_files
from tests.mmengine_configs import PLAIN, conv, folder, open_files, opened, own_imports, refusal

__all__ = ["folder", "open_files", "own_imports"]  # fixtures

Config: Any = pytest.importorskip("mmengine").Config
pytest.importorskip("itkit")
pytestmark = pytest.mark.filterwarnings("ignore")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NOBODY = pwd.getpwnam("nobody").pw_uid


def betraying(canary: Path) -> str:
    return f"import pathlib\npathlib.Path({str(canary)!r}).mkdir()\n"


Offence = Callable[[Path], Any]
OFFENCES: list[Any] = [
    pytest.param(lambda path: path.chmod(0o666), id="writable by others"),
    pytest.param(lambda path: os.chown(path, NOBODY, -1), id="of another user", marks=as_root),
]


@pytest.mark.parametrize("offend", OFFENCES)
@pytest.mark.parametrize("which", ["config.py", "base.py", "lazy_base.py", "beside_in_text.py", "nets/deep_beside.py"])
def test_nothing_is_run_if_one_of_the_files_could_be_anothers(
    folder: Path, tmp_path: Path, offend: Offence, which: str
) -> None:
    canary = tmp_path / "canary"
    lazy = which == "lazy_base.py"
    imports = "custom_imports = dict(imports=['beside_in_text', 'nets.deep_beside'])\n"
    head = "from mmengine.config import read_base\nwith read_base():\n    from .lazy_base import *\n"
    text = head + PLAIN if lazy else "_base_ = './base.py'\n" + imports + "model = dict(backbone=dict(type='Net'))\n"
    config, checkpoint = conv(folder, betraying(canary) + text)
    (folder / "nets").mkdir()
    for name in ("base.py", "lazy_base.py", "beside_in_text.py", "nets/deep_beside.py"):
        (folder / name).write_text(betraying(canary))
    offend(folder / which)
    message = refusal(config, checkpoint, NotTrustedError)
    assert f"{which} holds code and is not run" in message
    assert f"--trust {folder}" in message
    assert not canary.exists()
    # What the refusal asks for lets it run.
    with suppress(BadInputError):
        opened(config, checkpoint, trusted=(folder,))
    assert canary.exists()


@pytest.mark.parametrize("offend", OFFENCES)
def test_a_module_that_only_running_the_config_reveals_is_not_run(
    folder: Path, tmp_path: Path, offend: Offence
) -> None:
    canary = tmp_path / "canary"
    text = "import importlib\nimportlib.import_module('hidden' + '_beside')\nmodel = dict()\n"
    config, checkpoint = conv(folder, text)
    (folder / "hidden_beside.py").write_text(betraying(canary))
    offend(folder / "hidden_beside.py")
    assert "hidden_beside.py holds code and is not run" in refusal(config, checkpoint, NotTrustedError)
    assert not canary.exists()


def test_compiled_code_beside_a_module_counts_too(folder: Path, tmp_path: Path) -> None:
    import py_compile

    canary = tmp_path / "canary"
    config, checkpoint = conv(folder, "custom_imports = dict(imports='compiled_beside')\n")
    module = folder / "compiled_beside.py"
    module.write_text(betraying(canary))
    compiled = Path(str(py_compile.compile(str(module))))
    compiled.chmod(0o666)
    assert "holds code and is not run" in refusal(config, checkpoint, NotTrustedError)
    assert not canary.exists()


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A folder that everybody may write to."""
    path = tmp_path / "strangers"
    path.mkdir()
    path.chmod(0o777)
    return path


def test_what_lies_beside_a_link_is_not_run(folder: Path, strangers: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    config, checkpoint = conv(
        folder,
        "import importlib\ntry:\n    importlib.import_module('beside' + '_the_link')\n"
        "except ImportError:\n    pass\nmodel = dict(backbone=dict(type='torch.nn.Conv3d', "
        "in_channels=1, out_channels=2, kernel_size=3))\n",
    )
    link = strangers / "config.py"
    link.symlink_to(config)
    (strangers / "beside_the_link.py").write_text(betraying(canary))
    assert opened(link, checkpoint).files[0] == config
    assert not canary.exists()


def test_bases_and_modules_are_those_beside_the_file_that_a_link_leads_to(folder: Path, strangers: Path) -> None:
    _, checkpoint = conv(folder, PLAIN)
    (folder / "config.py").rename(folder / "base.py")
    (folder / "config.py").write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"
    )
    link = strangers / "link.py"
    link.symlink_to(folder / "config.py")
    assert opened(link, checkpoint).files[:2] == [folder / "config.py", folder / "base.py"]
    (folder / "base.py").chmod(0o666)
    message = refusal(link, checkpoint, NotTrustedError)
    assert message.startswith("base.py holds code and is not run: it may be changed")
    assert str(folder) not in message


def test_a_link_that_changes_after_it_was_judged_brings_nothing_else(
    folder: Path, strangers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    config, checkpoint = conv(folder)
    foreign, link = strangers / "foreign.py", strangers / "link.py"
    foreign.write_text(betraying(canary) + PLAIN)
    link.symlink_to(config)
    read = Config.fromfile

    def changed(filename: Path) -> object:
        link.unlink()
        link.symlink_to(foreign)
        return read(filename)

    monkeypatch.setattr(Config, "fromfile", changed)
    opened(link, checkpoint)
    assert not canary.exists()


def test_a_hidden_module_that_is_a_link_is_judged_by_where_it_leads(
    folder: Path, strangers: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    config, checkpoint = conv(
        folder, "import importlib\nimportlib.import_module('linked' + '_beside')\nmodel = dict()\n"
    )
    (strangers / "anything.py").write_text(betraying(canary))
    (folder / "linked_beside.py").symlink_to(strangers / "anything.py")
    assert refusal(config, checkpoint, NotTrustedError).startswith(
        "linked_beside.py holds code and is not run: its folder"
    )
    assert not canary.exists()


def test_a_folder_of_compiled_modules_that_others_may_write_to_is_not_used(folder: Path) -> None:
    config, checkpoint = conv(folder, "custom_imports = dict(imports='compilable_beside')\n")
    (folder / "compilable_beside.py").write_text("")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__").chmod(0o777)
    assert refusal(config, checkpoint, NotTrustedError).startswith("__pycache__ holds code and is not run")


def test_what_is_wrong_in_a_config_is_told_by_the_links_name(folder: Path, strangers: Path) -> None:
    link = strangers / "link.py"
    link.symlink_to(folder / "config.py")
    assert refusal(link, conv(folder, "a = (\n")[1]).startswith("link.py, line 1: '(' was never closed")
    assert "link.py, line 1: ZeroDivisionError" in refusal(link, conv(folder, "1 / 0\n")[1])
    (folder / "failing_beside.py").write_text("raise OSError(__file__)\n")
    message = refusal(link, conv(folder, "import importlib\nimportlib.import_module('failing' + '_beside')\n")[1])
    assert message == "The config link.py fails: failing_beside.py, line 1: OSError: failing_beside.py."


def test_a_checkpoint_needs_no_trust(folder: Path) -> None:
    config, checkpoint = conv(folder)
    checkpoint.chmod(0o666)
    opened(config, checkpoint)


def test_a_text_too_long_for_a_name_is_no_module_and_no_base(folder: Path) -> None:
    config, checkpoint = conv(folder, f"note = {'n' * 300!r}\n{PLAIN}")
    assert opened(config, checkpoint).files[:2] == [config, checkpoint]
    config.write_text(f"_base_ = {'b' * 300 + '.py'!r}\n")
    assert refusal(config, checkpoint).endswith("b.py is not there.")


def test_the_files_of_a_config_are_found_without_running_it(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "pkg").mkdir()
    for name in ("pkg/__init__.py", "pkg/net.py", "pkg/blocks.py", "other.py", "base.py", "of_base.py", "unused.py"):
        (folder / name).write_text("")
    (folder / "pkg" / "net.py").write_text("from . import blocks\nfrom .net import Net\n")
    (folder / "base.py").write_text("_base_ = ['base.py', './config.py']\nimport of_base\n")
    config = folder / "config.py"
    config.write_text(betraying(canary) + "_base_ = 'base.py'\nimport torch\nx = dict(type='pkg.net.Net', y='other')\n")
    names = {path.relative_to(folder).as_posix() for path in config_files(config)}
    assert names == {
        *("config.py", "base.py", "of_base.py", "other.py", "pkg/__init__.py", "pkg/net.py", "pkg/blocks.py")
    }
    assert not canary.exists()
