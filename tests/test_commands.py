"""The commands, run the way a user runs them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.serving import START_SECONDS, Served, start_server
from tests.small_networks import read_labels, save_volume, threshold_network

SCRIPTS = str(Path(sys.executable).parent)
PLAIN = {"COLUMNS": "500", "NO_COLOR": "1", "TERM": "dumb"}


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **PLAIN, **(env or {})}
    return subprocess.run(list(command), capture_output=True, text=True, timeout=90, check=False, env=environment)


def segserve(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "segserve", *arguments, env=env)


def assert_one_sentence(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that a command failed with one line that a user can read."""
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert "Traceback" not in said, said
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, said
    for word in words:
        assert word in lines[0], lines[0]


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def no_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command remembers goes to a folder of the test, unless it is told another."""
    monkeypatch.setenv("SEGSERVE_STATE_DIR", str(tmp_path / "state of no server"))


@pytest.fixture
def network(tmp_path: Path) -> str:
    return str(threshold_network(tmp_path / "net.onnx", 0.5))


@pytest.fixture
def image(tmp_path: Path) -> str:
    save_volume(tmp_path / "image.nii.gz")
    return str(tmp_path / "image.nii.gz")


def test_infer_gives_the_labels_that_http_gives(server: Served, tmp_path: Path, network: str, image: str) -> None:
    out = tmp_path / "out.nii.gz"
    options = ["--window-level", "64", "--window-width", "128", "--engine", "openvino", "--fp16", "--force-cpu"]
    options += ["--patch-size", "6", "5", "4", "--patch-stride", "4", "3", "2"]
    ended = segserve("infer", network, image, "-o", str(out), *options)
    assert ended.returncode == 0, ended.stderr
    server.load("command", Path(network), inference_config={"patch_size": [6, 5, 4], "patch_stride": [4, 3, 2]})
    try:
        answer = server.infer(Path(image), model_name="command", window_level="64", window_width="128")
    finally:
        server.delete("/api/models/command")
    labels = read_labels(out.read_bytes())
    assert labels.any()
    np.testing.assert_array_equal(labels, read_labels(answer.content))


def test_an_infer_mistake_is_one_sentence(tmp_path: Path, image: str) -> None:
    out = tmp_path / "out.nii.gz"
    assert_one_sentence(segserve("infer", str(tmp_path / "none.onnx"), image, "-o", str(out)), "none.onnx")
    assert not out.exists()


@pytest.mark.slow
def test_infer_mistakes_are_one_sentence(tmp_path: Path, image: str) -> None:
    (tmp_path / "words.txt").write_text("just some words")
    network = str(threshold_network(tmp_path / "static.onnx", patch=(8, 8, 8)))
    words, out = str(tmp_path / "words.txt"), str(tmp_path / "out.nii.gz")
    assert_one_sentence(segserve("infer", network, str(tmp_path / "none.nii.gz"), "-o", out), "none.nii.gz")
    assert_one_sentence(segserve("infer", words, image, "-o", out))
    assert_one_sentence(segserve("infer", network, words, "-o", out))
    assert_one_sentence(segserve("infer", network, image, "-o", out, "--window-level", "50"), "window")
    window = ["--window-level", "40", "--window-width=nan"]
    assert_one_sentence(segserve("infer", network, image, "-o", out, *window), "window")
    assert_one_sentence(segserve("infer", network, image, "-o", str(tmp_path / "no" / "folder" / "out.nii.gz")))
    assert not Path(out).exists()


def test_models_asks_the_running_server_else_the_disk(tmp_path: Path, network: str) -> None:
    folder = tmp_path / "models"
    (folder / "stroma").mkdir(parents=True)
    for name in ("liver.onnx", "stroma/model.onnx"):
        shutil.copy(network, folder / name)
    (folder / "stroma" / "metadata.json").write_text('{"name": "Stroma of the colon"}')
    (folder / "words.onnx").write_text("just some words")
    (folder / "wrong.onnx").write_text("")
    (folder / "wrong.json").write_text("[]")
    env = {"SEGSERVE_STATE_DIR": str(tmp_path / "state"), "SEGSERVE_MODEL_DIR": str(folder)}
    served = start_server(tmp_path / "state", env={**env, "SEGSERVE_PRELOAD": "none"})
    try:
        served.load("shown in the list", Path(network))
        assert served.infer(Path(network), model_name="words").status_code == 400
        running = segserve("models", env=env)
    finally:
        served.stop()
    assert running.returncode == 0, running.stderr
    for line in (
        "1 loaded:",
        "  shown in the list: 2 classes",
        "3 offered:",
        "  liver: onnx, loaded when a request names it",
        "  words: onnx, The file is not an ONNX network",
        "  wrong: onnx, wrong.onnx: wrong.json must be a JSON object",
        "  stroma: Stroma of the colon",
    ):
        assert line in running.stdout, running.stdout
    stopped = segserve("models", env=env)
    assert stopped.returncode == 0, stopped.stderr
    for line in ("No server answers", "  liver: onnx", "  wrong: wrong.onnx: wrong.json must", "  stroma: Stroma of"):
        assert line in stopped.stdout, stopped.stdout


def test_models_shows_the_key_to_the_server_alone(own_server: Served, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
    found = segserve("models", env={"SEGSERVE_STATE_DIR": str(own_server.state_dir), "no_proxy": "", **nowhere})
    assert found.stdout.startswith("0 loaded"), found.stdout
    locked = start_server(tmp_path / "locked", "--host", "0.0.0.0")
    try:
        (tmp_path / "wrong").write_text("wrong")
        env = {"SEGSERVE_STATE_DIR": str(locked.state_dir), "SEGSERVE_API_KEY_FILE": str(tmp_path / "wrong")}
        assert_one_sentence(segserve("models", env=env), "401")
        assert segserve("models", env={"SEGSERVE_STATE_DIR": str(locked.state_dir)}).returncode == 0
    finally:
        locked.stop()


def test_models_works_before_any_server_ever_ran(tmp_path: Path) -> None:
    ended = segserve("models", env={"SEGSERVE_STATE_DIR": str(tmp_path / "new")})
    assert ended.returncode == 0, ended.stderr


def test_doctor_tells_what_is_here_and_what_is_missing(tmp_path: Path) -> None:
    ended = segserve("doctor", env={"SEGSERVE_STATE_DIR": str(tmp_path / "state")})
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.lower()
    for word in ["python", ".".join(map(str, sys.version_info[:3])), "openvino", str(tmp_path / "state").lower()]:
        assert word in said, ended.stdout
    assert re.search(r"memory.*\d\s*[gm]i?b", said)
    assert "torch" in said


@pytest.mark.parametrize("alias", ["segserve", "itkit-server", "dlclassifier-server"])
def test_every_name_of_the_command_has_help(alias: str) -> None:
    script = shutil.which(alias, path=SCRIPTS)
    assert script is not None
    ended = run(script, *(["serve"] if alias == "segserve" else []), "--help")
    assert ended.returncode == 0, ended.stderr
    for option in ["--host", "--port", "--state-dir", "--debug", "--insecure", "--allow-from"]:
        assert option in ended.stdout


def test_taken_port_is_named(tmp_path: Path) -> None:
    with taken_port() as port:
        ended = segserve("serve", "--port", str(port), "--state-dir", str(tmp_path / "state"))
    assert ended.returncode != 0
    assert str(port) in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_one_taken_default_port_is_a_warning_and_the_other_serves(tmp_path: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener, port in [(first, 8000), (second, 8765)]:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port} is in use on this machine")
        second.close()
        first.listen()
        served = start_server(tmp_path / "state", ports=False)
        try:
            assert {url.rsplit(":", 1)[1] for url in served.urls} == {"8765"}
            assert "8000" in served.log.read_text()
        finally:
            served.stop()


def test_port_may_be_repeated(tmp_path: Path) -> None:
    port = free_port()
    served = start_server(tmp_path / "state", "--port", str(port))
    try:
        assert len({url.rsplit(":", 1)[1] for url in served.urls}) == 2
        assert f"http://127.0.0.1:{port}" in served.urls
        for url in served.urls:
            assert requests.get(url + "/api/health", timeout=30).status_code == 200
    finally:
        served.stop()


def test_banner_shows_where_the_server_is_and_what_it_has(server: Served) -> None:
    banner = server.log.read_text()
    for word in ["Host", "Port", "CUDA", "openvino", str(server.state_dir), "/docs"]:
        assert word.lower() in banner.lower(), banner


def test_the_front_page_leads_on(server: Served) -> None:
    front = server.get("/").json()
    assert front["name"] == "Segserve"
    places = {place for value in front.values() for place in (value if isinstance(value, list) else [value])}
    assert {"/docs", "/api/info", "/api/v1/health"} <= places
    for place in places:
        assert not place.startswith("/") or server.get(place).status_code == 200, place


def test_uvicorn_serves_the_app(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "segserve.app:app", "--port", str(port)]
    env = {**os.environ, "SEGSERVE_STATE_DIR": str(tmp_path / "state")}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=env) as process:
        try:
            assert answer_of(f"http://127.0.0.1:{port}/api/health", process).json()["status"] == "ok"
        finally:
            process.terminate()
            process.wait(20)


def answer_of(url: str, process: subprocess.Popen[bytes]) -> requests.Response:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return requests.get(url, timeout=30)
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError("uvicorn did not serve the app")
