"""How paths of model folders are told to clients, who see neither the folders nor what lies around them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

UNTOLD = "(a path)"


def ways(folders: Sequence[Path]) -> tuple[str, ...]:
    """How paths into the folders begin, links followed or not; for `below`."""
    spelt = {f"{way}{os.sep}" for folder in folders for way in (folder.absolute(), folder.resolve())}
    return tuple(sorted(spelt, key=len, reverse=True))


def below(text: str, beginnings: Sequence[str]) -> str:
    """A text in which paths into folders begin behind them, as whoever cannot see the folders may read it."""
    for beginning in beginnings:
        text = text.replace(beginning, "")
    return text


def told(text: str, names: Mapping[str, str]) -> str:
    """A text in which files go by other names than their paths, and nothing is said of the folders above them.

    Args:
        text: to be read by a client.
        names: of files, by the paths that clients have not sent.
    """
    if text in names or not names:
        return names.get(text, text)
    shown: dict[str, str] = {}
    for path in map(Path, names):
        if path.is_absolute():
            shown |= {str(folder): UNTOLD for folder in path.parents if folder.name}
            shown[os.path.join(path.parent, "")] = ""  # noqa: PTH118  # a path has no separator at its end
    shown |= names
    longest_first = sorted(shown, key=len, reverse=True)
    pattern = "|".join(re.escape(place) + ("" if place.endswith(os.sep) else r"(?!\w)") for place in longest_first)
    return re.sub(rf"(?<![\w.])(?:{pattern})", lambda found: shown[found[0]], text)
