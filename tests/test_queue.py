"""One model's requests queue in order and are bounded; who hangs up makes room at once."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import requests

from tests.networks import conv_network
from tests.serving import Served, start_server, wait_until
from tests.small_networks import save_volume

WAITING = 3
CAPACITY = WAITING + 1
EDGE = 96
# Each patch takes a while, and the next begins one voxel on.
SLOW = {"patch_size": EDGE, "patch_stride": 1}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a short queue, which logs every patch, and a model whose patches take a while."""
    folder = tmp_path_factory.mktemp("narrow")
    served = start_server(folder / "state", "--max-waiting", str(WAITING), "--debug")
    served.load("slow", conv_network(folder / "slow.onnx", 2), inference_config=SLOW)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By how long they take: some patches, or thousands."""
    folder = tmp_path_factory.mktemp("volumes")
    save_volume(folder / "brief.nii.gz", (EDGE + 4, EDGE, EDGE), values=2)
    save_volume(folder / "endless.nii.gz", (EDGE + 14, EDGE + 14, EDGE + 14), values=2)
    return {path.name.partition(".")[0]: path for path in folder.iterdir()}


class Answer(NamedTuple):
    """An answer, and when it began."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    time: float


class Client:
    """One request that has been sent; it can be waited for, watched by its id, and hung up."""

    numbers = itertools.count()

    def __init__(self, served: Served, image: Path) -> None:
        self.identity = f"client-{next(self.numbers)}"
        self._served = served
        self._connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
        request = requests.Request(
            "POST",
            served.url + "/api/infer",
            data={"model_name": "slow"},
            files={"image": image.read_bytes()},
            headers={"X-Request-ID": self.identity},
        ).prepare()
        assert isinstance(request.body, bytes)
        self._connection.request("POST", "/api/infer", request.body, dict(request.headers))

    def answer(self) -> Answer:
        response = self._connection.getresponse()
        began = time.monotonic()
        return Answer(response.status, response.headers, response.read(), began)

    def close(self) -> None:
        """Hang up, if the answer is not there yet."""
        self._connection.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """What its progress says; `kind` is the event's."""
        kind = ""
        with closing(self._served.get(f"/api/progress/{self.identity}", stream=True)) as stream:
            for line in stream.iter_lines(chunk_size=1, decode_unicode=True):
                name, _, value = line.partition(": ")
                kind = value if name == "event" else kind
                if name == "data":
                    yield {"kind": kind, **json.loads(value)}

    def wait_for(self, stage: str) -> None:
        assert any(event["stage"] == stage for event in self.events()), stage

    def patches(self) -> int:
        """Patches that its model has computed, by the log."""
        return len(re.findall(rf"\[{self.identity}\].*: patch \d+ of", self._served.log.read_text()))


class Clients:
    """Sends requests, and closes every connection at last."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._stack = ExitStack()

    def send(self, image: Path) -> Client:
        return self._stack.enter_context(closing(Client(self._served, image)))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def clients(narrow: Served) -> Iterator[Clients]:
    with closing(Clients(narrow)) as sender:
        yield sender


def spooled(served: Served) -> int:
    return len(list((served.state_dir / "spool").iterdir()))


def assert_spool_empties(served: Served) -> None:
    wait_until(lambda: spooled(served) == 0, 10, "a request left its folder behind")


def test_twice_the_capacity_at_once(narrow: Served, clients: Clients, volumes: dict[str, Path]) -> None:
    with ThreadPoolExecutor(2 * CAPACITY) as pool:
        sent = list(pool.map(clients.send, [volumes["brief"]] * 2 * CAPACITY))
        answers = list(pool.map(Client.answer, sent))
    served = [answer for answer in answers if answer.status == 200]
    surplus = [answer for answer in answers if answer.status == 503]
    assert (len(served), len(surplus)) == (CAPACITY, CAPACITY)
    assert len({answer.body for answer in served}) == 1
    assert max(answer.time for answer in surplus) < sorted(answer.time for answer in served)[1]
    for answer in surplus:
        assert int(answer.headers["Retry-After"]) > 0
        assert "max_waiting" in json.loads(answer.body)["error"]
    assert_spool_empties(narrow)


def test_who_comes_first_is_served_first(clients: Clients, volumes: dict[str, Path]) -> None:
    sent = []
    for _ in range(CAPACITY):
        sent.append(clients.send(volumes["brief"]))
        sent[-1].wait_for("received")
    with ThreadPoolExecutor(CAPACITY) as pool:
        answers = list(pool.map(Client.answer, reversed(sent)))
    assert [answer.status for answer in answers] == [200] * CAPACITY
    times = [answer.time for answer in reversed(answers)]
    assert times == sorted(times)


def test_who_hangs_up_while_waiting_makes_room_at_once(
    narrow: Served, clients: Clients, volumes: dict[str, Path]
) -> None:
    running = clients.send(volumes["endless"])
    running.wait_for("patches")
    waiting = [clients.send(volumes["brief"]) for _ in range(WAITING)]
    for client in waiting:
        client.wait_for("received")
    assert clients.send(volumes["brief"]).answer().status == 503
    waiting[0].close()
    assert list(waiting[0].events())[-1]["kind"] == "cancelled"
    assert spooled(narrow) == CAPACITY - 1
    late = clients.send(volumes["brief"])
    late.wait_for("received")
    assert clients.send(volumes["brief"]).answer().status == 503
    running.close()
    with ThreadPoolExecutor(CAPACITY) as pool:
        assert {answer.status for answer in pool.map(Client.answer, [*waiting[1:], late])} == {200}
    assert waiting[0].patches() == 0
    assert_spool_empties(narrow)


def test_who_hangs_up_stops_the_computing_within_one_patch(
    narrow: Served, clients: Clients, volumes: dict[str, Path]
) -> None:
    running = clients.send(volumes["endless"])
    wait_until(lambda: running.patches() >= 2)
    running.close()
    before = running.patches()
    last = list(running.events())[-1]
    # One may be computed already and not be in the log yet, one more was under way.
    assert before <= running.patches() <= before + 2
    after = running.patches()
    assert last["kind"] == "cancelled"
    assert last["total"] > 100
    began = time.monotonic()
    quick = clients.send(volumes["brief"]).answer()
    assert quick.status == 200
    assert time.monotonic() - began < 20
    assert running.patches() == after
    assert_spool_empties(narrow)
