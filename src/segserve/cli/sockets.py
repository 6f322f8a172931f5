"""Taking the addresses the server listens on, before anything is promised to anybody."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from segserve.errors import SegserveError

BACKLOG = 2048
NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class PortTakenError(SegserveError):
    """Another program listens on the port."""


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on one port of every host; 0 is the same free port on all of them.

    A host that this machine does not have (often ::1) is left out as long as another is there.

    Raises:
        PortTakenError: the port is in use, not allowed, or no host is there.
    """
    taken: list[socket.socket] = []
    try:
        for host in hosts:
            bound = _bind(host, port, with_ipv4=host == "::" and "0.0.0.0" not in hosts)  # noqa: S104  # a comparison
            if bound is None:
                continue
            taken.append(bound)
            port = port or bound.getsockname()[1]
    except OSError as error:
        for bound in taken:
            bound.close()
        reason = (
            "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        )
        raise PortTakenError(f"Port {port} {reason}. Choose another with --port.") from None
    if not taken:
        raise PortTakenError(f"This machine has no address {' or '.join(hosts)} to listen on.")
    return taken


def _bind(host: str, port: int, *, with_ipv4: bool) -> socket.socket | None:
    """A listening socket, None if this machine does not have the address; `with_ipv4` lets :: answer both."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        return None
    try:
        bound = socket.socket(family, kind, protocol)
    except OSError:
        return None
    try:
        if os.name == "nt":  # there, SO_REUSEADDR would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", 0), 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not with_ipv4)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno in NOT_HERE:
            return None
        raise
    return bound


def url(bound: socket.socket) -> str:
    """The address of a socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def local_url(bound: socket.socket) -> str:
    """The URL under which this machine reaches a socket: one that listens everywhere is here too."""
    return url(bound).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
