"""What can go wrong, as sentences a user can act on, with the HTTP status each one means."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable
from typing import Any


class SegserveError(Exception):
    """An expected failure: `message` is one sentence for the user, `status` its HTTP status."""

    status = 500

    def __init__(self, message: str, *, status: int | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = printable(message)
        self.status = status or type(self).status
        self.retry_after = retry_after

    def to_wire(self) -> dict[str, Any]:
        """The error as JSON, to cross a process boundary."""
        return {"status": self.status, "message": self.message, "retry_after": self.retry_after}

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> SegserveError:
        """The error that `to_wire` wrote."""
        return SegserveError(wire["message"], status=wire["status"], retry_after=wire["retry_after"])


class BadInputError(SegserveError):
    """The data, a file or a value is not usable."""

    status = 400


class NotTrustedError(SegserveError):
    """A file holds code, and nothing says that it may be run; the message says why and what to do."""

    status = 403


class MissingError(SegserveError):
    """The named thing is not here."""

    status = 404


class TooLargeError(SegserveError):
    """Over a limit; the message names the limit, the size and the setting."""

    status = 413


class MissingExtraError(SegserveError):
    """This needs an optional part of Segserve; the message names it."""

    status = 501


class UnavailableError(SegserveError):
    """Busy, died or unloaded: the same request may work later."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class DiskFullError(SegserveError):
    """There is no room left where the server keeps its files."""

    status = 507

    def __init__(self) -> None:
        super().__init__(
            "The server's disk is full: free some space in its state directory and send the request again."
        )


class ReadOnlyError(UnavailableError):
    """Nothing can be written where the server keeps its files."""

    def __init__(self) -> None:
        super().__init__(
            "The server's state directory is read-only at the moment: make it writable and send the request again."
        )


class NoDescriptorError(UnavailableError):
    """The system lets the server open no more files."""

    def __init__(self) -> None:
        super().__init__(
            "The server has as many files and connections open as its system allows: send the request again in a few "
            "seconds."
        )


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC})


def is_disk_full(error: BaseException) -> bool:
    """True for the operating system's "no space left" and "quota exceeded"."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def disk_trouble(error: BaseException) -> SegserveError | None:
    """What keeps the server from writing its files, in words; None for every other error."""
    if is_disk_full(error):
        return DiskFullError()
    if not isinstance(error, OSError):
        return None
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return NoDescriptorError()
    return ReadOnlyError() if error.errno == errno.EROFS else None


def printable(text: str) -> str:
    """The text with what no UTF-8 can carry, such as bytes of a file's name in another encoding, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def human_bytes(count: float) -> str:
    """A byte count as people write it: `human_bytes(3 * 2**30) == '3.0 GiB'`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def some(names: Collection[str], most: int = 20) -> str:
    """Names for a sentence, and how many more there are: `some("abc", 2) == 'a, b and 1 more'`."""
    more = len(names) - most
    return ", ".join(list(names)[:most]) + (f" and {more} more" if more > 0 else "")


def by(sizes: Iterable[int]) -> str:
    """A shape as people write it: `by((64, 32)) == '64 x 32'`."""
    return " x ".join(str(size) for size in sizes)
