"""A JSON body of tiles, taken apart while it arrives: the images in it go to files, so it is never whole in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ijson

from segserve.api.limits import LARGEST_JSON
from segserve.api.qupath.tile_files import MOST_TILES, is_data_url
from segserve.api.qupath.tile_image import DataUrl
from segserve.errors import TooLargeError, human_bytes

DEEPEST = 50
EVENT_COST = 8  # bytes: also values without text take memory
TILE = ["tiles", None]
PLACEHOLDER = "data:"
# What ends outside all strings, and the inside of a string that ends with no escape cut in two.
OUTSIDE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
INSIDE = re.compile(rb'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
LONGEST_ESCAPE = 6
MAP, ARRAY = "start_map", "start_array"
CLOSING = frozenset({"end_map", "end_array"})


class NotJsonError(ValueError):
    """The body is not JSON, and why."""


class TileStream:
    """Takes a body piece by piece.

    Attributes:
        size: bytes taken.
    """

    def __init__(self, folder: Path, most: int = LARGEST_JSON) -> None:
        """Nothing taken yet; `folder` gets the images, and what is said besides them may have `most` bytes."""
        self.size = 0
        self._most = most
        self._held = b""
        self._url: DataUrl | None = None
        self._found = _Found(folder, most)
        # The parser holds what it tells, and nothing that it tells may hold the parser: such rings are never freed.
        self._parser = ijson.basic_parse_coro(self._found, use_float=True)

    @property
    def images(self) -> dict[int, Path]:
        """The files that hold the data URLs, by the place of their tile."""
        return self._found.images

    def write(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            NotJsonError: it does not go on as JSON, or is nested too deeply.
            TooLargeError: there are too many tiles, or too much is said of them.
            OSError: an image cannot be written.
        """
        self.size += len(piece)
        while piece:
            piece = self._within_image(piece) if self._url else self._besides_images(piece)

    def finish(self) -> bytes:
        """The body without the images, when all of it was taken; where one was, the data is a URL without data.

        Raises:
            NotJsonError: it is cut short.
        """
        self._parse(self._held)
        try:
            self._parser.close()
        except (ijson.JSONError, ValueError) as error:
            raise NotJsonError(_reason(error)) from None
        return json.dumps(self._found.rest.value).encode()

    def _besides_images(self, piece: bytes) -> bytes:
        """Parse as far as strings are whole; what is left once the data URL of a tile begins."""
        text = self._held + piece
        end = _end(OUTSIDE, text)
        self._held = text[end:]
        self._parse(text[:end])
        if max(self._found.silence, len(self._held)) > self._most:
            raise _says_too_much(self._most)
        if not (self._held.startswith(b'"data:') and self._found.awaits_data):
            return b""
        self._url = self._found.data_url()
        rest, self._held = self._held[1:], b""
        return rest

    def _within_image(self, piece: bytes) -> bytes:
        """Take a data URL as far as it goes; what is left once it ends."""
        assert self._url
        text = self._held + piece
        end = _end(INSIDE, text)
        self._url.write(_unescaped(text[:end]))
        self._held = text[end:]
        if not self._held.startswith(b'"'):
            if len(self._held) >= LONGEST_ESCAPE:
                raise NotJsonError("a string has an escape that is none")
            return b""
        rest, self._held, self._url = self._held[1:], b"", None
        self._parse(json.dumps(PLACEHOLDER).encode())
        return rest

    def _parse(self, text: bytes) -> None:
        if not text:
            return  # the parser would take it for the body's end
        self._found.silence += len(text.strip())
        try:
            self._parser.send(text)
        except (ijson.JSONError, ValueError) as error:
            raise NotJsonError(_reason(error)) from None


class _Found:
    """What the parser has found so far.

    Attributes:
        images: see `TileStream`.
        rest: builds what is said besides them.
        silence: bytes since it found something, without blanks.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.images: dict[int, Path] = {}
        self.rest = ijson.ObjectBuilder()
        self.silence = 0
        self._folder = folder
        self._most = most
        self._cost = 0
        self._tile = -1
        self._url: DataUrl | None = None
        # Of every value that is open the key whose value comes next, "" before there is one; None in an array.
        self._keys: list[str | None] = []

    @property
    def awaits_data(self) -> bool:
        """Whether a string that begins now is a tile's data."""
        return self._keys == [*TILE, "data"]

    def data_url(self) -> DataUrl:
        """What is to take the data URL that begins now; when it has, a placeholder goes to the parser in its place."""
        self._url = DataUrl(self._folder / f"tile-{self._tile}")
        return self._url

    def send(self, told: tuple[str, Any]) -> None:
        """Take what the parser has found, before it goes on: a kind of event and its value."""
        self.silence = 0
        event, value = told
        if event in {MAP, ARRAY}:
            self._open(event)
        elif event in CLOSING:
            self._keys.pop()
            self._end_value()
        elif event == "map_key":
            self._keys[-1] = value
        else:
            if event == "string" and self.awaits_data:
                value = self._kept(value)
            self._end_value()
        self._cost += EVENT_COST + (len(value) if isinstance(value, str) else 0)
        if self._cost > self._most:
            raise _says_too_much(self._most)
        self.rest.event(event, value)

    def _open(self, event: str) -> None:
        if self._keys == ["tiles"] and event == ARRAY:
            self._tile = -1  # the last of several lists counts
            self.images.clear()
        elif self._keys == TILE:
            self._tile += 1
            if self._tile >= MOST_TILES:
                raise TooLargeError(f"The request has more than {MOST_TILES} tiles: send fewer at a time.")
        if len(self._keys) == DEEPEST:
            raise NotJsonError(f"nested more than {DEEPEST} levels deep")
        self._keys.append("" if event == MAP else None)

    def _end_value(self) -> None:
        if self._keys and self._keys[-1]:
            self._keys[-1] = ""

    def _kept(self, data: str) -> str:
        """What stays in the body of a tile's data."""
        self.images.pop(self._tile, None)  # the last of several `data` of a tile counts
        url = self._url
        if url is None:
            if not is_data_url(data):
                return data
            url = self.data_url()
            url.write(data)
        self._url = None
        image = url.finish()
        if image is None:
            return url.header
        self.images[self._tile] = image
        return PLACEHOLDER


def _end(pattern: re.Pattern[bytes], text: bytes) -> int:
    """Where the part of the text that the pattern takes ends; it takes nothing rather than fail."""
    found = pattern.match(text)
    return found.end() if found else 0


def _unescaped(inside: bytes) -> str:
    """The text of a string's inside; what is no UTF-8, or a character cut in two, is no base64 either."""
    try:
        return str(json.loads(f'"{inside.decode("utf-8", "replace")}"'))
    except ValueError:
        raise NotJsonError("a string has a character that must be escaped") from None


def _says_too_much(most: int) -> TooLargeError:
    return TooLargeError(f"The request says more than {human_bytes(most)} besides its images: send fewer tiles.")


def _reason(error: Exception) -> str:
    """The parser's words without its picture of the place."""
    told = error.args[0] if error.args else ""
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    return text.partition("\n")[0].strip() or type(error).__name__
