"""One entry of a model folder: which files of it make a network, and the load request that lies beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segserve.errors import BadInputError, SegserveError, some
from segserve.models.backends import CHECKPOINTS, MMENGINE, backend_of, check_request, is_file
from segserve.models.classifiers import holds_classifier
from segserve.models.formats.mmengine_files import config_files
from segserve.models.names import SAFETENSORS
from segserve.models.request import LoadRequest, parse_load_request

FOLDER_CARD = "model.json"
LARGEST_CARD = 2**20
PATHS = ("model_path", "config_path")
PACKAGE_MARK = "__init__.py"
UNFINISHED = (".tmp", ".part")


@dataclass(frozen=True)
class Found:
    """A file or a folder that offers a network.

    Attributes:
        name: the network's, unless the card gives another.
        place: the file or folder.
        card: where its load request would lie.
        model, config: its files, where there is no doubt about them.
        kind: its backend type as far as that can be told while its files are in doubt.
        doubt: what speaks against taking any files for it; a card that names them settles it.
    """

    name: str
    place: Path
    card: Path
    model: Path | None = None
    config: Path | None = None
    kind: str = MMENGINE
    doubt: str = "It names no model_path."


def is_visible(path: Path) -> bool:
    """False for hidden files and unfinished copies."""
    return not path.name.startswith(".") and path.suffix.lower() not in UNFINISHED


def look_into(entry: Path) -> Found | None:
    """What an entry of a model folder offers; None if nothing.

    Raises:
        OSError: it cannot be looked at.
    """
    if entry.is_file():
        card = entry.with_suffix(".json")
        return Found(entry.stem, entry, card, entry) if backend_of(entry) else None
    if not entry.is_dir():
        return None
    card = entry / FOLDER_CARD
    if not card.is_file() and holds_classifier(entry):
        return None
    return _in_folder(entry, card)


def complete(found: Found) -> tuple[dict[str, Any], SegserveError | None, dict[str, str]]:
    """The body of the load request of what was found, why it is no good, if so, and how its card spells whole paths.

    The card's keys win, and its paths are relative to it; where it is no good, the body is what is known without it.
    """
    known = _body(found, {})
    spelled: dict[str, str] = {}
    try:
        card = _read(found.card) if found.card.is_file() else {}
        body = _body(found, card)
        spelled = _spelled(found, card)
        check_request(_request(found, body))
    except SegserveError as error:
        place = "" if found.place.name == found.name else f"{found.place.name}: "
        return known, SegserveError(f"{place}{error.message}", status=error.status), spelled
    return body, None, spelled


def _spelled(found: Found, card: Mapping[str, Any]) -> dict[str, str]:
    """The card's own words for paths; of paths that are whole in it, what comes last."""
    given = {str(path): Path(card[key]) for key in PATHS if (path := _path(found, card, key)) and path.name}
    return {path: as_given.name if as_given.anchor else str(as_given) for path, as_given in given.items()}


def _request(found: Found, body: dict[str, Any]) -> LoadRequest:
    if Path(body["model_path"]) == found.place and found.place.is_dir():
        raise BadInputError(found.doubt)
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except ValueError:
        raise BadInputError("A name in it is no text: rename it.") from None
    return parse_load_request(body)


def _in_folder(folder: Path, card: Path) -> Found | None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_visible(path))
    networks = [path for path in files if backend_of(path)]
    configs = _unused([path for path in files if path.suffix == ".py" and path.name != PACKAGE_MARK])
    checkpoints = _once([path for path in files if path.suffix.lower() in CHECKPOINTS and path not in networks])
    config = configs[0] if len(configs) == 1 else None
    if len(networks) == 1 and not checkpoints:
        return Found(folder.name, folder, card, networks[0])
    if len(checkpoints) == 1 and config and not networks:
        return Found(folder.name, folder, card, checkpoints[0], config)
    if not networks and not checkpoints and not card.is_file():
        return None
    held = [
        f"{len(paths)} {what if len(paths) > 1 else what[:-1]} ({some([path.name for path in paths], 5)})"
        for what, paths in (("networks", networks), ("configurations", configs), ("checkpoints", checkpoints))
        if paths
    ]
    doubt = (
        f"The folder holds {', '.join(held) or 'no network'}; one network is expected, or one configuration and one "
        f"checkpoint. Put a {FOLDER_CARD} into it that names model_path, and config_path if it needs one."
    )
    kind = next(filter(None, map(backend_of, networks)), MMENGINE)
    return Found(folder.name, folder, card, None, config, kind, doubt)


def _unused(modules: list[Path]) -> list[Path]:
    """Those that no other one brings: a config's bases and modules are none of their own."""
    brought: set[Path] = set()
    for module in modules if len(modules) > 1 else []:
        with suppress(BadInputError):
            brought |= {path.resolve() for path in config_files(module)[1:]}
    return [module for module in modules if module.resolve() not in brought]


def _once(checkpoints: list[Path]) -> list[Path]:
    """Without those that were converted: what `segserve convert` wrote beside them holds the same weights."""
    converted = {path.stem for path in checkpoints if path.suffix == SAFETENSORS}
    return [path for path in checkpoints if path.suffix == SAFETENSORS or path.stem not in converted]


def _body(found: Found, card: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in card.items() if value is not None}
    model = _path(found, given, "model_path") or found.model
    config = _path(found, given, "config_path") or found.config
    guessed = found.kind
    if model:
        guessed = (backend_of(model) if is_file(model) else None) or MMENGINE
    body = {"name": found.name, "backend_type": guessed, **given, "model_path": str(model or found.place)}
    return {**body, "config_path": str(config)} if config else body


def _path(found: Found, given: Mapping[str, Any], key: str) -> Path | None:
    value = given.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or "\x00" in value:
        raise BadInputError(f"{key} must be a path.")
    return Path(os.path.normpath(found.card.parent / value))


def _read(card: Path) -> dict[str, Any]:
    try:
        if card.stat().st_size > LARGEST_CARD:
            raise BadInputError(f"{card.name} is too large for a load request.")
        body = json.loads(card.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{card.name} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{card.name} is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise BadInputError(f"{card.name} must be a JSON object, the body of a load request.")
    return body
