"""An answer that takes long begins early, and is whole and right, or visibly broken."""

from __future__ import annotations

import gzip
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import SimpleITK as sitk

from tests.serving import Served, start_server, wait_until
from tests.small_networks import Array, assert_labels, save_volume, threshold_network
from tests.tile_client import form_request

FINE = {"patch_size": 4, "patch_stride": 1}
PATIENCE, PULSE, READ_TIMEOUT = 1.0, 0.1, 4.0
HEADER = b"\x1f\x8b\x08\x00"
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that takes a second for long, with a model that does a lot of work on little data."""
    flags = ["--answer-patience", str(PATIENCE), "--answer-pulse", str(PULSE)]
    served = start_server(tmp_path_factory.mktemp("hasty") / "state", *flags)
    served.load("fine", threshold_network(served.state_dir.parent / "fine.onnx", 100), inference_config=FINE)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that takes a minute for long, with the same model."""
    served = start_server(tmp_path_factory.mktemp("patient") / "state", "--answer-pulse", "0.2")
    served.load("fine", threshold_network(served.state_dir.parent / "fine.onnx", 100), inference_config=FINE)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Array]:
    """A volume, and its labels."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    return path, save_volume(path, (20, 20, 20)) > 100


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("endless") / "endless.nii.gz"
    save_volume(path, (104, 104, 104), dtype=np.uint8)
    save_volume(path.with_name("small.nii.gz"), (6, 6, 6))
    return path


def send(served: Served, image: Path, **kwargs: Any) -> requests.Response:
    """Segment a volume as a client that takes a silence for the end."""
    with image.open("rb") as stream:
        return served.post(
            "/api/infer", data={"model_name": "fine"}, files={"image": stream}, timeout=READ_TIMEOUT, **kwargs
        )


def slow_answer(served: Served, image: Path) -> requests.Response:
    """What such a client gets from a model that stands still for longer than it waits in silence."""
    began = time.monotonic()
    with served.standstill("fine", 1.5 * READ_TIMEOUT):
        answer = send(served, image)
    assert time.monotonic() - began > READ_TIMEOUT
    return answer


@contextmanager
def asking(served: Served, image: Path, version: str, headers: str) -> Iterator[socket.socket]:
    """A connection on which a volume was sent."""
    form = {"image": (image.name, image.read_bytes()), "model_name": (None, b"fine")}
    with served.dial() as connection:
        connection.sendall(b"".join(form_request(served.url, "/api/infer", form, version=version, headers=headers)))
        yield connection


def spool_is_empty(served: Served) -> bool:
    return not list((served.state_dir / "spool").iterdir())


def test_a_long_answer_outlives_a_short_time_out_and_every_reader_takes_it(
    hasty: Served, scan: tuple[Path, Array], tmp_path: Path
) -> None:
    image, labels = scan
    answer = slow_answer(hasty, image)
    content = answer.content
    assert_labels(answer, labels)
    assert content.startswith(HEADER)
    blocks = content[10:].partition(content[10:].lstrip(EMPTY_BLOCK))[0]
    assert blocks.count(EMPTY_BLOCK) > 3
    (tmp_path / "labels.nii.gz").write_bytes(content)
    by_nibabel = np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj)
    np.testing.assert_array_equal(by_nibabel, labels)
    by_itk = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_itk).T, labels)
    assert by_itk.GetSize() == sitk.ReadImage(str(image)).GetSize()
    assert by_itk.GetOrigin() == sitk.ReadImage(str(image)).GetOrigin()
    model = hasty.get("/api/info").json()["models"]["fine"]
    for name in ("engine", "device", "precision"):
        assert answer.headers[f"X-Segserve-{name.capitalize()}"] == model[name]
    assert "X-Segserve-Patches" not in answer.headers
    assert "segmentation.nii.gz" in answer.headers["Content-Disposition"]
    wait_until(lambda: spool_is_empty(hasty), 10, "the answer left a file behind")


def test_an_answer_that_is_not_that_long_keeps_its_headers_and_outlives_a_time_out_too(
    patient: Served, scan: tuple[Path, Array]
) -> None:
    image, labels = scan
    answer = slow_answer(patient, image)
    assert_labels(answer, labels)
    assert answer.headers["X-Segserve-Patches"]


@pytest.mark.parametrize(("wish", "signs"), [("Connection: keep-alive\r\n", True), ("", False)])
def test_only_who_wants_to_keep_the_connection_gets_signs_of_life(
    patient: Served, scan: tuple[Path, Array], wish: str, signs: bool
) -> None:
    with patient.standstill("fine", 1.5), asking(patient, scan[0], "HTTP/1.1", wish) as connection:
        received = connection.recv(65536)
        while b" 200 OK" not in received:
            received += connection.recv(65536)
    before = received.partition(b"HTTP/1.1 200 OK")[0]
    assert before.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == b""
    assert (b"100" in before) == signs


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_takes_it_too(hasty: Served, scan: tuple[Path, Array], tmp_path: Path) -> None:
    image, labels = scan
    target = tmp_path / "labels.nii.gz"
    command = ["curl", "-sS", "--fail", "--speed-limit", "1", "--speed-time", str(round(READ_TIMEOUT + 0.5))]
    command += ["-F", f"image=@{image}", "-F", "model_name=fine", "-o", str(target), f"{hasty.url}/api/infer"]
    with hasty.standstill("fine", 1.5 * READ_TIMEOUT):
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.asarray(nib.load(target).dataobj), labels)


def test_a_quick_answer_is_one_file_with_all_its_headers(hasty: Served, tmp_path: Path) -> None:
    voxels = save_volume(tmp_path / "image.nii.gz", (6, 6, 6))
    answer = send(hasty, tmp_path / "image.nii.gz")
    assert_labels(answer, voxels > 100)
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert answer.headers["X-Segserve-Patches"]
    # What an early answer relies on: ten bytes of header without optional fields, one member, then its trailer.
    assert answer.content[:4] == HEADER
    _, size = struct.unpack("<II", answer.content[-8:])
    assert size == len(gzip.decompress(answer.content))


def test_a_failure_after_the_beginning_breaks_the_connection(hasty: Served, endless: Path) -> None:
    def end_the_process() -> None:
        wait_until(lambda: psutil.Process(hasty.process.pid).children())
        time.sleep(2 * PATIENCE)
        for worker in hasty.workers():
            worker.kill()

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(end_the_process)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            send(hasty, endless, headers={"X-Request-ID": "broken-1"})
        killed.result(10)
    told = hasty.get("/api/progress/broken-1").text
    assert "event: failed" in told
    assert "stopped while it worked" in told
    log = hasty.log.read_text()
    assert "[broken-1]" in next(line for line in log.splitlines() if "broken off" in line)
    assert "a bug" not in log
    wait_until(lambda: spool_is_empty(hasty), 10, "the broken answer left a file behind")


def test_a_failure_after_the_beginning_looks_like_no_end_without_chunks_either(hasty: Served, endless: Path) -> None:
    assert send(hasty, endless.with_name("small.nii.gz")).ok  # its process is up
    (worker,) = hasty.workers()
    with asking(hasty, endless, "HTTP/1.0", "") as connection:
        received = connection.recv(65536)
        while HEADER not in received:
            received += connection.recv(65536)
        worker.kill()
        with pytest.raises(ConnectionResetError):
            connection.makefile("rb").read()


def test_a_client_that_goes_after_the_beginning_ends_the_work(hasty: Served, endless: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "image.nii.gz", (6, 6, 6))
    assert send(hasty, tmp_path / "image.nii.gz").status_code == 200  # its process is up
    with endless.open("rb") as stream:
        answer = hasty.post("/api/infer", data={"model_name": "fine"}, files={"image": stream}, stream=True)
    assert answer.status_code == 200
    assert answer.raw.read(10)[:4] == HEADER
    (worker,) = hasty.workers()
    answer.close()
    wait_until(lambda: spool_is_empty(hasty), 10, "the spool was not emptied")
    before = worker.cpu_times().user
    time.sleep(0.5)
    assert worker.cpu_times().user - before < 0.3
