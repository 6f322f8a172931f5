"""Which files an MMEngine config is made of, found by reading it: nothing of it is run, no library is needed."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

from segserve.errors import BadInputError

BASE = "_base_"
INSTALLED = "::"  # in a base of an installed package
COMPUTED = "{{"  # what MMEngine replaces in a config's text before it reads it
MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def config_files(config: Path) -> list[Path]:
    """A config, its bases, and the modules in its folder that they name.

    Modules count if they are imported, or if a text could mean them, as in `custom_imports` and in types.

    Args:
        config: a .py file.

    Raises:
        BadInputError: one of them is not Python, or a base cannot be told or is not there.
        OSError: one of them cannot be read.
    """
    found: dict[Path, Path] = {}
    waiting = [config]
    while waiting:
        file = waiting.pop()
        if found.setdefault(file.resolve(), file) is file:
            waiting += _brought(file, config.parent)
    return list(found.values())


def _brought(file: Path, folder: Path) -> Iterator[Path]:
    tree = _parsed(file)
    yield from _text_bases(tree, file)
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            yield from _lazy_bases(node, file)
        for start, name in _named(node, file, folder):
            yield from _modules(start, name)


def _parsed(file: Path) -> ast.Module:
    if file.suffix != ".py":
        raise BadInputError(f"{file.name} is no MMEngine config: configs and their bases are .py files.")
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise BadInputError(f"{file.name}, line {error.lineno}: {error.msg}.") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadInputError(f"{file.name} is no Python file that can be read.") from error


def _text_bases(tree: ast.Module, file: Path) -> Iterator[Path]:
    """What the first `_base_ = ...` names, as MMEngine takes it."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == BASE:
            for base in _texts(node, file):
                if INSTALLED not in base:
                    yield _there(Path(os.path.normpath(file.absolute().parent / base)), node, file)
            return


def _texts(node: ast.Assign, file: Path) -> list[str]:
    try:
        value = ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = None
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and COMPUTED not in text for text in texts):
        raise BadInputError(f"{file.name}, line {node.lineno}: {BASE} must be a plain text, or a list of such.")
    return texts


def _lazy_bases(node: ast.With, file: Path) -> Iterator[Path]:
    """What is imported under `with read_base():` from beside the file; packages are found by name, like modules."""
    for inner in node.body:
        if isinstance(inner, ast.ImportFrom) and inner.level and inner.module:
            start = _upwards(file, inner.level)
            yield _there(start.joinpath(*inner.module.split(".")).with_suffix(".py"), inner, file)


def _there(base: Path, node: ast.stmt, file: Path) -> Path:
    if not base.is_file():
        raise BadInputError(f"{file.name}, line {node.lineno}: its base {base.name} is not there.")
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
        yield from (path for path in (place.with_name(f"{part}.py"), place / "__init__.py") if path.is_file())
