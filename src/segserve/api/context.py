"""What every request gets: an id, a line in the log, an answer even when there is a bug, HEAD wherever there is GET."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segserve.api.answers import error_answer
from segserve.api.templates import OTHER, Templates
from segserve.logs import request_id
from segserve.metrics import Metrics

log = logging.getLogger(__name__)

ID_HEADER = "X-Request-ID"
ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Asked every few seconds for as long as somebody looks: in the log they would bury the rest.
POLLED = frozenset(
    {"/api/health", "/api/v1/health", "/api/v1/train/{job_id}/status", "/healthz", "/readyz", "/metrics"}
)


class RequestContext:
    """ASGI middleware; the client's id is kept if it has the right form, else replaced."""

    def __init__(self, app: ASGIApp, templates: Templates, metrics: Metrics) -> None:
        self._app = app
        self._templates = templates
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(ID_HEADER, "")
        chosen = sent if ID_FORM.fullmatch(sent) else uuid.uuid4().hex[:16]
        token = request_id.set(chosen)
        answer = _Answer(send, chosen, without_body=scope["method"] == "HEAD")
        began = time.monotonic()
        try:
            with self._metrics.in_flight.track_inprogress():
                await self._app(_normal(scope), answer.listening(receive), answer.send)
        except Exception:
            log.exception("a bug: %s %s", scope["method"], scope["path"])
            if answer.status:
                raise  # half an answer is out; breaking the connection is the only honest end
            text = f"An unexpected failure; the server's log tells more (request {chosen})."
            await error_answer(scope["path"], 500, text)(scope, receive, answer.send)
        finally:
            self._note(scope["method"], _normal(scope)["path"], answer, time.monotonic() - began)
            request_id.reset(token)

    def _note(self, method: str, path: str, answer: _Answer, seconds: float) -> None:
        """Count a request and log it."""
        route, status = self._templates.of(path), answer.status
        counted = method if method in METHODS else OTHER
        self._metrics.requests.labels(counted, route, str(status)).inc()
        self._metrics.request_seconds.labels(counted, route).observe(seconds)
        level = logging.DEBUG if route in POLLED and 0 < status < 400 else logging.INFO
        shown = path if route == OTHER else route
        fields = {
            "method": method,
            "route": shown,
            "status": status,
            "seconds": round(seconds, 3),
            "bytes": answer.size,
        }
        log.log(
            level, "%s %s %d %.3f s %d bytes", method, shown, status, seconds, answer.size, extra={"fields": fields}
        )


def _normal(scope: Scope) -> Scope:
    """The request as the routes know it: GET for HEAD, and one slash where a server URL that ends in one made two."""
    path = re.sub("^//+", "/", scope["path"])
    return {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}


class _Answer:
    """Passes an answer on with the request's id in it, and without its body for HEAD.

    Attributes:
        status: 0 until the answer begins, and for good if the client is known to have gone before.
        size: of the body so far, in bytes.
    """

    def __init__(self, send: Send, identity: str, *, without_body: bool) -> None:
        self._send = send
        self._identity = identity
        self.without_body = without_body
        self.status = 0
        self.size = 0
        self._gone = False

    def listening(self, receive: Receive) -> Receive:
        """`receive`, and whether the client was still there when its answer began."""

        async def listen() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not self.status:
                self._gone = True
            return message

        return listen

    async def send(self, message: Message) -> None:
        if self._gone:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[ID_HEADER] = self._identity
        elif self.without_body:
            return
        self.size += len(message.get("body", b""))
        await self._send(message)
        if self.without_body:  # at once: the body of a stream of events may take hours
            await self._send({"type": "http.response.body"})
