"""Whether a file that holds code may be run.

It may if it lies in a folder that whoever started the server named, or if nobody but the server's user and root could
have written it: the rule by which sshd reads a user's keys (StrictModes in sshd_config(5)).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segserve.errors import BadInputError, NotTrustedError

ROOT = 0


@dataclass(frozen=True)
class Doubt:
    """Why a file is not trusted: the file itself or a folder above it, what is wrong with it, how to mend that."""

    place: Path
    reason: str
    remedy: str


def trusted_file(path: Path, trusted: Sequence[Path]) -> Path:
    """The file that a path leads to, if the code in it may be run.

    Args:
        path: as the client named it.
        trusted: folders whose files may be run whoever owns them.

    Returns:
        The file, links followed. That is what must be run: the path itself may lead elsewhere by then.

    Raises:
        NotTrustedError: somebody else could have written it; why, and what to do.
        BadInputError: it is not there, or cannot be looked at.
    """
    real = resolved(path)
    if doubt := _doubt_outside(trusted, real):
        raise NotTrustedError(_sentence(path, real, real, real, doubt))
    return real


def refuse_untrusted_beside(path: Path, real: Path, trusted: Sequence[Path], files: Iterable[Path]) -> None:
    """Refuse more code that would be run with a trusted file, if somebody else could have written it.

    Links on the way to such code are judged too, by where they lie: they are followed again when it is run.

    Args:
        path: of the trusted file, as the client named it.
        real: what `trusted_file` gave for it.
        trusted: folders whose files may be run whoever owns them.
        files: with the code; the trusted file may be among them.

    Raises:
        NotTrustedError: the first of them that is not trusted, why, and what to do.
        BadInputError: one is not there, or cannot be looked at.
    """
    for file in files:
        *links, end = _legs(file)
        for judged in (*links, end):
            if doubt := _doubt_outside(trusted, judged, link=judged != end):
                raise NotTrustedError(_sentence(path, real, file, judged, doubt))


def resolved(path: Path) -> Path:
    """Where a path leads, links followed.

    Raises:
        BadInputError: nowhere, or the server may not look there.
    """
    return _legs(path)[-1]


def name_beside(file: Path, path: Path, real: Path) -> str:
    """What a file beside one that holds code is called for whoever sent the latter's path, and sees no other folder."""
    return str(file.relative_to(real.parent)) if _is_below(file, path, real) else file.name


def _is_below(file: Path, path: Path, real: Path) -> bool:
    return file.is_relative_to(real.parent) and path.parent.resolve() == real.parent


def _legs(path: Path) -> list[Path]:
    """The links that a path leads over, each where it lies itself, and last where it leads."""
    try:
        end = path.resolve(strict=True)
        return [*_links(path), end]
    except OSError as error:
        raise BadInputError(f"{path.name} cannot be read: {error.strerror}.") from None
    except RuntimeError:  # of Python before 3.13
        raise BadInputError(f"{path.name} cannot be read: it is a link that leads to itself.") from None


def _links(path: Path) -> Iterator[Path]:
    for place in (path, *path.parents):
        if place.is_symlink():
            link = place.parent.resolve() / place.name
            yield link
            yield from _links(link.parent / link.readlink())


def _doubt_outside(trusted: Sequence[Path], place: Path, *, link: bool = False) -> Doubt | None:
    if any(place.is_relative_to(folder.resolve()) for folder in trusted):
        return None
    return _doubt(place, link=link)


def _sentence(path: Path, real: Path, file: Path, judged: Path, doubt: Doubt) -> str:
    """Names only what the client sent and what lies below its folder."""
    shown = path if file == real else name_beside(file, path, real)
    folder = path.parent if file == real or _is_below(file, path, real) else "its folder"
    return (
        f"{shown} holds code and is not run: {_place(path, judged, doubt.place)} {doubt.reason}. "
        f"Start the server with --trust {folder}, or {doubt.remedy}."
    )


def _place(path: Path, judged: Path, place: Path) -> str:
    if place == judged:
        return "it"
    if place in path.parents and path == path.resolve():
        return f"the folder {place}"
    levels = len(judged.parts) - len(place.parts)
    return "its folder" if levels == 1 else f"the folder {levels} levels above it"


if sys.platform == "win32":

    def _doubt(path: Path, *, link: bool) -> Doubt | None:
        from segserve.models.trust_windows import belongs_to_user

        if link or belongs_to_user(path):
            return None
        return Doubt(path, "belongs to another user than the server's", "make the server's user its owner")

else:
    import errno
    import grp
    import pwd

    AGAIN = "send the request again"

    def _doubt(path: Path, *, link: bool) -> Doubt | None:
        """From the top: what is found good there, others cannot change while the rest is looked at."""
        for place in (*reversed(path.parents), path):
            try:
                state = place.lstat()
            except OSError:
                return Doubt(place, "cannot be looked at", AGAIN)
            is_link = stat.S_ISLNK(state.st_mode)
            if is_link != (link and place == path):
                return Doubt(place, "was replaced just now", AGAIN)
            if doubt := _doubt_about(place, state, is_link=is_link):
                return doubt
        return None

    def _doubt_about(place: Path, state: os.stat_result, *, is_link: bool) -> Doubt | None:
        if state.st_uid not in {ROOT, os.geteuid()}:
            ours = _user(os.geteuid())
            return Doubt(place, f"belongs to {_user(state.st_uid)}, not to {ours}", f"run chown {ours} on it")
        # A link's own mode says nothing. In a sticky folder everybody may make files, but nobody can replace another's.
        if is_link or (stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX):
            return None
        if state.st_mode & stat.S_IWOTH:
            return Doubt(place, "may be changed by every user", "run chmod go-w on it")
        if state.st_mode & stat.S_IWGRP and (others := _others(place, state.st_gid)):
            return Doubt(place, f"may be changed by {others}", "run chmod g-w on it")
        return None

    def _others(place: Path, group: int) -> str | None:
        """Who besides root and the server's user may write where the group may."""
        if _has_access_list(place):  # what looks like the group's permissions is the list's mask then
            return "others whom its access list names"
        name = _others_of(group)
        return f"the group {name}" if name else None

    def _has_access_list(place: Path) -> bool:
        if not hasattr(os, "getxattr"):
            return False
        try:
            os.getxattr(place, "system.posix_acl_access", follow_symlinks=False)
        except OSError as error:
            return error.errno not in {errno.ENODATA, errno.ENOTSUP}
        return True

    def _user(number: int) -> str:
        try:
            return pwd.getpwuid(number).pw_name
        except KeyError:
            return f"the user with id {number}"

    def _others_of(number: int) -> str | None:
        """A group's name, unless it is root's or the server user's own one, and nobody else is known to be in it.

        The members of other groups cannot be told: a directory service need not list its users.
        """
        try:
            group = grp.getgrgid(number)
        except KeyError:
            return f"with id {number}"
        members = {*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == number)}
        others = members - {_user(ROOT), _user(os.geteuid())}
        return group.gr_name if others or not (number == ROOT or _is_own(group)) else None

    def _is_own(group: grp.struct_group) -> bool:
        try:
            user = pwd.getpwuid(os.geteuid())
        except KeyError:
            return False
        return (user.pw_gid, user.pw_name) == (group.gr_gid, group.gr_name)
