"""Running an MMEngine config: what may be run, where its modules are found, and what is said when it fails."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from mmengine.config import Config

from segserve.engines.base import without_paths
from segserve.errors import BadInputError, SegserveError
from segserve.models.formats.mmengine_files import config_files
from segserve.models.trust import name_beside, refuse_untrusted_beside, trusted_file

LONGEST = 300  # characters of an exception's message
WRAPPING = "Failed to import"  # MMEngine's own words around an import's real error


class Beside(MetaPathFinder):
    """Lets modules beside a config be imported if they are trusted, those too that no reading of it could foretell."""

    def __init__(self, config: Path, real: Path, trusted: Sequence[Path]) -> None:
        self._config = config
        self._real = real
        self._trusted = trusted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the finder that it stands in front of.

        Raises:
            NotTrustedError: the module lies in the config's folder, and may not be run.
        """
        spec = PathFinder.find_spec(fullname, path, target)
        places = [Path(name) for name in (spec.origin, spec.cached) if name] if spec and spec.has_location else []
        # Others who may write to the folder of compiled modules could still put one there.
        places += [place.parent for place in places[1:]]
        refuse_untrusted_beside(self._config, self._real, self._trusted, filter(self._lies_beside, places))
        return spec

    def _lies_beside(self, place: Path) -> bool:
        """Whether a place that is there was found in the config's folder, or lies in it."""
        folder = self._real.parent
        there = os.path.exists(place)  # noqa: PTH110  # Path.exists raises on names that are too long
        return there and (place.is_relative_to(folder) or place.resolve().is_relative_to(folder))


def run_config(config: Path, trusted: Sequence[Path]) -> tuple[Config, list[Path]]:
    """Run a config that may be run. Modules in its folder can be imported from then on.

    Args:
        config: text or lazy style.
        trusted: folders whose files may be run whoever owns them.

    Returns:
        The config, and the files it is made of: first itself, links followed.

    Raises:
        NotTrustedError: the config, or a file that it brings, may not be run.
        BadInputError: it cannot be read, or fails.
    """
    real = trusted_file(config, trusted)
    files = config_files(real, config.name)
    refuse_untrusted_beside(config, real, trusted, files)
    sys.path.insert(0, str(real.parent))
    sys.meta_path.insert(sys.meta_path.index(PathFinder), Beside(config, real, trusted))
    with failing(config, real):
        return Config.fromfile(real), files


@contextmanager
def failing(config: Path, real: Path) -> Iterator[None]:
    """Turn whatever a config's code raises into one sentence.

    Args:
        config: as the client named it.
        real: the same, links followed.

    Raises:
        BadInputError: where in the config or beside it, and the exception.
        SegserveError: as it was raised, at any depth.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        chain = list(_chain(error))
        if refused := next((one for one in chain if isinstance(one, SegserveError)), None):
            raise refused from None
        cause = next((one for one in chain if not str(one).startswith(WRAPPING)), error)
        said = (str(cause).splitlines() or [""])[0].replace(f"{real.parent}{os.sep}", "")[:LONGEST]
        what = f"{type(cause).__name__}: {without_paths(said)}" if said else type(cause).__name__
        raise BadInputError(f"The config {config.name} fails: {_place(config, real, chain)}{what}.") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised for, the last first."""
    inner: BaseException | None = error
    while inner:
        yield inner
        inner = inner.__cause__ or inner.__context__


def _place(config: Path, real: Path, chain: list[BaseException]) -> str:
    """The innermost line of the config, or of a file in its folder, that was being run."""
    for error in reversed(chain):
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(real.parent):
                shown = config.name if file == real else name_beside(file, config, real)
                return f"{shown}, line {line}: "
    return ""
