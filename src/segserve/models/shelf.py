"""What lies in the model folders, told from names, sizes and times, without opening a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from segserve.errors import SegserveError, printable
from segserve.models.backends import CHECKPOINTS, is_file
from segserve.models.card import PATHS, Found, complete, is_visible, look_into
from segserve.models.formats.mmengine_files import config_files
from segserve.models.request import LoadRequest, parse_load_request
from segserve.models.told import below, told, ways


@dataclass(frozen=True)
class Offer:
    """A network that lies in a model folder.

    Attributes:
        name: it is offered under this name.
        shown_path, shown_config: of its files, from the model folder on; of others as its card names them.
        body: of its load request, with whole paths; what is known of it where the offer is no good.
        failure: why it cannot be loaded, as far as that is known without opening it.
        state: of its files; another one means that they changed.
        names: as `told` takes them.
    """

    name: str
    shown_path: str
    shown_config: str | None
    body: dict[str, Any]
    failure: SegserveError | None
    state: str
    names: Mapping[str, str]

    def request(self, asked: LoadRequest | None = None) -> LoadRequest:
        """The request that loads it.

        Args:
            asked: a client's own, which wins key by key but for where the network is and of which kind.

        Raises:
            SegserveError: the offer is no good, and why.
        """
        if self.failure:
            raise self.failure
        if asked is None:
            return parse_load_request(self.body).as_offered(self.names)
        config = {key: value for key, value in asked.inference_config.items() if value is not None}
        own = {key: self.body.get(key) for key in ("backend_type", "model_path", "config_path")}
        given = asked.model_dump(exclude_unset=True)
        merged = {**self.body.get("inference_config", {}), **config}
        return parse_load_request({**self.body, **given, **own, "inference_config": merged}).as_offered(self.names)


@dataclass(frozen=True)
class Seen:
    """What a look at the folders found.

    Attributes:
        offers: by name.
        notes: what whoever put the files there should know.
        unsettled: whether something was passed over because it may still be being written.
    """

    offers: dict[str, Offer] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unsettled: bool = False


class Shelf:
    """Model folders that are looked at again and again. What changed since the look before may not be whole yet."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folder.absolute() for folder in folders)
        self._states: dict[Path, str] = {}

    def look(self) -> Seen:
        """What the folders offer: what is as it was at the last look."""
        found, notes = look_at(self.folders)
        seen = Seen(notes=notes, unsettled=any(self._states.get(place) != offer.state for place, offer in found))
        for place, offer in found:
            if self._states.get(place) != offer.state:
                continue
            if offer.name in seen.offers:
                other = seen.offers[offer.name].shown_path
                notes.append(f"{place} is passed over: a model {offer.name} is offered already ({other}).")
            else:
                seen.offers[offer.name] = offer
        self._states = {place: offer.state for place, offer in found}
        return seen


def look_at(folders: Sequence[Path]) -> tuple[list[tuple[Path, Offer]], list[str]]:
    """Everything that the folders hold, in order: where it lies, and the offer; and notes on what cannot be read."""
    found: list[tuple[Path, Offer]] = []
    notes: list[str] = []
    beginnings = ways(folders)
    for folder in folders:
        try:
            entries = sorted(entry for entry in folder.iterdir() if is_visible(entry))
        except OSError as error:
            notes.append(f"The model folder {folder} cannot be read: {error.strerror}.")
            continue
        for entry in entries:
            try:
                there = look_into(entry)
                if there:
                    found.append((entry, _offer(there, beginnings)))
                elif entry.is_file() and entry.suffix.lower() in CHECKPOINTS:
                    notes.append(f"{entry} is passed over: put it and its configuration into a folder of their own.")
            except OSError as error:
                notes.append(f"{entry} is passed over: {error.strerror}.")
    return found, notes


def _offer(found: Found, beginnings: Sequence[str]) -> Offer:
    body, failure, spelled = complete(found)
    places = {body[key] for key in PATHS if key in body} | spelled.keys()
    names = {place: _shown(place, spelled, beginnings) for place in places}
    if failure:
        failure = SegserveError(told(below(failure.message, beginnings), names), status=failure.status)
    path, config = names[body["model_path"]], names.get(body.get("config_path", ""))
    return Offer(printable(str(body["name"])), path, config, body, failure, _state(found, body), names)


def _shown(place: str, spelled: Mapping[str, str], beginnings: Sequence[str]) -> str:
    """A file as clients may read of it: from the model folder on, or as the card has it."""
    inside = below(place, beginnings)
    return printable(inside if inside != place else spelled.get(place, place))


def _state(found: Found, body: Mapping[str, Any]) -> str:
    files = dict.fromkeys((found.card, *_network_files(Path(body["model_path"])), *_config_files(body)))
    return " ".join(_told(file) for file in files)


def _network_files(network: Path) -> Iterator[Path]:
    """A network's file, and those beside it that begin with its name, as exporters call the files of its weights."""
    yield network
    if is_file(network):
        yield from sorted(path for path in network.parent.glob(f"{escape(network.name)}?*") if is_visible(path))


def _config_files(body: Mapping[str, Any]) -> list[Path]:
    config = Path(body.get("config_path", ""))
    if not is_file(config):
        return []
    try:
        return config_files(config)
    except SegserveError:  # told when it is loaded
        return [config]


def _told(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return f"{path.name}:none"
    return f"{path.name}:{state.st_size}-{state.st_mtime_ns}-{state.st_ino}"
