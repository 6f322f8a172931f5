"""The image of a data URL on its way into a file: it is never whole in memory."""

from __future__ import annotations

import base64
from pathlib import Path

SHOWN = 80
BLANKS = b" \t\n\r\f\v"
DIGITS = 4  # of base64, for three bytes


class DataUrl:
    """Takes a data URL piece by piece, and writes what its base64 holds.

    Attributes:
        header: what comes before the first comma, as much of it as errors show.
    """

    def __init__(self, target: Path) -> None:
        """Nothing taken yet; `target` is the file to write, in place of any before it."""
        self.header = ""
        self._target = target
        self._in_data = False
        self._sound = True
        self._padded = False
        self._rest = b""
        self._size = 0
        target.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Take the next piece.

        Raises:
            OSError: the image cannot be written.
        """
        if not self._in_data:
            header, comma, text = text.partition(",")
            self.header = (self.header + header)[:SHOWN]
            self._in_data = bool(comma)
        if self._in_data and self._sound:
            self._decode(text)

    def finish(self) -> Path | None:
        """The file, when all was taken; None, and no file, if there was no image or something else than base64."""
        if self._sound and self._size and not self._rest:
            return self._target
        self._target.unlink(missing_ok=True)
        return None

    def _decode(self, text: str) -> None:
        digits = self._rest + text.encode("ascii", "replace").translate(None, BLANKS)
        if not digits:
            return
        whole = len(digits) - len(digits) % DIGITS
        digits, self._rest = digits[:whole], digits[whole:]
        try:
            content = base64.b64decode(digits, validate=True)
        except ValueError:
            content = b""
            self._sound = False
        self._sound &= not self._padded  # nothing may follow the padding
        self._padded = digits.endswith(b"=")
        self._size += len(content)
        with self._target.open("ab") as file:
            file.write(content)
