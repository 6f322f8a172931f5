"""What whoever looks after a server sees of it: its metrics, its readiness, its log."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Served

OPERATIONS = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
DOCUMENTED_REASONS = [
    re.escape(sentence).replace("…", ".+") for sentence in re.findall(r"^\| ([A-Z][^|]+?) \|", OPERATIONS, re.MULTILINE)
]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process by a signal")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits of another process can be set on Linux only")


class Metrics:
    """One look at `/metrics`."""

    def __init__(self, served: Served) -> None:
        answer = served.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(answer.text))
        self.names = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
        self.samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all samples that have these labels; 0 if there are none."""
        return sum(one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items())

    def values(self, name: str, label: str) -> set[str]:
        return {one.labels[label] for one in self.samples if one.name == name}


def reasons(served: Served) -> str:
    """Why the server cannot work; empty if it can."""
    answer = served.get("/readyz")
    body = answer.json()
    if answer.status_code == 200:
        assert body == {"status": "ok"}
        return ""
    assert answer.status_code == 503
    assert body["status"] == "unavailable"
    assert body["reasons"]
    for reason in body["reasons"]:
        assert any(re.match(one, reason) for one in DOCUMENTED_REASONS), reason
    return " ".join(body["reasons"])


def json_lines(served: Served) -> list[dict[str, Any]]:
    """The log of a server that writes JSON, each line parsed; before it only the banner may stand."""
    lines = served.log.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("{"))
    return [json.loads(line) for line in lines[first:]]
