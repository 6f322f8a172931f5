"""A job's folder: its log, its history, its checkpoint, and the model while it is being made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segserve.state import remove_parts, write_whole

LOG_END_BYTES, LOG_END_LINES, LONGEST_LINE = 4096, 3, 300


class JobFolder:
    """Paths of one job below the state directory's `jobs` folder."""

    def __init__(self, root: Path, identity: str) -> None:
        self.root = root / identity
        self.log = self.root / "log.txt"
        self.history_file = self.root / "history.json"
        self.checkpoint = self.root / "checkpoint.pt"
        self.model = self.root / "model"
        self.scratch = self.root / "scratch"

    def prepare(self) -> None:
        """Make the folder, with nothing in it of a run that was interrupted."""
        self.clear_work()
        for folder in (self.model, self.scratch):
            folder.mkdir(parents=True)

    def clear_work(self) -> None:
        """Remove what only a running training needs."""
        for folder in (self.model, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        for part in self.root.glob(f"{self.checkpoint.name}.*"):
            part.unlink(missing_ok=True)
        remove_parts(self.history_file)

    def checkpoint_version(self) -> int:
        """A number that each new checkpoint changes; 0 if there is none, or the disk does not tell."""
        try:
            return self.checkpoint.stat().st_mtime_ns
        except OSError:
            return 0

    def remove_checkpoint(self) -> None:
        """Give its room back."""
        self.checkpoint.unlink(missing_ok=True)

    def append(self, lines: Iterable[str]) -> None:
        """Add lines to the log."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)

    def log_end(self) -> str:
        """The last lines of the log, in one; empty if there are none."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - LOG_END_BYTES))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return " | ".join(line[:LONGEST_LINE] for line in lines[-LOG_END_LINES:])

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace the history."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(self.history_file, json.dumps(history))

    def history(self) -> list[dict[str, Any]]:
        """The finished epochs; empty if there are none."""
        try:
            found: list[dict[str, Any]] = json.loads(self.history_file.read_text())
        except (OSError, ValueError):
            return []
        return found
