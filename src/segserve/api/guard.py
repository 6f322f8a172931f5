"""Who may ask: keys off loopback, and on loopback nobody's web page."""

from __future__ import annotations

import base64
import hmac
import logging
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from segserve.api.answers import error_answer
from segserve.settings import Settings, is_loopback

log = logging.getLogger(__name__)

# Whoever watches over machines has no key, and these tell nothing but whether the server works.
OPEN = frozenset({"/healthz", "/readyz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ASK_FOR_KEY = {"WWW-Authenticate": 'Basic realm="Segserve: the key is the user name"'}


class Guard:
    """ASGI middleware that refuses with 401 (no key) or 403 (a page or host that has no business here)."""

    def __init__(self, app: ASGIApp, settings: Settings, key: Callable[[], str]) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            settings: `host`, `insecure`, `allow_from`, `api_key_file` matter here.
            key: gives the key; called when one is needed.
        """
        self._app = app
        self._settings = settings
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] == "http" and not self._settings.insecure:
            refusal = self._refusal(scope, Headers(scope=scope))
            if refusal:
                status, message = refusal
                headers = ASK_FOR_KEY if status == 401 else {}
                await error_answer(scope["path"], status, message, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        if self._needs_key(scope):
            if scope["path"] in OPEN or self._has_key(headers):
                return None
            if not self._comes_from_friend(scope):
                return 401, "This server needs its key: send it as X-API-Key, or as the user name in the server's URL."
            # An outside name can be pointed at this server, and its page is then one of "our own".
            if "origin" in headers and not self._is_own(_hostname(headers.get("host", ""))):
                return 403, (
                    f"A web page of {headers['origin']!r} may not use this server without its key: "
                    f"open the page by the server's IP address, or send the key."
                )
        elif not is_loopback(_hostname(headers.get("host", ""))):
            return 403, f"This server answers only to local names, not to {headers.get('host', '')!r}."
        if scope["method"] not in SAFE_METHODS and not _same_site(headers):
            return 403, f"A web page of {headers.get('origin', '')!r} may not use this server."
        return None

    def _needs_key(self, scope: Scope) -> bool:
        """Off loopback; when a key file was named; and wherever another launcher bound us to an outside address."""
        address = (scope.get("server") or ("localhost", None))[0]
        return self._settings.off_loopback or self._settings.api_key_file is not None or not is_loopback(address)

    def _is_own(self, name: str) -> bool:
        """Whether a name can only mean this server: an address, a name of this machine, or one of `host`."""
        try:
            ip_address(name)
        except ValueError:
            return is_loopback(name) or _plain(name) in map(_plain, self._settings.host)
        return True

    def _has_key(self, headers: Headers) -> bool:
        key = self._key().encode()
        return any(hmac.compare_digest(sent.encode(), key) for sent in _sent_keys(headers))

    def _comes_from_friend(self, scope: Scope) -> bool:
        try:
            address: IPv4Address | IPv6Address = ip_address((scope.get("client") or ("", 0))[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._settings.allow_from)


def _sent_keys(headers: Headers) -> list[str]:
    """Every key a request carries: `X-API-Key`, `Authorization: Bearer`, or the user name of HTTP Basic."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    keys = [headers.get("x-api-key", "")]
    if scheme.lower() == "bearer":
        keys.append(credentials.strip())
    if scheme.lower() == "basic":
        try:
            keys.append(base64.b64decode(credentials, validate=True).decode().partition(":")[0])
        except ValueError:  # not base64, or not text
            log.debug("unreadable Basic credentials")
    return [key for key in keys if key]


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _hostname(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _same_site(headers: Headers) -> bool:
    """Whether a request comes from no web page, or from one of ours.

    The names of this machine count as one, so that a page opened as localhost may talk to 127.0.0.1 on its own port.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is None:
        return True
    try:
        ours, theirs = urlsplit(f"//{host}"), urlsplit(origin)
        same_port = ours.port == theirs.port
    except ValueError:
        return False
    local = is_loopback(ours.hostname or "") and is_loopback(theirs.hostname or "")
    return theirs.netloc == host or (local and same_port)
