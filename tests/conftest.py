"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.serving import Served, start_server


def pytest_configure() -> None:
    """Tests that run side by side stay on one core each: threads that spin while they wait cost the others."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests that neither kill it nor need it empty."""
    served = start_server(tmp_path_factory.mktemp("server") / "state")
    yield served
    served.stop()


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for one test alone: it may be killed, and starts with nothing loaded."""
    served = start_server(tmp_path_factory.mktemp("own") / "state")
    yield served
    if served.process.poll() is None:
        served.stop()
