"""Where an encoder's pretrained weights come from: the server's folder, Hugging Face's cache, or its hub."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import timm
from huggingface_hub.errors import HfHubHTTPError
from segmentation_models_pytorch.encoders import encoders as smp_encoders

from segserve.errors import BadInputError, DiskFullError, is_disk_full
from segserve.models.catalog.encoders import find_encoder
from segserve.training.network.build import TIMM, library_name, quiet

HUB_SECONDS = 5.0
SUFFIXES = (".safetensors", ".pth")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
NOT_STATED = "not stated"
UNTICK = 'untick "Use pretrained weights" (use_pretrained)'


@dataclass(frozen=True)
class WeightsSource:
    """Where weights were found; `path` is None until they are fetched from the hub."""

    kind: Literal["file", "cache", "hub"]
    licence: str
    path: Path | None = None
    repo_id: str | None = None
    filename: str | None = None
    revision: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """The source as JSON, to cross a process boundary."""
        return {**vars(self), "path": None if self.path is None else str(self.path)}

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> WeightsSource:
        """The source that `to_wire` wrote."""
        return WeightsSource(**{**wire, "path": None if wire["path"] is None else Path(wire["path"])})


@dataclass(frozen=True)
class Published:
    """What is published for an encoder; `repo_id` is None where nothing is."""

    licence: str
    repo_id: str | None = None
    revision: str | None = None
    filenames: tuple[str, ...] = ()


def locate(encoder: str, weights_dir: Path | None, *, ask_hub: bool) -> WeightsSource:
    """Find an encoder's weights: in the server's folder, then the cache, then the hub.

    Args:
        encoder: as `build_network` takes it.
        weights_dir: the server's folder of weights; None if it has none.
        ask_hub: send the hub a request for the file's header, for five seconds at most.

    Raises:
        BadInputError: there are none within reach; the message says what was looked for and what to do.
    """
    published = publication(encoder)
    names = file_names(encoder)
    for path in [weights_dir / name for name in names] if weights_dir else []:
        if path.is_file():
            return WeightsSource("file", published.licence, path)
    if published.repo_id is None:
        raise BadInputError(
            f"Nobody has published pretrained weights for the encoder {encoder}: {UNTICK}, choose another encoder, "
            f"or {_place(names, weights_dir)}."
        )
    for filename in published.filenames:
        cached = huggingface_hub.try_to_load_from_cache(published.repo_id, filename, revision=published.revision)
        if isinstance(cached, str):
            return _from_hub("cache", published, filename, Path(cached))
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    answer = _Question(published).answer() if ask_hub and not offline else "was not asked"
    if isinstance(answer, _Found):
        return _from_hub("hub", published, answer.filename, None)
    raise BadInputError(
        f"There are no pretrained weights for the encoder {encoder}: {' or '.join(names)} was looked for on the "
        f"server, and huggingface.co/{published.repo_id} ({' or '.join(published.filenames)}) {answer}. "
        f"{_sentence(_place(names, weights_dir))}, or {UNTICK}."
    )


def fetch(source: WeightsSource) -> Path:
    """The file of a source, downloaded if need be.

    Raises:
        BadInputError: the download failed.
        DiskFullError: there is no room for it.
    """
    if source.path is not None:
        return source.path
    try:
        got = huggingface_hub.hf_hub_download(str(source.repo_id), str(source.filename), revision=source.revision)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError from error
        raise BadInputError(
            f"{source.filename} of huggingface.co/{source.repo_id} could not be downloaded: try again, put the file "
            f"into the server's weights folder, or {UNTICK}."
        ) from error
    return Path(got)


def publication(encoder: str) -> Published:
    """What the libraries' own tables say is published for an encoder.

    Raises:
        BadInputError: unknown encoder.
    """
    entry = find_encoder(encoder)
    inner = library_name(encoder)
    if entry and entry.hub_id:
        return Published(entry.license, entry.hub_id, None, HUB_FILES)
    if inner in smp_encoders:
        tables = smp_encoders[inner]["pretrained_settings"]
        settings = tables.get("imagenet") or next(iter(tables.values()))
        licence = entry.license if entry else NOT_STATED
        return Published(licence, settings["repo_id"], settings["revision"], HUB_FILES[:1])
    with quiet():
        config = timm.models.get_pretrained_cfg(inner.removeprefix(TIMM))
    licence = (config and config.license) or NOT_STATED
    if not config or not config.hf_hub_id:
        return Published(licence)
    repo_id, _, revision = str(config.hf_hub_id).partition("@")
    return Published(
        licence, repo_id, revision or None, (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    )


def file_names(encoder: str) -> list[str]:
    """The names under which the server's folder may hold an encoder's weights, best first."""
    entry = find_encoder(encoder)
    stems = [encoder]
    if not (entry and entry.hub_id):
        inner = library_name(encoder)
        stems += [inner, inner.removeprefix(TIMM)]
    return [stem + suffix for stem in dict.fromkeys(stems) for suffix in SUFFIXES]


def _from_hub(kind: Literal["cache", "hub"], published: Published, filename: str, path: Path | None) -> WeightsSource:
    return WeightsSource(kind, published.licence, path, published.repo_id, filename, published.revision)


def _place(names: list[str], weights_dir: Path | None) -> str:
    if weights_dir is None:
        return f"put {names[0]} into a folder and start the server with --weights-dir naming it"
    return f"put {names[0]} into the server's weights folder"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


@dataclass(frozen=True)
class _Found:
    filename: str


class _Question:
    """Ask the hub in a thread: a network that hangs may outlast every timeout of the client's."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._answer: str | _Found = "did not answer in time"

    def answer(self) -> str | _Found:
        """The file there is, or what happened instead, as the end of a sentence."""
        thread = threading.Thread(target=self._ask, daemon=True)
        thread.start()
        thread.join(HUB_SECONDS)
        return self._answer

    def _ask(self) -> None:
        said = "could not be reached"
        for filename in self._published.filenames:
            url = huggingface_hub.hf_hub_url(str(self._published.repo_id), filename, revision=self._published.revision)
            try:
                huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
            except HfHubHTTPError as error:
                said = f"answered with an error ({error.response.status_code})"
            except Exception:
                break
            else:
                self._answer = _Found(filename)
                return
        self._answer = said
