"""Pixel classifiers on disk: a folder each, with `metadata.json` and a network, appearing whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from segserve.errors import MissingError, SegserveError, printable
from segserve.models.names import METADATA_FILE, NETWORK_FILE, WEIGHTS_FILE

RENAME_TRIES, RENAME_SECONDS = 10, 0.5
LARGEST_METADATA = 16 * 2**20
SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Classifier:
    """One classifier; `ours` if it lies in the server's own folder, so that the server may delete it."""

    id: str
    name: str
    type: str
    path: Path
    metadata: dict[str, Any]
    ours: bool

    def wire(self) -> dict[str, str]:
        """The entry of the protocol's list."""
        return {"id": self.id, "name": self.name, "type": self.type, "path": printable(str(self.path))}


class ClassifierStore:
    """The classifiers of the state directory, those that the published server left, and those of model folders."""

    def __init__(self, own: Path, foreign: Path | None = None, folders: Sequence[Path] = ()) -> None:
        """Look at folders of classifiers.

        Args:
            own: in the state directory; new ones go here.
            foreign: only read. By default the published server's, in the user's home.
            folders: only read, and only the finished classifiers among other things in them.
        """
        self.own = own
        self._foreign = foreign or Path.home() / ".dlclassifier" / "models"
        self._folders = folders

    def all(self) -> list[Classifier]:
        """Every classifier, by id; of one id, the own one is listed, else that of the first folder."""
        found: dict[str, Classifier] = {}
        for folder in reversed(self._folders):
            found |= {entry.id: entry for entry in _read_all(folder, ours=False) if holds_classifier(entry.path)}
        found |= {entry.id: entry for entry in _read_all(self._foreign, ours=False)}
        found |= {entry.id: entry for entry in _read_all(self.own, ours=True)}
        return [found[identity] for identity in sorted(found)]

    def all_own(self) -> list[Classifier]:
        """Every classifier of the state directory."""
        return list(_read_all(self.own, ours=True))

    def get(self, identity: str) -> Classifier:
        """One classifier.

        Raises:
            MissingError: there is none of that id.
        """
        for entry in self.all():
            if entry.id == identity:
                return entry
        raise MissingError(f"Model {identity} not found")

    def delete(self, identity: str) -> Path:
        """Remove a classifier's folder, and return where it was.

        Raises:
            MissingError: there is none of that id.
            SegserveError: it is not in the server's own folder (403), or cannot be removed now (503).
        """
        entry = self.get(identity)
        if not entry.ours:
            raise SegserveError(
                f"Model {identity} lies outside the folder of this server's own models: delete it by hand.",
                status=403,
            )
        # Out of the list at once, and only then file by file.
        doomed = entry.path.with_name(f".deleted-{secrets.token_hex(4)}")
        try:
            entry.path.rename(doomed)
        except OSError as error:
            raise SegserveError(
                f"Model {identity} cannot be deleted now: {error.strerror}. Close what uses it and try again.",
                status=503,
            ) from None
        shutil.rmtree(doomed, ignore_errors=True)
        return entry.path

    def sweep(self) -> None:
        """Remove what is left of models that were being deleted when the server ended."""
        for doomed in self.own.glob(".deleted-*"):
            shutil.rmtree(doomed, ignore_errors=True)

    def publish(self, folder: Path, kind: str, metadata: Mapping[str, Any]) -> Classifier:
        """Make a finished folder a classifier, under an id made of its kind and the time, by renaming it.

        Args:
            folder: on the same disk as the store; its files are complete but for the metadata.
            kind: the model type, first part of the id.
            metadata: gets the id.
        """
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")  # noqa: DTZ005  # ids are read by people
        return self._place(folder, _free_names(f"{kind}_{stamp}"), metadata)

    def add(self, folder: Path, metadata: Mapping[str, Any]) -> Classifier:
        """Make a folder a classifier under an id of eight random hexadecimal digits; see `publish`."""
        return self._place(folder, iter(lambda: secrets.token_hex(4), ""), metadata)

    def _place(self, folder: Path, names: Iterator[str], metadata: Mapping[str, Any]) -> Classifier:
        self.own.mkdir(parents=True, exist_ok=True)
        identity = next(name for name in names if not (self.own / name).exists())
        described = {"id": identity, **metadata}
        (folder / METADATA_FILE).write_text(json.dumps(described, indent=2, allow_nan=False), encoding="utf-8")
        for path in folder.iterdir():
            _to_disk(path)
        target = self.own / identity
        _rename(folder, target)
        return _classifier(target, described, identity, ours=True)


def _free_names(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def _read_all(root: Path, *, ours: bool) -> Iterator[Classifier]:
    try:
        folders = [folder for folder in root.iterdir() if not folder.name.startswith(".")]
    except OSError:
        return
    for folder in folders:
        metadata = read_metadata(folder)
        if metadata is not None:
            stated = metadata.get("id")
            named = not ours and isinstance(stated, str) and SAFE_ID.fullmatch(stated)
            yield _classifier(folder, metadata, str(stated) if named else printable(folder.name), ours=ours)


def holds_classifier(folder: Path) -> bool:
    """Whether a folder is a finished classifier's."""
    return (folder / METADATA_FILE).is_file() and any(
        (folder / name).is_file() for name in (NETWORK_FILE, WEIGHTS_FILE)
    )


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's `metadata.json`; None if there is none that can be read."""
    path = folder / METADATA_FILE
    try:
        if path.stat().st_size > LARGEST_METADATA:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return _clean(content) if isinstance(content, dict) else None


def _clean(value: Any) -> Any:  # noqa: ANN401  # JSON
    """JSON without what JSON does not have: numbers that are none, and halves of characters."""
    if isinstance(value, dict):
        return {printable(key): _clean(inner) for key, inner in value.items() if not _is_no_number(inner)}
    if isinstance(value, list):
        return [_clean(inner) for inner in value if not _is_no_number(inner)]
    return printable(value) if isinstance(value, str) else value


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _classifier(folder: Path, metadata: dict[str, Any], identity: str, *, ours: bool) -> Classifier:
    architecture = metadata.get("architecture")
    kind = architecture.get("type") if isinstance(architecture, dict) else None
    name = metadata.get("name")
    return Classifier(
        id=identity,
        name=name if isinstance(name, str) and name else identity,
        type=kind if isinstance(kind, str) and kind else "unknown",
        path=folder,
        metadata=metadata,
        ours=ours,
    )


def _rename(folder: Path, target: Path) -> None:
    """Rename, waiting out a virus scanner that has a file of it open; then force the new name to the disk."""
    # Opened first: a name that stands is not to fail for want of a descriptor.
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None
    try:
        _rename_patiently(folder, target)
        if parent is not None:
            os.fsync(parent)
    finally:
        if parent is not None:
            os.close(parent)


def _rename_patiently(folder: Path, target: Path) -> None:
    for _ in range(RENAME_TRIES):
        try:
            folder.rename(target)
            break
        except PermissionError:
            time.sleep(RENAME_SECONDS)
    else:
        folder.rename(target)


def _to_disk(path: Path) -> None:
    """Force a file's content to the disk, so that the rename cannot outrun it."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
