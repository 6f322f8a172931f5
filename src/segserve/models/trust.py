"""Whether a file that holds code may be run.

It may if it lies in a folder that whoever started the server named, or if nobody but the server's user and root could
have written it: the rule by which sshd reads a user's keys (StrictModes in sshd_config(5)).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segserve.errors import NotTrustedError

ROOT = 0


@dataclass(frozen=True)
class Doubt:
    """Why a file is not trusted: the file itself or a folder above it, what is wrong with it, how to mend that."""

    place: Path
    reason: str
    remedy: str


def refuse_untrusted(path: Path, trusted: Sequence[Path], beside: Sequence[Path] = ()) -> None:
    """Refuse code that somebody else could have written.

    Args:
        path: a file with code, as the client named it.
        trusted: folders whose files may be run whoever owns them.
        beside: more files that would be run with it.

    Raises:
        NotTrustedError: with the first file of them that is not trusted, why, and what to do.
        OSError: a file is not there, or cannot be looked at.
    """
    folders = [folder.resolve() for folder in trusted]
    for file in (path, *beside):
        real = file.resolve(strict=True)
        if any(real.is_relative_to(folder) for folder in folders):
            continue
        if doubt := _doubt(real):
            raise NotTrustedError(_sentence(path, file, real, doubt))


def _sentence(path: Path, file: Path, real: Path, doubt: Doubt) -> str:
    """Names only what the client sent and what lies below its folder."""
    inside = file.is_relative_to(path.parent)
    shown = path if file == path else file.relative_to(path.parent) if inside else file.name
    folder = path.parent if inside else "its folder"
    return (
        f"{shown} holds code and is not run: {_place(path, real, doubt.place)} {doubt.reason}. "
        f"Start the server with --trust {folder}, or {doubt.remedy}."
    )


def _place(path: Path, real: Path, place: Path) -> str:
    if place == real:
        return "it"
    if place in path.parents and path == path.resolve():
        return f"the folder {place}"
    levels = len(real.parts) - len(place.parts)
    return "its folder" if levels == 1 else f"the folder {levels} levels above it"


if sys.platform == "win32":

    def _doubt(real: Path) -> Doubt | None:
        from segserve.models.trust_windows import belongs_to_user

        if belongs_to_user(real):
            return None
        return Doubt(real, "belongs to another user than the server's", "make the server's user its owner")

else:
    import grp
    import pwd

    def _doubt(real: Path) -> Doubt | None:
        for place in (real, *real.parents):
            state = place.stat()
            if state.st_uid not in {ROOT, os.geteuid()}:
                ours = _user(os.geteuid())
                return Doubt(place, f"belongs to {_user(state.st_uid)}, not to {ours}", f"run chown {ours} on it")
            # In a sticky folder everybody may make files, but nobody can replace another's.
            if stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX:
                continue
            if state.st_mode & stat.S_IWOTH:
                return Doubt(place, "may be changed by every user", "run chmod go-w on it")
            if state.st_mode & stat.S_IWGRP and (group := _others_of(state.st_gid)):
                return Doubt(place, f"may be changed by the group {group}", "run chmod g-w on it")
        return None

    def _user(number: int) -> str:
        try:
            return pwd.getpwuid(number).pw_name
        except KeyError:
            return f"the user with id {number}"

    def _others_of(number: int) -> str | None:
        """The group's name if it may have members besides root and the server's user."""
        try:
            group = grp.getgrgid(number)
        except KeyError:
            return f"with id {number}"
        members = {*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == number)}
        return group.gr_name if members - {_user(ROOT), _user(os.geteuid())} else None
