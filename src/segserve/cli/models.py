"""`segserve models`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from segserve.cli.options import read_settings
from segserve.cli.output import fail
from segserve.models.store import stored_models
from segserve.settings import Settings
from segserve.state import StateDir

TIMEOUT_SECONDS = 5.0


def models(
    state_dir: Annotated[Path | None, typer.Option(help="The server's state directory.")] = None,
) -> None:
    """List the models of the running server, or those on disk when none runs."""
    settings = read_settings({"state_dir": state_dir} if state_dir else {})
    state = StateDir(settings.state_dir)
    loaded = _ask_server(state, settings)
    if loaded is None:
        stored = ", ".join(path.name for path in stored_models(state.models)) or "none"
        typer.echo(f"No server answers on the state directory {state.root} (another one? --state-dir).")
        typer.echo(f"Models on disk: {stored}")
        return
    typer.echo(f"{len(loaded)} loaded" + (":" if loaded else "."))
    for name, model in loaded.items():
        patch = " x ".join(str(size) for size in model["patch_size"])
        typer.echo(f"  {name}: {model['num_classes']} classes, patch {patch}, {model['engine']} on {model['device']}")


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
