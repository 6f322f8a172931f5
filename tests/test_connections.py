"""Connections end when their clients do nothing; hang-ups are noticed and counted; HTTP/1.0 is spoken."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from segserve.cli.connection import UNTAKEN, Connection
from segserve.settings import Settings
from tests.serving import Served, start_server, wait_until
from tests.small_networks import error_of
from tests.watching import Metrics, linux_only

STALL = 1.0
WATCH = "GET /api/progress/nobody-s HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request that is under way for a minute."""
REFUSED = "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
LAST = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEAD_WITHOUT_END = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
TRAILERS_WITHOUT_END = "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
FORM = "Content-Type: multipart/form-data; boundary=B"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that waits a second for what a client has to send, and has nothing loaded."""
    served = start_server(tmp_path_factory.mktemp("connections") / "state", "--upload-stall", str(STALL))
    yield served
    served.stop()


@contextmanager
def connected(served: Served, text: str) -> Iterator[socket.socket]:
    """A connection on which some text has been sent."""
    with served.dial(20) as connection:
        connection.sendall(text.encode())
        yield connection


def read_to_the_end(connection: socket.socket) -> str:
    """What the server sends until it closes the connection."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received.decode()


def statuses(text: str) -> list[str]:
    return re.findall(r"HTTP/1\.1 (\d+)", text)


@pytest.mark.parametrize("text", ["", "POST /slow HTTP/1.1\r\nHost:", "\r\n"], ids=["nothing", "half a head", "a line"])
def test_a_connection_without_a_request_ends(strict: Served, text: str) -> None:
    with connected(strict, text) as connection:
        assert read_to_the_end(connection) == ""


@pytest.mark.parametrize("beginning", [HEAD_WITHOUT_END, TRAILERS_WITHOUT_END], ids=["head", "trailers"])
def test_headers_without_end_are_refused(server: Served, beginning: str) -> None:
    with connected(server, beginning) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"a" * 2**19)
        assert read_to_the_end(connection).endswith("65536 bytes at most.")


def test_the_rest_of_a_refused_upload_is_not_waited_for_forever(strict: Served) -> None:
    with connected(strict, REFUSED) as connection:
        assert b" 404 " in connection.recv(65536)
        connection.sendall(b"x")
        assert " 404 " not in read_to_the_end(connection)


def test_a_refused_upload_that_goes_on_coming_is_taken_to_its_end(strict: Served) -> None:
    with connected(strict, REFUSED) as connection:
        for _ in range(20):
            connection.sendall(bytes(50_000))
            time.sleep(STALL / 8)
        connection.sendall(LAST.encode())
        assert statuses(read_to_the_end(connection)) == ["404", "200"]


def test_a_request_may_take_longer_than_its_head(strict: Served) -> None:
    with connected(strict, WATCH) as connection:
        assert b" 200 " in connection.recv(65536)
        connection.settimeout(3 * STALL)
        with pytest.raises(TimeoutError):
            connection.recv(65536)


def test_a_second_request_hides_no_hang_up(strict: Served) -> None:
    def in_flight() -> float:
        return Metrics(strict)("segserve_requests_in_flight") - 1

    wait_until(lambda: in_flight() == 0)
    with connected(strict, WATCH) as connection:
        assert b" 200 " in connection.recv(65536)
        connection.sendall(LAST.encode())
        time.sleep(0.2)
        assert in_flight() == 1
    wait_until(lambda: in_flight() == 0, 5, "the server does not notice that its client is gone")


def test_a_request_that_comes_too_early_is_dropped_and_the_one_before_it_answered(strict: Served) -> None:
    with connected(strict, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + LAST) as connection:
        text = read_to_the_end(connection)
    assert statuses(text) == ["200"]
    assert "connection: close" in text


@pytest.mark.parametrize("route", ["/api/infer", "/api/v1/train"])
def test_who_leaves_during_the_upload_got_no_answer(strict: Served, route: str) -> None:
    def counted(**labels: str) -> float:
        return Metrics(strict)("segserve_requests_total", route=route, **labels)

    before = counted()
    with connected(strict, f"POST {route} HTTP/1.1\r\nHost: localhost\r\n{FORM}\r\nContent-Length: 9999\r\n\r\n--B"):
        pass
    wait_until(lambda: counted() > before)
    assert counted(status="0") == counted() == before + 1


def test_http_1_0_is_answered_without_chunks(strict: Served) -> None:
    requests.post(f"{strict.url}/api/infer", headers={"X-Request-ID": "refused-1"}, timeout=20)
    for path in ("/api/progress/refused-1", "/healthz"):
        with connected(strict, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n") as connection:
            head, _, body = read_to_the_end(connection).partition("\r\n\r\n")
        assert " 200 " in head
        assert "connection: close" in head
        assert "chunked" not in head
        assert body == strict.get(path).text


@linux_only
def test_a_request_for_which_no_file_can_be_opened_is_told_to_come_again(strict: Served, tmp_path: Path) -> None:
    process = psutil.Process(strict.process.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    with requests.Session() as session:
        assert session.get(f"{strict.url}/healthz", timeout=20).status_code == 200
        process.rlimit(psutil.RLIMIT_NOFILE, (1, hard))
        try:
            answer = session.post(f"{strict.url}/api/infer", files={"image": b"voxels"}, timeout=20)
        finally:
            process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    assert "files and connections" in error_of(answer, 503)
    assert int(answer.headers["Retry-After"]) > 0


@asynccontextmanager
async def two_clients(app: ASGIApp, stall: float) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two that have asked an application; their systems and the server's hold a few kilobytes of an answer."""
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    settings, state = Settings(upload_stall=stall), ServerState()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(config=config, server_state=state, app_state={}, settings=settings), sock=listener
    )
    with socket.socket() as first, socket.socket() as second:
        for client in (first, second):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, REQUEST)
        yield first, second
    server.close()
    await server.wait_closed()


def test_an_answer_that_is_not_taken_is_given_up_but_one_taken_slowly_is_not() -> None:
    stall, size = 0.15, 200_000
    ended = set()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
        await send({"type": "http.response.body"})
        ended.add(scope["client"][1])

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with two_clients(answer, stall) as (idle, slow):
            received, began = 0, time.monotonic()
            while received < size:
                await asyncio.sleep(0.05)
                part = await loop.sock_recv(slow, 4000)
                assert part, f"the server broke off after {received} bytes"
                received += len(part)
            assert time.monotonic() - began > 2 * UNTAKEN * stall
            assert idle.getsockname()[1] in ended

    asyncio.run(story())


def test_a_client_that_has_its_whole_answer_may_ask_again_before_the_application_is_done() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await asyncio.sleep(0.2)
        await send({"type": "http.response.body"})

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with two_clients(answer, 5) as (client, _):
            for _ in range(2):
                received = b""
                while not received.endswith(b"\r\n\r\nok"):
                    part = await loop.sock_recv(client, 4000)
                    assert part, "the server closed the connection"
                    received += part
                await loop.sock_sendall(client, REQUEST)

    asyncio.run(story())
