"""A loaded model is a process: nothing hangs, and nothing is left behind."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests

from tests.serving import Served, start_server, wait_until
from tests.small_networks import Array, assert_labels, error_of, save_volume, threshold_network

# A stride of one voxel makes work without making data.
FINE = {"patch_size": 4, "patch_stride": 1}
FILE_PART = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
ENGINES = re.compile(r"openvino|torch|onnxruntime", re.IGNORECASE)
reads_maps = pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not show another process's libraries")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_network(tmp_path_factory.mktemp("network") / "above_100.onnx", 100)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file that takes minutes: a million patches."""
    path = tmp_path_factory.mktemp("endless") / "endless.nii.gz"
    save_volume(path, (104, 104, 104), dtype=np.uint8)
    return path


class Scan(NamedTuple):
    """A volume that takes no time, and the labels it must get."""

    path: Path
    labels: Array


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    path = tmp_path / "image.nii.gz"
    return Scan(path, save_volume(path) > 100)


class Background:
    """Requests that run beside the test."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(32)
        self.answers: list[Future[requests.Response]] = []

    def infer(self, served: Served, image: Path) -> Future[requests.Response]:
        self.answers.append(self.pool.submit(served.infer, image, model_name="fine"))
        return self.answers[-1]

    def infer_endlessly(self, served: Served, image: Path) -> Future[requests.Response]:
        """Send a request that takes minutes, and return once its model process is at work."""
        before = computed(served)
        answer = self.infer(served, image)
        wait_until(lambda: answer.done() or computed(served) > before + 0.3, 20, "the model never began to work")
        assert not answer.done(), answer.result().text
        return answer

    def end(self, served: Served) -> None:
        """Cut off what still runs, gently if that works."""
        if not all(answer.done() for answer in self.answers) and served.process.poll() is None:
            try:
                served.delete("/api/models/fine", timeout=10)
                wait(self.answers, 10)
            finally:
                if not all(answer.done() for answer in self.answers):
                    served.kill()
        self.pool.shutdown()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """The servers of this module so far; only the last may be alive."""
    servers = [start_server(tmp_path_factory.mktemp("busy") / "state")]
    yield servers
    for served in servers:
        if served.process.poll() is None:
            served.stop()


@pytest.fixture
def background() -> Background:
    return Background()


@pytest.fixture
def busy(started: list[Served], background: Background, network: Path) -> Iterator[Served]:
    """A server whose only model is `fine`; a test may do to it what it likes."""
    if started[-1].process.poll() is not None:
        started.append(start_server(started[-1].state_dir))
    served = started[-1]
    if set(served.get("/api/info").json()["models"]) != {"fine"}:
        served.load("fine", network, inference_config=FINE)
    yield served
    background.end(served)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    living = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def libraries(process: psutil.Process) -> set[str]:
    """The engine libraries that a process has mapped."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return {entry.path for entry in process.memory_maps() if ENGINES.search(Path(entry.path).name)}
    return set()


def model_processes(served: Served) -> list[psutil.Process]:
    return [process for process in alive(served.workers()) if libraries(process)]


def computed(served: Served) -> float:
    return sum(process.cpu_times().user for process in alive(served.workers()))


def spool_is_empty(served: Served) -> bool:
    return not list((served.state_dir / "spool").iterdir())


def assert_spool_empties(served: Served) -> None:
    wait_until(lambda: spool_is_empty(served), 10, "a request left a file behind")


def raw_upload(served: Served, image: Path) -> bytes:
    """A whole upload request as the bytes on the wire."""
    files = {"image": (image.name, image.read_bytes())}
    request = requests.Request("POST", served.url + "/api/infer", data={"model_name": "fine"}, files=files).prepare()
    headers = {**request.headers, "Host": urlsplit(served.url).netloc}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert isinstance(request.body, bytes)
    return f"POST /api/infer HTTP/1.1\r\n{head}\r\n".encode() + request.body


@reads_maps
def test_loading_makes_a_process_and_unloading_ends_it(busy: Served, network: Path) -> None:
    (first,) = model_processes(busy)
    busy.load("b", network)
    (second,) = [process for process in model_processes(busy) if process != first]
    began = time.monotonic()
    assert busy.delete("/api/models/b").status_code == 200
    wait_until(lambda: not alive([second]), 10, "the model process outlived its unloading")
    assert time.monotonic() - began < 8
    assert model_processes(busy) == [first]


@reads_maps
def test_replacing_a_model_ends_the_old_process(busy: Served, network: Path) -> None:
    (named,) = model_processes(busy)
    busy.load("fine", network, inference_config=FINE)
    wait_until(lambda: not alive([named]), 10, "the replaced model's process lives on")
    body = {"backend_type": "onnx", "model_path": str(network)}
    (named,) = model_processes(busy)
    assert busy.post("/api/model", json=body).status_code == 200
    (current,) = [process for process in model_processes(busy) if process != named]
    assert busy.post("/api/model", json=body).status_code == 200
    wait_until(lambda: not alive([current]), 10, "the replaced current model's process lives on")
    assert len(model_processes(busy)) == 2
    assert busy.delete("/api/model").status_code == 200
    wait_until(lambda: model_processes(busy) == [named], 10, "the model process outlived its unloading")


def test_failed_load_leaves_no_process(busy: Served, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    before = {process.pid for process in alive(busy.workers())}
    body = {"backend_type": "onnx", "model_path": str(tmp_path / "broken.onnx")}
    for route, more in [("/api/models", {"name": "b"}), ("/api/model", {})]:
        assert busy.post(route, json={**body, **more}).status_code == 400
        wait_until(lambda: {process.pid for process in alive(busy.workers())} == before, 10, "a process is left")


@reads_maps
def test_http_process_holds_no_engine_and_answers_while_a_model_works(
    busy: Served, endless: Path, background: Background
) -> None:
    background.infer_endlessly(busy, endless)
    for _ in range(20):
        assert busy.get("/api/health", timeout=1).status_code == 200
        assert busy.get("/api/info", timeout=1).json()["models"]["fine"]["loaded"] is True
    assert libraries(psutil.Process(busy.process.pid)) == set()


@pytest.mark.parametrize(
    ("route", "content_type", "head"),
    [
        ("/api/infer", "multipart/form-data; boundary=B", FILE_PART),
        ("/api/infer", "text/plain", b""),
        ("/api/models", "application/json", b'{"name": "'),
    ],
    ids=["upload", "no form", "load body"],
)
def test_http_process_keeps_no_body_in_memory(busy: Served, route: str, content_type: str, head: bytes) -> None:
    http_process = psutil.Process(busy.process.pid)
    before = peak = http_process.memory_info().rss

    def body() -> Iterator[bytes]:
        nonlocal peak
        yield head
        for _ in range(100):
            yield b"a" * 1_000_000
            peak = max(peak, http_process.memory_info().rss)

    assert busy.post(route, data=body(), headers={"Content-Type": content_type}).status_code in {400, 413}
    assert peak - before < 50_000_000


@reads_maps
def test_killed_model_process_is_503_and_the_next_request_works(
    busy: Served, endless: Path, scan: Scan, background: Background
) -> None:
    running = background.infer_endlessly(busy, endless)
    (victim,) = model_processes(busy)
    victim.kill()
    answer = running.result(15)
    sentence = error_of(answer, 503)
    assert int(answer.headers["Retry-After"]) >= 0
    assert re.search("memory|killed", sentence, re.IGNORECASE), sentence
    assert_labels(busy.infer(scan.path, model_name="fine"), scan.labels)
    (fresh,) = model_processes(busy)
    assert fresh.pid != victim.pid
    assert_spool_empties(busy)


@reads_maps
def test_model_process_killed_while_idle_goes_unnoticed(busy: Served, scan: Scan) -> None:
    (victim,) = model_processes(busy)
    victim.kill()
    victim.wait(10)
    assert busy.get("/api/health").status_code == 200
    assert_labels(busy.infer(scan.path, model_name="fine"), scan.labels)


def test_a_file_that_changed_is_not_loaded_under_the_old_name(busy: Served, tmp_path: Path, scan: Scan) -> None:
    swapped = threshold_network(tmp_path / "swapped.onnx", 100)
    others = model_processes(busy)
    busy.load("swapped", swapped)
    (holder,) = (process for process in model_processes(busy) if process not in others)
    threshold_network(swapped, 50)
    assert_labels(busy.infer(scan.path, model_name="swapped"), scan.labels)
    holder.kill()
    sentence = error_of(busy.infer(scan.path, model_name="swapped"), 503)
    assert "changed" in sentence
    busy.load("swapped", swapped)
    assert busy.infer(scan.path, model_name="swapped").status_code == 200
    busy.delete("/api/models/swapped")


def test_unload_does_not_wait_for_a_restart(busy: Served, scan: Scan, background: Background) -> None:
    (victim,) = model_processes(busy)
    victim.kill()
    victim.wait(10)
    running = background.infer(busy, scan.path)
    wait_until(lambda: model_processes(busy), 10, "no fresh process was started")
    began = time.monotonic()
    assert busy.delete("/api/models/fine").status_code == 200
    assert time.monotonic() - began < 8
    assert not model_processes(busy)
    assert "unloaded" in error_of(running.result(5), 503)


@reads_maps
def test_unload_ends_a_running_request(
    busy: Served, network: Path, endless: Path, scan: Scan, background: Background
) -> None:
    running = background.infer_endlessly(busy, endless)
    waiting = background.infer(busy, scan.path)
    processes = model_processes(busy)
    began = time.monotonic()
    assert busy.delete("/api/models/fine").status_code == 200
    assert time.monotonic() - began < 8
    assert "model fine was unloaded" in error_of(running.result(5), 503).lower()
    assert waiting.result(5).status_code in {503, 404}
    wait_until(lambda: not alive(processes), 10, "the model process outlived its unloading")
    assert_spool_empties(busy)
    busy.load("fine", network, inference_config=FINE)
    assert_labels(busy.infer(scan.path, model_name="fine"), scan.labels)


def test_killed_server_leaves_nothing_and_the_next_start_works(
    busy: Served, started: list[Served], network: Path, endless: Path, scan: Scan, background: Background
) -> None:
    running = background.infer_endlessly(busy, endless)
    processes = busy.workers()
    assert processes
    (busy.state_dir / "spool" / "left-behind.nii.gz").write_bytes(b"from an earlier life")
    busy.kill()
    with pytest.raises(requests.ConnectionError):
        running.result(15)
    wait_until(lambda: not alive(processes), 10, "a model process outlived its server")
    assert spool_is_empty(busy)
    assert not (busy.state_dir / "server.json").exists()
    (busy.state_dir / "spool" / "left-behind.nii.gz").write_bytes(b"of a server that had no model to sweep after it")
    started.append(start_server(busy.state_dir))
    assert spool_is_empty(started[-1])
    started[-1].load("fine", network, inference_config=FINE)
    assert_labels(started[-1].infer(scan.path, model_name="fine"), scan.labels)


@pytest.mark.parametrize("last", [b'{"id":1,"verb":"network","body":{"a":"bb', b"nonsense\n"])
def test_a_process_whose_server_dies_in_the_middle_of_a_message_sweeps_and_ends(tmp_path: Path, last: bytes) -> None:
    left = tmp_path / "spool" / "image.nii.gz"
    left.parent.mkdir()
    left.write_bytes(b"a patient's")
    command = [sys.executable, "-m", "segserve.workers.process", "--kind", "inspector", "--state-dir", str(tmp_path)]
    worker = subprocess.Popen([*command, "--", "questions"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        worker.communicate(last, timeout=60)
    finally:
        worker.kill()
    assert not left.exists()


def test_sigterm_ends_everything_within_ten_seconds(busy: Served, endless: Path, background: Background) -> None:
    running = background.infer_endlessly(busy, endless)
    processes = busy.workers()
    began = time.monotonic()
    busy.stop()
    wait_until(lambda: not alive(processes), 10, "a model process outlived its server")
    assert time.monotonic() - began < 12
    assert error_of(running.result(5), 503)
    assert spool_is_empty(busy)


def test_second_server_on_a_state_directory_names_the_first(server: Served) -> None:
    command = [sys.executable, "-m", "segserve", "serve", "--port", "0", "--state-dir", str(server.state_dir)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode != 0
    assert server.url in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert server.get("/api/health").status_code == 200


def test_spool_is_empty_after_good_and_bad_requests(busy: Served, scan: Scan) -> None:
    assert_labels(busy.infer(scan.path, model_name="fine"), scan.labels)
    assert_spool_empties(busy)
    attempts: list[tuple[dict[str, str], bytes]] = [
        ({"model_name": "nobody"}, scan.path.read_bytes()),
        ({"window_level": "x"}, scan.path.read_bytes()),
        ({}, scan.path.read_bytes()[:-50]),
        ({}, b"not a volume"),
    ]
    for fields, content in attempts:
        assert busy.post("/api/infer", data=fields, files={"image": ("a.nii.gz", content)}).status_code in {400, 404}
        assert_spool_empties(busy)


def test_client_that_hangs_up_in_mid_upload_leaves_nothing(busy: Served, tmp_path: Path) -> None:
    large = tmp_path / "large.nii"
    save_volume(large, (160, 160, 160))
    request = raw_upload(busy, large)
    with busy.dial(30) as connection:
        connection.sendall(request[: len(request) * 3 // 4])
        wait_until(busy.spool_files, 10, "the upload was never spooled")
    assert_spool_empties(busy)


def test_client_that_hangs_up_in_mid_inference_frees_the_engine(
    busy: Served, endless: Path, scan: Scan, background: Background
) -> None:
    before = computed(busy)
    with busy.dial(30) as connection:
        connection.sendall(raw_upload(busy, endless))
        wait_until(lambda: computed(busy) > before + 0.5, 20, "the model process never began to work")
    next_request = background.infer(busy, scan.path)
    assert_labels(next_request.result(10), scan.labels)
    assert_spool_empties(busy)


def test_client_that_hangs_up_while_waiting_leaves_nothing(
    busy: Served, endless: Path, scan: Scan, background: Background
) -> None:
    running = background.infer_endlessly(busy, endless)
    request = raw_upload(busy, scan.path)
    files_before = len(busy.spool_files())
    with busy.dial(30) as connection:
        connection.sendall(request)
        wait_until(lambda: len(busy.spool_files()) > files_before, 10, "the waiting upload was never spooled")
    wait_until(lambda: len(busy.spool_files()) == files_before, 10, "the abandoned upload lies on")
    assert not running.done()


def test_only_so_many_requests_may_wait(busy: Served, tmp_path: Path, scan: Scan, background: Background) -> None:
    slow = tmp_path / "slow.nii.gz"
    slow_voxels = save_volume(slow, (20, 20, 20))
    running = background.infer_endlessly(busy, slow)
    answers = [background.infer(busy, scan.path) for _ in range(22)]
    refused = [answer for answer in (future.result(120) for future in answers) if answer.status_code != 200]
    for answer in refused:
        error_of(answer, 503)
        assert int(answer.headers["Retry-After"]) >= 0
    assert 0 < len(refused) <= 22 - 16  # one that is served makes room for one that comes late
    assert_labels(running.result(120), slow_voxels > 100)
    for future in answers:
        if future.result().status_code == 200:
            assert_labels(future.result(), scan.labels)
