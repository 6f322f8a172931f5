"""Which files an MMEngine config is made of, found by reading it: nothing of it is run, no library is needed."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segserve.errors import BadInputError
from segserve.models.backends import is_file
from segserve.models.trust import resolved

BASE = "_base_"
INSTALLED = "::"  # in a base of an installed package
COMPUTED = "{{"  # what MMEngine replaces in a config's text before it reads it
MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class _Source:
    """A config or a file that it brings, and its name in sentences."""

    path: Path
    name: str


def config_files(config: Path, name: str | None = None) -> list[Path]:
    """A config, links followed, then its bases, and the modules in its folder that they name.

    Modules count if they are imported, or if a text could mean them, as in `custom_imports` and in types.

    Args:
        config: a .py file.
        name: what sentences call it; its own name if absent.

    Raises:
        BadInputError: one of them cannot be read or is not Python, or a base cannot be told or is not there.
    """
    real = resolved(config)
    found: dict[Path, Path] = {}
    waiting = [real]
    while waiting:
        file = waiting.pop()
        if found.setdefault(resolved(file), file) is file:
            waiting += _brought(_Source(file, name or config.name if file == real else file.name), real.parent)
    return list(found.values())


def _brought(source: _Source, folder: Path) -> Iterator[Path]:
    tree = _parsed(source)
    yield from _text_bases(tree, source)
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            yield from _lazy_bases(node, source)
        for start, name in _named(node, source.path, folder):
            yield from _modules(start, name)


def _parsed(source: _Source) -> ast.Module:
    if source.path.suffix != ".py":
        raise BadInputError(
            f"{source.name} is no MMEngine config: configs and their bases are .py files, and links lead to such."
        )
    try:
        return ast.parse(source.path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{source.name} cannot be read: {error.strerror}.") from None
    except SyntaxError as error:
        raise BadInputError(f"{source.name}, line {error.lineno}: {error.msg}.") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadInputError(f"{source.name} is no Python file that can be read.") from error


def _text_bases(tree: ast.Module, source: _Source) -> Iterator[Path]:
    """What the first `_base_ = ...` names, as MMEngine takes it."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == BASE:
            for base in _texts(node, source):
                if INSTALLED not in base:
                    yield _there(Path(os.path.normpath(source.path.parent / base)), node, source)
            return


def _texts(node: ast.Assign, source: _Source) -> list[str]:
    try:
        value = ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = None
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and COMPUTED not in text for text in texts):
        raise BadInputError(f"{source.name}, line {node.lineno}: {BASE} must be a plain text, or a list of such.")
    return texts


def _lazy_bases(node: ast.With, source: _Source) -> Iterator[Path]:
    """What is imported under `with read_base():` from beside the file; packages are found by name, like modules."""
    for inner in node.body:
        if isinstance(inner, ast.ImportFrom) and inner.level and inner.module:
            start = _upwards(source.path, inner.level)
            yield _there(start.joinpath(*inner.module.split(".")).with_suffix(".py"), inner, source)


def _there(base: Path, node: ast.stmt, source: _Source) -> Path:
    if not is_file(base):
        raise BadInputError(f"{source.name}, line {node.lineno}: its base {base.name} is not there.")
    return base


def _named(node: ast.AST, file: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """Names that may be modules', and the folders to look for them in."""
    if isinstance(node, ast.Import):
        yield from ((folder, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = _upwards(file, node.level) if node.level else folder
        yield from ((start, f"{node.module}.{alias.name}" if node.module else alias.name) for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_NAME.fullmatch(node.value):
        yield folder, node.value


def _upwards(file: Path, level: int) -> Path:
    return file.parent.joinpath(*[os.pardir] * (level - 1))


def _modules(start: Path, name: str) -> Iterator[Path]:
    """The files that importing a dotted name would run, as far as they are there."""
    place = start
    for part in name.split("."):
        place /= part
        yield from (path for path in (place.with_name(f"{part}.py"), place / "__init__.py") if is_file(path))
