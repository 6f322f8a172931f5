"""`segserve models`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from segserve.cli.options import read_settings
from segserve.cli.output import fail
from segserve.errors import by
from segserve.models.classifiers import ClassifierStore
from segserve.models.shelf import look_at
from segserve.settings import Settings
from segserve.state import StateDir

TIMEOUT_SECONDS = 5.0


def models(
    state_dir: Annotated[Path | None, typer.Option(help="The server's state directory.")] = None,
) -> None:
    """List the models of the running server, or those on disk when none runs."""
    settings = read_settings({"state_dir": state_dir} if state_dir else {})
    state = StateDir(settings.state_dir)
    models = _ask_server(state, settings)
    if models is None:
        typer.echo(f"No server answers on the state directory {state.root} (another one? --state-dir).")
        _list("in the model folders (model_dir)", _offered(settings.model_dir))
    else:
        _list("loaded", [_loaded_line(name, model) for name, model in models.items() if model["loaded"]])
        _list("offered", [_offered_line(name, model) for name, model in models.items() if not model["loaded"]])
    classifiers = ClassifierStore(state.models, folders=settings.model_dir).all()
    _list("pixel classifiers", [f"{entry.id}: {entry.name}" for entry in classifiers])


def _list(what: str, lines: list[str]) -> None:
    typer.echo(f"{len(lines)} {what}" + (":" if lines else "."))
    for line in lines:
        typer.echo(f"  {line}")


def _loaded_line(name: str, model: dict[str, Any]) -> str:
    patch = by(model["patch_size"])
    return f"{name}: {model['num_classes']} classes, patch {patch}, {model['engine']} on {model['device']}"


def _offered_line(name: str, model: dict[str, Any]) -> str:
    state = model.get("error") or ("is being loaded" if model.get("loading") else "loaded when a request names it")
    return f"{name}: {model['backend_type']}, {state}"


def _offered(folders: Sequence[Path]) -> list[str]:
    offers, notes = look_at(folders)
    lines = [
        f"{offer.name}: {offer.failure.message if offer.failure else offer.body['backend_type']}" for _, offer in offers
    ]
    return lines + notes


def _ask_server(state: StateDir, settings: Settings) -> dict[str, Any] | None:
    """The running server's models; None if none answers."""
    # A proxy from the environment knows nothing of a server on this machine, and must not see its key.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for address in state.card().get("addresses", []):
        request = urllib.request.Request(f"{address}/api/info", headers=_credentials(state, settings))  # noqa: S310  # our own card
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)["models"]
                return found
        except urllib.error.HTTPError as error:
            fail(f"the server at {address} answers {error.code}: name its key with SEGSERVE_API_KEY_FILE.")
        except (urllib.error.URLError, OSError, ValueError):
            continue
    return None


def _credentials(state: StateDir, settings: Settings) -> dict[str, str]:
    path = settings.api_key_file or state.key_file
    if not path.is_file():
        return {}
    try:
        return {"X-API-Key": path.read_text().strip()}
    except (OSError, UnicodeDecodeError):
        fail(f"the key file {path} cannot be read.")
