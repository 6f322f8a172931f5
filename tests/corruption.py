"""Valid bytes and JSON, spoilt in the ways that disks, networks and other people's programs spoil them."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

Mutation = Callable[[Random, bytearray], None]

HEAD, TAIL = 512, 64
LONGEST_BLOCK = 200
EXTREMES = (0, 1, 2**7 - 1, 2**7, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
NUMBERS = (b"0", b"-1", b"65536", b"2147483647", b"4294967296", b"18446744073709551615", b"9" * 400, b"1e308", b"nan")
VALUES: tuple[object, ...] = (
    *(None, True, -1, 0, 0.5, 1e308, -1e-300, 2**31, 2**63, 2**64, 10**400, float("nan"), float("inf")),
    *("", "\0", "\ud800", "../../../etc/passwd", "data:,", "CON", "a" * 100_000, "1", "\r\nX: 1"),
    *([], [[]], [None], [[[[[[]]]]]], {}, {"": None}, {"strategy": []}, [1e308] * 1000),
)


def corrupted(content: bytes, seed: int) -> bytes:
    """One to three things done to `content`; never `content` itself."""
    random = Random(seed)
    while True:
        spoilt = bytearray(content)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            random.choice(MUTATIONS)(random, spoilt)
        if spoilt != content:
            return bytes(spoilt)


def corrupted_gzip(content: bytes, seed: int) -> bytes:
    """As `corrupted`; every other seed spoils what is inside the gzip file, and leaves the gzip file in order."""
    if seed % 2:
        return corrupted(content, seed)
    return gzip.compress(corrupted(gzip.decompress(content), seed), 1, mtime=0)


def corrupted_json(value: object, seed: int) -> Any:  # noqa: ANN401  # any JSON
    """A JSON value one to three of whose parts are replaced, left out or put in twice."""
    random = Random(seed)
    spoilt: Any = deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = _places(spoilt)
        if not places:
            break
        holder, key = random.choice(places)
        match random.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(holder[key])
            case 2 if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case _:
                holder[key] = deepcopy(random.choice(VALUES))
    return spoilt


def _places(value: object) -> list[tuple[Any, Any]]:
    """Every place in a JSON value that can be replaced: what holds it, and its key or index there."""
    if not isinstance(value, dict | list):
        return []
    inner: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    return [(value, key) for key, _ in inner] + [place for _, part in inner for place in _places(part)]


def _place(random: Random, content: bytearray, room: int = 1) -> int:
    """Somewhere in `content`, rather in its head or its tail than in the bulk; `room` bytes follow if it is so long."""
    last = max(0, len(content) - room)
    ranges = ((0, min(HEAD, last)), (0, min(HEAD, last)), (max(0, last - TAIL), last), (0, last))
    return random.randint(*random.choice(ranges))


def _flip(random: Random, content: bytearray) -> None:
    for _ in range(random.choice((1, 1, 2, 8)) if content else 0):
        content[_place(random, content)] ^= 1 << random.randrange(8)


def _cut(random: Random, content: bytearray) -> None:
    del content[_place(random, content) :]


def _leave_out(random: Random, content: bytearray) -> None:
    start = _place(random, content)
    del content[start : start + random.randint(1, LONGEST_BLOCK)]


def _insert(random: Random, content: bytearray) -> None:
    start = _place(random, content)
    content[start:start] = random.randbytes(random.randint(1, LONGEST_BLOCK))


def _duplicate(random: Random, content: bytearray) -> None:
    start = _place(random, content)
    block = content[start : start + random.randint(1, LONGEST_BLOCK)] * random.choice((1, 1, 100))
    target = random.choice((start, _place(random, content)))
    content[target:target] = block


def _exaggerate(random: Random, content: bytearray) -> None:
    """Some number of 2, 4 or 8 bytes is now extreme, in either byte order."""
    size = random.choice((2, 4, 4, 8))
    start = _place(random, content, size)
    value = random.choice(EXTREMES) % 2 ** (8 * size)
    content[start : start + size] = value.to_bytes(size, random.choice(("little", "big")))


def _swap(random: Random, content: bytearray) -> None:
    """Numbers of 2, 4 or 8 bytes from somewhere on are in the other byte order: one, some, or all that follow."""
    size = random.choice((2, 4, 8))
    start = _place(random, content, size) // size * size
    count = min(random.choice((1, 4, 10**9)), (len(content) - start) // size)
    for place in range(start, start + count * size, size):
        content[place : place + size] = content[place : place + size][::-1]


def _renumber(random: Random, content: bytearray) -> None:
    """A number written in digits is now extreme; real numbers in bytes where there are none."""
    found = list(re.finditer(rb"\d+", bytes(content[: 2**14])))
    if not found:
        start = _place(random, content, 4)
        content[start : start + 4] = struct.pack(random.choice("<>") + "f", random.choice((float("nan"), -1e38, 1e38)))
        return
    number = random.choice(found)
    content[number.start() : number.end()] = random.choice(NUMBERS)


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _flip,
    _cut,
    _leave_out,
    _insert,
    _duplicate,
    _exaggerate,
    _exaggerate,
    _swap,
    _renumber,
)
