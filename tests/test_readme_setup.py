"""Installing, starting and deploying, as a published server's README has it, by the equivalents of our documents."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import requests

from segserve import __version__
from segserve.settings import DEFAULT_PORTS, Settings
from tests.serving import START_SECONDS, wait_until
from tests.small_networks import threshold_network

ROOT = Path(__file__).parents[1]
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
PRINTED = [
    "cd SlicerITKIT/server",
    "python -m venv venv",
    "source venv/bin/activate",
    "pip install -r requirements.txt",
    "pip install itkit[advanced]",
    "pip install itkit[onnx]",
    "pip install itkit[advanced,onnx]",
    "python itkit_server.py",
    "python itkit_server.py --host 0.0.0.0 --port 8000",
    "python itkit_server.py --debug",
    "python itkit_server.py --help",
    "python itkit_server.py --model-dir DIR",
    "python itkit_server.py --port 8001",
    "curl http://localhost:8000/api/health",
    "GET /api/health",
    "GET /api/info",
    "POST /api/models",
    "POST /api/infer",
    "DELETE /api/models/my_model",
    "Dockerfile",
    "docker build -t itkit-server .",
    "docker run -p 8000:8000 --gpus all itkit-server",
    "/etc/systemd/system/itkit-server.service",
    "lsof -i :8000",
    "netstat -ano | findstr :8000",
]
OPTIONS = ["--host", "--port", "--debug", "--model-dir"]


def equivalents() -> dict[str, str]:
    """What the migration page gives for each printed command of the volume server."""
    text = (ROOT / "docs" / "migrating.md").read_text()
    section = text[text.index("## ITKIT") : text.index("## DL Classifier")]
    rows = re.findall(r"^\| (.+?) (?<!\\)\| (.+) \|$", section, re.MULTILINE)
    return {
        command.replace("\\|", "|"): after for before, after in rows for command in re.findall(r"`([^`]+)`", before)
    }


@pytest.mark.parametrize("command", PRINTED)
def test_every_printed_command_has_an_equivalent(command: str) -> None:
    assert equivalents().get(command)


def commands_of(text: str, program: str) -> list[list[str]]:
    quoted = [found for found in re.findall(r"`([^`]+)`", text) if found.startswith(f"{program} ")]
    return [shlex.split(found) for found in quoted]


def test_every_extra_that_is_to_be_installed_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [
        extra
        for printed, after in equivalents().items()
        if printed.startswith("pip install")
        for command in commands_of(after, "pip")
        for extra in re.findall(r"\w+", command[-1])
    ]
    assert set(named) == {"mmengine", "onnx"}
    named += [extra for found in re.findall(r"\[([\w,]+)\]\"", DEPLOYMENT) for extra in found.split(",")]
    assert set(named) <= set(extras)
    assert any(package.startswith("itkit[advanced]") for package in extras["mmengine"])


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb", **environment}
    return subprocess.run(list(command), capture_output=True, text=True, timeout=90, check=False, env=env)


def test_help_shows_the_printed_options_and_those_of_every_equivalent() -> None:
    said = run(sys.executable, "-m", "segserve", "serve", "--help").stdout
    equivalent = [command for after in equivalents().values() for command in commands_of(after, "segserve")]
    used = {word for command in equivalent for word in command if word.startswith("--")}
    assert used == {*OPTIONS, "--help"}
    for option in used:
        assert option in said
    for default in ("127.0.0.1", "8000"):
        assert default in said


def test_version() -> None:
    ended = run(sys.executable, "-m", "segserve", "--version")
    assert ended.stdout == f"segserve {__version__}\n"


class Started:
    """A command of a document that starts a server, on a free port and a folder of its own."""

    def __init__(self, command: list[str], tmp_path: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        program = str(Path(sys.executable).parent / Path(command[0]).name)
        self.state_dir = tmp_path / "state"
        env = {**os.environ, **environment, "SEGSERVE_STATE_DIR": str(self.state_dir)}
        self.log = tmp_path / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, *command[1:], "--port", str(self.port)], stdout=log, stderr=log, env=env
            )

    def info(self) -> dict[str, Any]:
        """What the server says of itself to whoever has its key."""
        key = self.state_dir / "api-key"
        card = self.state_dir / "server.json"
        wait_until(lambda: card.exists() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log.read_text()
        url = f"http://127.0.0.1:{self.port}/api/info"
        wait_until(lambda: _status(url) is not None, START_SECONDS)
        assert _status(url) == 401
        found: dict[str, Any] = requests.get(url, headers={"X-API-Key": key.read_text()}, timeout=30).json()
        return found

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def _status(url: str) -> int | None:
    try:
        return requests.get(url, timeout=30).status_code
    except requests.ConnectionError:
        return None


def test_the_service_starts_a_server_for_other_machines_with_its_models(tmp_path: Path) -> None:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    (text,) = re.findall(r"```ini\n(.+?)```", DEPLOYMENT, re.DOTALL)
    unit.read_string(text)
    assert set(unit) == {"DEFAULT", "Unit", "Service", "Install"}
    service = unit["Service"]
    command = shlex.split(service["ExecStart"])
    assert Path(command[0]).is_absolute()
    assert service["Restart"] == "on-failure"
    name, _, folder = service["Environment"].partition("=")
    assert name == "SEGSERVE_STATE_DIR"
    assert Path(folder) == Path("/var/lib") / service["StateDirectory"]

    models = tmp_path / "models"
    models.mkdir()
    threshold_network(models / "liver.onnx")
    place = command.index("--model-dir") + 1
    started = Started([*command[:place], str(models), *command[place + 1 :]], tmp_path, SEGSERVE_PRELOAD="none")
    try:
        assert list(started.info()["models"]) == ["liver"]
    finally:
        started.end()


@pytest.mark.slow
def test_the_container_starts_a_server_for_other_machines_with_its_models(tmp_path: Path) -> None:
    (text,) = re.findall(r"```dockerfile\n(.+?)```", DEPLOYMENT, re.DOTALL)
    lines = [line.partition(" ")[::2] for line in text.strip().splitlines()]
    assert [word for word, _ in lines] == ["FROM", "ARG", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "CMD"]
    said = dict(lines)
    assert said["EXPOSE"].split() == [str(port) for port in DEFAULT_PORTS]
    version = re.fullmatch(r"python:3\.(\d+)-slim", said["FROM"])
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version
    assert f"3.{version[1]}" >= required.removeprefix(">=")
    environment = dict(word.split("=", 1) for word in shlex.split(said["ENV"]))
    assert {name.removeprefix("SEGSERVE_").lower() for name in environment} <= set(Settings.model_fields)
    assert environment["SEGSERVE_STATE_DIR"] == said["VOLUME"]
    for folder in environment.values():
        assert f"{folder} " in f"{said['RUN']} "

    threshold_network(tmp_path / "liver.onnx")
    folders = {"SEGSERVE_MODEL_DIR": str(tmp_path), "SEGSERVE_PRELOAD": "none"}
    started = Started(json.loads(said["CMD"]), tmp_path, **folders)
    try:
        assert "liver" in started.info()["models"]
    finally:
        started.end()


def test_a_taken_port_is_answered_by_the_printed_way_out(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = run(sys.executable, "-m", "segserve", "serve", "--port", port, SEGSERVE_STATE_DIR=str(tmp_path))
    assert ended.returncode == 1
    assert f"Port {port} is in use by another program. Choose another with --port." in ended.stderr


def test_folders_that_are_not_there_are_told_at_the_start(tmp_path: Path) -> None:
    for flag in ("--model-dir", "--trust"):
        gone = str(tmp_path / "gone")
        command = ["serve", "--port", "0", "--state-dir", str(tmp_path / "state"), flag, gone]
        ended = run(sys.executable, "-m", "segserve", *command)
        assert ended.returncode == 1
        assert ended.stderr.splitlines() == [
            f"segserve: The folder {gone} of the setting {flag[2:].replace('-', '_')} is not there."
        ]
