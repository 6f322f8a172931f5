"""What /openapi.json says may be sent, and what it rules out, is answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.fuzz.verdict import LARGEST_PROCESS, Memory, fault_in
from tests.serving import Served, start_server, wait_until

SECONDS = 120
WAITS = {"/api/progress/{request_id}"}  # a minute for each request that never comes
SLOW = {"/api/v1/pretrained/encoders"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: destructive routes are called too."""
    served = start_server(tmp_path_factory.mktemp("described") / "state")
    yield served
    served.stop()


def try_out(host: Served, operation: APIOperation[Any, Any, Any, Any], count: int) -> list[str]:
    """Call a route `count` times; every answer's status, and what was wrong with it."""
    found: list[str] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def call(case: Case[Any]) -> None:
        answer = case.call(timeout=SECONDS)
        plain = requests.Response()
        plain.status_code, plain.url, plain._content = answer.status_code, answer.request.url or "", answer.content
        fault = fault_in(plain, host)
        found.append(f"{case.method} {case.path} {answer.status_code} {fault}")
        assert not fault, found[-1]
        if answer.status_code < 400:  # what refusals look like is fault_in's business
            case.validate_response(answer, checks=[response_schema_conformance])

    call()
    return found


def try_all(host: Served, count: int, left_out: set[str]) -> None:
    schema = schemathesis.openapi.from_url(host.url + "/openapi.json")
    found: list[str] = []
    with Memory(host) as memory:
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            if operation.path not in left_out:
                found += try_out(host, operation, count)
    assert any(" /api/infer 400" in line for line in found)
    assert any(" /api/v1/train 4" in line for line in found)
    assert host.get("/api/health").status_code == 200
    assert max(memory.most.values()) < LARGEST_PROCESS
    wait_until(lambda: not host.spool_files(), message="files stay in the spool")


def test_every_route_a_few_times(host: Served) -> None:
    try_all(host, 3, WAITS | SLOW)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_route_many_times(host: Served) -> None:
    try_all(host, 20, WAITS)
