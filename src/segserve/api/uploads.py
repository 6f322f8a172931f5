"""Multipart forms, written to the spool as they arrive: never a file in memory, never more than the limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from segserve.api.delivery import HungUpError
from segserve.api.limits import Pace, over_limit
from segserve.errors import BadInputError, DiskFullError, TooLargeError, human_bytes, is_disk_full

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

WRITE_SIZE = 2**20
MAX_FIELD = 64 * 2**10
MAX_PARTS = 100

SizeCheck = Callable[[int], None]
Write = Callable[[bytes], object]


@dataclass
class Form:
    """A received form: text fields, and by part name the files and what the client calls them."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def form_schema(required: str | list[str], properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `/docs` shows of a form that its route receives itself.

    Args:
        required: the part that must be there, or several.
        properties: the JSON schema of each part.
    """
    names = [required] if isinstance(required, str) else required
    schema = {"type": "object", "required": names, "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def small_body(request: Request, limit: int) -> bytearray:
    """A whole small body.

    Raises:
        TooLargeError: it is over `limit` bytes.
    """

    def check(size: int) -> None:
        if size > limit:
            raise TooLargeError(over_limit(limit, stated))

    stated, body = _stated_size(request), bytearray()
    async for chunk in _chunks(request, check):
        body += chunk
    return body


async def stream_body(request: Request, limit: int, write: Write) -> None:
    """Give a body that may be as large as an upload to `write`, in pieces and in threads.

    Raises:
        HungUpError: it is cut short.
        TooLargeError: it is over `limit` bytes.
    """
    check = _upload_check(limit)
    check(_stated_size(request))
    await _feed(_chunks(request, check), write)


async def receive_form(
    request: Request,
    folder: Path,
    *,
    file_parts: frozenset[str],
    limit: int,
    field_limits: Mapping[str, int] | None = None,
) -> Form:
    """Receive a multipart form, its files into `folder`.

    Args:
        request: any request; one that is not multipart gives an empty form.
        folder: exists, belongs to this request.
        file_parts: the names whose parts are files, whatever part headers the client leaves out.
        limit: bytes of the whole body.
        field_limits: the names whose parts are text, with or without a file's name, and how many bytes each may have.

    Raises:
        BadInputError: the form is malformed.
        HungUpError: it is cut short.
        TooLargeError: the body, or a field, is over its limit.
        DiskFullError: there is no room for the file.
    """
    check = _upload_check(limit)
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        async for _ in _chunks(request, check):
            pass  # a client that is still sending would not hear the answer
        return Form()
    check(_stated_size(request))
    receiver = _Receiver(folder, file_parts, field_limits or {})
    try:
        parser = MultipartParser(options.get(b"boundary", b""), receiver.callbacks())
        await _feed(_chunks(request, check), parser.write)
        parser.finalize()
    except FormParserError:
        raise BadInputError("The multipart form is malformed or was cut short: send it again.") from None
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError from None
        raise
    finally:
        receiver.close()
    return receiver.form


async def _chunks(request: Request, check: SizeCheck) -> AsyncIterator[bytes]:
    """The body as it comes; `check` sees how much of it has come before each piece is given.

    Raises:
        HungUpError: the client went away before its end.
        SlowUploadError: it comes too slowly.
        TooLargeError: `check` says so.
    """
    size = 0
    pace = Pace(request.receive, request.app.state.settings)
    try:
        async for chunk in Request(request.scope, pace.receive).stream():
            size += len(chunk)
            check(size)
            yield chunk
    except ClientDisconnect:
        raise HungUpError("The client hung up before its upload was whole.") from None


async def _feed(chunks: AsyncIterator[bytes], write: Write) -> None:
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if len(pending) >= WRITE_SIZE:
            # In a thread: a slow disk must not hold up other requests.
            await asyncio.to_thread(write, bytes(pending))
            pending.clear()
    await asyncio.to_thread(write, bytes(pending))


def _stated_size(request: Request) -> int:
    """What the client says its body has, in bytes; 0 if it does not say."""
    return int(request.headers.get("content-length") or 0)


def _upload_check(limit: int) -> SizeCheck:
    def check(size: int) -> None:
        if size > limit:
            raise TooLargeError(
                f"The upload is {human_bytes(size)} or more; this server takes at most {human_bytes(limit)} "
                f"(max_upload)."
            )

    return check


class _Receiver:
    """The parser's callbacks: one part at a time, to a field or to a file."""

    def __init__(self, folder: Path, file_parts: frozenset[str], field_limits: Mapping[str, int]) -> None:
        self.form = Form()
        self._folder = folder
        self._file_parts = file_parts
        self._field_limits = field_limits
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._text: bytearray | None = None
        self._file: BinaryIO | None = None

    def callbacks(self) -> MultipartCallbacks:
        names = (
            "part_begin",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "part_data",
            "part_end",
        )
        return cast("MultipartCallbacks", {f"on_{name}": getattr(self, f"_{name}") for name in names})

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadInputError(f"The form has more than {MAX_PARTS} parts.")
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._text = None
        if self._name in self._file_parts:
            path = self._folder / f"upload-{self._parts}"
            self._file = path.open("wb")
            self.form.files[self._name] = path
            self.form.names[self._name] = options.get(b"filename", b"").decode("utf-8", "replace")
        elif self._name in self._field_limits or b"filename" not in options:
            self._text = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            self._file.write(memoryview(data)[start:end])
        elif self._text is not None:
            self._text += data[start:end]
            limit = self._field_limits.get(self._name, MAX_FIELD)
            if len(self._text) > limit:
                raise TooLargeError(
                    f"The form field {self._name[:60]!r} has more than {human_bytes(limit)}, the most that it may have."
                )

    def _part_end(self) -> None:
        self.close()
        if self._text is not None:
            self.form.fields[self._name] = self._text.decode("utf-8", "replace")
