"""Uploads that stall, crawl or break off end in time, and leave nothing in the spool."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.serving import Served, start_server, wait_until
from tests.small_networks import assert_labels, save_volume, threshold_network

STALL = 2.0
RATE = 2000
FORM = "multipart/form-data; boundary=B"
PART = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
TILES = b'--B\r\nContent-Disposition: form-data; name="tiles"; filename="a"\r\n\r\n'
END = b'\r\n--B\r\nContent-Disposition: form-data; name="model_name"\r\n\r\nabove\r\n--B--\r\n'
ROUTES = [
    ("/api/infer", FORM, PART, "error"),
    ("/api/models", "application/json", b'{"name": "', "error"),
    ("/api/v1/inference/pixel/binary", FORM, TILES, "detail"),
    ("/api/v1/models/upload", FORM, PART, "detail"),
    ("/api/v1/train", "application/json", b'{"model_type": "', "detail"),
]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that waits two seconds for a body, and wants 2 kB of it a second."""
    folder = tmp_path_factory.mktemp("strict")
    served = start_server(folder / "state", "--upload-stall", str(STALL), "--upload-rate", f"{RATE}B")
    served.load("above", threshold_network(folder / "above.onnx", 100))
    yield served
    served.stop()


class Answer(NamedTuple):
    """An answer as it lies on the wire, after the server has closed the connection."""

    status: int
    body: dict[str, str]


def begin(served: Served, route: str, kind: str, identity: str = "", length: int = 10**6) -> socket.socket:
    """A connection on which a request's head has been sent."""
    address = urlsplit(served.url)
    connection = served.dial(20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [f"POST {route} HTTP/1.1", f"Host: {address.netloc}", f"Content-Type: {kind}", f"Content-Length: {length}"]
    lines += [f"X-Request-ID: {identity}"] if identity else []
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def read_to_the_end(connection: socket.socket) -> Answer:
    """The answer; waits until the server closes the connection."""
    received = b""
    with suppress(ConnectionResetError):  # the server may have closed before it read our last byte
        while part := connection.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), json.loads(body))


def assert_spool_empties(served: Served) -> None:
    spool = served.state_dir / "spool"
    wait_until(lambda: not list(spool.iterdir()), 10, "an upload left something behind")


def test_a_stalled_upload_is_given_up_on_every_route(strict: Served) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(begin(strict, route, kind)) for route, kind, _, _ in ROUTES]
        for connection, (_, _, beginning, _) in zip(connections, ROUTES, strict=True):
            connection.sendall(beginning + bytes(5000))
        began = time.monotonic()
        answers = [read_to_the_end(connection) for connection in connections]
    assert STALL / 2 < time.monotonic() - began < 10 * STALL
    for answer, (route, *_, key) in zip(answers, ROUTES, strict=True):
        assert answer.status == 408, route
        assert "upload_stall" in answer.body[key], route
    assert_spool_empties(strict)


def test_an_upload_that_crawls_is_given_up_on_every_route(strict: Served) -> None:
    with ExitStack() as stack:
        connections = {route: stack.enter_context(begin(strict, route, kind)) for route, kind, _, _ in ROUTES}
        for route, _, beginning, _ in ROUTES:
            connections[route].sendall(beginning)
        answers: dict[str, Answer] = {}
        began = time.monotonic()
        while connections and time.monotonic() - began < 10 * STALL:
            time.sleep(STALL / 10)
            for route, connection in list(connections.items()):
                if select.select([connection], [], [], 0)[0]:
                    answers[route] = read_to_the_end(connections.pop(route))
                else:
                    connection.sendall(b"a")
    assert set(answers) == {route for route, *_ in ROUTES}
    for route, *_, key in ROUTES:
        assert answers[route].status == 408, route
        assert "upload_rate" in answers[route].body[key], route
    assert_spool_empties(strict)


def test_an_upload_with_pauses_is_taken(strict: Served, tmp_path: Path) -> None:
    voxels = save_volume(tmp_path / "image.nii", (20, 20, 20))
    body = PART + (tmp_path / "image.nii").read_bytes() + END
    with begin(strict, "/api/infer", FORM, length=len(body)) as connection:
        for start in range(0, len(body), 4000):
            connection.sendall(body[start : start + 4000])
            time.sleep(STALL / 5)
        connection.settimeout(20)
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert_labels(strict.infer(tmp_path / "image.nii", model_name="above"), voxels > 100)
    assert_spool_empties(strict)


def test_computing_may_take_longer_than_an_upload_may_pause(strict: Served, tmp_path: Path) -> None:
    voxels = save_volume(tmp_path / "image.nii.gz", (20, 20, 20))
    began = time.monotonic()
    with strict.standstill("above", 2 * STALL):
        answer = strict.infer(tmp_path / "image.nii.gz", model_name="above")
        assert time.monotonic() - began > STALL
    assert_labels(answer, voxels > 100)


def test_what_ends_an_upload_is_told_in_its_progress(strict: Served) -> None:
    with begin(strict, "/api/infer", FORM, "stalled", 10**7) as connection:
        connection.sendall(PART + bytes(3_000_000))
        wait_until(strict.spool_files)
        sentence = read_to_the_end(connection).body["error"]
    with begin(strict, "/api/infer", FORM, "gone", 10**7) as connection:
        connection.sendall(PART + bytes(3_000_000))
        wait_until(strict.spool_files)
    assert_spool_empties(strict)
    stalled, gone = (strict.get(f"/api/progress/{identity}").text for identity in ("stalled", "gone"))
    assert "event: failed" in stalled
    assert sentence in stalled
    assert "event: cancelled" in gone


@pytest.mark.parametrize(
    ("route", "limit"),
    [("/api/models", 2**20), ("/api/v1/train", 2**22), ("/api/v1/inference/batch?model_path=x", 2**22)],
)
def test_a_small_body_that_is_too_large_is_told_with_both_sizes(server: Served, route: str, limit: int) -> None:
    body = b" " * (limit + 1000)
    headers = {"Content-Type": "application/json"}
    whole = server.post(route, data=body, headers=headers)
    pieces = server.post(route, data=iter([body[:1000], body[1000:]]), headers=headers)
    for answer, size in ((whole, f"has {limit + 1000} bytes"), (pieces, f"has more than {limit} bytes")):
        assert answer.status_code == 413
        assert f"{size}; a request of this kind may have {limit} at most" in answer.text
