"""What a user meets is documented: settings, routes, commands, headers, environment variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from segserve.cli import app as command_line
from segserve.models.request import InferenceConfig, LoadRequest
from segserve.settings import Settings
from tests.serving import Served

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
README = (ROOT / "README.md").read_text()
ANY_DOCUMENT = README + "".join(DOCS.values())


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(command_line)
    return dict(group.commands)


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented_and_a_flag(name: str) -> None:
    assert f"| `{name}` |" in DOCS["settings.md"]
    flags = {flag for parameter in commands()["serve"].params for flag in parameter.opts}
    assert f"--{name.replace('_', '-')}" in flags


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS["settings.md"], re.MULTILINE))
    assert documented == set(Settings.model_fields)


def test_every_route_is_documented(server: Served) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert paths
    for path, methods in paths.items():
        for method in methods:
            assert f"### `{method.upper()} {path}`" in DOCS["routes.md"], f"{method.upper()} {path}"


@pytest.mark.parametrize("key", sorted({*LoadRequest.model_fields, *InferenceConfig.model_fields}))
def test_every_key_of_a_load_request_is_documented(key: str) -> None:
    assert f"`{key}`" in DOCS["routes.md"]


def test_every_model_field_is_documented(server: Served, tmp_path: Path) -> None:
    from tests.small_networks import threshold_network

    model = server.load("documented", threshold_network(tmp_path / "documented.onnx"))
    server.delete("/api/models/documented")
    for field in model:
        assert f"`{field}`" in DOCS["routes.md"], field


def test_every_command_is_in_the_readme() -> None:
    assert commands()
    for name in commands():
        assert f"segserve {name}" in README


def test_every_document_is_linked_from_the_readme_and_every_link_leads_somewhere() -> None:
    for name in DOCS:
        assert f"docs/{name}" in README
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / "docs" / target).exists(), f"{name}: {target}"


def test_every_make_target_is_in_the_contributors_guide_or_the_readme() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    guide = (ROOT / "CONTRIBUTING.md").read_text() + README
    assert set(targets) >= {"install", "demo", "serve", "test", "test-all", "lint", "bench"}
    for target in targets:
        if target not in {"help", "clean", "serve"}:
            assert f"make {target}" in guide, target


def test_package_files_named_in_the_architecture_exist() -> None:
    for name in re.findall(r"`(\w+/[\w/]+\.py)`", ANY_DOCUMENT):
        assert (ROOT / "src" / "segserve" / name).exists() or (ROOT / name).exists(), name
