"""What holds of every answer to garbage, and of the server that gives it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import psutil
import requests

from tests.serving import Served

MiB = 2**20
LARGEST_PROCESS = 1200 * MiB
LONGEST_SECONDS = 60.0
ANSWERS_ABOVE_500 = {501, 503, 507}
SECRETS = ("Traceback", "\n", 'File "', "0x7f", "site-packages")


class Memory:
    """`with Memory(served) as memory:` leaves in `most` how many bytes each process held at most, by its id.

    Processes that come and go while it watches count too.
    """

    def __init__(self, served: Served, interval: float = 0.02) -> None:
        self.most: dict[int, int] = {}
        self._root = psutil.Process(served.process.pid)
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self.at_rest = self.held()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def growth(self) -> int:
        """How many bytes more than at rest the process that grew most has held."""
        return max(size - self.at_rest[pid] for pid, size in self.most.items() if pid in self.at_rest)

    def held(self) -> dict[int, int]:
        """Resident bytes of each process."""
        found: dict[int, int] = {}
        for process in [self._root, *self._root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                found[process.pid] = process.memory_info().rss
        return found

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self._look()

    def _look(self) -> None:
        for pid, size in self.held().items():
            self.most[pid] = max(self.most.get(pid, 0), size)


def fault_in(answer: requests.Response, served: Served) -> str:
    """What is wrong with an answer; empty if nothing is."""
    status = answer.status_code
    if status >= 500 and status not in ANSWERS_ABOVE_500:
        return f"{status} {answer.text[:300]}"
    if status < 400:
        return ""
    path = urlsplit(answer.url).path
    key = "detail" if path.startswith("/api/v1") else "error"
    try:
        sentence = answer.json()[key]
    except (ValueError, KeyError, TypeError):
        return f"{status} without {key}: {answer.text[:300]}"
    return fault_of_sentence(sentence, served)


def fault_of_sentence(sentence: object, served: Served) -> str:
    """What is wrong with the sentence of a refusal; empty if nothing is."""
    if not isinstance(sentence, str) or len(sentence.split()) < 3:
        return f"no sentence: {sentence!r}"
    told = [secret for secret in (*SECRETS, str(served.state_dir / "spool")) if secret in sentence]
    return f"tells {told}: {sentence[:500]}" if told else ""


def judge(served: Served, send: Callable[[int], requests.Response], seeds: range) -> Counter[int]:
    """Send what each seed makes, and see every answer be one, in time and within memory.

    Returns:
        How often each status came.
    """
    faults: list[str] = []
    statuses: Counter[int] = Counter()
    with Memory(served) as memory:
        for seed in seeds:
            began = time.monotonic()
            try:
                answer = send(seed)
            except requests.ConnectionError as error:
                faults.append(f"seed {seed}: {error}")
                continue
            took = time.monotonic() - began
            statuses[answer.status_code] += 1
            fault = fault_in(answer, served)
            if took > LONGEST_SECONDS:
                fault += f" took {took:.1f} s"
            if fault:
                faults.append(f"seed {seed}: {fault}")
    assert not faults, f"{len(faults)} of {len(seeds)}, {dict(statuses)}:\n" + "\n".join(faults[:20])
    assert served.process.poll() is None
    assert max(memory.most.values()) < LARGEST_PROCESS
    return statuses
