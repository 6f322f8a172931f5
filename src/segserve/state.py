"""The state directory: everything the server keeps, owned by one server at a time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from segserve.errors import ReadOnlyError, SegserveError, disk_trouble

# A dead server's models hold the lock for a moment while they sweep up after it.
LOCK_SECONDS = 2.0


class StateDirBusyError(SegserveError):
    """Another server owns the state directory."""


class StateDir:
    """Paths below the state directory. `acquire` makes this process its owner for life."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "models"
        self.jobs = root / "jobs"
        self.job_records = root / "jobs.sqlite"
        self.cache = root / "cache"
        self.spool = root / "spool"
        self.key_file = root / "api-key"
        self.card_file = root / "server.json"
        self._lock = FileLock(root / "lock", thread_local=False)

    def acquire(self) -> None:
        """Own the directory until this process ends, however it ends. Doing so twice changes nothing.

        Raises:
            StateDirBusyError: another server owns it, or it cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.models, self.jobs, self.cache):
                folder.mkdir(exist_ok=True)
            self._lock.acquire(timeout=LOCK_SECONDS)
            self.card_file.unlink(missing_ok=True)  # a killed server left its own
            for path in (self.card_file, self.key_file):
                remove_parts(path)
            self.clean_spool()
        except Timeout:
            raise StateDirBusyError(self._busy_message()) from None
        except OSError as error:
            raise StateDirBusyError(f"The state directory {self.root} cannot be used: {error.strerror}.") from None

    def release(self) -> None:
        """Give the directory back."""
        if self._lock.is_locked:
            self.card_file.unlink(missing_ok=True)
            self._lock.release()

    def is_owned(self) -> bool:
        """Whether a server owns the directory now."""
        if not self.root.is_dir():
            return False
        try:
            with self._lock.acquire(timeout=0):
                return False
        except (Timeout, OSError):
            return True

    def publish(self, addresses: Sequence[str]) -> None:
        """Leave word of where this server answers, for commands and for a second server's message."""
        write_whole(self.card_file, json.dumps({"pid": os.getpid(), "addresses": list(addresses)}))

    def card(self) -> dict[str, Any]:
        """What the owner last published; empty if nothing is there."""
        try:
            card = json.loads(self.card_file.read_text())
        except (OSError, ValueError):
            return {}
        return card if isinstance(card, dict) else {}

    def sweep(self) -> None:
        """Remove what an owner that was killed left behind, unless there is a new owner already."""
        try:
            # Not at once: the dead owner's pipes may close a moment before its lock does.
            with self._lock.acquire(timeout=LOCK_SECONDS / 2):
                self.card_file.unlink(missing_ok=True)
                self.clean_spool()
        except (Timeout, OSError):
            return

    def clean_spool(self) -> None:
        """Remove what a killed server left behind."""
        shutil.rmtree(self.spool, ignore_errors=True)
        self.spool.mkdir(exist_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for one request's files, gone when the request ends.

        Raises:
            DiskFullError, ReadOnlyError: it cannot be made.
        """
        try:
            self.spool.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self.spool))
        except PermissionError:
            raise ReadOnlyError from None
        except OSError as error:
            raise disk_trouble(error) or error from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def api_key(self) -> str:
        """The key kept in this directory, made at the first call (mode 600) and where the file is empty."""
        key = self.key_file.read_text().strip() if self.key_file.exists() else ""
        if not key:
            key = secrets.token_urlsafe(32)
            write_whole(self.key_file, key, mode=0o600)
        return key

    def _busy_message(self) -> str:
        card = self.card()
        where = ", ".join(card.get("addresses", [])) or f"process {card.get('pid', 'unknown')}"
        return f"Another server uses the state directory {self.root}: {where}. Stop it, or give this one --state-dir."


def write_whole(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a small file so that readers see the old text or the new, never a part, even after a power cut.

    Raises:
        OSError: it cannot be written; the old text is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def remove_parts(path: Path) -> None:
    """Remove what processes that were killed had written of a file that `write_whole` writes; none may be at it."""
    for part in path.parent.glob(f".{path.name}.*"):
        part.unlink(missing_ok=True)
